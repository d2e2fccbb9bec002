//! Graceful shutdown of the node: pods end in order before the machine goes down.
//!
//! [`Shutdown::run`] is the one task. systemd-logind ([`logind`]) tells of a shutdown and waits; which pods end when is decided
//! by [`podlife::shutdown`].

mod logind;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use podlife::eviction::Pressure;
use podlife::{shutdown, spec};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::events::{EventType, Recorder};
use crate::pods::{Desk, EvictError, PodRecord};
use crate::runtime::Runtime;
use crate::settings::ShutdownSettings;
pub use logind::Places;
use logind::{Inhibitor, Logind, LogindError};

/// Between attempts to reach logind.
const RETRY: Duration = Duration::from_secs(5);
/// Between looks at what ended pods leave.
const POLL: Duration = Duration::from_millis(200);

/// Ends the pods of a node that shuts down.
pub struct Shutdown {
    /// Which pods end when.
    pub settings: ShutdownSettings,
    /// All pods.
    pub desk: Desk,
    /// The runtime.
    pub runtime: Arc<Runtime>,
    /// Events.
    pub recorder: Recorder,
    /// Trouble of the node: its shutdown keeps new pods out and makes it NotReady.
    pub pressure: watch::Sender<Pressure>,
}

impl Shutdown {
    /// Waits for shutdowns until cancelled. Without logind it tells so once and tries again.
    pub async fn run(self, stop: CancellationToken) {
        let work = async {
            let mut told = false;
            loop {
                match self.follow().await {
                    Ok(()) => told = false,
                    Err(error) if !told => {
                        told = true;
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(error, "pods will not be ended in order when the machine shuts down");
                    }
                    Err(error) => tracing::debug!(error = &error as &dyn std::error::Error, "still no logind"),
                }
                tokio::time::sleep(RETRY).await;
            }
        };
        tokio::select! {
            () = work => {}
            () = stop.cancelled() => {}
        }
    }

    /// One connection to logind, until it breaks.
    async fn follow(&self) -> Result<(), LogindError> {
        let mut logind = Logind::connect(&self.settings.places, shutdown::total(&self.settings.groups)).await?;
        let mut inhibitor: Option<Inhibitor> = Some(logind.inhibit().await?);
        tracing::info!("a shutdown of the machine will wait for its pods");
        while let Some(begins) = logind.next().await {
            if begins {
                tracing::warn!("the machine shuts down; ending its pods");
                self.recorder.node(EventType::Normal, "Shutdown", "Shutdown manager detected shutdown event");
                self.set_shutting_down(true);
                self.end_pods().await;
                // logind goes on.
                inhibitor = None;
            } else {
                tracing::info!("the shutdown of the machine was called off");
                let text = "Shutdown manager detected shutdown cancellation";
                self.recorder.node(EventType::Normal, "Shutdown", text);
                self.set_shutting_down(false);
                if inhibitor.is_none() {
                    inhibitor = Some(logind.inhibit().await?);
                }
            }
        }
        Ok(())
    }

    fn set_shutting_down(&self, now: bool) {
        self.pressure.send_if_modified(|pressure| std::mem::replace(&mut pressure.shutting_down, now) != now);
    }

    /// Group by group: the next one when all of a group are gone, or when its time is over.
    async fn end_pods(&self) {
        let groups = &self.settings.groups;
        for (place, group) in groups.iter().enumerate() {
            let mut pods = self.desk.pods(None).await;
            pods.retain(|record| {
                !spec::is_terminal_phase(record.status.phase.as_deref())
                    && shutdown::group_of(groups, &record.pod) == place
            });
            if pods.is_empty() {
                continue;
            }
            tracing::info!(priority = group.priority, pods = pods.len(), "ending a group of pods");
            let ends = pods.iter().map(|record| self.end(record, shutdown::pod_grace(*group, &record.pod)));
            if timeout_at(Instant::now() + group.period, join_all(ends)).await.is_err() {
                tracing::warn!(priority = group.priority, "not all pods ended in the time of their group");
            }
        }
    }

    /// Ends one pod and waits until its volumes are gone too.
    async fn end(&self, record: &PodRecord, grace: i64) {
        let uid = &record.identity.uid;
        match self.desk.evict(uid, shutdown::verdict(), Some(grace)).await {
            Ok(()) => {}
            Err(EvictError::Unknown) => return,
            Err(error) => tracing::warn!(pod = record.identity.name, %error, "pod does not end"),
        }
        let volumes = self.runtime.paths().pod(uid).join("volumes");
        while std::fs::read_dir(&volumes).is_ok_and(|mut entries| entries.next().is_some()) {
            tokio::time::sleep(POLL).await;
        }
    }
}
