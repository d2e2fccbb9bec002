//! Defaults and admission of persistent volumes and of claims on them.

use serde_json::{Value, json};

use super::set;
use crate::api::{Api, ListOptions};
use crate::{ApiError, meta};

/// Marks the StorageClass of claims that name none.
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
/// Keeps a claim while a pod uses it.
const CLAIM_PROTECTION: &str = "kubernetes.io/pvc-protection";
/// Keeps a volume while a claim is bound to it.
const VOLUME_PROTECTION: &str = "kubernetes.io/pv-protection";

/// Defaults of the `spec` of a volume.
pub(super) fn volume(spec: &mut Value) {
    set(spec, "volumeMode", json!("Filesystem"));
    set(spec, "persistentVolumeReclaimPolicy", json!("Retain"));
    if spec["hostPath"].is_object() {
        set(&mut spec["hostPath"], "type", json!(""));
    }
}

/// Completes a new volume.
pub(super) fn admit_volume(object: &mut Value) {
    object["status"] = json!({"phase": "Pending"});
    add_finalizer(object, VOLUME_PROTECTION);
}

/// Completes a new claim: the default StorageClass, protection, phase.
///
/// # Errors
/// The StorageClasses cannot be read.
pub(super) fn admit_claim(api: &Api, object: &mut Value) -> Result<(), ApiError> {
    object["status"] = json!({"phase": "Pending"});
    add_finalizer(object, CLAIM_PROTECTION);
    if object["spec"]["storageClassName"].is_null() {
        let classes = api.list(&api.reference("storage.k8s.io", "storageclasses", "", "")?, &ListOptions::default())?;
        let default = |class: &&Value| class["metadata"]["annotations"][DEFAULT_CLASS] == "true";
        // Of several defaults the newest counts.
        let newest = classes
            .items
            .iter()
            .filter(default)
            .max_by_key(|class| class["metadata"]["creationTimestamp"].as_str().unwrap_or_default().to_owned());
        if let Some(class) = newest {
            object["spec"]["storageClassName"] = json!(meta::name(class));
        }
    }
    Ok(())
}

fn add_finalizer(object: &mut Value, name: &str) {
    meta::metadata(object);
    let list = &mut object["metadata"]["finalizers"];
    if !list.is_array() {
        *list = json!([]);
    }
    if let Some(list) = list.as_array_mut()
        && !list.iter().any(|finalizer| finalizer == name)
    {
        list.push(json!(name));
    }
}
