//! What can be known of a pod from its containers alone: their labels and annotations.

use k8s_openapi::api::core::v1::{Container, Lifecycle, Pod, PodSpec};

use crate::observed::ObservedPod;

/// A pod of which only the runtime knows, as far as its end needs it: names, ports, preStop hooks and grace.
pub fn pod(observed: &ObservedPod) -> Pod {
    let identity = &observed.identity;
    let mut pod = Pod::default();
    pod.metadata.name = Some(identity.name.clone());
    pod.metadata.namespace = Some(identity.namespace.clone());
    pod.metadata.uid = Some(identity.uid.clone());
    let mut spec = PodSpec {
        host_network: observed.sandboxes.first().map(|sandbox| sandbox.host_network),
        termination_grace_period_seconds: observed.containers.iter().find_map(|c| c.termination_grace),
        ..PodSpec::default()
    };
    for found in &observed.containers {
        if spec.containers.iter().any(|known| known.name == found.name) {
            continue;
        }
        let pre_stop = found.pre_stop.as_deref().and_then(|text| serde_json::from_str(text).ok());
        spec.containers.push(Container {
            name: found.name.clone(),
            image: Some(found.image.clone()),
            lifecycle: pre_stop.map(|hook| Lifecycle { pre_stop: Some(hook), ..Lifecycle::default() }),
            ports: found.ports.as_deref().and_then(|text| serde_json::from_str(text).ok()),
            ..Container::default()
        });
    }
    pod.spec = Some(spec);
    pod
}
