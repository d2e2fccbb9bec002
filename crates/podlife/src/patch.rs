//! The text of a status patch: strategic merge of `status`, with the UID as precondition.
//!
//! Shape as recorded from KubeEdge v1.23: only what changed; lists of conditions and addresses are merged by their
//! key and carry `$setElementOrder` when the other side already has some; container statuses go whole; `null` deletes.

use k8s_openapi::api::core::v1::PodStatus;
use serde_json::{Map, Value, json};

/// Lists of the pod status that merge by a key; all others are replaced whole.
const MERGE_KEYS: [(&str, &str); 4] =
    [("conditions", "type"), ("podIPs", "ip"), ("hostIPs", "ip"), ("resourceClaimStatuses", "name")];

/// The patch that turns `old` into `new`; `None` when nothing changed.
pub fn status_patch(uid: &str, old: &PodStatus, new: &PodStatus) -> Result<Option<String>, serde_json::Error> {
    let (Value::Object(old), Value::Object(new)) = (serde_json::to_value(old)?, serde_json::to_value(new)?) else {
        return Ok(None);
    };
    let status = diff(&old, &new);
    if status.is_empty() {
        return Ok(None);
    }
    Ok(Some(json!({"metadata": {"uid": uid}, "status": status}).to_string()))
}

fn diff(old: &Map<String, Value>, new: &Map<String, Value>) -> Map<String, Value> {
    let mut patch = Map::new();
    for (key, value) in new {
        let before = old.get(key);
        if before == Some(value) {
            continue;
        }
        match (MERGE_KEYS.iter().find(|(field, _)| field == key), before, value) {
            (Some((field, merge_key)), before, Value::Array(items)) => {
                let before = before.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
                diff_list(field, merge_key, before, items, &mut patch);
            }
            (None, Some(Value::Object(before)), Value::Object(value)) => {
                patch.insert(key.clone(), Value::Object(diff(before, value)));
            }
            _ => {
                patch.insert(key.clone(), value.clone());
            }
        }
    }
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    patch
}

fn diff_list(field: &str, merge_key: &str, old: &[Value], new: &[Value], patch: &mut Map<String, Value>) {
    let find = |list: &'_ [Value], key: &Value| list.iter().find(|item| item.get(merge_key) == Some(key)).cloned();
    let mut changes = Vec::new();
    for item in new {
        let key = item.get(merge_key).cloned().unwrap_or_default();
        match (find(old, &key), item) {
            (Some(before), _) if before == *item => {}
            (Some(Value::Object(before)), Value::Object(item)) => {
                let mut change = diff(&before, item);
                change.insert(merge_key.into(), key);
                changes.push(Value::Object(change));
            }
            (_, item) => changes.push(as_new_element(field, item)),
        }
    }
    for item in old {
        let key = item.get(merge_key).cloned().unwrap_or_default();
        if find(new, &key).is_none() {
            changes.push(json!({"$patch": "delete", merge_key: key}));
        }
    }
    if !old.is_empty() {
        let order: Vec<Value> = new.iter().map(|item| json!({merge_key: item.get(merge_key)})).collect();
        patch.insert(format!("$setElementOrder/{field}"), Value::Array(order));
    }
    if !changes.is_empty() {
        patch.insert(field.into(), Value::Array(changes));
    }
}

/// Upstream writes the unused `lastProbeTime` of a new condition as null.
fn as_new_element(field: &str, item: &Value) -> Value {
    let mut item = item.clone();
    if let (true, Some(fields)) = (field == "conditions", item.as_object_mut()) {
        fields.entry("lastProbeTime").or_insert(Value::Null);
    }
    item
}
