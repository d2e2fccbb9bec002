//! Tables for the decisions of the DaemonSet controller.

use serde_json::{Value, json};

use super::plan::{REVISION_HASH, node_of, plan, pod_for, suits};
use crate::fixtures::now;
use crate::object::Object;

fn set() -> Object {
    json!({"metadata": {"name": "agent", "namespace": "default", "uid": "ds", "generation": 2},
        "spec": {"selector": {"matchLabels": {"app": "agent"}}, "template": {"metadata": {"labels": {"app": "agent"}}, "spec": {}}}})
    .into()
}

fn node(name: &str, taints: Value) -> Object {
    json!({"metadata": {"name": name}, "spec": {"taints": taints}}).into()
}

fn pod(node: &str, hash: &str, ready: bool) -> Object {
    let mut pod = pod_for(&set(), node, hash);
    pod["metadata"]["name"] = json!(format!("agent-{node}-{hash}"));
    pod["status"] =
        json!({"phase": "Running", "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]});
    pod.into()
}

#[test]
fn nodes_with_taints() {
    for (taints, expected) in [
        (json!([]), (true, true)),
        (json!([{"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}]), (true, true)),
        (json!([{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]), (true, true)),
        (json!([{"key": "own", "effect": "NoSchedule"}]), (false, true)),
        (json!([{"key": "own", "effect": "NoExecute"}]), (false, false)),
    ] {
        assert_eq!(suits(&set(), &node("n", taints.clone())), expected, "{taints}");
    }
}

#[test]
fn one_pod_for_each_node_and_nothing_twice() {
    let nodes = [node("a", json!([])), node("b", json!([]))];
    let own = [pod("a", "1", true)];
    let plan = plan(&set(), &nodes, &own, "1", now());
    assert_eq!((plan.create, plan.delete.len()), (vec!["b".to_owned()], 0));
    assert_eq!(plan.status["desiredNumberScheduled"], 2);
    assert_eq!(plan.status["numberUnavailable"], 1);
    assert_eq!(node_of(&own[0]), "a");
}

#[test]
fn a_rolling_update_takes_one_working_pod_at_a_time() {
    let nodes = [node("a", json!([])), node("b", json!([])), node("c", json!([]))];
    let own = [pod("a", "1", true), pod("b", "1", true), pod("c", "1", true)];
    assert_eq!(plan(&set(), &nodes, &own, "2", now()).delete, vec![own[0].clone()]);
    let own = [pod("a", "2", false), pod("b", "1", true), pod("c", "1", true)];
    assert_eq!(plan(&set(), &nodes, &own, "2", now()).delete, vec![]);
    let own = [pod("a", "2", true), pod("b", "1", false), pod("c", "1", true)];
    assert_eq!(plan(&set(), &nodes, &own, "2", now()).delete, vec![own[1].clone()]);
}

#[test]
fn failed_pods_are_replaced_and_strangers_removed() {
    let mut failed = pod("a", "1", false).to_value();
    failed["status"]["phase"] = json!("Failed");
    let plan_a = plan(&set(), &[node("a", json!([]))], &[failed.into()], "1", now());
    assert_eq!((plan_a.failed.len(), plan_a.delete.len(), plan_a.create.len()), (1, 1, 0));
    let taint = json!([{"key": "own", "effect": "NoExecute"}]);
    let plan_b = plan(&set(), &[node("a", taint)], &[pod("a", "1", true)], "1", now());
    assert_eq!(plan_b.delete.len(), 1);
    assert_eq!(pod("a", "7", true).label(REVISION_HASH), Some("7"));
}
