//! Certificates: getting one, renewing it, and saying what is wrong with it.

use std::time::Duration;

use testkit::go_cloud::GoCloud;

use crate::support::{Edge, Log, NODE, mode, pod, push};

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

#[tokio::test]
async fn an_edge_joins_with_a_token_and_gets_a_pod() {
    let cloud = GoCloud::start().await.unwrap();
    let edge = Edge::joined(&cloud).await;

    let requests: Vec<_> = cloud.http_requests().into_iter().map(|r| (r.path, r.node, r.status)).collect();
    assert_eq!(requests, [("/ca.crt".to_owned(), String::new(), 200), ("/edge.crt".to_owned(), NODE.to_owned(), 200)]);
    let connection = cloud.connection(0).await.unwrap();
    assert_eq!(connection.path, format!("/e632aba927ea4ac2b575ec1603d56f10/{NODE}/events"));
    assert_eq!(connection.peer.node(), Some(NODE));
    let header = |name: &str| connection.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone());
    assert_eq!(header("node_id").as_deref(), Some(NODE));
    assert_eq!(header("project_id").as_deref(), Some("e632aba927ea4ac2b575ec1603d56f10"));
    for name in ["ca.crt", "node.crt", "node.key"] {
        assert_eq!(mode(&edge.file(name)), 0o600, "{name}");
    }
    assert!(!edge.bootstrap().exists(), "a used token is removed");

    let beat = cloud.wait_for("keepalive", |m| m.is("keepalive", "node")).await.unwrap();
    assert_eq!((beat.route("source"), beat.route("group")), ("websocket", "resource"));
    assert_eq!(beat.message["content"], "ping");

    let pushed = cloud.recorded().push("update", "pod").unwrap();
    let resource = pushed["route"]["resource"].as_str().unwrap();
    cloud.send(&pushed).await.unwrap();
    let ack = cloud.reply_to(pushed["header"]["msg_id"].as_str().unwrap()).await.unwrap();
    assert!(ack.is("response", resource));
    assert_eq!((ack.route("source"), ack.route("group")), ("edgecontroller", "resource"));
    assert_eq!(ack.message["content"], "OK");
    let told = edge.wait_told("update", resource).await;
    assert_eq!(crate::support::value(&told), pushed["content"]);
    assert_eq!(cloud.complaints(), Vec::<String>::new());
}

#[tokio::test]
async fn a_token_in_the_configuration_will_do() {
    let cloud = GoCloud::start().await.unwrap();
    let mut edge = Edge::with(&cloud, |settings| settings.token = cloud.token());
    edge.start().await;
    assert_eq!(cloud.connection(0).await.unwrap().peer.node(), Some(NODE));
}

#[tokio::test]
async fn a_certificate_is_used_again() {
    let cloud = GoCloud::start().await.unwrap();
    let mut edge = Edge::joined(&cloud).await;
    edge.stop().await;
    edge.start().await;
    cloud.connection(1).await.unwrap();
    assert_eq!(cloud.http_requests().len(), 2, "nothing is asked for again");
}

#[tokio::test]
async fn without_certificate_and_token_the_user_is_told_what_to_do() {
    let log = Log::start();
    let cloud = GoCloud::start().await.unwrap();
    let mut edge = Edge::new(&cloud);
    edge.start().await;
    let bootstrap = edge.bootstrap().display().to_string();
    log.line_with(&["ERROR", "neither a certificate", "keadm gettoken", &bootstrap]).await;
    joins_with_a_new_token(&cloud, &edge).await;
}

#[tokio::test]
async fn an_expired_token_is_called_that() {
    let log = Log::start();
    let cloud = GoCloud::start().await.unwrap();
    let mut edge = Edge::new(&cloud);
    edge.put_token(&cloud.token_until(1_700_000_000));
    edge.start().await;
    let bootstrap = edge.bootstrap().display().to_string();
    log.line_with(&["ERROR", "expired", "keadm gettoken", &bootstrap]).await;
    assert!(!edge.file("node.crt").exists());
    joins_with_a_new_token(&cloud, &edge).await;
}

#[tokio::test]
async fn a_garbled_token_is_called_that() {
    let log = Log::start();
    let cloud = GoCloud::start().await.unwrap();
    let mut edge = Edge::new(&cloud);
    edge.put_token("kubeadm-token.abc");
    edge.start().await;
    log.line_with(&["ERROR", "malformed", "keadm gettoken"]).await;
    assert_eq!(cloud.http_requests(), [], "nobody is asked with it");
    joins_with_a_new_token(&cloud, &edge).await;
}

#[tokio::test]
async fn a_token_with_a_wrong_signature_is_refused_with_a_cure() {
    let log = Log::start();
    let cloud = GoCloud::start().await.unwrap();
    let mut edge = Edge::new(&cloud);
    let token = cloud.token();
    let (signed, _) = token.rsplit_once('.').unwrap();
    edge.put_token(&format!("{signed}.AAAA"));
    edge.start().await;
    log.line_with(&["ERROR", "signature is invalid", "keadm gettoken"]).await;
    joins_with_a_new_token(&cloud, &edge).await;
}

#[tokio::test]
async fn the_token_of_another_cloud_is_not_sent() {
    let log = Log::start();
    let cloud = GoCloud::start().await.unwrap();
    let other = GoCloud::start().await.unwrap();
    let mut edge = Edge::new(&cloud);
    edge.put_token(&other.token());
    edge.start().await;
    log.line_with(&["ERROR", "not the one that the token names", "keadm gettoken"]).await;
    assert!(cloud.http_requests().iter().all(|request| request.path == "/ca.crt"));
    assert!(!edge.file("ca.crt").exists(), "a wrong CA is not kept");
    joins_with_a_new_token(&cloud, &edge).await;
}

#[tokio::test]
async fn the_certificate_of_another_node_is_not_used() {
    let log = Log::start();
    let cloud = GoCloud::start().await.unwrap();
    let mut edge = Edge::new(&cloud);
    let issued = cloud.authority().issue_client("system:node:other", "system:nodes", YEAR).unwrap();
    edge.put_certificate(cloud.authority().certificate(), &issued.certificate, &issued.key);
    edge.start().await;
    let file = edge.file("node.crt").display().to_string();
    log.line_with(&["ERROR", &file, "system:node:other", NODE, "hostnameOverride"]).await;
    assert_eq!(cloud.connections(), 0);
    joins_with_a_new_token(&cloud, &edge).await;
}

#[tokio::test]
async fn an_expired_certificate_is_called_that() {
    let log = Log::start();
    let cloud = GoCloud::start().await.unwrap();
    let mut edge = Edge::new(&cloud);
    let name = format!("system:node:{NODE}");
    let issued = cloud.authority().issue_client(&name, "system:nodes", Duration::ZERO).unwrap();
    edge.put_certificate(cloud.authority().certificate(), &issued.certificate, &issued.key);
    edge.start().await;
    let bootstrap = edge.bootstrap().display().to_string();
    log.line_with(&["ERROR", "expired", "keadm gettoken", &bootstrap]).await;
    joins_with_a_new_token(&cloud, &edge).await;
}

#[tokio::test]
async fn a_key_that_does_not_fit_is_called_that() {
    let log = Log::start();
    let cloud = GoCloud::start().await.unwrap();
    let mut edge = Edge::new(&cloud);
    let name = format!("system:node:{NODE}");
    let issue = || cloud.authority().issue_client(&name, "system:nodes", YEAR).unwrap();
    edge.put_certificate(cloud.authority().certificate(), &issue().certificate, &issue().key);
    edge.start().await;
    let key = edge.file("node.key").display().to_string();
    log.line_with(&["ERROR", &key, "keadm gettoken"]).await;
    joins_with_a_new_token(&cloud, &edge).await;
}

#[tokio::test]
async fn damaged_certificate_files_are_named_with_a_cure() {
    let log = Log::start();
    let cloud = GoCloud::start().await.unwrap();
    let mut edge = Edge::joined(&cloud).await;
    edge.stop().await;
    std::fs::write(edge.file("node.crt"), "half a fi").unwrap();
    edge.start().await;
    let file = edge.file("node.crt").display().to_string();
    log.line_with(&["ERROR", &file, "keadm gettoken"]).await;
    edge.put_token(&cloud.token());
    cloud.connection(1).await.unwrap();
}

#[tokio::test]
async fn a_cloud_with_another_ca_is_called_that() {
    let log = Log::start();
    let first = GoCloud::start().await.unwrap();
    let second = GoCloud::start().await.unwrap();
    let mut edge = Edge::joined(&first).await;
    edge.stop().await;
    edge.move_to(&second);
    edge.start().await;
    log.line_with(&["another CA", "keadm gettoken"]).await;
    joins_with_a_new_token(&second, &edge).await;
}

#[tokio::test]
async fn a_bad_token_does_no_harm_to_a_good_certificate() {
    let log = Log::start();
    let cloud = GoCloud::start().await.unwrap();
    let mut edge = Edge::joined(&cloud).await;
    edge.stop().await;
    // As after a crash between joining and the removal of the token, a day later.
    edge.put_token(&cloud.token_until(1_700_000_000));
    edge.start().await;
    cloud.connection(1).await.unwrap();
    log.line_with(&["expired"]).await;
}

#[tokio::test]
async fn a_certificate_is_renewed_with_itself() {
    let cloud = GoCloud::start().await.unwrap();
    // Valid from an hour ago for another minute: more than nine tenths of its life are over.
    cloud.issue_for(Duration::from_secs(60));
    let mut edge = Edge::new(&cloud);
    edge.put_token(&cloud.token());
    edge.start().await;
    let first = cloud.connection(0).await.unwrap();
    cloud.issue_for(YEAR);
    let mut number = 1;
    let renewed = loop {
        let next = cloud.connection(number).await.unwrap();
        if next.peer.not_after > first.peer.not_after + YEAR / 2 {
            break next;
        }
        number += 1;
    };
    assert_eq!(renewed.peer.node(), Some(NODE));
    let renewal = cloud.http_requests().into_iter().find(|request| request.with_certificate).unwrap();
    assert_eq!((renewal.path.as_str(), renewal.node.as_str(), renewal.status), ("/edge.crt", NODE, 200));
    let update = push("update", "default/pod/p", pod("p", 1));
    edge.connected().await;
    cloud.send(&update).await.unwrap();
    cloud.reply_to(crate::support::id(&update)).await.unwrap();
    edge.stop().await;
    edge.start().await;
    cloud.connection(number + 1).await.unwrap();
}

#[tokio::test]
async fn a_certificate_that_the_cloud_refuses_is_told_with_a_cure() {
    let log = Log::start();
    let cloud = GoCloud::start().await.unwrap();
    let other = GoCloud::start().await.unwrap();
    let mut edge = Edge::new(&cloud);
    let issued = other.authority().issue_client(&format!("system:node:{NODE}"), "system:nodes", YEAR).unwrap();
    edge.put_certificate(cloud.authority().certificate(), &issued.certificate, &issued.key);
    edge.start().await;
    log.line_with(&["does not take this node's certificate", "keadm gettoken"]).await;
    joins_with_a_new_token(&cloud, &edge).await;
}

#[tokio::test]
async fn an_edge_may_be_there_before_its_cloud() {
    let log = Log::start();
    let mut cloud = GoCloud::start().await.unwrap();
    cloud.kill().await;
    let mut edge = Edge::new(&cloud);
    edge.put_token(&cloud.token());
    edge.start().await;
    log.line_with(&["WARN", "cannot be reached"]).await;
    assert!(edge.bootstrap().exists(), "the token is not used up");
    cloud.serve().await.unwrap();
    cloud.connection(0).await.unwrap();
}

#[tokio::test]
async fn no_secret_is_ever_logged() {
    let log = Log::start();
    let cloud = GoCloud::start().await.unwrap();
    let mut edge = Edge::new(&cloud);
    let token = cloud.token_until(1_700_000_000);
    edge.put_token(&token);
    edge.start().await;
    log.line_with(&["ERROR", "keadm gettoken"]).await;
    joins_with_a_new_token(&cloud, &edge).await;
    let mut secret = pod("s", 1);
    secret["data"] = serde_json::json!({"password": "aHVudGVyMg=="});
    let message = push("update", "default/secret/s", secret);
    edge.connected().await;
    cloud.send(&message).await.unwrap();
    cloud.reply_to(crate::support::id(&message)).await.unwrap();
    let text = log.text();
    for part in token.split('.').skip(1).chain(["aHVudGVyMg=="]) {
        assert!(!text.contains(part), "{part}");
    }
}

async fn joins_with_a_new_token(cloud: &GoCloud, edge: &Edge) {
    edge.put_token(&cloud.token());
    let connection = cloud.connection(0).await.unwrap();
    assert_eq!(connection.peer.node(), Some(NODE));
    assert!(!edge.bootstrap().exists());
}
