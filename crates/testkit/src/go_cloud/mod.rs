//! A stand-in for the Go cloudcore of KubeEdge v1.23, for tests of edges: the certificate endpoint and the message channel on
//! loopback, driven by recorded frames.
//!
//! It issues certificates for tokens as upstream does, upgrades on any path, writes frames with upstream's fragments, answers an
//! edge's requests with what the real one answered (adapted to the edge's names and ids), and keeps everything that arrives. What
//! an edge must never send is noted in [`GoCloud::complaints`]. It can be killed and started again on the same ports. Acknowledgements
//! are only kept: sending again is up to the test. Read `recorded` and `pods` for the answers, `channel` for the frames.

mod channel;
mod pods;
mod recorded;
mod registration;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use link::ca::CertificateAuthority;
use link::identity::Identity;
use link::tls::Certificate;
use serde_json::Value;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use pods::Pods;
pub use recorded::Recorded;

/// How long [`GoCloud::wait_for`] and its kin wait.
pub const DEADLINE: Duration = Duration::from_secs(20);
/// Messages that wait for one connection.
const QUEUE: usize = 1024;
/// Connections that wait to be accepted.
const BACKLOG: u32 = 128;
/// How long a token of [`GoCloud::token`] is valid, in seconds.
const TOKEN_LIFE: u64 = 24 * 3600;
/// How long certificates of the endpoint are valid.
const CERTIFICATE_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);

/// A cloud that lives until it is dropped.
pub struct GoCloud {
    authority: Arc<CertificateAuthority>,
    https: Port,
    websocket: Port,
    recorded: Arc<Recorded>,
    shared: Arc<Shared>,
    serving: Option<Serving>,
}

struct Serving {
    stop: CancellationToken,
    /// Aborted on drop.
    tasks: JoinSet<()>,
}

/// What the handle and the servers share.
struct Shared {
    state: Mutex<State>,
    /// Counts changes of the state.
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    connections: Vec<Connection>,
    received: Vec<Received>,
    complaints: Vec<String>,
    requests: Vec<HttpRequest>,
    answers: HashMap<String, Answer>,
    certificate_life: Option<Duration>,
    pods: Pods,
}

/// One upgrade of the message channel.
#[derive(Clone, Debug)]
pub struct Connection {
    /// The path of the upgrade request.
    pub path: String,
    /// Its headers, names in lower case, in order.
    pub headers: Vec<(String, String)>,
    /// Who the client's certificate names.
    pub peer: Identity,
    /// Whether it is open still.
    pub open: bool,
    sender: mpsc::Sender<String>,
    hang_up: CancellationToken,
}

/// A message from an edge.
#[derive(Clone, Debug)]
pub struct Received {
    /// The connection it came by, counted from 0.
    pub connection: usize,
    /// The message.
    pub message: Value,
}

/// A request to the certificate endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpRequest {
    /// The path.
    pub path: String,
    /// The `NodeName` header.
    pub node: String,
    /// Whether a client certificate was shown.
    pub with_certificate: bool,
    /// The answer's status.
    pub status: u16,
}

/// What a request of an edge is answered with instead of the recorded answer.
#[derive(Clone, Debug)]
pub enum Answer {
    /// This content.
    Content(Value),
    /// Nothing at all.
    Silence,
}

impl Received {
    /// A part of the route, empty when it is not there.
    pub fn route(&self, part: &str) -> &str {
        self.message["route"][part].as_str().unwrap_or_default()
    }

    /// The message's id.
    pub fn id(&self) -> &str {
        self.message["header"]["msg_id"].as_str().unwrap_or_default()
    }

    /// The id of the message that this one answers.
    pub fn parent(&self) -> &str {
        self.message["header"]["parent_msg_id"].as_str().unwrap_or_default()
    }

    /// Whether this is a message with this verb about this resource.
    pub fn is(&self, operation: &str, resource: &str) -> bool {
        self.route("operation") == operation && self.route("resource") == resource
    }
}

impl GoCloud {
    /// Starts with a CA of its own on two free ports of 127.0.0.1.
    ///
    /// # Errors
    /// No port is free, or the recordings cannot be read.
    pub async fn start() -> Result<Self> {
        link::tls::install_provider();
        let authority = Arc::new(CertificateAuthority::generate()?);
        let (changed, _) = watch::channel(0);
        let mut cloud = Self {
            authority,
            https: Port::reserve()?,
            websocket: Port::reserve()?,
            recorded: Arc::new(Recorded::load()?),
            shared: Arc::new(Shared { state: Mutex::default(), changed }),
            serving: None,
        };
        cloud.serve().await?;
        Ok(cloud)
    }

    /// Serves again after [`GoCloud::kill`], on the same ports and with the same CA.
    ///
    /// # Errors
    /// The system has no sockets left.
    pub async fn serve(&mut self) -> Result<()> {
        let (https, websocket) = (self.https.listen()?, self.websocket.listen()?);
        let issued = self.authority.issue_server("KubeEdge", "KubeEdge", &["127.0.0.1".to_owned()])?;
        let own = Certificate { certificate: issued.certificate, key: issued.key };
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(registration::serve(https, &own, self.authority.clone(), self.shared.clone(), stop.clone())?);
        tasks.spawn(channel::serve(
            websocket,
            &own,
            self.authority.certificate().clone(),
            self.shared.clone(),
            self.recorded.clone(),
        )?);
        self.serving = Some(Serving { stop, tasks });
        Ok(())
    }

    /// Ends at once, as by SIGKILL: sockets close without a close frame, ports refuse. What was recorded stays.
    pub async fn kill(&mut self) {
        if let Some(mut serving) = self.serving.take() {
            serving.stop.cancel();
            serving.tasks.shutdown().await;
        }
        self.shared.change(|state| state.connections.iter_mut().for_each(|connection| connection.open = false));
    }

    /// `https://127.0.0.1:port` of the certificate endpoint.
    pub fn http_server(&self) -> String {
        format!("https://{}", self.https.address)
    }

    /// `127.0.0.1:port` of the message channel.
    pub fn server(&self) -> String {
        self.websocket.address.to_string()
    }

    /// The CA, for certificates that the endpoint would not issue.
    pub fn authority(&self) -> &CertificateAuthority {
        &self.authority
    }

    /// A join token that is valid for a day.
    pub fn token(&self) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.token_until(now + TOKEN_LIFE)
    }

    /// A join token that is valid until then, in seconds since 1970.
    pub fn token_until(&self, expires: u64) -> String {
        link::token::mint(self.authority.certificate(), self.authority.key(), expires)
    }

    /// Certificates that the endpoint issues from now on are valid for so long, instead of a year.
    pub fn issue_for(&self, life: Duration) {
        self.shared.change(|state| state.certificate_life = Some(life));
    }

    /// Requests about this resource get this answer from now on.
    pub fn answer(&self, resource: &str, answer: Answer) {
        self.shared.change(|state| state.answers.insert(resource.to_owned(), answer));
    }

    /// Messages that the real cloudcore sent.
    pub fn recorded(&self) -> &Recorded {
        &self.recorded
    }

    /// Sends a message to the edge that connected last.
    ///
    /// # Errors
    /// No edge is connected.
    pub async fn send(&self, message: &Value) -> Result<()> {
        self.shared.change(|state| state.pods.note(message));
        self.send_text(message.to_string()).await
    }

    /// As [`GoCloud::send`], with any text.
    ///
    /// # Errors
    /// No edge is connected.
    pub async fn send_text(&self, text: String) -> Result<()> {
        let sender = {
            let state = self.shared.state();
            state.connections.iter().rev().find(|connection| connection.open).map(|c| c.sender.clone())
        };
        sender.context("no edge is connected")?.send(text).await.context("the edge has gone")
    }

    /// Closes the newest connection without a close frame.
    pub fn hang_up(&self) {
        if let Some(connection) = self.shared.state().connections.last() {
            connection.hang_up.cancel();
        }
    }

    /// Waits for the connection of this number, open or not any more; the first is 0.
    ///
    /// # Errors
    /// None came in time.
    pub async fn connection(&self, number: usize) -> Result<Connection> {
        self.wait(&format!("connection {number}"), |state| state.connections.get(number).cloned()).await
    }

    /// Whether an edge is connected.
    pub fn is_connected(&self) -> bool {
        self.shared.state().connections.iter().any(|connection| connection.open)
    }

    /// Connections so far, open or not.
    pub fn connections(&self) -> usize {
        self.shared.state().connections.len()
    }

    /// Waits for a message for which this holds; also one that came before counts.
    ///
    /// # Errors
    /// None came in time.
    pub async fn wait_for(&self, what: &str, matches: impl Fn(&Received) -> bool) -> Result<Received> {
        self.wait(what, |state| state.received.iter().find(|received| matches(received)).cloned()).await
    }

    /// Waits until so many messages are there for which this holds, and gives them.
    ///
    /// # Errors
    /// Fewer came in time.
    pub async fn wait_for_all(
        &self,
        what: &str,
        count: usize,
        matches: impl Fn(&Received) -> bool,
    ) -> Result<Vec<Received>> {
        let found = |state: &State| {
            let found: Vec<Received> = state.received.iter().filter(|received| matches(received)).cloned().collect();
            (found.len() >= count).then_some(found)
        };
        self.wait(what, found).await
    }

    /// Waits for the message that answers the one with this id.
    ///
    /// # Errors
    /// None came in time.
    pub async fn reply_to(&self, id: &str) -> Result<Received> {
        self.wait_for(&format!("the reply to {id}"), |received| received.parent() == id).await
    }

    /// Everything that has arrived.
    pub fn received(&self) -> Vec<Received> {
        self.shared.state().received.clone()
    }

    /// Requests to the certificate endpoint so far.
    pub fn http_requests(&self) -> Vec<HttpRequest> {
        self.shared.state().requests.clone()
    }

    /// What a Go cloud would not understand, or an edge must not do.
    pub fn complaints(&self) -> Vec<String> {
        self.shared.state().complaints.clone()
    }

    async fn wait<T>(&self, what: &str, mut found: impl FnMut(&State) -> Option<T>) -> Result<T> {
        let mut changed = self.shared.changed.subscribe();
        let deadline = tokio::time::Instant::now() + DEADLINE;
        loop {
            if let Some(found) = found(&self.shared.state()) {
                return Ok(found);
            }
            if tokio::time::timeout_at(deadline, changed.changed()).await.is_err() {
                bail!("no {what} within {} s; received: {}", DEADLINE.as_secs(), self.summary());
            }
        }
    }

    fn summary(&self) -> String {
        let state = self.shared.state();
        let line = |received: &Received| format!("{} {}", received.route("operation"), received.route("resource"));
        state.received.iter().map(line).collect::<Vec<_>>().join(", ")
    }
}

/// A port of 127.0.0.1 that stays ours while nobody listens on it: connections are refused then.
struct Port {
    address: SocketAddr,
    _reserved: TcpSocket,
}

impl Port {
    fn reserve() -> Result<Self> {
        let reserved = Self::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        Ok(Self { address: reserved.local_addr()?, _reserved: reserved })
    }

    fn listen(&self) -> Result<TcpListener> {
        Ok(Self::bind(self.address)?.listen(BACKLOG)?)
    }

    fn bind(address: SocketAddr) -> Result<TcpSocket> {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.set_reuseport(true)?;
        socket.bind(address).with_context(|| format!("port {}", address.port()))?;
        Ok(socket)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.state());
        self.changed.send_modify(|count| *count += 1);
        result
    }
}

impl State {
    fn certificate_life(&self) -> Duration {
        self.certificate_life.unwrap_or(CERTIFICATE_LIFE)
    }
}
