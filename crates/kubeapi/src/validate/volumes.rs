//! What is refused of persistent volumes, of claims on them, and of their classes.

use serde_json::Value;

use super::pod::{one_of, quantity};
use crate::error::Cause;

const MODES: [&str; 4] = ["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"];
/// Fields of a volume's spec that say nothing about where its data lies.
const NO_SOURCE: [&str; 9] = [
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
];

/// A claim.
pub(super) fn claim(spec: &Value, current: Option<&Value>, causes: &mut Vec<Cause>) {
    modes(spec, causes);
    amount("spec.resources[storage]", &spec["resources"]["requests"]["storage"], causes);
    let Some(current) = current.map(|current| &current["spec"]) else { return };
    // A claim without a class may get the default one later, a claim without a volume its volume.
    let set_once = ["volumeName", "storageClassName"];
    let fixed = ["accessModes", "selector", "volumeMode", "dataSource", "dataSourceRef"];
    let changed = |field: &str| current[field] != spec[field];
    let changed_again = |field: &str| !current[field].is_null() && changed(field);
    if set_once.into_iter().any(changed_again) || fixed.into_iter().any(changed) {
        let why =
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
        causes.push(Cause::forbidden("spec", why));
    }
    if current["resources"] != spec["resources"] {
        let why = "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize";
        causes.push(Cause::forbidden("spec.resources", why));
    }
}

/// A volume.
pub(super) fn volume(spec: &Value, current: Option<&Value>, causes: &mut Vec<Cause>) {
    modes(spec, causes);
    amount("spec.capacity", &spec["capacity"]["storage"], causes);
    one_of(spec, "persistentVolumeReclaimPolicy", &["Retain", "Delete", "Recycle"], "spec", causes);
    match sources(spec).as_slice() {
        [] => causes.push(Cause::required("spec", "must specify a volume type")),
        [_] => {}
        [_, more @ ..] => {
            for source in more {
                causes.push(Cause::forbidden(format!("spec.{source}"), "may not specify more than 1 volume type"));
            }
        }
    }
    if spec["local"].is_object() {
        if spec["local"]["path"].as_str().unwrap_or_default().is_empty() {
            causes.push(Cause::required("spec.local.path", ""));
        }
        if spec["nodeAffinity"]["required"].is_null() {
            causes.push(Cause::required("spec.nodeAffinity", "Local volume requires node affinity"));
        }
    }
    let Some(current) = current.map(|current| &current["spec"]) else { return };
    if sources(current) != sources(spec) || sources(current).iter().any(|source| current[source] != spec[source]) {
        let why = "spec.persistentvolumesource is immutable after creation";
        causes.push(Cause::forbidden("spec.persistentvolumesource", why));
    }
    if current["volumeMode"] != spec["volumeMode"] {
        causes.push(Cause::invalid("spec.volumeMode", &spec["volumeMode"], "field is immutable"));
    }
    if !current["nodeAffinity"].is_null() && current["nodeAffinity"] != spec["nodeAffinity"] {
        causes.push(Cause::invalid("spec.nodeAffinity", &spec["nodeAffinity"], "field is immutable"));
    }
}

/// A StorageClass.
pub(super) fn class(class: &Value, current: Option<&Value>, causes: &mut Vec<Cause>) {
    if class["provisioner"].as_str().unwrap_or_default().is_empty() {
        causes.push(Cause::required("provisioner", ""));
    }
    for (field, allowed) in
        [("reclaimPolicy", ["Delete", "Retain"]), ("volumeBindingMode", ["Immediate", "WaitForFirstConsumer"])]
    {
        if !class[field].as_str().is_some_and(|value| allowed.contains(&value)) {
            causes.push(Cause::not_supported(field, &class[field], &allowed));
        }
    }
    let Some(current) = current else { return };
    for field in ["parameters", "provisioner", "reclaimPolicy", "volumeBindingMode"] {
        if current[field] != class[field] {
            causes.push(Cause::forbidden(field, &format!("updates to {field} are forbidden.")));
        }
    }
}

/// The fields that say where the data of a volume lies.
fn sources(spec: &Value) -> Vec<&String> {
    let fields = spec.as_object().into_iter().flatten();
    fields
        .filter(|(name, value)| value.is_object() && !NO_SOURCE.contains(&name.as_str()))
        .map(|(name, _)| name)
        .collect()
}

fn modes(spec: &Value, causes: &mut Vec<Cause>) {
    let modes = spec["accessModes"].as_array();
    if modes.is_none_or(Vec::is_empty) {
        causes.push(Cause::required("spec.accessModes", "at least 1 access mode is required"));
    }
    for mode in modes.into_iter().flatten() {
        if !MODES.iter().any(|known| mode == known) {
            causes.push(Cause::not_supported("spec.accessModes", mode, &MODES));
        }
    }
    one_of(spec, "volumeMode", &["Filesystem", "Block"], "spec", causes);
}

fn amount(field: &str, amount: &Value, causes: &mut Vec<Cause>) {
    if amount.is_null() {
        causes.push(Cause::required(field, ""));
    } else {
        quantity(field, amount, causes);
    }
}
