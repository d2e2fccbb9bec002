//! What a DaemonSet does next, without IO: which nodes want a pod, which pods go, what the status says.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::deployment::view::int_or_percent;
use crate::object::Object;
use crate::pods;
use crate::scheduler::taints;
use crate::selector;

/// The label that tells the pods of one revision of a DaemonSet apart.
pub const REVISION_HASH: &str = "controller-revision-hash";

/// The writes of one round.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// Nodes that get a pod of the current revision.
    pub create: Vec<String>,
    /// Pods that go, failed ones first.
    pub delete: Vec<Object>,
    /// Of these, the ones that failed: the user is told.
    pub failed: Vec<Object>,
    /// `status` of the DaemonSet.
    pub status: Value,
    /// When to look again because a pod becomes available by time alone.
    pub wait: Option<Duration>,
}

/// The tolerations that every pod of a DaemonSet gets.
pub fn tolerations(template_spec: &Value) -> Vec<Value> {
    let mut list = template_spec["tolerations"].as_array().cloned().unwrap_or_default();
    let mut add = |key: &str, effect: &str| {
        let toleration = json!({"key": format!("node.kubernetes.io/{key}"), "operator": "Exists", "effect": effect});
        if !list.contains(&toleration) {
            list.push(toleration);
        }
    };
    add("not-ready", "NoExecute");
    add("unreachable", "NoExecute");
    add("disk-pressure", "NoSchedule");
    add("memory-pressure", "NoSchedule");
    add("pid-pressure", "NoSchedule");
    add("unschedulable", "NoSchedule");
    if template_spec["hostNetwork"] == true {
        add("network-unavailable", "NoSchedule");
    }
    list
}

/// Whether a node wants a pod, and whether one that is there may stay.
pub fn suits(set: &Object, node: &Object) -> (bool, bool) {
    let spec = set.at("/spec/template/spec");
    let fixed = spec["nodeName"].as_str().unwrap_or_default();
    if !(fixed.is_empty() || fixed == node.name()) || !selector::pod_accepts_node(spec, node) {
        return (false, false);
    }
    let tolerations = tolerations(spec);
    if taints::untolerated(node.list("/spec/taints"), &tolerations, &["NoSchedule", "NoExecute"]).is_some() {
        let stays = taints::untolerated(node.list("/spec/taints"), &tolerations, &["NoExecute"]).is_none();
        return (false, stays);
    }
    (true, true)
}

/// The node that a pod of a DaemonSet is meant for, bound or not.
pub fn node_of(pod: &Object) -> &str {
    match pod.text("/spec/nodeName") {
        "" => pod
            .at("/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms")
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(|t| t["matchFields"].as_array().into_iter().flatten())
            .find(|f| f["key"] == "metadata.name")
            .and_then(|f| f["values"][0].as_str())
            .unwrap_or_default(),
        name => name,
    }
}

/// The pod of this DaemonSet for one node. The scheduler binds it.
pub fn pod_for(set: &Object, node: &str, hash: &str) -> Value {
    let mut pod = pods::from_template(set, "apps/v1", "DaemonSet", set.at("/spec/template"));
    pod["metadata"]["labels"][REVISION_HASH] = json!(hash);
    pod["metadata"]["labels"]["pod-template-generation"] = json!(template_generation(set).to_string());
    pod["spec"]["tolerations"] = Value::Array(tolerations(set.at("/spec/template/spec")));
    let here = json!({"key": "metadata.name", "operator": "In", "values": [node]});
    let required = &mut pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    let mut terms = required["nodeSelectorTerms"].as_array().cloned().unwrap_or_default();
    if terms.is_empty() {
        terms.push(json!({}));
    }
    for term in &mut terms {
        term["matchFields"] = json!([here]);
    }
    required["nodeSelectorTerms"] = Value::Array(terms);
    pod
}

fn template_generation(set: &Object) -> i64 {
    set.annotation("deprecated.daemonset.template.generation").and_then(|g| g.parse().ok()).unwrap_or(1)
}

/// Decides one round. `own` are the pods of this DaemonSet, `hash` is the current revision.
pub fn plan(set: &Object, nodes: &[Object], own: &[Object], hash: &str, now: Timestamp) -> Plan {
    let mut by_node: BTreeMap<&str, Vec<&Object>> = BTreeMap::new();
    for pod in own {
        by_node.entry(node_of(pod)).or_default().push(pod);
    }
    let min_ready =
        Duration::from_secs(set.int("/spec/minReadySeconds").and_then(|s| u64::try_from(s).ok()).unwrap_or(0));
    let mut plan = Plan::default();
    let (mut desired, mut current, mut misplaced, mut ready, mut available, mut updated) =
        (0_i64, 0_i64, 0_i64, 0_i64, 0_i64, 0_i64);
    let mut outdated: Vec<(bool, Object)> = Vec::new();
    for node in nodes {
        let (wants, may_stay) = suits(set, node);
        let mut here = by_node.remove(node.name()).unwrap_or_default();
        here.sort_by_key(|p| {
            (pods::is_finished(p), p.text("/spec/nodeName").is_empty(), p.created(), p.name().to_owned())
        });
        let failed = |p: &&&Object| p.text("/status/phase") == "Failed" && !p.is_deleting();
        let living: Vec<&Object> = here.iter().copied().filter(|p| !pods::is_finished(p)).collect();
        if wants {
            desired += 1;
            let broken: Vec<Object> = here.iter().filter(failed).map(|p| (*p).clone()).collect();
            plan.failed.extend(broken.iter().cloned());
            plan.delete.extend(broken);
            if here.is_empty() {
                plan.create.push(node.name().to_owned());
            }
            // One per node; a pod that is on its way out still holds the place.
            plan.delete.extend(living.iter().skip(1).filter(|p| !p.is_deleting()).map(|p| (*p).clone()));
            if let Some(pod) = living.first() {
                current += 1;
                ready += i64::from(pods::is_ready(pod));
                let is_current = pod.label(REVISION_HASH) == Some(hash);
                updated += i64::from(is_current);
                let fine = match pods::is_available(pod, min_ready, now) {
                    Ok(()) => true,
                    Err(rest) => {
                        plan.wait = [plan.wait, rest].into_iter().flatten().min();
                        false
                    }
                };
                available += i64::from(fine);
                if !is_current && !pod.is_deleting() {
                    outdated.push((fine, (*pod).clone()));
                }
            }
        } else {
            misplaced += i64::from(!living.is_empty());
            if !may_stay {
                plan.delete.extend(here.iter().filter(|p| !p.is_deleting()).map(|p| (*p).clone()));
            }
        }
    }
    plan.delete.extend(replaceable(set, outdated, desired, available));
    if set.is_deleting() {
        plan.create.clear();
        plan.delete.clear();
        plan.failed.clear();
    }
    plan.status = json!({
        "currentNumberScheduled": current, "desiredNumberScheduled": desired, "numberMisscheduled": misplaced,
        "numberReady": ready, "observedGeneration": set.generation(),
    });
    for (field, value) in [
        ("updatedNumberScheduled", updated),
        ("numberAvailable", available),
        ("numberUnavailable", desired - available),
    ] {
        if value > 0 {
            plan.status[field] = json!(value);
        }
    }
    for field in ["collisionCount", "conditions"] {
        let kept = &set.at("/status")[field];
        if !kept.is_null() {
            plan.status[field] = kept.clone();
        }
    }
    plan
}

/// The pods of older revisions that a rolling update may take now: broken ones, and working ones within the budget.
fn replaceable(set: &Object, outdated: Vec<(bool, Object)>, desired: i64, available: i64) -> Vec<Object> {
    if set.text("/spec/updateStrategy/type") == "OnDelete" {
        return Vec::new();
    }
    let limit =
        int_or_percent(set.at("/spec/updateStrategy/rollingUpdate/maxUnavailable"), desired, true).unwrap_or(1).max(1);
    let mut budget = limit - (desired - available);
    outdated
        .into_iter()
        .filter(|(fine, _)| {
            if *fine {
                budget -= 1;
            }
            !*fine || budget >= 0
        })
        .map(|(_, pod)| pod)
        .collect()
}
