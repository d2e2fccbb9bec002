//! `cargo xtask bench`: sizes, memory and latencies of the release programs beside their budgets.
//!
//! It starts a deployment of its own and asserts nothing about time, so that a busy machine fails no build. Sizes and memory
//! are compared with the recorded values: more than a tenth above is an error.

mod devices;
mod fleet;
mod flood;
mod full_node;
mod link;
mod pods;
mod process;
mod report;
mod soak;
mod streams;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, ValueEnum};
use serde_json::json;
use testkit::deployment::{Cluster, Deployment};

use self::report::{Report, Row};
use crate::packages;
use crate::stop_signals::StopSignals;
use crate::up;
use crate::workspace::cargo;

/// How long the programs may settle before their memory is read.
const SETTLE: Duration = Duration::from_secs(20);
/// Over how long idle CPU is measured.
const CPU_SPAN: Duration = Duration::from_secs(60);
/// How many restarts of edgecore are timed.
const RESTARTS: usize = 5;

/// Options of `bench`.
#[derive(Args)]
pub struct BenchOptions {
    /// Write the measured sizes and memory as the new recorded values
    #[arg(long)]
    pub record: bool,
    /// Measure this part alone
    #[arg(long, conflicts_with = "record")]
    pub only: Option<Part>,
}

/// What is measured together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Sizes, idle programs, pods, a full node
    Agent,
    /// Changes on their way to a node
    Link,
    /// What devices say: the MQTT broker, updates of a node, and of many nodes
    Devices,
    /// Logs and exec through the nodes' tunnels
    Streams,
    /// Thousands of simulated nodes
    Fleet,
    /// An hour of work with a thousand of them; not part of the whole
    Soak,
}

/// Runs every measurement and prints one table.
pub async fn run(options: BenchOptions) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("the bench runs containers, which needs root");
    }
    if cfg!(debug_assertions) {
        // A fleet of nodes in an unoptimised program would measure that program.
        let mut command = cargo();
        command.args(["run", "--release", "--quiet", "--package", "xtask", "--", "bench"]);
        command.args(options.record.then_some("--record"));
        let only = options.only.and_then(|part| Some(part.to_possible_value()?.get_name().to_owned()));
        command.args(only.iter().flat_map(|part| ["--only", part]));
        return crate::workspace::run(&mut command);
    }
    packages::ensure_for_bench()?;
    up::build()?;
    let mut signals = StopSignals::catch()?;
    let dir = tempfile::Builder::new().prefix("ferroedge-bench").tempdir()?;
    let mut deployment = up::open(dir.path())?;
    let mut report = Report::default();
    let result = tokio::select! {
        result = measure(&mut deployment, options.only, &mut report) => result,
        signal = signals.next() => Err(anyhow!("{signal} while measuring")),
    };
    if let Err(error) = deployment.stop().await {
        let command = up::down_command(&dir.keep());
        return Err(error.context(format!("not all that the bench started is stopped: run {command}")));
    }
    result?;
    report.print();
    match (options.record, options.only) {
        (true, _) => report.record(),
        (false, None) => report.compare(),
        (false, Some(_)) => Ok(()),
    }
}

async fn measure(deployment: &mut Deployment, only: Option<Part>, report: &mut Report) -> Result<()> {
    let wanted = |part| only.is_none_or(|only| only == part);
    let cluster = deployment.start_cloud().await?;
    if only == Some(Part::Soak) {
        return soak::measure(deployment, &cluster, report).await;
    }
    if wanted(Part::Agent) {
        sizes(deployment, report)?;
        tokio::time::sleep(SETTLE).await;
        idle(deployment, "cloudcore", "B6 cloudcore idle, embedded Kubernetes included", 40.0, report).await?;
    }
    if wanted(Part::Agent) || wanted(Part::Link) || wanted(Part::Devices) || wanted(Part::Streams) {
        deployment.start_edge(1).await?;
        deployment.wait_ready(&cluster, 1).await?;
    }
    if wanted(Part::Link) {
        link::measure(deployment, &cluster, report).await?;
    }
    if wanted(Part::Devices) {
        devices::on_one_node(deployment, &cluster, report).await?;
    }
    if wanted(Part::Streams) {
        streams::on_one_node(deployment, &cluster, report).await?;
    }
    if wanted(Part::Agent) {
        agent(deployment, &cluster, report).await?;
        // It was killed at the end.
        deployment.start_cloud().await?;
    }
    if wanted(Part::Fleet) {
        fleet::measure(deployment, &cluster, report).await?;
    }
    if wanted(Part::Devices) {
        devices::on_many_nodes(deployment, &cluster, report).await?;
    }
    if wanted(Part::Streams) {
        streams::on_many_nodes(deployment, &cluster, report).await?;
    }
    Ok(())
}

async fn agent(deployment: &mut Deployment, cluster: &Cluster, report: &mut Report) -> Result<()> {
    // A fresh one: what came before must not count.
    deployment.stop_edgecore(1)?;
    deployment.start_edgecore(1)?;
    deployment.wait_ready(cluster, 1).await?;
    tokio::time::sleep(SETTLE).await;
    idle(deployment, "edge-1-edgecore", "B1 edgecore idle, joined, no pods", 18.0, report).await?;
    restarts(deployment, cluster, report).await?;
    let socket = std::path::PathBuf::from(deployment.containerd_socket(1));
    pods::measure(cluster, &socket, report).await?;
    full_node::measure(deployment, cluster, report).await
}

fn sizes(deployment: &Deployment, report: &mut Report) -> Result<()> {
    for (program, budget) in [("edgecore", 18.0), ("cloudcore", 25.0)] {
        let path = deployment.binaries.path(program);
        let bytes = std::fs::metadata(&path).with_context(|| path.display().to_string())?.len();
        report.add(Row::gated(format!("B3 stripped {program}"), "MB", bytes as f64 / 1e6, budget));
    }
    Ok(())
}

async fn idle(deployment: &Deployment, program: &str, what: &str, budget: f64, report: &mut Report) -> Result<()> {
    let pid = deployment.children.pid(program).with_context(|| format!("{program} does not run"))?;
    let memory = process::memory(pid)?;
    report.add(Row::gated(format!("{what}: RSS"), "MB", memory.rss_kib as f64 * 1024.0 / 1e6, budget));
    report.add(Row::told(format!("{what}: PSS"), "MB", memory.pss_kib as f64 * 1024.0 / 1e6));
    let percent = process::cpu_percent(pid, CPU_SPAN).await?;
    let row = format!("{what}: CPU");
    report.add(if program == "cloudcore" {
        Row::told(row, "%", percent)
    } else {
        Row::timed(row, "%", vec![percent], 0.2)
    });
    Ok(())
}

/// B4: from the start of edgecore until the API shows its node Ready. The condition is set to Unknown while edgecore is
/// stopped, as the node life cycle would do it 40 s later.
async fn restarts(deployment: &mut Deployment, cluster: &Cluster, report: &mut Report) -> Result<()> {
    let mut seconds = Vec::new();
    for _ in 0..RESTARTS {
        deployment.stop_edgecore(1)?;
        let unknown =
            json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"}]}});
        let (status, answer) = cluster.patch("/api/v1/nodes/edge-1/status", &unknown).await?;
        if status != 200 {
            bail!("setting the node's condition to Unknown: {status} {}", answer["message"]);
        }
        let began = Instant::now();
        deployment.start_edgecore(1)?;
        deployment.wait_ready(cluster, 1).await?;
        seconds.push(began.elapsed().as_secs_f64());
    }
    report.add(Row::timed("B4 exec → node Ready, joined before".into(), "s", seconds, 1.0));
    Ok(())
}
