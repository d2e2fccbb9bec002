//! Tables for the decisions of the scheduler.

use serde_json::{Value, json};

use super::decide::{self, Decision};
use super::node::{NodeInfo, snapshot};
use super::resources::{Amounts, requests};
use super::volumes::{Promise, Stock};
use crate::object::{Key, Object};

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

fn decide(pod: &Object, nodes: &[NodeInfo]) -> Decision {
    decide::decide(pod, nodes, &Stock::default())
}

fn refusal(pod: &Object, nodes: &[NodeInfo]) -> String {
    match decide(pod, nodes) {
        Decision::Unschedulable(text) => text,
        other => format!("{other:?}"),
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
    let volume = json!({"volumes": [{"name": "v", "ephemeral": {}}]});
    assert!(refusal(&pod("p", volume), &on(vec![node("n1", json!({}))], vec![])).contains("\"v\" cannot be had"));
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

fn volume(name: &str, node: &str, change: Value) -> Object {
    let mut volume = json!({"metadata": {"name": name, "uid": name}, "spec": {"capacity": {"storage": "1Gi"}, "storageClassName": "local",
        "accessModes": ["ReadWriteOnce"], "nodeAffinity": {"required": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}}}});
    for (key, value) in change.as_object().into_iter().flatten() {
        volume["spec"][key] = value.clone();
    }
    volume.into()
}

fn claim(name: &str, class: &str, volume: &str) -> Object {
    let mut claim = json!({"metadata": {"name": name, "namespace": "default", "uid": name}, "spec": {"storageClassName": class,
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    if !volume.is_empty() {
        claim["spec"]["volumeName"] = json!(volume);
        claim["metadata"]["annotations"] = json!({"pv.kubernetes.io/bind-completed": "yes"});
    }
    claim.into()
}

fn with_claims(names: &[&str]) -> Object {
    let volumes: Vec<Value> =
        names.iter().map(|name| json!({"name": name, "persistentVolumeClaim": {"claimName": name}})).collect();
    pod("p", json!({"volumes": volumes}))
}

#[test]
fn a_pod_goes_where_its_volumes_are() {
    let nodes = on(vec![node("n1", json!({})), node("n2", json!({}))], vec![]);
    let class = |name: &str, mode: &str| Object::from(json!({"metadata": {"name": name}, "volumeBindingMode": mode}));
    let classes = vec![class("local", "WaitForFirstConsumer"), class("now", "Immediate")];
    let for_other = json!({"claimRef": {"namespace": "default", "name": "other", "uid": "other"}});
    let for_data = json!({"claimRef": {"namespace": "default", "name": "data", "uid": "data"}});
    let promise = |volume: &str, claim: &str| Promise { volume: volume.to_owned(), claim: Key::new("default", claim) };
    let nowhere = |why: &str| Decision::Unschedulable(format!("0/2 nodes are available: {why}."));
    let (data, logs) = (|volume: &str| claim("data", "local", volume), claim("logs", "local", ""));
    for (wanted, claims, volumes, expected) in [
        (vec!["data"], vec![], vec![], nowhere("persistentvolumeclaim \"data\" not found")),
        (
            vec!["data"],
            vec![claim("data", "now", "")],
            vec![],
            nowhere("pod has unbound immediate PersistentVolumeClaims"),
        ),
        (
            vec!["data"],
            vec![data("")],
            vec![volume("v", "n2", for_other)],
            nowhere("2 node(s) didn't find available persistent volumes to bind"),
        ),
        (
            vec!["data"],
            vec![data("")],
            vec![volume("v", "n2", json!({}))],
            Decision::Promise(vec![promise("v", "data")]),
        ),
        (
            vec!["data", "logs"],
            vec![data(""), logs.clone()],
            vec![volume("a", "n1", json!({})), volume("b", "n2", json!({})), volume("c", "n2", json!({}))],
            Decision::Promise(vec![promise("b", "data"), promise("c", "logs")]),
        ),
        (vec!["data"], vec![data("")], vec![volume("v", "n2", for_data.clone())], Decision::Wait),
        (vec!["data"], vec![data("v")], vec![volume("v", "n2", for_data.clone())], Decision::Bind("n2".to_owned())),
        (
            vec!["data"],
            vec![data("v")],
            vec![volume("v", "n3", for_data)],
            nowhere("2 node(s) had volume node affinity conflict"),
        ),
        (
            vec!["data"],
            vec![data("v")],
            vec![],
            nowhere("2 node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)"),
        ),
    ] {
        let stock = Stock { claims, volumes, classes: classes.clone() };
        assert_eq!(decide::decide(&with_claims(&wanted), &nodes, &stock), expected, "{stock:?}");
    }
}
