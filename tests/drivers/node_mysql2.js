// mysql2: text and binary protocol, transactions, its pool, streams, changes of user, errors.
'use strict'

const assert = require('node:assert')
const mysql = require('mysql2/promise')

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
const where = 'SELECT @@port AS port'

async function port(answer) {
  return Number((await answer)[0][0].port)
}

function onReplica(port, what) {
  assert(replicas.includes(port), `${what}: ran on ${port}, the replicas are ${replicas}`)
}

async function readsAndWrites() {
  const db = await mysql.createConnection(login)
  for (let n = 0; n < 20; n++) {
    onReplica(await port(db.query(where)), 'a text read')
    onReplica(await port(db.execute(where + ' FROM (SELECT 1) o WHERE ? >= 0', [n])), 'a prepared read')
  }
  const [ids] = await db.query('SELECT CONNECTION_ID() AS id')
  assert.strictEqual(ids[0].id, db.threadId)
  const [prepared] = await db.execute('SELECT CONNECTION_ID() AS id')
  assert.strictEqual(prepared[0].id, db.threadId)
  await db.query('CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, word VARCHAR(40), at DATETIME(3), data JSON)')
  for (let n = 1; n <= 30; n++) {
    const insert = 'INSERT INTO t (word, at, data) VALUES (?, NOW(3), ?)'
    const [result] = await db.execute(insert, [`wörd ${n}`, JSON.stringify({ n })])
    assert.strictEqual(result.insertId, n)
    const [rows] = await db.execute('SELECT COUNT(*) AS count, MAX(word) AS word FROM t WHERE id <= ?', [n])
    assert.strictEqual(rows[0].count, n)
  }
  await assert.rejects(db.query('SELECT no_such_column'), { errno: 1054, sqlState: '42S22' })
  await assert.rejects(db.execute('SELECT * FROM no_such_table'), { errno: 1146 })
  await db.changeUser({ user: POINTSMAN_USER, password: POINTSMAN_PASSWORD, database: POINTSMAN_DATABASE })
  assert.strictEqual((await db.query('SELECT 1 AS one'))[0][0].one, 1)
  await db.end()
}

async function several() {
  const db = await mysql.createConnection({ ...login, multipleStatements: true })
  const [results] = await db.query('SELECT 1 AS a; SELECT 2 AS b; SELECT @@port AS port')
  assert.deepStrictEqual(results.map((rows) => Object.keys(rows[0])[0]), ['a', 'b', 'port'])
  onReplica(Number(results[2][0].port), 'several reads')
  let sum = 0
  for await (const row of db.connection.query('SELECT seq FROM seq_1_to_20000').stream()) {
    sum += row.seq
  }
  assert.strictEqual(sum, 200010000)
  await db.end()
}

async function transactions() {
  const pool = mysql.createPool({ ...login, connectionLimit: 5 })
  const work = Array.from({ length: 50 }, async (_, n) => {
    const db = await pool.getConnection()
    try {
      await db.beginTransaction()
      assert.strictEqual(await port(db.execute(where)), primary)
      await db.execute('INSERT INTO t (word) VALUES (?)', [`pooled ${n}`])
      await (n % 2 ? db.commit() : db.rollback())
    } finally {
      db.release()
    }
  })
  await Promise.all(work)
  const [rows] = await pool.query("/* pointsman: primary */ SELECT COUNT(*) AS n FROM t WHERE word LIKE 'pooled%'")
  assert.strictEqual(rows[0].n, 25)
  await pool.end()
}

async function logins() {
  await assert.rejects(mysql.createConnection({ ...login, password: 'wrong' }), { errno: 1045 })
  await assert.rejects(mysql.createConnection({ ...login, database: 'no_such_schema' }), { errno: 1049 })
}

async function compression() {
  const db = await mysql.createConnection({ ...login, compress: true })
  assert(db.connection._inflatedPacketsParser, 'it is compressed')
  for (let n = 0; n < 20; n++) {
    onReplica(await port(db.query(where)), 'a compressed read')
    onReplica(await port(db.execute(where + ' FROM (SELECT 1) o WHERE ? >= 0', [n])), 'a compressed prepared read')
  }
  const long = Array.from({ length: 30000 }, (_, n) => n * 7919).join(' ')
  assert.strictEqual((await db.query('SELECT ? AS long_text', [long]))[0][0].long_text, long)
  assert.strictEqual((await db.execute('SELECT ? AS long_text', [long]))[0][0].long_text, long)
  let sum = 0
  for await (const row of db.connection.query('SELECT seq FROM seq_1_to_20000').stream()) {
    sum += row.seq
  }
  assert.strictEqual(sum, 200010000)
  await db.changeUser({ user: POINTSMAN_USER, password: POINTSMAN_PASSWORD, database: POINTSMAN_DATABASE })
  assert.strictEqual((await db.query('SELECT 1 AS one'))[0][0].one, 1)
  await assert.rejects(db.query('SELECT no_such_column'), { errno: 1054 })
  await db.end()
}

async function main() {
  await readsAndWrites()
  await several()
  await transactions()
  await logins()
  await compression()
}

main().catch((error) => {
  console.error(error)
  process.exit(1)
})
