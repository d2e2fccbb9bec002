//! The configuration of a container, as the kubelet would ask the runtime for it: environment, command, mounts, resources,
//! security, and the annotations that let a restarted edged adopt it.
//!
//! Everything here is decided from values; what must be read or pulled first is done by `crate::runtime`.

pub mod env;
pub mod expand;
pub mod fields;
pub mod hosts;
pub mod mounts;
pub mod resources;
pub mod security;
pub mod service;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};
use podlife::observed::PodIdentity;
use podlife::{resize, spec};

use crate::cri::proto;
use crate::devices::Grant;
use crate::{labels, logs, sandbox};
use expand::expand;

/// The parts of a configuration that were prepared before.
pub struct ContainerInput<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Its identity.
    pub identity: &'a PodIdentity,
    /// The container.
    pub container: &'a Container,
    /// Attempt and restart count.
    pub restart_count: u32,
    /// Reference that the image step resolved.
    pub image_ref: String,
    /// Final environment.
    pub env: Vec<(String, String)>,
    /// Mounts.
    pub mounts: Vec<proto::Mount>,
    /// Resources.
    pub resources: proto::LinuxContainerResources,
    /// Security context.
    pub security: proto::LinuxContainerSecurityContext,
    /// Devices of plugins.
    pub grants: &'a [Grant],
}

/// Puts the configuration together.
pub fn config(input: ContainerInput<'_>) -> proto::ContainerConfig {
    let container = input.container;
    let lookup = |name: &str| input.env.iter().find(|(other, _)| other == name).map(|(_, value)| value.clone());
    let expanded = |words: &Option<Vec<String>>| words.iter().flatten().map(|word| expand(word, lookup)).collect();
    let mut container_labels = sandbox::identity_labels(input.identity);
    container_labels.insert(labels::CONTAINER_NAME.to_owned(), container.name.clone());
    proto::ContainerConfig {
        metadata: Some(proto::ContainerMetadata { name: container.name.clone(), attempt: input.restart_count }),
        image: Some(proto::ImageSpec {
            image: input.image_ref,
            annotations: BTreeMap::new(),
            user_specified_image: container.image.clone().unwrap_or_default(),
        }),
        command: expanded(&container.command),
        args: expanded(&container.args),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        mounts: mounts_of(input.grants).chain(input.mounts).collect(),
        devices: nodes_of(input.grants),
        labels: container_labels,
        annotations: {
            let mut all: BTreeMap<_, _> = input.grants.iter().flat_map(|grant| grant.annotations.clone()).collect();
            all.extend(annotations(input.pod, container, input.restart_count));
            all
        },
        log_path: logs::container_log(&container.name, input.restart_count),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        linux: Some(proto::LinuxContainerConfig {
            resources: Some(input.resources),
            security_context: Some(input.security),
        }),
        envs: envs(input.grants, &input.env),
        cdi_devices: input
            .grants
            .iter()
            .flat_map(|grant| grant.cdi.iter().map(|name| proto::CdiDevice { name: name.clone() }))
            .collect(),
    }
}

/// A plugin's variables, then the container's own, which win.
fn envs(grants: &[Grant], own: &[(String, String)]) -> Vec<proto::KeyValue> {
    let of_plugins = grants.iter().flat_map(|grant| &grant.envs);
    let of_plugins = of_plugins.filter(|(key, _)| own.iter().all(|(other, _)| other != *key));
    let own = own.iter().map(|(key, value)| (key, value));
    let pair =
        |(key, value): (&String, &String)| proto::KeyValue { key: key.clone(), value: value.clone().into_bytes() };
    of_plugins.chain(own).map(pair).collect()
}

fn mounts_of(grants: &[Grant]) -> impl Iterator<Item = proto::Mount> + '_ {
    grants.iter().flat_map(|grant| &grant.mounts).map(|(container_path, host_path, readonly)| proto::Mount {
        container_path: container_path.clone(),
        host_path: host_path.clone(),
        readonly: *readonly,
        ..Default::default()
    })
}

fn nodes_of(grants: &[Grant]) -> Vec<proto::Device> {
    let nodes = grants.iter().flat_map(|grant| grant.nodes.clone());
    nodes
        .map(|(container_path, host_path, permissions)| proto::Device { container_path, host_path, permissions })
        .collect()
}

fn annotations(pod: &Pod, container: &Container, restart_count: u32) -> BTreeMap<String, String> {
    let message_path = container.termination_message_path.as_deref().unwrap_or(mounts::DEFAULT_TERMINATION_PATH);
    let message_policy = container.termination_message_policy.as_deref().unwrap_or("File");
    let mut made = BTreeMap::from([
        (labels::CONTAINER_HASH.to_owned(), format!("{:x}", spec::container_hash(container))),
        (labels::RESTART_COUNT.to_owned(), restart_count.to_string()),
        (labels::TERMINATION_MESSAGE_PATH.to_owned(), message_path.to_owned()),
        (labels::TERMINATION_MESSAGE_POLICY.to_owned(), message_policy.to_owned()),
    ]);
    let grace = pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds);
    made.extend(grace.map(|seconds| (labels::TERMINATION_GRACE.to_owned(), seconds.to_string())));
    let deletion = pod.metadata.deletion_grace_period_seconds;
    made.extend(deletion.map(|seconds| (labels::DELETION_GRACE.to_owned(), seconds.to_string())));
    let hook = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref());
    made.extend(hook.and_then(json).map(|text| (labels::PRE_STOP_HANDLER.to_owned(), text)));
    let ports = container.ports.as_ref().filter(|ports| !ports.is_empty());
    made.extend(ports.and_then(json).map(|text| (labels::CONTAINER_PORTS.to_owned(), text)));
    made.extend(resize::mark(container).map(|text| (labels::CONTAINER_RESOURCES.to_owned(), text)));
    made
}

fn json<T: serde::Serialize>(value: &T) -> Option<String> {
    serde_json::to_string(value).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn identity_and_expansion() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "default", "uid": "u"},
            "spec": {"terminationGracePeriodSeconds": 5, "containers": [{"name": "nginx", "image": "nginx:1.27",
                "command": ["sh", "-c"], "args": ["echo $(A) $$(A) $(B)"], "ports": [{"containerPort": 80}]}]},
        }))
        .unwrap();
        let made = config(ContainerInput {
            pod: &pod,
            identity: &spec::identity(&pod).unwrap(),
            container: &pod.spec.as_ref().unwrap().containers[0],
            restart_count: 3,
            image_ref: "sha256:1".into(),
            env: vec![("A".into(), "x".into())],
            mounts: Vec::new(),
            resources: proto::LinuxContainerResources::default(),
            security: proto::LinuxContainerSecurityContext::default(),
            grants: &[Grant {
                envs: [("A".to_owned(), "plugin".to_owned()), ("D".to_owned(), "1".to_owned())].into(),
                mounts: vec![("/m".into(), "/host".into(), true)],
                nodes: vec![("/dev/d".into(), "/dev/null".into(), "rw".into())],
                annotations: [(labels::RESTART_COUNT.to_owned(), "7".to_owned()), ("d".to_owned(), "1".to_owned())]
                    .into(),
                cdi: vec!["e.com/d=a".into()],
                ..Grant::default()
            }],
        });
        let envs: Vec<_> = made.envs.iter().map(|pair| (pair.key.as_str(), pair.value.as_slice())).collect();
        assert_eq!(envs, [("D", b"1".as_slice()), ("A", b"x")], "the container's own win");
        assert_eq!((made.mounts[0].host_path.as_str(), made.mounts[0].readonly), ("/host", true));
        assert_eq!((made.devices[0].host_path.as_str(), made.cdi_devices[0].name.as_str()), ("/dev/null", "e.com/d=a"));
        assert_eq!((made.annotations[labels::RESTART_COUNT].as_str(), made.annotations["d"].as_str()), ("3", "1"));
        assert_eq!(made.args, ["echo x $(A) $(B)"]);
        assert_eq!(made.log_path, "nginx/3.log");
        assert_eq!(made.labels.len(), 4);
        assert_eq!(made.annotations[labels::CONTAINER_HASH], "91edee8f");
        assert_eq!(made.annotations[labels::RESTART_COUNT], "3");
        assert_eq!(made.annotations[labels::TERMINATION_GRACE], "5");
        assert_eq!(made.annotations[labels::CONTAINER_PORTS], r#"[{"containerPort":80}]"#);
        assert_eq!(made.image.unwrap().user_specified_image, "nginx:1.27");
    }
}
