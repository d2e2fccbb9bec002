//! Admission by RuntimeClass: the pod gets the overhead of its runtime and goes to nodes that have it.

use serde_json::{Value, json};

use crate::api::Api;
use crate::{ApiError, meta};

/// Completes a new pod by its RuntimeClass.
///
/// # Errors
/// There is no such class, or the pod says something else than its class.
pub(super) fn admit(api: &Api, pod: &mut Value) -> Result<(), ApiError> {
    let reject = |why: &str| Err(ApiError::forbidden("pods", "", meta::name(pod), &format!("pod rejected: {why}")));
    let own = &pod["spec"]["overhead"];
    let has_own = own.as_object().is_some_and(|overhead| !overhead.is_empty());
    let Some(name) = pod["spec"]["runtimeClassName"].as_str() else {
        if has_own {
            return reject("Pod Overhead set without corresponding RuntimeClass defined Overhead");
        }
        return Ok(());
    };
    let class = match api.get(&api.reference("node.k8s.io", "runtimeclasses", "", name)?) {
        Err(error) if error.is_not_found() => return reject(&format!("RuntimeClass \"{name}\" not found")),
        class => class?,
    };
    let overhead = &class["overhead"]["podFixed"];
    if has_own && own != overhead {
        let why = if overhead.is_null() {
            "Pod Overhead set without corresponding RuntimeClass defined Overhead"
        } else {
            "Pod's Overhead doesn't match RuntimeClass's defined Overhead"
        };
        return reject(why);
    }
    for (key, value) in class["scheduling"]["nodeSelector"].as_object().into_iter().flatten() {
        let wanted = &pod["spec"]["nodeSelector"][key];
        if !wanted.is_null() && wanted != value {
            return reject(&format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                value.as_str().unwrap_or_default(),
                wanted.as_str().unwrap_or_default()
            ));
        }
    }
    complete(&mut pod["spec"], &class);
    Ok(())
}

fn complete(spec: &mut Value, class: &Value) {
    let overhead = &class["overhead"]["podFixed"];
    if !overhead.is_null() {
        spec["overhead"] = overhead.clone();
    }
    for (key, value) in class["scheduling"]["nodeSelector"].as_object().into_iter().flatten() {
        spec["nodeSelector"][key] = value.clone();
    }
    for toleration in class["scheduling"]["tolerations"].as_array().into_iter().flatten() {
        if !spec["tolerations"].is_array() {
            spec["tolerations"] = json!([]);
        }
        if let Some(list) = spec["tolerations"].as_array_mut()
            && !list.contains(toleration)
        {
            list.push(toleration.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_class_completes_the_pod() {
        let class = json!({"handler": "kata", "overhead": {"podFixed": {"memory": "120Mi"}},
            "scheduling": {"nodeSelector": {"kata": "yes"}, "tolerations": [{"key": "kata", "operator": "Exists"}]}});
        let mut spec = json!({"runtimeClassName": "kata", "tolerations": [{"key": "kata", "operator": "Exists"}]});
        complete(&mut spec, &class);
        assert_eq!(
            spec,
            json!({"runtimeClassName": "kata", "overhead": {"memory": "120Mi"}, "nodeSelector": {"kata": "yes"},
                "tolerations": [{"key": "kata", "operator": "Exists"}]})
        );
        let mut plain = json!({});
        complete(&mut plain, &json!({"handler": "runc"}));
        assert_eq!(plain, json!({}));
    }
}
