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
use podlife::spec;

use crate::cri::proto;
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
        mounts: input.mounts,
        labels: container_labels,
        annotations: annotations(input.pod, container, input.restart_count),
        log_path: logs::container_log(&container.name, input.restart_count),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        linux: Some(proto::LinuxContainerConfig {
            resources: Some(input.resources),
            security_context: Some(input.security),
        }),
        envs: input.env.into_iter().map(|(key, value)| proto::KeyValue { key, value: value.into_bytes() }).collect(),
    }
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
        });
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
