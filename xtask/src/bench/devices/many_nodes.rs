//! Ten thousand devices on five hundred simulated nodes at one cloudcore, which uses the deployment's Kubernetes as a real one: how often may each
//! report, and the cluster still follows?
//!
//! Everything shares this machine: the cloudcore that is measured, the Kubernetes that it writes to, and the nodes. Who is at the limit is told by
//! the CPU of each.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use edgesim::{Behaviour, Fleet};
use testkit::deployment::{Cluster, Deployment};

use super::seen::Watching;
use super::{LIMIT, create};
use crate::bench::fleet::{HUB, Hub, mega, token};
use crate::bench::process::{self, Usage};
use crate::bench::report::{Report, Row};

const NODES: usize = 500;
const DEVICES_OF_EACH: usize = 20;
const DEVICES: usize = NODES * DEVICES_OF_EACH;
/// How often each device reports, one after the other.
const PERIODS: [Duration; 3] = [Duration::from_secs(10), Duration::from_secs(5), Duration::from_secs(1)];
/// Until then a new period counts.
const WARM: Duration = Duration::from_secs(5);
const SPAN: Duration = Duration::from_secs(30);
/// Nodes of this fleet renew their leases as edgecore does.
const LEASE: Duration = Duration::from_secs(10);

/// Measures with a hub of its own.
pub async fn measure(deployment: &mut Deployment, cluster: &Cluster, report: &mut Report) -> Result<()> {
    let hub = Hub::prepare(deployment)?;
    hub.start(deployment)?;
    hub.listens().await?;
    let name = |number: usize| format!("field-{number}");
    let began = Instant::now();
    create(cluster, (0..DEVICES).map(|number| (format!("field-{number}"), name(number % NODES)))).await?;
    report.add(Row::told(format!("{DEVICES} Devices are created"), "s", began.elapsed().as_secs_f64()));
    let mut fleet = Fleet::join(hub.cloud, &token(cluster).await?, (0..NODES).map(name)).await?;
    fleet.start(Behaviour { lease: Some(LEASE), ..Behaviour::default() }, None);
    let began = Instant::now();
    fleet.until_synced(NODES, LIMIT).await?;
    wait("the devices to be on their nodes", || fleet.devices() == DEVICES).await?;
    report.add(Row::told(
        format!("{NODES} nodes get {DEVICES_OF_EACH} devices each"),
        "s",
        began.elapsed().as_secs_f64(),
    ));

    let mut watching = Watching::start(cluster).await?;
    // The first value of each makes its DeviceStatus.
    let began = Instant::now();
    fleet.measure_every(Some(PERIODS[0]));
    wait("each device's first value", || measured(&fleet).values().all(|values| !values.is_empty())).await?;
    fleet.measure_every(None);
    watching.until_last(&measured(&fleet)).await?;
    report.add(Row::told(
        format!("the first values of {DEVICES} devices are in DeviceStatus"),
        "s",
        began.elapsed().as_secs_f64(),
    ));
    for period in PERIODS {
        at(period, deployment, &fleet, &mut watching, report).await?;
    }
    fleet.stop().await;
    deployment.children.stop(HUB)
}

/// Devices report that often.
async fn at(
    period: Duration,
    deployment: &Deployment,
    fleet: &Fleet,
    watching: &mut Watching,
    report: &mut Report,
) -> Result<()> {
    let hub = deployment.children.pid(HUB).context("the fleet's cloudcore does not run")?;
    let kubernetes = deployment.children.pid("cloudcore").context("cloudcore does not run")?;
    let own = i32::try_from(std::process::id())?;
    fleet.measure_every(Some(period));
    tokio::time::sleep(WARM).await;
    let from = Instant::now();
    let usage = [Usage::begin(hub)?, Usage::begin(kubernetes)?, Usage::begin(own)?];
    tokio::time::sleep(SPAN).await;
    let [of_hub, of_kubernetes, of_nodes] = usage.map(|usage| usage.percent());
    let seconds = from.elapsed().as_secs_f64();
    let memory = process::memory(hub)?;
    let made = measured(fleet).values().flatten().filter(|at| **at >= from).count();
    let written = watching.staleness(&measured(fleet), from).writes;
    fleet.measure_every(None);
    let began = Instant::now();
    let reported = measured(fleet);
    watching.until_last(&reported).await?;
    wait("the confirmations", || fleet.untold() == 0).await?;
    let caught_up = began.elapsed();
    let stale = watching.staleness(&reported, from);
    let what = format!("{NODES} × {DEVICES_OF_EACH} devices, a value every {} s", period.as_secs());
    report.add(Row::told(format!("{what}: values"), "/s", made as f64 / seconds));
    report.add(Row::told(format!("{what}: writes at the API"), "/s", written as f64 / seconds));
    report.add(Row::told(format!("{what}: DeviceStatus stale, p50"), "s", stale.percentile(50)));
    report.add(Row::timed(format!("{what}: DeviceStatus stale, p99"), "s", vec![stale.percentile(99)], 2.0));
    report.add(Row::told(format!("{what}: all last values in DeviceStatus after"), "s", caught_up.as_secs_f64()));
    report.add(Row::told(format!("{what}: CPU of cloudcore"), "%", of_hub?));
    report.add(Row::told(format!("{what}: RSS of cloudcore"), "MB", mega(memory.rss_kib)));
    report.add(Row::told(format!("{what}: CPU of the embedded Kubernetes"), "%", of_kubernetes?));
    report.add(Row::told(format!("{what}: CPU of the nodes"), "%", of_nodes?));
    Ok(())
}

/// When each device measured its values, by its name alone.
fn measured(fleet: &Fleet) -> HashMap<String, Vec<Instant>> {
    let name = |id: String| id.rsplit('/').next().unwrap_or_default().to_owned();
    fleet.measured().into_iter().map(|(id, values)| (name(id), values)).collect()
}

async fn wait(what: &str, holds: impl Fn() -> bool) -> Result<()> {
    let began = Instant::now();
    while !holds() {
        ensure!(began.elapsed() < LIMIT, "waited {} s for {what}", LIMIT.as_secs());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
