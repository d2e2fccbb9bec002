//! Stopping containers: preStop hooks, the order of sidecars, and what is left of the grace period for the signal.

use std::time::Duration;

use futures_util::future::join_all;
use podlife::{
    actions::ContainerKill,
    grace,
    observed::{ObservedContainer, ObservedPod, RuntimeState},
    spec,
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{hooks, worker::PodWorker};
use crate::{events::EventType, runtime::RuntimeError};

/// One container on its way down.
struct Stop<'a> {
    id: &'a str,
    name: &'a str,
    /// Text of the event.
    text: String,
    began: Instant,
    grace: Duration,
    /// Those that must have stopped before; each closes its channel then.
    after: Vec<watch::Receiver<()>>,
    /// Dropped when this one has stopped.
    stopped: Option<watch::Sender<()>>,
}

impl PodWorker {
    /// Stops all live containers at once; a sidecar waits for the main containers and the sidecars declared behind it. Hooks
    /// run at once for all.
    pub(super) async fn stop_containers(&mut self, observed: &ObservedPod) -> Result<(), RuntimeError> {
        let seconds = self.life.grace().unwrap_or_else(|| grace::pod_grace(&self.pod, None, None));
        let grace = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        let began = self.stopping_since.unwrap_or_else(Instant::now);
        let live = |c: &&ObservedContainer| matches!(c.state, RuntimeState::Running | RuntimeState::Unknown);
        let live: Vec<&ObservedContainer> = observed.containers.iter().filter(live).collect();
        self.pre_stops.retain_running(observed);
        for container in &live {
            let left = grace.saturating_sub(began.elapsed());
            self.pre_stops.begin(&self.pod, observed, container, left, &self.tools);
        }
        let turn = |name: &str| grace::stop_turn(&self.pod, name);
        let flags: Vec<_> = live.iter().map(|_| watch::channel(())).collect();
        let after = |own: Option<usize>| {
            let earlier =
                live.iter().zip(&flags).filter(|(other, _)| own.is_some_and(|own| turn(&other.name) < Some(own)));
            earlier.map(|(_, (_, receiver))| receiver.clone()).collect::<Vec<_>>()
        };
        let waits: Vec<_> = live.iter().map(|container| after(turn(&container.name))).collect();
        let stops = live.iter().zip(flags).zip(waits).map(|((container, (stopped, _)), after)| {
            let text = format!("Stopping container {}", container.name);
            let (id, name) = (container.id.as_str(), container.name.as_str());
            self.stop_one(Stop { id, name, text, began, grace, after, stopped: Some(stopped) })
        });
        join_all(stops).await.into_iter().collect()
    }

    /// Stops single containers of a pod that goes on, each with a grace period of its own. False when the pod's end or a
    /// newer wish cut it short.
    pub(super) async fn stop_some(
        &mut self,
        kills: &[ContainerKill],
        observed: &ObservedPod,
        cancel: &CancellationToken,
    ) -> Result<bool, RuntimeError> {
        let began = Instant::now();
        self.pre_stops.retain_running(observed);
        let mut stops = Vec::with_capacity(kills.len());
        for kill in kills {
            let container = spec::container(&self.pod, &kill.name);
            let grace =
                container.map_or(grace::MIN_CONTAINER_GRACE, |c| grace::restart_grace(&self.pod, c, kill.probe));
            if let Some(running) = observed.containers.iter().find(|c| c.id == kill.id) {
                self.pre_stops.begin(&self.pod, observed, running, grace, &self.tools);
            }
            let (id, name, text) = (kill.id.as_str(), kill.name.as_str(), kill.message.clone());
            stops.push(Stop { id, name, text, began, grace, after: Vec::new(), stopped: None });
        }
        let stopped = join_all(stops.into_iter().map(|stop| self.stop_one(stop)));
        tokio::select! {
            results = stopped => results.into_iter().collect::<Result<(), _>>().map(|()| true),
            () = cancel.cancelled() => Ok(false),
        }
    }

    async fn stop_one(&self, stop: Stop<'_>) -> Result<(), RuntimeError> {
        self.tools.recorder.container(&self.pod, stop.name, EventType::Normal, "Killing", stop.text);
        let deadline = stop.began + stop.grace;
        self.pre_stops.wait(stop.id, deadline).await;
        for other in stop.after {
            hooks::closed(other, deadline).await;
        }
        let left = grace::container_grace(stop.grace, stop.began.elapsed());
        tracing::info!(pod = self.identity.name, container = stop.name, grace_s = left.as_secs(), "stopping container");
        let result = self.tools.runtime.stop_container(stop.id, left).await;
        drop(stop.stopped);
        result
    }
}
