//! What several controllers ask of a pod, and how a pod is made from a template.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::object::{Object, condition, controller_reference};

/// The label that tells the pods of one revision of a Deployment apart.
pub const TEMPLATE_HASH: &str = "pod-template-hash";

/// It ended for good, well or badly.
pub fn is_finished(pod: &Object) -> bool {
    matches!(pod.text("/status/phase"), "Succeeded" | "Failed")
}

/// It runs or will run, and nobody asked for its deletion.
pub fn is_active(pod: &Object) -> bool {
    !is_finished(pod) && !pod.is_deleting()
}

/// Its `Ready` condition is true.
pub fn is_ready(pod: &Object) -> bool {
    pod.condition("Ready").is_some_and(|c| c["status"] == "True")
}

/// Since when it is ready; `None` if it is not.
pub fn ready_since(pod: &Object) -> Option<Timestamp> {
    let ready = pod.condition("Ready").filter(|c| c["status"] == "True")?;
    ready["lastTransitionTime"].as_str()?.parse().ok()
}

/// Ready for at least `min_ready`. The other case says how long to wait, if waiting can help.
pub fn is_available(pod: &Object, min_ready: Duration, now: Timestamp) -> Result<(), Option<Duration>> {
    if !is_ready(pod) {
        return Err(None);
    }
    if min_ready.is_zero() {
        return Ok(());
    }
    let since = ready_since(pod).ok_or(None)?;
    let past = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    if past >= min_ready { Ok(()) } else { Err(Some(min_ready - past)) }
}

/// The sum of its containers' restarts.
pub fn restarts(pod: &Object) -> i64 {
    pod.list("/status/containerStatuses").iter().filter_map(|c| c["restartCount"].as_i64()).max().unwrap_or(0)
}

/// A pod of this template, managed by `owner`. The API server completes the generated name.
pub fn from_template(owner: &Object, api_version: &str, kind: &str, template: &Value) -> Value {
    let mut metadata = json!({
        "generateName": format!("{}-", owner.name()),
        "namespace": owner.namespace(),
        "ownerReferences": [controller_reference(owner, api_version, kind)],
    });
    for field in ["labels", "annotations", "finalizers"] {
        let value = &template["metadata"][field];
        if !value.is_null() {
            metadata[field] = value.clone();
        }
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
}

/// Sets a condition in a list of pod- or workload-style conditions. The transition time moves only with the status.
/// Returns whether anything changed.
pub fn set_condition(
    conditions: &mut Vec<Value>,
    kind: &str,
    status: &str,
    reason: &str,
    message: &str,
    now: &str,
) -> bool {
    let old = condition(conditions, kind);
    let since = match old {
        Some(c) if c["status"] == status => c["lastTransitionTime"].clone(),
        _ => json!(now),
    };
    let new =
        json!({"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": since});
    if old.is_some_and(|c| c["status"] == status && c["reason"] == reason && c["message"] == message) {
        return false;
    }
    match conditions.iter_mut().find(|c| c["type"] == kind) {
        Some(place) => *place = new,
        None => conditions.push(new),
    }
    true
}
