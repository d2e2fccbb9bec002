//! The end of a pod: stop its containers, release what it holds, wait for the API to forget it.

use std::time::Duration;

use futures_util::future::join_all;
use podlife::{
    grace,
    observed::{ObservedContainer, ObservedPod, RuntimeState},
    spec,
    status::Ending,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    reporter::Report,
    worker::{Next, PodWorker},
};
use crate::{events::EventType, runtime::RuntimeError};

impl PodWorker {
    /// Stops all containers, then all sandboxes; left only when a fresh look shows nothing alive.
    pub(super) async fn terminate(&mut self, cancel: &CancellationToken) -> Result<Next, RuntimeError> {
        self.prober.stop();
        let observed = self.tools.runtime.observe(&self.identity).await?;
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
        }
        self.life.released();
        Ok(Next::Now)
    }

    /// Nothing runs. A pod that merely completed keeps its containers for their logs until it is deleted.
    pub(super) async fn finished(&mut self) -> Result<Next, RuntimeError> {
        if !self.is_deleted() {
            return Ok(Next::Mail);
        }
        if !self.cleaned {
            let observed = self.tools.runtime.observe(&self.identity).await?;
            self.clean_up(&observed).await?;
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

    /// Stops and releases the runtime's part of a pod that goes on, because its sandbox is replaced.
    pub(super) async fn stop_everything(&mut self, observed: &ObservedPod) -> Result<(), RuntimeError> {
        self.stop_containers(observed).await?;
        for sandbox in &observed.sandboxes {
            self.tools.runtime.stop_sandbox(&sandbox.id).await?;
        }
        Ok(())
    }

    /// Main containers stop all at once; each sidecar after them and after the sidecars declared behind it.
    async fn stop_containers(&self, observed: &ObservedPod) -> Result<(), RuntimeError> {
        let pod_grace = self.life.grace().unwrap_or_else(|| grace::pod_grace(&self.pod, None, None));
        let began = self.stopping_since.unwrap_or_else(Instant::now);
        let live = |c: &&ObservedContainer| matches!(c.state, RuntimeState::Running | RuntimeState::Unknown);
        let order = |name: &str| {
            let mut sidecars = spec::init_containers(&self.pod).iter().filter(|c| spec::is_sidecar(c));
            sidecars.position(|c| c.name == name)
        };
        let first: Vec<_> = observed.containers.iter().filter(live).filter(|c| order(&c.name).is_none()).collect();
        let stops = first.iter().map(|c| self.stop_one(c, grace::container_grace(pod_grace, began.elapsed())));
        for result in join_all(stops).await {
            result?;
        }
        let mut sidecars: Vec<_> =
            observed.containers.iter().filter(live).filter_map(|c| Some((order(&c.name)?, c))).collect();
        sidecars.sort_by_key(|(position, _)| std::cmp::Reverse(*position));
        for (_, container) in sidecars {
            self.stop_one(container, grace::container_grace(pod_grace, began.elapsed())).await?;
        }
        Ok(())
    }

    async fn stop_one(&self, container: &ObservedContainer, grace: Duration) -> Result<(), RuntimeError> {
        let text = format!("Stopping container {}", container.name);
        self.tools.recorder.container(&self.pod, &container.name, EventType::Normal, "Killing", text);
        tracing::info!(
            pod = self.identity.name,
            container = container.name,
            grace_s = grace.as_secs(),
            "stopping container"
        );
        self.tools.runtime.stop_container(&container.id, grace).await
    }
}
