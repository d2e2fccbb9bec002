//! Whether this node takes a pod: the checks of the kubelet in its order, with its reasons and messages.
//!
//! The first check that fails decides. [`admit`] looks at the pod, at those that are admitted already, and at what is known
//! of the node; a critical pod that finds too little room gets the list of pods to end for it.

mod predicates;
mod preemption;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, Taint, Toleration};

use crate::{apparmor, qos, requests::Amounts, spec, sysctl};

/// From this priority on a pod is critical.
pub const CRITICAL_PRIORITY: i32 = 2_000_000_000;

/// Trouble of the node, as far as new pods are concerned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Condition `MemoryPressure`.
    pub memory: bool,
    /// Condition `DiskPressure`.
    pub disk: bool,
    /// Condition `PIDPressure`.
    pub pid: bool,
    /// The node is about to shut down.
    pub shutting_down: bool,
}

/// What is known of the node.
#[derive(Clone, Debug, Default)]
pub struct NodeView<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its labels; `None` when they are not known: then selectors are taken as met.
    pub labels: Option<&'a BTreeMap<String, String>>,
    /// Its taints.
    pub taints: &'a [Taint],
    /// What pods may use, `pods` included.
    pub allocatable: Amounts,
    /// Its trouble.
    pub pressure: Pressure,
    /// Patterns of sysctls that pods may set besides the safe ones (`net.core.*`).
    pub allowed_sysctls: &'a [String],
    /// The kernel enforces AppArmor profiles.
    pub apparmor: bool,
}

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// `status.reason`.
    pub reason: String,
    /// What the event says, and the status after `Pod was rejected: `.
    pub message: String,
}

impl Rejection {
    fn new(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self { reason: reason.into(), message: message.into() }
    }

    /// It comes from labels or taints of the node, which may have changed since they were read.
    pub fn is_of_node(&self) -> bool {
        matches!(self.reason.as_str(), "NodeAffinity" | "TaintToleration")
    }
}

/// What becomes of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It may run.
    Admit,
    /// It may run once the pods of these UIDs have ended.
    Preempt(Vec<String>),
    /// It may not.
    Reject(Rejection),
}

/// Static pods, mirrors, and pods of the highest priorities.
pub fn is_critical(pod: &Pod) -> bool {
    let mirror = pod.metadata.annotations.as_ref().is_some_and(|a| a.contains_key("kubernetes.io/config.mirror"));
    let priority = pod.spec.as_ref().and_then(|s| s.priority);
    spec::is_static(pod) || mirror || priority.is_some_and(|priority| priority >= CRITICAL_PRIORITY)
}

/// Decides on a pod; `others` are those that run or may run on the node. `pending` is whether the API has the pod as
/// Pending: some checks are for new pods only.
pub fn admit(pod: &Pod, others: &[&Pod], node: &NodeView<'_>, pending: bool) -> Outcome {
    if let Some(rejection) = pressure(pod, node.pressure) {
        return Outcome::Reject(rejection);
    }
    if let Some(message) = sysctl::forbidden(pod, node.allowed_sysctls) {
        return Outcome::Reject(Rejection::new("SysctlForbidden", message));
    }
    let mut victims = Vec::new();
    let failures = predicates::check(pod, others, node);
    if !failures.is_empty() {
        let first_hard = failures.iter().find(|failure| !failure.is_shortage());
        // A critical pod does not fail for want of room.
        match (is_critical(pod), first_hard) {
            (false, _) => return reject(failures.first()),
            (true, Some(hard)) => return reject(Some(hard)),
            (true, None) => match preemption::victims(pod, others, &failures) {
                Ok(found) => victims = found,
                Err(message) => {
                    let text =
                        format!("Unexpected error while attempting to recover from admission failure: {message}");
                    return Outcome::Reject(Rejection::new("UnexpectedAdmissionError", text));
                }
            },
        }
    }
    if let Some(message) = apparmor::rejection(pod, node.apparmor).filter(|_| pending) {
        return Outcome::Reject(Rejection::new("AppArmor", message));
    }
    if node.pressure.shutting_down {
        return Outcome::Reject(Rejection::new("NodeShutdown", "Pod was rejected as the node is shutting down."));
    }
    if victims.is_empty() { Outcome::Admit } else { Outcome::Preempt(victims) }
}

fn reject(failure: Option<&predicates::Failure>) -> Outcome {
    failure.map_or(Outcome::Admit, |failure| Outcome::Reject(failure.rejection()))
}

/// Under pressure only critical pods come in; while only memory is short, so do all that have a request, and those that
/// tolerate it.
fn pressure(pod: &Pod, pressure: Pressure) -> Option<Rejection> {
    let conditions: Vec<&str> =
        [(pressure.memory, "MemoryPressure"), (pressure.disk, "DiskPressure"), (pressure.pid, "PIDPressure")]
            .into_iter()
            .filter_map(|(is, name)| is.then_some(name))
            .collect();
    if conditions.is_empty() || is_critical(pod) {
        return None;
    }
    if conditions == ["MemoryPressure"] {
        let taint =
            Taint { key: "node.kubernetes.io/memory-pressure".into(), effect: "NoSchedule".into(), ..Taint::default() };
        if qos::qos_class(pod) != "BestEffort" || tolerates(pod, &taint) {
            return None;
        }
    }
    let text = format!("The node had condition: [{}]. ", conditions.join(" "));
    Some(Rejection::new("Evicted", text))
}

fn tolerates(pod: &Pod, taint: &Taint) -> bool {
    let tolerations = pod.spec.as_ref().and_then(|s| s.tolerations.as_deref()).unwrap_or_default();
    tolerations.iter().any(|toleration| matches(toleration, taint))
}

fn matches(toleration: &Toleration, taint: &Taint) -> bool {
    let set = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let effect = set(&toleration.effect).is_none_or(|effect| effect == taint.effect);
    let key = set(&toleration.key).is_none_or(|key| key == taint.key);
    effect
        && key
        && match toleration.operator.as_deref() {
            Some("Exists") => true,
            Some("Equal" | "") | None => {
                toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default()
            }
            Some(_) => false,
        }
}
