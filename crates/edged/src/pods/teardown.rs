//! The end of a pod: stop its containers, release what it holds, wait for the API to forget it.

use podlife::{observed::ObservedPod, status::Ending};
use tokio_util::sync::CancellationToken;

use super::{
    reporter::Report,
    worker::{Next, PodWorker},
};
use crate::runtime::RuntimeError;

/// Reason of a pod that was ended because the node ran short of something.
const EVICTED: &str = "Evicted";

impl PodWorker {
    /// Stops all containers, then all sandboxes; left only when a fresh look shows nothing alive.
    pub(super) async fn terminate(&mut self, cancel: &CancellationToken) -> Result<Next, RuntimeError> {
        self.prober.keep_readiness();
        let observed = self.tools.runtime.observe(&self.identity).await?;
        self.supervise_probes(&observed);
        self.report(&observed, Ending::No).await;
        let stopped = tokio::select! {
            // A shorter grace period: ask again with it.
            () = cancel.cancelled() => return Ok(Next::Now),
            stopped = self.stop_containers(&observed) => stopped,
        };
        stopped?;
        for sandbox in &observed.sandboxes {
            self.tools.runtime.stop_sandbox(&sandbox.id).await?;
        }
        let observed = self.tools.runtime.observe(&self.identity).await?;
        if observed.has_live_containers() || observed.sandboxes.iter().any(|s| s.ready) {
            return Ok(Next::network());
        }
        self.prober.stop();
        self.report(&observed, Ending::Stopped).await;
        self.life.containers_stopped();
        Ok(Next::Now)
    }

    /// Reports the final status and releases the pod's resources.
    pub(super) async fn release(&mut self) -> Result<Next, RuntimeError> {
        let observed = self.tools.runtime.observe(&self.identity).await?;
        self.report(&observed, Ending::Final).await;
        if self.is_deleted() {
            self.clean_up(&observed).await?;
        } else {
            self.tools.runtime.release_pod(&self.identity).await?;
        }
        self.life.released();
        Ok(Next::Now)
    }

    /// Nothing runs. A pod that merely completed keeps its containers for their logs until it is deleted, or until the node
    /// needs the room.
    pub(super) async fn finished(&mut self) -> Result<Next, RuntimeError> {
        // What was evicted for want of room keeps none.
        let evicted = self.life.verdict().is_some_and(|verdict| verdict.reason == EVICTED)
            || self.api.reason.as_deref() == Some(EVICTED);
        let make_room = self.make_room.take();
        if !self.is_deleted() && !evicted && make_room.is_none() {
            return Ok(Next::Mail);
        }
        if !self.cleaned {
            let observed = self.tools.runtime.observe(&self.identity).await?;
            self.clean_up(&observed).await?;
        }
        if !self.is_deleted() {
            return Ok(Next::Mail);
        }
        if self.life.is_removed() {
            return Ok(Next::Exit);
        }
        self.reporter.send(Report::Released { uid: self.identity.uid.clone() }).await;
        Ok(Next::Mail)
    }

    async fn clean_up(&mut self, observed: &ObservedPod) -> Result<(), RuntimeError> {
        for container in &observed.containers {
            self.tools.runtime.remove_container(&container.id).await?;
        }
        for sandbox in &observed.sandboxes {
            self.tools.runtime.stop_sandbox(&sandbox.id).await?;
            self.tools.runtime.remove_sandbox(&sandbox.id).await?;
        }
        self.tools.runtime.clean_up_pod(&self.identity).await?;
        self.cleaned = true;
        Ok(())
    }

    /// Stops and releases the runtime's part of a pod that goes on, because its sandbox is replaced. False when the pod's
    /// end cut it short.
    pub(super) async fn stop_everything(
        &mut self,
        observed: &ObservedPod,
        cancel: &CancellationToken,
    ) -> Result<bool, RuntimeError> {
        tokio::select! {
            () = cancel.cancelled() => return Ok(false),
            stopped = self.stop_containers(observed) => stopped?,
        }
        for sandbox in &observed.sandboxes {
            self.tools.runtime.stop_sandbox(&sandbox.id).await?;
        }
        Ok(true)
    }
}
