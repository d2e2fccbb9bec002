//! What is refused of changes to a pod that runs: ephemeral containers that are added, resources that are resized.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::pod;
use crate::defaults;
use crate::error::Cause;

/// Marks the mirror of a pod that its node defines by a file.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// What an ephemeral container cannot have: it has no place in the pod's life cycle.
const NOT_EPHEMERAL: [&str; 7] =
    ["ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle", "resizePolicy", "restartPolicy"];
/// What may be resized.
const RESIZABLE: [&str; 2] = ["cpu", "memory"];

/// Ephemeral containers are added, never changed or removed.
pub(super) fn ephemeral(object: &Value, current: &Value, causes: &mut Vec<Cause>) {
    const FIELD: &str = "spec.ephemeralContainers";
    if object["metadata"]["annotations"][MIRROR].is_string() {
        causes.push(Cause::forbidden("", "static pods do not support ephemeral containers"));
    }
    let spec = &object["spec"];
    for old in items(&current["spec"]["ephemeralContainers"]) {
        let name = name(old);
        match items(&spec["ephemeralContainers"]).iter().find(|new| new["name"] == old["name"]) {
            None => {
                let why = format!("existing ephemeral containers \"{name}\" may not be removed");
                causes.push(Cause::forbidden(FIELD, &why));
            }
            Some(new) if new != old => {
                let why = format!("existing ephemeral containers \"{name}\" may not be changed");
                causes.push(Cause::forbidden(FIELD, &why));
            }
            Some(_) => {}
        }
    }
    let names = |list: &str| items(&spec[list]).iter().map(name).collect::<Vec<&str>>();
    let volumes: HashSet<String> = names("volumes").into_iter().map(str::to_owned).collect();
    let mut taken: HashSet<&str> = names("containers").into_iter().chain(names("initContainers")).collect();
    let targets = taken.clone();
    for (at, container) in items(&spec["ephemeralContainers"]).iter().enumerate() {
        let path = format!("{FIELD}[{at}]");
        pod::container(container, &path, &volumes, causes);
        if !taken.insert(name(container)) {
            causes.push(Cause::duplicate(format!("{path}.name"), &container["name"]));
        }
        let target = container["targetContainerName"].as_str().unwrap_or_default();
        if !target.is_empty() && !targets.contains(target) {
            let (field, message) = (format!("{path}.targetContainerName"), format!("Not found: \"{target}\""));
            causes.push(Cause { field, reason: "FieldValueNotFound", message });
        }
        for field in NOT_EPHEMERAL {
            if !container[field].is_null() {
                causes.push(Cause::forbidden(format!("{path}.{field}"), "cannot be set for an Ephemeral Container"));
            }
        }
        if container["resources"].as_object().is_some_and(|resources| !resources.is_empty()) {
            causes.push(Cause::forbidden(format!("{path}.resources"), "cannot be set for an Ephemeral Container"));
        }
        for (at, mount) in items(&container["volumeMounts"]).iter().enumerate() {
            for field in ["subPath", "subPathExpr"] {
                if !mount[field].as_str().unwrap_or_default().is_empty() {
                    let field = format!("{path}.volumeMounts[{at}].{field}");
                    causes.push(Cause::forbidden(field, "cannot be set for an Ephemeral Container"));
                }
            }
        }
    }
}

/// CPU and memory of running containers may change, within the pod's QoS class.
pub(super) fn resize(object: &Value, current: &Value, causes: &mut Vec<Cause>) {
    if object["metadata"]["annotations"][MIRROR].is_string() {
        causes.push(Cause::forbidden("", "static pods cannot be resized"));
    }
    let (spec, old_spec) = (&object["spec"], &current["spec"]);
    for list in ["containers", "initContainers"] {
        for (at, (new, old)) in items(&spec[list]).iter().zip(items(&old_spec[list])).enumerate() {
            let path = format!("spec.{list}[{at}]");
            pod::container(new, &path, &volume_names(spec), causes);
            if new["resources"] == old["resources"] {
                continue;
            }
            if list == "initContainers" && new["restartPolicy"] != "Always" {
                let why = "resources for non-sidecar init containers are immutable";
                causes.push(Cause::forbidden(format!("{path}.resources"), why));
            }
            for kind in ["limits", "requests"] {
                amounts(&new["resources"][kind], &old["resources"][kind], &format!("{path}.resources"), kind, causes);
            }
            if new["resources"]["claims"] != old["resources"]["claims"] {
                causes.push(Cause::forbidden("spec", "only cpu and memory resources are mutable"));
            }
        }
    }
    let qos = defaults::pod_qos(spec);
    if qos != defaults::pod_qos(old_spec) {
        let why = "Pod QOS Class may not change as a result of resizing";
        causes.push(Cause::invalid("spec", &json!(qos), why));
    }
}

fn amounts(new: &Value, old: &Value, path: &str, kind: &str, causes: &mut Vec<Cause>) {
    let keys = |list: &Value| list.as_object().into_iter().flatten().map(|(k, _)| k.clone()).collect::<HashSet<_>>();
    let (before, after) = (keys(old), keys(new));
    if before.difference(&after).any(|name| RESIZABLE.contains(&name.as_str())) {
        causes.push(Cause::forbidden(format!("{path}.{kind}"), &format!("resource {kind} cannot be removed")));
    }
    if before.union(&after).any(|name| !RESIZABLE.contains(&name.as_str()) && old[name] != new[name]) {
        causes.push(Cause::forbidden("spec", "only cpu and memory resources are mutable"));
    }
}

fn volume_names(spec: &Value) -> HashSet<String> {
    items(&spec["volumes"]).iter().map(|volume| name(volume).to_owned()).collect()
}

fn items(list: &Value) -> &[Value] {
    list.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn name(item: &Value) -> &str {
    item["name"].as_str().unwrap_or_default()
}
