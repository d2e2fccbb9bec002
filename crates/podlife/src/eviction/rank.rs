//! The order in which pods go.

use std::cmp::Ordering;

use k8s_openapi::api::core::v1::Pod;

use super::signal::Resource;
use crate::spec;

/// From this priority on a pod is critical.
pub const CRITICAL_PRIORITY: i32 = 2_000_000_000;

/// What a pod uses and has asked for of the resource that is short.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// UID.
    pub uid: String,
    /// `spec.priority`.
    pub priority: i32,
    /// What it asked for; 0 for resources that cannot be asked for.
    pub request: u64,
    /// What it uses; absent when nobody knows.
    pub usage: Option<u64>,
}

/// Static, mirror or of critical priority: the node needs it.
pub fn is_critical(pod: &Pod) -> bool {
    let is_mirror = pod.metadata.annotations.as_ref().is_some_and(|a| a.contains_key("kubernetes.io/config.mirror"));
    let priority = pod.spec.as_ref().and_then(|s| s.priority).unwrap_or_default();
    spec::is_static(pod) || is_mirror || priority >= CRITICAL_PRIORITY
}

/// Puts the pods that should go first to the front: those that use more than they asked for, then those of low
/// priority, then those that use most. Who cannot be measured comes first.
pub fn rank(resource: Resource, candidates: &mut [Candidate]) {
    let by_request = matches!(resource, Resource::Memory | Resource::EphemeralStorage);
    candidates.sort_by(|a, b| {
        let measured = a.usage.is_some().cmp(&b.usage.is_some());
        let exceeds = |c: &Candidate| by_request && c.usage.is_some_and(|usage| usage > c.request);
        let overuse = |c: &Candidate| i128::from(c.usage.unwrap_or_default()) - i128::from(c.request);
        measured
            .then(exceeds(b).cmp(&exceeds(a)))
            .then(a.priority.cmp(&b.priority))
            .then(overuse(b).cmp(&overuse(a)))
            .then(Ordering::Equal)
    });
}
