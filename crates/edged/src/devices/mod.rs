//! Devices of plugins (Kubernetes, device plugins v1beta1): a plugin registers on a socket of the agent (`registry`), tells which
//! devices it has and how they are (`plugin`), and is asked what a container needs to use those that it gets (`allocate`).
//!
//! Who has what is in [`state`]; it outlives the agent in a checkpoint. A running pod keeps its devices also while their plugin is away.
//! Which devices a container gets is decided in `podlife::devices`.

mod allocate;
mod checkpoint;
mod plugin;
mod registry;
mod state;

/// Messages, clients and servers made from `proto/deviceplugin.proto`.
#[allow(missing_docs, clippy::all)]
pub mod proto {
    tonic::include_proto!("v1beta1");
}

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

pub use allocate::AllocateError;
pub use state::Grant;
use state::State;

/// The folder of the sockets, below the agent's root.
const FOLDER: &str = "device-plugins";

/// The devices of this node. Cloning is cheap.
#[derive(Clone)]
pub struct Devices {
    shared: Arc<Shared>,
}

struct Shared {
    dir: PathBuf,
    state: Mutex<State>,
    /// Changes with what the node has.
    changed: watch::Sender<()>,
    /// One pod after the other gets its devices, so that a plugin sees no two requests for the same ones.
    turn: tokio::sync::Mutex<()>,
}

/// What the node has of a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Supply {
    /// All devices.
    pub capacity: usize,
    /// Those that work.
    pub allocatable: usize,
}

impl Devices {
    /// The devices below this root folder of the agent, with what an earlier run has given to pods.
    pub fn new(root: &std::path::Path) -> Self {
        let dir = root.join(FOLDER);
        let state = checkpoint::read(&dir);
        let shared = Shared {
            dir,
            state: Mutex::new(state),
            changed: watch::Sender::new(()),
            turn: tokio::sync::Mutex::new(()),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Resolves when what the node has changes.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.shared.changed.subscribe()
    }

    /// What the node has, by resource.
    pub fn supply(&self) -> BTreeMap<String, Supply> {
        self.state().supply()
    }

    /// What pods may ask for: what works, and never less than what pods have already.
    pub fn admissible(&self) -> BTreeMap<String, i64> {
        let state = self.state();
        let amounts = state.supply().into_iter().map(|(resource, supply)| {
            let amount = supply.allocatable.max(state.in_use(&resource).len());
            (resource, i64::try_from(amount).unwrap_or(i64::MAX))
        });
        amounts.collect()
    }

    /// What a container was given; empty for one without devices.
    pub fn granted(&self, uid: &str, container: &str) -> Vec<Grant> {
        self.state().granted(uid, container)
    }

    /// A pod has ended: its devices are free.
    pub fn release(&self, uid: &str) {
        if self.state().release(uid) {
            self.save();
        }
    }

    /// Releases what pods have that nobody knows.
    pub fn retain(&self, is_known: impl Fn(&str) -> bool) {
        let unknown: Vec<String> = self.state().pods().into_iter().filter(|uid| !is_known(uid)).collect();
        unknown.iter().for_each(|uid| self.release(uid));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the checkpoint; the text of a failure.
    fn save(&self) -> Option<String> {
        let document = self.state().document();
        let failed = checkpoint::write(&self.shared.dir, &document).err()?;
        tracing::error!(error = %failed, "who has which devices could not be written; after a restart of the agent they would be given twice");
        Some(failed.to_string())
    }

    fn tell(&self) {
        self.shared.changed.send_replace(());
    }

    /// The resources that are known, for tests and logs.
    pub fn resources(&self) -> BTreeSet<String> {
        self.state().supply().into_keys().collect()
    }
}
