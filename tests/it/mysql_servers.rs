//! What only MySQL 9's servers do: logins against a cold cache, tagged GTIDs, copied identities.

mod on_mysql9 {
    use std::fs;

    use pointsman::demo::{
        mysql::MysqlCluster,
        servers::{APP, Stop},
    };

    use crate::support::{
        Proxy, eventually,
        mysql::{self, BASIC, Make, Session},
    };

    /// `false`: not all of `cluster` let somebody in who writes and reads. The reader is another
    /// session than the writer, whose own reads stay on the primary until a replica has the row.
    async fn serves(cluster: &MysqlCluster, proxy: &Proxy, schema: &str) -> bool {
        let open = || Session::connect(proxy.port(), APP, schema, BASIC);
        let (Ok(mut writer), Ok(mut reader)) = (open().await, open().await) else { return false };
        writer.query("INSERT INTO t VALUES (1)").await.is_ok() && {
            let port = reader.query(mysql::WHERE).await.map(|answer| answer.value());
            port.is_ok_and(|port| port != cluster.node(0).port().to_string())
        }
    }

    /// Nobody's password is in a server's cache any more.
    fn cool(cluster: &MysqlCluster) {
        for node in cluster.nodes() {
            node.sql("", "FLUSH PRIVILEGES").expect("it obeys");
        }
    }

    /// How often the app's user has logged in to the primary.
    fn logins(cluster: &MysqlCluster, how: &str) -> usize {
        let log = cluster.node(0).statements();
        log.lines().filter(|line| line.contains("Connect\tapp@") && line.ends_with(how)).count()
    }

    /// Without TLS the server's RSA key hides the password (hard case 24).
    #[tokio::test]
    async fn a_cold_cache_keeps_nobody_out_with_tls_and_without() {
        let cluster = Make::Mysql9.own();
        let schema = mysql::create_schema(&cluster, "CREATE TABLE t (x INT)");
        for (mode, how) in [("disable", "TCP/IP"), ("require", "SSL/TLS")] {
            cool(&cluster);
            let settings = [
                &format!("cluster.tls.server.mode = '{mode}'"),
                // No connection outlives a round.
                "cluster.pool.max_lifetime = '200ms'",
            ];
            let proxy = mysql::proxy(&cluster, &settings).await;
            for _ in 0..2 {
                let before = logins(&cluster, how);
                cool(&cluster);
                eventually("it writes and reads on new connections", async || {
                    serves(&cluster, &proxy, &schema).await && logins(&cluster, how) > before
                })
                .await;
            }
            assert_eq!(proxy.log().matches("refused_by_server").count(), 0, "{mode}");
        }
    }

    #[tokio::test]
    async fn a_restarted_replica_lets_users_and_the_monitor_in_again() {
        let cluster = Make::Mysql9.own();
        let schema = mysql::create_schema(&cluster, "CREATE TABLE t (x INT)");
        let settings = ["cluster.tls.server.mode = 'disable'", "cluster.routing.slow_start = '0s'"];
        let proxy = mysql::proxy(&cluster, &settings).await;
        let mut session = Session::open(proxy.port(), APP, &schema).await;

        cluster.stop(1, Stop::Fast).expect("it stops");
        assert_eq!(session.port().await, cluster.node(2).port());
        cluster.start_node(1).expect("it starts");

        let (session, back) = (tokio::sync::Mutex::new(session), cluster.node(1).port());
        eventually("it reads again", async || session.lock().await.port().await == back).await;
    }

    /// What it ends with 1053 it has undone: a write that stands alone, and the first of a transaction.
    #[tokio::test]
    async fn a_write_that_a_stopping_server_ends_is_done_by_the_next_primary() {
        let cluster = Make::Mysql9.own();
        let rows = "CREATE TABLE t (id INT PRIMARY KEY, x INT); INSERT INTO t VALUES (1, 0), (2, 0)";
        let schema = mysql::create_schema(&cluster, rows);
        let proxy = mysql::proxy(&cluster, &[]).await;
        let open = || Session::open(proxy.port(), APP, &schema);
        let mut holder = open().await;
        holder.run("BEGIN").await;
        holder.run("SELECT * FROM t FOR UPDATE").await;
        let (mut alone, mut first) = (open().await, open().await);
        first.run("BEGIN").await;
        let alone =
            tokio::spawn(async move { alone.query("UPDATE t SET x = x + 1 WHERE id = 1").await.map(drop) });
        let first = tokio::spawn(async move {
            first.query("UPDATE t SET x = x + 1 WHERE id = 2").await?;
            first.query("COMMIT").await.map(drop)
        });
        let waiting = "SELECT COUNT(*) FROM information_schema.processlist WHERE info LIKE 'UPDATE t SET x%'";
        eventually("both wait for a lock", async || {
            cluster.node(0).sql("", waiting).expect("it answers") == "2"
        })
        .await;

        let cluster = tokio::task::spawn_blocking(move || {
            cluster.stop(0, Stop::Fast).expect("it stops");
            cluster.promote(1).expect("a replica takes over");
            cluster
        })
        .await
        .expect("no panic");

        for write in [alone, first] {
            write.await.expect("no panic").expect("it is done");
        }
        let x = cluster.node(1).sql(&schema, "SELECT GROUP_CONCAT(x) FROM t").expect("it answers");
        assert_eq!(x, "1,1");
    }

    #[tokio::test]
    async fn tagged_transactions_count_as_any_other() {
        let cluster = Make::Mysql9.own();
        let schema = mysql::create_schema(&cluster, "CREATE TABLE t (x INT)");
        let proxy = mysql::proxy(&cluster, &[]).await;
        let mut session = Session::open(proxy.port(), APP, &schema).await;

        cluster.pause_replay(1).expect("it pauses");
        cluster.pause_replay(2).expect("it pauses");
        let tagged =
            "SET gtid_next = 'AUTOMATIC:nightly'; INSERT INTO t VALUES (1); SET gtid_next = 'AUTOMATIC'";
        cluster.node(0).sql(&schema, tagged).expect("it obeys");
        assert_eq!(session.value("/* pointsman: primary */ SELECT MAX(x) FROM t").await, "1");
        session.run("INSERT INTO t VALUES (2)").await;
        assert_eq!(session.value("SELECT MAX(x) FROM t").await, "2");
        let lagging = format!("node=\"{}\"", cluster.node(1).address());
        let behind = async || proxy.metric("pointsman_replica_lag_bytes", &[&lagging]) == 2.0;
        eventually("it is two transactions behind", behind).await;

        cluster.resume_replay(1).expect("it goes on");
        let (session, fresh) = (tokio::sync::Mutex::new(session), cluster.node(1).port());
        eventually("a replica that has both reads", async || session.lock().await.port().await == fresh)
            .await;
        assert_eq!(session.lock().await.value("SELECT MAX(x) FROM t").await, "2");
    }

    /// A copy of a data folder brings its server_uuid along.
    #[tokio::test]
    async fn a_server_with_the_uuid_of_another_gets_nothing_and_is_named() {
        let cluster = Make::Mysql9.own();
        let uuid = |node: usize| cluster.folder().join(format!("node{node}/auto.cnf"));
        cluster.stop(2, Stop::Fast).expect("it stops");
        fs::copy(uuid(1), uuid(2)).expect("servers have one");
        cluster.start_node(2).expect("it starts");

        let proxy = Proxy::start_unready(&cluster.addresses(), &[mysql::ENGINE]);
        let named = format!("it is the same server as {}", cluster.node(1).address());
        proxy.wait_for_log(&named).await;

        let mut session = Session::open(proxy.port(), APP, "app").await;
        for _ in 0..20 {
            assert_ne!(session.port().await, cluster.node(2).port());
        }
    }

    #[tokio::test]
    async fn a_server_with_the_id_of_another_gets_nothing_and_is_named() {
        let cluster = Make::Mysql9.own();
        cluster.node(2).sql("", "STOP REPLICA; SET GLOBAL server_id = 2").expect("it obeys");

        let proxy = Proxy::start_unready(&cluster.addresses(), &[mysql::ENGINE]);
        proxy.wait_for_log(&format!("it has server_id 2, as {} has", cluster.node(1).address())).await;

        let mut session = Session::open(proxy.port(), APP, "app").await;
        for _ in 0..20 {
            assert_ne!(session.port().await, cluster.node(2).port());
        }
    }

    /// 1290 by super_read_only, and 1792 for who is above it (hard case 10).
    #[tokio::test]
    async fn a_write_that_a_replica_refuses_is_done_once_on_the_primary_whoever_asks() {
        let cluster = Make::Mysql9.own();
        let schema = mysql::create_schema(
            &cluster,
            "CREATE TABLE t (x INT);
             CREATE FUNCTION sneaky() RETURNS INT DETERMINISTIC BEGIN INSERT INTO t VALUES (1); RETURN 2; END;
             GRANT SUPER, CONNECTION_ADMIN ON *.* TO app@'%'",
        );
        let read = "cluster.routing.read_functions = ['sneaky']";
        for (read_only, calls) in [(1, 1), (0, 2)] {
            for node in 1..3 {
                let sql =
                    format!("SET GLOBAL super_read_only = {read_only}; SET GLOBAL read_only = {read_only}");
                cluster.node(node).sql("", &sql).expect("it obeys");
            }
            let proxy = mysql::proxy(&cluster, &[read]).await;
            let mut session = Session::open(proxy.port(), APP, &schema).await;
            assert_eq!(session.value("SELECT sneaky()").await, "2");
            assert!(proxy.metric("pointsman_reroutes_total", &["writes"]) >= 1.0);
            assert_eq!(session.value("SELECT COUNT(*) FROM t").await, calls.to_string());
        }
    }

    /// A group of commits is seen before the server counts it as executed. Who owns a GTID for longer
    /// stands for that moment.
    #[tokio::test]
    async fn a_monotonic_read_is_bounded_by_what_was_in_commit() {
        let cluster = Make::Mysql9.own();
        let schema = mysql::create_schema(
            &cluster,
            "CREATE TABLE t (x INT); GRANT REPLICATION_APPLIER ON *.* TO app@'%'",
        );
        let proxy = mysql::proxy(&cluster, &[]).await;
        let mut session = Session::open(proxy.port(), APP, &schema).await;
        let uuid = "aaaaaaaa-0000-4000-8000-000000000001";
        let mut owner = Session::open(cluster.node(0).port(), APP, &schema).await;
        owner.run(&format!("SET gtid_next = '{uuid}:7'")).await;

        session.run("SET @pointsman_consistency = 'monotonic'").await;
        session.run("/* pointsman: primary */ SELECT MAX(x) FROM t").await;
        let bound = session.value("SELECT @pointsman_position").await;
        assert!(bound.contains(&format!("{uuid}:7")), "{bound}");
    }
}
