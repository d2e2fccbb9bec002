//! Defaults and admission of Jobs.

use serde_json::{Value, json};

use super::set;
use crate::meta;

/// The label with the Job's UID on its pods, and how it was called before Kubernetes 1.27.
const CONTROLLER_UID: [&str; 2] = ["batch.kubernetes.io/controller-uid", "controller-uid"];
/// The same for the Job's name.
const JOB_NAME: [&str; 2] = ["batch.kubernetes.io/job-name", "job-name"];

/// Defaults of `spec`.
pub(super) fn job(spec: &mut Value) {
    if spec["completions"].is_null() && spec["parallelism"].is_null() {
        set(spec, "completions", json!(1));
    }
    set(spec, "parallelism", json!(1));
    set(spec, "backoffLimit", json!(6));
    set(spec, "completionMode", json!("NonIndexed"));
    set(spec, "suspend", json!(false));
    set(spec, "podReplacementPolicy", json!("TerminatingOrFailed"));
    super::template(spec);
}

/// Gives a new Job the selector that finds its own pods alone, unless the user takes care of that.
pub(super) fn admit(object: &mut Value) {
    if object["spec"]["manualSelector"] == true {
        return;
    }
    let (uid, name) = (meta::uid(object).to_owned(), meta::name(object).to_owned());
    let labels = &mut object["spec"]["template"]["metadata"]["labels"];
    for (keys, value) in [(CONTROLLER_UID, &uid), (JOB_NAME, &name)] {
        for key in keys {
            labels[key] = json!(value);
        }
    }
    object["spec"]["selector"]["matchLabels"][CONTROLLER_UID[0]] = json!(uid);
}
