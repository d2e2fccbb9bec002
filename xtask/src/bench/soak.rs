//! The hub's memory over an hour of work: it must not grow.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use edgesim::{Behaviour, Fleet};
use serde_json::json;
use testkit::deployment::{Cluster, Deployment};

use super::fleet::{HUB, Hub, LIMIT, mega, token};
use super::flood::create;
use super::pods::PODS;
use super::process;
use super::report::{Report, Row};
use crate::terminal::step;

/// Nodes that stay connected, each with a pod.
const NODES: usize = 1000;
/// Nodes that connect anew each round.
const RESTLESS: usize = 20;
/// Pods that change in each round, and pods that go and come.
const CHANGES: usize = 100;
const NEW: usize = 10;
/// How long a round takes.
const ROUND: Duration = Duration::from_secs(10);
/// Until then what is only needed once is there.
const WARM: Duration = Duration::from_secs(600);
/// How long it goes on after that.
const LONG: Duration = Duration::from_secs(3600);
/// How often memory is looked at.
const LOOK: Duration = Duration::from_secs(60);
/// Nodes of this fleet renew their leases as edgecore does.
const LEASE: Duration = Duration::from_secs(10);

/// Measures with a hub of its own.
pub async fn measure(deployment: &mut Deployment, cluster: &Cluster, report: &mut Report) -> Result<()> {
    let hub = Hub::prepare(deployment)?;
    hub.start(deployment)?;
    hub.listens().await?;
    let token = token(cluster).await?;
    let names = |name: &'static str, count: usize| (0..count).map(move |number| format!("{name}-{number}"));
    let behaviour = Behaviour { lease: Some(LEASE), ..Behaviour::default() };
    let mut steady = Fleet::join(hub.cloud, &token, names("soak", NODES)).await?;
    steady.start(behaviour, None);
    let mut restless = Fleet::join(hub.cloud, &token, names("restless", RESTLESS)).await?;
    for (number, node) in names("soak", NODES).enumerate() {
        create(cluster, &format!("on-{number}"), &node).await?;
    }
    steady.until_synced(NODES, LIMIT).await?;
    let pid = deployment.children.pid(HUB).context("the fleet's cloudcore does not run")?;
    let (began, mut looked, mut samples) = (Instant::now(), Instant::now(), Vec::new());
    for round in 0_usize.. {
        if began.elapsed() >= WARM + LONG {
            break;
        }
        let next = Instant::now() + ROUND;
        restless.stop().await;
        restless.start(behaviour, None);
        work(cluster, round).await?;
        tokio::time::sleep_until(next.into()).await;
        if looked.elapsed() >= LOOK {
            looked = Instant::now();
            let memory = mega(process::memory(pid)?.rss_kib);
            step(format_args!("{:.0} min: {memory:.1} MB", began.elapsed().as_secs_f64() / 60.0));
            if began.elapsed() >= WARM {
                samples.push(memory);
            }
        }
    }
    steady.until_synced(NODES, LIMIT).await?;
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len().max(1) as f64;
    let quarter = samples.len() / 4;
    let (first, last) = (mean(&samples[..quarter]), mean(&samples[samples.len() - quarter..]));
    report.add(Row::told(format!("cloudcore with {NODES} nodes at work, first quarter of an hour: RSS"), "MB", first));
    report.add(Row::timed("growth until the last quarter".into(), "%", vec![(last / first - 1.0) * 100.0], 5.0));
    restless.stop().await;
    steady.stop().await;
    deployment.children.stop(HUB)
}

/// One round of changes.
async fn work(cluster: &Cluster, round: usize) -> Result<()> {
    for number in 0..CHANGES {
        let name = format!("on-{}", (round * CHANGES + number) % NODES);
        let patch = json!({"metadata": {"annotations": {"round": round.to_string()}}});
        let (status, answer) = cluster.patch(&format!("{PODS}/{name}"), &patch).await?;
        if status != 200 {
            bail!("changing pod {name}: {status} {}", answer["message"]);
        }
    }
    for number in 0..NEW {
        let (name, node) = (format!("new-{number}"), format!("soak-{}", (round * NEW + number) % NODES));
        // There is none in the first round.
        cluster.delete(&format!("{PODS}/{name}?gracePeriodSeconds=0")).await?;
        create(cluster, &name, &node).await?;
    }
    Ok(())
}
