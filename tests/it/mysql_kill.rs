//! KILL of MySQL clients before real servers: what ends, and what it must not reach.

use std::{process::Command, time::Duration};

use pointsman::{
    demo::{Port, servers::APP},
    mysql::{command::code, packet},
};
use tokio::io::AsyncReadExt;

use crate::{
    both_makes,
    console::ADMIN,
    support::{
        eventually,
        mysql::{Make, Session, Stage},
        soon,
    },
};

both_makes!(
    a_killed_session_runs_nothing_more_of_its_string,
    a_killed_session_frees_the_connection_of_its_transaction,
    a_killed_session_ends_also_in_the_midst_of_what_its_client_sends,
    a_session_that_is_killed_between_statements_hears_nothing,
    killing_at_every_moment_never_hits_the_next_client,
    a_session_that_kills_itself_is_told_so,
    kill_takes_every_form_that_its_server_takes,
    kill_of_what_only_a_server_could_compute_reaches_nobody,
    a_client_that_takes_no_number_of_its_own_is_told_of_a_lost_server_by_a_servers,
);

/// A way to end a session.
#[derive(Clone, Copy, Debug)]
enum Way {
    Statement,
    Command,
    Console,
}

/// A stage with a console.
struct Scene {
    stage: Stage,
    console: Port,
}

impl Scene {
    async fn on(make: Make, sql: &str, settings: &[&str]) -> Self {
        let console = Port::claim().expect("a port");
        let door = format!("admin.mysql = '127.0.0.1:{}'", console.number());
        let users = format!("admin.users = [{{ name = '{}', password = '{}' }}]", ADMIN.name, ADMIN.password);
        let settings: Vec<&str> = [&*door, &*users].into_iter().chain(settings.iter().copied()).collect();
        Self { stage: Stage::on(make, sql, &settings).await, console }
    }

    async fn kill(&self, way: Way, number: u32) {
        let mut killer = match way {
            Way::Console => Session::open(self.console.number(), ADMIN, "any").await,
            Way::Statement | Way::Command => self.stage.session().await,
        };
        match way {
            Way::Command => {
                killer.command(code::PROCESS_KILL, &number.to_le_bytes()).await.expect("it is done");
            }
            Way::Statement | Way::Console => drop(killer.run(&format!("KILL {number}")).await),
        }
    }
}

/// How many statements with `mark` in their text run on the primary.
fn running(stage: &Stage, mark: &str) -> usize {
    let count = format!(
        "SELECT COUNT(*) FROM information_schema.processlist WHERE info LIKE '%{mark}%' AND id <> CONNECTION_ID()"
    );
    stage.cluster.node(0).sql("", &count).expect("it answers").trim().parse().expect("a count")
}

fn rows(stage: &Stage) -> String {
    stage.cluster.node(0).sql(&stage.schema, "SELECT COUNT(*) FROM t").expect("it answers").trim().to_owned()
}

/// The error number that a statement on its way ends with; 2013 is the end of the connection.
async fn told(session: &mut Session) -> u16 {
    soon("the statement ends", session.answer()).await.expect_err("it was killed").errno
}

async fn a_killed_session_runs_nothing_more_of_its_string(make: Make) {
    let scene = Scene::on(make, "CREATE TABLE t (x INT)", &[]).await;
    let stage = &scene.stage;
    // As the server itself has it.
    let mut direct = Session::open(stage.primary_port(), APP, &stage.schema).await;
    direct.send(code::QUERY, b"SELECT SLEEP(60), 'itself'; INSERT INTO t VALUES (0)").await;
    eventually("it runs", async || running(stage, "itself") == 1).await;
    Session::open(stage.primary_port(), APP, "").await.run(&format!("KILL {}", direct.number)).await;
    let by_itself = told(&mut direct).await;

    for way in [Way::Statement, Way::Command, Way::Console] {
        let mut victim = stage.session().await;
        let string = format!("SELECT SLEEP(60), 'of {way:?}'; INSERT INTO t VALUES (1)");
        victim.send(code::QUERY, string.as_bytes()).await;
        eventually("it runs", async || running(stage, &format!("of {way:?}")) == 1).await;

        scene.kill(way, victim.number).await;

        assert_eq!(told(&mut victim).await, by_itself, "{way:?}");
        eventually("it has ended", async || running(stage, &format!("of {way:?}")) == 0).await;
    }
    assert_eq!(rows(stage), "0");
}

async fn a_killed_session_ends_also_in_the_midst_of_what_its_client_sends(make: Make) {
    let scene = Scene::on(make, "CREATE TABLE t (x LONGTEXT)", &[]).await;
    let stage = &scene.stage;
    let mut victim = stage.session().await;
    let mut insert = Vec::new();
    let text = format!("INSERT INTO t VALUES ('{}')", ".".repeat(3 << 20));
    packet::put_command(&mut insert, code::QUERY, text.as_bytes());
    victim.write(&insert[..2 << 20]).await;
    let held = || stage.proxy.metric("pointsman_pool_connections", &["state=\"in_use\""]);
    eventually("a server is at it", async || held() == 1.0).await;

    scene.kill(Way::Console, victim.number).await;

    let ended = async || stage.proxy.metric("pointsman_clients", &[]) == 0.0 && held() == 0.0;
    eventually("it has ended", ended).await;
    assert_eq!(rows(stage), "0");
}

async fn a_killed_session_frees_the_connection_of_its_transaction(make: Make) {
    let scene = Scene::on(make, "CREATE TABLE t (x INT)", &["cluster.pool.size = 1"]).await;
    let stage = &scene.stage;
    let mut victim = stage.session().await;
    victim.run("BEGIN").await;
    victim.run("INSERT INTO t VALUES (1)").await;
    victim.send(code::QUERY, b"SELECT SLEEP(60), 'amid one'").await;
    eventually("it runs", async || running(stage, "amid one") == 1).await;

    scene.kill(Way::Statement, victim.number).await;

    assert_eq!(told(&mut victim).await, 2013);
    let mut other = stage.session().await;
    other.run("INSERT INTO t VALUES (2)").await;
    assert_eq!(other.value("/* pointsman: primary */ SELECT MIN(x) FROM t").await, "2");
}

async fn a_session_that_is_killed_between_statements_hears_nothing(make: Make) {
    let scene = Scene::on(make, "CREATE TABLE t (x INT)", &[]).await;
    let stage = &scene.stage;
    let states: [&[&str]; 3] = [
        &[],
        &["BEGIN", "SELECT COUNT(*) FROM t"],
        &["START TRANSACTION READ ONLY", "SELECT COUNT(*) FROM t"],
    ];
    for texts in states {
        for (port, ways) in [
            (stage.primary_port(), &[Way::Statement][..]),
            (stage.proxy.port(), &[Way::Statement, Way::Command, Way::Console]),
        ] {
            for way in ways {
                let mut victim = Session::open(port, APP, &stage.schema).await;
                for text in texts {
                    victim.run(text).await;
                }

                match port == stage.proxy.port() {
                    true => scene.kill(*way, victim.number).await,
                    false => {
                        let mut killer = Session::open(port, APP, "").await;
                        killer.run(&format!("KILL {}", victim.number)).await;
                    }
                }

                let mut said = Vec::new();
                let read = victim.stream().read_to_end(&mut said);
                soon("the connection ends", read).await.expect("it ends");
                assert_eq!(said, b"", "{way:?} {texts:?}");
            }
        }
    }
}

async fn killing_at_every_moment_never_hits_the_next_client(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT)", &["cluster.pool.size = 1"]).await;
    let mut other = stage.session().await;
    for round in 0..40_u64 {
        let mut victim = stage.session().await;
        let mut killer = stage.session().await;
        let number = victim.number;
        victim.send(code::QUERY, b"/* pointsman: primary */ SELECT SLEEP(0.002)").await;
        let kill = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_micros(round * 100)).await;
            // It may have ended, and be nobody's any more.
            let _ = killer.query(&format!("KILL {number}")).await;
        });
        // With its answer or without.
        let _ = soon("the statement ends", victim.answer()).await;
        let mine = other.value("/* pointsman: primary */ SELECT 'mine'").await;
        assert_eq!(mine, "mine", "round {round}");
        kill.await.expect("it does not panic");
    }
}

async fn a_session_that_kills_itself_is_told_so(make: Make) {
    let stage = Stage::on(make, "", &[]).await;
    for kill in ["KILL QUERY {}", "KILL QUERY CONNECTION_ID()"] {
        for port in [stage.primary_port(), stage.proxy.port()] {
            let mut session = Session::open(port, APP, "").await;
            assert_eq!(session.error(&kill.replace("{}", &session.number.to_string())).await, 1317, "{kill}");
            assert_eq!(session.value("SELECT 1").await, "1", "{kill}");
        }
    }
    for kill in ["KILL {}", "KILL CONNECTION CONNECTION_ID()"] {
        let mut session = stage.session().await;
        assert_eq!(session.error(&kill.replace("{}", &session.number.to_string())).await, 1317, "{kill}");
        assert!(session.query("SELECT 1").await.is_err(), "{kill}");
    }
}

async fn kill_takes_every_form_that_its_server_takes(make: Make) {
    let stage = Stage::on(make, "", &[]).await;
    let mut forms =
        vec!["KILL {}", "KILL CONNECTION '{}'", "kill/**/({})", "KILL QUERY {};", "KILL QUERY +{}"];
    if make == Make::MariaDb {
        forms.extend(["KILL HARD {}", "KILL SOFT {}", "KILL HARD CONNECTION {}", "KILL SOFT QUERY {}"]);
    }
    let mut killer = stage.session().await;
    for form in forms {
        let mut victim = stage.session().await;
        victim.send(code::QUERY, b"/* pointsman: primary */ SELECT 'none' + SLEEP(60), 'forms'").await;
        eventually("it runs", async || running(&stage, "forms") == 1).await;

        killer.run(&form.replace("{}", &victim.number.to_string())).await;

        eventually(form, async || running(&stage, "forms") == 0).await;
        let ended = soon("it ends", victim.answer()).await.is_err_and(|error| error.errno == 2013);
        assert_eq!(ended, !form.contains("QUERY"), "{form}");
    }
}

async fn kill_of_what_only_a_server_could_compute_reaches_nobody(make: Make) {
    let stage = Stage::on(make, "", &[]).await;
    let mut session = stage.session().await;
    // A server's connection has a number that a client of the proxy may have, too.
    let mut stranger = Session::open(stage.primary_port(), APP, "").await;
    let number = stranger.number;
    session.run(&format!("SET @id = {number}")).await;
    for kill in ["KILL @id", "KILL QUERY @id", "KILL CONNECTION (SELECT @id)", "KILL 1 + @id - 1"] {
        assert_eq!(session.error(kill).await, 1235, "{kill}");
    }
    if make == Make::MariaDb {
        for kill in
            ["KILL HARD @id", "KILL USER 'app'", "KILL SOFT QUERY USER app", "EXECUTE IMMEDIATE 'KILL @id'"]
        {
            assert_eq!(session.error(kill).await, 1235, "{kill}");
        }
        session.run("PREPARE kills FROM 'KILL ?'").await;
        assert_eq!(session.error("EXECUTE kills USING @id").await, 1235);
        // Of statements the servers' own numbers are the only ones there are.
        assert_eq!(session.error("KILL QUERY ID 4000000000000").await, 1957);
    }
    assert_eq!(stranger.value("SELECT 1").await, "1");
}

async fn a_client_that_takes_no_number_of_its_own_is_told_of_a_lost_server_by_a_servers(make: Make) {
    let stage = Stage::on(make, "CREATE TABLE t (x INT)", &[]).await;
    let (port, schema) = (stage.proxy.port(), stage.schema.clone());
    let sleep = format!("SELECT SLEEP(60), '{schema}'");
    let sql = format!("BEGIN; INSERT INTO t VALUES (1); {sleep}");
    let lost = tokio::task::spawn_blocking(move || complaint_of_mariadb(port, &schema, &sql));
    let cluster = stage.cluster;
    let running = format!("SELECT MAX(id) FROM information_schema.processlist WHERE info = \"{sleep}\"");
    let server = || cluster.node(0).sql("", &running).expect("it answers");
    eventually("it runs", async || server().parse::<u64>().is_ok()).await;

    cluster.node(0).sql("", &format!("KILL {}", server())).expect("root may");

    let error = lost.await.expect("no panic");
    assert!(error.contains("ERROR 1927 (08S01)"), "{error}");
    assert!(error.contains("the connection to the server"), "{error}");
}

/// What MariaDB's client, which is one of its library, says of a statement that fails.
fn complaint_of_mariadb(port: u16, schema: &str, sql: &str) -> String {
    let output = Command::new("mariadb")
        .args(["--no-defaults", "--protocol=tcp", "-h127.0.0.1"])
        .args([format!("-P{port}"), format!("-u{}", APP.name), format!("-p{}", APP.password)])
        .args(["-e", sql, schema])
        .output()
        .expect("the client is installed by scripts/setup");
    assert!(!output.status.success(), "{sql}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}
