//! The drivers that MySQL's apps use, with their own habits.

use std::process::{Command, Output};

use mysql_async::{OptsBuilder, Pool, TxOpts, prelude::Queryable};
use pointsman::demo::servers::APP;

use crate::support::{
    drivers,
    mysql::{Make, Stage},
};

#[tokio::test]
async fn mysql_async_notices_nothing() {
    use_mysql_async(Make::MariaDb).await;
}

async fn use_mysql_async(make: Make) {
    let table = "CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, x VARCHAR(20))";
    let stage = Stage::on(make, table, &[]).await;
    let options = OptsBuilder::default()
        .ip_or_hostname("127.0.0.1")
        .tcp_port(stage.proxy.port())
        .user(Some(APP.name))
        .pass(Some(APP.password))
        .db_name(Some(stage.schema.clone()))
        // On loopback it would ask for @@socket and go on past the proxy, on whichever server answered.
        .prefer_socket(false);
    let pool = Pool::new(options);

    // From the second round on, the pool resets the connection that it had before.
    for round in 1..=3 {
        let mut connection = pool.get_conn().await.expect("a login");
        for _ in 0..10 {
            let text: Option<u16> = connection.query_first("SELECT @@port").await.expect("text");
            let binary: Option<(u16, String)> =
                connection.exec_first("SELECT @@port, ?", ("bound",)).await.expect("binary");
            let (binary, bound) = binary.expect("a row");
            assert_eq!(bound, "bound");
            for port in [text.expect("a row"), binary] {
                // What the session wrote in an earlier round keeps its reads on the primary for a while.
                assert!(round > 1 || stage.is_replica(port), "{port}");
            }
        }

        let mut read_only = TxOpts::default();
        read_only.with_readonly(Some(true));
        let mut transaction = connection.start_transaction(read_only).await.expect("it begins");
        let port: Option<u16> = transaction.query_first("SELECT @@port").await.expect("it reads");
        transaction.commit().await.expect("it ends");
        assert!(round > 1 || stage.is_replica(port.expect("a row")), "{port:?}");

        let wrote = connection.exec_drop("INSERT INTO t (x) VALUES (?)", ("one",)).await;
        assert!(wrote.is_ok(), "round {round}: {wrote:?}");
        let id = connection.last_insert_id().expect("a number was drawn");
        let read = connection.exec_first("SELECT x FROM t WHERE id = ?", (id,)).await.expect("it reads");
        assert_eq!(read, Some("one".to_owned()));
        let rows = (0..20).map(|n| (format!("row {n}"),));
        connection.exec_batch("INSERT INTO t (x) VALUES (?)", rows).await.expect("it writes");

        let mut transaction = connection.start_transaction(TxOpts::default()).await.expect("it begins");
        transaction.exec_drop("DELETE FROM t WHERE id > ?", (0,)).await.expect("it writes");
        let inside: Option<(u32, u16)> =
            transaction.exec_first("SELECT COUNT(*), @@port FROM t", ()).await.expect("it reads");
        assert_eq!(inside, Some((0, stage.primary_port())));
        transaction.rollback().await.expect("it ends");
        let count: Option<u32> = connection.query_first("SELECT COUNT(*) FROM t").await.expect("it reads");
        assert_eq!(count, Some(round * 21));
    }
    pool.disconnect().await.expect("it leaves");
}

/// Runs a program before a proxy of its own; fails with what it said when it fails.
async fn runs(command: Command) -> (Stage, Output) {
    runs_on(Stage::set("", &[]).await, command)
}

fn runs_on(stage: Stage, mut command: Command) -> (Stage, Output) {
    environment(&mut command, &stage);
    let output = drivers::succeeds(&mut command);
    (stage, output)
}

/// Tells a client program where the proxy is and which port is whose.
fn environment(command: &mut Command, stage: &Stage) {
    let replicas: Vec<String> =
        stage.cluster.nodes()[1..].iter().map(|node| node.port().to_string()).collect();
    command
        .env("POINTSMAN_ENGINE", "mysql")
        .env("POINTSMAN_PORT", stage.proxy.port().to_string())
        .env("POINTSMAN_USER", APP.name)
        .env("POINTSMAN_PASSWORD", APP.password)
        .env("POINTSMAN_DATABASE", &stage.schema)
        .env("PRIMARY_PORT", stage.primary_port().to_string())
        .env("REPLICA_PORTS", replicas.join(","))
        .env("PYTHONDONTWRITEBYTECODE", "1");
}

async fn python(name: &str) {
    runs(drivers::python(name)).await;
}

#[tokio::test]
async fn pymysql_notices_nothing() {
    python("pymysql_.py").await;
}

#[tokio::test]
async fn mysql_connector_notices_nothing() {
    python("mysql_connector.py").await;
}

#[tokio::test]
async fn mysqlclient_notices_nothing() {
    python("mysqlclient_.py").await;
}

#[tokio::test]
async fn sqlalchemy_notices_nothing() {
    python("sqlalchemy_.py").await;
}

#[tokio::test]
async fn django_notices_nothing() {
    python("django_.py").await;
}

#[tokio::test]
async fn mysql2_of_node_notices_nothing() {
    let mut command = Command::new("node");
    command
        .arg(drivers::script("node_mysql2.js"))
        .env("NODE_PATH", drivers::folder().join("node/node_modules"));
    runs(command).await;
}

#[tokio::test]
async fn jdbc_notices_nothing() {
    let mut command = Command::new("java");
    command.args(["-cp", "/usr/share/java/mariadb-java-client.jar"]).arg(drivers::script("JdbcMysql.java"));
    runs(command).await;
}

#[tokio::test]
async fn the_command_line_client_notices_nothing() {
    let folder = tempfile::tempdir().expect("there is room for files");
    let sourced = folder.path().join("sourced.sql");
    std::fs::write(&sourced, "SELECT 'sourced';\n").expect("the folder is ours");
    let script = std::fs::read_to_string(drivers::script("mariadb.sql")).expect("it is there");
    let script_path = folder.path().join("mariadb.sql");
    std::fs::write(&script_path, script.replace("SOURCED", &sourced.to_string_lossy()))
        .expect("the folder is ours");

    // The shell fills in what is known only when the proxy runs.
    let mut command = Command::new("sh");
    command.args(["-c", r#"exec mariadb --no-defaults --comments --show-warnings --protocol=tcp -h127.0.0.1 -P"$POINTSMAN_PORT" -u"$POINTSMAN_USER" -p"$POINTSMAN_PASSWORD" "$POINTSMAN_DATABASE" < "$0""#]);
    command.arg(&script_path);
    let (stage, output) = runs(command).await;

    let text = String::from_utf8_lossy(&output.stdout);
    let primary = format!("primary: {}", stage.primary_port());
    for expected in ["rows: 3", "   id: 2", "title: two", "first", "second", "sourced", "kept: 3", &primary] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
}

/// Programs that run twice, past the proxy and through it, and have to be told the same.
mod compared {
    use super::*;
    use crate::both_makes;

    both_makes!(
        mysqli_notices_nothing,
        pdo_notices_nothing,
        mysql2_of_ruby_notices_nothing,
        active_record_notices_nothing,
        the_driver_of_go_notices_nothing,
        the_drivers_of_perl_notice_nothing,
    );

    async fn told_the_same(make: Make, program: impl Fn() -> Command) {
        let stage = Stage::on(make, "", &[drivers::GLOBAL]).await;
        let mut direct = program();
        environment(&mut direct, &stage);
        drivers::past_the_proxy(&mut direct, stage.primary_port());

        let of_server = drivers::succeeds(&mut direct);
        let (_stage, of_proxy) = runs_on(stage, program());

        drivers::same(&of_server, &of_proxy);
    }

    async fn mysqli_notices_nothing(make: Make) {
        told_the_same(make, || drivers::php("mysqli.php")).await;
    }

    async fn pdo_notices_nothing(make: Make) {
        told_the_same(make, || drivers::php("pdo.php")).await;
    }

    async fn mysql2_of_ruby_notices_nothing(make: Make) {
        told_the_same(make, || drivers::ruby("ruby_mysql2.rb")).await;
    }

    async fn active_record_notices_nothing(make: Make) {
        told_the_same(make, || drivers::ruby("active_record.rb")).await;
    }

    async fn the_drivers_of_perl_notice_nothing(make: Make) {
        for driver in ["mysql", "MariaDB"] {
            let program = || {
                let mut command = drivers::perl("dbd_mysql.pl");
                command.arg(driver);
                command
            };
            told_the_same(make, program).await;
        }
    }

    async fn the_driver_of_go_notices_nothing(make: Make) {
        told_the_same(make, || drivers::go("go_mysql.go")).await;
    }
}

mod on_mysql9 {
    use super::*;

    #[tokio::test]
    async fn mysql_async_notices_nothing() {
        use_mysql_async(Make::Mysql9).await;
    }

    #[tokio::test]
    async fn the_query_attributes_of_mysql_connector_arrive() {
        let stage = Stage::on(Make::Mysql9, "", &[]).await;
        stage.install_attribute_function();
        runs_on(stage, drivers::python("mysql_attributes.py"));
    }
}
