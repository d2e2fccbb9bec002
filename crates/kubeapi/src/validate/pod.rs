//! Pods and the templates of pods.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::is_label;
use crate::error::Cause;
use crate::quantity;

/// Checks the spec of a pod that is to be created.
pub(super) fn create(spec: &Value, causes: &mut Vec<Cause>) {
    self::spec(spec, &[], "spec", causes);
    if spec["ephemeralContainers"].as_array().is_some_and(|list| !list.is_empty()) {
        causes.push(Cause::forbidden("spec.ephemeralContainers", "cannot be set on create"));
    }
}

/// Checks a pod spec, of a pod or of a template. `claims` are volumes that it will have besides its own.
pub(super) fn spec(spec: &Value, claims: &[&str], path: &str, causes: &mut Vec<Cause>) {
    if spec["containers"].as_array().is_none_or(Vec::is_empty) {
        causes.push(Cause::required(format!("{path}.containers"), ""));
    }
    one_of(spec, "restartPolicy", &["Always", "OnFailure", "Never"], path, causes);
    one_of(spec, "dnsPolicy", &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"], path, causes);
    super::non_negative(
        &format!("{path}.terminationGracePeriodSeconds"),
        &spec["terminationGracePeriodSeconds"],
        causes,
    );
    let mut volumes = names(spec, "volumes", path, causes);
    volumes.extend(claims.iter().map(|name| (*name).to_owned()));
    let mut seen = HashSet::new();
    for list in ["initContainers", "containers"] {
        for (at, container) in spec[list].as_array().into_iter().flatten().enumerate() {
            let path = format!("{path}.{list}[{at}]");
            self::container(container, &path, &volumes, causes);
            if let Some(name) = container["name"].as_str()
                && !seen.insert(name)
            {
                causes.push(Cause::duplicate(format!("{path}.name"), &container["name"]));
            }
        }
    }
}

/// Of a pod that exists, images, deadlines, tolerations and the node assignment may change, nothing else.
pub(super) fn update(new: &Value, old: &Value, causes: &mut Vec<Cause>) {
    let mut reset = new.clone();
    for list in ["containers", "initContainers"] {
        let images: Vec<Value> = old[list].as_array().into_iter().flatten().map(|c| c["image"].clone()).collect();
        let containers = reset.get_mut(list).and_then(Value::as_array_mut);
        for (container, image) in containers.into_iter().flatten().zip(images) {
            if container["image"].as_str().unwrap_or_default().is_empty() {
                continue;
            }
            container["image"] = image;
        }
    }
    for field in ["activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds", "schedulingGates"] {
        match (&old[field], reset.as_object_mut()) {
            (Value::Null, Some(fields)) => drop(fields.remove(field)),
            (value, Some(fields)) => drop(fields.insert(field.to_owned(), value.clone())),
            _ => {}
        }
    }
    if old["nodeName"].is_null() && !new["nodeName"].is_null() {
        reset.as_object_mut().map(|fields| fields.remove("nodeName"));
    }
    if reset != *old {
        let why = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
        causes.push(Cause::forbidden("spec", why));
    }
}

/// A port number.
pub(super) fn port_number(field: &str, value: &Value, causes: &mut Vec<Cause>) {
    if value.as_i64().is_none_or(|port| !(1..=65535).contains(&port)) {
        causes.push(Cause::invalid(field, value, "must be between 1 and 65535, inclusive"));
    }
}

/// Checks a container of any kind.
pub(super) fn container(container: &Value, path: &str, volumes: &HashSet<String>, causes: &mut Vec<Cause>) {
    match container["name"].as_str().unwrap_or_default() {
        "" => causes.push(Cause::required(format!("{path}.name"), "")),
        name if !is_label(name) => causes.push(Cause::invalid(format!("{path}.name"), &json!(name), super::LABEL)),
        _ => {}
    }
    let image = container["image"].as_str().unwrap_or_default();
    if image.is_empty() {
        causes.push(Cause::required(format!("{path}.image"), ""));
    } else if image.trim() != image {
        let why = "must not have leading or trailing whitespace";
        causes.push(Cause::invalid(format!("{path}.image"), &container["image"], why));
    }
    one_of(container, "imagePullPolicy", &["Always", "IfNotPresent", "Never"], path, causes);
    for (at, port) in container["ports"].as_array().into_iter().flatten().enumerate() {
        port_number(&format!("{path}.ports[{at}].containerPort"), &port["containerPort"], causes);
        if !port["hostPort"].is_null() && port["hostPort"] != 0 {
            port_number(&format!("{path}.ports[{at}].hostPort"), &port["hostPort"], causes);
        }
        one_of(port, "protocol", &["SCTP", "TCP", "UDP"], &format!("{path}.ports[{at}]"), causes);
    }
    for (at, env) in container["env"].as_array().into_iter().flatten().enumerate() {
        if env["name"].as_str().unwrap_or_default().is_empty() {
            causes.push(Cause::required(format!("{path}.env[{at}].name"), ""));
        }
        if !env["value"].as_str().unwrap_or_default().is_empty() && env["valueFrom"].is_object() {
            let why = "may not be specified when `value` is not empty";
            causes.push(Cause::invalid(format!("{path}.env[{at}].valueFrom"), &json!(""), why));
        }
    }
    for (at, mount) in container["volumeMounts"].as_array().into_iter().flatten().enumerate() {
        let name = mount["name"].as_str().unwrap_or_default();
        if !volumes.contains(name) {
            let message = format!("Not found: \"{name}\"");
            causes.push(Cause {
                field: format!("{path}.volumeMounts[{at}].name"),
                reason: "FieldValueNotFound",
                message,
            });
        }
        if mount["mountPath"].as_str().unwrap_or_default().is_empty() {
            causes.push(Cause::required(format!("{path}.volumeMounts[{at}].mountPath"), ""));
        }
    }
    resources(&container["resources"], path, causes);
}

fn resources(resources: &Value, path: &str, causes: &mut Vec<Cause>) {
    for kind in ["limits", "requests"] {
        for (name, amount) in resources[kind].as_object().into_iter().flatten() {
            quantity(&format!("{path}.resources.{kind}[{name}]"), amount, causes);
        }
    }
    for (name, request) in resources["requests"].as_object().into_iter().flatten() {
        let limit = &resources["limits"][name];
        if let (Some(wanted), Some(most)) = (quantity::milli(request), quantity::milli(limit))
            && wanted > most
        {
            let limit = limit.as_str().map_or_else(|| limit.to_string(), str::to_owned);
            let why = format!("must be less than or equal to {name} limit of {limit}");
            causes.push(Cause::invalid(format!("{path}.resources.requests"), request, &why));
        }
    }
}

/// An amount of a resource.
pub(super) fn quantity(field: &str, amount: &Value, causes: &mut Vec<Cause>) {
    const QUANTITY: &str =
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
    match quantity::milli(amount) {
        None => causes.push(Cause::invalid(field, amount, QUANTITY)),
        Some(amount_in_milli) if amount_in_milli < 0 => {
            causes.push(Cause::invalid(field, amount, "must be greater than or equal to 0"));
        }
        Some(_) => {}
    }
}

/// The names of a list's items, which must be there, be labels and differ.
fn names(spec: &Value, list: &str, path: &str, causes: &mut Vec<Cause>) -> HashSet<String> {
    let mut seen = HashSet::new();
    for (at, item) in spec[list].as_array().into_iter().flatten().enumerate() {
        let field = format!("{path}.{list}[{at}].name");
        match item["name"].as_str().unwrap_or_default() {
            "" => causes.push(Cause::required(field, "")),
            name if !is_label(name) => causes.push(Cause::invalid(field, &json!(name), super::LABEL)),
            name => {
                if !seen.insert(name.to_owned()) {
                    causes.push(Cause::duplicate(field, &item["name"]));
                }
            }
        }
    }
    seen
}

pub(super) fn one_of(parent: &Value, field: &str, allowed: &[&str], path: &str, causes: &mut Vec<Cause>) {
    let value = &parent[field];
    if !value.is_null() && value.as_str().is_none_or(|text| !allowed.contains(&text)) {
        causes.push(Cause::not_supported(format!("{path}.{field}"), value, allowed));
    }
}
