//! What the API server fills in for users: field defaults and the admission steps that every cluster has.

mod batch;
mod pod;
mod runtimeclass;
mod volumes;

use serde_json::{Value, json};

use crate::api::{Api, User};
use crate::catalog::Resource;
use crate::{ApiError, meta};

pub(crate) use pod::qos as pod_qos;
pub use pod::spec as pod_spec;

/// Completes an object that is to be created.
///
/// # Errors
/// Admission refuses, for example because a ServiceAccount is missing.
pub(crate) fn for_create(api: &Api, user: &User, resource: &Resource, object: &mut Value) -> Result<(), ApiError> {
    kind(resource, object);
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "pods") => {
            pod::admit(api, object)?;
            object["status"] = json!({"phase": "Pending", "qosClass": pod::qos(&object["spec"])});
        }
        ("", "namespaces") => {
            let name = meta::name(object).to_owned();
            set(meta_labels(object), "kubernetes.io/metadata.name", json!(name));
            set(&mut object["spec"], "finalizers", json!(["kubernetes"]));
            object["status"] = json!({"phase": "Active"});
        }
        ("", "persistentvolumeclaims") => volumes::admit_claim(api, object)?,
        ("", "persistentvolumes") => volumes::admit_volume(object),
        ("batch", "jobs") => batch::admit(object),
        ("certificates.k8s.io", _) => {
            object["spec"]["username"] = json!(user.name);
            object["spec"]["groups"] = json!(user.groups);
            if !user.uid.is_empty() {
                object["spec"]["uid"] = json!(user.uid);
            }
        }
        ("apiextensions.k8s.io", _) => established(object),
        _ => {}
    }
    Ok(())
}

/// Completes an object that is to be changed.
pub(crate) fn for_update(resource: &Resource, current: &Value, object: &mut Value) {
    kind(resource, object);
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("apiextensions.k8s.io", _) => established(object),
        ("", "services") => {
            for field in ["clusterIP", "clusterIPs"] {
                if object["spec"][field].is_null() && !current["spec"][field].is_null() {
                    object["spec"][field] = current["spec"][field].clone();
                }
            }
        }
        ("", "serviceaccounts") => {}
        _ => {}
    }
}

fn kind(resource: &Resource, object: &mut Value) {
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "pods") => pod::spec(&mut object["spec"]),
        ("apps", "deployments") => deployment(&mut object["spec"]),
        ("apps", "replicasets") => {
            set(&mut object["spec"], "replicas", json!(1));
            template(&mut object["spec"]);
        }
        ("apps", "daemonsets") => daemon_set(&mut object["spec"]),
        ("apps", "statefulsets") => stateful_set(&mut object["spec"]),
        ("batch", "jobs") => batch::job(&mut object["spec"]),
        ("", "services") => service(&mut object["spec"]),
        ("", "secrets") => secret(object),
        ("rbac.authorization.k8s.io", "rolebindings" | "clusterrolebindings") => binding(object),
        ("storage.k8s.io", "storageclasses") => {
            set(object, "reclaimPolicy", json!("Delete"));
            set(object, "volumeBindingMode", json!("Immediate"));
        }
        ("", "persistentvolumeclaims") => set(&mut object["spec"], "volumeMode", json!("Filesystem")),
        ("", "persistentvolumes") => volumes::volume(&mut object["spec"]),
        _ => {}
    }
}

fn deployment(spec: &mut Value) {
    set(spec, "replicas", json!(1));
    set(spec, "revisionHistoryLimit", json!(10));
    set(spec, "progressDeadlineSeconds", json!(600));
    set(&mut spec["strategy"], "type", json!("RollingUpdate"));
    if spec["strategy"]["type"] == "RollingUpdate" {
        let rolling = &mut spec["strategy"]["rollingUpdate"];
        set(rolling, "maxUnavailable", json!("25%"));
        set(rolling, "maxSurge", json!("25%"));
    }
    template(spec);
}

fn daemon_set(spec: &mut Value) {
    set(spec, "revisionHistoryLimit", json!(10));
    set(&mut spec["updateStrategy"], "type", json!("RollingUpdate"));
    if spec["updateStrategy"]["type"] == "RollingUpdate" {
        let rolling = &mut spec["updateStrategy"]["rollingUpdate"];
        set(rolling, "maxUnavailable", json!(1));
        set(rolling, "maxSurge", json!(0));
    }
    template(spec);
}

fn stateful_set(spec: &mut Value) {
    set(spec, "replicas", json!(1));
    set(spec, "revisionHistoryLimit", json!(10));
    set(spec, "podManagementPolicy", json!("OrderedReady"));
    set(&mut spec["updateStrategy"], "type", json!("RollingUpdate"));
    if spec["updateStrategy"]["type"] == "RollingUpdate" {
        set(&mut spec["updateStrategy"]["rollingUpdate"], "partition", json!(0));
    }
    let retention = &mut spec["persistentVolumeClaimRetentionPolicy"];
    set(retention, "whenDeleted", json!("Retain"));
    set(retention, "whenScaled", json!("Retain"));
    for claim in items_mut(spec, "volumeClaimTemplates") {
        set(claim, "apiVersion", json!("v1"));
        set(claim, "kind", json!("PersistentVolumeClaim"));
        set(&mut claim["spec"], "volumeMode", json!("Filesystem"));
        claim["status"] = json!({"phase": "Pending"});
    }
    template(spec);
}

fn template(spec: &mut Value) {
    if spec["template"].is_object() {
        if spec["template"]["metadata"].is_null() {
            spec["template"]["metadata"] = json!({});
        }
        spec["template"]["metadata"].as_object_mut().map(|fields| fields.remove("creationTimestamp"));
        pod::spec(&mut spec["template"]["spec"]);
    }
}

fn service(spec: &mut Value) {
    set(spec, "type", json!("ClusterIP"));
    set(spec, "sessionAffinity", json!("None"));
    set(spec, "internalTrafficPolicy", json!("Cluster"));
    set(spec, "ipFamilies", json!(["IPv4"]));
    set(spec, "ipFamilyPolicy", json!("SingleStack"));
    for port in items_mut(spec, "ports") {
        set(port, "protocol", json!("TCP"));
        let number = port["port"].clone();
        set(port, "targetPort", number);
    }
}

fn secret(object: &mut Value) {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    set(object, "type", json!("Opaque"));
    let texts = object.as_object_mut().and_then(|fields| fields.remove("stringData"));
    for (key, text) in texts.as_ref().and_then(Value::as_object).into_iter().flatten() {
        object["data"][key] = json!(STANDARD.encode(text.as_str().unwrap_or_default()));
    }
}

fn binding(object: &mut Value) {
    set(&mut object["roleRef"], "apiGroup", json!("rbac.authorization.k8s.io"));
    for subject in items_mut(object, "subjects") {
        if subject["kind"] != "ServiceAccount" {
            set(subject, "apiGroup", json!("rbac.authorization.k8s.io"));
        }
    }
}

/// A CRD is served as soon as it is stored.
fn established(object: &mut Value) {
    let kind = object["spec"]["names"]["kind"].as_str().unwrap_or_default().to_owned();
    let names = &mut object["spec"]["names"];
    set(names, "singular", json!(kind.to_lowercase()));
    set(names, "listKind", json!(format!("{kind}List")));
    set(&mut object["spec"]["conversion"], "strategy", json!("None"));
    let names = object["spec"]["names"].clone();
    let versions = object["spec"]["versions"].as_array().into_iter().flatten();
    let stored: Vec<Value> = versions.filter(|v| v["storage"] == true).map(|v| v["name"].clone()).collect();
    let now = meta::now();
    if object["status"]["conditions"].is_null() {
        let condition = |kind: &str, reason: &str, message: &str| json!({"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": now});
        object["status"]["conditions"] = json!([
            condition("NamesAccepted", "NoConflicts", "no conflicts found"),
            condition("Established", "InitialNamesAccepted", "the initial names have been accepted"),
        ]);
    }
    object["status"]["acceptedNames"] = names;
    object["status"]["storedVersions"] = json!(stored);
}

fn meta_labels(object: &mut Value) -> &mut Value {
    meta::metadata(object);
    &mut object["metadata"]["labels"]
}

/// The elements of a list, if there is one. (Indexing to change would leave a null where nothing is.)
pub(super) fn items_mut<'a>(parent: &'a mut Value, field: &str) -> impl Iterator<Item = &'a mut Value> {
    parent.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten()
}

/// Sets a field that is absent; an absent parent becomes an object.
pub(super) fn set(parent: &mut Value, field: &str, value: Value) {
    if parent.is_null() {
        *parent = json!({});
    }
    if let Some(fields) = parent.as_object_mut()
        && fields.get(field).is_none_or(Value::is_null)
    {
        fields.insert(field.to_owned(), value);
    }
}
