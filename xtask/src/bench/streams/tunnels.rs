//! Tunnels of a thousand nodes through which nobody asks anything.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::Response;
use http_body_util::Empty;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use link::resume::Resumable;
use link::tunnel::{self, FEATURES, HTTP2, PATH};
use link::ws::Target;
use serde_json::json;
use testkit::deployment::{Cluster, Deployment};
use testkit::go_edge::register;
use tokio::task::JoinSet;

use super::LIMIT;
use crate::bench::fleet::{HUB, Hub, bytes, token};
use crate::bench::report::{Report, Row};
use crate::bench::{SETTLE, process};

const NODES: usize = 1000;
/// Nodes that register at the same time.
const AT_ONCE: usize = 32;
/// Two pings of each side.
const REST: Duration = Duration::from_secs(60);
const DEADLINE: Duration = Duration::from_secs(30);

/// With a hub that has nothing else to do.
pub async fn measure(hub: &Hub, deployment: &Deployment, cluster: &Cluster, report: &mut Report) -> Result<()> {
    let pid = deployment.children.pid(HUB).context("the fleet's cloudcore does not run")?;
    let token: Arc<str> = token(cluster).await?.into();
    let mut registering = JoinSet::new();
    let mut targets = Vec::new();
    for number in 0..NODES {
        if registering.len() >= AT_ONCE
            && let Some(target) = registering.join_next().await
        {
            targets.push(target??);
        }
        let (token, cluster, https, tunnel) = (token.clone(), cluster.clone(), hub.cloud.https, hub.tunnel);
        registering.spawn(async move {
            let name = format!("tunnel-{number}");
            let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
            let (status, answer) = cluster.post("/api/v1/nodes", &node).await?;
            ensure!(status == 201, "creating node {name}: {status} {}", answer["message"]);
            let credentials = register(https, &token, &name).await?;
            Ok(Target {
                url: format!("wss://{tunnel}{PATH}"),
                headers: vec![("sessionhostnameoverride", name), (FEATURES, HTTP2.to_owned())],
                tls: link::tls::client(&credentials.ca, Some(&credentials.own))?,
                connect_deadline: DEADLINE,
                write_deadline: DEADLINE,
            })
        });
    }
    while let Some(target) = registering.join_next().await {
        targets.push(target??);
    }
    tokio::time::sleep(SETTLE).await;
    let before = process::memory(pid)?;

    // Each node is asked once whether it lives, and belongs to the cloud from its answer on.
    let asked = Arc::new(AtomicUsize::new(0));
    let mut tunnels = JoinSet::new();
    let began = Instant::now();
    for (number, target) in targets.into_iter().enumerate() {
        let (frames, _) = tunnel::connect(&target).await?;
        let asked_here = asked.clone();
        let service = service_fn(move |_| {
            asked_here.fetch_add(1, Ordering::Relaxed);
            async { Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())) }
        });
        let connection = tunnel::server().serve_connection(TokioIo::new(Resumable::new(frames).0), service);
        tunnels.spawn(connection);
        while asked.load(Ordering::Relaxed) + AT_ONCE <= number {
            ensure!(began.elapsed() < LIMIT, "a tunnel is not taken");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    while asked.load(Ordering::Relaxed) < NODES {
        ensure!(began.elapsed() < LIMIT, "{} of {NODES} tunnels were taken", asked.load(Ordering::Relaxed));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let opened = began.elapsed();
    tokio::time::sleep(SETTLE).await;
    let during = process::memory(pid)?;
    let carried = bytes(hub.tunnel)?;
    let percent = process::cpu_percent(pid, REST).await?;
    let rate = (bytes(hub.tunnel)? - carried) as f64 / NODES as f64 / REST.as_secs_f64();
    ensure!(tunnels.try_join_next().is_none(), "a tunnel ended while it was at rest");
    let each = during.rss_kib.saturating_sub(before.rss_kib) as f64 / NODES as f64;
    report.add(Row::told(format!("B15 {NODES} nodes open a tunnel, one after the other"), "s", opened.as_secs_f64()));
    report.add(Row::told("B15 cloudcore per idle tunnel: RSS".into(), "KiB", each));
    report.add(Row::told("B15 idle tunnel, both ways, TLS included".into(), "B/s", rate));
    report.add(Row::told(format!("B15 cloudcore with {NODES} idle tunnels: CPU"), "%", percent));
    Ok(())
}
