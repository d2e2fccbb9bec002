//! What nodes and strangers send that is wrong: each gets an answer that names cause and cure, and a line in the log.

use anyhow::{Context, Result};
use link::tls::{self, Certificate};
use serde_json::{Value, json};
use testkit::go_edge::channel::{Channel, Read};
use testkit::go_edge::{Behaviour, GoEdge, message, request};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::cloud::{Cloud, SOON, config_map, pod, wait_logged};
use crate::registration::{certificate, foreign_ca};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_certificate_of_another_node_opens_nothing() -> Result<()> {
    let cloud = Cloud::start().await?;
    let credentials = cloud.register("honest").await?;
    let error =
        GoEdge::connect(cloud.addresses().websocket, &credentials, "victim").await.err().expect("refused").to_string();
    assert!(error.contains("403") && error.contains("victim") && error.contains("system:node:honest"), "{error}");
    wait_logged(&["WARN", "victim", "system:node:honest"]).await?;

    let error =
        GoEdge::connect(cloud.addresses().websocket, &credentials, "").await.err().expect("refused").to_string();
    assert!(error.contains("403") && error.contains("node_id"), "{error}");
    // The honest one is not disturbed.
    cloud.connect(&credentials, "honest").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_and_expired_certificates_fail_in_the_handshake() -> Result<()> {
    let cloud = Cloud::start().await?;
    let ca = cloud.register("n1").await?.ca;
    let websocket = cloud.addresses().websocket;
    let own_ca = (cloud.secret("casecret", "cadata").await?, cloud.secret("casecret", "cakeydata").await?);
    let (foreign, foreign_key) = foreign_ca()?;
    for (what, own) in [
        ("none", None),
        ("foreign", Some(certificate(&foreign, &foreign_key, "system:node:n1", "system:nodes", 1)?)),
        ("expired", Some(certificate(&own_ca.0, &own_ca.1, "system:node:n1", "system:nodes", -1)?)),
    ] {
        let tls = tls::client(&ca, own.as_ref())?;
        assert!(Channel::open(websocket, tls, "n1").await.is_err(), "{what}");
    }
    wait_logged(&["WARN", "its certificate is missing, expired or of another CA"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_that_say_nothing_or_half_a_word_block_nobody() -> Result<()> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    rustix::process::setrlimit(
        rustix::process::Resource::Nofile,
        rustix::process::Rlimit { current: limit.maximum, ..limit },
    )?;
    let cloud = Cloud::start().await?;
    let (websocket, https) = (cloud.addresses().websocket, cloud.addresses().https);
    let mut silent = Vec::new();
    for number in 0..4_500 {
        for address in [websocket, https] {
            let mut tcp = TcpStream::connect(address).await?;
            if number % 2 == 0 {
                // The head of a ClientHello that does not come.
                tcp.write_all(&[0x16, 3, 1, 2, 0]).await?;
            }
            silent.push(tcp);
        }
    }
    tokio::time::timeout(SOON / 4, cloud.edge("n1")).await.context("the silent ones are in the way")??;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_never_asks_for_the_upgrade_blocks_nobody() -> Result<()> {
    let cloud = Cloud::start().await?;
    let (websocket, slow) = (cloud.addresses().websocket, cloud.register("slow").await?);
    let connector = tokio_rustls::TlsConnector::from(tls::client(&slow.ca, Some(&slow.own))?);
    let mut open = Vec::new();
    // More than there are handshakes at once.
    for _ in 0..300 {
        let name = link::rustls::pki_types::ServerName::from(websocket.ip());
        open.push(connector.connect(name, TcpStream::connect(websocket).await?).await?);
    }
    tokio::time::timeout(SOON / 4, cloud.edge("n1")).await.context("the slow one is in the way")??;
    wait_logged(&["WARN", "system:node:slow", "have not asked for anything"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_json_ends_the_connection_with_the_reason() -> Result<()> {
    let cloud = Cloud::start().await?;
    for (at, text) in
        ["{\"header\":", "[]", "{\"header\":{\"msg_id\":\"a\",\"timestamp\":\"x\"},\"route\":{},\"content\":1}"]
            .iter()
            .enumerate()
    {
        let node = format!("broken-{at}");
        let (edge, _) = cloud.edge(&node).await?;
        edge.send_text((*text).to_owned()).await?;
        let reason = edge.wait_end(SOON).await?;
        assert!(reason.contains("no message"), "{text}: {reason}");
        wait_logged(&["no message", &node]).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_over_the_limit_ends_the_connection_with_the_reason() -> Result<()> {
    let cloud = Cloud::start().await?;
    let credentials = cloud.register("large").await?;
    let tls = tls::client(&credentials.ca, Some(&credentials.own))?;
    let mut channel = Channel::open(cloud.addresses().websocket, tls.clone(), "large").await?;
    let content = "x".repeat(link::ws::MAX_MESSAGE_BYTES);
    // Writing fails when the cloud has closed before all was written.
    let _ = channel.write(&message("edged", "meta", "update", "null/node/large", json!(content)).to_string()).await;
    while let Read::Message(_) = channel.read().await {}
    wait_logged(&["node disconnected", "large", "limits", "too long"]).await?;
    // One just below is taken: this answer says that its content is wrong, not its size.
    let edge = cloud.connect(&credentials, "large").await?;
    let content = "x".repeat(link::ws::MAX_MESSAGE_BYTES - 1024);
    let answer = edge.request(request("insert", "null/node/large", json!(content))).await?;
    assert_eq!(answer["content"]["Err"]["ErrStatus"]["reason"], "BadRequest");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_reaches_nothing_of_another() -> Result<()> {
    let cloud = Cloud::start().await?;
    let (edge, _) = cloud.edge("curious").await?;
    let (victim, _) = cloud.edge("victim").await?;
    cloud.create("/api/v1/namespaces/default/configmaps", &config_map("theirs", "secret")).await?;
    let mut theirs = pod("theirs", "victim");
    theirs["spec"]["containers"][0]["envFrom"] = json!([{"configMapRef": {"name": "theirs"}}]);
    cloud.create("/api/v1/namespaces/default/pods", &theirs).await?;
    victim.wait("its pod", SOON, |seen| seen.rows.get("default/pod/theirs").cloned()).await?;

    // Nobody's pod, for no node fits it.
    let mut pending = pod("pending", "");
    pending["spec"]["nodeSelector"] = json!({"nowhere": "true"});
    cloud.create("/api/v1/namespaces/default/pods", &pending).await?;
    // A pod on the node would open to it what the pod refers to.
    let mut opening = pod("opening", "curious");
    opening["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "hash"});
    opening["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "v1", "kind": "Node", "name": "curious", "uid": "u", "controller": true}]);
    opening["spec"]["volumes"] = json!([{"name": "v", "secret": {"secretName": "casecret"}}]);
    let event = json!({"involvedObject": {"kind": "Pod", "namespace": "default", "name": "pending"}});

    let token = json!({"spec": {"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "theirs", "uid": "x"}}});
    for (operation, resource, content) in [
        ("insert", "null/node/victim", json!({})),
        ("patch", "null/nodepatch/victim", json!("{\"status\":{}}")),
        ("update", "kube-node-lease/lease/victim", json!({})),
        ("patch", "default/podpatch/theirs", json!("{\"status\":{\"phase\":\"Failed\"}}")),
        ("delete", "default/pod/theirs", json!({"gracePeriodSeconds": 0})),
        ("patch", "default/podpatch/pending", json!("{\"status\":{\"phase\":\"Failed\"}}")),
        ("delete", "default/pod/pending", json!({"gracePeriodSeconds": 0})),
        ("insert", "kubeedge/pod/opening", opening),
        // Each of these would be another URL of the API than the path says.
        ("delete", "default/pod", json!({"gracePeriodSeconds": 0})),
        ("delete", "default/pod/?", json!({"gracePeriodSeconds": 0})),
        ("delete", "default/pod/theirs?x", json!({"gracePeriodSeconds": 0})),
        ("delete", "default/pod/%74heirs", json!({"gracePeriodSeconds": 0})),
        ("insert", "kube-node-lease/lease/curious", json!({"metadata": {"name": "victim"}})),
        ("query", "default/configmap/theirs", Value::Null),
        ("query", "kubeedge/secret/casecret", Value::Null),
        ("query", "default/serviceaccounttoken/default", token),
    ] {
        let answer = edge.request(request(operation, resource, content)).await?;
        let text = answer["content"].to_string();
        assert!(
            text.contains("\"reason\":\"Forbidden\"") && text.contains("curious may not"),
            "{operation} {resource}: {text}"
        );
        wait_logged(&["WARN", "curious", resource]).await?;
    }
    edge.send(&request("insert", "default/event/e", event)).await?;
    wait_logged(&["WARN", "curious", "default/event/e"]).await?;
    // A path that names the other node in front is no way round.
    let answer = edge.request(request("query", "node/victim/default/configmap/theirs", Value::Null)).await?;
    assert!(answer["content"]["ErrStatus"]["reason"].is_string(), "{answer}");
    for name in ["theirs", "pending"] {
        let found = cloud.get(&format!("/api/v1/namespaces/default/pods/{name}")).await?;
        assert_eq!(found["status"]["phase"], "Pending", "{name}");
    }
    for edge in [edge, victim] {
        assert_eq!(edge.seen().faults, Vec::<String>::new());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_decides_over_its_status_alone() -> Result<()> {
    let cloud = Cloud::start().await?;
    let (edge, _) = cloud.edge("n1").await?;
    let created = cloud.create("/api/v1/namespaces/default/pods", &pod("web", "n1")).await?;
    edge.wait("its pod", SOON, |seen| seen.rows.get("default/pod/web").cloned()).await?;
    let power = "node-role.kubernetes.io/control-plane";
    let labels =
        json!({"labels": {power: "", "colour": "blue", "node-role.kubernetes.io/edge": ""}, "finalizers": ["x/y"]});

    let answer = edge.request(request("update", "null/node/n1", json!({"metadata": labels}))).await?;
    let text = answer["content"].to_string();
    assert!(text.contains("Forbidden") && text.contains(power) && text.contains("kubectl label"), "{text}");
    // What it has from its registration it may repeat.
    let repeated = json!({"metadata": {"labels": {"node-role.kubernetes.io/edge": "", "shape": "round"}}});
    assert_eq!(edge.request(request("update", "null/node/n1", repeated)).await?["content"], "OK");
    // A status is taken, whatever else is in its patch.
    let patch =
        json!({"metadata": labels, "spec": {"unschedulable": true}, "status": {"phase": "Running"}}).to_string();
    let answer = edge.request(request("patch", "null/nodepatch/n1", json!(patch))).await?;
    assert!(answer["content"]["Err"].is_null(), "{answer}");
    let node = cloud.get("/api/v1/nodes/n1").await?;
    assert_eq!(node["status"]["phase"], "Running");
    let label = |name: &str| node["metadata"]["labels"][name].as_str();
    assert_eq!((label(power), label("shape")), (None, Some("round")));
    assert!(node["metadata"]["finalizers"].is_null() && node["spec"]["unschedulable"].is_null(), "{node}");

    let uid = &created["metadata"]["uid"];
    let metadata = json!({"uid": uid, "labels": {"app": "stolen"}, "annotations": {"a": "b"}, "finalizers": ["x/y"]});
    let patch = json!({"metadata": metadata, "status": {"phase": "Running"}}).to_string();
    let answer = edge.request(request("patch", "default/podpatch/web", json!(patch))).await?;
    assert!(answer["content"]["Err"].is_null(), "{answer}");
    let found = cloud.get("/api/v1/namespaces/default/pods/web").await?;
    assert_eq!(found["status"]["phase"], "Running");
    for field in ["labels", "finalizers"] {
        assert!(found["metadata"][field].is_null(), "{found}");
    }
    assert!(found["metadata"]["annotations"]["a"].is_null(), "{found}");

    // An event of another, by its name.
    let about = |name: &str| json!({"kind": "Node", "name": name, "uid": name});
    let event = |name: &str| json!({"metadata": {"name": "e", "namespace": "default"}, "reason": "x", "involvedObject": about(name), "count": 1});
    cloud.create("/api/v1/namespaces/default/events", &event("n2")).await?;
    for (verb, content) in
        [("patch", json!({"event": event("n1"), "patchData": "{\"count\":7}"})), ("update", event("n1"))]
    {
        edge.send(&request(verb, "default/event/e", content)).await?;
    }
    wait_logged(&["WARN", "n1", "event e is about something else"]).await?;

    // Odd contents are answered.
    for content in [json!("x"), json!([]), json!({"metadata": "x"}), json!({"metadata": {"labels": "x"}})] {
        let answer = edge.request(request("insert", "null/node/n1", content.clone())).await?;
        assert!(answer["content"]["Err"]["ErrStatus"]["reason"].is_string(), "{content}: {answer}");
    }
    let other = cloud.register("n3").await?;
    let edge = cloud.connect(&other, "n3").await?;
    let mut restricted = crate::cloud::node_object("n3");
    restricted["metadata"]["labels"]["node-restriction.kubernetes.io/x"] = json!("y");
    let answer = edge.request(request("insert", "null/node/n3", restricted)).await?;
    assert_eq!(answer["content"]["Err"]["ErrStatus"]["reason"], "Forbidden", "{answer}");
    assert_eq!(cloud.get("/api/v1/namespaces/default/events/e").await?["count"], 1);
    Ok(())
}

/// A cloudcore that has just started knows no pods yet: that is no reason to allow or to refuse anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_opens_nothing_and_closes_nothing() -> Result<()> {
    let mut cloud = Cloud::start().await?;
    let (edge, credentials) = cloud.edge("curious").await?;
    let (victim, _) = cloud.edge("victim").await?;
    cloud.create("/api/v1/namespaces/default/configmaps", &config_map("own", "value")).await?;
    let mut own = pod("own", "curious");
    own["spec"]["containers"][0]["envFrom"] = json!([{"configMapRef": {"name": "own"}}]);
    for pod in [&own, &pod("theirs", "victim")] {
        cloud.create("/api/v1/namespaces/default/pods", pod).await?;
    }
    edge.wait("its pod", SOON, |seen| seen.rows.get("default/pod/own").cloned()).await?;
    let mut before = edge.stop().await;
    drop(victim);
    for _ in 0..3 {
        cloud.kill_hub();
        cloud.start_hub("").await?;
        let edge = cloud.reconnect(&credentials, before, "curious").await?;
        let (deleted, asked) = tokio::try_join!(
            edge.request(request("delete", "default/pod/theirs", json!({"gracePeriodSeconds": 0}))),
            edge.request(request("query", "default/configmap/own", Value::Null)),
        )?;
        assert_eq!(deleted["content"]["ErrStatus"]["reason"], "Forbidden", "{deleted}");
        assert_eq!(asked["content"]["data"]["key"], "value", "{asked}");
        before = edge.stop().await;
    }
    cloud.get("/api/v1/namespaces/default/pods/theirs").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_resources_are_answered() -> Result<()> {
    let cloud = Cloud::start().await?;
    let (edge, _) = cloud.edge("n1").await?;
    for (operation, resource) in [
        ("query", "default/rocket/apollo"),
        ("query", "default/rocket"),
        ("explode", "null/node/n1"),
        ("query", "default/pod/nothing"),
        ("query", "x"),
        ("query", "a/b/c/d/e"),
        ("query", "../../etc/passwd"),
        ("query", "default/configmap/..%2F..%2Fsecrets"),
    ] {
        let answer = edge.request(request(operation, resource, Value::Null)).await?;
        let content = &answer["content"];
        let status = content.get("ErrStatus").unwrap_or(&content["Err"]["ErrStatus"]);
        assert!(status["reason"].is_string() && status["message"].is_string(), "{operation} {resource}: {answer}");
    }
    // Nothing of that ended the connection.
    let answer = edge.request(request("query", "null/node/n1", Value::Null)).await?;
    assert_eq!(answer["content"]["kind"], "Node");
    assert_eq!(edge.seen().faults, Vec::<String>::new());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_messages_of_a_go_edge_are_taken() -> Result<()> {
    let cloud = Cloud::start().await?;
    let (edge, _) = cloud.edge("n1").await?;
    let late = message("edgecontroller", "resource", "response", "default/pod/x", json!("OK"));
    for odd in [
        json!({"header": {"msg_id": "", "timestamp": 0}, "route": {}, "content": null}),
        json!({"header": {"msg_id": "a", "parent_msg_id": "unknown", "timestamp": 1}, "route": late["route"], "content": "OK"}),
        message("twin", "resource", "get", "membership/detail", json!("{}")),
        message("edged", "meta", "error", "default/pod/x", json!("the disk is full")),
        message("bus", "user", "upload", "topic", json!("data")),
    ] {
        edge.send(&odd).await?;
    }
    edge.send_text(format!("{} trailing", message("websocket", "resource", "keepalive", "node", json!("ping"))))
        .await?;
    let answer = edge.request(request("query", "null/node/n1", Value::Null)).await?;
    assert_eq!(answer["content"]["kind"], "Node");
    assert_eq!(edge.seen().ended, None);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_cannot_store_is_told_by_describe() -> Result<()> {
    let cloud = Cloud::start().await?;
    let (first, credentials) = cloud.edge("n1").await?;
    drop(first);
    let silent = Behaviour { acknowledge: false, ..Behaviour::default() };
    let websocket = cloud.addresses().websocket;
    let edge = GoEdge::connect_with(websocket, &credentials, "n1", silent, Default::default()).await?;
    let created = cloud.create("/api/v1/namespaces/default/pods", &pod("web", "n1")).await?;
    let push = |count: usize| {
        edge.wait("the pod", SOON, move |seen| {
            let pushes = seen.pushes("default/pod/web");
            (pushes.len() >= count).then(|| pushes[count - 1]["header"]["msg_id"].clone())
        })
    };
    let events = "/api/v1/namespaces/default/events";
    for count in 1..=2 {
        let mut failure =
            message("metamanager", "resource", "error", "default/pod/web", json!("no\nroom: free some space"));
        failure["header"]["parent_msg_id"] = push(count).await?;
        edge.send(&failure).await?;
        // What is not about a message that was sent is nobody's event.
        edge.send(&failure).await?;
        failure["header"]["parent_msg_id"] = json!("unknown");
        edge.send(&failure).await?;
        let list = cloud
            .wait_for(events, "the event", |list| {
                let told = |event: &Value| event["reason"] == "NotStored" && event["count"] == count;
                list["items"].as_array().is_some_and(|items| items.iter().any(told))
            })
            .await?;
        let told: Vec<&Value> =
            list["items"].as_array().into_iter().flatten().filter(|e| e["reason"] == "NotStored").collect();
        assert_eq!(told.len(), 1);
        assert_eq!(told[0]["involvedObject"]["uid"], created["metadata"]["uid"]);
        assert_eq!(told[0]["message"], "node n1: noroom: free some space");
    }
    wait_logged(&["WARN", "n1", "noroom: free some space"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_too_many_is_told_so() -> Result<()> {
    let cloud = Cloud::start_with("    nodeLimit: 1\n").await?;
    let (_first, credentials) = cloud.edge("n1").await?;
    let other = cloud.register("n2").await?;
    let error = cloud.connect(&other, "n2").await.err().expect("refused").to_string();
    assert!(error.contains("503") && error.contains("nodeLimit"), "{error}");
    // The one that is there may come again.
    cloud.connect(&credentials, "n1").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_request_on_the_message_channel_is_refused() -> Result<()> {
    let cloud = Cloud::start().await?;
    let credentials = cloud.register("n1").await?;
    let own = Certificate { certificate: credentials.own.certificate.clone(), key: credentials.own.key.clone() };
    let tls = tls::client(&credentials.ca, Some(&own))?;
    let answer =
        testkit::go_edge::http::exchange(cloud.addresses().websocket, tls, "GET", "/", &[("node_id", "n1")], b"").await;
    assert!(answer.is_err() || answer.is_ok_and(|answer| answer.status == 400));
    Ok(())
}
