//! Admission, check by check.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, Taint};
use podlife::{
    admission::{NodeView, Outcome, Pressure, admit},
    requests::Amounts,
};
use serde_json::{Value, json};

fn pod(name: &str, spec: Value) -> Pod {
    let mut all = json!({"nodeName": "n1", "containers": [{"name": "c"}]});
    for (key, value) in spec.as_object().unwrap() {
        all[key] = value.clone();
    }
    serde_json::from_value(json!({"metadata": {"name": name, "namespace": "default", "uid": name}, "spec": all}))
        .unwrap()
}

fn wanting(name: &str, resources: Value) -> Pod {
    pod(name, json!({"containers": [{"name": "c", "resources": resources}]}))
}

fn cpu(name: &str, request: &str) -> Pod {
    wanting(name, json!({"requests": {"cpu": request}}))
}

fn critical(mut pod: Pod) -> Pod {
    pod.spec.as_mut().unwrap().priority = Some(2_000_000_000);
    pod
}

fn node<'a>() -> NodeView<'a> {
    let allocatable = [("pods", 3), ("cpu", 2000), ("memory", 1 << 30), ("example.com/chip", 1)];
    NodeView {
        name: "n1",
        allocatable: allocatable.into_iter().map(|(name, amount)| (name.to_owned(), amount)).collect::<Amounts>(),
        apparmor: true,
        ..NodeView::default()
    }
}

fn outcome(pod: &Pod, others: &[&Pod], node: &NodeView<'_>) -> Result<Vec<String>, (String, String)> {
    match admit(pod, others, node, true) {
        Outcome::Admit => Ok(Vec::new()),
        Outcome::Preempt(victims) => Ok(victims),
        Outcome::Reject(rejection) => Err((rejection.reason, rejection.message)),
    }
}

fn reason(pod: &Pod, others: &[&Pod], node: &NodeView<'_>) -> String {
    outcome(pod, others, node).err().map(|(reason, _)| reason).unwrap_or_default()
}

#[test]
fn room() {
    let one = cpu("one", "1");
    for (row, pod, others, expected) in [
        ("fits", cpu("p", "1"), vec![&one], None),
        ("cpu", cpu("p", "1500m"), vec![&one], Some(("OutOfcpu", "cpu, requested: 1500, used: 1000, capacity: 2000"))),
        (
            "a limit is a request",
            wanting("p", json!({"limits": {"memory": "2Gi"}})),
            vec![],
            Some(("OutOfmemory", "memory, requested: 2147483648, used: 0, capacity: 1073741824")),
        ),
        (
            "pods come first",
            cpu("p", "3"),
            vec![&one, &one, &one],
            Some(("OutOfpods", "pods, requested: 1, used: 3, capacity: 3")),
        ),
        (
            "an extended resource",
            wanting("p", json!({"limits": {"example.com/chip": "2"}})),
            vec![],
            Some(("OutOfexample.com/chip", "example.com/chip, requested: 2, used: 0, capacity: 1")),
        ),
        ("one that the node does not have at all", wanting("p", json!({"limits": {"other.io/x": "2"}})), vec![], None),
        (
            "huge pages",
            wanting("p", json!({"limits": {"hugepages-2Mi": "2Mi"}})),
            vec![],
            Some(("OutOfhugepages-2Mi", "hugepages-2Mi, requested: 2097152, used: 0, capacity: 0")),
        ),
    ] {
        let expected =
            expected.map(|(reason, text)| (reason.to_owned(), format!("Node didn't have enough resource: {text}")));
        assert_eq!(outcome(&pod, &others, &node()).err(), expected, "{row}");
    }
}

#[test]
fn labels_names_and_systems() {
    let labels = BTreeMap::from([("zone".to_owned(), "a".to_owned()), ("size".to_owned(), "7".to_owned())]);
    let term = |requirement: Value| {
        json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            {"nodeSelectorTerms": [requirement]}}}})
    };
    let expression = |operator: &str, values: &[&str]| {
        term(json!({"matchExpressions": [{"key": "size", "operator": operator, "values": values}]}))
    };
    for (row, spec, expected) in [
        ("selector", json!({"nodeSelector": {"zone": "a"}}), ""),
        ("other selector", json!({"nodeSelector": {"zone": "b"}}), "NodeAffinity"),
        ("in", expression("In", &["7", "8"]), ""),
        ("not in", expression("NotIn", &["7"]), "NodeAffinity"),
        ("exists", expression("Exists", &[]), ""),
        ("does not exist", expression("DoesNotExist", &[]), "NodeAffinity"),
        ("greater", expression("Gt", &["6"]), ""),
        ("less", expression("Lt", &["7"]), "NodeAffinity"),
        ("no number", expression("Lt", &["x"]), "NodeAffinity"),
        ("empty term", term(json!({})), "NodeAffinity"),
        ("by name", term(json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]})), ""),
        ("other node", json!({"nodeName": "n2"}), "NodeName"),
        ("other system", json!({"os": {"name": "windows"}}), "PodOSNotSupported"),
    ] {
        let view = NodeView { labels: Some(&labels), ..node() };
        assert_eq!(reason(&pod("p", spec.clone()), &[], &view), expected, "{row}");
        if expected == "NodeAffinity" {
            assert_eq!(reason(&pod("p", spec), &[], &node()), "", "{row}: nothing is known of the node");
        }
    }
    let mut labelled = pod("p", json!({}));
    labelled.metadata.labels = Some(BTreeMap::from([("kubernetes.io/os".to_owned(), "windows".to_owned())]));
    assert_eq!(reason(&labelled, &[], &node()), "PodOSSelectorNodeLabelDoesNotMatch");
    let view = NodeView { labels: Some(&labels), ..node() };
    let (_, message) = outcome(&pod("p", json!({"nodeSelector": {"x": "y"}})), &[], &view).unwrap_err();
    assert_eq!(message, "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector");
}

#[test]
fn ports() {
    let with = |ports: Value| pod("p", json!({"containers": [{"name": "c", "ports": ports}]}));
    let taken = with(json!([{"containerPort": 80, "hostPort": 8080}]));
    for (row, ports, expected) in [
        ("same", json!([{"containerPort": 1, "hostPort": 8080}]), "NodePorts"),
        ("same on one address", json!([{"containerPort": 1, "hostPort": 8080, "hostIP": "127.0.0.1"}]), "NodePorts"),
        ("other protocol", json!([{"containerPort": 1, "hostPort": 8080, "protocol": "UDP"}]), ""),
        ("other port", json!([{"containerPort": 8080}]), ""),
    ] {
        assert_eq!(reason(&with(ports), &[&taken], &node()), expected, "{row}");
    }
    let mut on_node = with(json!([{"containerPort": 8080}]));
    on_node.spec.as_mut().unwrap().host_network = Some(true);
    assert_eq!(reason(&on_node, &[&taken], &node()), "NodePorts");
}

#[test]
fn taints() {
    let taints: Vec<Taint> = serde_json::from_value(json!([
        {"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"},
        {"key": "k", "value": "v", "effect": "NoExecute"},
        {"key": "other", "effect": "NoSchedule"}]))
    .unwrap();
    let view = NodeView { taints: &taints, ..node() };
    for (row, tolerations, expected) in [
        ("none", json!([]), "TaintToleration"),
        ("equal", json!([{"key": "k", "value": "v"}]), ""),
        ("other value", json!([{"key": "k", "value": "w"}]), "TaintToleration"),
        ("exists", json!([{"key": "k", "operator": "Exists", "effect": "NoExecute"}]), ""),
        ("other effect", json!([{"key": "k", "operator": "Exists", "effect": "NoSchedule"}]), "TaintToleration"),
        ("everything", json!([{"operator": "Exists"}]), ""),
    ] {
        assert_eq!(reason(&pod("p", json!({"tolerations": tolerations})), &[], &view), expected, "{row}");
    }
    let mut from_file = pod("p", json!({}));
    from_file.metadata.annotations =
        Some(BTreeMap::from([("kubernetes.io/config.source".to_owned(), "file".to_owned())]));
    assert_eq!(reason(&from_file, &[], &view), "", "static pods are not driven away");
}

#[test]
fn pressure_sysctls_and_shutdown() {
    let memory = Pressure { memory: true, ..Pressure::default() };
    let both = Pressure { memory: true, disk: true, ..Pressure::default() };
    let tolerant = pod(
        "p",
        json!({"tolerations": [{"key": "node.kubernetes.io/memory-pressure", "operator": "Exists", "effect": "NoSchedule"}]}),
    );
    let plain = pod("p", json!({}));
    for (row, pod, pressure, rejected) in [
        ("memory", plain.clone(), memory, true),
        ("memory, with a request", cpu("p", "1"), memory, false),
        ("memory, tolerated", tolerant.clone(), memory, false),
        ("both, tolerated", tolerant, both, true),
        ("both, with a request", cpu("p", "1"), both, true),
        ("both, critical", critical(plain.clone()), both, false),
    ] {
        let view = NodeView { pressure, ..node() };
        assert_eq!(reason(&pod, &[], &view), if rejected { "Evicted" } else { "" }, "{row}");
    }
    let view = NodeView { pressure: both, ..node() };
    assert_eq!(outcome(&plain, &[], &view).unwrap_err().1, "The node had condition: [MemoryPressure DiskPressure]. ");

    let sysctl = |name: &str, more: Value| {
        let mut spec = more;
        spec["securityContext"] = json!({"sysctls": [{"name": name, "value": "1"}]});
        pod("p", spec)
    };
    let allowed = ["kernel.msg*".to_owned(), "net.core.somaxconn".to_owned()];
    for (name, more, message) in [
        ("net/ipv4/tcp_syncookies", json!({}), ""),
        ("kernel.msgmax", json!({}), ""),
        ("net.core.somaxconn", json!({}), ""),
        ("kernel.sem", json!({}), "forbidden sysctl: \"kernel.sem\" not allowlisted"),
        (
            "kernel.msgmax",
            json!({"hostIPC": true}),
            "forbidden sysctl: \"kernel.msgmax\" not allowed with host IPC enabled",
        ),
        (
            "net.ipv4.tcp_syncookies",
            json!({"hostNetwork": true}),
            "forbidden sysctl: \"net.ipv4.tcp_syncookies\" not allowed with host Net enabled",
        ),
    ] {
        let view = NodeView { allowed_sysctls: &allowed, ..node() };
        let found = outcome(&sysctl(name, more), &[], &view).err();
        assert_eq!(found.as_ref().map_or("", |(_, message)| message), message, "{name}");
        assert!(found.is_none_or(|(reason, _)| reason == "SysctlForbidden"));
    }

    let view = NodeView { pressure: Pressure { shutting_down: true, ..Pressure::default() }, ..node() };
    assert_eq!(
        outcome(&plain, &[], &view).unwrap_err(),
        ("NodeShutdown".to_owned(), "Pod was rejected as the node is shutting down.".to_owned())
    );
    let profile = pod("p", json!({"securityContext": {"appArmorProfile": {"type": "RuntimeDefault"}}}));
    let view = NodeView { apparmor: false, ..node() };
    assert_eq!(reason(&profile, &[], &view), "AppArmor");
    assert_eq!(admit(&profile, &[], &view, false), Outcome::Admit, "it runs already");
}

#[test]
fn critical_pods_push_others_out() {
    let best_effort = pod("best-effort", json!({}));
    let small = cpu("small", "500m");
    let big = cpu("big", "1500m");
    let guaranteed = wanting("guaranteed", json!({"limits": {"cpu": "1500m", "memory": "1Mi"}}));
    let other_critical = critical(cpu("critical", "1500m"));
    let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    for (row, wanted, others, expected) in [
        ("room", "500m", vec![&big], names(&[])),
        ("the one that is near enough", "500m", vec![&small, &big], names(&["small"])),
        ("the bigger one", "1", vec![&small, &big], names(&["big"])),
        ("both", "2", vec![&small, &big], names(&["big", "small"])),
        ("the cheaper class", "500m", vec![&small, &guaranteed], names(&["small"])),
        ("guaranteed where need be", "1", vec![&small, &guaranteed], names(&["guaranteed"])),
        ("a place", "0", vec![&best_effort, &small, &small], names(&["best-effort"])),
    ] {
        assert_eq!(outcome(&critical(cpu("p", wanted)), &others, &node()), Ok(expected), "{row}");
    }
    let (why, message) = outcome(&critical(cpu("p", "1")), &[&other_critical], &node()).unwrap_err();
    assert_eq!(why, "UnexpectedAdmissionError");
    assert!(message.contains("no set of running pods found to reclaim resources"), "{message}");
    let elsewhere = critical(pod("p", json!({"nodeName": "n2"})));
    assert_eq!(reason(&elsewhere, &[], &node()), "NodeName", "only room can be made");
}
