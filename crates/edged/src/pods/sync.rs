//! The sync step: make the runtime look like the spec, one observation at a time.
//!
//! Every step starts from a fresh observation, so that an agent killed between any two calls finds
//! what it did and goes on from there. After a change the worker looks again at once; the step ends when there is nothing to do.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Container;
use podlife::{
    actions::{self, PodActions},
    backoff::{Moment, go_duration},
    containers::{StartFailure, next_restart_count},
    observed::{ObservedPod, RuntimeState},
    spec,
    stage::{End, deadline_exceeded},
    status::{self, EndVerdict, Ending},
    unsupported,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    resize,
    worker::{Next, PodWorker},
};
use crate::{
    events::EventType,
    runtime::{ContainerStart, RuntimeError, StartError},
};

/// Volumes of a running pod are written again at least this often, so that changed ConfigMaps arrive.
const VOLUME_REFRESH: Duration = Duration::from_secs(60);

/// Reason of a pod that cannot have its devices (Kubernetes).
const UNEXPECTED: &str = "UnexpectedAdmissionError";

/// How a container start went.
pub(super) enum Started {
    Yes,
    /// It waits for its back-off.
    Waits(Duration),
    Failed,
}

impl PodWorker {
    pub(super) async fn sync(&mut self, cancel: &CancellationToken) -> Result<Next, RuntimeError> {
        let observed = self.tools.runtime.observe(&self.identity).await?;
        self.supervise_probes(&observed);
        self.report(&observed, Ending::No).await;
        self.tools.runtime.count_requests(&self.pod).await;
        if self.deadline_left().is_some_and(|left| left.is_zero()) {
            self.life.end(&self.pod, End::Killed { verdict: deadline_exceeded(), grace: None });
            return Ok(Next::Now);
        }
        if self.status.as_ref().is_some_and(|s| status::is_complete(&self.pod, s)) {
            self.life.end(&self.pod, End::Completed);
            return Ok(Next::Now);
        }
        if observed.is_absent() && !self.has_devices(cancel).await {
            return Ok(Next::Now);
        }
        self.prune(&observed).await?;
        if self.refuse_unsupported(&observed).await {
            return Ok(Next::resync());
        }
        let mut actions = actions::compute(&self.pod, &observed, &self.probes);
        self.resize(&observed, &mut actions).await;
        let next = if actions.is_noop() {
            self.refresh_volumes(cancel).await;
            self.remove_dead_sandboxes(&observed, "").await?;
            Next::resync()
        } else {
            self.carry_out(&actions, &observed, cancel).await?
        };
        let next = if self.resize.pending.is_empty() { next } else { next.or_after(resize::RETRY) };
        Ok(self.deadline_left().map_or(next, |left| next.or_after(left)))
    }

    /// A pod of which nothing was started yet gets its devices, or its end. False for the latter, and when it was cut short.
    async fn has_devices(&mut self, cancel: &CancellationToken) -> bool {
        let allocated = tokio::select! {
            allocated = self.tools.runtime.devices().allocate(&self.pod) => allocated,
            () = cancel.cancelled() => return false,
        };
        let Err(error) = allocated else { return true };
        let text = format!("Allocate failed due to {error}, which is unexpected");
        tracing::warn!(pod = self.identity.name, %error, "devices not allocated");
        self.tools.recorder.pod(&self.pod, EventType::Warning, UNEXPECTED, text.clone());
        self.life.end(&self.pod, End::Killed { verdict: EndVerdict::rejected(UNEXPECTED, &text), grace: None });
        false
    }

    async fn carry_out(
        &mut self,
        actions: &PodActions,
        observed: &ObservedPod,
        cancel: &CancellationToken,
    ) -> Result<Next, RuntimeError> {
        if actions.kill_pod {
            if let Some(attempt) = actions.create_sandbox.filter(|_| !observed.sandboxes.is_empty()) {
                tracing::info!(
                    pod = self.identity.name,
                    attempt,
                    "pod sandbox changed, it will be killed and re-created"
                );
                let text = "Pod sandbox changed, it will be killed and re-created.";
                self.tools.recorder.pod(&self.pod, EventType::Normal, "SandboxChanged", text);
            }
            if !self.stop_everything(observed, cancel).await? {
                return Ok(Next::Now);
            }
            if actions.create_sandbox.is_none() {
                self.life.end(&self.pod, End::Completed);
                return Ok(Next::Now);
            }
        }
        if !self.stop_some(&actions.kill, observed, cancel).await? {
            return Ok(Next::Now);
        }
        if let Some(next) = self.prepare(actions, cancel).await {
            return Ok(next);
        }
        let (sandbox_id, observed) = match actions.create_sandbox {
            Some(attempt) => match self.create_sandbox(attempt, observed).await? {
                Some(created) => created,
                None => return Ok(Next::retry()),
            },
            None => (actions.sandbox_id.clone().unwrap_or_default(), observed.clone()),
        };
        self.start_containers(actions, &sandbox_id, &observed, cancel).await
    }

    /// Directories and volumes come before anything that needs them; `Some` when the step has to wait.
    async fn prepare(&mut self, actions: &PodActions, cancel: &CancellationToken) -> Option<Next> {
        let needs_network = actions.create_sandbox.is_some() && !spec::host_network(&self.pod);
        if needs_network && let Some(reason) = self.tools.runtime.readiness().await.network_error {
            let text = format!("network is not ready: {reason}");
            self.tools.recorder.pod(&self.pod, EventType::Warning, "NetworkNotReady", text);
            return Some(Next::network());
        }
        match self.tools.runtime.prepare_pod(&self.pod, cancel).await {
            Ok(()) => {
                self.prepared = Some(Instant::now());
                None
            }
            Err(_) if cancel.is_cancelled() => Some(Next::Now),
            // The events have been recorded, volume by volume.
            Err(error) => {
                tracing::debug!(pod = self.identity.name, error = %error, "volumes are not there yet");
                Some(Next::After(self.tools.runtime.volumes_retry(&self.identity)))
            }
        }
    }

    /// A running pod's volumes follow their sources; a failure leaves the last good content.
    async fn refresh_volumes(&mut self, cancel: &CancellationToken) {
        let due = self.prepared.is_none_or(|at| at.elapsed() >= VOLUME_REFRESH);
        if !due || !self.has_volumes() {
            return;
        }
        self.prepared = Some(Instant::now());
        if let Err(error) = self.tools.runtime.prepare_pod(&self.pod, cancel).await {
            tracing::debug!(pod = self.identity.name, error = %error, "volumes not refreshed; the last content stays");
        }
    }

    async fn create_sandbox(
        &mut self,
        attempt: u32,
        before: &ObservedPod,
    ) -> Result<Option<(String, ObservedPod)>, RuntimeError> {
        match self.tools.runtime.run_sandbox(&self.pod, attempt).await {
            Ok(id) => {
                // Initialization runs again from its first container.
                for container in &before.containers {
                    if spec::init_containers(&self.pod).iter().any(|c| c.name == container.name) {
                        self.tools.runtime.remove_container(&container.id).await?;
                    }
                }
                self.remove_dead_sandboxes(before, &id).await?;
                let observed = self.tools.runtime.observe(&self.identity).await?;
                Ok(Some((id, observed)))
            }
            Err(error) => {
                let text = format!("Failed to create pod sandbox: {}", error.message);
                self.tools.recorder.pod(&self.pod, EventType::Warning, "FailedCreatePodSandBox", text);
                tracing::warn!(pod = self.identity.name, error = %error, "pod sandbox not created");
                Ok(None)
            }
        }
    }

    /// Replaced sandboxes go when no container is left in them.
    async fn remove_dead_sandboxes(&self, observed: &ObservedPod, current: &str) -> Result<(), RuntimeError> {
        for sandbox in &observed.sandboxes {
            let used = observed.containers.iter().any(|c| c.sandbox_id == sandbox.id);
            if sandbox.id != current && !sandbox.ready && !used {
                self.tools.runtime.remove_sandbox(&sandbox.id).await?;
            }
        }
        Ok(())
    }

    async fn start_containers(
        &mut self,
        actions: &PodActions,
        sandbox_id: &str,
        observed: &ObservedPod,
        cancel: &CancellationToken,
    ) -> Result<Next, RuntimeError> {
        let pod = std::sync::Arc::clone(&self.pod);
        let init = spec::init_containers(&pod);
        let main = spec::containers(&pod);
        let ephemeral = spec::ephemeral_containers(&pod);
        let wanted = actions
            .start_ephemeral
            .iter()
            .filter_map(|&index| ephemeral.get(index))
            .chain(actions.start_init.iter().filter_map(|&index| init.get(index)))
            .chain(actions.start.iter().filter_map(|&index| main.get(index)));
        let mut next = Next::Now;
        for container in wanted {
            if cancel.is_cancelled() {
                return Ok(Next::Now);
            }
            match self.start_one(container, sandbox_id, actions.sandbox_attempt, observed, cancel).await? {
                Started::Yes => {}
                Started::Waits(left) => next = later(next, left),
                Started::Failed => {
                    let Next::After(retry) = Next::retry() else { continue };
                    next = later(next, retry);
                }
            }
        }
        if next != Next::Now {
            let observed = self.tools.runtime.observe(&self.identity).await?;
            self.report(&observed, Ending::No).await;
        }
        Ok(next)
    }

    async fn start_one(
        &mut self,
        container: &Container,
        sandbox_id: &str,
        sandbox_attempt: u32,
        observed: &ObservedPod,
        cancel: &CancellationToken,
    ) -> Result<Started, RuntimeError> {
        if let Some(wait) = self.crash_backoff(container, observed) {
            return Ok(Started::Waits(wait));
        }
        // Made but never run, and not because its start failed here: an agent was killed in between, or the runtime finished
        // what a killed agent had asked for. That was no start.
        let unborn = observed.newest(&container.name).filter(|c| c.never_ran() && !self.start_failed.contains(&c.name));
        if let Some(unborn) = unborn {
            self.tools.runtime.remove_container(&unborn.id).await?;
        }
        let target_id = match spec::ephemeral_target(&self.pod, &container.name) {
            None => None,
            Some(target) => match observed.newest(target) {
                Some(target) => Some(target.id.as_str()),
                None => {
                    let message = format!("unable to find target container {target}");
                    let text = format!("Error: {message}");
                    self.tools.recorder.container(&self.pod, &container.name, EventType::Warning, "Failed", text);
                    let failure = StartFailure { reason: "CreateContainerConfigError".into(), message };
                    self.failures.insert(container.name.clone(), failure);
                    return Ok(Started::Failed);
                }
            },
        };
        let status = self.status.as_ref().and_then(|s| {
            let lists = [&s.container_statuses, &s.init_container_statuses];
            lists.into_iter().flatten().flatten().find(|c| c.name == container.name)
        });
        let start = ContainerStart {
            pod: &self.pod,
            container,
            sandbox_id,
            sandbox_attempt,
            restart_count: match (unborn, observed.newest(&container.name)) {
                (Some(unborn), _) => unborn.restart_count,
                (None, Some(newest)) => next_restart_count(Some(newest), status),
                // The runtime has lost it: neither its count nor its log is used again.
                (None, None) => {
                    let by_log = self.tools.runtime.last_log(&self.identity, &container.name);
                    let by_status = next_restart_count(None, status);
                    if by_log.is_some() || by_status > 0 {
                        let container = container.name.as_str();
                        tracing::info!(
                            pod = self.identity.name,
                            container,
                            by_log,
                            by_status,
                            "the runtime has lost a container; its restarts are counted on"
                        );
                    }
                    by_status.max(by_log.map_or(0, |count| count.saturating_add(1)))
                }
            },
            target_id,
            pod_ips: observed.ips(),
            cancel,
        };
        match self.tools.runtime.start_container(start).await {
            Ok(id) => {
                tracing::info!(pod = self.identity.name, container = container.name, id, "container started");
                self.failures.remove(&container.name);
                self.start_failed.remove(&container.name);
                self.resize.pending.remove(&container.name);
                self.post_start(container, &id, observed, cancel).await
            }
            Err(_) if cancel.is_cancelled() => Ok(Started::Failed),
            Err(StartError { reason, message }) => {
                tracing::warn!(
                    pod = self.identity.name,
                    container = container.name,
                    reason,
                    message,
                    "container not started"
                );
                if reason == "RunContainerError" {
                    self.start_failed.insert(container.name.clone());
                }
                self.failures.insert(container.name.clone(), StartFailure { reason: reason.into(), message });
                Ok(Started::Failed)
            }
        }
    }

    /// What is left of the delay before a container that ended may start again.
    fn crash_backoff(&mut self, container: &Container, observed: &ObservedPod) -> Option<Duration> {
        let now = Moment { clock: Timestamp::now(), running: self.began.elapsed() };
        let exited = observed.instances(&container.name).find(|c| c.state == RuntimeState::Exited)?;
        let key = format!("{}_{:x}", container.name, spec::container_hash(container));
        let wait = self.backoff.attempt(&key, exited.finished_at.unwrap_or(exited.created_at), now).err()?;
        let identity = &self.identity;
        let pod = format!("{}_{}({})", identity.name, identity.namespace, identity.uid);
        let message =
            format!("back-off {} restarting failed container={} pod={pod}", go_duration(wait.delay), container.name);
        let failure = StartFailure { reason: "CrashLoopBackOff".into(), message };
        if self.failures.get(&container.name) != Some(&failure) {
            let text = format!("Back-off restarting failed container {} in pod {pod}", container.name);
            self.tools.recorder.container(&self.pod, &container.name, EventType::Warning, "BackOff", text);
            self.failures.insert(container.name.clone(), failure);
        }
        Some(wait.remaining)
    }

    /// Keeps only the newest dead instance of each container, for its logs and its last state. One that never ran does not
    /// take the place of one that did: that one knows how often the container has run.
    async fn prune(&self, observed: &ObservedPod) -> Result<(), RuntimeError> {
        let mut kept: BTreeMap<&str, bool> = BTreeMap::new();
        let dead = |state| matches!(state, RuntimeState::Exited | RuntimeState::Created);
        for container in observed.containers.iter().filter(|c| dead(c.state)) {
            let ran = !container.never_ran();
            match kept.get(container.name.as_str()) {
                None => drop(kept.insert(&container.name, ran)),
                Some(false) if ran => drop(kept.insert(&container.name, ran)),
                Some(_) => self.tools.runtime.remove_container(&container.id).await?,
            }
        }
        Ok(())
    }

    /// Tells once about fields that are not carried out; true when the pod must not run without them.
    async fn refuse_unsupported(&mut self, observed: &ObservedPod) -> bool {
        let found = unsupported::unsupported(&self.pod);
        if !self.warned {
            for field in &found {
                let text = format!("{}: {}", field.field, field.reason);
                self.tools.recorder.pod(&self.pod, EventType::Warning, "UnsupportedField", text);
            }
            self.warned = true;
        }
        let Some(blocking) = found.iter().find(|f| f.blocks) else { return false };
        let failure = StartFailure {
            reason: "CreateContainerConfigError".into(),
            message: format!("{}: {}", blocking.field, blocking.reason),
        };
        for container in spec::containers(&self.pod) {
            self.failures.insert(container.name.clone(), failure.clone());
        }
        self.report(observed, Ending::No).await;
        true
    }
}

fn later(next: Next, pause: Duration) -> Next {
    if next == Next::Now { Next::After(pause) } else { next.or_after(pause) }
}
