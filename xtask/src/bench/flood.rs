//! One node with ten thousand changes to get, and it takes them slowly: what do the others notice?

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use edgesim::{Behaviour, Cloud, Fleet, Stored};
use serde_json::json;
use testkit::deployment::Cluster;
use tokio::sync::mpsc;

use super::pods::PODS;
use super::report::{Report, Row};

/// The others.
const OTHERS: usize = 99;
/// Objects for the flooded node.
const FLOOD: usize = 10_000;
/// Changes that are timed, before and during the flood.
const CHANGES: usize = 1000;
/// How long the flooded node takes for each object.
const SLOWLY: Duration = Duration::from_millis(2);
/// Events of nodes that may wait to be looked at.
const STORED: usize = 65_536;
/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(120);

/// Measures at this hub.
pub(super) async fn measure(cloud: Cloud, token: &str, cluster: &Cluster, report: &mut Report) -> Result<()> {
    let names = |name: &'static str, count: usize| (0..count).map(move |number| format!("{name}-{number}"));
    let (tell, mut stored) = mpsc::channel(STORED);
    let mut others = Fleet::join(cloud, token, names("calm", OTHERS)).await?;
    others.start(Behaviour::default(), Some(tell));
    others.until_synced(OTHERS, LIMIT).await?;
    let mut flooded = Fleet::join(cloud, token, names("flooded", 1)).await?;
    flooded.start(Behaviour { pause: SLOWLY, ..Behaviour::default() }, None);
    flooded.until_synced(1, LIMIT).await?;
    flooded.stop().await;
    for (number, name) in names("calm", OTHERS).enumerate() {
        create(cluster, &format!("on-{number}"), &name).await?;
    }
    let before = changes(cluster, &mut stored).await?;
    for number in 0..FLOOD {
        create(cluster, &format!("flood-{number}"), "flooded-0").await?;
    }
    flooded.start(Behaviour { pause: SLOWLY, ..Behaviour::default() }, None);
    while flooded.connected() == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let during = changes(cluster, &mut stored).await?;
    if flooded.synced() > 0 {
        bail!("the flood was over before the measurement was");
    }
    flooded.until_synced(1, LIMIT).await?;
    // The node's own objects are no part of the flood.
    if flooded.held(0).iter().filter(|held| held.resource.contains("/pod/flood-")).count() != FLOOD {
        bail!("the flooded node has not got everything");
    }
    report.add(Row::told(format!("change → stored on one of {OTHERS} nodes: p99"), "ms", before));
    report.add(Row::told("the same while another node is flooded: p99".into(), "ms", during));
    report.add(Row::timed(
        "p99 of the others during a flood: change".into(),
        "%",
        vec![(during / before - 1.0) * 100.0],
        20.0,
    ));
    others.stop().await;
    Ok(())
}

pub(super) async fn create(cluster: &Cluster, name: &str, node: &str) -> Result<()> {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"nodeName": node, "containers": [{"name": "main", "image": "busybox"}]},
    });
    let (status, answer) = cluster.post(PODS, &pod).await?;
    if status != 201 {
        bail!("creating pod {name}: {status} {}", answer["message"]);
    }
    Ok(())
}

/// The 99th percentile of the milliseconds from a request to its object on the node.
async fn changes(cluster: &Cluster, stored: &mut mpsc::Receiver<Stored>) -> Result<f64> {
    let mut times = Vec::new();
    for number in 0..CHANGES {
        let name = format!("on-{}", number % OTHERS);
        let began = Instant::now();
        let patch = json!({"metadata": {"annotations": {"change": format!("{number} {}", times.len())}}});
        let (status, answer) = cluster.patch(&format!("{PODS}/{name}"), &patch).await?;
        if status != 200 {
            bail!("changing pod {name}: {status} {}", answer["message"]);
        }
        let version: u64 = answer["metadata"]["resourceVersion"].as_str().context("no version")?.parse()?;
        let path = format!("default/pod/{name}");
        let arrives = async {
            loop {
                let event = stored.recv().await.context("the fleet ended")?;
                if event.resource == path && event.version >= version {
                    return anyhow::Ok(event.at);
                }
            }
        };
        let at = tokio::time::timeout(LIMIT, arrives).await.context("a change does not arrive")??;
        times.push(at.duration_since(began).as_secs_f64() * 1000.0);
    }
    times.sort_by(f64::total_cmp);
    times.get(times.len() * 99 / 100).copied().context("no times")
}
