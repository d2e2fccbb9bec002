//! The recorded exchanges of a Go edge, replayed: every request gets the answer that the Go cloud gave, in all that an edge relies on.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use testkit::go_edge::{GoEdge, Replay};
use testkit::golden::{Direction, Frame, frames};

use crate::cloud::{Cloud, SOON};

/// The node's first minute: registration, a pod, its status, token and ConfigMaps, lease.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fresh_go_node_gets_its_pod() -> Result<()> {
    let cloud = Cloud::start().await?;
    let node = "golden-edge";
    let credentials = cloud.register(node).await?;
    let edge = cloud.connect(&credentials, node).await?;
    let recording = frames("wire-fresh-node")?;
    let mut replay = Replay::new(node);
    // The recording's cluster had one ConfigMap more.
    cloud
        .create(
            "/api/v1/namespaces/default/configmaps",
            &json!({"metadata": {"name": "openshift-service-ca.crt"}, "data": {"ca": "x"}}),
        )
        .await?;

    let mut differences = Vec::new();
    for frame in &recording {
        match frame.direction {
            Direction::FromEdge if frame.parent().is_empty() => {
                differences.extend(ask(&edge, &mut replay, frame, &recording).await?)
            }
            Direction::FromCloud if frame.parent().is_empty() => {
                if frame.route("resource").contains("/pod/") {
                    create_pod(&cloud, frame).await?;
                }
                differences.extend(expect_push(&edge, &mut replay, frame).await?);
            }
            // Answers were compared with their requests; acknowledgements the edge sends by itself.
            _ => {}
        }
    }
    assert_eq!(differences, Vec::<String>::new());

    let pod = cloud.get("/api/v1/namespaces/default/pods/web-669cbdc7d7-nr4sn").await?;
    assert_eq!((&pod["status"]["phase"], &pod["status"]["podIP"]), (&json!("Running"), &json!("10.88.0.50")));
    let found = cloud.get(&format!("/api/v1/nodes/{node}")).await?;
    assert_eq!(found["metadata"]["labels"]["node-role.kubernetes.io/edge"], "");
    assert_eq!(found["status"]["nodeInfo"]["architecture"], "amd64");
    let lease = cloud.get(&format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{node}")).await?;
    assert_eq!(lease["spec"]["holderIdentity"], node);
    let seen = edge.stop().await;
    assert_eq!(seen.faults, Vec::<String>::new());
    assert_eq!(seen.ended.as_deref(), Some("stopped"));
    Ok(())
}

/// Sends what the recording's edge sent and compares the answer, if it got one.
async fn ask(edge: &GoEdge, replay: &mut Replay, frame: &Frame, recording: &[Frame]) -> Result<Vec<String>> {
    let message = replay.message(frame);
    let recorded =
        recording.iter().find(|other| other.direction == Direction::FromCloud && other.parent() == frame.id());
    let Some(recorded) = recorded else {
        edge.send(&message).await?;
        return Ok(Vec::new());
    };
    let answer = edge.request(message).await?;
    let told = replay.differences(&recorded.message, &answer);
    replay.learn(&recorded.message["content"], &answer["content"]);
    let name = format!("{} {}", frame.route("operation"), frame.route("resource"));
    Ok(told.into_iter().map(|told| format!("answer to {name}: {told}")).collect())
}

/// Waits until the edge has the object as the recording's edge had it.
async fn expect_push(edge: &GoEdge, replay: &mut Replay, frame: &Frame) -> Result<Vec<String>> {
    let resource = replay.translate(&json!(frame.route("resource")));
    let resource = resource.as_str().unwrap_or_default();
    let uid = replay.translate(&frame.message["content"]["metadata"]["uid"]);
    let knows_uid = uid != frame.message["content"]["metadata"]["uid"];
    let terminates = frame.route("operation") == "update" && is_terminating(&frame.message["content"]);
    let is_it = |push: &Value| {
        (push["route"]["operation"] == "delete") == (frame.route("operation") == "delete")
            && (!knows_uid || push["content"]["metadata"]["uid"] == uid)
            && (!terminates || is_terminating(&push["content"]))
    };
    let what = format!("{} of {resource}, uid {uid}", frame.route("operation"));
    let push = edge
        .wait(&what, SOON, |seen| seen.pushes(resource).into_iter().rev().find(|push| is_it(push)).cloned())
        .await?;
    // Insert and update mean the same to an edge.
    let mut recorded = frame.message.clone();
    if recorded["route"]["operation"] != "delete" {
        recorded["route"]["operation"] = push["route"]["operation"].clone();
    }
    let told = replay.differences(&recorded, &push);
    replay.learn(&recorded["content"], &push["content"]);
    Ok(told.into_iter().map(|told| format!("push of {resource}: {told}")).collect())
}

fn is_terminating(object: &Value) -> bool {
    object["metadata"]["deletionTimestamp"].is_string()
}

/// A static pod's mirror: reported, deleted in the cloud, reported again, gone with its manifest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_static_pod_has_its_mirror() -> Result<()> {
    let cloud = Cloud::start().await?;
    let (edge, _) = cloud.edge("go-edge").await?;
    let recording = frames("wire-static-pod")?;
    let mut replay = Replay::new("go-edge");
    let node = cloud.get("/api/v1/nodes/go-edge").await?;
    for owner in recording[0].message["content"]["metadata"]["ownerReferences"].as_array().into_iter().flatten() {
        replay.substitute(owner["uid"].as_str().context("uid")?, node["metadata"]["uid"].as_str().context("uid")?);
    }
    let pods = "/api/v1/namespaces/default/pods";
    let mut differences = Vec::new();
    for frame in recording.iter().filter(|frame| frame.parent().is_empty()) {
        if frame.direction == Direction::FromEdge {
            differences.extend(ask(&edge, &mut replay, frame, &recording).await?);
            continue;
        }
        let content = &frame.message["content"];
        // Upstream's API server shows the last grace period of 0 for a moment.
        if is_terminating(content)
            && content["metadata"]["deletionGracePeriodSeconds"] == 0
            && frame.route("operation") == "update"
        {
            continue;
        }
        let live = cloud.get(&format!("{pods}/static-go-edge")).await.unwrap_or_default();
        if frame.step.starts_with("mirror pod deleted")
            && is_terminating(content)
            && live.is_object()
            && !is_terminating(&live)
        {
            cloud.delete_pod("static-go-edge", 30).await?;
        }
        differences.extend(expect_push(&edge, &mut replay, frame).await?);
    }
    assert_eq!(differences, Vec::<String>::new());
    cloud.wait_for(&format!("{pods}/static-go-edge"), "the mirror to go", Value::is_null).await?;
    assert_eq!(edge.seen().faults, Vec::<String>::new());
    Ok(())
}

/// The recorded pod, for our scheduler to bind; without effect when it is there.
async fn create_pod(cloud: &Cloud, frame: &Frame) -> Result<()> {
    let recorded = &frame.message["content"];
    let name = recorded["metadata"]["name"].as_str().context("name")?;
    let path = "/api/v1/namespaces/default/pods";
    if cloud.get(&format!("{path}/{name}")).await.is_ok() {
        return Ok(());
    }
    let mut spec = recorded["spec"].clone();
    spec.as_object_mut().context("spec")?.remove("nodeName");
    let metadata = json!({"name": name, "labels": recorded["metadata"]["labels"]});
    cloud.create(path, &json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})).await?;
    Ok(())
}

/// The API's object has reached the edge's database: a Go edge computes its status patches against that.
pub async fn wait_same(cloud: &Cloud, edge: &GoEdge, path: &str, resource: &str) -> Result<Value> {
    let object = cloud.get(path).await?;
    let version = object["metadata"]["resourceVersion"].clone();
    edge.wait(&format!("version {version} of {resource}"), SOON, |seen| {
        seen.rows.get(resource).filter(|row| row["metadata"]["resourceVersion"] == version).cloned()
    })
    .await
}
