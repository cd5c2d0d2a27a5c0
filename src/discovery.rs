//! Who the nodes are, where Patroni knows: its REST API's `/cluster`, asked again and again.
//!
//! Patroni says which servers there are and which one leads; what state they are in the monitor
//! asks the servers themselves.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use http_body_util::{BodyExt, Empty, Limited};
use hyper::{
    Request,
    body::Bytes,
    header::{self, HeaderValue},
};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;
use url::Url;

use crate::{
    config::{Endpoint, Engine, HostPort, PatroniSource, Secret},
    stream::Stream,
    tls::{self, TlsError},
    topology::board::NodeConfig,
};

/// Longest answer that is read, in bytes; a member takes some 300.
const MAX_ANSWER: usize = 1024 * 1024;
/// Members that are taken; more of them is not a cluster but a mistake.
const MAX_MEMBERS: usize = 128;
/// Endpoints that are remembered beside the configured ones.
const MAX_LEARNED: usize = 16;

/// What Patroni says of its cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct Membership {
    /// In the order of their names.
    pub nodes: Vec<NodeConfig>,
    /// The address of the member that holds the leader's lock; `None`: nobody does.
    pub leader: Option<Arc<str>>,
    /// Where the members' own REST APIs are.
    endpoints: Vec<Url>,
}

/// Why an endpoint told nothing.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryFault {
    #[error("https: {0}")]
    Tls(#[from] TlsError),
    #[error("https: the host is no name that a certificate could have")]
    Name,
    #[error("not reached: {0}")]
    Unreachable(std::io::Error),
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    #[error("broken off: {0}")]
    Http(#[from] hyper::Error),
    #[error("answered with status {0}")]
    Status(u16),
    #[error("longer than {MAX_ANSWER} bytes, or cut off")]
    Body,
    #[error("not what Patroni answers: {0}")]
    Json(#[from] serde_json::Error),
    #[error("names more than {MAX_MEMBERS} members")]
    TooMany,
}

#[derive(Deserialize)]
struct Answer {
    members: Vec<Member>,
}

#[derive(Deserialize)]
struct Member {
    role: String,
    host: Option<String>,
    port: Option<u16>,
    api_url: Option<String>,
    #[serde(default)]
    tags: serde_json::Map<String, serde_json::Value>,
}

impl Membership {
    /// Reads the answer of `/cluster`. Members that do not say yet where they are do not count.
    ///
    /// # Errors
    /// When it is no such answer.
    pub fn read(answer: &[u8]) -> Result<Self, DiscoveryFault> {
        let Answer { members } = serde_json::from_slice(answer)?;
        if members.len() > MAX_MEMBERS {
            return Err(DiscoveryFault::TooMany);
        }
        let mut membership = Self { nodes: Vec::new(), leader: None, endpoints: Vec::new() };
        for member in members {
            membership.add(member);
        }
        Ok(membership)
    }

    fn add(&mut self, member: Member) {
        let Some(host) = member.host.filter(|host| !host.is_empty()) else { return };
        let port = member.port.unwrap_or(Engine::Postgres.default_port());
        let at = HostPort::new(&host, port);
        let address: Arc<str> = at.to_string().into();
        if self.nodes.iter().any(|node| node.address == address) {
            return;
        }
        // A standby cluster's leader takes no writes.
        if matches!(member.role.as_str(), "leader" | "master" | "primary") {
            self.leader = Some(address.clone());
        }
        self.endpoints.extend(member.api_url.and_then(|url| url.parse::<Url>().ok()));
        let tag = |name: &str| member.tags.get(name);
        self.nodes.push(NodeConfig {
            address,
            weight: 1.0,
            zone: tag("zone").and_then(|zone| zone.as_str()).map(Arc::from),
            no_load_balance: tag("noloadbalance").is_some_and(|tag| tag.as_bool() == Some(true)),
        });
    }
}

/// The endpoints of one cluster, the one that answered last in front.
#[derive(Debug)]
pub struct Patroni {
    source: PatroniSource,
    endpoints: VecDeque<Endpoint>,
}

impl Patroni {
    pub fn new(source: PatroniSource) -> Self {
        Self { endpoints: source.endpoints.iter().cloned().collect(), source }
    }

    /// Asks one endpoint after the other until one answers, each for up to `timeout`.
    ///
    /// # Errors
    /// With what each of them failed by.
    pub async fn ask(&mut self, timeout: Duration) -> Result<Membership, Vec<(Endpoint, DiscoveryFault)>> {
        let mut faults = Vec::new();
        for _ in 0..self.endpoints.len() {
            let Some(endpoint) = self.endpoints.front().cloned() else { break };
            let asked = tokio::time::timeout(timeout, self.cluster_of(&endpoint)).await;
            match asked.unwrap_or(Err(DiscoveryFault::TimedOut(timeout))) {
                Ok(membership) => {
                    self.learn(&membership);
                    return Ok(membership);
                }
                Err(fault) => {
                    faults.push((endpoint, fault));
                    self.endpoints.rotate_left(1);
                }
            }
        }
        Err(faults)
    }

    /// Members come and go, and with them whom to ask.
    fn learn(&mut self, membership: &Membership) {
        let Some(front) = self.endpoints.front().cloned() else { return };
        // Of a login that an answer names nobody knows whom it is for, and ours is not for them.
        let learned = membership.endpoints.iter().take(MAX_LEARNED).cloned().map(Endpoint::new);
        let mut endpoints = VecDeque::from([front]);
        for endpoint in self.source.endpoints.iter().cloned().chain(learned) {
            let same = |known: &Endpoint| known.url().origin() == endpoint.url().origin();
            if !endpoints.iter().any(same) {
                endpoints.push_back(endpoint);
            }
        }
        self.endpoints = endpoints;
    }

    async fn cluster_of(&self, endpoint: &Endpoint) -> Result<Membership, DiscoveryFault> {
        let url = endpoint.url();
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let port = url.port_or_known_default().unwrap_or(80);
        let request = request(host, port, endpoint.authorization());
        let stream = TcpStream::connect((host, port)).await.map_err(DiscoveryFault::Unreachable)?;
        if url.scheme() != "https" {
            return ask_cluster(Stream::plain(stream), request).await;
        }
        // Read anew each time: certificates are renewed in their place.
        let connector = tls::web_client(self.source.ca.as_deref())?;
        let name = tls::server_name(&HostPort::new(host, port).to_string()).ok_or(DiscoveryFault::Name)?;
        let session = connector.connect(name, stream).await.map_err(DiscoveryFault::Unreachable)?;
        ask_cluster(Stream::tls(session), request).await
    }
}

fn request(host: &str, port: u16, authorization: Option<&Secret>) -> Request<Empty<Bytes>> {
    let mut request = Request::get("/cluster")
        .header(header::HOST, format!("{host}:{port}"))
        .header(header::CONNECTION, "close");
    if let Some(authorization) = authorization {
        let mut value = HeaderValue::from_str(authorization.expose()).expect("Base64 is text");
        value.set_sensitive(true);
        request = request.header(header::AUTHORIZATION, value);
    }
    request.body(Empty::new()).expect("a fixed path and a host from a URL make a request")
}

async fn ask_cluster(stream: Stream, request: Request<Empty<Bytes>>) -> Result<Membership, DiscoveryFault> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|_| DiscoveryFault::Body)?.to_bytes();
        if status.is_success() {
            Membership::read(&body)
        } else {
            Err(DiscoveryFault::Status(status.as_u16()))
        }
    };
    tokio::pin!(exchange, connection);
    tokio::select! {
        answer = &mut exchange => answer,
        ended = &mut connection => {
            ended?;
            exchange.await
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn read(text: &str) -> Membership {
        Membership::read(text.as_bytes()).expect("an answer")
    }

    fn endpoint(url: &str) -> Endpoint {
        Endpoint::new(url.parse().expect("a URL"))
    }

    #[tokio::test]
    async fn a_url_with_a_user_logs_in() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("ports are to be had");
        let port = listener.local_addr().expect("it is bound").port();
        let agent = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("it is asked");
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                assert_ne!(stream.read_buf(&mut asked).await.expect("it goes on"), 0);
            }
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{\"members\": []}";
            stream.write_all(answer).await.expect("it is read");
            String::from_utf8(asked).expect("a request is text").to_lowercase()
        });
        let endpoints = vec![endpoint(&format!("http://Aladdin:open%20sesame@127.0.0.1:{port}"))];

        let told = Patroni::new(PatroniSource { endpoints, ca: None }).ask(Duration::from_secs(20)).await;

        assert_eq!(told.expect("it answers").nodes, []);
        let asked = agent.await.expect("it answers");
        assert!(asked.contains("authorization: basic qwxhzgrpbjpvcgvuihnlc2ftzq=="), "{asked}");
    }

    #[test]
    fn an_answer_says_who_the_nodes_are_and_who_leads() {
        let membership = read(
            r#"{"members": [
                {"name": "a", "role": "replica", "state": "running", "api_url": "http://10.0.0.1:8008/patroni",
                 "host": "10.0.0.1", "port": 5433, "timeline": 2, "lag": 0, "tags": {"noloadbalance": true}},
                {"name": "b", "role": "leader", "state": "running", "api_url": "http://10.0.0.2:8008/patroni",
                 "host": "10.0.0.2", "timeline": 2, "tags": {"zone": "khi", "nofailover": false}},
                {"name": "c", "role": "sync_standby", "state": "stopped", "api_url": "", "lag": "unknown"}],
                "pause": true}"#,
        );

        assert_eq!(membership.leader.as_deref(), Some("10.0.0.2:5432"));
        let nodes: Vec<_> =
            membership.nodes.iter().map(|n| (&*n.address, n.no_load_balance, n.zone.as_deref())).collect();
        assert_eq!(nodes, [("10.0.0.1:5433", true, None), ("10.0.0.2:5432", false, Some("khi"))]);
    }

    #[test]
    fn without_a_leader_nobody_leads() {
        for role in ["replica", "standby_leader"] {
            let text =
                format!(r#"{{"members": [{{"name": "a", "role": "{role}", "host": "h", "port": 1}}]}}"#);
            assert_eq!(read(&text).leader, None, "{role}");
        }
        assert_eq!(read(r#"{"members": []}"#).nodes, []);
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        for text in [
            "",
            "{}",
            "[]",
            r#"{"members": [{"role": 1}]}"#,
            r#"{"members": [{"role": "x", "port": 70000}]}"#,
        ] {
            assert!(Membership::read(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn members_are_asked_too_once_they_are_known() {
        let endpoints = vec![endpoint("http://a:8008")];
        let mut patroni = Patroni::new(PatroniSource { endpoints, ca: None });
        patroni.learn(&read(
            r#"{"members": [{"role": "leader", "host": "x", "api_url": "http://a:8008/patroni"},
                            {"role": "replica", "host": "y", "api_url": "http://b:8008/patroni"}]}"#,
        ));
        let hosts: Vec<_> =
            patroni.endpoints.iter().filter_map(|endpoint| endpoint.url().host_str()).collect();
        assert_eq!(hosts, ["a", "b"]);
    }
}
