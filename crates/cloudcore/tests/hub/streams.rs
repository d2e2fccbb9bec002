//! Logs and streams of nodes: the stream server on one side, stand-ins for our own edge and a Go edge on the other.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures_util::SinkExt;
use http::StatusCode;
use hyper_util::rt::TokioIo;
use link::frames;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use wire::tunnel::{Connect, Frame, Kind};

use crate::cloud::{Cloud, SOON};
use crate::edge::{Client, node_with_pod, open, own_edge};

/// Waits until the node's tunnel is in use, or no longer.
pub async fn until(client: &Client, target: &str, status: StatusCode) -> Result<String> {
    let deadline = tokio::time::Instant::now() + SOON;
    loop {
        let (found, text) = client.text(target, &[]).await?;
        if found == status {
            return Ok(text);
        }
        ensure!(tokio::time::Instant::now() < deadline, "{target} is still {found}: {text}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edge_of_ours_is_reached_and_offline_is_told_at_once() -> Result<()> {
    let cloud = Cloud::start().await?;
    let credentials = node_with_pod(&cloud, "n1", "p1").await?;
    let client = Client::new(&cloud).await?;
    let log = "/containerLogs/default/p1/main?tailLines=1";
    let text = until(&client, log, StatusCode::SERVICE_UNAVAILABLE).await?;
    ensure!(text.contains("node n1 has not connected since this cloudcore started"), "{text}");

    let streams = Arc::<AtomicUsize>::default();
    let edge = own_edge(&cloud, &credentials, "n1", streams.clone()).await?;
    ensure!(until(&client, log, StatusCode::OK).await? == log);
    let (status, text) = client.text("/containerLogs/default/p1/missing", &[]).await?;
    ensure!((status, text.as_str()) == (StatusCode::NOT_FOUND, "container not found\n"), "{status} {text}");
    // Found by what the API server says, and by the node's address.
    let forwarded = [("x-forwarded-uri", "/api/v1/nodes/n1/proxy/stats/summary")];
    ensure!(client.text("/stats/summary", &forwarded).await?.1 == "/stats/summary");
    ensure!(client.text("/metrics", &[]).await?.1 == "/metrics");
    let mut tasks = JoinSet::new();
    let upgrade = [("connection", "Upgrade"), ("upgrade", "SPDY/3.1")];
    let answer = client.ask(&mut tasks, "/exec/default/p1/main?command=sh", &upgrade).await?;
    ensure!(answer.status() == StatusCode::SWITCHING_PROTOCOLS, "{answer:?}");
    ensure!(answer.headers()["upgrade"] == "SPDY/3.1" && answer.headers()["x-stream-protocol-version"] == "spdy/3.1");
    let mut io = TokioIo::new(hyper::upgrade::on(answer).await?);
    io.write_all(b"hello").await?;
    let mut echo = [0; 5];
    tokio::time::timeout(SOON, io.read_exact(&mut echo)).await??;
    ensure!(&echo == b"hello" && streams.load(Ordering::SeqCst) == 1);
    // Who goes away ends what he has begun.
    drop(io);
    cloud
        .cluster
        .wait("the stream to end at the edge", SOON, || async { Ok(streams.load(Ordering::SeqCst) == 0) })
        .await?;

    drop(edge);
    let text = until(&client, log, StatusCode::SERVICE_UNAVAILABLE).await?;
    ensure!(text.contains("node n1 has not connected"), "{text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_holds_up_no_other() -> Result<()> {
    let cloud = Cloud::start().await?;
    let credentials = node_with_pod(&cloud, "n1", "p1").await?;
    let client = Client::new(&cloud).await?;
    let streams = Arc::<AtomicUsize>::default();
    let _edge = own_edge(&cloud, &credentials, "n1", streams.clone()).await?;
    let log = "/containerLogs/default/p1/main";
    until(&client, log, StatusCode::OK).await?;
    let mut tasks = JoinSet::new();
    let mut stuck = Vec::new();
    for _ in 0..20 {
        stuck.push(client.ask(&mut tasks, &format!("{log}?follow=true"), &[]).await?);
    }
    for _ in 0..20 {
        ensure!(client.text(log, &[]).await? == (StatusCode::OK, log.to_owned()));
    }
    ensure!(streams.load(Ordering::SeqCst) == 20);
    drop((stuck, tasks));
    let is_over = || async { Ok(streams.load(Ordering::SeqCst) == 0) };
    cloud.cluster.wait("the follows to end at the edge", SOON, is_over).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_refused() -> Result<()> {
    let cloud = Cloud::start().await?;
    let credentials = node_with_pod(&cloud, "n1", "p1").await?;
    let client = Client::new(&cloud).await?;
    let _edge = own_edge(&cloud, &credentials, "n1", Arc::default()).await?;
    let log = "/containerLogs/default/p1/main";
    until(&client, log, StatusCode::OK).await?;
    cloud
        .create(
            "/api/v1/namespaces/default/serviceaccounts",
            &json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "stranger"}}),
        )
        .await?;
    let stranger = Client::of(&cloud, "stranger").await?;
    let (status, text) = stranger.text(log, &[]).await?;
    ensure!(
        status == StatusCode::FORBIDDEN && text.contains("system:serviceaccount:default:stranger"),
        "{status} {text}"
    );
    let nobody = Client { token: "x".into(), address: client.address, tls: client.tls.clone() };
    let asker = client;
    ensure!(nobody.text(log, &[]).await?.0 == StatusCode::UNAUTHORIZED);
    // A node is no client, and no other node.
    let tls = link::tls::client(&credentials.ca, Some(&credentials.own))?;
    let as_node = Client { tls: tls.clone(), token: String::new(), address: stranger.address };
    let (status, text) = as_node.text(log, &[]).await?;
    ensure!(status == StatusCode::UNAUTHORIZED && text.contains("not of the API's client CA"), "{status} {text}");
    // Such a certificate hides no token.
    let (status, text) = Client { tls, ..stranger }.text(log, &[]).await?;
    ensure!(status == StatusCode::FORBIDDEN && text.contains("system:serviceaccount:default:stranger"), "{text}");
    // A pod's node is the one that is asked, whatever node the request came by.
    let by_other = [("x-forwarded-uri", "/api/v1/nodes/n2/proxy/containerLogs/default/p1/main")];
    let (status, text) = asker.text(log, &by_other).await?;
    ensure!(status == StatusCode::NOT_FOUND && text.contains("pod default/p1 is not on node n2"), "{status} {text}");
    let by_it = [("x-forwarded-uri", "/api/v1/nodes/n1/proxy/containerLogs/default/p1/main")];
    ensure!(asker.text(log, &by_it).await?.0 == StatusCode::OK);
    // Who may read runs nothing: no upgrade makes a question of what is more, and a stream is more by GET too.
    let rule = json!({"apiGroups": [""], "resources": ["nodes/proxy"], "verbs": ["get"]});
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "looks"}, "rules": [rule]});
    cloud.create("/apis/rbac.authorization.k8s.io/v1/clusterroles", &role).await?;
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "looks"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "looks"},
        "subjects": [{"kind": "ServiceAccount", "name": "reader", "namespace": "default"}],
    });
    cloud.create("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &binding).await?;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "reader"}});
    cloud.create("/api/v1/namespaces/default/serviceaccounts", &account).await?;
    let reader = Client::of(&cloud, "reader").await?;
    ensure!(reader.text(log, &[]).await?.0 == StatusCode::OK);
    let upgrade = [("connection", "Upgrade"), ("upgrade", "SPDY/3.1")];
    let run = "/run/default/p1/main?cmd=reboot";
    ensure!(reader.text(run, &upgrade).await? == (StatusCode::OK, run.to_owned()), "it is a GET at the node");
    let (status, text) = reader.text("/exec/default/p1/main?command=sh", &upgrade).await?;
    ensure!(status == StatusCode::FORBIDDEN && text.contains("verb=create"), "{status} {text}");
    let refused = open(&cloud, &credentials, "n2", true).await.err().context("taken for another")?.to_string();
    ensure!(refused.contains("the certificate is for node n1, not for n2"), "{refused}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_go_edge_is_reached_with_upstreams_frames() -> Result<()> {
    let cloud = Cloud::start().await?;
    let credentials = node_with_pod(&cloud, "n1", "p1").await?;
    let client = Client::new(&cloud).await?;
    let mut frames = open(&cloud, &credentials, "n1", false).await?;
    frames.ping(b"ping you").await?;
    let go = async {
        let mut exec = 0;
        let mut removed = Vec::new();
        while let Some((_, bytes)) = frames::message(&mut frames).await? {
            let frame = Frame::decode(&bytes)?;
            let mut send = async |data: &[u8]| {
                frames
                    .send(frames::Frame::text(Frame::data(frame.id, data.to_vec()).encode()?))
                    .await
                    .map_err(anyhow::Error::from)
            };
            match frame.kind {
                Kind::Logs | Kind::Metrics => {
                    let connect = Connect::parse(&frame.data)?;
                    ensure!(connect.id == frame.id);
                    send(format!("{:?} {}", frame.kind, connect.target()).as_bytes()).await?;
                    // Of streams that nobody has, nothing comes.
                    frames.send(frames::Frame::text(Frame::data(9999, "stray").encode()?)).await?;
                    frames.send(frames::Frame::text(Frame::remove(frame.id).encode()?)).await?;
                }
                Kind::Exec => {
                    let connect = Connect::parse(&frame.data)?;
                    ensure!(
                        connect.headers["Upgrade"] == ["SPDY/3.1"] && connect.method.as_deref() == Some("GET"),
                        "{connect:?}"
                    );
                    ensure!(!connect.headers.contains_key("Authorization"), "{connect:?}");
                    exec = frame.id;
                    send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: SPDY/3.1\r\n").await?;
                    send(b"Connection: Upgrade\r\n\r\nfirst").await?;
                }
                Kind::Data if frame.id == exec => send(&frame.data).await?,
                Kind::Remove => {
                    removed.push(frame.id);
                    if frame.id == exec {
                        return Ok(removed);
                    }
                }
                kind => bail!("{kind:?} is not for an edge"),
            }
        }
        bail!("the cloud ended the tunnel")
    };
    let asking = async {
        let log = "/containerLogs/default/p1/main?follow=true";
        ensure!(until(&client, log, StatusCode::OK).await? == format!("Logs {log}"));
        ensure!(client.text("/metrics/resource", &[]).await?.1 == "Metrics /metrics/resource");
        let mut tasks = JoinSet::new();
        let upgrade = [("connection", "Upgrade"), ("upgrade", "SPDY/3.1")];
        let answer = client.ask(&mut tasks, "/exec/default/p1/main?command=sh", &upgrade).await?;
        ensure!(answer.status() == StatusCode::SWITCHING_PROTOCOLS, "{answer:?}");
        let mut io = TokioIo::new(hyper::upgrade::on(answer).await?);
        io.write_all(b"echo").await?;
        let mut all = [0; 9];
        tokio::time::timeout(SOON, io.read_exact(&mut all)).await??;
        ensure!(&all == b"firstecho");
        Ok(())
    };
    let (removed, asked) = tokio::time::timeout(SOON, async { tokio::join!(go, asking) }).await?;
    asked?;
    ensure!(removed?.len() >= 1);
    Ok(())
}
