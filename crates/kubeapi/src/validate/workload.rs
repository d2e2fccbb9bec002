//! What is refused of the workloads of the group `apps`.

use serde_json::Value;

use super::{labels, non_negative, pod};
use crate::catalog::Resource;
use crate::error::Cause;

/// Any workload: a number of pods of one template. `claims` are volumes that its pods get besides those of the template.
pub(super) fn any(
    resource: &Resource,
    spec: &Value,
    claims: &[&str],
    current: Option<&Value>,
    causes: &mut Vec<Cause>,
) {
    non_negative("spec.replicas", &spec["replicas"], causes);
    non_negative("spec.minReadySeconds", &spec["minReadySeconds"], causes);
    non_negative("spec.revisionHistoryLimit", &spec["revisionHistoryLimit"], causes);
    let selector = &spec["selector"];
    let empty = selector["matchLabels"].as_object().is_none_or(|labels| labels.is_empty())
        && selector["matchExpressions"].as_array().is_none_or(Vec::is_empty);
    if selector.is_null() {
        causes.push(Cause::required("spec.selector", ""));
    } else if empty {
        let why = format!("empty selector is invalid for {}", resource.kind.to_lowercase());
        causes.push(Cause::invalid("spec.selector", selector, &why));
    }
    let template_labels = &spec["template"]["metadata"]["labels"];
    let fits =
        selector["matchLabels"].as_object().into_iter().flatten().all(|(key, value)| template_labels[key] == *value);
    if !selector.is_null() && !empty && !fits {
        let why = "`selector` does not match template `labels`";
        causes.push(Cause::invalid("spec.template.metadata.labels", template_labels, why));
    }
    if current.is_some_and(|current| current["spec"]["selector"] != *selector) {
        causes.push(Cause::invalid("spec.selector", selector, "field is immutable"));
    }
    self::labels(template_labels, "spec.template.metadata.labels", causes);
    let template = &spec["template"]["spec"];
    pod::spec(template, claims, "spec.template.spec", causes);
    if template["restartPolicy"].as_str().is_some_and(|policy| policy != "Always") {
        causes.push(Cause::not_supported("spec.template.spec.restartPolicy", &template["restartPolicy"], &["Always"]));
    }
    if spec["strategy"]["type"] == "Recreate" && !spec["strategy"]["rollingUpdate"].is_null() {
        let why = "may not be specified when strategy `type` is 'Recreate'";
        causes.push(Cause::forbidden("spec.strategy.rollingUpdate", why));
    }
}

/// A StatefulSet.
pub(super) fn stateful_set(resource: &Resource, spec: &Value, current: Option<&Value>, causes: &mut Vec<Cause>) {
    let templates = spec["volumeClaimTemplates"].as_array().map(Vec::as_slice).unwrap_or_default();
    let claims: Vec<&str> = templates.iter().filter_map(|claim| claim["metadata"]["name"].as_str()).collect();
    any(resource, spec, &claims, current, causes);
    let policies = ["OrderedReady", "Parallel"];
    if !policies.iter().any(|policy| spec["podManagementPolicy"] == *policy) {
        causes.push(Cause::not_supported("spec.podManagementPolicy", &spec["podManagementPolicy"], &policies));
    }
    let strategies = ["RollingUpdate", "OnDelete"];
    if !strategies.iter().any(|kind| spec["updateStrategy"]["type"] == *kind) {
        causes.push(Cause::not_supported("spec.updateStrategy", &spec["updateStrategy"]["type"], &strategies));
    }
    let partition = &spec["updateStrategy"]["rollingUpdate"]["partition"];
    non_negative("spec.updateStrategy.rollingUpdate.partition", partition, causes);
    non_negative("spec.ordinals.start", &spec["ordinals"]["start"], causes);
    for when in ["whenDeleted", "whenScaled"] {
        let retention = &spec["persistentVolumeClaimRetentionPolicy"];
        pod::one_of(retention, when, &["Retain", "Delete"], "spec.persistentVolumeClaimRetentionPolicy", causes);
    }
    let fixed = ["serviceName", "podManagementPolicy", "volumeClaimTemplates"];
    if let Some(current) = current
        && fixed.iter().any(|field| current["spec"][field] != spec[field])
    {
        let why = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
        causes.push(Cause::forbidden("spec", why));
    }
}
