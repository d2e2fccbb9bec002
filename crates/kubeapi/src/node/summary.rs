//! What is read of a kubelet's `/stats/summary` (`stats/v1alpha1`).

use serde::Deserialize;

/// The statistics of a node; what it does not know is left out.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Summary {
    #[serde(default)]
    pub node: Usage,
    #[serde(default)]
    pub pods: Vec<PodUsage>,
}

/// What a pod uses.
#[derive(Debug, Default, Deserialize)]
pub(super) struct PodUsage {
    #[serde(rename = "podRef", default)]
    pub pod: PodRef,
    #[serde(default)]
    pub containers: Vec<ContainerUsage>,
}

/// Which pod.
#[derive(Debug, Default, Deserialize)]
pub(super) struct PodRef {
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub namespace: String,
    #[serde(default)]
    pub uid: String,
}

/// What a container uses.
#[derive(Debug, Default, Deserialize)]
pub(super) struct ContainerUsage {
    #[serde(default)]
    pub name: String,
    #[serde(flatten)]
    pub usage: Usage,
}

/// Processor and memory.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Usage {
    #[serde(default)]
    pub cpu: Cpu,
    #[serde(default)]
    pub memory: Memory,
}

/// Processor.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Cpu {
    /// When it was measured.
    #[serde(default)]
    pub time: Option<String>,
    /// Nanoseconds of a core in each second.
    #[serde(rename = "usageNanoCores", default)]
    pub nano_cores: Option<u64>,
}

/// Memory.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Memory {
    /// Bytes that are in use and cannot be given up.
    #[serde(rename = "workingSetBytes", default)]
    pub working_set: Option<u64>,
}
