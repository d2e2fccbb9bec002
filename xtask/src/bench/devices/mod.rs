//! B10 and B12: devices. `brokers` holds edgecore's MQTT broker beside mosquitto, `updates` has a node whose devices report as fast as they can or
//! once a second, `many_nodes` a cloudcore with thousands of devices. `client` is the MQTT of the loads, `seen` what comes of it at the Kubernetes API.
//!
//! **How stale a DeviceStatus is** means: from the moment at which a device has its answer (the value is durable at the edge) until a watch at the API shows
//! that value or a newer one. A device that reports all the time is written once a second, so that values are on average half a second old when
//! they are seen, and those just after a write a second. A budget of one second can be kept no better than by what the way takes besides.
//!
//! Lost values, answers that are refusals, and messages that come twice or not at all are errors.

mod brokers;
mod client;
mod many_nodes;
mod seen;
mod updates;

use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::{Value, json};
use testkit::deployment::{Cluster, Deployment};
use tokio::task::JoinSet;

use super::report::Report;

/// The objects of the namespace that the bench uses.
const API: &str = "/apis/devices.kubeedge.io/v1beta1/namespaces/default";
/// What each device measures.
const PROPERTY: &str = "value";
/// The model of all devices.
const MODEL: &str = "bench";
/// Requests to the API at the same time.
const AT_ONCE: usize = 16;
/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(300);

/// One node: its broker, and its devices.
pub async fn on_one_node(deployment: &mut Deployment, cluster: &Cluster, report: &mut Report) -> Result<()> {
    // A fresh one: what came before must not count.
    deployment.stop_edgecore(1)?;
    deployment.start_edgecore(1)?;
    deployment.wait_ready(cluster, 1).await?;
    client::until_there(deployment.broker(1)?).await?;
    create_model(cluster).await?;
    brokers::measure(deployment, report).await?;
    updates::measure(deployment, cluster, report).await
}

/// Many nodes with some devices each.
pub async fn on_many_nodes(deployment: &mut Deployment, cluster: &Cluster, report: &mut Report) -> Result<()> {
    create_model(cluster).await?;
    many_nodes::measure(deployment, cluster, report).await
}

async fn create_model(cluster: &Cluster) -> Result<()> {
    let model = json!({
        "apiVersion": "devices.kubeedge.io/v1beta1", "kind": "DeviceModel", "metadata": {"name": MODEL},
        "spec": {"protocol": "mqtt", "properties": [{"name": PROPERTY, "type": "INT", "accessMode": "ReadOnly"}]},
    });
    match cluster.post(&format!("{API}/devicemodels"), &model).await? {
        (201 | 409, _) => Ok(()),
        (status, answer) => bail!("creating the model of devices: {status} {}", answer["message"]),
    }
}

/// Creates devices with these names on these nodes.
async fn create(cluster: &Cluster, devices: impl IntoIterator<Item = (String, String)>) -> Result<()> {
    for_each(devices, |(name, node)| {
        let cluster = cluster.clone();
        async move {
            let device = json!({
                "apiVersion": "devices.kubeedge.io/v1beta1", "kind": "Device", "metadata": {"name": name},
                "spec": {
                    "deviceModelRef": {"name": MODEL}, "nodeName": node, "protocol": {"protocolName": "mqtt"},
                    "properties": [{"name": PROPERTY, "reportToCloud": true}],
                },
            });
            expect(&name, 201, cluster.post(&format!("{API}/devices"), &device).await?)
        }
    })
    .await
}

async fn delete(cluster: &Cluster, devices: impl IntoIterator<Item = String>) -> Result<()> {
    for_each(devices, |name| {
        let cluster = cluster.clone();
        async move { expect(&name, 200, cluster.delete(&format!("{API}/devices/{name}")).await?) }
    })
    .await
}

fn expect(name: &str, wanted: u16, (status, answer): (u16, Value)) -> Result<()> {
    if status != wanted {
        bail!("device {name}: {status} {}", answer["message"]);
    }
    Ok(())
}

/// Some at a time.
async fn for_each<T, F: Future<Output = Result<()>> + Send + 'static>(
    items: impl IntoIterator<Item = T>,
    task: impl Fn(T) -> F,
) -> Result<()> {
    let mut running = JoinSet::new();
    for item in items {
        if running.len() >= AT_ONCE
            && let Some(done) = running.join_next().await
        {
            done??;
        }
        running.spawn(task(item));
    }
    while let Some(done) = running.join_next().await {
        done??;
    }
    Ok(())
}
