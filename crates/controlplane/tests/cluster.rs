//! Nodes that fall silent or go away, namespaces, what a new cluster has, and a second start.

mod support;

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use serde_json::{Value, json};
use support::{World, deployment};

const EDGE: &str = "node-role.kubernetes.io/edge";

fn ready(object: &Value) -> String {
    let list = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    list.iter().find(|c| c["type"] == "Ready").and_then(|c| c["status"].as_str()).unwrap_or_default().to_owned()
}

fn uids(pods: &[Value]) -> Vec<String> {
    let mut uids: Vec<String> = pods.iter().map(|p| p["metadata"]["uid"].as_str().unwrap_or("").to_owned()).collect();
    uids.sort();
    uids
}

/// A Deployment for one node that leaves it after so many seconds of silence, if it may.
fn impatient(name: &str, node: &str, replicas: i64, seconds: i64) -> Value {
    let mut object = deployment(name, replicas, "busybox:1");
    let spec = &mut object["spec"]["template"]["spec"];
    spec["nodeSelector"] = json!({"kubernetes.io/hostname": node});
    spec["tolerations"] = ["node.kubernetes.io/unreachable", "node.kubernetes.io/not-ready"]
        .iter()
        .map(|key| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds}))
        .collect();
    object
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offline_edge_node_keeps_its_pods_unlike_one_in_the_data_centre() {
    let mut world = World::start_with(Duration::from_secs(2)).await;
    world.node("edge-1", json!({EDGE: ""})).await;
    world.node("dc-1", json!({})).await;
    world.create("deployments", "default", impatient("edge", "edge-1", 2, 0)).await;
    world.create("deployments", "default", impatient("dc", "dc-1", 1, 2)).await;
    world.eventually("three pods run", |w| w.running("default").len() == 3).await;
    let of = |world: &World, node: &str| -> Vec<Value> {
        let mut pods = world.list("pods", "default");
        pods.retain(|p| p["spec"]["nodeName"] == node);
        pods
    };
    let before = uids(&of(&world, "edge-1"));

    world.cut_the_wire().await;
    world
        .eventually("the nodes are unknown and tainted, the pods not ready", |w| {
            ["edge-1", "dc-1"].iter().all(|name| {
                let node = w.get("nodes", "", name).expect("there");
                ready(&node) == "Unknown"
                    && node["spec"]["taints"].to_string().contains("node.kubernetes.io/unreachable")
            }) && w.list("pods", "default").iter().all(|p| ready(p) != "True")
        })
        .await;
    world
        .eventually("the Deployment knows", |w| {
            let status = w.get("deployments", "default", "edge").expect("there")["status"].clone();
            status["readyReplicas"].is_null() && status["replicas"] == 2
        })
        .await;
    world
        .eventually("the pod in the data centre has to go", |w| {
            of(w, "dc-1").iter().any(|p| p["metadata"]["deletionTimestamp"].is_string())
        })
        .await;
    let after = of(&world, "edge-1");
    assert_eq!(uids(&after), before, "nothing was recreated at the edge");
    assert!(after.iter().all(|p| p["metadata"]["deletionTimestamp"].is_null()), "nothing was evicted at the edge");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_comes_back_and_a_deleted_one_loses_its_pods() {
    let mut world = World::start_with(Duration::from_secs(2)).await;
    world.node("edge-1", json!({EDGE: ""})).await;
    world.create("deployments", "default", deployment("web", 2, "busybox:1")).await;
    world.eventually("two pods run", |w| w.running("default").len() == 2).await;
    world.cut_the_wire().await;
    let tainted = |w: &World| {
        w.get("nodes", "", "edge-1").is_some_and(|n| n["spec"]["taints"].as_array().is_some_and(|t| !t.is_empty()))
    };
    world.eventually("the node is tainted", tainted).await;

    world.kubelet("edge-1");
    let conditions = json!([{"type": "Ready", "status": "True", "lastHeartbeatTime": "2026-11-24T13:00:00Z"}]);
    let what = world.at("nodes", "", "edge-1").sub("status");
    let patch = json!({"status": {"conditions": conditions}});
    world
        .api()
        .patch(&what, &patch, kubeapi::PatchType::Merge, &kubeapi::WriteOptions::default())
        .await
        .expect("patched");
    world.eventually("the taints are gone", |w| !tainted(w)).await;

    world.delete("nodes", "", "edge-1", "").await;
    world
        .eventually("its pods are collected and replaced by pods that wait", |w| {
            let pods = w.list("pods", "default");
            pods.len() == 2 && pods.iter().all(|p| p["spec"]["nodeName"].is_null())
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_goes_with_all_that_is_in_it() {
    let mut world = World::start().await;
    world.node("n1", json!({})).await;
    let refused =
        world.api().delete(&world.at("namespaces", "", "default"), &kubeapi::api::DeleteOptions::default()).await;
    let text = refused.expect_err("refused").to_string();
    assert_eq!(text, "namespaces \"default\" is forbidden: this namespace may not be deleted");
    world.create("namespaces", "", json!({"metadata": {"name": "shop"}})).await;
    world
        .eventually("it has an account and the CA", |w| {
            w.get("serviceaccounts", "shop", "default").is_some()
                && w.get("configmaps", "shop", "kube-root-ca.crt").is_some()
        })
        .await;
    world.create("deployments", "shop", deployment("web", 2, "busybox:1")).await;
    world.create("configmaps", "shop", json!({"metadata": {"name": "c"}, "data": {"a": "b"}})).await;
    world.eventually("two pods run", |w| w.running("shop").len() == 2).await;
    world.delete("namespaces", "", "shop", "").await;
    world.eventually("it is gone", |w| w.get("namespaces", "", "shop").is_none()).await;
    for kind in ["pods", "deployments", "replicasets", "configmaps", "serviceaccounts"] {
        assert!(world.list(kind, "shop").is_empty(), "{kind}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_start_resumes() {
    let mut world = World::start().await;
    for namespace in ["default", "kube-system", "kube-public", "kube-node-lease", "kubeedge"] {
        assert!(world.get("namespaces", "", namespace).is_some(), "{namespace}");
    }
    let file = world.plane.as_ref().expect("running").kubeconfig_path().to_path_buf();
    assert_eq!(std::fs::metadata(&file).expect("kubeconfig").permissions().mode() & 0o777, 0o600);
    world.node("n1", json!({})).await;
    world.create("deployments", "default", deployment("web", 2, "busybox:1")).await;
    world.eventually("two pods run", |w| w.running("default").len() == 2).await;
    let sync =
        json!({"metadata": {"name": "n1.0"}, "spec": {"objectKind": "Pod"}, "status": {"objectResourceVersion": "0"}});
    world.create("objectsyncs", "default", sync).await;
    let (before, ca) =
        (uids(&world.list("pods", "default")), std::fs::read(world.dir.path().join("kubernetes-ca.crt")).expect("CA"));

    world.restart().await;
    assert_eq!(uids(&world.list("pods", "default")), before);
    assert_eq!(std::fs::read(world.dir.path().join("kubernetes-ca.crt")).expect("CA"), ca);
    assert_eq!(world.list("objectsyncs", "default").len(), 1);
    world.kubelet("n1");
    world.patch("deployments", "default", "web", json!({"spec": {"replicas": 3}})).await;
    world.eventually("the controllers work on", |w| w.running("default").len() == 3).await;
    let after = uids(&world.list("pods", "default"));
    assert!(before.iter().all(|uid| after.contains(uid)), "nothing was recreated");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_definition_goes_with_its_objects() {
    let world = World::start().await;
    let definition = json!({
        "metadata": {"name": "gadgets.example.org"},
        "spec": {
            "group": "example.org", "scope": "Namespaced", "names": {"kind": "Gadget", "plural": "gadgets", "singular": "gadget"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}],
        },
    });
    let gadget = |name: &str, owner: Value| json!({"metadata": {"name": name, "ownerReferences": owner}});
    for round in 0..2 {
        world.create("customresourcedefinitions", "", definition.clone()).await;
        world
            .eventually("the definition is guarded", |w| {
                w.get("customresourcedefinitions", "", "gadgets.example.org")
                    .is_some_and(|d| d["metadata"]["finalizers"].is_array())
            })
            .await;
        assert!(world.list("gadgets", "default").is_empty(), "round {round} finds nothing of an earlier one");
        let first = world.create("gadgets", "default", gadget("first", json!(null))).await;
        let owner = json!([{"apiVersion": "example.org/v1", "kind": "Gadget", "name": "first", "uid": first["metadata"]["uid"]}]);
        world.create("gadgets", "default", gadget("second", owner)).await;
        world.delete("gadgets", "default", "first", "").await;
        world.eventually("what a gadget owns goes with it", |w| w.list("gadgets", "default").is_empty()).await;
        world.create("gadgets", "default", gadget("third", json!(null))).await;
        world.delete("customresourcedefinitions", "", "gadgets.example.org", "").await;
        world
            .eventually("the definition is gone", |w| {
                w.get("customresourcedefinitions", "", "gadgets.example.org").is_none()
            })
            .await;
    }
}
