//! Fields of a pod that this agent does not carry out.

use k8s_openapi::api::core::v1::Pod;

use crate::spec;

/// A field that is not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsupported {
    /// Path in the pod, `spec.containers[web].livenessProbe`.
    pub field: String,
    /// Why, and what happens instead.
    pub reason: String,
    /// The pod must not run without it.
    pub blocks: bool,
}

/// Lists what a pod asks for in vain.
pub fn unsupported(pod: &Pod) -> Vec<Unsupported> {
    let mut found = Vec::new();
    let Some(spec) = pod.spec.as_ref() else { return found };
    let mut add = |present: bool, field: String, reason: &str, blocks: bool| {
        if present {
            found.push(Unsupported { field, reason: reason.to_owned(), blocks });
        }
    };
    add(
        spec.ephemeral_containers.as_ref().is_some_and(|list| !list.is_empty()),
        "spec.ephemeralContainers".into(),
        "ephemeral containers are not supported by this agent; they are not started",
        false,
    );
    add(
        spec.host_users == Some(false),
        "spec.hostUsers".into(),
        "user namespaces are not supported by this agent; the pod is not started, because it would run with the users of the node",
        true,
    );
    add(
        spec.resource_claims.as_ref().is_some_and(|list| !list.is_empty()),
        "spec.resourceClaims".into(),
        "dynamic resource allocation is not supported by this agent; the pod is not started without its devices",
        true,
    );
    for (list, containers) in [("initContainers", spec::init_containers(pod)), ("containers", spec::containers(pod))] {
        for container in containers {
            let path = |field: &str| format!("spec.{list}[{}].{field}", container.name);
            add(
                container.volume_devices.as_ref().is_some_and(|list| !list.is_empty()),
                path("volumeDevices"),
                "block volumes are not supported by this agent; the pod is not started without its devices",
                true,
            );
        }
    }
    found
}
