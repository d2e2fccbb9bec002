//! What can be seen of the hub from outside: the live feed, metrics and health.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use link::tls::Certificate;
use serde_json::Value;
use testkit::feed::{self, Watcher};
use testkit::go_edge::{Behaviour, Credentials, GoEdge};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::cloud::{Cloud, SOON, pod};

const PODS: &str = "/api/v1/namespaces/default/pods";

async fn observer(cloud: &Cloud) -> Result<Credentials> {
    let path = "/api/v1/namespaces/kubeedge/secrets/observer";
    cloud.wait_for(path, "the observers' certificate", |secret| !secret.is_null()).await?;
    feed::observer(&cloud.cluster).await
}

async fn next(watcher: &mut Watcher, kind: &str) -> Result<Value> {
    watcher.find(SOON, kind, |event| event["type"] == kind).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_feed_tells_connections_and_deliveries() -> Result<()> {
    let cloud = Cloud::start().await?;
    let mut all = Watcher::connect(cloud.addresses().websocket, &observer(&cloud).await?).await?;
    let (edge, _) = cloud.edge("n1").await?;
    let connected = next(&mut all, "connected").await?;
    assert_eq!((&connected["node"], &connected["features"]), (&"n1".into(), &"".into()));
    ensure!(connected["time"].as_str().is_some_and(|time| time.ends_with('Z')), "{connected}");

    cloud.create(PODS, &pod("web", "n1")).await?;
    let about_pod = |event: &Value, kind: &str| event["type"] == kind && event["resource"] == "default/pod/web";
    let sent = all.find(SOON, "the pod is sent", |event| about_pod(event, "sent")).await?;
    let acknowledged = all.find(SOON, "the pod is stored", |event| about_pod(event, "acknowledged")).await?;
    assert_eq!(sent["id"], acknowledged["id"]);
    ensure!(acknowledged["milliseconds"].as_i64().is_some_and(|took| (0..20_000).contains(&took)), "{acknowledged}");
    edge.stop().await;
    assert_eq!(next(&mut all, "disconnected").await?["node"], "n1");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_watches_itself_and_nobody_else() -> Result<()> {
    let cloud = Cloud::start().await?;
    let (first, credentials) = cloud.edge("n1").await?;
    let mut own = Watcher::connect(cloud.addresses().websocket, &credentials).await?;
    let (_second, _) = cloud.edge("n2").await?;
    cloud.create(PODS, &pod("web", "n1")).await?;
    // What happened to the other node before would have come first.
    let seen = next(&mut own, "sent").await?;
    assert_eq!(seen["node"], "n1");
    drop(first);

    // An observer is no node, and who is neither sees nothing.
    let observer = observer(&cloud).await?;
    let refused = GoEdge::connect(cloud.addresses().websocket, &observer, "n3").await.err().context("let in")?;
    ensure!(refused.to_string().contains("403"), "{refused}");
    let ca = link::ca::CertificateAuthority::from_der(
        cloud.secret("casecret", "cadata").await?,
        &cloud.secret("casecret", "cakeydata").await?,
    )?;
    let issued = ca.issue_client("somebody", "others", Duration::from_secs(600))?;
    let own = Certificate { certificate: issued.certificate, key: issued.key };
    let refused = Watcher::connect(cloud.addresses().websocket, &Credentials { ca: observer.ca, own })
        .await
        .err()
        .context("let in")?;
    ensure!(refused.to_string().contains("ferroedge:observers"), "{refused}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_and_health_tell_what_goes_on() -> Result<()> {
    let cloud = Cloud::start().await?;
    let monitor = cloud.addresses().monitor.context("no monitor")?;
    assert_eq!(get(monitor, "/healthz").await?.0, 200);
    assert_eq!(get(monitor, "/readyz").await?, (200, "ok".to_owned()));
    assert_eq!(get(monitor, "/else").await?.0, 404);
    let (edge, credentials) = cloud.edge("n1").await?;
    cloud.create(PODS, &pod("web", "n1")).await?;
    edge.wait("the pod", SOON, |seen| seen.rows.contains_key("default/pod/web").then_some(())).await?;
    let (_, text) = get(monitor, "/metrics").await?;
    assert_eq!(value(&text, "KubeEdge_CloudHub_connected_nodes"), Some(1), "{text}");
    ensure!(value(&text, "ferroedge_cloudhub_acknowledged_objects_total") >= Some(1), "{text}");
    edge.stop().await;

    // One that stores nothing is behind.
    let behaviour = Behaviour { acknowledge: false, keepalive: true };
    let address = cloud.addresses().websocket;
    let mute = GoEdge::connect_with(address, &credentials, "n1", behaviour, Default::default()).await?;
    cloud.create(PODS, &pod("more", "n1")).await?;
    mute.wait("the pod", SOON, |seen| (!seen.pushes("default/pod/more").is_empty()).then_some(())).await?;
    let (_, text) = get(monitor, "/metrics").await?;
    ensure!(value(&text, "ferroedge_cloudhub_pending_objects") >= Some(1), "{text}");
    assert_eq!(value(&text, "ferroedge_cloudhub_lagging_nodes"), Some(0), "not for long yet: {text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lags_and_catches_up_is_told_on_its_node() -> Result<()> {
    let cloud = Cloud::start().await?;
    let (edge, credentials) = cloud.edge("n1").await?;
    edge.stop().await;
    let behaviour = Behaviour { acknowledge: false, keepalive: true };
    let address = cloud.addresses().websocket;
    let mute = GoEdge::connect_with(address, &credentials, "n1", behaviour, Default::default()).await?;
    cloud.create(PODS, &pod("web", "n1")).await?;
    told_on_node(&cloud, "Lagging", "changes wait for the node").await?;
    let (_, text) = get(cloud.addresses().monitor.context("no monitor")?, "/metrics").await?;
    assert_eq!(value(&text, "ferroedge_cloudhub_lagging_nodes"), Some(1), "{text}");
    ensure!(text.contains("ferroedge_cloudhub_node_lag_seconds{node=\"n1\"}"), "{text}");
    // It lags as long as its session does; the next one takes what it gets.
    let rows = mute.stop().await.rows;
    let _edge = GoEdge::connect_with(address, &credentials, "n1", Behaviour::default(), rows).await?;
    cloud.wait_for(EVENTS, "word that it does not lag", |list| event(list, "CaughtUp").is_some()).await.map(drop)
}

const EVENTS: &str = "/api/v1/namespaces/default/events";

fn event<'a>(list: &'a Value, reason: &str) -> Option<&'a Value> {
    list["items"].as_array()?.iter().find(|event| event["reason"] == reason && event["involvedObject"]["name"] == "n1")
}

/// Waits for longer than a node may be behind before it is told.
async fn told_on_node(cloud: &Cloud, reason: &str, text: &str) -> Result<()> {
    let told = || async {
        let list = cloud.get(EVENTS).await?;
        let event = event(&list, reason);
        Ok(event.is_some_and(|event| event["message"].as_str().is_some_and(|message| message.contains(text))))
    };
    cloud.cluster.wait(reason, 4 * SOON, told).await
}

/// The value of a metric without labels.
fn value(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

async fn get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: monitor\r\nConnection: close\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    Ok((status, body.to_owned()))
}
