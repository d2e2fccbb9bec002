//! The status of a pod: computed from the runtime, merged with what the API already has.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodStatus};

use crate::{
    actions,
    conditions::{self, CONTAINERS_READY, DISRUPTION_TARGET, READY},
    containers::{ContainerInput, LOST_AT_TERMINATION, StartFailures, exit_code, lost, seconds},
    last_words,
    observed::ObservedPod,
    phase::{self, Phase},
    probe::ProbeResults,
    qos, resize, spec,
    spec::RestartPolicy,
};

/// Reason of the condition `DisruptionTarget` when it is the agent's.
const BY_KUBELET: &str = "TerminationByKubelet";

/// What a status is computed from.
pub struct StatusInput<'a> {
    /// The pod; its own `status` is not looked at.
    pub pod: &'a Pod,
    /// The status that the API is known to have.
    pub api: &'a PodStatus,
    /// The status that the agent computed before, if any.
    pub previous: Option<&'a PodStatus>,
    /// What the runtime says.
    pub observed: &'a ObservedPod,
    /// Why containers could not be started.
    pub failures: &'a StartFailures,
    /// Probe verdicts.
    pub probes: &'a ProbeResults,
    /// Name of the runtime for container ids, `containerd`.
    pub runtime_name: &'a str,
    /// Addresses of the node.
    pub host_ips: &'a [String],
    /// How far the end of the pod has come.
    pub ending: Ending,
    /// Where a change of its resources stands.
    pub resize: &'a resize::Progress,
    /// Phase, reason and message that the killer asked for.
    pub verdict: Option<&'a EndVerdict>,
    /// Now.
    pub now: Timestamp,
}

/// How far a pod's end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The pod lives, or its containers are being stopped.
    No,
    /// All containers have stopped for good.
    Stopped,
    /// Its resources are released too: the final status.
    Final,
}

/// Why the agent ended a pod by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndVerdict {
    /// `DeadlineExceeded`, `Evicted`, …
    pub reason: String,
    /// Free text.
    pub message: String,
    /// Message of the condition `DisruptionTarget`, when trouble of the node ends the pod.
    pub disruption: Option<String>,
    /// The pod was refused: what the runtime has of it is from an earlier life, or nothing.
    pub rejected: bool,
}

impl EndVerdict {
    /// A verdict on the pod itself.
    pub fn new(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self { reason: reason.into(), message: message.into(), disruption: None, rejected: false }
    }

    /// A verdict for the sake of the node (`Evicted`, `Preempting`, `Terminated`): the pod gets the condition
    /// `DisruptionTarget`, reason `TerminationByKubelet`.
    pub fn disruption(reason: impl Into<String>, message: impl Into<String>, condition: impl Into<String>) -> Self {
        Self { disruption: Some(condition.into()), ..Self::new(reason, message) }
    }

    /// The node does not take the pod.
    pub fn rejected(reason: impl Into<String>, message: &str) -> Self {
        Self { rejected: true, ..Self::new(reason, format!("Pod was rejected: {message}")) }
    }
}

/// Computes the status to report.
pub fn compute(input: &StatusInput<'_>) -> PodStatus {
    let before = input.previous.unwrap_or(input.api);
    if let Some(verdict) = input.verdict.filter(|verdict| verdict.rejected && input.observed.is_absent()) {
        return rejected(input, verdict, before);
    }
    let containers = ContainerInput {
        pod: input.pod,
        observed: input.observed,
        failures: input.failures,
        probes: input.probes,
        runtime_name: input.runtime_name,
        terminal: input.ending != Ending::No,
    };
    let mut main = containers.main(before.container_statuses.as_deref().unwrap_or_default());
    let ephemeral = containers.ephemeral(before.ephemeral_container_statuses.as_deref().unwrap_or_default());
    let mut init = containers.init(before.init_container_statuses.as_deref().unwrap_or_default());
    if input.ending == Ending::Final {
        end_statuses(input.pod, &mut init, &mut main);
    }
    last_words::cut(input.pod, main.iter_mut().chain(&mut init));
    let phase = decide_phase(input, before, &init, &main);
    let (reason, message) = reason_and_message(input, before, phase);
    let sandbox_usable = actions::new_sandbox_attempt(input.pod, input.observed).is_none();
    let owned = conditions::owned(
        input.pod,
        phase,
        &init,
        &main,
        sandbox_usable,
        input.api.conditions.as_deref().unwrap_or_default(),
    );
    let ips = pod_ips(input, before);
    let mut status = PodStatus {
        phase: Some(phase.as_str().into()),
        reason,
        message,
        conditions: Some(merge_conditions(input, before, owned, phase)),
        container_statuses: Some(main),
        init_container_statuses: Some(init).filter(|list| !list.is_empty()),
        // A node that has lost its route for a while has not lost its address.
        host_ip: input.host_ips.first().cloned().or_else(|| before.host_ip.clone()),
        host_ips: list(input.host_ips, |ip| HostIP { ip: ip.clone() }).or_else(|| before.host_ips.clone()),
        pod_ip: ips.first().cloned(),
        pod_ips: list(&ips, |ip| PodIP { ip: ip.clone() }),
        qos_class: Some(input.api.qos_class.clone().unwrap_or_else(|| qos::qos_class(input.pod).into())),
        start_time: before.start_time.clone().or_else(|| Some(seconds(input.now))),
        // Not the agent's: kept as the API has them.
        nominated_node_name: input.api.nominated_node_name.clone(),
        resource_claim_statuses: input.api.resource_claim_statuses.clone(),
        resize: input.api.resize.clone(),
        observed_generation: input.api.observed_generation,
        ephemeral_container_statuses: Some(ephemeral).filter(|list| !list.is_empty()),
    };
    input.resize.show(input.pod, before, &mut status);
    delay_terminal_phase(input, &mut status);
    status
}

/// A pod of which nothing was started: nothing but the refusal is told.
fn rejected(input: &StatusInput<'_>, verdict: &EndVerdict, before: &PodStatus) -> PodStatus {
    PodStatus {
        phase: Some(Phase::Failed.as_str().into()),
        reason: Some(verdict.reason.clone()),
        message: Some(verdict.message.clone()),
        qos_class: Some(input.api.qos_class.clone().unwrap_or_else(|| qos::qos_class(input.pod).into())),
        start_time: before.start_time.clone().or_else(|| Some(seconds(input.now))),
        ..input.api.clone()
    }
}

/// Whether the computed end is real yet: the phase before any delay of its publication.
pub fn is_complete(pod: &Pod, status: &PodStatus) -> bool {
    let phase = phase::phase(
        pod,
        status.init_container_statuses.as_deref().unwrap_or_default(),
        status.container_statuses.as_deref().unwrap_or_default(),
        false,
    );
    phase.is_terminal()
}

fn decide_phase(
    input: &StatusInput<'_>,
    before: &PodStatus,
    init: &[ContainerStatus],
    main: &[ContainerStatus],
) -> Phase {
    if input.verdict.is_some() {
        return Phase::Failed;
    }
    let api = input.api.phase.as_deref().and_then(Phase::parse).filter(|p| p.is_terminal());
    let cached = before.phase.as_deref().and_then(Phase::parse).filter(|p| p.is_terminal());
    if let Some(phase) = api.or(cached) {
        return phase;
    }
    let phase = phase::phase(input.pod, init, main, input.ending != Ending::No);
    // A pod that ended without ever running has failed.
    if input.ending == Ending::Final && !phase.is_terminal() { Phase::Failed } else { phase }
}

fn reason_and_message(input: &StatusInput<'_>, before: &PodStatus, phase: Phase) -> (Option<String>, Option<String>) {
    if let Some(verdict) = input.verdict {
        return (Some(verdict.reason.clone()), Some(verdict.message.clone()));
    }
    if before.phase.as_deref() == Some(phase.as_str()) {
        return (before.reason.clone(), before.message.clone());
    }
    (None, None)
}

/// At the end every container that got its turn has a terminated state: one that cannot be found counts as failed.
fn end_statuses(pod: &Pod, init: &mut [ContainerStatus], main: &mut [ContainerStatus]) {
    let begun = |s: &ContainerStatus| {
        let ended = exit_code(s.state.as_ref()).or(exit_code(s.last_state.as_ref()));
        ended.is_some() || s.state.as_ref().is_some_and(|s| s.running.is_some())
    };
    let init_done = init.last().is_none_or(|s| s.ready || s.started == Some(true));
    let initialized = spec::init_containers(pod).is_empty() || init_done || main.iter().any(begun);
    // Init containers behind the last that began never had their turn.
    let begun_init = init.iter().rposition(begun).map_or(0, |last| last + 1);
    let main = main.iter_mut().filter(|_| initialized);
    for status in main.chain(init.iter_mut().take(begun_init)) {
        if exit_code(status.state.as_ref()).is_none() {
            status.state = Some(lost(LOST_AT_TERMINATION));
            status.ready = false;
            status.started = Some(false);
        }
    }
}

fn pod_ips(input: &StatusInput<'_>, before: &PodStatus) -> Vec<String> {
    if spec::host_network(input.pod) && !input.host_ips.is_empty() {
        return if input.observed.sandboxes.is_empty() && before.pod_ip.is_none() {
            Vec::new()
        } else {
            input.host_ips.to_vec()
        };
    }
    let ips = input.observed.ips();
    if !ips.is_empty() {
        return ips.to_vec();
    }
    // No sandbox reports an address any more: the last one stays, for those who look at an ended pod.
    before.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect()
}

fn list<T>(items: &[String], make: impl Fn(&String) -> T) -> Option<Vec<T>> {
    (!items.is_empty()).then(|| items.iter().map(make).collect())
}

/// Foreign conditions first and untouched, then the agent's; times change only when a status flips.
fn merge_conditions(
    input: &StatusInput<'_>,
    before: &PodStatus,
    mut owned: Vec<PodCondition>,
    phase: Phase,
) -> Vec<PodCondition> {
    let api = input.api.conditions.as_deref().unwrap_or_default();
    let old = before.conditions.as_deref().unwrap_or_default();
    let mut merged: Vec<PodCondition> =
        api.iter().filter(|c| !conditions::OWNED.contains(&c.type_.as_str())).cloned().collect();
    if phase.is_terminal() && !is_delayed(input) {
        set_disruption(input, old, &mut merged);
    }
    for condition in &mut owned {
        let same = old
            .iter()
            .chain(api)
            .find(|c| c.type_ == condition.type_)
            .filter(|c| c.status == condition.status && c.last_transition_time.is_some());
        condition.last_transition_time =
            same.map_or_else(|| Some(seconds(input.now)), |c| c.last_transition_time.clone());
        condition.observed_generation =
            api.iter().find(|c| c.type_ == condition.type_).and_then(|c| c.observed_generation);
    }
    merged.append(&mut owned);
    merged
}

/// Containers may still run: the end is not told yet.
fn is_delayed(input: &StatusInput<'_>) -> bool {
    let api_terminal = spec::is_terminal_phase(input.api.phase.as_deref());
    input.ending == Ending::No && !api_terminal && input.observed.has_live_containers()
}

/// `DisruptionTarget` comes together with the end that it explains, in the place that the API has for it.
fn set_disruption(input: &StatusInput<'_>, old: &[PodCondition], merged: &mut Vec<PodCondition>) {
    let Some(message) = input.verdict.and_then(|verdict| verdict.disruption.as_deref()) else { return };
    let mut target = conditions::condition(DISRUPTION_TARGET, true, BY_KUBELET, message);
    let known = merged.iter().position(|c| c.type_ == DISRUPTION_TARGET);
    let since = old.iter().chain(&*merged).find(|c| c.type_ == DISRUPTION_TARGET && c.status == "True");
    target.last_transition_time =
        since.and_then(|c| c.last_transition_time.clone()).or_else(|| Some(seconds(input.now)));
    match known.and_then(|index| merged.get_mut(index)) {
        Some(place) => *place = target,
        None => merged.push(target),
    }
}

/// A terminal phase is told only once no container can run any more; then Ready is false too.
fn delay_terminal_phase(input: &StatusInput<'_>, status: &mut PodStatus) {
    if !spec::is_terminal_phase(status.phase.as_deref()) {
        return;
    }
    if is_delayed(input) {
        status.phase = Some(input.api.phase.clone().unwrap_or_else(|| "Pending".into()));
        status.reason = input.api.reason.clone();
        status.message = input.api.message.clone();
        return;
    }
    let reason = if status.phase.as_deref() == Some("Succeeded") { "PodCompleted" } else { "PodFailed" };
    for condition in status.conditions.iter_mut().flatten() {
        if (condition.type_ == READY || condition.type_ == CONTAINERS_READY) && condition.status == "True" {
            condition.status = "False".into();
            condition.reason = Some(reason.into());
            condition.message = None;
            condition.last_transition_time = Some(seconds(input.now));
        }
    }
}

/// Puts a computed status on a newer base: everything that is not the agent's comes from the API.
pub fn rebase(mut status: PodStatus, api: &PodStatus) -> PodStatus {
    let theirs = api.conditions.iter().flatten().filter(|c| !conditions::OWNED.contains(&c.type_.as_str())).cloned();
    let mut merged: Vec<PodCondition> = theirs.collect();
    for condition in status.conditions.take().into_iter().flatten() {
        if condition.type_ == DISRUPTION_TARGET && condition.reason.as_deref() == Some(BY_KUBELET) {
            match merged.iter_mut().find(|c| c.type_ == DISRUPTION_TARGET) {
                Some(place) => *place = condition,
                None => merged.push(condition),
            }
        } else if conditions::OWNED.contains(&condition.type_.as_str()) {
            merged.push(condition);
        }
    }
    status.conditions = Some(merged);
    if spec::is_terminal_phase(api.phase.as_deref()) {
        status.phase.clone_from(&api.phase);
    }
    status.start_time = api.start_time.clone().or(status.start_time);
    status.qos_class = api.qos_class.clone().or(status.qos_class);
    status.nominated_node_name.clone_from(&api.nominated_node_name);
    status.resource_claim_statuses.clone_from(&api.resource_claim_statuses);
    if !resize::is_shown(&status) {
        status.resize.clone_from(&api.resize);
    }
    status.observed_generation = api.observed_generation;
    status
}

/// A status that must not be told: a container that may not restart came back to life.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("container {container} is terminated and may not restart, but is shown as not terminated")]
pub struct IllegalTransition {
    /// Name of the container.
    pub container: String,
}

/// Checks that no terminated container without permission to restart becomes anything else.
pub fn check_transition(pod: &Pod, before: &PodStatus, after: &PodStatus) -> Result<(), IllegalTransition> {
    let policy = spec::restart_policy(pod);
    if policy == RestartPolicy::Always {
        return Ok(());
    }
    let lists = [
        (&before.container_statuses, &after.container_statuses),
        (&before.init_container_statuses, &after.init_container_statuses),
    ];
    for (old, new) in lists {
        for old in old.iter().flatten() {
            let Some(code) = exit_code(old.state.as_ref()) else { continue };
            let may_restart = spec::container(pod, &old.name).is_none_or(spec::is_sidecar)
                || (policy == RestartPolicy::OnFailure && code != 0);
            let back = new.iter().flatten().find(|n| n.name == old.name);
            if !may_restart && back.is_some_and(|n| exit_code(n.state.as_ref()).is_none()) {
                return Err(IllegalTransition { container: old.name.clone() });
            }
        }
    }
    Ok(())
}
