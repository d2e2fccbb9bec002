//! The conditions that the agent owns.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition};

use crate::{phase::Phase, spec};

/// A sandbox with network exists.
pub const READY_TO_START: &str = "PodReadyToStartContainers";
/// Init containers are done.
pub const INITIALIZED: &str = "Initialized";
/// The pod serves.
pub const READY: &str = "Ready";
/// All containers are ready.
pub const CONTAINERS_READY: &str = "ContainersReady";
/// A node was chosen.
pub const SCHEDULED: &str = "PodScheduled";
/// The agent is about to end the pod for a reason of the node.
pub const DISRUPTION_TARGET: &str = "DisruptionTarget";

/// Conditions that only the agent writes, in the order of the status.
pub const OWNED: [&str; 5] = [READY_TO_START, INITIALIZED, READY, CONTAINERS_READY, SCHEDULED];

/// Computes the owned conditions, without times. `gates` are the conditions of the API that readiness gates look at.
pub fn owned(
    pod: &Pod,
    phase: Phase,
    init: &[ContainerStatus],
    main: &[ContainerStatus],
    sandbox_usable: bool,
    gates: &[PodCondition],
) -> Vec<PodCondition> {
    let containers_ready = containers_ready(pod, phase, init, main);
    vec![
        condition(READY_TO_START, sandbox_usable, "", ""),
        initialized(pod, phase, init, main),
        ready(pod, &containers_ready, gates),
        containers_ready,
        condition(SCHEDULED, true, "", ""),
    ]
}

pub(crate) fn condition(kind: &str, status: bool, reason: &str, message: &str) -> PodCondition {
    PodCondition {
        type_: kind.into(),
        status: if status { "True" } else { "False" }.into(),
        reason: Some(reason.to_owned()).filter(|r| !r.is_empty()),
        message: Some(message.to_owned()).filter(|m| !m.is_empty()),
        ..PodCondition::default()
    }
}

fn initialized(pod: &Pod, phase: Phase, init: &[ContainerStatus], main: &[ContainerStatus]) -> PodCondition {
    let spec_init = spec::init_containers(pod);
    if init.is_empty() && !spec_init.is_empty() {
        return condition(INITIALIZED, false, "UnknownContainerStatuses", "");
    }
    let (mut unknown, mut incomplete) = (Vec::new(), Vec::new());
    for container in spec_init {
        let Some(status) = init.iter().find(|s| s.name == container.name) else {
            unknown.push(container.name.as_str());
            continue;
        };
        let done = if spec::is_sidecar(container) { status.started.unwrap_or(false) } else { status.ready };
        if !done {
            incomplete.push(container.name.as_str());
        }
    }
    if phase == Phase::Succeeded && unknown.is_empty() {
        return condition(INITIALIZED, true, "PodCompleted", "");
    }
    let main_begun =
        main.iter().any(|s| s.state.as_ref().is_some_and(|s| s.running.is_some() || s.terminated.is_some()));
    if main_begun || (unknown.is_empty() && incomplete.is_empty()) {
        return condition(INITIALIZED, true, "", "");
    }
    let message = join(&[("unknown", &unknown), ("incomplete", &incomplete)]);
    condition(INITIALIZED, false, "ContainersNotInitialized", &message)
}

fn containers_ready(pod: &Pod, phase: Phase, init: &[ContainerStatus], main: &[ContainerStatus]) -> PodCondition {
    if main.is_empty() && !spec::containers(pod).is_empty() {
        return condition(CONTAINERS_READY, false, "UnknownContainerStatuses", "");
    }
    let (mut unknown, mut unready) = (Vec::new(), Vec::new());
    let sidecars = spec::init_containers(pod).iter().filter(|c| spec::is_sidecar(c)).map(|c| (c, init));
    for (container, statuses) in sidecars.chain(spec::containers(pod).iter().map(|c| (c, main))) {
        match statuses.iter().find(|s| s.name == container.name) {
            None => unknown.push(container.name.as_str()),
            Some(status) if !status.ready => unready.push(container.name.as_str()),
            Some(_) => {}
        }
    }
    match phase {
        Phase::Succeeded if unknown.is_empty() => return condition(CONTAINERS_READY, false, "PodCompleted", ""),
        Phase::Failed => return condition(CONTAINERS_READY, false, "PodFailed", ""),
        _ => {}
    }
    if unknown.is_empty() && unready.is_empty() {
        return condition(CONTAINERS_READY, true, "", "");
    }
    let message = join(&[("unknown", &unknown), ("unready", &unready)]);
    condition(CONTAINERS_READY, false, "ContainersNotReady", &message)
}

fn ready(pod: &Pod, containers_ready: &PodCondition, gates: &[PodCondition]) -> PodCondition {
    if containers_ready.status != "True" {
        return PodCondition { type_: READY.into(), ..containers_ready.clone() };
    }
    let mut problems = Vec::new();
    for gate in pod.spec.iter().flat_map(|s| s.readiness_gates.iter().flatten()) {
        let kind = &gate.condition_type;
        match gates.iter().find(|c| c.type_ == *kind) {
            None => problems.push(format!("corresponding condition of pod readiness gate \"{kind}\" does not exist.")),
            Some(found) if found.status != "True" => problems
                .push(format!("the status of pod readiness gate \"{kind}\" is not \"True\", but {}", found.status)),
            Some(_) => {}
        }
    }
    if problems.is_empty() {
        condition(READY, true, "", "")
    } else {
        condition(READY, false, "ReadinessGatesNotReady", &problems.join(", "))
    }
}

fn join(lists: &[(&str, &Vec<&str>)]) -> String {
    lists
        .iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(word, names)| format!("containers with {word} status: [{}]", names.join(" ")))
        .collect::<Vec<_>>()
        .join(", ")
}
