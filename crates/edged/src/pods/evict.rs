//! Ending a pod for the sake of the node, and waiting until its containers have stopped: eviction, preemption, shutdown.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Pod;
use podlife::{
    grace,
    stage::{End, Stage},
    status::EndVerdict,
};
use tokio::{
    sync::{oneshot, watch},
    time::timeout,
};

use super::{Desk, News, mailbox::Mailbox};
use crate::events::{EventType, Recorder};

/// Least time that a killer waits.
const MIN_WAIT: Duration = Duration::from_secs(10);

/// A pod that was not seen to stop.
#[derive(Debug, thiserror::Error)]
pub enum EvictError {
    /// No pod of this UID is here.
    #[error("no pod of this UID is on the node")]
    Unknown,
    /// Its containers still run; the kill goes on.
    #[error("timeout waiting to kill pod")]
    ExceededGracePeriod,
}

/// A wish to end a pod, on its way to the desk.
#[derive(Debug)]
pub struct Eviction {
    pub(super) uid: String,
    pub(super) verdict: EndVerdict,
    pub(super) grace: Option<i64>,
    pub(super) begun: oneshot::Sender<Dying>,
}

/// A pod that is being ended.
#[derive(Debug)]
pub(super) struct Dying {
    pod: Arc<Pod>,
    stage: watch::Receiver<Stage>,
    limit: Duration,
}

impl Eviction {
    /// Passes the wish on and tells who asked.
    pub(super) fn begin(self, pod: &Arc<Pod>, mailbox: &Mailbox) {
        let dying = Dying::begin(pod, mailbox, self.verdict, self.grace);
        // Who asked may have gone.
        let _ = self.begun.send(dying);
    }
}

impl Dying {
    /// Ends the pod of this mailbox.
    pub fn begin(pod: &Arc<Pod>, mailbox: &Mailbox, verdict: EndVerdict, grace: Option<i64>) -> Self {
        let seconds = grace::pod_grace(pod, grace, None);
        let limit = Duration::from_secs(u64::try_from(seconds).unwrap_or(0)).mul_f64(1.5).max(MIN_WAIT);
        mailbox.end(End::Killed { verdict, grace });
        Self { pod: Arc::clone(pod), stage: mailbox.stage(), limit }
    }

    /// Waits until no container of it runs, for half as long again as its grace period and at least ten seconds.
    pub async fn stopped(mut self, recorder: &Recorder) -> Result<(), EvictError> {
        // A worker that is gone has stopped everything.
        let stopped = self.stage.wait_for(|stage| *stage > Stage::Terminating);
        timeout(self.limit, stopped).await.map(drop).map_err(|_| {
            let text = "Container runtime did not kill the pod within specified grace period.";
            recorder.pod(&self.pod, EventType::Warning, "ExceededGracePeriod", text);
            EvictError::ExceededGracePeriod
        })
    }
}

impl Desk {
    /// Ends a pod with this verdict and grace in seconds (the spec's when `None`; it never gets longer) and waits until no
    /// container of it runs: at most half as long again as the grace period, at least ten seconds. The pod becomes Failed.
    ///
    /// # Errors
    /// The pod is not here, or did not stop in time: then the pod has the event `ExceededGracePeriod` and the kill goes on.
    pub async fn evict(&self, uid: &str, verdict: EndVerdict, grace: Option<i64>) -> Result<(), EvictError> {
        let (begun, dying) = oneshot::channel();
        self.tell(News::Evict(Eviction { uid: uid.to_owned(), verdict, grace, begun })).await;
        let dying = dying.await.map_err(|_| EvictError::Unknown)?;
        dying.stopped(&self.recorder).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_evicts_waits_for_the_containers_and_no_longer_than_that() {
        for (grace, stops, limit) in
            [(Some(1), true, 0), (Some(1), false, 10), (Some(20), false, 30), (None, false, 45)]
        {
            let mailbox = Mailbox::default();
            let verdict = EndVerdict::disruption("Evicted", "low on memory", "low on memory");
            let dying = Dying::begin(&Arc::new(Pod::default()), &mailbox, verdict.clone(), grace);
            assert!(mailbox.take().0.ends.contains(&End::Killed { verdict, grace }));
            if stops {
                mailbox.set_stage(Stage::Terminated);
            }
            let began = tokio::time::Instant::now();
            assert_eq!(dying.stopped(&Recorder::silent("n1")).await.is_ok(), stops, "{grace:?}");
            assert_eq!(began.elapsed().as_secs(), limit, "{grace:?}");
        }
    }
}
