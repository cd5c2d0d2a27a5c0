//! Members of a group (MySQL's Group Replication): the group says who takes the writes.

mod on_mysql9 {
    use std::collections::BTreeSet;

    use pointsman::demo::{
        Port,
        mysql::MysqlCluster,
        servers::{APP, REPLICATION, Stop},
    };

    use crate::doctor::{mysql_configuration, pointsman};
    use crate::support::{
        Proxy, eventually,
        mysql::{self, BASIC, Make, Session},
    };

    const ACTIVE: &str = "SELECT COUNT(*) FROM performance_schema.replication_group_members \
                          WHERE member_state = 'ONLINE'";

    /// Three servers that are a group with one primary, node 0; its links live as long as the ports.
    struct Group {
        cluster: MysqlCluster,
        _links: Vec<Port>,
    }

    impl Group {
        fn start() -> Self {
            let cluster =
                Make::Mysql9.own_with(&["--plugin-load-add=group_replication.so", "--report-host=127.0.0.1"]);
            let links: Vec<Port> =
                cluster.nodes().iter().map(|_| Port::claim().expect("ports are to be had")).collect();
            let seeds: Vec<String> =
                links.iter().map(|port| format!("127.0.0.1:{}", port.number())).collect();
            for (node, link) in cluster.nodes().iter().zip(&seeds) {
                let (user, password) = (REPLICATION.name, REPLICATION.password);
                let prepare = format!(
                    "STOP REPLICA; RESET REPLICA ALL; \
                     SET GLOBAL group_replication_group_name = 'aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa'; \
                     SET GLOBAL group_replication_local_address = '{link}'; \
                     SET GLOBAL group_replication_group_seeds = '{}'; \
                     SET GLOBAL group_replication_recovery_get_public_key = 1; \
                     SET GLOBAL group_replication_member_expel_timeout = 0; \
                     CHANGE REPLICATION SOURCE TO source_user = '{user}', source_password = '{password}' \
                     FOR CHANNEL 'group_replication_recovery'",
                    seeds.join(",")
                );
                node.sql("", &prepare).expect("it obeys");
            }
            let group = Self { cluster, _links: links };
            group.on(
                0,
                "SET GLOBAL group_replication_bootstrap_group = 1; START GROUP_REPLICATION; \
                         SET GLOBAL group_replication_bootstrap_group = 0",
            );
            group.on(1, "START GROUP_REPLICATION");
            group.on(2, "START GROUP_REPLICATION");
            group
        }

        fn on(&self, node: usize, sql: &str) -> String {
            self.cluster.node(node).sql("", sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
        }

        fn port(&self, node: usize) -> u16 {
            self.cluster.node(node).port()
        }

        async fn wait_for_members(&self, asked: usize, count: usize) {
            eventually("all are online", async || self.on(asked, ACTIVE) == count.to_string()).await;
        }

        /// A proxy and a schema with `t`.
        async fn proxy(&self) -> (Proxy, String) {
            self.wait_for_members(0, 3).await;
            let schema = mysql::create_schema(&self.cluster, "CREATE TABLE t (x INT PRIMARY KEY)");
            (mysql::proxy(&self.cluster, &["cluster.routing.slow_start = '0s'"]).await, schema)
        }
    }

    /// Where a write runs; `None`: nowhere yet.
    async fn writer(proxy: &Proxy, schema: &str, x: u32) -> Option<u16> {
        let mut session = Session::connect(proxy.port(), APP, schema, BASIC).await.ok()?;
        session.query(&format!("INSERT INTO t VALUES ({x})")).await.ok()?;
        let port = session.query("/* pointsman: primary */ SELECT @@port").await.ok()?.value();
        let newest = session.query("SELECT MAX(x) FROM t").await.ok()?.value();
        assert_eq!(newest, x.to_string(), "it reads its own write");
        port.parse().ok()
    }

    /// Every member numbers its commits by the group's name: a floor made of these is no other server's.
    async fn reads_see_the_sessions_own_writes(proxy: &Proxy, schema: &str, from: u32) {
        let session = tokio::sync::Mutex::new(Session::open(proxy.port(), APP, schema).await);
        let reader = async |x: u32| {
            let seen =
                session.lock().await.query("SELECT MAX(x), @@port FROM t").await.expect("it is answered");
            let [newest, Some(port)] = &seen.results[0][0][..] else { panic!("{seen:?}") };
            assert_eq!(newest.as_deref(), Some(&*x.to_string()));
            port.clone()
        };
        for x in from..from + 300 {
            session.lock().await.run(&format!("INSERT INTO t VALUES ({x})")).await;
            reader(x).await;
        }
        let last = from + 299;
        let readers = tokio::sync::Mutex::new(BTreeSet::new());
        eventually("all of them serve what asks for these writes", async || {
            let mut readers = readers.lock().await;
            readers.insert(reader(last).await);
            readers.len() > 1
        })
        .await;
        assert!(!proxy.log().contains("a failover threw away"), "{}", proxy.log());
    }

    async fn writes_move_to(group: &Group, proxy: &Proxy, schema: &str, node: usize, from: u32) {
        let next = std::cell::Cell::new(from);
        eventually("writes go to the group's primary", async || {
            next.set(next.get() + 1);
            writer(proxy, schema, next.get()).await == Some(group.port(node))
        })
        .await;
    }

    #[tokio::test]
    async fn the_primary_of_a_group_gets_the_writes_whoever_the_group_makes_it() {
        let group = Group::start();
        let (proxy, schema) = group.proxy().await;
        assert_eq!(writer(&proxy, &schema, 1).await, Some(group.port(0)));
        reads_see_the_sessions_own_writes(&proxy, &schema, 1_000_000).await;
        group.on(0, &format!("DELETE FROM {schema}.t"));

        let next = group.on(1, "SELECT @@server_uuid");
        group.on(0, &format!("SELECT group_replication_set_as_primary('{next}')"));
        writes_move_to(&group, &proxy, &schema, 1, 100).await;

        group.cluster.stop(1, Stop::Kill).expect("it dies");
        let heir = async || {
            let primary = "SELECT member_port FROM performance_schema.replication_group_members \
                           WHERE member_role = 'PRIMARY' AND member_state = 'ONLINE'";
            group.on(0, primary).parse::<u16>().ok().filter(|port| *port != group.port(1))
        };
        eventually("the group elects another", async || heir().await.is_some()).await;
        let heir = heir().await.expect("there is one");
        let node = if heir == group.port(0) { 0 } else { 2 };
        writes_move_to(&group, &proxy, &schema, node, 1_000).await;
    }

    #[tokio::test]
    async fn the_doctor_knows_a_group_and_what_the_monitor_needs_for_it() {
        let group = Group::start();
        group.wait_for_members(0, 3).await;
        let folder = mysql_configuration(&group.cluster);
        let finds = async |command: &[&str], words: &str| {
            eventually(words, async || pointsman(command, &folder).1.contains(words)).await;
        };
        let (code, said) = pointsman(&["check", "--connect"], &folder);
        let roles = (said.matches("ok, primary").count(), said.matches("ok, replica").count());
        assert_eq!((code, roles), (Some(0), (1, 2)), "{said}");
        let (code, said) = pointsman(&["doctor"], &folder);
        assert!(code == Some(0) && !said.contains("problem") && !said.contains("asynchronous"), "{said}");

        let table = "SELECT ON performance_schema.replication_group_members";
        group.on(0, &format!("REVOKE {table} FROM pointsman@'%'"));
        finds(&["doctor"], "may not see the group").await;
        finds(&["check", "--connect"], &format!("the monitor may not see its group: GRANT {table}")).await;
        group.on(0, &format!("GRANT {table} TO pointsman@'%'"));

        group.on(0, "SELECT group_replication_switch_to_multi_primary_mode()");
        finds(&["doctor"], "all 3 primaries of its group take writes").await;

        // Nobody is left to agree with.
        group.cluster.stop(1, Stop::Kill).expect("it dies");
        group.cluster.stop(2, Stop::Kill).expect("it dies");
        finds(&["doctor"], "the group has no primary").await;
    }

    /// Two proxies, or one after a restart, have to agree.
    #[tokio::test]
    async fn of_several_primaries_one_gets_the_writes_and_all_serve_reads() {
        let group = Group::start();
        let (_, schema) = group.proxy().await;
        group.on(0, "SELECT group_replication_switch_to_multi_primary_mode()");
        let lowest = group.on(
            0,
            "SELECT member_port FROM performance_schema.replication_group_members \
                                  ORDER BY member_id LIMIT 1",
        );
        let lowest: u16 = lowest.parse().expect("a port is a number");
        let node = (0..3).find(|node| group.port(*node) == lowest).expect("it is a member");
        assert_eq!(group.on((node + 1) % 3, "SELECT @@super_read_only"), "0", "all are writable");

        let proxy = Proxy::start_unready(&group.cluster.addresses(), &[mysql::ENGINE]);
        writes_move_to(&group, &proxy, &schema, node, 1).await;
        for x in 1_000..1_010 {
            assert_eq!(writer(&proxy, &schema, x).await, Some(lowest));
        }
        reads_see_the_sessions_own_writes(&proxy, &schema, 2_000).await;
    }
}
