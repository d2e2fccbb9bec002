//! What edged asks: answered by the cloud, kept, and answered from the database without it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::go_cloud::{Answer, GoCloud};
use wire::operation;

use crate::support::{Edge, NODE, eventually, id, pod, push, text, value};

fn config_map(name: &str, version: u64) -> Value {
    json!({"kind": "ConfigMap", "apiVersion": "v1", "data": {"k": "v"},
        "metadata": {"name": name, "namespace": "default", "uid": "u-c", "resourceVersion": version.to_string()}})
}

fn token_request(uid: &str) -> Value {
    json!({"metadata": {"creationTimestamp": null},
        "spec": {"audiences": null, "expirationSeconds": 3607,
            "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": uid}},
        "status": {"token": "", "expirationTimestamp": null}})
}

#[tokio::test]
async fn an_answer_is_acknowledged_kept_and_given_again_without_the_cloud() {
    let mut cloud = GoCloud::start().await.unwrap();
    let edge = Edge::joined(&cloud).await;
    let resource = "default/configmap/kube-root-ca.crt";
    let online = edge.query(resource).await;
    assert_eq!(online["kind"], "ConfigMap");
    let request = cloud.wait_for("request", |m| m.is("query", resource)).await.unwrap();
    assert_eq!((request.route("source"), request.route("group")), ("edged", "meta"));
    assert_eq!(request.message["content"], Value::Null);
    let ack = cloud.wait_for("acknowledgement", |m| m.is("response", resource)).await.unwrap();
    assert_eq!((ack.route("source"), ack.route("group")), ("edgecontroller", "resource"));
    assert_ne!(ack.parent(), request.id(), "the answer is acknowledged, not the request");
    assert_eq!(cloud.complaints(), Vec::<String>::new());
    cloud.kill().await;
    edge.disconnected().await;
    let offline = edge.query(resource).await;
    assert_eq!(serde_json::from_str::<Value>(offline[0].as_str().unwrap()).unwrap(), online);
}

#[tokio::test]
async fn an_error_is_acknowledged_and_never_kept() {
    let mut cloud = GoCloud::start().await.unwrap();
    let edge = Edge::joined(&cloud).await;
    for resource in ["default/configmap/missing", "default/secret/missing", "null/persistentvolume/missing"] {
        let answer = edge.query(resource).await;
        assert_eq!(answer["ErrStatus"]["reason"], "NotFound", "{answer}");
        cloud.wait_for("acknowledgement", |m| m.is("response", resource)).await.unwrap();
    }
    let forbidden = json!({"ErrStatus": {"status": "Failure", "reason": "Forbidden", "message": "no", "code": 403}});
    cloud.answer("default/secret/forbidden", Answer::Content(forbidden));
    assert_eq!(edge.query("default/secret/forbidden").await["ErrStatus"]["code"], 403);
    for kind in ["configmap", "secret", "persistentvolume"] {
        assert_eq!(edge.stored(kind).await, Vec::<String>::new());
    }
    cloud.kill().await;
    edge.disconnected().await;
    assert_eq!(edge.query("default/configmap/missing").await, json!([]));
}

#[tokio::test]
async fn a_refusal_leaves_what_is_kept_and_a_deletion_does_not() {
    let mut cloud = GoCloud::start().await.unwrap();
    let edge = Edge::joined(&cloud).await;
    for name in ["refused", "deleted"] {
        let resource = format!("default/configmap/{name}");
        cloud.answer(&resource, Answer::Content(config_map(name, 5)));
        edge.query(&resource).await;
    }
    let forbidden = json!({"ErrStatus": {"status": "Failure", "reason": "Forbidden", "message": "no", "code": 403}});
    let gone = json!({"ErrStatus": {"status": "Failure", "reason": "NotFound", "message": "gone", "code": 404}});
    cloud.answer("default/configmap/refused", Answer::Content(forbidden));
    cloud.answer("default/configmap/deleted", Answer::Content(gone));
    edge.query("default/configmap/refused").await;
    edge.query("default/configmap/deleted").await;
    assert_eq!(edge.stored("configmap").await, ["default/configmap/refused"]);
    cloud.kill().await;
}

#[tokio::test]
async fn a_token_is_asked_for_once_and_lasts_without_the_cloud() {
    let mut cloud = GoCloud::start().await.unwrap();
    let mut edge = Edge::joined(&cloud).await;
    let resource = "default/serviceaccounttoken/default";
    let ask = async |edge: &Edge, uid: &str| edge.ask(operation::QUERY, resource, &token_request(uid)).await;
    let first = ask(&edge, "uid-of-p").await;
    assert!(value(&first)["status"]["token"].is_string(), "{}", text(&first));
    let second = ask(&edge, "uid-of-p").await;
    assert_eq!(first.content, second.content);
    let requests = || cloud.received().into_iter().filter(|m| m.is("query", resource)).count();
    assert_eq!(requests(), 1, "the second comes from here");
    ask(&edge, "another-pod").await;
    assert_eq!(requests(), 2, "another pod has a token of its own");
    cloud.kill().await;
    edge.disconnected().await;
    assert_eq!(ask(&edge, "uid-of-p").await.content, first.content);
    edge.kill().await;
    edge.start().await;
    assert_eq!(ask(&edge, "uid-of-p").await.content, first.content, "also after a restart");
    let unknown = ask(&edge, "a-pod-without-token").await;
    assert_eq!(unknown.route.operation, operation::ERROR, "another pod's token is not given away");
    // The pod goes, its token with it.
    cloud.serve().await.unwrap();
    edge.connected().await;
    let deletion = push("delete", "default/pod/p", pod("p", 9));
    cloud.send(&deletion).await.unwrap();
    cloud.reply_to(id(&deletion)).await.unwrap();
    assert_eq!(edge.stored("serviceaccounttoken").await.len(), 1);
}

#[tokio::test]
async fn a_status_patch_brings_the_kept_pod_up_to_date() {
    let cloud = GoCloud::start().await.unwrap();
    let edge = Edge::joined(&cloud).await;
    let message = push("update", "default/pod/p", pod("p", 5));
    cloud.send(&message).await.unwrap();
    cloud.reply_to(id(&message)).await.unwrap();
    let patch = json!({"metadata": {"uid": "uid-of-p"}, "status": {"phase": "Running"}}).to_string();
    let answer = edge.ask(operation::PATCH, "default/podpatch/p", &json!(patch)).await;
    let version = value(&answer)["Object"]["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let sent = cloud.wait_for("patch", |m| m.is("patch", "default/podpatch/p")).await.unwrap();
    assert_eq!(sent.message["content"], patch, "the patch travels as a string");
    let kept = edge.query("default/pod/p").await;
    let kept: Value = serde_json::from_str(kept[0].as_str().unwrap()).unwrap();
    assert_eq!((kept["kind"].as_str(), kept["apiVersion"].as_str()), (Some("Pod"), Some("v1")));
    assert_eq!(kept["metadata"]["resourceVersion"], version);
    // A probe behind it: had the answer been acknowledged, that would have come first.
    edge.query("default/configmap/missing").await;
    assert!(cloud.received().iter().all(|m| !m.is("response", "default/podpatch/p")), "no Go edge acknowledges this");
}

#[tokio::test]
async fn the_node_is_created_in_the_cloud_and_read_here() {
    let cloud = GoCloud::start().await.unwrap();
    let edge = Edge::joined(&cloud).await;
    let resource = format!("null/node/{NODE}");
    assert_eq!(edge.query(&resource).await, json!([]), "never asked of the cloud");
    let answer = edge.ask(operation::INSERT, &resource, &json!({"metadata": {"name": NODE}})).await;
    assert!(value(&answer)["Err"].is_null(), "{}", text(&answer));
    let kept = edge.query(&resource).await;
    let kept: Value = serde_json::from_str(kept[0].as_str().unwrap()).unwrap();
    assert_eq!((kept["kind"].as_str(), kept["metadata"]["name"].as_str()), (Some("Node"), Some(NODE)));
    // Both the answer and the pushed Node are acknowledged.
    cloud.wait_for_all("acknowledgements", 2, |m| m.is("response", &resource)).await.unwrap();
    let lease = format!("kube-node-lease/lease/{NODE}");
    let answer = edge.query(&lease).await;
    assert_eq!(answer["Err"]["ErrStatus"]["reason"], "NotFound", "{answer}");
    let answer = edge.ask(operation::INSERT, &lease, &json!({"metadata": {"name": NODE}})).await;
    assert_eq!(value(&answer)["Object"]["metadata"]["name"], NODE);
    let answer = edge.ask(operation::UPDATE, &lease, &json!({"metadata": {"name": NODE}})).await;
    assert_eq!(value(&answer)["Object"]["metadata"]["name"], NODE);
    cloud.wait_for_all("acknowledgements", 3, |m| m.is("response", &lease)).await.unwrap();
    let patch = edge.ask(operation::PATCH, &format!("null/nodepatch/{NODE}"), &json!("{}")).await;
    assert_eq!(value(&patch)["Object"]["metadata"]["name"], NODE);
    assert_eq!(cloud.complaints(), Vec::<String>::new());
}

#[tokio::test]
async fn a_deleted_pod_is_forgotten_when_the_cloud_agrees() {
    let cloud = GoCloud::start().await.unwrap();
    let edge = Edge::joined(&cloud).await;
    let message = push("update", "default/pod/p", pod("p", 5));
    cloud.send(&message).await.unwrap();
    cloud.reply_to(id(&message)).await.unwrap();
    let options = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": "uid-of-p"}});
    let answer = edge.ask(operation::DELETE, "default/pod/p", &options).await;
    assert!(answer.content.is_ok(), "{}", text(&answer));
    let sent = cloud.wait_for("deletion", |m| m.is("delete", "default/pod/p")).await.unwrap();
    assert_eq!(sent.message["content"], options);
    assert_eq!(edge.query("default/pod/p").await, json!([]));
}

#[tokio::test]
async fn without_the_cloud_requests_are_refused_at_once_and_in_words() {
    let mut cloud = GoCloud::start().await.unwrap();
    let edge = Edge::joined(&cloud).await;
    cloud.kill().await;
    edge.disconnected().await;
    let began = Instant::now();
    for (operation, resource) in [
        (operation::INSERT, "null/node/edge-1"),
        (operation::PATCH, "default/podpatch/p"),
        (operation::QUERY, "kube-node-lease/lease/edge-1"),
        (operation::UPDATE, "kube-node-lease/lease/edge-1"),
        (operation::DELETE, "default/pod/p"),
    ] {
        let answer = edge.ask(operation, resource, &json!({})).await;
        assert_eq!(answer.route.operation, operation::ERROR, "{resource}");
        assert!(text(&answer).contains("cloud is out of reach"), "{}", text(&answer));
    }
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_cloud_that_does_not_answer_is_not_waited_for_without_end() {
    let cloud = GoCloud::start().await.unwrap();
    let mut edge = Edge::with(&cloud, |settings| settings.query_timeout = 2);
    edge.put_token(&cloud.token());
    edge.start().await;
    edge.connected().await;
    let resource = "default/configmap/slow";
    cloud.answer(resource, Answer::Silence);
    let answer = edge.ask(operation::QUERY, resource, &Value::Null).await;
    assert_eq!(answer.route.operation, operation::ERROR);
    assert!(text(&answer).contains(resource) && text(&answer).contains("2 s"), "{}", text(&answer));
    // What is kept is given instead.
    cloud.answer(resource, Answer::Content(config_map("slow", 3)));
    edge.query(resource).await;
    cloud.answer(resource, Answer::Silence);
    let kept = edge.query(resource).await;
    assert!(kept[0].as_str().unwrap().contains("\"slow\""), "{kept}");
}

#[tokio::test]
async fn an_answer_that_comes_late_or_again_is_kept_and_then_acknowledged() {
    let cloud = GoCloud::start().await.unwrap();
    let mut edge = Edge::with(&cloud, |settings| settings.query_timeout = 1);
    edge.put_token(&cloud.token());
    edge.start().await;
    edge.connected().await;
    let resource = "default/configmap/late";
    cloud.answer(resource, Answer::Silence);
    edge.ask(operation::QUERY, resource, &Value::Null).await;
    let request = cloud.wait_for("request", |m| m.is("query", resource)).await.unwrap();
    let mut late = push("response", resource, config_map("late", 5));
    late["header"]["parent_msg_id"] = json!(request.id());
    for count in 1..=2 {
        cloud.send(&late).await.unwrap();
        cloud.wait_for_all("acknowledgements", count, |m| m.parent() == id(&late)).await.unwrap();
        assert_eq!(edge.stored("configmap").await, [resource], "the cloud believes that the node has it");
    }
}

#[tokio::test]
async fn an_answer_that_cannot_be_kept_is_given_but_not_acknowledged() {
    let cloud = GoCloud::start().await.unwrap();
    let edge = Edge::joined(&cloud).await;
    edge.query("default/configmap/kube-root-ca.crt").await;
    edge.database().write(|c| c.pragma_update(None, "max_page_count", 1)).await.unwrap();
    let resource = "default/configmap/big";
    let mut big = config_map("big", 5);
    big["data"]["k"] = json!("x".repeat(200_000));
    cloud.answer(resource, Answer::Content(big));
    assert_eq!(edge.query(resource).await["metadata"]["name"], "big");
    // A probe behind it, whose acknowledgement would come later.
    edge.query("default/secret/missing").await;
    cloud.wait_for("acknowledgement", |m| m.is("response", "default/secret/missing")).await.unwrap();
    let acks = cloud.received().into_iter().filter(|m| m.is("response", resource)).count();
    assert_eq!(acks, 0, "the cloud must not believe that the node has it");
}

#[tokio::test]
async fn a_flood_of_events_holds_no_acknowledgement_up() {
    const EVENTS: usize = 400;
    let cloud = GoCloud::start().await.unwrap();
    let edge = Edge::joined(&cloud).await;
    let flood = async {
        for number in 0..EVENTS {
            edge.post(operation::INSERT, &format!("default/event/e{number}"), &json!({"reason": "BackOff"})).await;
        }
    };
    let traffic = async {
        cloud.wait_for("first event", |m| m.is("insert", "default/event/e50")).await.unwrap();
        let began = Instant::now();
        let message = push("update", "default/pod/p", pod("p", 5));
        cloud.send(&message).await.unwrap();
        cloud.reply_to(id(&message)).await.unwrap();
        let lease = format!("kube-node-lease/lease/{NODE}");
        edge.ask(operation::UPDATE, &lease, &json!({"metadata": {"name": NODE}})).await;
        began.elapsed()
    };
    let ((), took) = tokio::join!(flood, traffic);
    assert!(took < Duration::from_secs(3), "a Go cloud sends again after five seconds: {took:?}");
}

#[tokio::test]
async fn events_and_reports_go_out_without_an_answer() {
    let mut cloud = GoCloud::start().await.unwrap();
    let edge = Edge::joined(&cloud).await;
    edge.post(operation::INSERT, "default/event/e1", &json!({"reason": "Pulled"})).await;
    let event = cloud.wait_for("event", |m| m.is("insert", "default/event/e1")).await.unwrap();
    assert_eq!((event.route("source"), event.route("group")), ("edged", "meta"));
    let answer = edge.ask(operation::UPDATE, "default/podstatus/p", &json!({"UID": "u", "Name": "p"})).await;
    assert!(answer.content.is_ok());
    cloud.wait_for("report", |m| m.is("update", "default/podstatus/p")).await.unwrap();
    // Without link they wait for the next one.
    cloud.kill().await;
    edge.disconnected().await;
    for number in 2..5 {
        edge.post(operation::INSERT, &format!("default/event/e{number}"), &json!({"reason": "Killing"})).await;
    }
    cloud.serve().await.unwrap();
    for number in 2..5 {
        let resource = format!("default/event/e{number}");
        cloud.wait_for("event", |m| m.is("insert", &resource)).await.unwrap();
    }
    assert_eq!(cloud.complaints(), Vec::<String>::new());
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_in_words() {
    let cloud = GoCloud::start().await.unwrap();
    let edge = Edge::joined(&cloud).await;
    for resource in ["", "pod", "a/b/c/d", "default//p"] {
        let answer = edge.ask(operation::QUERY, resource, &Value::Null).await;
        assert_eq!(answer.route.operation, operation::ERROR, "{resource}");
        assert!(text(&answer).contains("namespace/type/name"), "{}", text(&answer));
    }
}

#[tokio::test]
async fn many_requests_at_once_each_get_their_own_answer() {
    let cloud = GoCloud::start().await.unwrap();
    let edge = Edge::joined(&cloud).await;
    let names: Vec<String> = (0..100).map(|number| format!("c{number}")).collect();
    for name in &names {
        cloud.answer(&format!("default/configmap/{name}"), Answer::Content(config_map(name, 1)));
    }
    let asked = names.iter().map(|name| {
        let edge = &edge;
        async move { edge.query(&format!("default/configmap/{name}")).await }
    });
    let answers = futures_util::future::join_all(asked).await;
    for (name, answer) in names.iter().zip(answers) {
        assert_eq!(answer["metadata"]["name"], *name);
    }
    eventually("acknowledgements", || {
        let acks = cloud.received().into_iter().filter(|m| m.route("operation") == "response").count();
        (acks >= names.len()).then_some(())
    })
    .await;
}
