//! Objects on their way to a node: what arrives, in which order, and what is not lost when one side is away.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use testkit::go_edge::channel::Channel;
use testkit::go_edge::{Behaviour, GoEdge, Seen, request};

use crate::cloud::{Cloud, SOON, config_map, node_object, pod};
use crate::golden::wait_same;

/// Objects that are sent to a node before it acknowledges one.
const WINDOW: usize = 16;
const PODS: &str = "/api/v1/namespaces/default/pods";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const SYNCS: &str = "/apis/reliablesyncs.kubeedge.io/v1alpha1/namespaces/default/objectsyncs";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_pod_goes_when_the_node_has_stopped_it() -> Result<()> {
    let cloud = Cloud::start().await?;
    let (edge, _) = cloud.edge("n1").await?;
    let created = cloud.create(PODS, &pod("web", "n1")).await?;
    let uid = created["metadata"]["uid"].as_str().context("uid")?;
    row(&edge, "default/pod/web").await?;
    patch_pod(&edge, "web", uid, json!({"phase": "Running"})).await?;

    cloud.delete_pod("web", 30).await?;
    let update = edge
        .wait("the deletion timestamp", SOON, |seen| {
            seen.rows.get("default/pod/web").filter(|row| row["metadata"]["deletionTimestamp"].is_string()).cloned()
        })
        .await?;
    assert_eq!(update["metadata"]["deletionGracePeriodSeconds"], 30);
    patch_pod(&edge, "web", uid, json!({"phase": "Succeeded"})).await?;
    cloud.get(&format!("{PODS}/web")).await?;

    let delete =
        || request("delete", "default/pod/web", json!({"gracePeriodSeconds": 0, "preconditions": {"uid": uid}}));
    let answer = edge.request(delete()).await?;
    assert_eq!(answer["content"], "OK");
    gone(&edge, "default/pod/web").await?;
    cloud.wait_for(&format!("{PODS}/web"), "the pod to go", Value::is_null).await?;
    // A second time, as after a lost answer, and for a namesake with another uid: the node is rid of its pod both times.
    assert_eq!(edge.request(delete()).await?["content"], "OK");
    cloud.create(PODS, &pod("web", "n1")).await?;
    assert_eq!(edge.request(delete()).await?["content"], "OK");
    cloud.get(&format!("{PODS}/web")).await?;
    no_faults(edge).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_edges_database_follows_every_status() -> Result<()> {
    let cloud = Cloud::start().await?;
    let (edge, _) = cloud.edge("n1").await?;
    let created = cloud.create(PODS, &pod("web", "n1")).await?;
    let uid = created["metadata"]["uid"].as_str().context("uid")?;
    row(&edge, "default/pod/web").await?;
    for ready in ["True", "False", "True"] {
        patch_pod(&edge, "web", uid, json!({"conditions": [{"type": "Ready", "status": ready}]})).await?;
        let row = wait_same(&cloud, &edge, &format!("{PODS}/web"), "default/pod/web").await?;
        assert!(row["status"]["conditions"].to_string().contains(&format!("\"status\":\"{ready}\"")), "{row}");
    }
    let patch = json!({"status": {"conditions": [{"type": "Ready", "status": "False", "reason": "Test"}]}}).to_string();
    let answer = edge.request(request("patch", "null/nodepatch/n1", json!(patch))).await?;
    assert!(answer["content"]["Err"].is_null(), "{answer}");
    edge.wait("the node's new condition", SOON, |seen| {
        let row = seen.rows.get("null/node/n1")?.to_string();
        row.contains("\"reason\":\"Test\"").then_some(())
    })
    .await?;
    no_faults(edge).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_while_the_node_is_away() -> Result<()> {
    away(false).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_while_both_sides_are_away() -> Result<()> {
    away(true).await
}

/// Pods are made, changed and deleted and a ConfigMap is changed while the node is not there.
async fn away(restart: bool) -> Result<()> {
    let mut cloud = Cloud::start().await?;
    let (edge, credentials) = cloud.edge("n1").await?;
    cloud.create(MAPS, &config_map("settings", "old")).await?;
    cloud.create(MAPS, &config_map("dropped", "old")).await?;
    let mut with_maps = pod("changed", "n1");
    with_maps["spec"]["containers"][0]["envFrom"] =
        json!([{"configMapRef": {"name": "settings"}}, {"configMapRef": {"name": "dropped"}}]);
    cloud.create(PODS, &with_maps).await?;
    for name in ["deleted", "same"] {
        cloud.create(PODS, &pod(name, "n1")).await?;
    }
    for name in ["changed", "deleted", "same"] {
        row(&edge, &format!("default/pod/{name}")).await?;
    }
    for name in ["settings", "dropped"] {
        let answer = edge.request(request("query", &format!("default/configmap/{name}"), Value::Null)).await?;
        assert_eq!(answer["content"]["data"]["key"], "old", "{answer}");
    }
    // Five objects, acknowledged and written down.
    cloud.wait_for(SYNCS, "five records", |list| recorded(list) == 5).await?;
    let mut before = edge.stop().await;
    // A Go edge stores what it queried.
    for name in ["settings", "dropped"] {
        before.rows.insert(format!("default/configmap/{name}"), config_map(name, "old"));
    }

    if restart {
        cloud.stop_hub().await?;
    }
    cloud.delete_pod("deleted", 0).await?;
    cloud.patch(&format!("{PODS}/changed"), &json!({"metadata": {"labels": {"colour": "blue"}}})).await?;
    cloud.create(PODS, &pod("new", "n1")).await?;
    cloud.patch(&format!("{MAPS}/settings"), &json!({"data": {"key": "new"}})).await?;
    cloud.delete(&format!("{MAPS}/dropped")).await?;
    if restart {
        cloud.start_hub("").await?;
    }

    let edge = cloud.reconnect(&credentials, before, "n1").await?;
    edge.wait("the changed pod, the new pod, the changed ConfigMap", SOON, |seen| {
        let row = |name: &str| seen.rows.get(name);
        (row("default/pod/changed")?["metadata"]["labels"]["colour"] == "blue"
            && row("default/configmap/settings")?["data"]["key"] == "new"
            && row("default/pod/new").is_some())
        .then_some(())
    })
    .await?;
    gone(&edge, "default/pod/deleted").await?;
    gone(&edge, "default/configmap/dropped").await?;
    let deletion = edge.seen().pushes("default/pod/deleted")[0].clone();
    assert!(deletion["content"]["metadata"]["uid"].is_string(), "{deletion}");
    assert!(edge.seen().pushes("default/pod/same").is_empty(), "what it acknowledged is not sent again");
    cloud.wait_for(SYNCS, "four records", |list| recorded(list) == 4).await?;
    no_faults(edge).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lost_its_database_gets_everything_again() -> Result<()> {
    let cloud = Cloud::start().await?;
    let (edge, credentials) = cloud.edge("n1").await?;
    cloud.create(PODS, &pod("web", "n1")).await?;
    row(&edge, "default/pod/web").await?;
    cloud.wait_for(SYNCS, "the record", |list| recorded(list) == 1).await?;
    edge.stop().await;

    // As our own edge connects with an empty database.
    let header = |name, value: &str| (name, value.to_owned());
    let target = link::ws::Target {
        url: format!("wss://{}/p/n1/events", cloud.addresses().websocket),
        headers: vec![
            header("node_id", "n1"),
            header("connectionuse", "msg"),
            header("x-ferroedge-features", "inventory-1"),
            header("x-ferroedge-inventory", "0000000000000000"),
        ],
        tls: link::tls::client(&credentials.ca, Some(&credentials.own))?,
        connect_deadline: SOON,
        write_deadline: SOON,
    };
    let (mut reader, mut writer, _) = link::ws::connect(&target).await?;
    let pushed = async {
        loop {
            let link::ws::Incoming::Message(frame) = reader.next().await? else { continue };
            let message: Value = serde_json::from_slice(&frame)?;
            let parent = &message["header"]["msg_id"];
            let has_nothing = message["route"]["resource"] == "inventory" && message["route"]["operation"] == "query";
            let ack = json!({
                "header": {"msg_id": format!("ack-{parent}"), "parent_msg_id": parent, "timestamp": 1},
                "route": {"source": "edgecontroller", "group": "resource", "operation": "response",
                    "resource": message["route"]["resource"]},
                "content": if has_nothing { json!([]) } else { json!("OK") },
            });
            writer.send(ack.to_string().into_bytes()).await?;
            if message["route"]["resource"] == "default/pod/web" {
                return anyhow::Ok(message);
            }
        }
    };
    let pushed = tokio::time::timeout(SOON, pushed).await.context("the pod does not come again")??;
    assert_eq!(pushed["content"]["metadata"]["name"], "web");
    cloud.wait_for(SYNCS, "the record again", |list| recorded(list) == 1).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_went_with_its_namespace_is_told_to_its_node() -> Result<()> {
    let cloud = Cloud::start().await?;
    let (edge, credentials) = cloud.edge("n1").await?;
    let namespace = "/api/v1/namespaces/doomed";
    cloud.create("/api/v1/namespaces", &json!({"metadata": {"name": "doomed"}})).await?;
    cloud.wait_for(&format!("{namespace}/serviceaccounts/default"), "its account", Value::is_object).await?;
    cloud.create(&format!("{namespace}/pods"), &pod("web", "n1")).await?;
    row(&edge, "doomed/pod/web").await?;
    let syncs = SYNCS.replace("default", "doomed");
    cloud.wait_for(&syncs, "the record", |list| recorded(list) == 1).await?;
    let before = edge.stop().await;
    cloud.delete(&format!("{namespace}/pods/web?gracePeriodSeconds=0")).await?;
    cloud.delete(namespace).await?;
    cloud.wait_for(namespace, "the namespace to go", Value::is_null).await?;

    let edge = cloud.reconnect(&credentials, before, "n1").await?;
    gone(&edge, "doomed/pod/web").await?;
    no_faults(edge).await
}

/// The record may have gone while cloudcore was away: then nothing but the node's report tells of the pod.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_on_a_pod_that_is_gone_is_answered_by_its_deletion() -> Result<()> {
    let cloud = Cloud::start().await?;
    let (edge, _) = cloud.edge("n1").await?;
    let patch = json!({"metadata": {"uid": "ghost"}, "status": {"phase": "Running"}}).to_string();
    let answer = edge.request(request("patch", "default/podpatch/web", json!(patch))).await?;
    assert_eq!(answer["content"]["Err"]["ErrStatus"]["reason"], "NotFound", "{answer}");
    gone(&edge, "default/pod/web").await?;
    assert_eq!(edge.seen().pushes("default/pod/web")[0]["content"]["metadata"]["uid"], "ghost");
    // Not when the name is another's by now.
    cloud.create(PODS, &pod("web", "n1")).await?;
    row(&edge, "default/pod/web").await?;
    let answer = edge.request(request("patch", "default/podpatch/web", json!(patch))).await?;
    assert!(!answer["content"]["Err"].is_null(), "{answer}");
    let answer = edge.request(request("query", "null/node/n1", Value::Null)).await?;
    assert_eq!(answer["content"]["kind"], "Node");
    assert!(edge.seen().rows.contains_key("default/pod/web"));
    no_faults(edge).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namesake_made_meanwhile_replaces_its_predecessor() -> Result<()> {
    let cloud = Cloud::start().await?;
    let (edge, credentials) = cloud.edge("n1").await?;
    cloud.create(PODS, &pod("web-0", "n1")).await?;
    row(&edge, "default/pod/web-0").await?;
    cloud.wait_for(SYNCS, "a record", |list| recorded(list) == 1).await?;
    let before = edge.stop().await;
    cloud.delete_pod("web-0", 0).await?;
    let new = cloud.create(PODS, &pod("web-0", "n1")).await?;

    let edge = cloud.reconnect(&credentials, before, "n1").await?;
    edge.wait("the new pod", SOON, |seen| {
        (seen.rows.get("default/pod/web-0")?["metadata"]["uid"] == new["metadata"]["uid"]).then_some(())
    })
    .await?;
    let verbs = |seen: &Seen| -> Vec<Value> {
        seen.pushes("default/pod/web-0").iter().map(|push| push["route"]["operation"].clone()).collect()
    };
    assert_eq!(verbs(&edge.seen()), ["delete", "update"]);
    // The same while it is connected.
    cloud.delete_pod("web-0", 0).await?;
    let new = cloud.create(PODS, &pod("web-0", "n1")).await?;
    edge.wait("the next pod", SOON, |seen| {
        (seen.rows.get("default/pod/web-0")?["metadata"]["uid"] == new["metadata"]["uid"]).then_some(())
    })
    .await?;
    no_faults(edge).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crashed_cloudcore_loses_nothing() -> Result<()> {
    let mut cloud = Cloud::start().await?;
    let (edge, credentials) = cloud.edge("n1").await?;
    cloud.create(PODS, &pod("one", "n1")).await?;
    row(&edge, "default/pod/one").await?;
    cloud.kill_hub();
    edge.wait_end(SOON).await?;
    cloud.create(PODS, &pod("two", "n1")).await?;
    cloud.start_hub("").await?;
    let edge = cloud.reconnect(&credentials, edge.seen(), "n1").await?;
    row(&edge, "default/pod/two").await?;
    // Whatever the record of the first says by now, the pod itself is there.
    assert!(edge.seen().rows.contains_key("default/pod/one"));
    no_faults(edge).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_acknowledged_is_sent_again_with_the_same_id() -> Result<()> {
    let cloud = Cloud::start().await?;
    let (edge, credentials) = cloud.edge("n1").await?;
    drop(edge);
    let silent = Behaviour { acknowledge: false, ..Behaviour::default() };
    let websocket = cloud.addresses().websocket;
    let edge = GoEdge::connect_with(websocket, &credentials, "n1", silent, Default::default()).await?;
    cloud.create(PODS, &pod("web", "n1")).await?;
    let ids = edge
        .wait("the pod twice", SOON, |seen| {
            let pushes = seen.pushes("default/pod/web");
            (pushes.len() == 2).then(|| pushes.iter().map(|push| push["header"]["msg_id"].clone()).collect::<Vec<_>>())
        })
        .await?;
    assert_eq!(ids[0], ids[1]);
    // A node that does not acknowledge has no record, and does not hold up another.
    let (other, _) = cloud.edge("n2").await?;
    cloud.create(PODS, &pod("other", "n2")).await?;
    row(&other, "default/pod/other").await?;
    no_faults(edge).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_does_not_read_holds_up_nobody() -> Result<()> {
    let cloud = Cloud::start().await?;
    let (first, credentials) = cloud.edge("stuck").await?;
    drop(first);
    let tls = link::tls::client(&credentials.ca, Some(&credentials.own))?;
    let stuck = Channel::open(cloud.addresses().websocket, tls, "stuck").await?;
    // More than fits the sockets' buffers.
    let mut large = pod("large", "stuck");
    large["metadata"]["annotations"] = json!({"ballast": "x".repeat(200_000)});
    for n in 0..WINDOW {
        large["metadata"]["name"] = json!(format!("large-{n}"));
        cloud.create(PODS, &large).await?;
    }
    let (other, _) = cloud.edge("other").await?;
    let began = std::time::Instant::now();
    cloud.create(PODS, &pod("web", "other")).await?;
    row(&other, "default/pod/web").await?;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    drop(stuck);
    no_faults(other).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_close_does_not_end_a_newer_session() -> Result<()> {
    let cloud = Cloud::start().await?;
    let (first, credentials) = cloud.edge("n1").await?;
    let second = cloud.connect(&credentials, "n1").await?;
    let reason = first.wait_end(SOON).await?;
    assert!(reason.contains("another connection of this node"), "{reason}");
    drop(first);
    cloud.create(PODS, &pod("web", "n1")).await?;
    row(&second, "default/pod/web").await?;
    let answer = second.request(request("query", "null/node/n1", Value::Null)).await?;
    assert_eq!(answer["content"]["metadata"]["name"], "n1");
    no_faults(second).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_learns_that_it_was_deleted_and_begins_anew() -> Result<()> {
    let cloud = Cloud::start().await?;
    let (edge, credentials) = cloud.edge("n1").await?;
    cloud.create(PODS, &pod("old", "n1")).await?;
    row(&edge, "default/pod/old").await?;
    cloud.wait_for(SYNCS, "a record", |list| recorded(list) == 1).await?;
    cloud.delete("/api/v1/nodes/n1").await?;
    let reason = edge.wait_end(SOON).await?;
    assert!(reason.contains("Node object was deleted"), "{reason}");
    // Kubernetes itself removes the pods of a Node that is gone.
    cloud.wait_for(&format!("{PODS}/old"), "the pod to go", Value::is_null).await?;

    let edge = cloud.reconnect(&credentials, edge.seen(), "n1").await?;
    let answer = edge.request(request("insert", "null/node/n1", node_object("n1"))).await?;
    assert!(answer["content"]["Err"].is_null(), "{answer}");
    // Otherwise the pods of the old Node would run beside their replacements for ever.
    gone(&edge, "default/pod/old").await?;
    no_faults(edge).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopping_cloudcore_says_so() -> Result<()> {
    let mut cloud = Cloud::start().await?;
    let (edge, _) = cloud.edge("n1").await?;
    cloud.stop_hub().await?;
    let reason = edge.wait_end(SOON).await?;
    assert!(reason.contains("cloudcore stops"), "{reason}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_node_loses_its_session() -> Result<()> {
    let cloud = Cloud::start_with("    keepaliveInterval: 1\n").await?;
    let credentials = cloud.register("n1").await?;
    let silent = Behaviour { keepalive: false, ..Behaviour::default() };
    let websocket = cloud.addresses().websocket;
    let edge = GoEdge::connect_with(websocket, &credentials, "n1", silent, Default::default()).await?;
    let reason = edge.wait_end(SOON).await?;
    assert!(reason.contains("no keepalive"), "{reason}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_of_what_pods_refer_to_arrive() -> Result<()> {
    let cloud = Cloud::start().await?;
    let (edge, _) = cloud.edge("n1").await?;
    let secret = json!({"metadata": {"name": "password"}, "stringData": {"key": "old"}});
    cloud.create("/api/v1/namespaces/default/secrets", &secret).await?;
    cloud.create(MAPS, &config_map("unrelated", "old")).await?;
    let mut with_secret = pod("web", "n1");
    with_secret["spec"]["initContainers"] = json!([{
        "name": "first", "image": "busybox",
        "env": [{"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "password", "key": "key"}}}],
    }]);
    cloud.create(PODS, &with_secret).await?;
    row(&edge, "default/pod/web").await?;
    cloud.patch(&format!("{MAPS}/unrelated"), &json!({"data": {"key": "new"}})).await?;
    cloud.patch("/api/v1/namespaces/default/secrets/password", &json!({"data": {"key": "bmV3"}})).await?;
    edge.wait("the new secret", SOON, |seen| {
        (seen.rows.get("default/secret/password")?["data"]["key"] == "bmV3").then_some(())
    })
    .await?;
    cloud.delete("/api/v1/namespaces/default/secrets/password").await?;
    gone(&edge, "default/secret/password").await?;
    assert!(edge.seen().pushes("default/configmap/unrelated").is_empty());
    no_faults(edge).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_and_the_clusters_ca_are_served() -> Result<()> {
    let cloud = Cloud::start().await?;
    let (edge, _) = cloud.edge("n1").await?;
    let event = json!({
        "metadata": {"name": "n1.1", "namespace": "default"}, "reason": "Starting", "type": "Normal", "message": "edged",
        "involvedObject": {"kind": "Node", "name": "n1", "uid": "n1"}, "count": 1,
    });
    edge.send(&request("insert", "default/event/n1.1", event.clone())).await?;
    let path = "/api/v1/namespaces/default/events/n1.1";
    cloud.wait_for(path, "the event", |event| event["reason"] == "Starting").await?;
    let patch = json!({"event": event, "patchData": "{\"count\":2}"});
    edge.send(&request("patch", "default/event/n1.1", patch)).await?;
    cloud.wait_for(path, "the event's second count", |event| event["count"] == 2).await?;
    let ca = testkit::go_edge::message("metamanager", "meta", "query", "k8s/ca.crt", Value::Null);
    let answer = edge.request(ca).await?;
    ensure!(answer["content"].as_str().is_some_and(|text| text.contains("BEGIN CERTIFICATE")), "{answer}");
    assert_eq!(answer["route"]["resource"], "k8s/ca.crt");
    no_faults(edge).await
}

/// Waits until the edge has an object.
async fn row(edge: &GoEdge, resource: &str) -> Result<Value> {
    edge.wait(resource, SOON, |seen| seen.rows.get(resource).cloned()).await
}

/// Waits until the edge has it no more, because it was told so.
async fn gone(edge: &GoEdge, resource: &str) -> Result<()> {
    let told = |seen: &Seen| seen.pushes(resource).iter().any(|push| push["route"]["operation"] == "delete");
    edge.wait(&format!("the deletion of {resource}"), SOON, |seen| {
        (told(seen) && !seen.rows.contains_key(resource)).then_some(())
    })
    .await
}

/// Reports a pod's status as edged does, and wants it taken.
async fn patch_pod(edge: &GoEdge, name: &str, uid: &str, status: Value) -> Result<()> {
    let patch = json!({"metadata": {"uid": uid}, "status": status}).to_string();
    let answer = edge.request(request("patch", &format!("default/podpatch/{name}"), json!(patch))).await?;
    ensure!(answer["content"]["Err"].is_null(), "{answer}");
    Ok(())
}

/// Records with a version.
fn recorded(list: &Value) -> usize {
    let items = list["items"].as_array().into_iter().flatten();
    items.filter(|item| item["status"]["objectResourceVersion"].is_string()).count()
}

async fn no_faults(edge: GoEdge) -> Result<()> {
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(edge.seen().faults, Vec::<String>::new());
    Ok(())
}
