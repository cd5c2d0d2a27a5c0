"""asyncpg: binary protocol, its statement cache, its pool's reset query, cursors, COPY, LISTEN."""

import asyncio
import datetime
import decimal

import asyncpg
from common import DATABASE, HOST, PASSWORD, PORT, PRIMARY, REPLICAS, USER, WHERE, equal, on_primary, on_replicas

LOGIN = {"host": HOST, "port": PORT, "user": USER, "password": PASSWORD, "database": DATABASE}


async def reads_and_writes():
    db = await asyncpg.connect(**LOGIN)
    on_replicas([await db.fetchval(WHERE) for _ in range(20)], "cached reads")
    on_replicas([await db.fetchval("SELECT inet_server_port() WHERE $1 > 0", n) for n in range(1, 21)], "parameters")
    await db.execute("CREATE TYPE mood AS ENUM ('glad', 'sad')")
    await db.execute("CREATE TABLE t (id serial PRIMARY KEY, m mood, n numeric, at timestamptz, tags text[])")
    now = datetime.datetime.now(datetime.timezone.utc)
    for n in range(30):
        insert = "INSERT INTO t (m, n, at, tags) VALUES ('glad', $1, $2, $3) RETURNING inet_server_port()"
        on_primary([await db.fetchval(insert, decimal.Decimal(n), now, ["a", "b"])], "a write")
        equal(await db.fetchval("SELECT count(*) FROM t"), n + 1)
    row = await db.fetchrow("SELECT m, n, at, tags FROM t WHERE n = $1", decimal.Decimal(7))
    equal(tuple(row), ("glad", decimal.Decimal(7), now, ["a", "b"]))
    await db.executemany("INSERT INTO t (n) VALUES ($1)", [(decimal.Decimal(n),) for n in range(500)])
    equal(await db.fetchval("SELECT count(*) FROM t"), 530)
    await db.close()


async def transactions():
    db = await asyncpg.connect(**LOGIN)
    async with db.transaction():
        on_primary([await db.fetchval(WHERE) for _ in range(3)], "reads in a transaction")
        total = 0
        async for row in db.cursor("SELECT generate_series(1, 1000)", prefetch=100):
            total += row[0]
        equal(total, 500500)
    # Another session: this one may have to use the primary for a moment.
    reader = await asyncpg.connect(**LOGIN)
    async with reader.transaction(readonly=True):
        on_replicas([await reader.fetchval(WHERE) for _ in range(3)], "reads in a read-only transaction")
    await reader.close()
    try:
        async with db.transaction():
            await db.execute("INSERT INTO t (n) VALUES (9999)")
            async with db.transaction():
                await db.execute("SELECT 1/0")
    except asyncpg.DivisionByZeroError:
        pass
    equal(await db.fetchval("SELECT count(*) FROM t WHERE n = 9999"), 0)
    await db.close()


async def copy_and_listen():
    db = await asyncpg.connect(**LOGIN)
    other = await asyncpg.connect(**LOGIN)
    await db.execute("CREATE TABLE c (id int, word text)")
    await db.copy_records_to_table("c", records=[(n, f"word {n}") for n in range(5000)])
    equal(await db.fetchval("SELECT sum(id) FROM c"), 12497500)
    heard = asyncio.get_running_loop().create_future()
    await db.add_listener("news", lambda *news: heard.set_result(news[3]))
    await other.execute("SELECT pg_notify('news', 'hear')")
    equal(await asyncio.wait_for(heard, 10), "hear")
    await db.close()
    await other.close()


async def pool():
    ports = []

    async def work(pool, n):
        async with pool.acquire() as db:
            equal(await db.fetchval("SELECT $1::int", n), n)
            ports.append(await db.fetchval(WHERE))

    async with asyncpg.create_pool(**LOGIN, min_size=2, max_size=8) as pool:
        await asyncio.gather(*(work(pool, n) for n in range(200)))
    # A connection that its pool has reset may stay on the primary for a moment, not for good.
    equal(set(ports) <= REPLICAS | {PRIMARY}, True)
    assert sum(port in REPLICAS for port in ports) > 100, ports


async def stale_plans():
    db = await asyncpg.connect(**LOGIN)
    other = await asyncpg.connect(**LOGIN)
    for table, hint in (("d", ""), ("e", "/* pointsman: primary */ ")):
        query = f"{hint}SELECT * FROM {table}"
        await db.execute(f"CREATE TABLE {table} (a int)")
        await db.execute(f"INSERT INTO {table} VALUES (1)")
        equal([tuple(row) for row in await db.fetch(query)], [(1,)])
        await other.execute(f"ALTER TABLE {table} ADD b text DEFAULT 'b'")
        # asyncpg decodes by the description it has kept: it must be told, and then asks again by itself.
        equal([tuple(row) for row in await db.fetch(query)], [(1, "b")])
    await db.close()
    await other.close()


async def the_proxys_own_settings():
    db = await asyncpg.connect(**LOGIN)
    on_replicas([await db.fetchval(WHERE)], "a read")
    await db.fetchval("/* pointsman: primary */ SELECT 1")
    route = await db.fetchval("SHOW pointsman.route")
    assert f":{PRIMARY} " in route, route
    level = "pointsman.consistency"
    equal(await db.fetchval(f"SELECT set_config('{level}', 'user', false)"), "user")
    equal(await db.fetchval("SELECT set_config($1, $2, $3)", level, "global", False), "global")
    equal(await db.fetchval(f"SELECT current_setting('{level}')"), "global")
    equal(await db.fetchval(f"SHOW {level}"), "global")
    await db.close()


async def main():
    await reads_and_writes()
    await transactions()
    await copy_and_listen()
    await pool()
    await stale_plans()
    await the_proxys_own_settings()


asyncio.run(main())
