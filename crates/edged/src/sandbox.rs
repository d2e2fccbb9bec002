//! The sandbox of a pod: everything that its containers share, as the kubelet would ask for it.

use std::collections::{BTreeMap, HashSet};

use k8s_openapi::api::core::v1::{Container, ContainerPort, Pod};
use podlife::observed::PodIdentity;
use podlife::spec;

use crate::container::resources::{self, NodeResources};
use crate::container::security;
use crate::cri::proto;
use crate::labels;

/// Longest hostname of Linux.
const MAX_HOSTNAME: usize = 63;
const MAX_FQDN: usize = 64;

/// What a sandbox needs to know besides the pod.
pub struct SandboxInput<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Its identity.
    pub identity: &'a PodIdentity,
    /// Attempt.
    pub attempt: u32,
    /// Log directory.
    pub log_directory: String,
    /// Resolver configuration.
    pub dns: proto::DnsConfig,
    /// Parent cgroup in the syntax of the driver.
    pub cgroup_parent: String,
    /// `clusterDomain`.
    pub cluster_domain: &'a str,
    /// For the sum of resources.
    pub node: &'a NodeResources,
    /// Groups that the pod's volumes ask for.
    pub volume_groups: &'a [i64],
}

/// The pod asks for something that no sandbox can have.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SandboxError {
    /// `setHostnameAsFQDN` gives a name that Linux does not take.
    #[error("failed to construct FQDN from pod hostname and cluster domain, FQDN {0} is too long (64 characters is the max, {len} characters requested)", len = .0.len())]
    LongFqdn(String),
}

/// The configuration to create a sandbox with; also sent with each of its containers.
///
/// # Errors
/// See [`SandboxError`].
pub fn config(input: SandboxInput<'_>) -> Result<proto::PodSandboxConfig, SandboxError> {
    let pod = input.pod;
    let mut sandbox_labels = pod.metadata.labels.clone().unwrap_or_default();
    sandbox_labels.extend(identity_labels(input.identity));
    let (hostname, _) = hostname(pod, input.identity, input.cluster_domain)?;
    Ok(proto::PodSandboxConfig {
        metadata: Some(proto::PodSandboxMetadata {
            name: input.identity.name.clone(),
            uid: input.identity.uid.clone(),
            namespace: input.identity.namespace.clone(),
            attempt: input.attempt,
        }),
        hostname: if spec::host_network(pod) { String::new() } else { hostname },
        log_directory: input.log_directory,
        dns_config: Some(input.dns),
        port_mappings: port_mappings(spec::containers(pod)),
        labels: sandbox_labels,
        annotations: pod.metadata.annotations.clone().unwrap_or_default(),
        linux: Some(proto::LinuxPodSandboxConfig {
            cgroup_parent: input.cgroup_parent,
            security_context: Some(security::sandbox(pod, input.volume_groups)),
            sysctls: sysctls(pod),
            overhead: resources::overhead(pod),
            resources: Some(resources::pod_sum(pod, input.node)),
        }),
    })
}

/// The three labels that lead from the runtime back to a pod.
pub fn identity_labels(identity: &PodIdentity) -> BTreeMap<String, String> {
    BTreeMap::from([
        (labels::POD_NAME.to_owned(), identity.name.clone()),
        (labels::POD_NAMESPACE.to_owned(), identity.namespace.clone()),
        (labels::POD_UID.to_owned(), identity.uid.clone()),
    ])
}

/// Hostname of a pod, and its domain if it has one.
///
/// # Errors
/// The full name is too long.
pub fn hostname(
    pod: &Pod,
    identity: &PodIdentity,
    cluster_domain: &str,
) -> Result<(String, Option<String>), SandboxError> {
    let pod_spec = pod.spec.as_ref();
    let wanted = pod_spec.and_then(|s| s.hostname.as_deref()).filter(|name| !name.is_empty());
    let mut host = wanted.unwrap_or(&identity.name).to_owned();
    host.truncate(host.floor_char_boundary(MAX_HOSTNAME));
    let host = host.trim_end_matches(['-', '.']).to_owned();
    let subdomain = pod_spec.and_then(|s| s.subdomain.as_deref()).filter(|name| !name.is_empty());
    let domain = subdomain.map(|subdomain| format!("{subdomain}.{}.svc.{cluster_domain}", identity.namespace));
    if pod_spec.and_then(|s| s.set_hostname_as_fqdn) == Some(true)
        && let Some(domain) = &domain
    {
        let full = format!("{host}.{domain}");
        if full.len() > MAX_FQDN {
            return Err(SandboxError::LongFqdn(full));
        }
        return Ok((full, Some(domain.clone())));
    }
    Ok((host, domain))
}

/// Ports of main containers; within a container the first of equal ones counts.
fn port_mappings(containers: &[Container]) -> Vec<proto::PortMapping> {
    let mut mappings = Vec::new();
    for container in containers {
        let mut seen = HashSet::new();
        for port in container.ports.as_deref().unwrap_or_default() {
            if seen.insert(port_key(port)) {
                mappings.push(proto::PortMapping {
                    protocol: protocol(port) as i32,
                    container_port: port.container_port,
                    host_port: port.host_port.unwrap_or_default(),
                    host_ip: port.host_ip.clone().unwrap_or_default(),
                });
            }
        }
    }
    mappings
}

fn port_key(port: &ContainerPort) -> String {
    match port.name.as_deref().filter(|name| !name.is_empty()) {
        Some(name) => name.to_owned(),
        None => format!(
            "{}-{}-{}-{}",
            protocol(port).as_str_name(),
            port.host_ip.as_deref().unwrap_or_default(),
            port.container_port,
            port.host_port.unwrap_or_default()
        ),
    }
}

fn protocol(port: &ContainerPort) -> proto::Protocol {
    match port.protocol.as_deref() {
        Some("UDP") => proto::Protocol::Udp,
        Some("SCTP") => proto::Protocol::Sctp,
        _ => proto::Protocol::Tcp,
    }
}

fn sysctls(pod: &Pod) -> BTreeMap<String, String> {
    let context = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let wanted = context.and_then(|context| context.sysctls.as_deref()).unwrap_or_default();
    wanted.iter().map(|sysctl| (podlife::sysctl::normalize(&sysctl.name), sysctl.value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config_of(spec: serde_json::Value) -> Result<proto::PodSandboxConfig, SandboxError> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "web-1", "namespace": "shop", "uid": "u1", "labels": {"app": "web"}}, "spec": spec,
        }))
        .unwrap();
        let identity = spec::identity(&pod).unwrap();
        config(SandboxInput {
            pod: &pod,
            identity: &identity,
            attempt: 2,
            log_directory: "/l".into(),
            dns: proto::DnsConfig::default(),
            cgroup_parent: "/kubepods/besteffort/podu1".into(),
            cluster_domain: "cluster.local",
            node: &NodeResources::default(),
            volume_groups: &[],
        })
    }

    #[test]
    fn identity_hostname_and_ports() {
        let config = config_of(json!({"containers": [{"name": "c", "ports": [
            {"containerPort": 80, "hostPort": 8080}, {"containerPort": 80, "hostPort": 8080},
            {"containerPort": 53, "protocol": "UDP", "name": "dns"}]}]}))
        .unwrap();
        assert_eq!(config.hostname, "web-1");
        assert_eq!(config.labels["app"], "web");
        assert_eq!(config.labels[labels::POD_UID], "u1");
        assert_eq!(config.metadata.unwrap().attempt, 2);
        assert_eq!(config.port_mappings.len(), 2);
        let options = config.linux.unwrap().security_context.unwrap().namespace_options.unwrap();
        assert_eq!(options.pid(), proto::NamespaceMode::Container);
        assert_eq!(options.network(), proto::NamespaceMode::Pod);
    }

    #[test]
    fn host_namespaces_and_refusals() {
        let config =
            config_of(json!({"containers": [], "hostNetwork": true, "hostPID": true, "hostIPC": true})).unwrap();
        assert_eq!(config.hostname, "");
        let options = config.linux.unwrap().security_context.unwrap().namespace_options.unwrap();
        assert_eq!([options.network(), options.pid(), options.ipc()], [proto::NamespaceMode::Node; 3]);
        let long = json!({"containers": [], "subdomain": "x".repeat(50), "setHostnameAsFQDN": true});
        assert!(matches!(config_of(long), Err(SandboxError::LongFqdn(_))));
    }
}
