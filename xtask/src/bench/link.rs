//! B8 and B9: how fast a change reaches a real edgecore's database, and how fast many do over a long way.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;
use testkit::deployment::{Cluster, Deployment, node_name};
use testkit::feed::{Watcher, observer};
use testkit::relay::{Relay, Weather};

use super::pods::{self, PODS};
use super::report::{Report, Row};

/// Changes of which the time is taken.
const CHANGES: usize = 300;
/// How often many changes are brought to a returning node.
const ROUNDS: usize = 3;
/// In one direction; a round trip takes twice as long.
const DELAY: Duration = Duration::from_millis(25);
/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(60);
/// The pod whose changes are watched.
const POD: &str = "bench-link";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// Both, with the deployment's first node.
pub async fn measure(deployment: &mut Deployment, cluster: &Cluster, report: &mut Report) -> Result<()> {
    let websocket = ([127, 0, 0, 1], deployment.layout.ports()?.websocket).into();
    let mut watcher = Watcher::connect(websocket, &observer(cluster).await?).await?;
    pods::create(cluster, &[POD.to_owned()]).await?;
    let mut times = Vec::new();
    for number in 0..CHANGES {
        times.push(change(cluster, &mut watcher, number).await?);
    }
    times.sort_by(f64::total_cmp);
    let percentile = |share: usize| times.get(times.len() * share / 100).copied().unwrap_or_default();
    report.add(Row::timed(
        "B8 change in the API → durable on the edge → acknowledged: p50".into(),
        "ms",
        vec![percentile(50)],
        6.0,
    ));
    report.add(Row::timed("B8 the same: p99".into(), "ms", vec![percentile(99)], 25.0));
    pods::delete(cluster, &[POD.to_owned()]).await?;
    returning(deployment, cluster, &mut watcher, report).await
}

/// From the request to the acknowledgement; what the API takes to commit is in it.
async fn change(cluster: &Cluster, watcher: &mut Watcher, number: usize) -> Result<f64> {
    let began = Instant::now();
    let patch = json!({"metadata": {"annotations": {"bench": number.to_string()}}});
    let (status, answer) = cluster.patch(&format!("{PODS}/{POD}"), &patch).await?;
    if status != 200 {
        bail!("changing pod {POD}: {status} {}", answer["message"]);
    }
    let (sent, done) = (format!("default/pod/{POD}"), "acknowledged");
    watcher
        .find(LIMIT, "the change is acknowledged", |event| event["type"] == done && event["resource"] == sent.as_str())
        .await?;
    let milliseconds = began.elapsed().as_secs_f64() * 1000.0;
    // Whatever else the change led to is over before the next one.
    tokio::time::sleep(Duration::from_millis(20)).await;
    Ok(milliseconds)
}

/// The node was away while what one of its pods refers to changed.
async fn returning(
    deployment: &mut Deployment,
    cluster: &Cluster,
    watcher: &mut Watcher,
    report: &mut Report,
) -> Result<()> {
    let names: Vec<String> = (0..CHANGES).map(|number| format!("bench-map-{number}")).collect();
    for name in &names {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"value": "0"}});
        let (status, answer) = cluster.post(MAPS, &map).await?;
        if status != 201 {
            bail!("creating ConfigMap {name}: {status} {}", answer["message"]);
        }
    }
    let (status, answer) = cluster.post(PODS, &reader(&names)).await?;
    if status != 201 {
        bail!("creating pod {POD}: {status} {}", answer["message"]);
    }
    pods::until_ready(cluster, &[POD.to_owned()]).await?;
    let relay = Relay::start(
        ([127, 0, 0, 1], deployment.layout.ports()?.websocket).into(),
        Weather { delay: DELAY, ..Weather::default() },
    )
    .await?;
    deployment.stop_edgecore(1)?;
    deployment.lead_edgecore(1, relay.address())?;
    let mut seconds = Vec::new();
    for round in 1..=ROUNDS {
        for name in &names {
            cluster.patch(&format!("{MAPS}/{name}"), &json!({"data": {"value": round.to_string()}})).await?;
        }
        deployment.start_edgecore(1)?;
        seconds.push(all_acknowledged(watcher).await?);
        deployment.stop_edgecore(1)?;
    }
    report.add(Row::timed(
        format!("B9 {CHANGES} changed objects to a returning node, 50 ms round trip"),
        "s",
        seconds,
        1.0,
    ));
    deployment.lead_edgecore(1, ([127, 0, 0, 1], deployment.layout.ports()?.websocket).into())?;
    deployment.start_edgecore(1)?;
    deployment.wait_ready(cluster, 1).await?;
    pods::delete(cluster, &[POD.to_owned()]).await?;
    for name in &names {
        cluster.delete(&format!("{MAPS}/{name}")).await?;
    }
    Ok(())
}

/// Seconds from the connection until the last of the changed objects is acknowledged.
async fn all_acknowledged(watcher: &mut Watcher) -> Result<f64> {
    let node = node_name(1);
    watcher
        .find(LIMIT, "the node connects", |event| event["type"] == "connected" && event["node"] == node.as_str())
        .await?;
    let began = Instant::now();
    let is_map = |event: &serde_json::Value| {
        let resource = event["resource"].as_str().unwrap_or_default();
        event["type"] == "acknowledged" && resource.starts_with("default/configmap/bench-map-")
    };
    for _ in 0..CHANGES {
        watcher.find(LIMIT, "a changed object is acknowledged", is_map).await.context("of a returning node")?;
    }
    Ok(began.elapsed().as_secs_f64())
}

/// A pod that reads all of these ConfigMaps.
fn reader(names: &[String]) -> serde_json::Value {
    let sources: Vec<_> = names
        .iter()
        .map(|name| json!({"configMap": {"name": name, "items": [{"key": "value", "path": name}]}}))
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": POD},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "volumes": [{"name": "all", "projected": {"sources": sources}}],
            "containers": [{
                "name": "sleep",
                "image": "docker.io/library/busybox:1",
                "imagePullPolicy": "IfNotPresent",
                "command": ["sleep", "3600"],
                "volumeMounts": [{"name": "all", "mountPath": "/all"}],
            }],
        },
    })
}
