//! Fields of a pod that this agent does not carry out. `docs/node-agent.md` lists the same.

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use crate::spec;

/// A field that is not carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsupported {
    /// Path in the pod, `spec.containers[web].livenessProbe`.
    pub field: String,
    /// Why, what happens instead, and what helps.
    pub reason: String,
    /// The pod must not run without it.
    pub blocks: bool,
}

/// Lists what a pod asks for in vain.
pub fn unsupported(pod: &Pod) -> Vec<Unsupported> {
    let mut found = List::default();
    if let Some(spec) = pod.spec.as_ref() {
        found.pod(spec);
    }
    for (list, containers) in [("initContainers", spec::init_containers(pod)), ("containers", spec::containers(pod))] {
        for container in containers {
            found.container(&format!("spec.{list}[{}]", container.name), container);
        }
    }
    found.0
}

#[derive(Default)]
struct List(Vec<Unsupported>);

impl List {
    /// Adds a field that the pod can do without.
    fn ignored(&mut self, present: bool, field: impl Into<String>, reason: impl Into<String>) {
        if present {
            self.0.push(Unsupported { field: field.into(), reason: reason.into(), blocks: false });
        }
    }

    /// Adds a field without which the pod must not run.
    fn refused(&mut self, present: bool, field: impl Into<String>, reason: impl Into<String>) {
        if present {
            self.0.push(Unsupported { field: field.into(), reason: reason.into(), blocks: true });
        }
    }

    fn pod(&mut self, spec: &PodSpec) {
        self.refused(
            spec.host_users == Some(false),
            "spec.hostUsers",
            "user namespaces are not supported by this agent; the pod is not started, because it would run with the users \
             of the node; remove the field or set it to true",
        );
        self.refused(
            spec.resource_claims.as_ref().is_some_and(|list| !list.is_empty()),
            "spec.resourceClaims",
            "dynamic resource allocation is not supported by this agent; the pod is not started without its devices; \
             request them as an extended resource of a device plugin",
        );
        self.ignored(
            spec.resources.is_some(),
            "spec.resources",
            "resources of the pod as a whole are not supported by this agent and have no effect; set those of its \
             containers",
        );
        let Some(context) = spec.security_context.as_ref() else { return };
        self.refused(
            context.supplemental_groups_policy.as_deref() == Some("Strict"),
            "spec.securityContext.supplementalGroupsPolicy",
            "Strict is not supported by this agent; the pod is not started, because its processes would have the groups \
             of the image too; use Merge",
        );
        self.ignored(
            context.se_linux_change_policy.is_some(),
            "spec.securityContext.seLinuxChangePolicy",
            "volumes are labelled by the container runtime, whatever this policy says; remove the field",
        );
        self.ignored(context.windows_options.is_some(), "spec.securityContext.windowsOptions", ON_LINUX);
    }

    fn container(&mut self, path: &str, container: &Container) {
        let lifecycle = container.lifecycle.as_ref();
        self.ignored(
            lifecycle.is_some_and(|l| l.stop_signal.is_some()),
            format!("{path}.lifecycle.stopSignal"),
            "the stop signal of the image is used; set STOPSIGNAL in the image, or send the signal in a preStop hook",
        );
        self.refused(
            container.volume_devices.as_ref().is_some_and(|list| !list.is_empty()),
            format!("{path}.volumeDevices"),
            "block volumes are not supported by this agent; the pod is not started without its devices; use a volume with \
             a file system",
        );
        let windows = container.security_context.as_ref().is_some_and(|context| context.windows_options.is_some());
        self.ignored(windows, format!("{path}.securityContext.windowsOptions"), ON_LINUX);
    }
}

const ON_LINUX: &str = "this agent runs on Linux, where these options have no effect; remove them";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_field_is_found_with_a_cure() {
        let container = |field: serde_json::Value| {
            let mut container = json!({"name": "c"});
            container.as_object_mut().unwrap().extend(field.as_object().unwrap().clone());
            json!({"containers": [container]})
        };
        for (spec, field, blocks) in [
            (json!({"hostUsers": false}), "spec.hostUsers", true),
            (json!({"resourceClaims": [{"name": "gpu"}]}), "spec.resourceClaims", true),
            (json!({"resources": {"limits": {"cpu": "1"}}}), "spec.resources", false),
            (
                json!({"securityContext": {"supplementalGroupsPolicy": "Strict"}}),
                "spec.securityContext.supplementalGroupsPolicy",
                true,
            ),
            (
                json!({"securityContext": {"seLinuxChangePolicy": "Recursive"}}),
                "spec.securityContext.seLinuxChangePolicy",
                false,
            ),
            (json!({"securityContext": {"windowsOptions": {}}}), "spec.securityContext.windowsOptions", false),
            (
                container(json!({"lifecycle": {"stopSignal": "SIGINT"}})),
                "spec.containers[c].lifecycle.stopSignal",
                false,
            ),
            (
                container(json!({"volumeDevices": [{"name": "d", "devicePath": "/dev/x"}]})),
                "spec.containers[c].volumeDevices",
                true,
            ),
            (
                container(json!({"securityContext": {"windowsOptions": {}}})),
                "spec.containers[c].securityContext.windowsOptions",
                false,
            ),
        ] {
            let mut all = json!({"containers": []});
            all.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
            let found = unsupported(&serde_json::from_value(json!({"spec": all})).unwrap());
            let [only] = &found[..] else { panic!("{field}: {found:?}") };
            assert_eq!((only.field.as_str(), only.blocks), (field, blocks));
            assert!(only.reason.contains(';') || only.reason.contains(','), "no cure: {}", only.reason);
        }
        let plain = json!({"hostUsers": true, "containers": [{"name": "c", "lifecycle": {"preStop": {"sleep": {"seconds": 1}}}}],
            "ephemeralContainers": [{"name": "e"}], "securityContext": {"supplementalGroupsPolicy": "Merge"}});
        assert_eq!(unsupported(&serde_json::from_value(json!({"spec": plain})).unwrap()), []);
    }
}
