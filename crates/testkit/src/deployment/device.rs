//! The device that `up` shows: a simulated thermometer, `examples/thermometer.yaml`.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::cluster::Cluster;

/// The definition of the device and of its model.
const MANIFEST: &str = include_str!("../../../../examples/thermometer.yaml");
const OBJECTS: &str = "/apis/devices.kubeedge.io/v1beta1/namespaces/default";
/// How long the first value may take.
const FIRST: Duration = Duration::from_secs(30);
/// Its name, as its topics have it.
pub const DEVICE: &str = "default/thermometer";

/// Creates the device and its model; false when an earlier `up` did.
///
/// # Errors
/// The API refuses them.
pub async fn create(cluster: &Cluster) -> Result<bool> {
    let mut created = false;
    for text in MANIFEST.split("\n---\n") {
        let object: Value = serde_saphyr::from_str(text).context("examples/thermometer.yaml")?;
        let kind = object["kind"].as_str().unwrap_or_default().to_lowercase();
        let (status, answer) = cluster.post(&format!("{OBJECTS}/{kind}s"), &object).await?;
        match status {
            201 => created = true,
            409 => {}
            _ => bail!("creating {kind} thermometer: {status} {}", answer["message"]),
        }
    }
    Ok(created)
}

/// Waits until the cluster has a temperature, and returns it.
///
/// # Errors
/// It has none in time.
pub async fn wait(cluster: &Cluster) -> Result<String> {
    let found = std::cell::RefCell::new(String::new());
    cluster
        .wait("the thermometer's first value in the cluster", FIRST, || async {
            let value = reported(cluster, "temperature").await?;
            Ok(value.map(|value| *found.borrow_mut() = value).is_some())
        })
        .await?;
    Ok(found.into_inner())
}

/// What the cluster has been told of a property.
///
/// # Errors
/// There is no status of the device.
pub async fn reported(cluster: &Cluster, property: &str) -> Result<Option<String>> {
    let status = cluster.get(&format!("{OBJECTS}/devicestatuses/thermometer")).await?;
    let twins = status["status"]["twins"].as_array();
    let twin = twins.and_then(|twins| twins.iter().find(|twin| twin["propertyName"] == property));
    let value = twin.and_then(|twin| twin["reported"]["value"].as_str()).filter(|value| !value.is_empty());
    Ok(value.map(str::to_owned))
}
