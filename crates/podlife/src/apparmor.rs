//! Which AppArmor profile a container asks for: by its own field, the annotation of older manifests, or the pod's field.

use k8s_openapi::api::core::v1::{AppArmorProfile, Container, Pod};

use crate::spec;

/// Prefix of the annotation; the container's name follows.
const ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";

/// A profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Profile {
    /// The runtime's own.
    RuntimeDefault,
    /// None.
    Unconfined,
    /// One that is loaded on the node, by its name.
    Localhost(String),
}

/// The profile of a container; `None` leaves it to the runtime.
pub fn profile(pod: &Pod, container: &Container) -> Option<Profile> {
    let own = container.security_context.as_ref().and_then(|context| context.app_armor_profile.as_ref());
    own.and_then(of_field).or_else(|| of_annotation(pod, &container.name)).or_else(|| {
        let context = pod.spec.as_ref()?.security_context.as_ref()?;
        of_field(context.app_armor_profile.as_ref()?)
    })
}

fn of_field(profile: &AppArmorProfile) -> Option<Profile> {
    match profile.type_.as_str() {
        "RuntimeDefault" => Some(Profile::RuntimeDefault),
        "Unconfined" => Some(Profile::Unconfined),
        "Localhost" => Some(Profile::Localhost(profile.localhost_profile.clone().unwrap_or_default())),
        _ => None,
    }
}

fn of_annotation(pod: &Pod, container: &str) -> Option<Profile> {
    match pod.metadata.annotations.as_ref()?.get(&format!("{ANNOTATION}{container}"))?.as_str() {
        "runtime/default" => Some(Profile::RuntimeDefault),
        "unconfined" => Some(Profile::Unconfined),
        text => text.strip_prefix("localhost/").map(|name| Profile::Localhost(name.to_owned())),
    }
}

/// Why a pod cannot run on a node without AppArmor: the message of a rejection for `AppArmor`.
pub fn rejection(pod: &Pod, node_has_apparmor: bool) -> Option<String> {
    let mut all = spec::containers(pod).iter().chain(spec::init_containers(pod));
    let wanted = all.any(|container| profile(pod, container).is_some_and(|wanted| wanted != Profile::Unconfined));
    (wanted && !node_has_apparmor).then(|| "Cannot enforce AppArmor: AppArmor is not enabled on the host".to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(field: Value, own: Value, annotation: Option<&str>) -> Pod {
        let mut pod = json!({"metadata": {}, "spec": {"securityContext": {"appArmorProfile": field},
            "containers": [{"name": "c", "securityContext": {"appArmorProfile": own}}]}});
        if let Some(text) = annotation {
            pod["metadata"]["annotations"] = json!({format!("{ANNOTATION}c"): text});
        }
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn the_nearest_wins() {
        let of = |kind: &str| json!({"type": kind, "localhostProfile": "p"});
        let local = Profile::Localhost("p".into());
        for (field, own, annotation, wanted) in [
            (Value::Null, Value::Null, None, None),
            (of("RuntimeDefault"), Value::Null, None, Some(Profile::RuntimeDefault)),
            (of("RuntimeDefault"), of("Localhost"), None, Some(local.clone())),
            (of("RuntimeDefault"), Value::Null, Some("unconfined"), Some(Profile::Unconfined)),
            (Value::Null, Value::Null, Some("localhost/p"), Some(local)),
            (Value::Null, Value::Null, Some("nonsense"), None),
            (Value::Null, of("Unconfined"), Some("runtime/default"), Some(Profile::Unconfined)),
        ] {
            let pod = pod(field, own, annotation);
            let found = profile(&pod, &spec::containers(&pod)[0]);
            let rejected = found.as_ref().is_some_and(|p| *p != Profile::Unconfined);
            assert_eq!(found, wanted);
            assert_eq!(rejection(&pod, false).is_some(), rejected);
            assert_eq!(rejection(&pod, true), None);
        }
    }
}
