//! What classifying a statement costs: a hit of the cache, a miss, and the worst that is parsed.

use std::{hint::black_box, time::Instant};

use divan::Bencher;
use pointsman::sql::{
    Dialect, LexModes,
    cache::{Classifier, DEFAULT_CAPACITY},
    catalog::{Catalog, FunctionRules},
    classify,
};

fn main() {
    divan::main();
}

const PGBENCH: &str = "SELECT abalance FROM pgbench_accounts WHERE aid = 12345;";
const PGBENCH_WRITE: &str = "UPDATE pgbench_accounts SET abalance = abalance + -1234 WHERE aid = 12345;";
const ORM: &str = r#"SELECT "shop_order"."id", "shop_order"."created", "shop_order"."state", "shop_order"."total", "shop_customer"."id", "shop_customer"."name", "shop_customer"."email", "shop_address"."id", "shop_address"."street", "shop_address"."city", "shop_address"."country" FROM "shop_order" INNER JOIN "shop_customer" ON ("shop_order"."customer_id" = "shop_customer"."id") LEFT OUTER JOIN "shop_address" ON ("shop_customer"."address_id" = "shop_address"."id") WHERE ("shop_order"."state" = 'open' AND "shop_order"."created" >= '2024-01-01 00:00:00+00:00'::timestamptz AND "shop_customer"."country" IN ('de', 'fr', 'it')) ORDER BY "shop_order"."created" DESC LIMIT 21"#;

const NAMED: [&str; 3] = ["pgbench", "pgbench_write", "orm"];

fn text(name: &str) -> &'static str {
    match name {
        "pgbench" => PGBENCH,
        "pgbench_write" => PGBENCH_WRITE,
        _ => ORM,
    }
}

/// The usual case of simple-protocol traffic: the text is new, its shape is known.
#[divan::bench(args = NAMED, sample_size = 500)]
fn hit(bencher: Bencher<'_, '_>, name: &str) {
    let classifier = Classifier::new(Dialect::Postgres, FunctionRules::default(), DEFAULT_CAPACITY);
    let (catalog, modes, now) = (loaded(), LexModes::default_of(Dialect::Postgres), Instant::now());
    let text = text(name).as_bytes();
    bencher.bench_local(|| classifier.intent(1, &catalog, modes, black_box(text), || now));
}

#[divan::bench(args = NAMED)]
fn miss(bencher: Bencher<'_, '_>, name: &str) {
    bench_miss(bencher, Dialect::Postgres, text(name));
}

#[divan::bench]
fn hit_insert_of_1000_rows(bencher: Bencher<'_, '_>) {
    let classifier = Classifier::new(Dialect::Postgres, FunctionRules::default(), DEFAULT_CAPACITY);
    let (catalog, modes, now) = (loaded(), LexModes::default_of(Dialect::Postgres), Instant::now());
    let text = insert_of_1000_rows();
    bencher.bench_local(|| classifier.intent(1, &catalog, modes, black_box(text.as_bytes()), || now));
}

#[divan::bench]
fn miss_insert_of_1000_rows(bencher: Bencher<'_, '_>) {
    bench_miss(bencher, Dialect::Postgres, &insert_of_1000_rows());
}

/// Chains and nests as long as the parser's bounds allow.
#[divan::bench(args = ["+a", "||a", " OR a=1", "::int", "(", " UNION ALL SELECT a", ".b", "[1]", ",f(a", ", CASE WHEN a THEN "], sample_count = 10, sample_size = 1)]
fn worst(bencher: Bencher<'_, '_>, link: &str) {
    let head = if link == "(" { "SELECT " } else { "SELECT a" };
    let links = (30_000 / link.len()).min(3900 / tokens_of(link));
    bench_miss(bencher, Dialect::Postgres, &format!("{head}{}", link.repeat(links)));
}

fn tokens_of(link: &str) -> usize {
    match link {
        "(" => 1,
        "+a" | ".b" => 2,
        "||a" | "::int" | "[1]" => 3,
        _ => 4,
    }
}

fn bench_miss(bencher: Bencher<'_, '_>, dialect: Dialect, text: &str) {
    let (catalog, rules) = (loaded(), FunctionRules::default());
    let modes = LexModes::default_of(dialect);
    bencher.bench_local(|| classify(black_box(text.as_bytes()), dialect, modes, &catalog, &rules));
}

fn loaded() -> Catalog {
    Catalog { loaded: true, ..Catalog::empty() }
}

fn insert_of_1000_rows() -> String {
    let rows: Vec<String> = (0..1000).map(|row| format!("({row}, 'name {row}', NULL, {row}.5)")).collect();
    format!("INSERT INTO t (a, b, c, d) VALUES {}", rows.join(", "))
}
