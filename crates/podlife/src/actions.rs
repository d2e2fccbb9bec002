//! What to do next for a pod: compare its spec with what runs.
//!
//! One call answers one sync step; it never waits for a container to finish. The result is empty exactly
//! when everything runs as it should, which is what makes a restart of the agent harmless.

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::{
    observed::{ObservedContainer, ObservedPod, RuntimeState},
    probe::{ProbeKind, ProbeResults, Verdict},
    spec::{self, RestartPolicy},
};

/// Steps of one sync, to be carried out in the order of the fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodActions {
    /// Stop all containers and sandboxes first.
    pub kill_pod: bool,
    /// Single containers to stop (when the pod itself stays).
    pub kill: Vec<ContainerKill>,
    /// Then create a sandbox with this attempt number.
    pub create_sandbox: Option<u32>,
    /// Sandbox that stays in use.
    pub sandbox_id: Option<String>,
    /// Its attempt.
    pub sandbox_attempt: u32,
    /// Indices of `spec.ephemeralContainers` to start.
    pub start_ephemeral: Vec<usize>,
    /// Indices of `spec.initContainers` to start.
    pub start_init: Vec<usize>,
    /// Indices of `spec.containers` to start.
    pub start: Vec<usize>,
}

/// A container to stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerKill {
    /// Runtime id.
    pub id: String,
    /// Container name.
    pub name: String,
    /// Text of the `Killing` event.
    pub message: String,
    /// Probe that asked for it, for the grace period.
    pub probe: Option<ProbeKind>,
}

impl PodActions {
    /// Nothing to do: no call to the runtime changes anything.
    pub fn is_noop(&self) -> bool {
        !self.kill_pod
            && self.kill.is_empty()
            && self.create_sandbox.is_none()
            && self.start_ephemeral.is_empty()
            && self.start_init.is_empty()
            && self.start.is_empty()
    }
}

/// A sandbox must be made, and with which attempt number.
///
/// The rules: none yet; more than one ready; the newest not ready; another network mode than the spec's; ready
/// with its own network but an empty IP.
pub fn new_sandbox_attempt(pod: &Pod, observed: &ObservedPod) -> Option<u32> {
    let Some(newest) = observed.sandboxes.first() else { return Some(0) };
    let host_network = spec::host_network(pod);
    let without_ip =
        || !host_network && newest.ips.as_ref().is_some_and(|ips| ips.first().is_none_or(|ip| ip.is_empty()));
    let replace = observed.sandboxes.iter().filter(|s| s.ready).count() > 1
        || !newest.ready
        || newest.host_network != host_network
        || without_ip();
    let highest = observed.sandboxes.iter().map(|s| s.attempt).max().unwrap_or(newest.attempt);
    replace.then(|| highest.saturating_add(1))
}

/// Whether a container that is not running is to be started, by its newest instance and the restart policy.
pub fn should_start(pod: &Pod, container: &Container, newest: Option<&ObservedContainer>) -> bool {
    if spec::is_deleted(pod) {
        return false;
    }
    let Some(newest) = newest else { return true };
    match newest.state {
        RuntimeState::Running => false,
        RuntimeState::Created | RuntimeState::Unknown => true,
        RuntimeState::Exited if spec::is_sidecar(container) => true,
        RuntimeState::Exited => match spec::restart_policy(pod) {
            RestartPolicy::Never => false,
            RestartPolicy::OnFailure => newest.exit_code != 0,
            RestartPolicy::Always => true,
        },
    }
}

/// Computes the steps of one sync.
pub fn compute(pod: &Pod, observed: &ObservedPod, probes: &ProbeResults) -> PodActions {
    if spec::is_deleted(pod) {
        return PodActions { kill_pod: !observed.is_absent(), ..PodActions::default() };
    }
    if let Some(attempt) = new_sandbox_attempt(pod, observed) {
        return start_over(pod, observed, attempt);
    }
    let sandbox = observed.sandboxes.first();
    let mut actions = PodActions {
        sandbox_id: sandbox.map(|s| s.id.clone()),
        sandbox_attempt: sandbox.map_or(0, |s| s.attempt),
        start_ephemeral: new_ephemeral(pod, observed),
        ..PodActions::default()
    };
    let initialized = init_steps(pod, observed, probes, &mut actions);
    if actions.kill_pod || !initialized {
        return actions;
    }
    let kept = main_steps(pod, observed, probes, &mut actions);
    if kept == 0 && actions.start.is_empty() {
        // The pod is complete: sidecars do not keep it alive.
        actions.kill_pod = true;
        actions.kill.clear();
        actions.start_init.clear();
        actions.start_ephemeral.clear();
    }
    actions
}

/// Ephemeral containers that have never been started; they need not wait for initialization.
fn new_ephemeral(pod: &Pod, observed: &ObservedPod) -> Vec<usize> {
    let list = pod.spec.as_ref().and_then(|s| s.ephemeral_containers.as_deref()).unwrap_or_default();
    let new = list.iter().enumerate().filter(|(_, container)| observed.newest(&container.name).is_none());
    new.map(|(index, _)| index).collect()
}

/// The sandbox is missing or unusable: everything goes, and initialization runs again.
fn start_over(pod: &Pod, observed: &ObservedPod, attempt: u32) -> PodActions {
    let policy = spec::restart_policy(pod);
    let kill_only = || PodActions { kill_pod: !observed.is_absent(), ..PodActions::default() };
    if policy == RestartPolicy::Never && attempt != 0 && !observed.containers.is_empty() {
        return kill_only();
    }
    let start: Vec<usize> = spec::containers(pod)
        .iter()
        .enumerate()
        .filter(|(_, c)| policy != RestartPolicy::OnFailure || !succeeded(observed.newest(&c.name)))
        .map(|(index, _)| index)
        .collect();
    if start.is_empty() && any_main_created(pod, observed) {
        return kill_only();
    }
    let has_init = !spec::init_containers(pod).is_empty();
    PodActions {
        kill_pod: !observed.is_absent(),
        create_sandbox: Some(attempt),
        sandbox_attempt: attempt,
        start_init: if has_init { vec![0] } else { Vec::new() },
        start: if has_init { Vec::new() } else { start },
        ..PodActions::default()
    }
}

fn succeeded(newest: Option<&ObservedContainer>) -> bool {
    newest.is_some_and(|c| c.state == RuntimeState::Exited && c.exit_code == 0)
}

/// A main container exists in the runtime, so initialization is over.
fn any_main_created(pod: &Pod, observed: &ObservedPod) -> bool {
    spec::containers(pod)
        .iter()
        .any(|c| observed.newest(&c.name).is_some_and(|newest| newest.state != RuntimeState::Unknown))
}

/// The newest instance of a container as initialization sees it: one that ended in a former sandbox has no part in this one.
fn current<'a>(observed: &'a ObservedPod, name: &str) -> Option<&'a ObservedContainer> {
    let sandbox = observed.sandboxes.first().map(|s| s.id.as_str());
    observed.newest(name).filter(|c| c.state == RuntimeState::Running || Some(c.sandbox_id.as_str()) == sandbox)
}

/// Adds steps for init containers and sidecars; true when main containers may run.
///
/// Walks from the last init container backwards, because finished ones may have been removed from the runtime: the
/// first that exists tells how far initialization has come.
fn init_steps(pod: &Pod, observed: &ObservedPod, probes: &ProbeResults, actions: &mut PodActions) -> bool {
    let init = spec::init_containers(pod);
    if init.is_empty() {
        return true;
    }
    let created =
        |c: &Container| current(observed, &c.name).is_some_and(|newest| newest.state != RuntimeState::Unknown);
    let mut initialized = spec::containers(pod).iter().any(created);
    let mut passed = initialized;
    let mut start = Vec::new();
    for (index, container) in init.iter().enumerate().rev() {
        let sidecar = spec::is_sidecar(container);
        let Some(newest) = current(observed, &container.name) else {
            if passed && sidecar {
                start.push(index);
            }
            continue;
        };
        if passed && !sidecar {
            continue;
        }
        let mut done = false;
        match newest.state {
            RuntimeState::Created => start.push(index),
            RuntimeState::Running if sidecar => {
                done = sidecar_steps(container, newest, probes, index, actions, &mut start);
            }
            RuntimeState::Running => {}
            RuntimeState::Exited if sidecar => start.push(index),
            RuntimeState::Exited if newest.exit_code == 0 && newest.reason != "OOMKilled" => done = true,
            RuntimeState::Exited | RuntimeState::Unknown => {
                if !sidecar && spec::restart_policy(pod) == RestartPolicy::Never {
                    actions.kill_pod = true;
                    actions.kill.clear();
                    actions.start_ephemeral.clear();
                    return false;
                }
                if newest.state == RuntimeState::Unknown {
                    actions.kill.push(unknown_state(newest));
                }
                start.push(index);
            }
        }
        if !passed {
            if done && index + 1 == init.len() {
                initialized = true;
            } else if done {
                start.push(index + 1);
            }
            passed = true;
        }
    }
    if !passed {
        start.push(0);
    }
    start.sort_unstable();
    start.dedup();
    actions.start_init = start;
    initialized
}

/// A running sidecar: true when it is started, so that the next init container may run.
fn sidecar_steps(
    container: &Container,
    newest: &ObservedContainer,
    probes: &ProbeResults,
    index: usize,
    actions: &mut PodActions,
    start: &mut Vec<usize>,
) -> bool {
    if let Some(probe) = probes.failed(container, &newest.id) {
        let word = probe_word(probe);
        actions.kill.push(ContainerKill {
            id: newest.id.clone(),
            name: container.name.clone(),
            message: format!("Init container {} failed {word} probe", container.name),
            probe: Some(probe),
        });
        start.push(index);
    }
    probes.is_started(container, &newest.id) && probes.get(&newest.id, ProbeKind::Startup) != Some(Verdict::Failure)
}

/// Adds steps for the main containers; the number of those that stay as they are.
fn main_steps(pod: &Pod, observed: &ObservedPod, probes: &ProbeResults, actions: &mut PodActions) -> usize {
    let mut kept = 0;
    for (index, container) in spec::containers(pod).iter().enumerate() {
        let newest = observed.newest(&container.name);
        let Some(running) = newest.filter(|c| c.state == RuntimeState::Running) else {
            if should_start(pod, container, newest) {
                actions.start.push(index);
                if let Some(lost) = newest.filter(|c| c.state == RuntimeState::Unknown) {
                    actions.kill.push(unknown_state(lost));
                }
            }
            continue;
        };
        let mut restart = spec::restart_policy(pod) != RestartPolicy::Never;
        let (cause, probe) = if running.hash.is_some_and(|hash| hash != spec::container_hash(container)) {
            restart = true;
            (format!("Container {} definition changed", container.name), None)
        } else if let Some(probe) = probes.failed(container, &running.id) {
            (format!("Container {} failed {} probe", container.name, probe_word(probe)), Some(probe))
        } else {
            kept += 1;
            continue;
        };
        let message = if restart { format!("{cause}, will be restarted") } else { cause };
        if restart {
            actions.start.push(index);
        }
        actions.kill.push(ContainerKill { id: running.id.clone(), name: container.name.clone(), message, probe });
    }
    kept
}

fn unknown_state(container: &ObservedContainer) -> ContainerKill {
    ContainerKill {
        id: container.id.clone(),
        name: container.name.clone(),
        message: "Container is in \"unknown\" state, try killing it before restart".into(),
        probe: None,
    }
}

fn probe_word(probe: ProbeKind) -> &'static str {
    match probe {
        ProbeKind::Readiness => "readiness",
        ProbeKind::Liveness => "liveness",
        ProbeKind::Startup => "startup",
    }
}
