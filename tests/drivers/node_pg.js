// node-postgres: simple, parameterised and named queries, transactions, its pool, LISTEN.
'use strict'

const assert = require('node:assert')
const { Client, Pool } = require('pg')

const { POINTSMAN_PORT, POINTSMAN_USER, POINTSMAN_PASSWORD, POINTSMAN_DATABASE } = process.env
const primary = Number(process.env.PRIMARY_PORT)
const replicas = process.env.REPLICA_PORTS.split(',').map(Number)
const login = {
  host: '127.0.0.1',
  port: Number(POINTSMAN_PORT),
  user: POINTSMAN_USER,
  password: POINTSMAN_PASSWORD,
  database: POINTSMAN_DATABASE,
}
const where = 'SELECT inet_server_port() AS port'

async function port(db, query, values) {
  return (await db.query(query, values)).rows[0].port
}

function onReplica(port, what) {
  assert(replicas.includes(port), `${what}: ran on ${port}, the replicas are ${replicas}`)
}

async function readsAndWrites() {
  const db = new Client(login)
  await db.connect()
  for (let n = 0; n < 20; n++) {
    onReplica(await port(db, where), 'a simple read')
    onReplica(await port(db, where + ' WHERE $1::int >= 0', [n]), 'a parameterised read')
    onReplica(await port(db, { name: 'where', text: where }), 'a named read')
  }
  await db.query('CREATE TABLE t (id serial PRIMARY KEY, word text)')
  for (let n = 1; n <= 30; n++) {
    const insert = 'INSERT INTO t (word) VALUES ($1) RETURNING inet_server_port() AS port'
    assert.strictEqual(await port(db, insert, [`word ${n}`]), primary)
    const count = await db.query({ name: 'count', text: 'SELECT count(*)::int AS count FROM t' })
    assert.strictEqual(count.rows[0].count, n)
  }
  await assert.rejects(db.query('SELECT no_such_column'), { code: '42703' })
  await db.end()
}

async function transactions() {
  const pool = new Pool({ ...login, max: 5 })
  const work = Array.from({ length: 50 }, async (_, n) => {
    const db = await pool.connect()
    try {
      await db.query('BEGIN')
      assert.strictEqual(await port(db, where), primary)
      await db.query('INSERT INTO t (word) VALUES ($1)', [`pooled ${n}`])
      await db.query(n % 2 ? 'COMMIT' : 'ROLLBACK')
    } finally {
      db.release()
    }
  })
  await Promise.all(work)
  const count = await pool.query("/* pointsman: primary */ SELECT count(*)::int AS n FROM t WHERE word LIKE 'pooled%'")
  assert.strictEqual(count.rows[0].n, 25)
  await pool.end()
}

async function notifications() {
  const [listener, db] = [new Client(login), new Client(login)]
  await Promise.all([listener.connect(), db.connect()])
  const heard = new Promise((resolve) => listener.on('notification', (news) => resolve(news.payload)))
  await listener.query('LISTEN news')
  await db.query("NOTIFY news, 'hear'")
  assert.strictEqual(await heard, 'hear')
  await Promise.all([listener.end(), db.end()])
}

readsAndWrites()
  .then(transactions)
  .then(notifications)
  .catch((error) => {
    console.error(error)
    process.exit(1)
  })
