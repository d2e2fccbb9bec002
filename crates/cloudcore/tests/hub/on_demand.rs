//! Tunnels that our own edges open when they are asked to, by way of their session.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use http::StatusCode;
use hyper_util::rt::TokioIo;
use link::ws::{Incoming, Reader, Target, Writer};
use serde_json::{Value, json};
use testkit::go_edge::Credentials;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use crate::cloud::{Cloud, SOON};
use crate::edge::{Client, PROCESS, node_with_pod, own_edge, resumable_edge};

const LOG: &str = "/containerLogs/default/p1/main";

/// The message channel as edgecore opens it when it opens its tunnel on demand.
async fn session(cloud: &Cloud, credentials: &Credentials) -> Result<(Reader, Writer)> {
    session_of(cloud, credentials, PROCESS).await
}

async fn session_of(cloud: &Cloud, credentials: &Credentials, process: &str) -> Result<(Reader, Writer)> {
    let header = |name, value: &str| (name, value.to_owned());
    let target = Target {
        url: format!("wss://{}/p/n1/events", cloud.addresses().websocket),
        headers: vec![
            header("node_id", "n1"),
            header("connectionuse", "msg"),
            header("x-ferroedge-features", "tunnel-1"),
            header("x-ferroedge-address", "192.0.2.7"),
            header("x-ferroedge-process", process),
        ],
        tls: link::tls::client(&credentials.ca, Some(&credentials.own))?,
        connect_deadline: SOON,
        write_deadline: SOON,
    };
    let (reader, writer, answer) = link::ws::connect(&target).await?;
    let features = answer.get("x-ferroedge-features").and_then(|value| value.to_str().ok());
    ensure!(features == Some("tunnel-1"), "{features:?}");
    Ok((reader, writer))
}

/// The next time that the cloud asks for a tunnel.
async fn asked(reader: &mut Reader) -> Result<()> {
    let asking = async {
        loop {
            let Incoming::Message(frame) = reader.next().await? else { continue };
            let message: Value = serde_json::from_slice(&frame)?;
            if message["route"]["resource"] == "tunnel" {
                ensure!(message["route"]["operation"] == "open", "{message}");
                return Ok(());
            }
        }
    };
    tokio::time::timeout(SOON, asking).await.context("the cloud does not ask")?
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_asked_for_its_tunnel_when_somebody_wants_something_of_it() -> Result<()> {
    let cloud = Cloud::start().await?;
    let credentials = node_with_pod(&cloud, "n1", "p1").await?;
    let client = Client::new(&cloud).await?;
    let (mut reader, _writer) = session(&cloud, &credentials).await?;
    // Several at once, also by the node's address: it is asked once.
    let streams = Arc::<AtomicUsize>::default();
    let opening = async {
        asked(&mut reader).await?;
        own_edge(&cloud, &credentials, "n1", streams.clone()).await
    };
    let (edge, first, second, by_address) =
        tokio::join!(opening, client.text(LOG, &[]), client.text(LOG, &[]), client.text("/metrics", &[]));
    let mut edge = edge?;
    for (answer, text) in [(first?, LOG), (second?, LOG), (by_address?, "/metrics")] {
        ensure!(answer == (StatusCode::OK, text.to_owned()), "{answer:?}");
    }
    let again = tokio::time::timeout(std::time::Duration::from_millis(300), asked(&mut reader)).await;
    ensure!(again.is_err(), "it has one");

    // One that is lost is opened again for whoever comes next.
    edge.shutdown().await;
    let is_closed = || async { Ok(client.ask(&mut JoinSet::new(), "/healthz", &[]).await.is_ok()) };
    cloud.cluster.wait("the stream server", SOON, is_closed).await?;
    let opening = async {
        asked(&mut reader).await?;
        own_edge(&cloud, &credentials, "n1", streams.clone()).await
    };
    let asking = async {
        loop {
            // The end of the first may show after the question.
            let answer = client.text(LOG, &[]).await?;
            if answer.0 == StatusCode::OK {
                return anyhow::Ok(answer);
            }
        }
    };
    let (edge, answer) = tokio::join!(opening, asking);
    let _edge = edge?;
    ensure!(answer? == (StatusCode::OK, LOG.to_owned()) && streams.load(Ordering::SeqCst) == 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_opens_none_is_told_apart_from_one_that_is_away() -> Result<()> {
    let cloud = Cloud::start().await?;
    let credentials = node_with_pod(&cloud, "n1", "p1").await?;
    let client = Client::new(&cloud).await?;
    let (mut reader, writer) = session(&cloud, &credentials).await?;
    let (asked, answer) = tokio::join!(asked(&mut reader), client.text(LOG, &[]));
    asked?;
    let (status, text) = answer?;
    let opens_none = "node n1 is connected, but has not opened its stream tunnel: is port 10004";
    ensure!(status == StatusCode::SERVICE_UNAVAILABLE && text.contains(opens_none), "{status} {text}");
    // Whoever waits is told when the node goes away.
    let (answer, ()) = tokio::join!(client.text(LOG, &[]), async {
        let _ = self::asked(&mut reader).await;
        drop((reader, writer));
    });
    let (status, text) = answer?;
    let away = "node n1 is not connected, since 20";
    ensure!(status == StatusCode::SERVICE_UNAVAILABLE && text.contains(away), "{status} {text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_says_of_itself_gets_the_clouds_address() -> Result<()> {
    let cloud = Cloud::start().await?;
    let credentials = node_with_pod(&cloud, "n1", "p1").await?;
    let (_reader, mut writer) = session(&cloud, &credentials).await?;
    let own = json!({"type": "InternalIP", "address": "192.0.2.9"});
    let patch = json!({"status": {
        "addresses": [own, {"$patch": "replace"}], "daemonEndpoints": {"kubeletEndpoint": {"Port": 10350}},
    }});
    let message = json!({
        "header": {"msg_id": "status", "timestamp": 1, "sync": true},
        "route": {"source": "edged", "group": "meta", "operation": "patch", "resource": "default/nodepatch/n1"},
        "content": patch.to_string(),
    });
    writer.send(message.to_string().into_bytes()).await?;
    let (stream, _) = cloud.addresses().streams.context("no streams")?;
    cloud
        .cluster
        .wait("the node's address", SOON, || async {
            let node = cloud.get("/api/v1/nodes/n1").await?;
            let status = &node["status"];
            Ok(status["addresses"] == json!([{"type": "InternalIP", "address": "127.0.0.1"}, own])
                && status["daemonEndpoints"]["kubeletEndpoint"]["Port"] == stream.port())
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_reaches_another_cloudcore_goes_to_the_one_that_has_the_node() -> Result<()> {
    let cloud = Cloud::start().await?;
    let other = cloud.start_replica("").await?;
    let credentials = node_with_pod(&cloud, "n1", "p1").await?;
    let here = Client::new(&cloud).await?;
    let there = Client {
        address: other.addresses.streams.context("no streams")?.0,
        tls: here.tls.clone(),
        token: here.token.clone(),
    };
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kubeedge/leases";
    cloud.wait_for(leases, "both Leases", |list| list["items"].as_array().is_some_and(|all| all.len() == 2)).await?;
    let (mut reader, writer) = session(&cloud, &credentials).await?;

    // It has no tunnel; one is opened there.
    let streams = Arc::<AtomicUsize>::default();
    let opening = async {
        asked(&mut reader).await?;
        own_edge(&cloud, &credentials, "n1", streams.clone()).await
    };
    let (edge, answer) = tokio::join!(opening, there.text(LOG, &[]));
    let edge = edge?;
    ensure!(answer? == (StatusCode::OK, LOG.to_owned()));
    let (status, text) = there.text("/containerLogs/default/p1/missing", &[]).await?;
    ensure!((status, text.as_str()) == (StatusCode::NOT_FOUND, "container not found\n"), "{status} {text}");
    let mut tasks = JoinSet::new();
    let upgrade = [("connection", "Upgrade"), ("upgrade", "SPDY/3.1")];
    let answer = there.ask(&mut tasks, "/exec/default/p1/main?command=sh", &upgrade).await?;
    ensure!(answer.status() == StatusCode::SWITCHING_PROTOCOLS, "{answer:?}");
    let mut io = TokioIo::new(hyper::upgrade::on(answer).await?);
    io.write_all(b"hello").await?;
    let mut echo = [0; 5];
    tokio::time::timeout(SOON, io.read_exact(&mut echo)).await??;
    ensure!(&echo == b"hello" && streams.load(Ordering::SeqCst) == 1);
    drop(io);
    let is_over = || async { Ok(streams.load(Ordering::SeqCst) == 0) };
    cloud.cluster.wait("the stream to end at the edge", SOON, is_over).await?;
    // Nodes have no way there.
    let tls = link::tls::client(&credentials.ca, Some(&credentials.own))?;
    let node = Client { address: other.addresses.streams.context("no streams")?.1, tls, token: String::new() };
    let (status, text) = node.text("/ferroedge/nodes/n1/containerLogs/default/p1/main", &[]).await?;
    ensure!(status == StatusCode::FORBIDDEN, "{status} {text}");

    // Behind a load balancer the tunnel may come to the other one.
    drop(edge);
    let is_gone = || async { Ok(here.text(LOG, &[]).await?.0 != StatusCode::OK) };
    let opening = async {
        cloud.cluster.wait("the end of the tunnel", SOON, is_gone).await?;
        resumable_edge(other.addresses, &credentials, "n1", streams.clone()).await
    };
    let _edge = opening.await?;
    ensure!(here.text(LOG, &[]).await? == (StatusCode::OK, LOG.to_owned()));

    // Since when it is away, the one knows that had it.
    drop((reader, writer, _edge));
    let knows = || async { Ok(there.text(LOG, &[]).await?.1.contains("node n1 is not connected, since 20")) };
    cloud.cluster.wait("the time", SOON, knows).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_forgot_its_cut_tunnel_opens_another() -> Result<()> {
    let cloud = Cloud::start().await?;
    let credentials = node_with_pod(&cloud, "n1", "p1").await?;
    let client = Client::new(&cloud).await?;
    let (mut reader, writer) = session(&cloud, &credentials).await?;
    let opening = async {
        asked(&mut reader).await?;
        resumable_edge(cloud.addresses(), &credentials, "n1", Arc::default()).await
    };
    let (first, answer) = tokio::join!(opening, client.text(LOG, &[]));
    let (_tasks, _, handle) = first?;
    ensure!(answer?.0 == StatusCode::OK);
    // Its connection goes without a word, and no other comes.
    let _void = handle.offer().context("it is over")?;
    let opening = async {
        asked(&mut reader).await?;
        own_edge(&cloud, &credentials, "n1", Arc::default()).await
    };
    let asking = async {
        loop {
            // Until the cloud has noticed, a question goes the old way.
            let asked = tokio::time::timeout(std::time::Duration::from_secs(1), client.text(LOG, &[])).await;
            if let Ok(answer) = asked
                && answer.as_ref().is_ok_and(|(status, _)| *status == StatusCode::OK)
            {
                return answer;
            }
        }
    };
    let (edge, answer) = tokio::time::timeout(SOON, async { tokio::join!(opening, asking) }).await?;
    let edge = edge?;
    ensure!(answer?.1 == LOG);

    // Whose session is over as well is away, at once.
    drop((reader, writer, edge));
    let is_away = || async { Ok(client.text(LOG, &[]).await?.1.contains("node n1 is not connected, since 20")) };
    cloud.cluster.wait("the node to be away", SOON, is_away).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_an_edgecore_that_was_started_anew_end_soon() -> Result<()> {
    let cloud = Cloud::start().await?;
    let credentials = node_with_pod(&cloud, "n1", "p1").await?;
    let client = Client::new(&cloud).await?;
    let before = session(&cloud, &credentials).await?;
    let (_tasks, _, handle) = resumable_edge(cloud.addresses(), &credentials, "n1", Arc::default()).await?;
    let mut tasks = JoinSet::new();
    let upgrade = [("connection", "Upgrade"), ("upgrade", "SPDY/3.1")];
    let path = "/exec/default/p1/main?command=sh";
    let answer = client.ask(&mut tasks, path, &upgrade).await?;
    let mut io = TokioIo::new(hyper::upgrade::on(answer).await?);
    let mut byte = [0];
    io.write_all(b"a").await?;
    io.read_exact(&mut byte).await?;
    // Its connections go; the same process would come back for it, another will not.
    let _void = handle.offer().context("it is over")?;
    drop(before);
    let _same = session(&cloud, &credentials).await?;
    let waits = tokio::time::timeout(std::time::Duration::from_secs(3), io.read_exact(&mut byte)).await;
    ensure!(waits.is_err(), "it may still go on");
    let _other = session_of(&cloud, &credentials, &"2".repeat(32)).await?;
    let ended = tokio::time::timeout(SOON, io.read_exact(&mut byte)).await.context("the stream hangs")?;
    ensure!(ended.is_err(), "no byte comes of it");
    Ok(())
}
