//! The tunnels of nodes: who has one, how one is got, and what can be asked through it.
//!
//! Our own edges open theirs when they are asked to, by way of their session; Go edges and older ones keep one all the time.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use jiff::Timestamp;
use link::http_server::Body;
use link::resume::{Id, Offer, Resume};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::go_edge::GoEdge;
use super::own_edge::OwnEdge;
use super::replicas::{self, Replica, Replicas};
use super::usage::Usage;
use crate::cloudhub::session::SessionHandle;
use crate::cloudhub::{Presence, Sessions};

/// How long a node may take to open its tunnel.
const OPENING: Duration = Duration::from_secs(10);
/// How often it is looked whether the tunnel has come to another cloudcore, or goes on.
const LOOK: Duration = Duration::from_millis(500);
/// A node that was asked so long ago is asked again by the next who wants something of it: not before, for asked again it would drop a
/// tunnel that it is just opening.
const ASKED: Duration = OPENING;
/// Tunnels of a node at once: some that are dying, and the one that replaces them. The oldest goes for one more.
const MAX_OF_ONE_NODE: usize = 4;

/// A stream of bytes in both directions.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// What a node answers.
pub enum Answer {
    /// As it is.
    Plain(Response<Body>),
    /// 101: bytes follow in both directions.
    Upgraded(Response<()>, Box<dyn Io>),
}

/// Why a node does not answer.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// It is not connected.
    #[error("{0}")]
    Offline(Offline),
    /// It is connected, and has no tunnel all the same.
    #[error(
        "node {0} is connected, but has not opened its stream tunnel: is port 10004 of cloudcore reachable from it, and modules.edgeStream enabled?"
    )]
    Unopened(String),
    /// The tunnel broke.
    #[error("the tunnel of node {0} broke: try again")]
    Broken(String, #[source] Box<dyn std::error::Error + Send + Sync>),
    /// It said nothing for too long.
    #[error("node {node} did not answer within {seconds} s: its link may be down; this is noticed soon")]
    Silent {
        /// The node.
        node: String,
        /// The limit.
        seconds: u64,
    },
    /// An old edge cannot do that.
    #[error("node {0} runs an edgecore that cannot do this through its tunnel ({1}): update it")]
    Unsupported(String, &'static str),
    /// Too much at once.
    #[error("too many streams of node {0} are open: close some, or try again later")]
    TooMany(String),
}

/// A node that is not connected.
#[derive(Debug, PartialEq, Eq)]
pub struct Offline {
    /// The node.
    pub node: String,
    /// Since when; `None` when it was not since cloudcore started.
    pub since: Option<Timestamp>,
    /// When cloudcore started.
    pub started: Timestamp,
}

impl fmt::Display for Offline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, since, started } = self;
        let second = |time: &Timestamp| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        match since {
            Some(since) => write!(f, "node {node} is not connected, since {}", second(since))?,
            None => write!(f, "node {node} has not connected since this cloudcore started, {}", second(started))?,
        }
        f.write_str(": is edgecore running, and its link up?")
    }
}

/// A node's tunnel. Cloning is cheap.
#[derive(Clone)]
pub struct Tunnel {
    node: Arc<str>,
    end: End,
    usage: Usage,
}

/// Who is at the other end.
#[derive(Clone)]
pub(super) enum End {
    Own(OwnEdge),
    Go(GoEdge),
    /// Another cloudcore, which has the node.
    Other(Replica),
}

impl Tunnel {
    /// To this node.
    pub(super) fn new(node: &str, end: End) -> Self {
        Self { node: node.into(), end, usage: Usage::default() }
    }

    /// Its name, when it waits for its node to connect again.
    fn cut(&self) -> Option<Id> {
        match &self.end {
            End::Own(edge) => edge.cut(),
            End::Go(_) | End::Other(_) => None,
        }
    }

    /// Resolves when nobody has used it for this time.
    pub(super) async fn unused(&self, time: Duration) {
        self.usage.unused(time).await;
    }

    /// Asks the node. A request with `Upgrade` becomes a stream when the node grants it.
    ///
    /// # Errors
    /// The tunnel broke, or the node does not answer in time.
    pub async fn ask(&self, request: Request<Full<Bytes>>) -> Result<Answer, TunnelError> {
        let upgrades = request.headers().contains_key(header::UPGRADE);
        let open = self.usage.begin();
        let answer = match &self.end {
            End::Own(edge) if upgrades => edge.upgrade(&self.node, request).await?,
            End::Own(edge) => Answer::Plain(edge.ask(&self.node, request).await?),
            End::Other(replica) => replica.ask(&self.node, request).await?,
            End::Go(edge) if upgrades => edge.upgrade(&self.node, request).await?,
            End::Go(edge) => Answer::Plain(edge.ask(&self.node, request).await?),
        };
        Ok(match answer {
            Answer::Plain(answer) => Answer::Plain(answer.map(|body| open.with_body(body))),
            Answer::Upgraded(head, io) => Answer::Upgraded(head, open.with_io(io)),
        })
    }
}

/// All tunnels. Cloning is cheap.
#[derive(Clone)]
pub struct Tunnels(Arc<Shared>);

struct Shared {
    started: Timestamp,
    sessions: OnceLock<Sessions>,
    replicas: OnceLock<Replicas>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// By node, the newest last.
    tunnels: HashMap<Arc<str>, Vec<Registered>>,
    /// Which node has said that this is its address; who came first has it as long as he is there.
    addresses: HashMap<IpAddr, Arc<str>>,
    /// Nodes that have been asked for a tunnel.
    asked: HashMap<Arc<str>, Asked>,
    last: u64,
}

/// That a node was asked for a tunnel.
struct Asked {
    /// Dropped when it has one.
    waiting: watch::Sender<()>,
    by: SessionHandle,
    at: Instant,
}

/// The node will have a tunnel when this ends.
type Opening = watch::Receiver<()>;

struct Registered {
    number: u64,
    address: IpAddr,
    tunnel: Tunnel,
    replaced: CancellationToken,
}

/// That a tunnel is there; dropped when it ends.
pub(super) struct Registration {
    tunnels: Tunnels,
    node: Arc<str>,
    address: IpAddr,
    number: u64,
    /// Cancelled when the node has too many newer ones.
    pub(super) replaced: CancellationToken,
}

impl Default for Tunnels {
    fn default() -> Self {
        Self(Arc::new(Shared {
            started: Timestamp::now(),
            sessions: OnceLock::new(),
            replicas: OnceLock::new(),
            known: Mutex::default(),
        }))
    }
}

impl Tunnels {
    /// From now on nodes are asked for their tunnels by way of these sessions.
    pub(crate) fn ask_through(&self, sessions: Sessions) {
        // It happens once.
        let _ = self.0.sessions.set(sessions);
    }

    /// From now on nodes are looked for at these, too.
    pub(super) fn look_at(&self, replicas: Replicas) {
        // It happens once.
        let _ = self.0.replicas.set(replicas);
    }

    /// The tunnel of this node, wherever it ends; it is opened if there is none.
    ///
    /// # Errors
    /// The node is not connected, or does not open one.
    pub async fn open(&self, node: &str) -> Result<Tunnel, TunnelError> {
        let why = match self.open_here(node).await {
            // A session may be dead, and not known to be.
            Err(why @ (TunnelError::Offline(_) | TunnelError::Unopened(_))) => why,
            other => return other,
        };
        let Some(replicas) = self.0.replicas.get() else { return Err(why) };
        let (tunnel, since) = replicas.find(node).await;
        tunnel.ok_or(match why {
            TunnelError::Offline(offline) => {
                TunnelError::Offline(Offline { since: since.max(offline.since), ..offline })
            }
            other => other,
        })
    }

    /// The same for a node whose session is here. Its tunnel may end at another cloudcore all the same, behind a load balancer.
    pub(super) async fn open_here(&self, node: &str) -> Result<Tunnel, TunnelError> {
        let opened = tokio::time::timeout(OPENING, async {
            loop {
                // However often a session ends: others run, and the time counts.
                tokio::task::yield_now().await;
                let standing = self.standing(node);
                let cut = standing.as_ref().and_then(Tunnel::cut);
                if let Some(tunnel) = standing
                    && cut.is_none()
                {
                    return Ok(tunnel);
                }
                let session = match self.presence(node) {
                    Presence::Connected(session) => session,
                    Presence::Gone(since) => return Err(self.offline(node, Some(since))),
                    Presence::NotYet => return Err(self.offline(node, None)),
                };
                let opens = session.peer().features.tunnel;
                if !opens && cut.is_none() {
                    return Err(TunnelError::Unopened(node.to_owned()));
                }
                // Asked for a tunnel, the node would drop the one that it has with another cloudcore.
                if let Some(replicas) = self.0.replicas.get()
                    && let Some(tunnel) = replicas.tunnel_of(node).await
                {
                    return Ok(tunnel);
                }
                let (mut opening, is_first) = self.wait(node, &session);
                if is_first && opens {
                    // An edgecore that was restarted does not know the tunnel that was cut, and opens another.
                    session.ask_tunnel(cut);
                }
                tokio::select! {
                    // It ends with an error: nothing is ever sent.
                    _ = opening.changed() => {}
                    // It may be back already.
                    () = session.ended() => {}
                    tunnel = self.elsewhere(node) => return Ok(tunnel),
                    () = tokio::time::sleep(LOOK), if cut.is_some() => {}
                }
            }
        });
        opened.await.unwrap_or_else(|_| Err(TunnelError::Unopened(node.to_owned())))
    }

    /// Whether this node can be asked: it has a tunnel, or would open one.
    pub fn is_reachable(&self, node: &str) -> bool {
        self.opens(node) || self.standing(node).is_some()
    }

    /// Whether this node would open a tunnel.
    pub(super) fn opens(&self, node: &str) -> bool {
        matches!(self.presence(node), Presence::Connected(session) if session.peer().features.tunnel)
    }

    /// The node that said that this is its address.
    pub fn at_address(&self, address: &str) -> Option<String> {
        let address: IpAddr = address.parse().ok()?;
        if let Some(node) = self.known().addresses.get(&address) {
            return Some(node.to_string());
        }
        let sessions = self.0.sessions.get()?.handles();
        let mut found = sessions.iter().filter(|session| session.peer().address == Some(address));
        // Private addresses are used more than once.
        found.next().filter(|_| found.next().is_none()).map(|session| session.node().to_owned())
    }

    /// Nodes that have a tunnel now.
    pub fn count(&self) -> usize {
        self.known().tunnels.len()
    }

    /// Requests and streams in all tunnels that are not over.
    pub fn open_streams(&self) -> usize {
        self.known().tunnels.values().flatten().map(|registered| registered.tunnel.usage.open()).sum()
    }

    /// Names of the nodes that can be asked.
    pub fn nodes(&self) -> Vec<String> {
        let sessions = self.0.sessions.get().map(Sessions::handles).unwrap_or_default();
        let asked =
            sessions.iter().filter(|session| session.peer().features.tunnel).map(|session| session.node().to_owned());
        let mut nodes: Vec<String> = asked.chain(self.known().tunnels.keys().map(ToString::to_string)).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }

    /// Which process of edgecore a node's session is with.
    pub(super) fn process_of(&self, node: &str) -> Option<Id> {
        match self.presence(node) {
            Presence::Connected(session) => session.peer().process,
            Presence::Gone(_) | Presence::NotYet => None,
        }
    }

    /// What is known here of a node, for another cloudcore.
    pub(super) fn known_of(&self, node: &str) -> replicas::Known {
        let since = match self.presence(node) {
            Presence::Gone(since) => Some(since.to_string()),
            _ => None,
        };
        let tunnel = self.standing(node).is_some_and(|tunnel| tunnel.cut().is_none());
        replicas::Known { tunnel, session: self.opens(node), since }
    }

    /// Resolves when the tunnel has come to another cloudcore.
    async fn elsewhere(&self, node: &str) -> Tunnel {
        let Some(replicas) = self.0.replicas.get() else { return std::future::pending().await };
        loop {
            tokio::time::sleep(LOOK).await;
            if let Some(tunnel) = replicas.tunnel_of(node).await {
                return tunnel;
            }
        }
    }

    /// The newest tunnel of this node.
    fn standing(&self, node: &str) -> Option<Tunnel> {
        self.known().tunnels.get(node)?.last().map(|newest| newest.tunnel.clone())
    }

    fn presence(&self, node: &str) -> Presence {
        self.0.sessions.get().map_or(Presence::NotYet, |sessions| sessions.presence(node))
    }

    fn offline(&self, node: &str, since: Option<Timestamp>) -> TunnelError {
        TunnelError::Offline(Offline { node: node.to_owned(), since, started: self.0.started })
    }

    /// Waits for a tunnel of this node from now on; whether the node is to be asked for it, for nobody has done so lately.
    fn wait(&self, node: &str, session: &SessionHandle) -> (Opening, bool) {
        let mut guard = self.known();
        let known = &mut *guard;
        let newest = known.tunnels.get(node).and_then(|tunnels| tunnels.last());
        if newest.is_some_and(|newest| newest.tunnel.cut().is_none()) {
            // Meanwhile it came.
            return (watch::channel(()).1, false);
        }
        known.asked.retain(|_, asked| asked.waiting.receiver_count() > 0 || asked.at.elapsed() < ASKED);
        let asked = known.asked.get(node).filter(|asked| asked.by.is(session) && asked.at.elapsed() < ASKED);
        if let Some(asked) = asked {
            return (asked.waiting.subscribe(), false);
        }
        // Who waits already goes on waiting.
        let waiting = known.asked.remove(node).map_or_else(|| watch::Sender::new(()), |asked| asked.waiting);
        let opening = waiting.subscribe();
        known.asked.insert(node.into(), Asked { waiting, by: session.clone(), at: Instant::now() });
        (opening, true)
    }

    /// To go on on another connection with the tunnel of this node that it names.
    pub(super) fn offer(&self, node: &str, theirs: Resume) -> Option<Offer<link::tunnel::Io>> {
        self.known().tunnels.get(node)?.iter().find_map(|registered| match &registered.tunnel.end {
            End::Own(edge) => edge.offer(theirs),
            End::Go(_) | End::Other(_) => None,
        })
    }

    /// From now on this is the tunnel of its node, and older ones are not resumed.
    pub(super) fn add(&self, tunnel: Tunnel, address: IpAddr) -> Registration {
        let mut guard = self.known();
        let known = &mut *guard;
        known.last += 1;
        let (number, node) = (known.last, tunnel.node.clone());
        let of_node = known.tunnels.entry(node.clone()).or_default();
        if of_node.len() >= MAX_OF_ONE_NODE {
            warn!(%node, "a node has too many stream tunnels, and the oldest is closed: does its link flap, or is its name used twice?");
            // It leaves the list when it has ended.
            let waiting = of_node.iter().find(|registered| !registered.replaced.is_cancelled());
            waiting.inspect(|oldest| oldest.replaced.cancel());
        }
        for older in &*of_node {
            if let End::Own(edge) = &older.tunnel.end {
                edge.is_replaced();
            }
        }
        let replaced = CancellationToken::new();
        of_node.push(Registered { number, address, tunnel, replaced: replaced.clone() });
        // Whoever waits for it.
        known.asked.remove(&node);
        known.addresses.entry(address).or_insert_with(|| node.clone());
        drop(guard);
        info!(%node, "a node opened its stream tunnel");
        Registration { tunnels: self.clone(), node, address, number, replaced }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut guard = self.tunnels.known();
        let known = &mut *guard;
        let Some(of_node) = known.tunnels.get_mut(&self.node) else { return };
        of_node.retain(|registered| registered.number != self.number);
        let claimed = of_node.iter().any(|registered| registered.address == self.address);
        let is_last = of_node.is_empty();
        if !claimed && known.addresses.get(&self.address) == Some(&self.node) {
            known.addresses.remove(&self.address);
        }
        if !is_last {
            return;
        }
        known.tunnels.remove(&self.node);
        drop(guard);
        info!(node = %self.node, "a node's stream tunnel ended");
    }
}

/// The status that a client is answered with.
impl TunnelError {
    /// HTTP status.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Offline(_) | Self::Unopened(_) | Self::Broken(..) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Silent { .. } => StatusCode::GATEWAY_TIMEOUT,
            Self::Unsupported(..) => StatusCode::NOT_IMPLEMENTED,
            Self::TooMany(_) => StatusCode::TOO_MANY_REQUESTS,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tunnel(node: &str) -> Tunnel {
        Tunnel::new(node, End::Go(GoEdge::unconnected()))
    }

    #[test]
    fn an_address_is_its_nodes_as_long_as_a_tunnel_says_so() {
        let tunnels = Tunnels::default();
        let (a, b): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let first = tunnels.add(tunnel("n1"), a);
        // It came back from elsewhere before the first was known to be dead.
        let second = tunnels.add(tunnel("n1"), b);
        drop(first);
        assert_eq!((tunnels.at_address("192.0.2.1"), tunnels.at_address("192.0.2.2")), (None, Some("n1".into())));
        // Nobody takes another's.
        let thief = tunnels.add(tunnel("n2"), b);
        assert_eq!(tunnels.at_address("192.0.2.2"), Some("n1".into()));
        drop(second);
        drop(thief);
        assert!(tunnels.known().addresses.is_empty() && tunnels.known().tunnels.is_empty());
    }

    #[test]
    fn a_flapping_node_loses_its_oldest_tunnels_and_gets_in() {
        let tunnels = Tunnels::default();
        let address = "192.0.2.1".parse().unwrap();
        let all: Vec<_> = (0..MAX_OF_ONE_NODE + 2).map(|_| tunnels.add(tunnel("n1"), address)).collect();
        let replaced: Vec<bool> = all.iter().map(|one| one.replaced.is_cancelled()).collect();
        assert_eq!(replaced, [true, true, false, false, false, false]);
    }
}
