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

fn uids(world: &World) -> Vec<String> {
    let mut uids: Vec<String> =
        world.list("pods", "default").iter().map(|p| p["metadata"]["uid"].as_str().unwrap_or("").to_owned()).collect();
    uids.sort();
    uids
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offline_edge_node_keeps_its_pods_and_a_deleted_one_loses_them() {
    let mut world = World::start_with(Duration::from_secs(3)).await;
    world.node("edge-1", json!({EDGE: ""})).await;
    world.create("deployments", "default", deployment("web", 2, "busybox:1")).await;
    world.eventually("two pods run", |w| w.running("default").len() == 2).await;
    let before = uids(&world);

    world.cut_the_wire().await;
    world
        .eventually("the node is unknown, tainted, and its pods are not ready", |w| {
            let node = w.get("nodes", "", "edge-1").expect("there");
            let taints = node["spec"]["taints"].to_string();
            ready(&node) == "Unknown"
                && taints.contains("node.kubernetes.io/unreachable")
                && w.list("pods", "default").iter().all(|p| ready(p) == "False")
        })
        .await;
    world
        .eventually("the Deployment knows", |w| {
            let status = w.get("deployments", "default", "web").expect("there")["status"].clone();
            status["readyReplicas"].is_null() && status["replicas"] == 2
        })
        .await;
    assert_eq!(uids(&world), before, "nothing was evicted or recreated");
    assert!(world.list("pods", "default").iter().all(|p| p["metadata"]["deletionTimestamp"].is_null()));

    // A sign of life brings it back.
    let conditions = json!([{"type": "Ready", "status": "True", "lastHeartbeatTime": "2026-11-24T13:00:00Z"}]);
    let what = world.at("nodes", "", "edge-1").sub("status");
    let patch = json!({"status": {"conditions": conditions}});
    world
        .api()
        .patch(&what, &patch, kubeapi::PatchType::Merge, &kubeapi::WriteOptions::default())
        .await
        .expect("patched");
    world
        .eventually("the taints are gone", |w| {
            w.get("nodes", "", "edge-1").is_some_and(|n| n["spec"]["taints"].as_array().is_none_or(Vec::is_empty))
        })
        .await;

    world.delete("nodes", "", "edge-1", "").await;
    world
        .eventually("its pods are collected and replaced by pods that wait", |w| {
            let pods = w.list("pods", "default");
            pods.len() == 2 && pods.iter().all(|p| p["spec"]["nodeName"].is_null())
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_node_in_the_data_centre_is_evicted_from() {
    let mut world = World::start_with(Duration::from_secs(2)).await;
    world.node("n1", json!({})).await;
    let mut impatient = deployment("web", 1, "busybox:1");
    impatient["spec"]["template"]["spec"]["tolerations"] = json!([
        {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1}]);
    world.create("deployments", "default", impatient).await;
    world.eventually("it runs", |w| w.running("default").len() == 1).await;
    world.cut_the_wire().await;
    world
        .eventually("its deletion was asked for and a new pod waits", |w| {
            let pods = w.list("pods", "default");
            pods.len() == 2 && pods.iter().any(|p| p["metadata"]["deletionTimestamp"].is_string())
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_goes_with_all_that_is_in_it() {
    let mut world = World::start().await;
    world.node("n1", json!({})).await;
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
    let (before, ca) = (uids(&world), std::fs::read(world.dir.path().join("kubernetes-ca.crt")).expect("CA"));

    world.restart().await;
    assert_eq!(uids(&world), before);
    assert_eq!(std::fs::read(world.dir.path().join("kubernetes-ca.crt")).expect("CA"), ca);
    assert_eq!(world.list("objectsyncs", "default").len(), 1);
    world.kubelet("n1");
    world.patch("deployments", "default", "web", json!({"spec": {"replicas": 3}})).await;
    world.eventually("the controllers work on", |w| w.running("default").len() == 3).await;
    let after = uids(&world);
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
        world.eventually("the definition is guarded", |w| {
            w.get("customresourcedefinitions", "", "gadgets.example.org").is_some_and(|d| d["metadata"]["finalizers"].is_array())
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
        world.eventually("the definition is gone", |w| w.get("customresourcedefinitions", "", "gadgets.example.org").is_none()).await;
    }
}
