//! Tables for the decisions of the scheduler.

use serde_json::{Value, json};

use super::decide::{Decision, decide};
use super::node::{NodeInfo, snapshot};
use super::resources::{Amounts, requests};
use crate::object::Object;

fn node(name: &str, spec: Value) -> Object {
    json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "zone": "a"}}, "spec": spec,
        "status": {"allocatable": {"cpu": "2", "memory": "4Gi", "pods": "3"}}})
    .into()
}

fn pod(name: &str, spec: Value) -> Object {
    json!({"metadata": {"name": name, "namespace": "default", "labels": {"app": "web"}}, "spec": spec}).into()
}

fn cpu(amount: &str) -> Value {
    json!({"containers": [{"resources": {"requests": {"cpu": amount}}}]})
}

fn on(nodes: Vec<Object>, pods: Vec<Object>) -> Vec<NodeInfo> {
    snapshot(nodes, pods, |_| None)
}

fn refusal(pod: &Object, nodes: &[NodeInfo]) -> String {
    match decide(pod, nodes) {
        Decision::Unschedulable(text) => text,
        Decision::Bind(node) => format!("bound to {node}"),
    }
}

#[test]
fn says_why_in_the_words_of_upstream() {
    let taint = |key: &str, value: &str| json!({"taints": [{"key": key, "value": value, "effect": "NoSchedule"}]});
    let busy = pod(
        "busy",
        json!({"nodeName": "n1", "containers": [
        {"resources": {"requests": {"cpu": "1500m"}}, "ports": [{"hostPort": 80, "containerPort": 80}]}]}),
    );
    let near = json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "web"}}}]}}});
    for (node_spec, pod_spec, expected) in [
        (json!({"unschedulable": true}), json!({}), "1 node(s) were unschedulable"),
        (taint("gpu", "yes"), json!({}), "1 node(s) had untolerated taint {gpu: yes}"),
        (
            taint("node.kubernetes.io/not-ready", ""),
            json!({}),
            "1 node(s) had untolerated taint {node.kubernetes.io/not-ready: }",
        ),
        (json!({}), json!({"nodeSelector": {"disk": "ssd"}}), "1 node(s) didn't match Pod's node affinity/selector"),
        (json!({}), cpu("600m"), "1 Insufficient cpu"),
        (
            json!({}),
            json!({"containers": [{"resources": {"requests": {"cpu": "3", "memory": "9Gi"}}}]}),
            "1 Insufficient cpu, 1 Insufficient memory",
        ),
        (
            json!({}),
            json!({"containers": [{"ports": [{"hostPort": 80}]}]}),
            "1 node(s) didn't have free ports for the requested pod ports",
        ),
        (json!({}), near, "1 node(s) didn't match pod anti-affinity rules"),
    ] {
        let nodes = on(vec![node("n1", node_spec)], vec![busy.clone()]);
        assert_eq!(refusal(&pod("p", pod_spec), &nodes), format!("0/1 nodes are available: {expected}."));
    }
    assert_eq!(refusal(&pod("p", json!({})), &[]), "no nodes available to schedule pods");
    let claim = json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]});
    assert!(refusal(&pod("p", claim), &on(vec![node("n1", json!({}))], vec![])).contains("\"data\" cannot be bound"));
}

#[test]
fn counts_pods_and_adds_up_reasons_of_several_nodes() {
    let full: Vec<Object> = (0..3).map(|i| pod(&format!("p{i}"), json!({"nodeName": "n1"}))).collect();
    let nodes = on(vec![node("n1", json!({})), node("n2", json!({"unschedulable": true}))], full);
    let text = refusal(&pod("p", json!({})), &nodes);
    assert_eq!(text, "0/2 nodes are available: 1 Too many pods, 1 node(s) were unschedulable.");
}

#[test]
fn tolerated_taints_do_not_matter_and_the_emptier_node_wins() {
    let cordoned =
        json!({"unschedulable": true, "taints": [{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]});
    let tolerant = pod(
        "p",
        json!({"tolerations": [{"key": "node.kubernetes.io/unschedulable", "operator": "Exists", "effect": "NoSchedule"}]}),
    );
    assert_eq!(decide(&tolerant, &on(vec![node("n1", cordoned)], vec![])), Decision::Bind("n1".into()));
    let nodes = on(vec![node("n1", json!({})), node("n2", json!({}))], vec![pod("a", json!({"nodeName": "n1"}))]);
    assert_eq!(decide(&pod("p", json!({})), &nodes), Decision::Bind("n2".into()));
}

#[test]
fn ended_pods_use_nothing() {
    let mut done =
        pod("done", json!({"nodeName": "n1", "containers": [{"resources": {"requests": {"cpu": "2"}}}]})).to_value();
    done["status"] = json!({"phase": "Succeeded"});
    let nodes = on(vec![node("n1", json!({}))], vec![done.into()]);
    assert_eq!(decide(&pod("p", cpu("2")), &nodes), Decision::Bind("n1".into()));
}

#[test]
fn init_containers_count_by_their_peak() {
    let c = |cpu: &str| json!({"resources": {"requests": {"cpu": cpu}}});
    let sidecar = json!({"restartPolicy": "Always", "resources": {"requests": {"cpu": "200m"}}});
    let spec = json!({"initContainers": [sidecar, c("900m")], "containers": [c("300m"), c("300m")], "overhead": {"cpu": "50m"}});
    assert_eq!(requests(&spec), Amounts::of(&json!({"cpu": "1150m"})));
}
