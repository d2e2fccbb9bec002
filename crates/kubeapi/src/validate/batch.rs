//! What is refused of a Job.

use serde_json::Value;

use super::{labels, non_negative, pod};
use crate::error::Cause;

/// Completions of an indexed Job; the list of completed indexes stays short enough.
const MAX_INDEXES: i64 = 100_000;
/// Parts of Jobs that the embedded Kubernetes has no controller for.
const UNSUPPORTED: [&str; 5] =
    ["podFailurePolicy", "successPolicy", "backoffLimitPerIndex", "maxFailedIndexes", "managedBy"];
/// What may change in the template of a suspended Job that has not run yet: where its pods go.
const DIRECTIVES: [&str; 4] = ["nodeSelector", "affinity", "tolerations", "schedulingGates"];

pub(super) fn job(spec: &Value, current: Option<&Value>, causes: &mut Vec<Cause>) {
    for field in ["parallelism", "completions", "backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished"] {
        non_negative(&format!("spec.{field}"), &spec[field], causes);
    }
    selector(spec, causes);
    let template = &spec["template"]["spec"];
    pod::spec(template, &[], "spec.template.spec", causes);
    let allowed = ["OnFailure", "Never"];
    let field = "spec.template.spec.restartPolicy";
    match template["restartPolicy"].as_str() {
        Some("OnFailure" | "Never") => {}
        Some("Always") => causes.push(Cause::required(field, "valid values: \"OnFailure\", \"Never\"")),
        _ => causes.push(Cause::not_supported(field, &template["restartPolicy"], &allowed)),
    }
    completion(spec, causes);
    for field in UNSUPPORTED {
        if !spec[field].is_null() {
            let why = "is not supported by the embedded Kubernetes; leave it out, or use a real cluster";
            causes.push(Cause::forbidden(format!("spec.{field}"), why));
        }
    }
    if let Some(current) = current {
        update(spec, current, causes);
    }
}

fn selector(spec: &Value, causes: &mut Vec<Cause>) {
    let template_labels = &spec["template"]["metadata"]["labels"];
    labels(template_labels, "spec.template.metadata.labels", causes);
    if spec["selector"].is_null() {
        causes.push(Cause::required("spec.selector", ""));
    }
    let mut wanted = spec["selector"]["matchLabels"].as_object().into_iter().flatten();
    if !wanted.all(|(key, value)| template_labels[key] == *value) {
        let why = "`selector` does not match template `labels`";
        causes.push(Cause::invalid("spec.template.metadata.labels", template_labels, why));
    }
}

fn completion(spec: &Value, causes: &mut Vec<Cause>) {
    let modes = ["NonIndexed", "Indexed"];
    match (spec["completionMode"].as_str(), spec["completions"].as_i64()) {
        (Some("Indexed"), None) => {
            causes.push(Cause::required("spec.completions", "when completion mode is Indexed"));
        }
        (Some("Indexed"), Some(count)) if count > MAX_INDEXES => {
            let why = format!("must be less than or equal to {MAX_INDEXES} when completion mode is Indexed");
            causes.push(Cause::invalid("spec.completions", &spec["completions"], &why));
        }
        (Some("Indexed" | "NonIndexed"), _) => {}
        _ => causes.push(Cause::not_supported("spec.completionMode", &spec["completionMode"], &modes)),
    }
    pod::one_of(spec, "podReplacementPolicy", &["TerminatingOrFailed", "Failed"], "spec", causes);
}

fn update(spec: &Value, current: &Value, causes: &mut Vec<Cause>) {
    let old = &current["spec"];
    let never_ran = old["suspend"] == true && current["status"]["startTime"].is_null();
    let mut template = spec["template"].clone();
    if never_ran {
        for field in DIRECTIVES {
            template["spec"][field] = old["template"]["spec"][field].clone();
        }
        template["metadata"] = old["template"]["metadata"].clone();
    }
    let without_null = |template: &Value| -> Value {
        let mut template = template.clone();
        if let Some(fields) = template["spec"].as_object_mut() {
            fields.retain(|_, value| !value.is_null());
        }
        template
    };
    if without_null(&template) != without_null(&old["template"]) {
        causes.push(Cause::invalid("spec.template", &spec["template"], "field is immutable"));
    }
    // The completions of an indexed Job may follow its parallelism.
    let elastic = spec["completionMode"] == "Indexed" && spec["completions"] == spec["parallelism"];
    if spec["completions"] != old["completions"] && !elastic {
        causes.push(Cause::invalid("spec.completions", &spec["completions"], "field is immutable"));
    }
    for field in ["selector", "completionMode"] {
        if spec[field] != old[field] {
            causes.push(Cause::invalid(format!("spec.{field}"), &spec[field], "field is immutable"));
        }
    }
}
