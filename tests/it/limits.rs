//! What bounds a session's statements in time, and what is said of slow ones.

use pointsman::demo::{
    Port,
    servers::{APP, Login, SUPERUSER},
};

use crate::support::{
    Proxy, Session, Stage, eventually,
    proxy::login_error,
    soon,
    wire::{Batch, Wire},
};

#[tokio::test]
async fn a_statement_over_its_time_is_cancelled_and_its_session_lives_on() {
    let stage = Stage::set("", &["cluster.limits.statement_timeout = '300ms'"]).await;
    let session = stage.session().await;

    assert_eq!(session.error("SELECT pg_sleep(60)").await, "57014");

    assert_eq!(session.value("SELECT 'alive'").await, "alive");
}

#[tokio::test]
async fn what_a_setting_of_the_proxys_own_takes_is_told() {
    let stage = Stage::set("", &[]).await;
    let session = stage.session().await;
    for (name, value, takes) in
        [("consistency", "strong", "eventual, session, monotonic"), ("max_lag", "2", "\"500ms\"")]
    {
        let refused =
            session.try_run(&format!("SET pointsman.{name} = '{value}'")).await.expect_err("it is none");
        let hint = refused.as_db_error().and_then(|error| error.hint()).unwrap_or_default().to_owned();
        assert!(hint.contains(takes), "{name}: {hint}");
    }
}

#[tokio::test]
async fn a_slow_statement_is_logged_without_its_literals() {
    let stage = Stage::set("", &["log.statements_over = '100ms'"]).await;
    let session = stage.session().await;

    session.value("SELECT 'very-secret' FROM pg_sleep(0.3)").await;

    stage.proxy.wait_for_log("slow statement").await;
    assert!(!stage.proxy.log().contains("very-secret"));
    assert!(stage.proxy.log().contains("reason=\"read\""), "{}", stage.proxy.log());
}

/// The code with which the proxy ends a connection that says nothing more.
async fn last_word(wire: &mut Wire) -> String {
    soon("it is closed", wire.until_closed()).await.last().expect("it is told why").code()
}

#[tokio::test]
async fn a_transaction_left_open_is_ended_and_rolled_back() {
    let settings = ["cluster.limits.idle_transaction_timeout = '500ms'"];
    let stage = Stage::set("CREATE TABLE t (x int)", &settings).await;
    let idle = stage.session().await;
    let (mut writing, mut held) = (stage.wire().await, stage.wire().await);

    writing.ask(&Batch::new().query("BEGIN; INSERT INTO t VALUES (1)")).await;
    // No server knows of this one yet.
    held.ask(&Batch::new().query("BEGIN")).await;

    assert_eq!(last_word(&mut writing).await, "25P03");
    assert_eq!(last_word(&mut held).await, "25P03");
    let open = "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND state LIKE 'idle in transaction%'";
    eventually("the server has none open", async || stage.database.ask(0, open) == "0").await;
    assert_eq!(idle.value("SELECT count(*) FROM t").await, "0", "who has none open stays");
}

#[tokio::test]
async fn a_client_that_says_nothing_for_too_long_is_sent_away() {
    let stage = Stage::set("", &["cluster.limits.idle_client_timeout = '2s'"]).await;
    let (mut idle, busy) = (stage.wire().await, stage.session().await);

    // A statement that takes longer is no silence.
    assert_eq!(busy.value("SELECT 'done' FROM pg_sleep(3)").await, "done");

    assert_eq!(last_word(&mut idle).await, "57P05");
    assert!(stage.proxy.metric("pointsman_errors_total", &["kind=\"idle_timeout\""]) >= 1.0);
    let stranger = Login { name: APP.name, password: "not it" };
    assert_eq!(login_error(&stage.proxy.dsn_of(stranger, &stage.database.name)).await, "28P01");
    assert_eq!(stage.proxy.metric("pointsman_errors_total", &["kind=\"authentication\""]), 1.0);
}

#[tokio::test]
async fn a_user_has_no_more_clients_than_allowed_and_others_are_not_concerned() {
    let users = "cluster.users = [{ name = 'app', password = 'app-pw' }, { name = 'postgres', password = 'postgres-pw' }]";
    let stage = Stage::set("", &[users, "cluster.limits.clients_per_user = 2"]).await;
    let dsn = stage.proxy.dsn(&stage.database.name);
    // The stage's own session may not be gone yet.
    let (first, _second) = (Session::retry(&dsn).await, Session::retry(&dsn).await);

    assert_eq!(login_error(&dsn).await, "53300");

    let other = Session::open(&stage.proxy.dsn_of(SUPERUSER, &stage.database.name)).await;
    assert_eq!(other.value("SELECT current_user").await, SUPERUSER.name);
    first.vanish();
    Session::retry(&dsn).await;
}

#[tokio::test]
async fn clients_that_say_nothing_make_room_for_others() {
    let stage = Stage::set("", &["cluster.limits.clients = 5"]).await;
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(Wire::connect(stage.proxy.port()).await);
    }

    // 64 may stay.
    for wire in &mut silent[..36] {
        assert!(soon("it makes room", wire.until_closed()).await.is_empty());
    }

    Session::retry(&stage.proxy.dsn(&stage.database.name)).await;
    let crowded = &["result=\"crowded\""];
    eventually("they are counted", async || stage.proxy.metric("pointsman_logins_total", crowded) >= 36.0)
        .await;
    assert!(stage.proxy.metric("pointsman_clients", &[]) >= 60.0, "the others stay");
}

#[tokio::test]
async fn a_first_login_without_any_server_is_told_so_before_its_time_is_over() {
    let nobody = Port::claim().expect("ports are to be had");
    let nodes = [format!("127.0.0.1:{}", nobody.number())];
    let proxy = Proxy::start_unready(&nodes, &["cluster.limits.login_timeout = '1s'"]);

    assert_eq!(login_error(&proxy.dsn("postgres")).await, "57P03");
}
