//! B15: streams, from a client of the Kubernetes API through cloudcore and the node's tunnel to a container.
//!
//! `logs` reads and follows logs, `exec` has one byte go there and back, `tunnels` holds many
//! idle ones. The Kubernetes API is the embedded one: its TLS, and the connection that it dials for each stream, are in what is measured of
//! cloudcore.

mod exec;
mod logs;
mod tunnels;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use testkit::deployment::{Cluster, Deployment, edgecore_name};
use testkit::door::{self, Door};

use super::fleet::{HUB, Hub};
use super::pods::{self, PODS};
use super::report::Report;

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(120);
/// Larger than any log here.
const LOG_SIZE: &str = "4Gi";

/// One node: logs and exec.
pub async fn on_one_node(deployment: &mut Deployment, cluster: &Cluster, report: &mut Report) -> Result<()> {
    deployment.stop_edgecore(1)?;
    door::keep_logs(deployment, LOG_SIZE)?;
    deployment.start_edgecore(1)?;
    deployment.wait_ready(cluster, 1).await?;
    let doors = Doors { api: Door::of_api(cluster)?, node: Door::of_node(deployment)? };
    logs::measure(deployment, cluster, &doors, report).await?;
    exec::measure(cluster, &doors, report).await
}

/// Many nodes with a tunnel each.
pub async fn on_many_nodes(deployment: &mut Deployment, cluster: &Cluster, report: &mut Report) -> Result<()> {
    let hub = Hub::prepare(deployment)?;
    hub.start(deployment)?;
    hub.listens().await?;
    tunnels::measure(&hub, deployment, cluster, report).await?;
    deployment.children.stop(HUB)
}

/// The long way and the short one.
struct Doors {
    api: Door,
    node: Door,
}

impl Doors {
    /// Waits until the node has opened its tunnel: the API has a byte of this pod's log.
    async fn until_open(&self, pod: &str) -> Result<()> {
        let began = Instant::now();
        loop {
            let asked =
                async { door::first(&mut self.api.open().await?.get(&of_api(pod, "tailLines=1")).await?).await };
            match asked.await {
                Ok(_) => return Ok(()),
                Err(error) if began.elapsed() > LIMIT => return Err(error.context("the node has no tunnel")),
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }
}

/// A log, as the API is asked for it.
fn of_api(pod: &str, query: &str) -> String {
    format!("{PODS}/{pod}/log?{query}")
}

/// The same log, as the node is asked for it.
fn of_node(pod: &str, query: &str) -> String {
    format!("/containerLogs/default/{pod}/main?{query}")
}

/// Process ids of what the bytes go through.
fn programs(deployment: &Deployment) -> Result<[i32; 2]> {
    let pid = |name: &str| deployment.children.pid(name).with_context(|| format!("{name} does not run"));
    Ok([pid("cloudcore")?, pid(&edgecore_name(1))?])
}

/// Pods that run this, Ready.
async fn run(cluster: &Cluster, names: &[String], script: &str) -> Result<()> {
    for name in names {
        let (status, answer) = cluster.post(PODS, &manifest(name, script)).await?;
        if status != 201 {
            bail!("creating pod {name}: {status} {}", answer["message"]);
        }
    }
    pods::until_ready(cluster, names).await
}

fn manifest(name: &str, script: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "main", "image": "docker.io/library/busybox:1", "imagePullPolicy": "IfNotPresent",
                "command": ["sh", "-c", script],
            }],
        },
    })
}

/// Times in milliseconds, sorted; the one that so many percent do not exceed.
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    sorted.get(sorted.len() * percent / 100).copied().unwrap_or_default()
}
