//! The tunnels of nodes: who has one, and what can be asked through it.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use jiff::Timestamp;
use link::http_server::Body;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::go_edge::GoEdge;
use super::own_edge::OwnEdge;

/// Nodes without a tunnel of which it is remembered since when; of the others it is not known.
const MAX_GONE: usize = 100_000;
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
    /// It has no tunnel.
    #[error("{0}")]
    Offline(Offline),
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

/// A node without a tunnel.
#[derive(Debug, PartialEq, Eq)]
pub struct Offline {
    /// The node.
    pub node: String,
    /// Since when; `None` when it had none since cloudcore started.
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
        f.write_str(": is edgecore running, its link up, port 10004 of cloudcore reachable from it, and modules.edgeStream enabled?")
    }
}

/// A node's tunnel. Cloning is cheap.
#[derive(Clone)]
pub struct Tunnel {
    pub(super) node: Arc<str>,
    pub(super) end: End,
}

/// Who is at the other end.
#[derive(Clone)]
pub(super) enum End {
    Own(OwnEdge),
    Go(GoEdge),
}

impl Tunnel {
    /// Asks the node. A request with `Upgrade` becomes a stream when the node grants it.
    ///
    /// # Errors
    /// The tunnel broke, or the node does not answer in time.
    pub async fn ask(&self, request: Request<Full<Bytes>>) -> Result<Answer, TunnelError> {
        let upgrades = request.headers().contains_key(header::UPGRADE);
        match &self.end {
            End::Own(edge) if upgrades => edge.upgrade(&self.node, request).await,
            End::Own(edge) => edge.ask(&self.node, request).await.map(Answer::Plain),
            End::Go(edge) if upgrades => edge.upgrade(&self.node, request).await,
            End::Go(edge) => edge.ask(&self.node, request).await.map(Answer::Plain),
        }
    }
}

/// All tunnels. Cloning is cheap.
#[derive(Clone)]
pub struct Tunnels(Arc<Shared>);

struct Shared {
    started: Timestamp,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// By node, the newest last.
    tunnels: HashMap<Arc<str>, Vec<Registered>>,
    /// Which node has said that this is its address; who came first has it as long as he is there.
    addresses: HashMap<IpAddr, Arc<str>>,
    gone: HashMap<Arc<str>, Timestamp>,
    last: u64,
}

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
        Self(Arc::new(Shared { started: Timestamp::now(), known: Mutex::default() }))
    }
}

impl Tunnels {
    /// The newest tunnel of this node.
    ///
    /// # Errors
    /// It has none.
    pub fn find(&self, node: &str) -> Result<Tunnel, TunnelError> {
        let known = self.known();
        if let Some(newest) = known.tunnels.get(node).and_then(|tunnels| tunnels.last()) {
            return Ok(newest.tunnel.clone());
        }
        let since = known.gone.get(node).copied();
        Err(TunnelError::Offline(Offline { node: node.to_owned(), since, started: self.0.started }))
    }

    /// The node that said that this is its address.
    pub fn at_address(&self, address: &str) -> Option<String> {
        self.known().addresses.get(&address.parse().ok()?).map(|node| node.to_string())
    }

    /// Nodes with a tunnel.
    pub fn count(&self) -> usize {
        self.known().tunnels.len()
    }

    /// Names of the nodes with a tunnel.
    pub fn nodes(&self) -> Vec<String> {
        self.known().tunnels.keys().map(ToString::to_string).collect()
    }

    /// From now on this is the tunnel of its node.
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
        let replaced = CancellationToken::new();
        of_node.push(Registered { number, address, tunnel, replaced: replaced.clone() });
        known.gone.remove(&node);
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
        let is_gone = of_node.is_empty();
        if !claimed && known.addresses.get(&self.address) == Some(&self.node) {
            known.addresses.remove(&self.address);
        }
        if !is_gone {
            return;
        }
        known.tunnels.remove(&self.node);
        if known.gone.len() >= MAX_GONE
            && let Some(any) = known.gone.keys().next().cloned()
        {
            known.gone.remove(&any);
        }
        known.gone.insert(self.node.clone(), Timestamp::now());
        drop(guard);
        info!(node = %self.node, "a node's stream tunnel ended");
    }
}

/// The status that a client is answered with.
impl TunnelError {
    /// HTTP status.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Offline(_) | Self::Broken(..) => StatusCode::SERVICE_UNAVAILABLE,
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
        Tunnel { node: node.into(), end: End::Go(GoEdge::unconnected()) }
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
