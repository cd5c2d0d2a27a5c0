//! sysbench, with its habits: short runs of each workload, of which none may fail a statement.

use std::process::Command;

use pointsman::demo::servers::APP;

use crate::{
    both_makes,
    support::mysql::{Make, Stage},
};

both_makes!(
    point_selects_run_without_an_error_on_replicas,
    reads_in_transactions_and_outside_run_without_an_error,
    reads_and_writes_run_without_an_error,
);

const THREADS: [u32; 3] = [1, 16, 64];
/// Transactions of a run, and of each of its threads on top.
const AT_LEAST: u32 = 20;
const EACH: u32 = 2;

/// Runs one step of a workload; panics with what sysbench says if it is not content.
async fn sysbench(stage: &Stage, workload: &str, arguments: &[&str]) -> String {
    let mut command = Command::new("sysbench");
    command
        .arg(workload)
        .args(["--db-driver=mysql", "--mysql-host=127.0.0.1", "--tables=1", "--table-size=500"])
        .arg(format!("--mysql-port={}", stage.proxy.port()))
        .args([format!("--mysql-user={}", APP.name), format!("--mysql-password={}", APP.password)])
        .arg(format!("--mysql-db={}", stage.schema))
        .args(arguments);
    let run = tokio::task::spawn_blocking(move || command.output());
    let output =
        run.await.expect("waiting does not panic").expect("sysbench is installed; run scripts/setup");
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && !said.contains("FATAL"), "{workload} {arguments:?}\n{said}");
    said
}

/// What of a line such as `ignored errors:  0 (0.00 per sec.)` stands behind the colon.
fn figure(said: &str, of: &str) -> u32 {
    let line = said.lines().find_map(|line| line.trim().strip_prefix(of)?.strip_prefix(':'));
    let number = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    number.unwrap_or_else(|| panic!("no `{of}` in\n{said}"))
}

/// A table filled through the proxy, and a workload run on it with each number of threads, by text
/// and prepared.
async fn run(make: Make, workload: &str, arguments: &[&str]) -> Stage {
    let stage = Stage::on(make, "", &[]).await;
    sysbench(&stage, workload, &["prepare"]).await;
    stage.cluster.wait_until_caught_up(0).expect("replicas follow");
    for prepared in ["disable", "auto"] {
        for threads in THREADS {
            let events = AT_LEAST + threads * EACH;
            let own = [
                &format!("--threads={threads}"),
                &format!("--events={events}"),
                &format!("--db-ps-mode={prepared}"),
                "--time=0",
                "run",
            ];
            let all: Vec<&str> = own.into_iter().chain(arguments.iter().copied()).collect();
            let said = sysbench(&stage, workload, &all).await;
            assert_eq!(figure(&said, "transactions"), events, "{said}");
            assert_eq!(figure(&said, "reconnects"), 0, "{said}");
        }
    }
    stage
}

/// How many SELECTs of sysbench each server ran in this schema's run.
fn reads(stage: &Stage) -> Vec<f64> {
    let node = |node: &pointsman::demo::mysql::MysqlNode| {
        let label = format!("node=\"{}\"", node.address());
        stage.proxy.metric("pointsman_statements_total", &[&label, "access=\"read\""])
    };
    stage.cluster.nodes().iter().map(node).collect()
}

/// The share of reads on replicas, and both of them have some.
fn share_of_replicas(stage: &Stage) -> f64 {
    let reads = reads(stage);
    assert!(reads[1] > 0.0 && reads[2] > 0.0, "{reads:?}");
    (reads[1] + reads[2]) / reads.iter().sum::<f64>()
}

async fn point_selects_run_without_an_error_on_replicas(make: Make) {
    let stage = run(make, "oltp_point_select", &[]).await;
    // They wrote nothing: all of it may go there.
    assert!(share_of_replicas(&stage) > 0.95, "{:?}", reads(&stage));
}

async fn reads_in_transactions_and_outside_run_without_an_error(make: Make) {
    let stage = run(make, "oltp_read_only", &["--skip-trx=on"]).await;
    assert!(share_of_replicas(&stage) > 0.95, "{:?}", reads(&stage));
    run(make, "oltp_read_only", &["--skip-trx=off"]).await;
}

async fn reads_and_writes_run_without_an_error(make: Make) {
    run(make, "oltp_read_write", &[]).await;
    let stage =
        run(make, "oltp_read_write", &["--skip-trx=on", "--mysql-ignore-errors=1062,1213,1205,1020"]).await;
    // Each reads its own writes, wherever that is possible.
    assert!(share_of_replicas(&stage) > 0.0);
}
