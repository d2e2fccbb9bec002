//! StatefulSets, their claims and the volumes behind them, and Jobs, from their creation to their end.

#![allow(clippy::panic, clippy::expect_used)]

mod support;

use serde_json::{Value, json};
use support::World;

fn class(mode: &str) -> Value {
    json!({"metadata": {"name": "local"}, "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": mode})
}

fn volume(name: &str, node: &str, policy: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
        "storageClassName": "local", "local": {"path": format!("/data/{name}")}, "persistentVolumeReclaimPolicy": policy,
        "nodeAffinity": {"required": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}}}})
}

fn set(replicas: i64) -> Value {
    json!({"metadata": {"name": "db"}, "spec": {"replicas": replicas, "serviceName": "db", "selector": {"matchLabels": {"app": "db"}},
        "template": {"metadata": {"labels": {"app": "db"}}, "spec": {"containers": [
            {"name": "c", "image": "busybox:1", "volumeMounts": [{"name": "data", "mountPath": "/data"}]}]}},
        "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
            "storageClassName": "local", "resources": {"requests": {"storage": "1Gi"}}}}]}})
}

fn names(objects: &[Value]) -> Vec<String> {
    let mut names: Vec<String> =
        objects.iter().map(|o| o["metadata"]["name"].as_str().unwrap_or_default().to_owned()).collect();
    names.sort();
    names
}

fn phase(world: &World, plural: &str, namespace: &str, name: &str) -> String {
    let object = world.get(plural, namespace, name).unwrap_or_default();
    object["status"]["phase"].as_str().unwrap_or("gone").to_owned()
}

fn condition(world: &World, job: &str, kind: &str) -> String {
    let job = world.get("jobs", "default", job).unwrap_or_default();
    let list = job["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let found = list.into_iter().find(|c| c["type"] == kind).unwrap_or_default();
    format!("{} {}", found["status"].as_str().unwrap_or(""), found["reason"].as_str().unwrap_or(""))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stateful_set_keeps_its_names_and_its_volumes() {
    let mut world = World::start().await;
    for node in ["n1", "n2"] {
        world.node(node, json!({})).await;
    }
    world.create("storageclasses", "", class("WaitForFirstConsumer")).await;
    world.create("persistentvolumes", "", volume("v1", "n2", "Retain")).await;
    world.create("statefulsets", "default", set(2)).await;
    world.eventually("the first pod runs where its volume is", |w| names(&w.running("default")) == ["db-0"]).await;
    assert_eq!(world.get("pods", "default", "db-0").expect("there")["spec"]["nodeName"], "n2");
    let why = "FailedScheduling: 0/2 nodes are available: 2 node(s) didn't find available persistent volumes to bind.";
    world.eventually("the second waits for a volume", |w| w.reasons("default", "db-1").iter().any(|e| e == why)).await;
    world.create("persistentvolumes", "", volume("v2", "n1", "Retain")).await;
    world
        .eventually("the set is complete", |w| {
            let status = w.get("statefulsets", "default", "db").expect("there")["status"].clone();
            status["readyReplicas"] == 2 && status["currentRevision"] == status["updateRevision"]
        })
        .await;
    let claim = world.get("persistentvolumeclaims", "default", "data-db-1").expect("there");
    assert_eq!((&claim["spec"]["volumeName"], &claim["status"]["phase"]), (&json!("v2"), &json!("Bound")));

    // A pod that is deleted comes back as who it was, with what it had.
    let before = world.get("pods", "default", "db-1").expect("there");
    world.delete("pods", "default", "db-1", "").await;
    world
        .eventually("it is there again", |w| {
            let pod = w.get("pods", "default", "db-1").unwrap_or_default();
            pod["metadata"]["uid"] != before["metadata"]["uid"] && pod["status"]["phase"] == "Running"
        })
        .await;
    assert_eq!(world.get("pods", "default", "db-1").expect("there")["spec"]["nodeName"], "n1");

    // A new template goes from the last to the first; then the set shrinks, and the claims stay.
    let template = json!({"spec": {"template": {"spec": {"containers": [
        {"name": "c", "image": "busybox:2", "volumeMounts": [{"name": "data", "mountPath": "/data"}]}]}}}});
    world.patch("statefulsets", "default", "db", template).await;
    world
        .eventually("both pods are of the new revision", |w| {
            let pods = w.running("default");
            let status = w.get("statefulsets", "default", "db").expect("there")["status"].clone();
            pods.len() == 2
                && pods.iter().all(|p| p["spec"]["containers"][0]["image"] == "busybox:2")
                && status["currentRevision"] == status["updateRevision"]
                && status["updatedReplicas"] == 2
        })
        .await;
    assert_eq!(world.list("controllerrevisions", "default").len(), 2);
    world.patch("statefulsets", "default", "db", json!({"spec": {"replicas": 1}})).await;
    world.eventually("the last pod is gone", |w| names(&w.list("pods", "default")) == ["db-0"]).await;
    assert_eq!(names(&world.list("persistentvolumeclaims", "default")), ["data-db-0", "data-db-1"]);

    // A claim in use stays until its pod is gone; its volume is released and not given to another.
    world.delete("persistentvolumeclaims", "default", "data-db-0", "").await;
    world.delete("persistentvolumeclaims", "default", "data-db-1", "").await;
    world.eventually("the idle claim is gone", |w| phase(w, "persistentvolumes", "", "v2") == "Released").await;
    assert_eq!(names(&world.list("persistentvolumeclaims", "default")), ["data-db-0"]);
    assert_eq!(phase(&world, "persistentvolumes", "", "v1"), "Bound");
    world.delete("statefulsets", "default", "db", "Background").await;
    world
        .eventually("the other goes with its pod", |w| {
            w.list("pods", "default").is_empty() && phase(w, "persistentvolumes", "", "v1") == "Released"
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_is_bound_at_once_if_its_class_says_so() {
    let world = World::start().await;
    world.create("storageclasses", "", class("Immediate")).await;
    let claim = json!({"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "local",
        "resources": {"requests": {"storage": "500Mi"}}}});
    world.create("persistentvolumeclaims", "default", claim).await;
    world
        .eventually("it says what is missing", |w| {
            w.reasons("default", "data").iter().any(|e| e.starts_with("ProvisioningFailed: no volume plugin matched"))
        })
        .await;
    world.create("persistentvolumes", "", volume("v", "n1", "Delete")).await;
    world.eventually("it is bound", |w| phase(w, "persistentvolumeclaims", "default", "data") == "Bound").await;
    let claim = world.get("persistentvolumeclaims", "default", "data").expect("there");
    assert_eq!(claim["status"]["capacity"]["storage"], "1Gi");
    // Bound volumes stay; nobody can delete a local one for the user.
    world.delete("persistentvolumes", "", "v", "").await;
    assert_eq!(phase(&world, "persistentvolumes", "", "v"), "Bound");
    world.delete("persistentvolumeclaims", "default", "data", "").await;
    world
        .eventually("both are gone", |w| {
            phase(w, "persistentvolumeclaims", "default", "data") == "gone"
                && phase(w, "persistentvolumes", "", "v") == "gone"
        })
        .await;
    world
        .eventually("the user is told", |w| {
            w.reasons("default", "v")
                .iter()
                .any(|e| e.starts_with("VolumeFailedDelete: error getting deleter volume plugin"))
        })
        .await;
}

fn job(name: &str, command: &str, spec: Value) -> Value {
    let mut job = json!({"metadata": {"name": name}, "spec": {"template": {"spec": {"restartPolicy": "Never",
        "containers": [{"name": "c", "image": "busybox:1", "command": [command]}]}}}});
    for (key, value) in spec.as_object().into_iter().flatten() {
        job["spec"][key] = value.clone();
    }
    job
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_succeed_fail_and_go() {
    let mut world = World::start().await;
    world.node("n1", json!({})).await;
    world.create("jobs", "default", job("good", "true", json!({"completions": 3, "parallelism": 2}))).await;
    world.create("jobs", "default", job("bad", "false", json!({"backoffLimit": 2}))).await;
    let list = json!({"completions": 3, "parallelism": 3, "completionMode": "Indexed"});
    world.create("jobs", "default", job("list", "true", list)).await;
    world
        .eventually("the good one is complete", |w| condition(w, "good", "Complete") == "True CompletionsReached")
        .await;
    world.eventually("the list is complete", |w| condition(w, "list", "Complete") == "True CompletionsReached").await;
    world.eventually("the bad one failed", |w| condition(w, "bad", "Failed") == "True BackoffLimitExceeded").await;
    let status = |name: &str| world.get("jobs", "default", name).expect("there")["status"].clone();
    let (good, bad, list) = (status("good"), status("bad"), status("list"));
    assert_eq!((&good["succeeded"], &good["failed"], &good["active"]), (&json!(3), &Value::Null, &Value::Null));
    assert_eq!((&bad["succeeded"], &bad["failed"]), (&Value::Null, &json!(3)));
    assert_eq!(list["completedIndexes"], "0-2");
    for status in [good, bad, list] {
        assert_eq!(status["uncountedTerminatedPods"], json!({}), "all are counted");
    }
    for pod in world.list("pods", "default") {
        assert!(pod["metadata"]["finalizers"].as_array().is_none_or(Vec::is_empty), "{}", pod["metadata"]);
    }
    world
        .eventually("the events tell the story", |w| {
            w.reasons("default", "good").iter().any(|e| e == "Completed: Job completed")
                && w.reasons("default", "bad").iter().any(|e| e.starts_with("BackoffLimitExceeded: Job has reached"))
        })
        .await;

    // A job that runs: suspended, resumed, deleted.
    world.create("jobs", "default", job("long", "sleep", json!({}))).await;
    let running = |w: &World| w.running("default").len();
    world.eventually("it runs", |w| running(w) == 1).await;
    world.patch("jobs", "default", "long", json!({"spec": {"suspend": true}})).await;
    world
        .eventually("it has stopped", |w| running(w) == 0 && condition(w, "long", "Suspended") == "True JobSuspended")
        .await;
    world.patch("jobs", "default", "long", json!({"spec": {"suspend": false}})).await;
    world.eventually("it runs again", |w| running(w) == 1).await;
    for name in ["good", "bad", "list", "long"] {
        world.delete("jobs", "default", name, "Background").await;
    }
    world.eventually("their pods are gone", |w| w.list("pods", "default").is_empty()).await;
    world.create("jobs", "default", job("short", "true", json!({"ttlSecondsAfterFinished": 0}))).await;
    world.eventually("it cleans up after itself", |w| w.list("jobs", "default").is_empty()).await;
    world.eventually("its pods too", |w| w.list("pods", "default").is_empty()).await;
}
