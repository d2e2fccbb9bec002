//! B6, B7 and B14 with a fleet of simulated nodes at a cloudcore of its own, which uses the deployment's Kubernetes as a real one.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use edgesim::{Behaviour, Cloud, Fleet};
use testkit::deployment::{Cluster, Deployment};

use super::report::{Report, Row};
use super::{SETTLE, flood, process};

/// Nodes of the fleet.
const NODES: usize = 5000;
/// Of them, so many have to be back.
const BACK: usize = NODES * 99 / 100;
/// How often one node alone loses its cloud.
const ROUNDS_OF_ONE: usize = 5;
/// Over how long the bytes of nodes at rest are counted: four heartbeats.
const REST: Duration = Duration::from_secs(60);
/// These nodes renew no lease: after 40 s the cluster does not know them any more, and they are told so. That must be over.
const UNKNOWN: Duration = Duration::from_secs(75);
/// How long anything may take.
pub(super) const LIMIT: Duration = Duration::from_secs(300);
/// The name of this cloudcore among the children.
pub(super) const HUB: &str = "fleet-hub";

/// A cloudcore that has nothing in it but the hub.
pub(super) struct Hub {
    config: PathBuf,
    pub(super) cloud: Cloud,
    /// Where it takes the nodes' stream tunnels.
    pub(super) tunnel: SocketAddr,
}

impl Hub {
    pub(super) fn prepare(deployment: &Deployment) -> Result<Self> {
        let [websocket, https, monitor, tunnel] = free_addresses()?;
        let dir = deployment.layout.cloud();
        let config = dir.join("fleet.yaml");
        let (kubeconfig, socket) = (dir.join("cloudcore.kubeconfig"), dir.join("fleet.sock"));
        let text = serde_json::json!({
            "apiVersion": "cloudcore.config.kubeedge.io/v1alpha2",
            "kind": "CloudCore",
            "kubeAPIConfig": {"kubeConfig": kubeconfig},
            "commonConfig": {"monitorServer": {"bindAddress": monitor.to_string()}},
            "modules": {"cloudHub": {
                "nodeLimit": 2 * NODES,
                "advertiseAddress": ["127.0.0.1"],
                "dnsNames": ["localhost"],
                "websocket": {"enable": true, "address": "127.0.0.1", "port": websocket.port()},
                "https": {"enable": true, "address": "127.0.0.1", "port": https.port()},
                "unixsocket": {"enable": true, "address": format!("unix://{}", socket.display())},
            }, "cloudStream": {"enable": true, "streamPort": 0, "tunnelPort": tunnel.port()}},
        });
        std::fs::write(&config, text.to_string()).with_context(|| config.display().to_string())?;
        Ok(Self { config, cloud: Cloud { websocket, https }, tunnel })
    }

    pub(super) fn start(&self, deployment: &mut Deployment) -> Result<()> {
        let mut command = deployment.binaries.command("cloudcore");
        command.arg("--config").arg(&self.config);
        deployment.children.start(HUB, &mut command, &deployment.layout.log(HUB))
    }

    pub(super) async fn listens(&self) -> Result<()> {
        let began = Instant::now();
        while tokio::net::TcpStream::connect(self.cloud.websocket).await.is_err() {
            if began.elapsed() > LIMIT {
                bail!("the fleet's cloudcore does not listen");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

/// Starts the hub and its fleet, measures them, and stops both.
pub async fn measure(deployment: &mut Deployment, cluster: &Cluster, report: &mut Report) -> Result<()> {
    let hub = Hub::prepare(deployment)?;
    hub.start(deployment)?;
    hub.listens().await?;
    tokio::time::sleep(SETTLE).await;
    let pid = |deployment: &Deployment| deployment.children.pid(HUB).context("the fleet's cloudcore does not run");
    let empty = process::memory(pid(deployment)?)?;
    report.add(Row::gated("B6 cloudcore idle beside a real Kubernetes: RSS".into(), "MB", mega(empty.rss_kib), 40.0));
    let token = token(cluster).await?;

    let mut one = Fleet::join(hub.cloud, &token, ["sim-alone".to_owned()]).await?;
    one.start(Behaviour::default(), None);
    one.until_synced(1, LIMIT).await?;
    let mut seconds = Vec::new();
    for _ in 0..ROUNDS_OF_ONE {
        seconds.push(back_after_kill(&hub, deployment, &one, 1).await?);
    }
    report.add(Row::timed("B7 one node back after cloudcore was killed".into(), "s", seconds, 2.0));
    one.stop().await;
    flood::measure(hub.cloud, &token, cluster, report).await?;
    // What the flood has left in memory is none of the next fleet's.
    deployment.children.stop(HUB)?;
    hub.start(deployment)?;
    hub.listens().await?;

    let began = Instant::now();
    let mut fleet = Fleet::join(hub.cloud, &token, (0..NODES).map(|number| format!("sim-{number}"))).await?;
    report.add(Row::told(format!("{NODES} nodes get their certificates"), "s", began.elapsed().as_secs_f64()));
    fleet.start(Behaviour::default(), None);
    let took = fleet.until_synced(NODES, LIMIT).await?;
    report.add(Row::told(format!("{NODES} nodes connect for the first time and register"), "s", took.as_secs_f64()));
    tokio::time::sleep(UNKNOWN).await;
    let full = process::memory(pid(deployment)?)?;
    let each = full.rss_kib.saturating_sub(empty.rss_kib) as f64 / NODES as f64;
    report.add(Row::timed("B6 cloudcore per connected node: RSS".into(), "KiB", vec![each], 40.0));
    let before = bytes(hub.cloud.websocket)?;
    let percent = process::cpu_percent(pid(deployment)?, REST).await?;
    let rate = (bytes(hub.cloud.websocket)? - before) as f64 / NODES as f64 / REST.as_secs_f64();
    report.add(Row::timed("B14 node at rest, both ways, TLS included".into(), "B/s", vec![rate], 15.5));
    report.add(Row::told(format!("cloudcore with {NODES} nodes at rest: CPU"), "%", percent));
    let seconds = back_after_kill(&hub, deployment, &fleet, BACK).await?;
    report.add(Row::timed(
        format!("B7 99 % of {NODES} nodes back after cloudcore was killed"),
        "s",
        vec![seconds],
        10.0,
    ));
    fleet.stop().await;
    deployment.children.stop(HUB)
}

/// Seconds from the start of a killed cloudcore until so many nodes are connected and have everything.
async fn back_after_kill(hub: &Hub, deployment: &mut Deployment, fleet: &Fleet, count: usize) -> Result<f64> {
    deployment.children.kill(HUB)?;
    let began = Instant::now();
    while fleet.connected() > 0 {
        if began.elapsed() > LIMIT {
            bail!("nodes do not notice that cloudcore was killed");
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    hub.start(deployment)?;
    Ok(fleet.until_synced(count, LIMIT).await?.as_secs_f64())
}

pub(super) async fn token(cluster: &Cluster) -> Result<String> {
    use base64::Engine;
    let secret = cluster.get("/api/v1/namespaces/kubeedge/secrets/tokensecret").await?;
    let text = secret["data"]["tokendata"].as_str().context("no token")?;
    Ok(String::from_utf8(base64::engine::general_purpose::STANDARD.decode(text)?)?)
}

/// Bytes that all connections to this port have carried so far, as the kernel counts them, without TCP's and IP's own.
pub(super) fn bytes(port: SocketAddr) -> Result<u64> {
    let filter = format!("sport = :{}", port.port());
    let output = std::process::Command::new("ss").args(["-tinH", &filter]).output().context("ss (iproute2)")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let count = |word: &str| {
        ["bytes_sent:", "bytes_received:"].iter().find_map(|name| word.strip_prefix(name)?.parse::<u64>().ok())
    };
    Ok(text.split_whitespace().filter_map(count).sum())
}

fn free_addresses<const N: usize>() -> Result<[SocketAddr; N]> {
    // All are held until each is chosen.
    let held: Vec<_> =
        (0..N).map(|_| std::net::TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>().context("no free port")?;
    let addresses: Vec<SocketAddr> = held.iter().map(std::net::TcpListener::local_addr).collect::<Result<_, _>>()?;
    addresses.try_into().map_err(|_| anyhow::anyhow!("no free port"))
}

pub(super) fn mega(kib: u64) -> f64 {
    kib as f64 * 1024.0 / 1e6
}
