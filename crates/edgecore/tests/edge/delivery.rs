//! What the cloud pushes: stored, acknowledged, handed on, and never deadly.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::go_cloud::{GoCloud, Received};
use testkit::golden::{Direction, frames};

use crate::support::{Edge, Log, id, pod, push, text};

const RECORDINGS: [&str; 10] = [
    "wire-fresh-node",
    "wire-unhappy",
    "wire-websocket",
    "wire-offline",
    "wire-static-pod",
    "wire-node-deleted",
    "wire-devices-more",
    "wire-metaserver",
    "wire-rules",
    "wire-tasks",
];

async fn acknowledged(cloud: &GoCloud, message: &Value) -> Received {
    cloud.send(message).await.unwrap();
    let ack = cloud.reply_to(id(message)).await.unwrap();
    assert_eq!(ack.message["content"], "OK", "{}", ack.message);
    assert!(ack.is("response", message["route"]["resource"].as_str().unwrap()), "{}", ack.message);
    ack
}

#[tokio::test]
async fn objects_are_stored_acknowledged_and_handed_on() {
    let cloud = GoCloud::start().await.unwrap();
    let edge = Edge::joined(&cloud).await;
    let config_map = |version: u64| {
        json!({"kind": "ConfigMap", "apiVersion": "v1", "data": {"k": "v"},
            "metadata": {"name": "c", "namespace": "default", "uid": "u-c", "resourceVersion": version.to_string()}})
    };
    acknowledged(&cloud, &push("insert", "default/pod/p", pod("p", 5))).await;
    acknowledged(&cloud, &push("update", "default/configmap/c", config_map(6))).await;
    acknowledged(&cloud, &push("update", "default/secret/s", config_map(7))).await;
    assert_eq!(edge.stored("pod").await, ["default/pod/p"]);
    assert_eq!(edge.stored("configmap").await, ["default/configmap/c"]);
    assert_eq!(edge.stored("secret").await, ["default/secret/s"]);
    edge.wait_told("insert", "default/pod/p").await;
    edge.wait_told("update", "default/configmap/c").await;
    edge.wait_told("update", "default/secret/s").await;

    // SyncController's deletion: no kind, no version.
    let gone = json!({"metadata": {"name": "p", "namespace": "default", "uid": "uid-of-p"}});
    acknowledged(&cloud, &push("delete", "default/pod/p", gone)).await;
    edge.wait_told("delete", "default/pod/p").await;
    assert_eq!(edge.stored("pod").await, Vec::<String>::new());
    acknowledged(&cloud, &push("delete", "default/pod/never-seen", pod("never-seen", 1))).await;
    assert_eq!(cloud.complaints(), Vec::<String>::new());
}

#[tokio::test]
async fn what_is_delivered_again_is_acknowledged_again() {
    let cloud = GoCloud::start().await.unwrap();
    let edge = Edge::joined(&cloud).await;
    let message = push("update", "default/pod/p", pod("p", 5));
    for _ in 0..3 {
        cloud.send(&message).await.unwrap();
    }
    let acks = cloud.wait_for_all("acknowledgements", 3, |m| m.parent() == id(&message)).await.unwrap();
    let ids: HashSet<&str> = acks.iter().map(Received::id).collect();
    assert_eq!(ids.len(), 3, "each has an id of its own");
    // An older version that comes late is acknowledged, but changes nothing.
    acknowledged(&cloud, &push("update", "default/pod/p", pod("p", 4))).await;
    let kept = edge.query("default/pod/p").await;
    assert!(kept[0].as_str().unwrap().contains("\"resourceVersion\":\"5\""), "{kept}");
    let deletion = push("delete", "default/pod/p", pod("p", 5));
    acknowledged(&cloud, &deletion).await;
    cloud.send(&deletion).await.unwrap();
    cloud.wait_for_all("acknowledgements", 2, |m| m.parent() == id(&deletion)).await.unwrap();
}

#[tokio::test]
async fn a_deletion_is_only_for_the_object_that_it_names() {
    let cloud = GoCloud::start().await.unwrap();
    let edge = Edge::joined(&cloud).await;
    acknowledged(&cloud, &push("update", "default/pod/p", pod("p", 5))).await;
    let other = json!({"metadata": {"name": "p", "namespace": "default", "uid": "uid-of-its-predecessor"}});
    acknowledged(&cloud, &push("delete", "default/pod/p", other)).await;
    assert_eq!(edge.stored("pod").await, ["default/pod/p"]);
}

#[tokio::test]
async fn what_is_not_understood_is_acknowledged_and_holds_nothing_up() {
    let cloud = GoCloud::start().await.unwrap();
    let edge = Edge::joined(&cloud).await;
    let object =
        json!({"metadata": {"name": "x", "uid": "u-x", "resourceVersion": "1"}, "apiVersion": "x/v1", "kind": "X"});
    for (operation, resource) in [
        ("update", "default/newthing/x"),
        ("insert", "null/persistentvolume/x"),
        ("delete", "default/newthing/x"),
        ("update", "a/path/that/is/long"),
        ("update", "short"),
        ("update", "default//x"),
        ("frobnicate", "default/pod/x"),
    ] {
        acknowledged(&cloud, &push(operation, resource, object.clone())).await;
    }
    for content in [Value::Null, json!(7), json!("no object"), json!([1]), json!("OK")] {
        acknowledged(&cloud, &push("update", "default/pod/odd", content)).await;
    }
    for source in ["policycontroller", "dynamiccontroller", "devicecontroller", "a-controller-of-tomorrow"] {
        let mut message = push("update", "default/configmap/from-somebody", object.clone());
        message["route"]["source"] = json!(source);
        acknowledged(&cloud, &message).await;
    }
    acknowledged(&cloud, &push("update", "default/pod/p", pod("p", 5))).await;
    edge.wait_told("update", "default/pod/p").await;
    assert_eq!(cloud.connections(), 1);
}

#[tokio::test]
async fn frames_that_are_no_messages_are_left_out() {
    let cloud = GoCloud::start().await.unwrap();
    let edge = Edge::joined(&cloud).await;
    let deep = format!("{{\"header\":{{}},\"route\":{{}},\"content\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let deep_pod = format!(
        "{{\"header\":{{\"msg_id\":\"deep\",\"timestamp\":1}},\"route\":{{\"source\":\"edgecontroller\",\"group\":\"resource\",\"operation\":\"update\",\"resource\":\"default/pod/deep\"}},\"content\":{{\"metadata\":{{\"uid\":\"u\",\"annotations\":{}1{}}}}}}}",
        "{\"a\":".repeat(10_000),
        "}".repeat(10_000)
    );
    let broken = [
        "",
        "{",
        "null",
        "[]",
        "7",
        "\"text\"",
        "{}",
        "{\"header\":7}",
        "{\"header\":{\"msg_id\":7,\"timestamp\":1},\"route\":{}}",
        "{\"header\":{\"msg_id\":\"a\",\"timestamp\":\"now\"},\"route\":{}}",
        "{\"header\":{\"msg_id\":\"a\",\"timestamp\":1.5},\"route\":{}}",
        "{\"header\":{\"msg_id\":\"a\",\"timestamp\":1},\"route\":{\"group\":\"resource\"},\"content\":nul",
        "{\"header\":{\"msg_id\":\"a\",\"timestamp\":1},\"route\":{\"group\":\"unheard-of\",\"resource\":\"x\"}}",
        &deep,
        &deep_pod,
    ];
    for frame in broken {
        cloud.send_text(frame.to_owned()).await.unwrap();
    }
    acknowledged(&cloud, &push("update", "default/pod/p", pod("p", 5))).await;
    edge.wait_told("update", "default/pod/p").await;
    assert_eq!(cloud.connections(), 1, "the connection stands");
}

#[tokio::test]
async fn a_frame_over_the_limit_costs_the_connection_and_no_more() {
    let log = Log::start();
    let cloud = GoCloud::start().await.unwrap();
    let edge = Edge::joined(&cloud).await;
    let mut giant = pod("giant", 1);
    giant["metadata"]["annotations"] = json!({"a": "x".repeat(33 << 20)});
    cloud.send(&push("update", "default/pod/giant", giant)).await.unwrap();
    cloud.connection(1).await.unwrap();
    log.line_with(&["WARN", "limit"]).await;
    acknowledged(&cloud, &push("update", "default/pod/p", pod("p", 5))).await;
    assert_eq!(edge.stored("pod").await, ["default/pod/p"]);
}

#[tokio::test]
async fn objects_of_megabytes_arrive_whole() {
    let cloud = GoCloud::start().await.unwrap();
    let edge = Edge::joined(&cloud).await;
    // Around the bounds of the Go server's fragments, and the largest objects of Kubernetes.
    for (number, size) in [3000, 3700, 4100, 7700, 8200, 70_000, 1 << 20, 3 << 20].into_iter().enumerate() {
        let mut object = pod("big", 10 + number as u64);
        object["metadata"]["annotations"] = json!({"a": "ü<&>\u{2028}".repeat(size / 8)});
        acknowledged(&cloud, &push("update", "default/pod/big", object.clone())).await;
        let kept = edge.query("default/pod/big").await;
        let kept: Value = serde_json::from_str(kept[0].as_str().unwrap()).unwrap();
        assert_eq!(kept, object, "{size}");
    }
}

#[tokio::test]
async fn a_burst_is_acknowledged_whole_and_handed_on_in_order() {
    const PODS: usize = 500;
    let cloud = GoCloud::start().await.unwrap();
    let edge = Edge::joined(&cloud).await;
    let messages: Vec<Value> =
        (0..PODS).map(|n| push("update", &format!("default/pod/p{n:03}"), pod(&format!("p{n:03}"), 1))).collect();
    let began = Instant::now();
    for message in &messages {
        cloud.send(message).await.unwrap();
    }
    let ids: HashSet<&str> = messages.iter().map(id).collect();
    let acks = cloud.wait_for_all("acknowledgements", PODS, |m| ids.contains(m.parent())).await.unwrap();
    assert_eq!(acks.len(), PODS);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    edge.wait_told("update", &format!("default/pod/p{:03}", PODS - 1)).await;
    let names: Vec<String> = edge.told().iter().map(|message| message.route.resource.clone()).collect();
    let sent: Vec<&str> = messages.iter().map(|m| m["route"]["resource"].as_str().unwrap()).collect();
    assert_eq!(names, sent);
}

/// Every message that a Go cloud was seen to push, in the recorded order: the same ones are acknowledged as by the Go edge.
#[tokio::test]
async fn recorded_messages_are_acknowledged_as_the_go_edge_did() {
    for recording in RECORDINGS {
        let cloud = GoCloud::start().await.unwrap();
        let _edge = Edge::joined(&cloud).await;
        let frames = frames(recording).unwrap();
        for frame in &frames {
            let acks_by_go = frames.iter().find(|f| {
                f.direction == Direction::FromEdge && f.parent() == frame.id() && f.route("operation") == "response"
            });
            let pushed = frame.direction == Direction::FromCloud && frame.parent().is_empty();
            if !pushed {
                continue;
            }
            cloud.send_text(frame.text.clone()).await.unwrap();
            let must = frame.route("group") == "resource"
                && matches!(frame.route("operation"), "insert" | "update" | "delete");
            if !must {
                continue;
            }
            let ack = cloud.reply_to(frame.id()).await.unwrap();
            assert_eq!(ack.message["content"], "OK", "{recording}: {}", frame.text);
            // A Go cloud looks only at the parent; where the Go edge copies the route, so do we.
            if let Some(theirs) = acks_by_go.filter(|_| frame.route("source") != "devicecontroller") {
                for part in ["source", "group", "operation", "resource"] {
                    assert_eq!(ack.route(part), theirs.route(part), "{recording}: {}", frame.text);
                }
            }
        }
        let probe = push("update", "default/pod/last", pod("last", 1));
        acknowledged(&cloud, &probe).await;
        let without: Vec<&str> = frames
            .iter()
            .filter(|f| f.direction == Direction::FromCloud && f.parent().is_empty())
            .filter(|f| matches!(f.route("group"), "twin" | "user" | "taskmanager"))
            .map(testkit::golden::Frame::id)
            .collect();
        let acked: Vec<Received> = cloud.received().into_iter().filter(|m| without.contains(&m.parent())).collect();
        assert!(acked.iter().all(|m| m.route("operation") != "response"), "{recording}: {acked:?}");
        assert_eq!(cloud.complaints(), Vec::<String>::new(), "{recording}");
        assert_eq!(cloud.connections(), 1, "{recording}");
    }
}

#[tokio::test]
async fn what_cannot_be_stored_is_refused_and_taken_when_it_comes_again() {
    let log = Log::start();
    let cloud = GoCloud::start().await.unwrap();
    let edge = Edge::joined(&cloud).await;
    acknowledged(&cloud, &push("update", "default/pod/small", pod("small", 1))).await;
    // SQLite's own limit on pages fails as a full disk does.
    let limit = |pages: u32| edge.database().write(move |c| c.pragma_update(None, "max_page_count", pages));
    limit(1).await.unwrap();
    let mut big = pod("big", 2);
    big["metadata"]["annotations"] = json!({"a": "x".repeat(200_000)});
    let message = push("update", "default/pod/big", big);
    cloud.send(&message).await.unwrap();
    let refusal = cloud.reply_to(id(&message)).await.unwrap();
    assert!(refusal.is("error", "default/pod/big"), "{}", refusal.message);
    assert_eq!((refusal.route("source"), refusal.route("group")), ("metamanager", "resource"));
    let words = refusal.message["content"].as_str().unwrap();
    assert!(words.contains("disk") && words.contains("full") && words.contains("free"), "{words}");
    log.line_with(&["ERROR", "default/pod/big", "disk"]).await;
    assert!(edge.told().iter().all(|told| told.route.resource != "default/pod/big"), "edged must not run it");
    limit(1_000_000).await.unwrap();
    cloud.send(&message).await.unwrap();
    let replies = cloud.wait_for_all("replies", 2, |m| m.parent() == id(&message)).await.unwrap();
    assert!(replies[1].is("response", "default/pod/big"), "{}", replies[1].message);
    edge.wait_told("update", "default/pod/big").await;
}

#[tokio::test]
async fn a_volume_request_is_refused_at_once() {
    let cloud = GoCloud::start().await.unwrap();
    let _edge = Edge::joined(&cloud).await;
    for verb in wire::operation::VOLUME {
        let mut message = push(verb, "default/volume/pvc-1", json!("{}"));
        message["route"]["source"] = json!("cloudhub");
        let began = Instant::now();
        cloud.send(&message).await.unwrap();
        let reply = cloud.reply_to(id(&message)).await.unwrap();
        assert_eq!(reply.route("resource"), "default/volume/pvc-1");
        assert_ne!(reply.message["content"], "OK", "nothing was done");
        assert!(reply.message.to_string().contains("not supported"), "{}", reply.message);
        assert!(began.elapsed() < Duration::from_secs(5));
    }
}

#[tokio::test]
async fn edged_sees_messages_as_they_were() {
    let cloud = GoCloud::start().await.unwrap();
    let edge = Edge::joined(&cloud).await;
    // A peer may send an object as a string that holds its JSON.
    let message = push("update", "default/pod/p", json!(pod("p", 5).to_string()));
    acknowledged(&cloud, &message).await;
    let told = edge.wait_told("update", "default/pod/p").await;
    let object: Value = serde_json::from_str(&text(&told)).unwrap();
    assert_eq!(object, pod("p", 5));
    let kept = edge.query("default/pod/p").await;
    let kept: Value = serde_json::from_str(kept[0].as_str().unwrap()).unwrap();
    assert_eq!(kept, pod("p", 5));
}
