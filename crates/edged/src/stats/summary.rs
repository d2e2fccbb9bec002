//! The answer of `GET /stats/summary` (`k8s.io/kubelet/pkg/apis/stats/v1alpha1`) as data.
//!
//! Every value is optional: what is not known is left out, never 0. Bytes, counts, nanoseconds.

use jiff::Timestamp;
use serde::{Serialize, Serializer};

/// When something was measured: whole seconds in JSON, as exact as the clock for who computes rates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub Timestamp);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let seconds = Timestamp::from_second(self.0.as_second()).unwrap_or(self.0);
        serializer.collect_str(&seconds)
    }
}

macro_rules! optional {
    ($($(#[$about:meta])* $name:ident { $($(#[$field_about:meta])* $field:ident: $kind:ty,)* })*) => {$(
        $(#[$about])*
        #[derive(Clone, Debug, Default, PartialEq, Serialize)]
        #[serde(rename_all = "camelCase")]
        pub struct $name {
            $($(#[$field_about])* #[serde(skip_serializing_if = "Option::is_none")] pub $field: Option<$kind>,)*
        }
    )*};
}

/// Usage of the node and of its pods.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    /// The node.
    pub node: NodeStats,
    /// Pods with running containers, by namespace and name.
    pub pods: Vec<PodStats>,
}

/// Usage of the node.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStats {
    /// Name of the Node object.
    pub node_name: String,
    /// Groups of processes besides single pods: `kubelet`, `pods`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub system_containers: Vec<ContainerStats>,
    /// Everything that is measured.
    #[serde(flatten)]
    pub usage: NodeUsage,
}

/// Usage of one pod.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStats {
    /// Which pod.
    pub pod_ref: PodReference,
    /// Its running containers.
    pub containers: Vec<ContainerStats>,
    /// Everything that is measured of the pod as a whole.
    #[serde(flatten)]
    pub usage: PodUsage,
    /// Volumes that hold something on this node.
    #[serde(rename = "volume", skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeStats>,
}

/// Usage of one container.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerStats {
    /// Its name in the pod.
    pub name: String,
    /// The runtime's id; not part of the answer.
    #[serde(skip)]
    pub id: String,
    /// The runtime's reference of its image; not part of the answer.
    #[serde(skip)]
    pub image: String,
    /// Everything that is measured.
    #[serde(flatten)]
    pub usage: ContainerUsage,
}

/// Usage of one volume.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeStats {
    /// Its name in the pod.
    pub name: String,
    /// Plugin as in the name of its directory, `kubernetes.io~empty-dir`; not part of the answer.
    #[serde(skip)]
    pub plugin: String,
    /// The file system that it is on and its part of it.
    #[serde(flatten)]
    pub fs: FsStats,
    /// The claim behind it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pvc_ref: Option<PvcReference>,
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PodReference {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// UID as the runtime's labels have it.
    pub uid: String,
}

/// A claim of a persistent volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PvcReference {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
}

optional! {
    /// What is measured of the node.
    NodeUsage {
        /// When it was booted.
        start_time: Time,
        /// Processors.
        cpu: CpuStats,
        /// Memory.
        memory: MemoryStats,
        /// Network.
        network: NetworkStats,
        /// The file system of pods and logs (`nodefs`).
        fs: FsStats,
        /// File systems of the container runtime.
        runtime: RuntimeStats,
        /// Processes.
        rlimit: RlimitStats,
        /// Swap.
        swap: SwapStats,
    }

    /// What is measured of a pod.
    PodUsage {
        /// When its sandbox was made.
        start_time: Time,
        /// Processors.
        cpu: CpuStats,
        /// Memory.
        memory: MemoryStats,
        /// Network; absent for pods on the node's own.
        network: NetworkStats,
        /// Writable layers, logs and local volumes together.
        #[serde(rename = "ephemeral-storage")]
        ephemeral_storage: FsStats,
        /// Processes.
        #[serde(rename = "process_stats")]
        process_stats: ProcessStats,
        /// Swap.
        swap: SwapStats,
    }

    /// What is measured of a container.
    ContainerUsage {
        /// When it was made.
        start_time: Time,
        /// Processors.
        cpu: CpuStats,
        /// Memory.
        memory: MemoryStats,
        /// Its writable layer.
        rootfs: FsStats,
        /// Its logs.
        logs: FsStats,
        /// Swap.
        swap: SwapStats,
    }

    /// Processor time.
    CpuStats {
        /// When it was measured.
        time: Time,
        /// Rate over the time between the last two samples.
        usage_nano_cores: u64,
        /// Counter since the start.
        usage_core_nano_seconds: u64,
    }

    /// Memory.
    MemoryStats {
        /// When it was measured.
        time: Time,
        /// Limit minus working set; absent without a limit.
        available_bytes: u64,
        /// With caches.
        usage_bytes: u64,
        /// Without the caches that could be dropped at once.
        working_set_bytes: u64,
        /// Anonymous memory.
        rss_bytes: u64,
        /// Page faults.
        page_faults: u64,
        /// Page faults that read from disk.
        major_page_faults: u64,
    }

    /// Swap.
    SwapStats {
        /// When it was measured.
        time: Time,
        /// Swap that may still be used.
        swap_available_bytes: u64,
        /// Swap in use.
        swap_usage_bytes: u64,
    }

    /// Network: the default interface, and all of them.
    NetworkStats {
        /// When it was measured.
        time: Time,
        /// Default interface.
        #[serde(flatten)]
        default: InterfaceStats,
        /// All interfaces.
        interfaces: Vec<InterfaceStats>,
    }

    /// Counters of one interface.
    InterfaceStats {
        /// Its name.
        name: String,
        /// Bytes received.
        rx_bytes: u64,
        /// Errors while receiving.
        rx_errors: u64,
        /// Bytes sent.
        tx_bytes: u64,
        /// Errors while sending.
        tx_errors: u64,
    }

    /// A file system, and what part of it something uses.
    FsStats {
        /// When it was measured.
        time: Time,
        /// Free for processes without privileges.
        available_bytes: u64,
        /// Size.
        capacity_bytes: u64,
        /// Used by what is measured.
        used_bytes: u64,
        /// Free inodes.
        inodes_free: u64,
        /// All inodes.
        inodes: u64,
        /// Inodes used by what is measured.
        inodes_used: u64,
    }

    /// File systems of the container runtime.
    RuntimeStats {
        /// Images.
        image_fs: FsStats,
        /// Writable layers; the same where images are not kept apart.
        container_fs: FsStats,
    }

    /// Processes of the node.
    RlimitStats {
        /// When it was measured.
        time: Time,
        /// Most that there may be.
        #[serde(rename = "maxpid")]
        max_pid: i64,
        /// How many there are, threads included.
        #[serde(rename = "curproc")]
        running: i64,
    }

    /// Processes of a pod.
    ProcessStats {
        /// How many there are, threads included.
        #[serde(rename = "process_count")]
        process_count: u64,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn unknown_values_are_left_out() {
        let time = Time("2024-05-01T10:00:00.123Z".parse().unwrap());
        let memory = MemoryStats { time: Some(time), working_set_bytes: Some(3), ..Default::default() };
        let eth0 = InterfaceStats { name: Some("eth0".into()), rx_bytes: Some(1), ..Default::default() };
        let summary = Summary {
            node: NodeStats {
                node_name: "edge-1".into(),
                usage: NodeUsage { memory: Some(memory), ..Default::default() },
                ..Default::default()
            },
            pods: vec![PodStats {
                pod_ref: PodReference { name: "p".into(), namespace: "ns".into(), uid: "u".into() },
                usage: PodUsage {
                    network: Some(NetworkStats {
                        time: Some(time),
                        default: Some(eth0.clone()),
                        interfaces: Some(vec![eth0]),
                    }),
                    ephemeral_storage: Some(FsStats { used_bytes: Some(7), ..Default::default() }),
                    process_stats: Some(ProcessStats { process_count: Some(3) }),
                    ..Default::default()
                },
                volumes: vec![VolumeStats {
                    name: "v".into(),
                    fs: FsStats { used_bytes: Some(1), ..Default::default() },
                    pvc_ref: Some(PvcReference { name: "d".into(), namespace: "ns".into() }),
                    ..Default::default()
                }],
                ..Default::default()
            }],
        };
        let expected = json!({
            "node": {"nodeName": "edge-1", "memory": {"time": "2024-05-01T10:00:00Z", "workingSetBytes": 3}},
            "pods": [{
                "podRef": {"name": "p", "namespace": "ns", "uid": "u"},
                "containers": [],
                "network": {
                    "time": "2024-05-01T10:00:00Z", "name": "eth0", "rxBytes": 1,
                    "interfaces": [{"name": "eth0", "rxBytes": 1}],
                },
                "ephemeral-storage": {"usedBytes": 7},
                "process_stats": {"process_count": 3},
                "volume": [{"name": "v", "usedBytes": 1, "pvcRef": {"name": "d", "namespace": "ns"}}],
            }],
        });
        assert_eq!(serde_json::to_value(&summary).unwrap(), expected);
    }
}
