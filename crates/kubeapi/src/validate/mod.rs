//! What the API server refuses, with the fields and messages of Kubernetes.

mod batch;
mod pod;
mod running;
#[cfg(test)]
mod tests;
mod volumes;
mod workload;

use serde_json::Value;

use crate::api::ResourceRef;
use crate::catalog::Resource;
use crate::error::Cause;
use crate::{meta, webhook};

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
/// Annotations of one object together.
const MAX_ANNOTATIONS: usize = 256 << 10;

/// Checks an object that is to be created, or to replace `current`.
pub(crate) fn object(what: &ResourceRef, object: &Value, current: Option<&Value>, causes: &mut Vec<Cause>) {
    let resource = what.resource.as_ref();
    metadata(resource, &object["metadata"], causes);
    let spec = &object["spec"];
    match (resource.group.as_str(), resource.plural.as_str()) {
        ("", "pods") => match (what.subresource.as_str(), current) {
            (_, None) => pod::create(spec, causes),
            ("ephemeralcontainers", Some(current)) => running::ephemeral(object, current, causes),
            ("resize", Some(current)) => running::resize(object, current, causes),
            (_, Some(current)) => pod::update(spec, &current["spec"], causes),
        },
        ("apps", "deployments" | "replicasets" | "daemonsets") => workload::any(resource, spec, &[], current, causes),
        ("apps", "statefulsets") => workload::stateful_set(resource, spec, current, causes),
        ("batch", "jobs") => batch::job(spec, current, causes),
        ("", "persistentvolumeclaims") => volumes::claim(spec, current, causes),
        ("", "persistentvolumes") => volumes::volume(spec, current, causes),
        ("storage.k8s.io", "storageclasses") => volumes::class(object, current, causes),
        ("node.k8s.io", "runtimeclasses") => runtime_class(object, current, causes),
        ("", "configmaps" | "secrets") => config(resource, object, current, causes),
        ("", "services") => service(spec, causes),
        ("apiextensions.k8s.io", _) => crd(object, causes),
        ("coordination.k8s.io", "leases") => {
            let seconds = &spec["leaseDurationSeconds"];
            if !seconds.is_null() && seconds.as_i64().is_none_or(|s| s <= 0) {
                causes.push(Cause::invalid("spec.leaseDurationSeconds", seconds, "must be greater than 0"));
            }
        }
        ("rbac.authorization.k8s.io", "rolebindings" | "clusterrolebindings") => {
            if object["roleRef"]["name"].as_str().unwrap_or_default().is_empty() {
                causes.push(Cause::required("roleRef.name", ""));
            }
            if let Some(current) = current.filter(|current| current["roleRef"] != object["roleRef"]) {
                let _ = current;
                causes.push(Cause::invalid("roleRef", &object["roleRef"], "cannot change roleRef"));
            }
        }
        _ => {}
    }
}

/// A number that must be zero or more.
pub(crate) fn non_negative(field: &str, value: &Value, causes: &mut Vec<Cause>) {
    if value.is_null() {
        return;
    }
    if value.as_i64().is_none_or(|n| !(0..=i64::from(i32::MAX)).contains(&n)) {
        causes.push(Cause::invalid(field, value, "must be greater than or equal to 0"));
    }
}

fn metadata(resource: &Resource, metadata: &Value, causes: &mut Vec<Cause>) {
    let name = &metadata["name"];
    match name.as_str().unwrap_or_default() {
        "" => causes.push(Cause::required("metadata.name", "name or generateName is required")),
        text => {
            let free = resource.group == "rbac.authorization.k8s.io";
            let fits = if free {
                !text.contains(['/', '%']) && text != "." && text != ".."
            } else if resource.plural == "namespaces" || resource.plural == "services" {
                is_label(text)
            } else {
                is_subdomain(text)
            };
            if !fits {
                let why =
                    if resource.plural == "namespaces" || resource.plural == "services" { LABEL } else { SUBDOMAIN };
                causes.push(Cause::invalid("metadata.name", name, why));
            }
        }
    }
    labels(&metadata["labels"], "metadata.labels", causes);
    let annotations = metadata["annotations"].as_object().into_iter().flatten();
    let mut size = 0;
    for (key, value) in annotations {
        qualified_name(key, "metadata.annotations", causes);
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > MAX_ANNOTATIONS {
        let message = format!("Too long: may not be more than {MAX_ANNOTATIONS} bytes");
        causes.push(Cause { field: "metadata.annotations".into(), reason: "FieldValueTooLong", message });
    }
    for (at, owner) in metadata["ownerReferences"].as_array().into_iter().flatten().enumerate() {
        for field in ["apiVersion", "kind", "name", "uid"] {
            if owner[field].as_str().unwrap_or_default().is_empty() {
                causes.push(Cause::required(format!("metadata.ownerReferences[{at}].{field}"), ""));
            }
        }
    }
}

pub(super) fn labels(labels: &Value, field: &str, causes: &mut Vec<Cause>) {
    if !labels.is_null() && !labels.is_object() {
        causes.push(Cause::invalid(field, labels, "must be a map of strings"));
    }
    for (key, value) in labels.as_object().into_iter().flatten() {
        qualified_name(key, field, causes);
        match value.as_str() {
            Some(text) if text.len() <= 63 && (text.is_empty() || is_word(text)) => {}
            _ => causes.push(Cause::invalid(field, value, LABEL_VALUE)),
        }
    }
}

fn qualified_name(key: &str, field: &str, causes: &mut Vec<Cause>) {
    let (prefix, name) = key.rsplit_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    if name.is_empty() || name.len() > 63 || !is_word(name) || prefix.is_some_and(|prefix| !is_subdomain(prefix)) {
        causes.push(Cause::invalid(field, &Value::from(key), QUALIFIED));
    }
}

fn runtime_class(object: &Value, current: Option<&Value>, causes: &mut Vec<Cause>) {
    match object["handler"].as_str().unwrap_or_default() {
        "" => causes.push(Cause::required("handler", "")),
        handler if !is_label(handler) => causes.push(Cause::invalid("handler", &object["handler"], LABEL)),
        _ => {}
    }
    for (name, amount) in object["overhead"]["podFixed"].as_object().into_iter().flatten() {
        pod::quantity(&format!("overhead.podFixed[{name}]"), amount, causes);
    }
    if current.is_some_and(|current| current["handler"] != object["handler"]) {
        causes.push(Cause::invalid("handler", &object["handler"], "field is immutable"));
    }
}

fn config(resource: &Resource, object: &Value, current: Option<&Value>, causes: &mut Vec<Cause>) {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    let encoded: &[&str] = if resource.plural == "secrets" { &["data"] } else { &["binaryData"] };
    let mut size = 0;
    for field in ["data", "binaryData"] {
        for (key, value) in object[field].as_object().into_iter().flatten() {
            let path = format!("{field}[{key}]");
            let fits = !key.is_empty()
                && key.len() <= 253
                && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
            if !fits {
                causes.push(Cause::invalid(
                    path.clone(),
                    &Value::from(key.as_str()),
                    "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
                ));
            }
            let Some(text) = value.as_str() else {
                causes.push(Cause::invalid(path, value, "must be a string"));
                continue;
            };
            size += text.len();
            if encoded.contains(&field) && STANDARD.decode(text).is_err() {
                causes.push(Cause::invalid(path, &Value::from("<value>"), "illegal base64 data"));
            }
        }
    }
    if size > (1 << 20) * 4 / 3 {
        let message = format!("Too long: may not be more than {} bytes", 1 << 20);
        causes.push(Cause { field: "data".into(), reason: "FieldValueTooLong", message });
    }
    if let Some(current) = current.filter(|current| current["immutable"] == true) {
        for field in ["data", "binaryData", "immutable"] {
            if current[field] != object[field] {
                causes.push(Cause::forbidden(field, "field is immutable when `immutable` is set"));
            }
        }
    }
}

fn service(spec: &Value, causes: &mut Vec<Cause>) {
    let headless = spec["clusterIP"] == "None";
    let ports = spec["ports"].as_array();
    if ports.is_none_or(Vec::is_empty) && !headless && spec["type"] != "ExternalName" {
        causes.push(Cause::required("spec.ports", ""));
    }
    let several = ports.is_some_and(|ports| ports.len() > 1);
    for (at, port) in ports.into_iter().flatten().enumerate() {
        pod::port_number(&format!("spec.ports[{at}].port"), &port["port"], causes);
        if several && port["name"].as_str().unwrap_or_default().is_empty() {
            causes.push(Cause::required(format!("spec.ports[{at}].name"), ""));
        }
    }
}

fn crd(object: &Value, causes: &mut Vec<Cause>) {
    let spec = &object["spec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (group, plural) = (text(&spec["group"]), text(&spec["names"]["plural"]));
    for (field, value) in [
        ("spec.group", &spec["group"]),
        ("spec.names.plural", &spec["names"]["plural"]),
        ("spec.names.kind", &spec["names"]["kind"]),
        ("spec.scope", &spec["scope"]),
    ] {
        if text(value).is_empty() {
            causes.push(Cause::required(field, ""));
        }
    }
    if meta::name(object) != format!("{plural}.{group}") {
        let why = "must be spec.names.plural+\".\"+spec.group";
        causes.push(Cause::invalid("metadata.name", &object["metadata"]["name"], why));
    }
    let versions = spec["versions"].as_array();
    let stored = versions.into_iter().flatten().filter(|version| version["storage"] == true).count();
    if stored != 1 {
        let why = "must have exactly one version marked as storage version";
        causes.push(Cause::invalid("spec.versions", &spec["versions"], why));
    }
    webhook::validate(&spec["conversion"], causes);
    for (at, version) in versions.into_iter().flatten().enumerate() {
        if !version["schema"]["openAPIV3Schema"].is_object() {
            causes.push(Cause::required(format!("spec.versions[{at}].schema.openAPIV3Schema"), "schemas are required"));
        }
    }
}

pub(super) fn is_label(text: &str) -> bool {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    !text.is_empty()
        && text.len() <= 63
        && text.bytes().all(|b| fits(b) || b == b'-')
        && text.bytes().next().is_some_and(fits)
        && text.bytes().last().is_some_and(fits)
}

pub(super) fn is_subdomain(text: &str) -> bool {
    text.len() <= 253
        && !text.is_empty()
        && text.split('.').all(|part| {
            let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
            !part.is_empty()
                && part.bytes().all(|b| fits(b) || b == b'-')
                && part.bytes().next().is_some_and(fits)
                && part.bytes().last().is_some_and(fits)
        })
}

fn is_word(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && text.bytes().last().is_some_and(|b| b.is_ascii_alphanumeric())
}
