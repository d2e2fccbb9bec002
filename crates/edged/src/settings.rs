//! What edged needs to know of its configuration, free of the file format.
//!
//! `edgecore` fills it from `modules.edged` of `edgecore.yaml`.

mod reclaim;
mod shutdown;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    time::Duration,
};

use k8s_openapi::api::core::v1::Taint;
use podlife::image_gc::Policy as ImageGcPolicy;

pub use crate::shutdown::Places;
pub use reclaim::{EvictionMaps, EvictionSettings, Reserved};
pub use shutdown::ShutdownSettings;

/// Settings of the node agent.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of this node (`hostnameOverride`).
    pub node_name: String,
    /// Namespace segment of the start-up query for pods (`registerNodeNamespace`).
    pub register_node_namespace: String,
    /// Whether the node object is created by edged (`registerNode`).
    pub register_node: bool,
    /// Extra labels of the node object.
    pub node_labels: BTreeMap<String, String>,
    /// Taints of the node object at registration.
    pub node_taints: Vec<Taint>,
    /// Address of the node; found by itself when absent (`nodeIP`).
    pub node_ip: Option<IpAddr>,
    /// Directory of pod data: volumes, hosts files, termination messages (`rootDirectory`).
    pub root_dir: PathBuf,
    /// Directory of container logs (`/var/log/pods`).
    pub pod_logs_dir: PathBuf,
    /// CRI endpoint for sandboxes and containers, `unix:///run/containerd/containerd.sock`.
    pub runtime_endpoint: String,
    /// CRI endpoint for images; the runtime endpoint when empty.
    pub image_endpoint: String,
    /// How long a usual call to the runtime may take (`runtimeRequestTimeout`).
    pub runtime_request_timeout: Duration,
    /// `clusterDNS`.
    pub cluster_dns: Vec<String>,
    /// `clusterDomain`.
    pub cluster_domain: String,
    /// `cgroupDriver` as configured; what the runtime reports wins.
    pub cgroup_driver: String,
    /// Whether each pod gets a cgroup of its own below its class (`cgroupsPerQOS`).
    pub cgroups_per_qos: bool,
    /// Cgroup below which those of pods are made (`cgroupRoot`); the root when empty.
    pub cgroup_root: String,
    /// Limits of CPU are enforced (`cpuCFSQuota`).
    pub cpu_cfs_quota: bool,
    /// Processes that a pod may have (`podPidsLimit`).
    pub pod_pids_limit: Option<i64>,
    /// Only the process that used too much memory is killed (`singleProcessOOMKill`).
    pub single_process_oom_kill: bool,
    /// Containers that name no seccomp profile get the runtime's own (`seccompDefault`).
    pub seccomp_default: bool,
    /// Sysctls that pods may set besides the safe ones; `*` at the end stands for any rest (`allowedUnsafeSysctls`).
    pub allowed_unsafe_sysctls: Vec<String>,
    /// Resolver configuration of the node (`resolvConf`); with an empty path pods with `dnsPolicy: Default` get none.
    pub resolv_conf: PathBuf,
    /// Bytes from which on a container's log is rotated (`containerLogMaxSize`).
    pub container_log_max_size: u64,
    /// Files kept of a container's log, the current one included (`containerLogMaxFiles`).
    pub container_log_max_files: usize,
    /// Pulls a second, 0 for no limit (`registryPullQPS`).
    pub registry_pull_qps: u32,
    /// Pulls at once within that limit (`registryBurst`).
    pub registry_burst: u32,
    /// Images pulled at the same time; `None` for any number (`serializeImagePulls`, `maxParallelImagePulls`).
    pub parallel_image_pulls: Option<usize>,
    /// How often the sizes of logs are looked at (`containerLogMonitorInterval`).
    pub container_log_monitor_interval: Duration,
    /// Pods that fit on the node (`maxPods`).
    pub max_pods: i32,
    /// Pods that fit for each processor, if that is less (`podsPerCore`); 0 for any number.
    pub pods_per_core: i32,
    /// What pods do not get.
    pub reserved: Reserved,
    /// When pods are evicted.
    pub eviction: EvictionSettings,
    /// When images are removed (`imageGCHighThresholdPercent` and its companions).
    pub image_gc: ImageGcPolicy,
    /// Image that is never removed (`podSandboxImage`).
    pub pause_image: String,
    /// Folder of manifests of static pods (`staticPodPath`); none when empty.
    pub static_pod_path: PathBuf,
    /// Images in the node status, the largest; -1 for all (`nodeStatusMaxImages`).
    pub node_status_max_images: i64,
    /// How often the node status is computed (`nodeStatusUpdateFrequency`).
    pub node_status_update_frequency: Duration,
    /// How often an unchanged node status is sent all the same (`nodeStatusReportFrequency`).
    pub node_status_report_frequency: Duration,
    /// Port of the node's HTTP API (`readOnlyPort`); 0 takes any free one. The node status tells it.
    pub read_only_port: u16,
    /// Address of that API (`address`); `None`: there is none.
    pub api_address: Option<IpAddr>,
    /// CA of client certificates for that API: the one of the hub (`edgeHub.tlsCaFile`).
    pub client_ca_file: PathBuf,
    /// After so long without a byte an exec, attach or port-forward ends (`streamingConnectionIdleTimeout`).
    pub streaming_idle_timeout: Duration,
    /// `tailoredKubeletConfig` as it is in force, JSON.
    pub kubelet_config: String,
    /// The machine's shutdown waits for its pods; it does not without.
    pub shutdown: Option<ShutdownSettings>,
    /// Settings of the machine; it is left as it is without.
    pub machine: Option<MachineSettings>,
    /// Whether events leave the node (`reportEvent`).
    pub report_event: bool,
    /// Address of MetaServer for `KUBERNETES_SERVICE_HOST`, only when it runs.
    pub kubernetes_service: Option<(String, u16)>,
}

/// What of the machine the agent sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineSettings {
    /// The kernel's settings are compared only, and the agent does not work with others (`protectKernelDefaults`).
    pub protect_kernel: bool,
    /// `oom_score_adj` of the agent's process (`oomScoreAdj`).
    pub oom_score: i64,
}

/// A quantity of bytes as the configuration writes it, `10Mi`.
pub fn bytes(quantity: &str) -> Option<u64> {
    let value =
        podlife::quantity::value(&k8s_openapi::apimachinery::pkg::api::resource::Quantity(quantity.to_owned()))?;
    u64::try_from(value).ok()
}

impl Settings {
    /// Upstream's defaults for a node of this name.
    pub fn new(node_name: impl Into<String>) -> Self {
        Self {
            node_name: node_name.into(),
            register_node_namespace: "default".into(),
            register_node: true,
            node_labels: BTreeMap::new(),
            node_taints: Vec::new(),
            node_ip: None,
            root_dir: "/var/lib/kubelet".into(),
            pod_logs_dir: "/var/log/pods".into(),
            runtime_endpoint: "unix:///run/containerd/containerd.sock".into(),
            image_endpoint: String::new(),
            runtime_request_timeout: Duration::from_secs(120),
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".into(),
            cgroup_driver: "cgroupfs".into(),
            cgroups_per_qos: true,
            cgroup_root: String::new(),
            cpu_cfs_quota: true,
            pod_pids_limit: None,
            single_process_oom_kill: false,
            seccomp_default: false,
            allowed_unsafe_sysctls: Vec::new(),
            resolv_conf: "/etc/resolv.conf".into(),
            container_log_max_size: 10 << 20,
            container_log_max_files: 5,
            registry_pull_qps: 5,
            registry_burst: 10,
            parallel_image_pulls: Some(1),
            container_log_monitor_interval: Duration::from_secs(10),
            max_pods: 110,
            pods_per_core: 0,
            reserved: Reserved::default(),
            eviction: EvictionSettings::default(),
            image_gc: reclaim::IMAGE_GC,
            pause_image: "kubeedge/pause:3.6".into(),
            static_pod_path: PathBuf::new(),
            node_status_max_images: 0,
            node_status_update_frequency: Duration::from_secs(10),
            node_status_report_frequency: Duration::from_secs(300),
            read_only_port: 10350,
            api_address: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            client_ca_file: "/etc/kubeedge/ca/rootCA.crt".into(),
            streaming_idle_timeout: Duration::from_secs(4 * 3600),
            kubelet_config: "{}".into(),
            shutdown: None,
            machine: None,
            report_event: true,
            kubernetes_service: None,
        }
    }
}
