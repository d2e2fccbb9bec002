//! What the rest of the program may ask of the node agent: logs, streams into containers, pods, health.
//!
//! Functions and streams, no HTTP: the API ([`crate::api`]) is a thin layer above, and other modules call them in process.
//! `logs` and `streams` have the parts; every answer that says no is an [`AccessError`] with the kubelet's words.

mod container;
mod logs;
mod streams;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use crate::logs::read::{LogOptions, LogStream};
pub use streams::{ExecOptions, Session, Upgraded};

use crate::logs::watch::LogWatch;
use crate::pods::{Desk, PodRecord, ProbeCounters};
use crate::runtime::{Runtime, RuntimeError, RuntimeEvent};
use crate::settings::Settings;
use crate::stats::Stats;

/// Streams at once: follows, execs, attaches and port-forwards. Each has a connection and some buffers.
const MAX_STREAMS: usize = 512;
/// Changes of containers that a slow follower may be behind; beyond it, it looks for itself.
const EVENT_QUEUE: usize = 64;
/// The main loop may take this long before it counts as stuck (the kubelet's limit).
const ROUND_LIMIT: Duration = Duration::from_secs(300);
/// How long a healthy main loop may take to answer.
const ROUND_ANSWER: Duration = Duration::from_secs(2);

/// Why something is not given.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// There is no such pod or container.
    #[error("{0}")]
    NotFound(String),
    /// Not in this state, or not like this.
    #[error("{0}")]
    Refused(String),
    /// Options that contradict each other or are out of their range.
    #[error("{0}")]
    Invalid(String),
    /// Too much at once.
    #[error("too many open streams on this node ({MAX_STREAMS}): close some, or try again later")]
    TooMany,
    /// The runtime failed.
    #[error("{0}")]
    Runtime(#[from] RuntimeError),
    /// A log cannot be read.
    #[error("the log {path} cannot be read: {source}")]
    Log {
        /// The file.
        path: String,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// The runtime's streaming server cannot be reached, or said no.
    #[error("the container runtime's streaming server: {0}")]
    Streaming(String),
}

/// A container by its names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerName {
    /// Namespace of the pod.
    pub namespace: String,
    /// The pod.
    pub pod: String,
    /// UID of the pod, when that very one is meant.
    pub uid: Option<String>,
    /// The container.
    pub container: String,
}

/// Handle to what the agent can be asked for.
pub struct Access {
    pub(crate) settings: Arc<Settings>,
    pub(crate) runtime: Arc<Runtime>,
    desk: Desk,
    stats: Stats,
    pub(crate) probe_counters: Arc<ProbeCounters>,
    log_watch: Arc<LogWatch>,
    /// UIDs of pods in which something changed; empty when it may be any.
    changes: broadcast::Sender<Arc<str>>,
    streams: Arc<Semaphore>,
    stopping: CancellationToken,
}

impl Access {
    /// Access to this agent; must be made within the async runtime.
    pub fn new(
        (settings, runtime, desk, probe_counters): (Arc<Settings>, Arc<Runtime>, Desk, Arc<ProbeCounters>),
        stopping: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            stats: Stats::new(Arc::clone(&settings), Arc::clone(&runtime)),
            settings,
            runtime,
            desk,
            probe_counters,
            log_watch: LogWatch::new(),
            changes: broadcast::Sender::new(EVENT_QUEUE),
            streams: Arc::new(Semaphore::new(MAX_STREAMS)),
            stopping,
        })
    }

    /// Hands on what the kernel tells about logs, until the agent stops.
    pub async fn run(self: Arc<Self>) {
        Arc::clone(&self.log_watch).run(self.stopping.clone()).await;
    }

    /// Tells followers what has changed in the runtime.
    pub fn runtime_changed(&self, event: &RuntimeEvent) {
        let uid = match event {
            RuntimeEvent::Pod { uid } => uid.as_str(),
            RuntimeEvent::Resync => "",
        };
        // Nobody may be following.
        let _ = self.changes.send(uid.into());
    }

    /// All configured pods with their newest status.
    pub async fn pods(&self) -> Vec<PodRecord> {
        self.desk.pods(None).await
    }

    /// What node and pods use.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Streams that are open.
    pub fn open_streams(&self) -> usize {
        MAX_STREAMS - self.streams.available_permits()
    }

    /// Whether the main loop comes round.
    pub async fn main_loop_is_alive(&self) -> bool {
        let nobody = Some(("", ""));
        tokio::time::timeout(ROUND_ANSWER, self.desk.pods(nobody)).await.is_ok()
            || self.desk.came_round() + ROUND_LIMIT > Instant::now()
    }

    /// The agent stops.
    pub(crate) fn stopping(&self) -> &CancellationToken {
        &self.stopping
    }

    async fn pod(&self, namespace: &str, name: &str, uid: Option<&str>) -> Result<PodRecord, AccessError> {
        let pods = self.desk.pods(Some((namespace, name))).await;
        let pod = pods.into_iter().find(|pod| uid.is_none_or(|uid| uid == pod.identity.uid));
        pod.ok_or_else(|| AccessError::NotFound(format!("pod {name:?} does not exist")))
    }

    /// A place for one more stream.
    fn place(&self) -> Result<OwnedSemaphorePermit, AccessError> {
        Arc::clone(&self.streams).try_acquire_owned().map_err(|_| AccessError::TooMany)
    }
}

/// Whether a pod has a container of this name, of whatever kind.
fn has_container(pod: &Pod, name: &str) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(|container| &container.name);
    let others = spec.containers.iter().chain(spec.init_containers.iter().flatten()).map(|container| &container.name);
    ephemeral.chain(others).any(|other| other == name)
}
