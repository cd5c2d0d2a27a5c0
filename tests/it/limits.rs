//! What bounds a session's statements in time, and what is said of slow ones.

use crate::support::Stage;

#[tokio::test]
async fn a_statement_over_its_time_is_cancelled_and_its_session_lives_on() {
    let stage = Stage::set("", &["cluster.limits.statement_timeout = '300ms'"]).await;
    let session = stage.session().await;

    assert_eq!(session.error("SELECT pg_sleep(60)").await, "57014");

    assert_eq!(session.value("SELECT 'alive'").await, "alive");
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
