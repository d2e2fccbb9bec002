//! Evicts pods before the node itself breaks: when memory, disk or process ids run short, or when a pod has outgrown its own
//! limits of disk.
//!
//! [`Evictor::run`] is the one task. A round reads a few files of the kernel; only when something is short, or when a pod has
//! limits of disk, more is looked at. The decisions are those of [`podlife::eviction`]; `local` has the limits of single pods, `usage` what is
//! compared when pods are ranked. Read [`Evictor::round`] first.

mod local;
mod observe;
mod usage;

use std::sync::Arc;
use std::time::{Duration, Instant};

use podlife::eviction::{Pressure, Shortage, Watch, message, rank};
use podlife::status::EndVerdict;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::events::{EventType, Recorder};
use crate::images::ImageCollector;
use crate::pods::{Desk, PodRecord};
use crate::runtime::Runtime;
use crate::settings::Settings;
use crate::stats::{Detail, Stats};

/// Between two rounds (Kubernetes).
const PERIOD: Duration = Duration::from_secs(10);
/// Grace in seconds where there is no time.
const IMMEDIATE_GRACE: i64 = 1;
/// How long a round waits for what an evicted pod leaves to go, and how often it looks.
const CLEAN_UP_WAIT: Duration = Duration::from_secs(30);
const CLEAN_UP_POLL: Duration = Duration::from_secs(1);

/// What eviction works with.
pub struct EvictorTools {
    /// Settings.
    pub settings: Arc<Settings>,
    /// Usage.
    pub stats: Stats,
    /// All pods.
    pub desk: Desk,
    /// The runtime.
    pub runtime: Arc<Runtime>,
    /// Images that nobody uses.
    pub images: Arc<ImageCollector>,
    /// Events.
    pub recorder: Recorder,
    /// Conditions of the node, for its status and for admission.
    pub pressure: watch::Sender<Pressure>,
}

/// Evicts.
pub struct Evictor {
    tools: EvictorTools,
    watch: Watch,
    local: local::LocalLimits,
}

impl Evictor {
    /// An evictor for the thresholds of the settings.
    pub fn new(tools: EvictorTools) -> Self {
        let settings = &tools.settings.eviction;
        let watch = Watch::new(settings.thresholds.clone(), settings.pressure_transition);
        Self { tools, watch, local: local::LocalLimits::default() }
    }

    /// Works until cancelled.
    pub async fn run(mut self, stop: CancellationToken) {
        let work = async {
            loop {
                if let Some(evicted) = self.round().await {
                    self.wait_for_clean_up(&evicted).await;
                }
                tokio::time::sleep(PERIOD).await;
            }
        };
        tokio::select! {
            () = work => {}
            () = stop.cancelled() => {}
        }
    }

    /// Looks once; evicts one pod at most, or all that have outgrown their own limits. Returns the UIDs of those.
    async fn round(&mut self) -> Option<Vec<String>> {
        let observations = self.observe().await;
        let shortages = self.watch.observe(&observations, Instant::now());
        self.publish();
        let outgrown = self.evict_outgrown().await;
        if !outgrown.is_empty() {
            return Some(outgrown);
        }
        let shortage = shortages.into_iter().next()?;
        tracing::warn!(
            signal = shortage.signal.as_str(),
            available = shortage.available,
            threshold = shortage.threshold,
            "eviction threshold met"
        );
        let text = message::reclaiming(shortage.resource());
        self.tools.recorder.node(EventType::Warning, "EvictionThresholdMet", text);
        if self.reclaim(&shortage).await {
            tracing::info!(signal = shortage.signal.as_str(), "enough was freed without evicting a pod");
            return None;
        }
        self.evict_for(&shortage).await.map(|uid| vec![uid])
    }

    fn publish(&self) {
        let pressure = self.watch.pressure(Instant::now());
        self.tools.pressure.send_if_modified(|old| {
            // Whether the node shuts down is told by others.
            let new = Pressure { shutting_down: old.shutting_down, ..pressure };
            std::mem::replace(old, new) != new
        });
    }

    /// Evicts the first in the ranking that can be evicted.
    async fn evict_for(&self, shortage: &Shortage) -> Option<String> {
        let pods = self.active_pods().await;
        if pods.is_empty() {
            return None;
        }
        let detail = if shortage.resource() == podlife::eviction::Resource::Memory {
            Detail::CpuAndMemory
        } else {
            Detail::Everything
        };
        let summary = self.tools.stats.summary(detail).await;
        let summary = summary.inspect_err(|error| {
            tracing::warn!(error = error as &dyn std::error::Error, "usage of pods cannot be read; ranking without it");
        });
        let usages = usage::Usages::new(summary.ok(), shortage.signal, self.has_image_fs().await);
        let mut candidates: Vec<rank::Candidate> = pods.iter().map(|pod| usages.candidate(&pod.pod)).collect();
        rank::rank(shortage.resource(), &mut candidates);
        for candidate in candidates {
            let Some(record) = pods.iter().find(|pod| pod.identity.uid == candidate.uid) else { continue };
            if rank::is_critical(&record.pod) {
                continue;
            }
            let text = message::low_on_resource(shortage, &usages.consumers(&record.pod));
            let grace = if shortage.hard { IMMEDIATE_GRACE } else { self.tools.settings.eviction.max_pod_grace };
            let verdict = EndVerdict::disruption(message::REASON, text.clone(), text);
            if self.evict(record, verdict, grace).await {
                return Some(candidate.uid);
            }
        }
        tracing::error!(signal = shortage.signal.as_str(), "nothing is left that could be evicted");
        None
    }

    /// Pods that have not ended.
    async fn active_pods(&self) -> Vec<PodRecord> {
        let ended = |pod: &PodRecord| {
            podlife::spec::is_terminal_phase(pod.status.phase.as_deref()) || podlife::spec::is_deleted(&pod.pod)
        };
        let mut pods = self.tools.desk.pods(None).await;
        pods.retain(|pod| !ended(pod));
        pods
    }

    async fn evict(&self, record: &PodRecord, verdict: EndVerdict, grace: i64) -> bool {
        let identity = &record.identity;
        tracing::warn!(
            pod = identity.name,
            namespace = identity.namespace,
            uid = identity.uid,
            message = verdict.message,
            "evicting pod"
        );
        self.tools.recorder.pod(&record.pod, EventType::Warning, message::REASON, verdict.message.clone());
        match self.tools.desk.evict(&identity.uid, verdict, Some(grace)).await {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(pod = identity.name, %error, "eviction has not succeeded yet");
                // It goes on by itself; no other pod has to go for that.
                matches!(error, crate::pods::EvictError::ExceededGracePeriod)
            }
        }
    }

    async fn evict_outgrown(&mut self) -> Vec<String> {
        let pods = self.active_pods().await;
        let mut evicted = Vec::new();
        for (record, text) in self.local.outgrown(&self.tools.stats, pods).await {
            let verdict = EndVerdict::new(message::REASON, text);
            if self.evict(&record, verdict, IMMEDIATE_GRACE).await {
                evicted.push(record.identity.uid);
            }
        }
        evicted
    }

    /// Waits, but not for long, until the volumes of evicted pods are gone from the disk.
    async fn wait_for_clean_up(&self, uids: &[String]) {
        let deadline = Instant::now() + CLEAN_UP_WAIT;
        let is_clean = |uid: &String| {
            let volumes = self.tools.runtime.paths().pod(uid).join("volumes");
            std::fs::read_dir(volumes).map_or(true, |mut entries| entries.next().is_none())
        };
        while Instant::now() < deadline && !uids.iter().all(is_clean) {
            tokio::time::sleep(CLEAN_UP_POLL).await;
        }
    }
}
