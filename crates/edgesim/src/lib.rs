//! A fleet of simulated nodes: each registers with a certificate of its own and speaks the real protocol over a real connection, with
//! the features of our own edge. What it gets is kept in memory; there is no runtime, no database and no pod behind it.
//!
//! [`Fleet::join`] registers the nodes, [`Fleet::start`] connects them; from then on each comes back by itself, as edgecore does. Devices that
//! are bound to them report when [`Fleet::measure_every`] says how often. `node` is one of the nodes, `devices` what it has of devices.

mod devices;
mod node;
mod objects;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use testkit::go_edge::register;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

pub use node::{Held, Node};

/// Nodes that register at the same time.
const JOINING: usize = 32;
/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(5);

/// Where the cloud is.
#[derive(Clone, Copy, Debug)]
pub struct Cloud {
    /// The message channel.
    pub websocket: SocketAddr,
    /// The certificate endpoint.
    pub https: SocketAddr,
}

/// How the nodes behave.
#[derive(Clone, Copy, Debug)]
pub struct Behaviour {
    /// Creates its Node object when it first connects.
    pub register: bool,
    /// Renews its lease this often.
    pub lease: Option<Duration>,
    /// Takes this long for each object.
    pub pause: Duration,
    /// Sends a heartbeat this often (`modules.edgeHub.heartbeat`).
    pub heartbeat: Duration,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self { register: true, lease: None, pause: Duration::ZERO, heartbeat: Duration::from_secs(15) }
    }
}

/// A node has stored something.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The node's place in the fleet.
    pub node: usize,
    /// The object's path.
    pub resource: String,
    /// Its version; 0 of an object that is gone.
    pub version: u64,
    /// When.
    pub at: Instant,
}

/// The nodes. Dropping it cuts all connections.
pub struct Fleet {
    nodes: Vec<Arc<Node>>,
    /// Where the nodes connect to; it may change.
    cloud: watch::Sender<String>,
    tasks: JoinSet<()>,
}

impl Fleet {
    /// Registers nodes of these names with a join token.
    ///
    /// # Errors
    /// One is refused.
    pub async fn join(cloud: Cloud, token: &str, names: impl IntoIterator<Item = String>) -> Result<Self> {
        let mut joining = JoinSet::new();
        let mut joined = Vec::new();
        for (place, name) in names.into_iter().enumerate() {
            if joining.len() >= JOINING
                && let Some(node) = joining.join_next().await
            {
                joined.push(node??);
            }
            let token = token.to_owned();
            joining.spawn(async move {
                let credentials = register(cloud.https, &token, &name).await?;
                Node::registered(place, name, &credentials)
            });
        }
        while let Some(node) = joining.join_next().await {
            joined.push(node??);
        }
        Ok(Self::of(cloud, joined))
    }

    fn of(cloud: Cloud, mut nodes: Vec<Node>) -> Self {
        nodes.sort_by_key(Node::place);
        let nodes = nodes.into_iter().map(Arc::new).collect();
        Self { nodes, cloud: watch::Sender::new(cloud.websocket.to_string()), tasks: JoinSet::new() }
    }

    /// Connects them all; each stays connected or comes back. What they store is told to `stored`, if somebody wants to know.
    pub fn start(&mut self, behaviour: Behaviour, stored: Option<mpsc::Sender<Stored>>) {
        for node in &self.nodes {
            self.tasks.spawn(node.clone().run(self.cloud.subscribe(), link::ws::connect, behaviour, stored.clone()));
        }
    }

    /// Cuts all connections; what the nodes have stays.
    pub async fn stop(&mut self) {
        self.tasks.shutdown().await;
        self.nodes.iter().for_each(|node| node.cut());
    }

    /// A node loses its database.
    pub fn empty(&self, place: usize) {
        self.nodes.get(place).into_iter().for_each(|node| node.empty());
    }

    /// From the next connection on they go there.
    pub fn lead_to(&self, websocket: SocketAddr) {
        self.cloud.send_replace(websocket.to_string());
    }

    /// How many nodes there are.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// How many are connected and have everything that they lacked.
    pub fn synced(&self) -> usize {
        self.nodes.iter().filter(|node| node.is_synced()).count()
    }

    /// How many are connected.
    pub fn connected(&self) -> usize {
        self.nodes.iter().filter(|node| node.is_connected()).count()
    }

    /// How many connections all of them have had.
    pub fn connections(&self) -> usize {
        self.nodes.iter().map(|node| node.connections()).sum()
    }

    /// What a node has.
    pub fn held(&self, place: usize) -> Vec<Held> {
        self.nodes.get(place).map(|node| node.held()).unwrap_or_default()
    }

    /// From now on each device that a node has measures a new value of its first property that often, and the node reports it; or none does.
    /// Values count from 0.
    pub fn measure_every(&self, period: Option<Duration>) {
        self.nodes.iter().for_each(|node| node.measure_every(period));
    }

    /// When each device measured its values, by `NAMESPACE/NAME`.
    pub fn measured(&self) -> HashMap<String, Vec<Instant>> {
        let mut all = HashMap::new();
        for node in &self.nodes {
            all.extend(node.devices().measured().map(|(name, measured)| (name.to_owned(), measured.to_vec())));
        }
        all
    }

    /// How many devices the nodes have.
    pub fn devices(&self) -> usize {
        self.nodes.iter().map(|node| node.devices().len()).sum()
    }

    /// Of how many devices the cloud has not confirmed the latest value.
    pub fn untold(&self) -> usize {
        self.nodes.iter().map(|node| node.devices().untold()).sum()
    }

    /// Waits until so many nodes are connected and have everything; how long it took.
    ///
    /// # Errors
    /// It takes longer than the limit.
    pub async fn until_synced(&self, count: usize, limit: Duration) -> Result<Duration> {
        let began = Instant::now();
        while self.synced() < count {
            if began.elapsed() > limit {
                bail!(
                    "{} of {count} nodes are connected and have everything after {} s",
                    self.synced(),
                    limit.as_secs()
                );
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(began.elapsed())
    }
}
