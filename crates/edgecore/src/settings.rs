//! The node agent's settings, from `modules.edged` of `edgecore.yaml`.

mod reclaim;
mod shutdown;
use std::time::Duration;

use api::edgecore::Config;
use edged::Settings;
use edged::settings::MachineSettings;

/// Reads them; what the file cannot say keeps edged's default.
pub fn edged(config: &Config) -> Settings {
    let document = &config.document;
    let own = |key: &str| format!("modules.edged.{key}");
    let kubelet = |key: &str| format!("modules.edged.tailoredKubeletConfig.{key}");
    let mut settings = Settings::new(config.node_name());
    settings.register_node_namespace = document.text(&own("registerNodeNamespace"));
    settings.register_node = document.flag(&kubelet("registerNode"));
    settings.node_labels = config.node_labels();
    settings.node_taints =
        serde_json::from_value(document.get(&kubelet("registerWithTaints")).clone()).unwrap_or_default();
    settings.node_ip = document.text(&own("nodeIP")).parse().ok();
    settings.root_dir = document.text(&own("rootDirectory")).into();
    settings.pod_logs_dir = document.text(&kubelet("podLogsDir")).into();
    settings.runtime_endpoint = document.text(&kubelet("containerRuntimeEndpoint"));
    settings.image_endpoint = document.text(&kubelet("imageServiceEndpoint"));
    let timeout = config.duration(&kubelet("runtimeRequestTimeout"));
    if !timeout.is_zero() {
        settings.runtime_request_timeout = timeout;
    }
    settings.cluster_dns = document.texts(&kubelet("clusterDNS"));
    settings.cluster_domain = document.text(&kubelet("clusterDomain"));
    settings.cgroup_driver = document.text(&kubelet("cgroupDriver"));
    settings.cgroup_root = document.text(&kubelet("cgroupRoot"));
    settings.cpu_cfs_quota = document.flag(&kubelet("cpuCFSQuota"));
    settings.pod_pids_limit = Some(document.number(&kubelet("podPidsLimit"))).filter(|limit| *limit > 0);
    settings.single_process_oom_kill = document.flag(&kubelet("singleProcessOOMKill"));
    settings.seccomp_default = document.flag(&kubelet("seccompDefault")) || document.flag(&own("seccompDefault"));
    settings.allowed_unsafe_sysctls = document.texts(&kubelet("allowedUnsafeSysctls"));
    settings.resolv_conf = document.text(&kubelet("resolvConf")).into();
    settings.cgroups_per_qos = document.flag(&kubelet("cgroupsPerQOS"));
    if let Some(size) = edged::settings::bytes(&document.text(&kubelet("containerLogMaxSize"))) {
        settings.container_log_max_size = size;
    }
    settings.container_log_max_files =
        usize::try_from(document.number(&kubelet("containerLogMaxFiles"))).unwrap_or(settings.container_log_max_files);
    let count = |key: &str| u32::try_from(document.number(&kubelet(key))).unwrap_or_default();
    settings.registry_pull_qps = count("registryPullQPS");
    settings.registry_burst = count("registryBurst");
    let parallel = usize::try_from(document.number(&kubelet("maxParallelImagePulls"))).ok().filter(|count| *count > 0);
    settings.parallel_image_pulls = if document.flag(&kubelet("serializeImagePulls")) { Some(1) } else { parallel };
    // Without a pause between two looks nothing else would get a turn.
    settings.container_log_monitor_interval =
        config.duration(&kubelet("containerLogMonitorInterval")).max(Duration::from_secs(1));
    settings.max_pods = i32::try_from(document.number(&kubelet("maxPods"))).unwrap_or(settings.max_pods);
    settings.node_status_update_frequency = config.duration(&kubelet("nodeStatusUpdateFrequency"));
    settings.node_status_report_frequency = config.duration(&kubelet("nodeStatusReportFrequency"));
    settings.read_only_port = u16::try_from(document.number(&kubelet("readOnlyPort"))).unwrap_or_default();
    settings.api_address = document.text(&kubelet("address")).parse().ok().filter(|_| settings.read_only_port != 0);
    settings.client_ca_file = config.edge_hub().ca_file;
    let idle = config.duration(&kubelet("streamingConnectionIdleTimeout"));
    // 0 is no limit.
    settings.streaming_idle_timeout = if idle.is_zero() { Duration::MAX } else { idle };
    settings.kubelet_config = document.get("modules.edged.tailoredKubeletConfig").to_string();
    settings.report_event = document.flag(&own("reportEvent"));
    settings.shutdown = shutdown::read(config);
    settings.machine = Some(MachineSettings {
        protect_kernel: document.flag(&kubelet("protectKernelDefaults")),
        oom_score: document.number(&kubelet("oomScoreAdj")).clamp(-1000, 1000),
    });
    settings.pause_image = document.text(&own("podSandboxImage"));
    settings.static_pod_path = document.text(&kubelet("staticPodPath")).into();
    reclaim::read(config, &mut settings);
    settings
}
