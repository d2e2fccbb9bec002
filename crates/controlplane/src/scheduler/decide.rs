//! Which node a pod goes to, or why none will have it, in the words of the upstream scheduler.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::node::NodeInfo;
use super::volumes::{Demand, Promise, Refusal, Stock};
use super::{affinity, resources, taints};
use crate::object::Object;
use crate::pods;
use crate::selector;

/// The outcome for one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Bind it to this node.
    Bind(String),
    /// It will go to a node where these volumes are for its claims: they must be bound first.
    Promise(Vec<Promise>),
    /// Somebody is at work for it.
    Wait,
    /// No node will have it; the message for the event and the condition.
    Unschedulable(String),
}

/// Decides for one pod.
pub fn decide(pod: &Object, nodes: &[NodeInfo], stock: &Stock) -> Decision {
    if let Some(reason) = unsupported(pod) {
        return Decision::Unschedulable(reason);
    }
    if nodes.is_empty() {
        return Decision::Unschedulable("no nodes available to schedule pods".to_owned());
    }
    let demand = match stock.demand(pod) {
        Ok(demand) => demand,
        Err(Refusal::NotYet) => return Decision::Wait,
        Err(Refusal::Because(why)) => {
            return Decision::Unschedulable(format!("0/{} nodes are available: {why}.", nodes.len()));
        }
    };
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let mut best: Option<(i64, &NodeInfo, Vec<Promise>)> = None;
    for node in nodes {
        match suits(pod, node, nodes, stock, &demand) {
            Ok(promises) => {
                let score = score(pod, node);
                if best.as_ref().is_none_or(|(high, ..)| score > *high) {
                    best = Some((score, node, promises));
                }
            }
            Err(objections) => {
                for reason in objections {
                    *reasons.entry(reason).or_default() += 1;
                }
            }
        }
    }
    match best {
        Some((_, node, promises)) if promises.is_empty() => Decision::Bind(node.node.name().to_owned()),
        Some((.., promises)) => Decision::Promise(promises),
        None => {
            let mut parts: Vec<String> = reasons.iter().map(|(reason, n)| format!("{n} {reason}")).collect();
            parts.sort();
            Decision::Unschedulable(format!("0/{} nodes are available: {}.", nodes.len(), parts.join(", ")))
        }
    }
}

/// What this scheduler cannot do and therefore must not ignore.
fn unsupported(pod: &Object) -> Option<String> {
    if let Some(volume) = pod.list("/spec/volumes").iter().find(|volume| !volume["ephemeral"].is_null()) {
        return Some(format!(
            "volume \"{}\" cannot be had: the embedded control plane makes no claims for ephemeral volumes; use emptyDir or a persistentVolumeClaim",
            volume["name"].as_str().unwrap_or_default()
        ));
    }
    (!pod.list("/spec/resourceClaims").is_empty()).then(|| {
        "resource claims cannot be allocated: the embedded control plane has no dynamic resource allocation".to_owned()
    })
}

/// The promises that go with the node.
///
/// # Errors
/// Why it does not do.
fn suits(
    pod: &Object,
    node: &NodeInfo,
    nodes: &[NodeInfo],
    stock: &Stock,
    demand: &Demand,
) -> Result<Vec<Promise>, Vec<String>> {
    let objections = objections(pod, node);
    if !objections.is_empty() {
        return Err(objections);
    }
    let promises = stock.on_node(demand, pod, &node.node, &node.pods).map_err(|why| vec![why.to_owned()])?;
    match affinity::objection(pod, node, nodes) {
        Some(why) => Err(vec![why.to_owned()]),
        None => Ok(promises),
    }
}

/// All reasons of the first filter that refuses the node, in upstream's order of filters.
fn objections(pod: &Object, info: &NodeInfo) -> Vec<String> {
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
    resources::lacking(&wanted, &info.used, pods, &info.allocatable)
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
