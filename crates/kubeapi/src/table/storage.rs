//! The cells of persistent volumes, of claims on them, and of their classes.

use serde_json::{Value, json};

/// What stands where a class for volume attributes would.
const UNSET: &str = "<unset>";

/// A cell of one of these kinds; `None` for other kinds, and for columns that all kinds have.
pub(super) fn cell(plural: &str, column: &str, object: &Value) -> Option<Value> {
    match plural {
        "persistentvolumes" => Some(volume(column, object)),
        "persistentvolumeclaims" => Some(claim(column, object)),
        "storageclasses" => class(column, object),
        _ => None,
    }
}

fn volume(column: &str, volume: &Value) -> Value {
    let spec = &volume["spec"];
    match column {
        "Capacity" => text(&spec["capacity"]["storage"]),
        "Access Modes" => modes(&spec["accessModes"]),
        "Reclaim Policy" => text(&spec["persistentVolumeReclaimPolicy"]),
        "Status" => phase(volume),
        "Claim" => match &spec["claimRef"] {
            Value::Null => json!(""),
            claim => json!(format!("{}/{}", plain(&claim["namespace"]), plain(&claim["name"]))),
        },
        "StorageClass" => text(&spec["storageClassName"]),
        "Reason" => text(&volume["status"]["reason"]),
        "VolumeMode" => json!(spec["volumeMode"].as_str().unwrap_or(UNSET)),
        _ => json!(UNSET),
    }
}

fn claim(column: &str, claim: &Value) -> Value {
    let (spec, status) = (&claim["spec"], &claim["status"]);
    let bound = spec["volumeName"].as_str().is_some_and(|name| !name.is_empty());
    match column {
        "Status" => phase(claim),
        "Volume" => text(&spec["volumeName"]),
        "Capacity" if bound => text(&status["capacity"]["storage"]),
        "Access Modes" if bound => modes(&status["accessModes"]),
        "Capacity" | "Access Modes" => json!(""),
        "StorageClass" => text(&spec["storageClassName"]),
        "VolumeMode" => json!(spec["volumeMode"].as_str().unwrap_or(UNSET)),
        _ => json!(UNSET),
    }
}

fn class(column: &str, class: &Value) -> Option<Value> {
    Some(match column {
        "Name" => {
            let is_default = class["metadata"]["annotations"]["storageclass.kubernetes.io/is-default-class"] == "true";
            let mark = if is_default { " (default)" } else { "" };
            json!(format!("{}{mark}", plain(&class["metadata"]["name"])))
        }
        "Provisioner" => class["provisioner"].clone(),
        "ReclaimPolicy" => class["reclaimPolicy"].clone(),
        "VolumeBindingMode" => class["volumeBindingMode"].clone(),
        "AllowVolumeExpansion" => json!(class["allowVolumeExpansion"] == true),
        _ => return None,
    })
}

fn phase(object: &Value) -> Value {
    if crate::meta::is_terminating(object) { json!("Terminating") } else { object["status"]["phase"].clone() }
}

fn modes(modes: &Value) -> Value {
    let short =
        [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
    let has = |long: &str| modes.as_array().is_some_and(|modes| modes.iter().any(|mode| mode == long));
    let found: Vec<&str> = short.iter().filter(|(long, _)| has(long)).map(|(_, short)| *short).collect();
    json!(found.join(","))
}

fn text(value: &Value) -> Value {
    json!(plain(value))
}

fn plain(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_written_as_upstream_does() {
        let volume = json!({"metadata": {"name": "v"}, "spec": {"capacity": {"storage": "1Gi"}, "claimRef": {"namespace": "shop", "name": "data"},
            "accessModes": ["ReadWriteOnce", "ReadWriteMany"], "volumeMode": "Filesystem"}, "status": {"phase": "Bound"}});
        let unbound = json!({"metadata": {"name": "c", "deletionTimestamp": "2026-11-24T12:00:00Z"}, "spec": {}, "status": {"phase": "Pending"}});
        let class = json!({"metadata": {"name": "local", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}});
        for (plural, column, object, expected) in [
            ("persistentvolumes", "Access Modes", &volume, "RWO,RWX"),
            ("persistentvolumes", "Claim", &volume, "shop/data"),
            ("persistentvolumes", "Status", &volume, "Bound"),
            ("persistentvolumes", "StorageClass", &volume, ""),
            ("persistentvolumes", "VolumeAttributesClass", &volume, "<unset>"),
            ("persistentvolumes", "VolumeMode", &volume, "Filesystem"),
            ("persistentvolumeclaims", "Status", &unbound, "Terminating"),
            ("persistentvolumeclaims", "Volume", &unbound, ""),
            ("persistentvolumeclaims", "Capacity", &unbound, ""),
            ("storageclasses", "Name", &class, "local (default)"),
        ] {
            assert_eq!(cell(plural, column, object), Some(json!(expected)), "{plural} {column}");
        }
    }
}
