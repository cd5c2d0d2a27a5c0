//! Real MariaDB or MySQL servers in a temporary folder: a primary and its GTID replicas, on free ports
//! of 127.0.0.1. The counterpart of [`super::servers`], with the same operations.

mod flavour;
mod node;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use tempfile::TempDir;

pub use self::{flavour::Flavour, node::MysqlNode};
use super::{
    node::Stop,
    process::Keeper,
    servers::{APP, CHANGE_LIMIT, ServerError, copy_folder, eventually},
};
pub(super) use flavour::installed;

/// How a cluster is to be made.
#[derive(Clone, Debug, Default)]
pub struct MysqlOptions {
    pub flavour: Flavour,
    pub replicas: usize,
    /// A folder made by [`MysqlCluster::make_template`]: data is copied from there.
    pub template: Option<PathBuf>,
    /// Arguments for every server, after the defaults of this module: `--sync-binlog=1`.
    pub arguments: Vec<String>,
}

/// A primary (node 0 at the start) and its replicas.
#[derive(Debug)]
pub struct MysqlCluster {
    // In this order: servers stop before the thread that they hang on ends, and the folder goes last.
    nodes: Vec<MysqlNode>,
    keeper: Keeper,
    folder: TempDir,
    flavour: Flavour,
    template: Option<PathBuf>,
}

impl MysqlCluster {
    /// Starts a primary and `options.replicas` replicas and waits until all of them serve reads.
    ///
    /// # Errors
    /// When the servers' programs are missing or do not start.
    pub fn start(options: MysqlOptions) -> Result<Self, ServerError> {
        let folder = folder(&options.flavour)?;
        let nodes = (0..=options.replicas)
            .map(|number| MysqlNode::new(number, folder.path(), &options))
            .collect::<Result<_, _>>()?;
        let MysqlOptions { flavour, template, .. } = options;
        let cluster = Self { nodes, keeper: Keeper::start()?, folder, flavour, template };
        std::thread::scope(|scope| {
            let cluster = &cluster;
            let prepare = |node| scope.spawn(move || cluster.prepare(node));
            let threads: Vec<_> = cluster.nodes.iter().map(prepare).collect();
            threads.into_iter().try_for_each(|thread| thread.join().expect("preparing a node does not panic"))
        })?;
        for index in 1..cluster.nodes.len() {
            cluster.follow(index, 0)?;
        }
        cluster.node(0).sql("", &format!("CREATE DATABASE {}", APP.name))?;
        cluster.wait_until_caught_up(0)?;
        Ok(cluster)
    }

    /// Fills a node's data folder and starts it.
    fn prepare(&self, node: &MysqlNode) -> Result<(), ServerError> {
        match &self.template {
            Some(template) => node.copy_from(template)?,
            None => node.install()?,
        }
        node.start(&self.keeper, |_| ())?;
        if self.template.is_some() { Ok(()) } else { node.create_users() }
    }

    /// Puts the data folder of a fresh, stopped server at `target`, for [`MysqlOptions::template`].
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn make_template(flavour: Flavour, target: &Path) -> Result<(), ServerError> {
        let folder = folder(&flavour)?;
        let keeper = Keeper::start()?;
        let node = MysqlNode::new(
            0,
            folder.path(),
            &MysqlOptions { flavour: flavour.clone(), ..MysqlOptions::default() },
        )?;
        node.install()?;
        node.start(&keeper, |_| ())?;
        node.create_users()?;
        node.stop(Stop::Fast)?;
        copy_folder(&node.data, target)?;
        flavour.forget_identity(target)
    }

    /// Whose servers these are.
    pub fn flavour(&self) -> &Flavour {
        &self.flavour
    }

    pub fn node(&self, index: usize) -> &MysqlNode {
        &self.nodes[index]
    }

    pub fn nodes(&self) -> &[MysqlNode] {
        &self.nodes
    }

    /// `host:port` of every server, in the order of their numbers.
    pub fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(MysqlNode::address).collect()
    }

    /// Where the servers' files are.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts a stopped server; one that runs is left alone.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_node(&self, index: usize) -> Result<(), ServerError> {
        self.start_node_with(index, |_| ())
    }

    /// As [`MysqlCluster::start_node`], with another environment or more arguments.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_node_with(
        &self,
        index: usize,
        change: impl FnOnce(&mut Command),
    ) -> Result<(), ServerError> {
        self.node(index).start(&self.keeper, change)
    }

    /// # Errors
    /// When it has to be killed.
    pub fn stop(&self, index: usize, how: Stop) -> Result<(), ServerError> {
        self.node(index).stop(how)
    }

    /// Stops every server, for owners whose destructors do not run.
    pub fn stop_all(&self) {
        for node in self.nodes.iter().rev() {
            let _ = node.stop(Stop::Kill);
        }
    }

    /// Turns a replica into a primary. The others keep following the old one until
    /// [`MysqlCluster::follow`] is called.
    ///
    /// # Errors
    /// When the server says no.
    pub fn promote(&self, index: usize) -> Result<(), ServerError> {
        self.node(index).sql("", self.flavour.promote()).map(drop)
    }

    /// Makes a running server a replica of another one.
    ///
    /// # Errors
    /// When the server says no.
    pub fn follow(&self, index: usize, primary: usize) -> Result<(), ServerError> {
        self.node(index).sql("", &self.flavour.follow(self.node(primary).port())).map(drop)
    }

    /// Starts a stopped former primary as a replica of `primary`.
    ///
    /// # Errors
    /// When it does not start.
    pub fn rejoin(&self, index: usize, primary: usize) -> Result<(), ServerError> {
        self.start_node(index)?;
        self.follow(index, primary)
    }

    /// Throws a server's data away and makes it a replica of `primary` from the beginning: for a former
    /// primary that has what nobody else has.
    ///
    /// # Errors
    /// When it does not start.
    pub fn rebuild(&self, index: usize, primary: usize) -> Result<(), ServerError> {
        let node = self.node(index);
        node.stop(Stop::Kill)?;
        fs::remove_dir_all(&node.data)?;
        node.become_another();
        self.prepare(node)?;
        self.follow(index, primary)
    }

    /// Whether a server has every transaction of another one in its history.
    ///
    /// # Errors
    /// When one of them does not answer.
    pub fn has_all_of(&self, index: usize, other: usize) -> Result<bool, ServerError> {
        let history = |index| self.node(index).sql("", self.flavour.history());
        let (own, other) = (history(index)?, history(other)?);
        Ok(self.flavour.covers(&own, &other))
    }

    /// Makes the commits of a primary wait until a replica has them; for clusters with
    /// [`Flavour::semi_synchronous`] arguments.
    ///
    /// # Errors
    /// When the server says no.
    pub fn wait_for_replicas(&self, primary: usize) -> Result<(), ServerError> {
        self.node(primary).sql("", self.flavour.wait_for_replicas()).map(drop)
    }

    /// Ends [`MysqlCluster::wait_for_replicas`].
    ///
    /// # Errors
    /// When the server says no.
    pub fn wait_for_nobody(&self, primary: usize) -> Result<(), ServerError> {
        self.node(primary).sql("", self.flavour.wait_for_nobody()).map(drop)
    }

    /// Makes a replica of a dead primary apply all that it has received, as whoever promotes it should.
    ///
    /// # Errors
    /// When it has not in half a minute.
    pub fn apply_received(&self, index: usize) -> Result<(), ServerError> {
        let node = self.node(index);
        node.sql("", self.flavour.stop_receiving())?;
        eventually(&format!("{} to apply what it has", node.name), CHANGE_LIMIT, || {
            let status = node.sql("", self.flavour.replication())?;
            let columns: Vec<&str> = status.split('\t').collect();
            // File and place read, and file and place applied.
            Ok(columns.len() > 21 && (columns[5], columns[6]) == (columns[9], columns[21]))
        })
    }

    /// Stops a replica's replay; it goes on receiving.
    ///
    /// # Errors
    /// When the server says no.
    pub fn pause_replay(&self, index: usize) -> Result<(), ServerError> {
        self.node(index).sql("", self.flavour.pause_replay()).map(drop)
    }

    /// # Errors
    /// When the server says no.
    pub fn resume_replay(&self, index: usize) -> Result<(), ServerError> {
        self.node(index).sql("", self.flavour.resume_replay()).map(drop)
    }

    /// Makes a replica apply transactions `delay` (whole seconds) after they were made.
    ///
    /// # Errors
    /// When the server says no.
    pub fn delay_replay(&self, index: usize, delay: Duration) -> Result<(), ServerError> {
        self.node(index).sql("", &self.flavour.delay_replay(delay)).map(drop)
    }

    /// Waits until every other running server has replayed what `primary` has written by now.
    ///
    /// # Errors
    /// When one has replayed nothing for half a minute and still lacks something.
    pub fn wait_until_caught_up(&self, primary: usize) -> Result<(), ServerError> {
        let written = self.node(primary).sql("", self.flavour.written())?;
        let running = |node: &&MysqlNode| node.pid().is_some() && node.port() != self.node(primary).port();
        self.nodes.iter().filter(running).try_for_each(|node| self.wait_for_replay(node, &written))
    }

    /// How long it takes is up to the machine and to how much there is; that it goes on is not.
    fn wait_for_replay(&self, node: &MysqlNode, written: &str) -> Result<(), ServerError> {
        let (mut reached, mut moved) = (String::new(), Instant::now());
        while node.sql("", &self.flavour.wait_for(written))? != "0" {
            let now = node.sql("", self.flavour.written())?;
            if now != reached {
                (reached, moved) = (now, Instant::now());
            } else if moved.elapsed() > CHANGE_LIMIT {
                let status = node.sql("", self.flavour.replication())?;
                let what = format!("{} to replay {written}; it has {reached} and says {status}", node.name);
                return Err(ServerError::TimedOut { what, waited: CHANGE_LIMIT });
            }
        }
        Ok(())
    }
}

fn folder(flavour: &Flavour) -> Result<TempDir, ServerError> {
    let folder = tempfile::Builder::new().prefix(&format!("pointsman-{}-", flavour.name())).tempdir()?;
    flavour.run_as()?.own(folder.path())?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_primary_with_two_replicas_starts_replicates_and_fails_over() {
        let cluster =
            MysqlCluster::start(MysqlOptions { replicas: 2, ..MysqlOptions::default() }).expect("it starts");
        cluster.node(0).sql("app", "CREATE TABLE t AS SELECT 1 AS x").expect("the primary takes writes");
        cluster.wait_until_caught_up(0).expect("replicas follow");
        assert_eq!(cluster.node(2).sql("app", "SELECT x FROM t").expect("a replica serves reads"), "1");

        cluster.stop(0, Stop::Kill).expect("it dies");
        cluster.promote(1).expect("a replica takes over");
        cluster.follow(2, 1).expect("the other follows it");
        cluster.node(1).sql("app", "INSERT INTO t VALUES (2)").expect("the new primary takes writes");
        cluster.rejoin(0, 1).expect("the old one becomes a replica");
        cluster.wait_until_caught_up(1).expect("all follow the new primary");
        assert_eq!(cluster.node(0).sql("app", "SELECT sum(x) FROM t").expect("it serves reads"), "3");
    }
}
