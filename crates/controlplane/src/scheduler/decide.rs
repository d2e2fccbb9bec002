//! Which node a pod goes to, or why none will have it, in the words of the upstream scheduler.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::node::NodeInfo;
use super::{affinity, resources, taints};
use crate::object::Object;
use crate::pods;
use crate::selector;

/// The outcome for one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Bind it to this node.
    Bind(String),
    /// No node will have it; the message for the event and the condition.
    Unschedulable(String),
}

/// Decides for one pod.
pub fn decide(pod: &Object, nodes: &[NodeInfo]) -> Decision {
    if let Some(reason) = unsupported(pod) {
        return Decision::Unschedulable(reason);
    }
    if nodes.is_empty() {
        return Decision::Unschedulable("no nodes available to schedule pods".to_owned());
    }
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let mut best: Option<(i64, &NodeInfo)> = None;
    for node in nodes {
        let objections = objections(pod, node, nodes);
        if objections.is_empty() {
            let score = score(pod, node);
            if best.is_none_or(|(high, _)| score > high) {
                best = Some((score, node));
            }
        }
        for reason in objections {
            *reasons.entry(reason).or_default() += 1;
        }
    }
    match best {
        Some((_, node)) => Decision::Bind(node.node.name().to_owned()),
        None => {
            let mut parts: Vec<String> = reasons.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
            parts.sort();
            Decision::Unschedulable(format!("0/{} nodes are available: {}.", nodes.len(), parts.join(", ")))
        }
    }
}

/// What this scheduler cannot do and therefore must not ignore.
fn unsupported(pod: &Object) -> Option<String> {
    let claims = |v: &&Value| !v["persistentVolumeClaim"].is_null() || !v["ephemeral"].is_null();
    if let Some(volume) = pod.list("/spec/volumes").iter().find(claims) {
        let claim =
            volume["persistentVolumeClaim"]["claimName"].as_str().or(volume["name"].as_str()).unwrap_or_default();
        return Some(format!(
            "persistentvolumeclaim \"{claim}\" cannot be bound: the embedded control plane has no volume binder; use hostPath, emptyDir, configMap or secret volumes"
        ));
    }
    (!pod.list("/spec/resourceClaims").is_empty()).then(|| {
        "resource claims cannot be allocated: the embedded control plane has no dynamic resource allocation".to_owned()
    })
}

/// All reasons of the first filter that refuses the node, in upstream's order of filters.
fn objections(pod: &Object, info: &NodeInfo, nodes: &[NodeInfo]) -> Vec<String> {
    let node = &info.node;
    let tolerations = pod.list("/spec/tolerations");
    let one = |text: &str| vec![text.to_owned()];
    let unschedulable = json!({"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"});
    if node.at("/spec/unschedulable") == true && !taints::tolerates(tolerations, &unschedulable) {
        return one("node(s) were unschedulable");
    }
    if node.is_deleting() {
        return one("node(s) were being deleted");
    }
    if let Some(taint) = taints::untolerated(node.list("/spec/taints"), tolerations, &["NoSchedule", "NoExecute"]) {
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        return vec![format!("node(s) had untolerated taint {{{}: {}}}", text(&taint["key"]), text(&taint["value"]))];
    }
    if !selector::pod_accepts_node(pod.at("/spec"), node) {
        return one("node(s) didn't match Pod's node affinity/selector");
    }
    let wanted_ports = resources::host_ports(pod.at("/spec"));
    if wanted_ports.iter().any(|a| info.ports.iter().any(|b| resources::ports_collide(a, b))) {
        return one("node(s) didn't have free ports for the requested pod ports");
    }
    let wanted = resources::requests(pod.at("/spec"));
    let pods = i128::try_from(info.pods.len()).unwrap_or(i128::MAX);
    let missing = resources::lacking(&wanted, &info.used, pods, &info.allocatable);
    if !missing.is_empty() {
        return missing;
    }
    affinity::objection(pod, info, nodes).map(one).unwrap_or_default()
}

/// Higher is better: free resources, few pods of the same kind, soft taints and preferences.
fn score(pod: &Object, info: &NodeInfo) -> i64 {
    let free = resources::least_allocated(&resources::requests(pod.at("/spec")), &info.used, &info.allocatable);
    let owner = pod.controller().map(|o| o.uid.to_owned());
    let sibling = |p: &&Object| owner.as_deref().is_some_and(|uid| p.is_controlled_by(uid)) && pods::is_active(p);
    let siblings = i64::try_from(info.pods.iter().filter(sibling).count()).unwrap_or(0);
    let crowd = i64::try_from(info.pods.len()).unwrap_or(0);
    let soft = info
        .node
        .list("/spec/taints")
        .iter()
        .filter(|t| t["effect"] == "PreferNoSchedule" && !taints::tolerates(pod.list("/spec/tolerations"), t))
        .count();
    let preferred: i64 = pod
        .list("/spec/affinity/nodeAffinity/preferredDuringSchedulingIgnoredDuringExecution")
        .iter()
        .filter(|t| selector::node_term(&t["preference"], &info.node))
        .filter_map(|t| t["weight"].as_i64())
        .sum();
    free - siblings * 200 - crowd + preferred * 2 - i64::try_from(soft).unwrap_or(0) * 300
}
