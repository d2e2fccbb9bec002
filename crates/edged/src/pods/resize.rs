//! Resizing in place: the desk decides whether the node has room for a change, the pod's worker carries it out.
//!
//! Until there is room the worker gets the pod with the resources from before. What the containers have is told in the pod's status, by
//! which an agent that was restarted knows it.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use podlife::{
    actions::{ContainerKill, PodActions},
    observed::{ObservedPod, RuntimeState},
    resize::{self, Refusal},
    spec::{self, RestartPolicy},
    status::Ending,
};
use tokio_util::sync::CancellationToken;

use super::{
    desk::{DeskTask, Entry},
    source::PodVersion,
    worker::PodWorker,
};
use crate::events::EventType;

/// Pause before a change that failed is tried again.
pub(super) const RETRY: Duration = Duration::from_secs(10);

/// A pod whose newest version asks for resources that it does not have yet.
pub(super) struct Resize {
    pub version: Box<PodVersion>,
    /// The node's answer; none before it was asked.
    refusal: Option<Refusal>,
}

impl DeskTask {
    /// A newer version of a pod that is here, with the resources that it may have.
    pub(super) fn allocate(&mut self, mut version: Box<PodVersion>) -> Box<PodVersion> {
        let uid = version.identity.uid.clone();
        let told = self.resizes.remove(&uid).and_then(|resize| resize.refusal);
        let Some(entry) = self.pods.get(&uid).filter(|entry| !entry.ended && !entry.removed) else { return version };
        let before = resize::changes(&entry.pod, &version.pod);
        if before.is_empty() || spec::is_deleted(&version.pod) {
            return version;
        }
        let Err(refusal) = self.fits(entry, &version) else {
            tracing::info!(pod = version.identity.name, "the pod is resized");
            return version;
        };
        if told.as_ref() != Some(&refusal) {
            tracing::warn!(pod = version.identity.name, reason = refusal.message, "the pod cannot be resized");
            let reason = format!("Resize{}", refusal.word());
            self.tools.recorder.pod(&version.pod, EventType::Warning, reason, refusal.message.clone());
        }
        let wanted = Resize { version: version.clone(), refusal: Some(refusal.clone()) };
        self.resizes.insert(uid, wanted);
        version.pod = Arc::new(resize::with(&version.pod, &before));
        version.refusal = Some(refusal);
        version
    }

    /// A pod that is taken over by this agent has what its status says; what it is to have is looked at once it runs.
    pub(super) fn take_recorded(&mut self, version: &mut PodVersion) {
        let recorded = resize::recorded(&version.pod, &version.api);
        if recorded.is_empty() || spec::is_deleted(&version.pod) || version.api.phase.as_deref() != Some("Running") {
            return;
        }
        let wanted = Resize { version: Box::new(version.clone()), refusal: None };
        self.resizes.insert(version.identity.uid.clone(), wanted);
        version.pod = Arc::new(resize::with(&version.pod, &recorded));
    }

    /// Looks again at what had no room.
    pub(super) async fn retry_resizes(&mut self, stopping: &CancellationToken) {
        let fits = |uid: &String, resize: &Resize| {
            let entry = self.pods.get(uid).filter(|entry| !entry.removed);
            entry.is_some_and(|entry| resize.refusal.is_none() || self.fits(entry, &resize.version).is_ok())
        };
        let due = self.resizes.iter().filter(|(uid, resize)| fits(uid, resize)).map(|(uid, _)| uid.clone());
        for uid in due.collect::<Vec<_>>() {
            if let Some(resize) = self.resizes.remove(&uid) {
                self.upsert(resize.version, stopping).await;
            }
        }
    }

    fn fits(&self, entry: &Entry, version: &PodVersion) -> Result<(), Refusal> {
        let others = self.admitted().filter(|other| other.identity.uid != version.identity.uid);
        let others: Vec<&Pod> = others.map(|other| &*other.pod).collect();
        resize::fits(&entry.pod, &version.pod, &others, &self.tools.runtime.allocatable())
    }
}

impl PodWorker {
    /// Takes in what a newer version changes of the resources.
    pub(super) fn note_resize(&mut self, version: &PodVersion) {
        let changes = resize::changes(&self.pod, &version.pod);
        self.pod_cgroup_due |= !changes.is_empty();
        for (name, before) in changes {
            self.resize.pending.entry(name).or_insert(before);
        }
        // What was changed back before anything was done is as it should be.
        self.resize.pending.retain(|name, before| {
            let container = spec::container(&version.pod, name);
            container.is_some_and(|c| c.resources.clone().unwrap_or_default() != *before)
        });
        self.resize.refusal.clone_from(&version.refusal);
    }

    /// Gives running containers what they may have: the pod's cgroup first has room for both, then come the containers, then the cgroup is
    /// as narrow as it is to be. Containers that have to be started again for it are added to the actions.
    pub(super) async fn resize(&mut self, observed: &ObservedPod, actions: &mut PodActions) {
        if !self.pod_cgroup_due || actions.kill_pod || actions.create_sandbox.is_some() {
            return;
        }
        let pod = Arc::clone(&self.pod);
        let uid = self.identity.uid.clone();
        if !self.resize.pending.is_empty() {
            let before = resize::with(&pod, &self.resize.pending);
            if let Err(error) = self.tools.runtime.widen_pod_cgroup(before, &pod, &uid).await {
                tracing::warn!(pod = self.identity.name, error, "pod cgroup without all of its limits");
            }
        }
        let count = self.resize.pending.len();
        for (name, before) in self.resize.pending.clone() {
            let running = observed.newest(&name).filter(|c| c.state == RuntimeState::Running);
            let (Some(running), Some(container)) = (running, spec::container(&pod, &name)) else {
                // Its next start gives it what it is to have.
                self.resize.pending.remove(&name);
                continue;
            };
            let may_restart = spec::restart_policy(&pod) != RestartPolicy::Never;
            if may_restart && resize::needs_restart(container, &before) {
                if running.resources == resize::mark(container) {
                    // An agent that was killed has done it.
                    self.resize.pending.remove(&name);
                } else {
                    restart(&pod, &name, &running.id, actions);
                }
                continue;
            }
            match self.tools.runtime.resize_container(&pod, container, &running.id).await {
                Ok(()) => {
                    tracing::info!(pod = self.identity.name, container = name, "container resized");
                    self.resize.pending.remove(&name);
                }
                Err(error) => {
                    tracing::warn!(pod = self.identity.name, container = name, error, "container not resized");
                    self.tools.recorder.container(&pod, &name, EventType::Warning, "ResizeError", error);
                }
            }
        }
        if self.resize.pending.is_empty() {
            match self.tools.runtime.set_pod_cgroup(&pod, &uid).await {
                Ok(()) => {}
                Err(error) => tracing::warn!(pod = self.identity.name, error, "pod cgroup without all of its limits"),
            }
            self.pod_cgroup_due = false;
        }
        if self.resize.pending.len() != count {
            self.report(observed, Ending::No).await;
        }
    }
}

/// Adds the steps that start a container again.
fn restart(pod: &Pod, name: &str, id: &str, actions: &mut PodActions) {
    if !actions.kill.iter().any(|kill| kill.id == id) {
        let message = format!("Container {name} resize requires restart");
        actions.kill.push(ContainerKill { id: id.to_owned(), name: name.to_owned(), message, probe: None });
    }
    for (list, start) in
        [(spec::containers(pod), &mut actions.start), (spec::init_containers(pod), &mut actions.start_init)]
    {
        if let Some(index) = list.iter().position(|c| c.name == name).filter(|index| !start.contains(index)) {
            start.push(index);
        }
    }
}
