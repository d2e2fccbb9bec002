//! `/configz`: the configuration that is in force.

use http::Response;
use link::http_server::Body;
use serde_json::{Value, json};

use super::answer;
use crate::access::Access;

/// The file's `tailoredKubeletConfig` with its defaults, and what the agent has found out by itself in the place of what the
/// file says.
pub async fn answer(access: &Access) -> Response<Body> {
    let settings = &access.settings;
    let mut config: Value = serde_json::from_str(&settings.kubelet_config).unwrap_or_default();
    if !config.is_object() {
        config = json!({});
    }
    config["address"] = json!(settings.api_address);
    config["readOnlyPort"] = json!(settings.read_only_port);
    config["cgroupDriver"] = json!(access.runtime.cgroup_driver().await);
    config["clusterDNS"] = json!(settings.cluster_dns);
    config["clusterDomain"] = json!(settings.cluster_domain);
    config["maxPods"] = json!(settings.max_pods);
    config["containerLogMaxFiles"] = json!(settings.container_log_max_files);
    config["containerRuntimeEndpoint"] = json!(settings.runtime_endpoint);
    config["authentication"] = json!({
        "x509": {"clientCAFile": settings.client_ca_file},
        "webhook": {"enabled": false},
        "anonymous": {"enabled": false},
    });
    answer::json(&json!({"kubeletconfig": config}))
}
