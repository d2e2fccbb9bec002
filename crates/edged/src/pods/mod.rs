//! The pod side: one owner task per pod, and the desk that hands mail to them.
//!
//! `desk` reads messages of MetaManager and events of the runtime and passes each to the worker of the pod (`worker`),
//! through a `mailbox` that keeps only the newest. A worker walks through the stages of `podlife`: `sync` starts and
//! restarts, `teardown` stops and releases. Statuses go to the `reporter`, which knows what the API has acknowledged,
//! keeps trying while the cloud is away, and asks for the deletion of pods that have ended. Read `worker` first.

mod admit;
mod desk;
mod evict;
mod field_path;
mod hooks;
mod mailbox;
mod orphans;
mod probes;
mod reporter;
mod resize;
mod source;
mod stop;
mod sync;
mod teardown;
mod worker;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

pub use desk::{Desk, DeskTask, News, PodRecord, desk};
pub use evict::EvictError;
pub use probes::{ProbeCount, ProbeCounters, ProbeLabels};
pub(crate) use reporter::{MirrorOf, Reporter};
pub(crate) use source::read_pod;
pub use source::{PodChange, PodVersion, SourceError, read_change};

use podlife::admission::Pressure;
use tokio::sync::watch;

use crate::{events::Recorder, meta::MetaClient, runtime::Runtime, settings::Settings};

/// What every worker needs.
#[derive(Clone)]
pub struct Tools {
    /// Settings of the agent.
    pub settings: Arc<Settings>,
    /// The container runtime.
    pub runtime: Arc<Runtime>,
    /// Events.
    pub recorder: Recorder,
    /// The API.
    pub meta: MetaClient,
    /// Trouble of the node, which keeps new pods out.
    pub pressure: watch::Receiver<Pressure>,
    /// Workers that are starting or stopping something.
    pub busy: Busy,
    /// How often probes ended how.
    pub probe_counters: Arc<ProbeCounters>,
}

/// Counts workers at work; the runtime is watched more closely while there are any.
#[derive(Clone, Debug, Default)]
pub struct Busy(Arc<AtomicUsize>);

impl Busy {
    fn change(&self, runtime: &Runtime, busy: bool) {
        let count =
            if busy { self.0.fetch_add(1, Relaxed) + 1 } else { self.0.fetch_sub(1, Relaxed).saturating_sub(1) };
        runtime.set_busy(count > 0);
    }
}
