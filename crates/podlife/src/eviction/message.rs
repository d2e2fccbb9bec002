//! The words of an eviction, byte for byte the kubelet's.

use std::fmt::Write as _;

use super::signal::Resource;
use super::watch::Shortage;

/// Reason of the status and of the pod's event.
pub const REASON: &str = "Evicted";

/// A container and what it uses of the resource that is short.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consumer {
    /// Its name.
    pub name: String,
    /// What it uses; absent when nobody knows.
    pub usage: Option<u64>,
    /// What it asked for.
    pub request: u64,
}

/// Why a pod has to go: what is short, and which of its containers use more than they asked for.
pub fn low_on_resource(shortage: &Shortage, containers: &[Consumer]) -> String {
    let resource = shortage.resource();
    let shown = |value: u64| match resource {
        Resource::Memory | Resource::EphemeralStorage => binary(value),
        Resource::Inodes | Resource::Pids => decimal(value),
    };
    let mut text = format!(
        "The node was low on resource: {}. Threshold quantity: {}, available: {}. ",
        resource.as_str(),
        shown(shortage.threshold),
        shown(shortage.available)
    );
    for container in containers {
        if let Some(usage) = container.usage.filter(|usage| *usage > container.request) {
            // Writing to a String cannot fail.
            let _ = write!(
                text,
                "Container {} was using {}, request is {}, has larger consumption of {}. ",
                container.name,
                binary(usage),
                binary(container.request),
                resource.as_str()
            );
        }
    }
    text
}

/// Message of the node's event `EvictionThresholdMet`.
pub fn reclaiming(resource: Resource) -> String {
    format!("Attempting to reclaim {}", resource.as_str())
}

/// A volume has outgrown its `sizeLimit`, which is given as the pod has it.
pub fn empty_dir(volume: &str, limit: &str) -> String {
    format!("Usage of EmptyDir volume {volume:?} exceeds the limit {limit:?}. ")
}

/// A container has outgrown its own limit.
pub fn container_storage(container: &str, limit: &str) -> String {
    format!("Container {container} exceeded its local ephemeral storage limit {limit:?}. ")
}

/// A pod has outgrown the limits of its containers together.
pub fn pod_storage(limit: u64) -> String {
    format!("Pod ephemeral local storage usage exceeds the total limit of containers {}. ", binary(limit))
}

/// A number of bytes in its canonical form: the largest unit in which it is whole.
pub fn binary(value: u64) -> String {
    canonical(value, 1024, &["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"])
}

/// A count in its canonical form.
pub fn decimal(value: u64) -> String {
    canonical(value, 1000, &["", "k", "M", "G", "T", "P", "E"])
}

fn canonical(mut value: u64, base: u64, units: &[&str]) -> String {
    let mut unit = 0;
    while value > 0 && value.is_multiple_of(base) && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    format!("{value}{}", units[unit])
}
