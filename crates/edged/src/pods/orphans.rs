//! Pods and left-overs that nobody wants: found by a search of the runtime and of the disk, ended by workers of their own.

use std::{sync::Arc, time::Duration};

use podlife::observed::{ObservedPod, PodIdentity};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    desk::{DeskTask, Entry, Slow},
    mailbox::Mailbox,
    worker::PodWorker,
};
use crate::runtime::RuntimeError;

/// How often the runtime is searched for pods that nobody wants.
const ORPHAN_SCAN: Duration = Duration::from_secs(120);
/// Pause between an unknown pod's event and the search: its message may be on the way.
pub(super) const ORPHAN_DELAY: Duration = Duration::from_secs(5);

impl DeskTask {
    /// Searches soon; not before the stored pods and the manifests of this node are known.
    pub(super) fn scan_soon(&mut self, delay: Duration) {
        if self.listed && self.statics_listed {
            let at = Instant::now() + delay;
            self.scan_at = Some(self.scan_at.map_or(at, |scan| scan.min(at)));
        }
    }

    pub(super) fn ask_observed(&mut self) {
        self.scan_at = None;
        let runtime = Arc::clone(&self.tools.runtime);
        self.slow.spawn(async move { Slow::Observed(runtime.list_pods().await) });
    }

    /// Ends pods that the runtime has and nobody wants.
    pub(super) fn end_orphans(&mut self, list: Result<Vec<ObservedPod>, RuntimeError>, stopping: &CancellationToken) {
        self.scan_at = Some(Instant::now() + ORPHAN_SCAN);
        let mut unwanted = match list {
            Ok(observed) => observed,
            Err(error) => {
                tracing::warn!(error = %error, "the runtime's pods cannot be listed");
                self.scan_at = Some(Instant::now() + ORPHAN_DELAY);
                return;
            }
        };
        // What an agent killed in the middle of a clean-up left on disk has no container any more.
        unwanted.extend(
            self.tools
                .runtime
                .pods_on_disk()
                .into_iter()
                .map(|uid| ObservedPod::absent(PodIdentity { namespace: String::new(), name: String::new(), uid })),
        );
        self.tools.runtime.remove_dangling_links();
        for orphan in &unwanted {
            let identity = orphan.identity.clone();
            if self.pods.contains_key(&identity.uid) || self.is_waiting(&identity.uid) {
                continue;
            }
            tracing::info!(
                pod = identity.name,
                namespace = identity.namespace,
                uid = identity.uid,
                "ending a pod that nobody wants"
            );
            let mailbox = Arc::new(Mailbox::default());
            let worker = PodWorker::orphan(orphan, Arc::clone(&mailbox), self.reporter.clone(), self.tools.clone());
            let pod = Arc::clone(&worker.pod);
            let entry = Entry { identity, pod, mailbox, removed: true, successor: None, refused: false, ended: false };
            self.spawn(entry, worker, stopping);
        }
        let pods = &self.pods;
        let is_known = |uid: &str| pods.contains_key(uid) || self.is_waiting(uid);
        self.tools.runtime.remove_orphan_cgroups(is_known);
        self.tools.runtime.devices().retain(is_known);
    }
}
