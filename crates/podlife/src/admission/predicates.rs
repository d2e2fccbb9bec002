//! The general predicates: operating system, room, labels, name, ports, taints.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{ContainerPort, Pod, Taint};

use super::{NodeView, Rejection, tolerates};
use crate::{node_selector, requests, spec};

/// Taints that say that the cloud does not hear of this agent, which is at work all the same.
const ABOUT_THE_AGENT: [&str; 2] = ["node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready"];

/// A predicate that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// Not enough of a resource.
    Shortage { resource: String, requested: i64, used: i64, capacity: i64 },
    /// Any other.
    Other(Rejection),
}

impl Failure {
    pub fn is_shortage(&self) -> bool {
        matches!(self, Failure::Shortage { .. })
    }

    /// The resource and how much of it is missing.
    pub fn missing(&self) -> Option<(&str, i64)> {
        match self {
            Failure::Shortage { resource, requested, used, capacity } => {
                Some((resource, requested.saturating_sub(capacity.saturating_sub(*used))))
            }
            Failure::Other(_) => None,
        }
    }

    pub fn rejection(&self) -> Rejection {
        match self {
            Failure::Shortage { resource, requested, used, capacity } => Rejection::new(
                format!("OutOf{resource}"),
                format!(
                    "Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, \
                     capacity: {capacity}"
                ),
            ),
            Failure::Other(rejection) => rejection.clone(),
        }
    }
}

/// Everything that does not hold, in the order of the kubelet.
pub(super) fn check(pod: &Pod, others: &[&Pod], node: &NodeView<'_>) -> Vec<Failure> {
    if let Some(failure) = operating_system(pod) {
        return vec![failure];
    }
    let failed =
        |name: &str, why: &str| Failure::Other(Rejection::new(name, format!("Predicate {name} failed: {why}")));
    let mut failures = shortages(pod, others, node);
    if node.labels.is_some_and(|labels| !is_wanted(pod, node.name, labels)) {
        failures.push(failed("NodeAffinity", "node(s) didn't match Pod's node affinity/selector"));
    }
    let wanted = pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).filter(|name| !name.is_empty());
    if wanted.is_some_and(|name| name != node.name) {
        failures.push(failed("NodeName", "node(s) didn't match the requested node name"));
    }
    if ports_conflict(pod, others) {
        failures.push(failed("NodePorts", "node(s) didn't have free ports for the requested pod ports"));
    }
    let drives_away = |taint: &&Taint| taint.effect == "NoExecute" && !ABOUT_THE_AGENT.contains(&taint.key.as_str());
    if !spec::is_static(pod) && node.taints.iter().filter(drives_away).any(|taint| !tolerates(pod, taint)) {
        failures.push(failed("TaintToleration", "node(s) had taints that the pod didn't tolerate"));
    }
    failures
}

/// Whether a node of this name with these labels is one that the pod asks for.
fn is_wanted(pod: &Pod, name: &str, labels: &BTreeMap<String, String>) -> bool {
    let Some(spec) = pod.spec.as_ref() else { return true };
    let selected = spec.node_selector.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    selected && required.is_none_or(|required| node_selector::matches(required, name, labels))
}

fn operating_system(pod: &Pod) -> Option<Failure> {
    let label = pod.metadata.labels.as_ref().and_then(|labels| labels.get("kubernetes.io/os"));
    if label.is_some_and(|os| os != "linux") {
        return Some(Failure::Other(Rejection::new(
            "PodOSSelectorNodeLabelDoesNotMatch",
            "Failed to admit pod as the `kubernetes.io/os` label doesn't match node label",
        )));
    }
    let os = pod.spec.as_ref().and_then(|s| s.os.as_ref());
    os.filter(|os| os.name != "linux").map(|_| {
        let text = "Failed to admit pod as the OS field doesn't match node OS";
        Failure::Other(Rejection::new("PodOSNotSupported", text))
    })
}

/// Resources of which too little is left.
fn shortages(pod: &Pod, others: &[&Pod], node: &NodeView<'_>) -> Vec<Failure> {
    let wanted = requests::pod(pod);
    let used = requests::pods(others);
    let first = ["pods", "cpu", "memory", "ephemeral-storage"];
    let rest = wanted.keys().map(String::as_str).filter(|name| !first.contains(name));
    let mut failures = Vec::new();
    for resource in first.into_iter().chain(rest) {
        let requested = wanted.get(resource).copied().unwrap_or_default();
        let capacity = node.allocatable.get(resource).copied();
        // What only the cluster counts is none of this node's business.
        if requested == 0 || (capacity.is_none() && is_extended(resource)) {
            continue;
        }
        let (capacity, used) = (capacity.unwrap_or_default(), used.get(resource).copied().unwrap_or_default());
        if requested > capacity.saturating_sub(used) {
            failures.push(Failure::Shortage { resource: resource.to_owned(), requested, used, capacity });
        }
    }
    failures
}

/// A resource with a domain that is not of Kubernetes.
fn is_extended(resource: &str) -> bool {
    resource.split_once('/').is_some_and(|(domain, _)| !domain.ends_with("kubernetes.io"))
}

type HostPort = (String, String, i32);

/// Ports that a pod takes on the node: protocol, address, number.
fn host_ports(pod: &Pod) -> BTreeSet<HostPort> {
    let sidecars = spec::init_containers(pod).iter().filter(|c| spec::is_sidecar(c));
    let ports = spec::containers(pod).iter().chain(sidecars).flat_map(|c| c.ports.iter().flatten());
    ports.filter_map(|port| host_port(port, spec::host_network(pod))).collect()
}

fn host_port(port: &ContainerPort, host_network: bool) -> Option<HostPort> {
    let set = |text: &Option<String>, default: &str| {
        text.clone().filter(|text| !text.is_empty()).unwrap_or_else(|| default.to_owned())
    };
    let on_node_network = host_network.then_some(port.container_port);
    let number = port.host_port.filter(|port| *port > 0).or(on_node_network)?;
    Some((set(&port.protocol, "TCP"), set(&port.host_ip, "0.0.0.0"), number))
}

fn ports_conflict(pod: &Pod, others: &[&Pod]) -> bool {
    let wanted = host_ports(pod);
    if wanted.is_empty() {
        return false;
    }
    let all = |ip: &str| ip == "0.0.0.0";
    let clash = |a: &HostPort, b: &HostPort| a.0 == b.0 && a.2 == b.2 && (a.1 == b.1 || all(&a.1) || all(&b.1));
    others.iter().any(|other| host_ports(other).iter().any(|taken| wanted.iter().any(|port| clash(port, taken))))
}
