//! Pods as the API server would have them: what the test pushed, with the edge's status patches merged in.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::Received;
use super::recorded::{fresh_id, kind_of, now_ms};

/// Lists that a strategic merge joins by this key (Kubernetes API, PodStatus).
const MERGED: [(&str, &str); 2] = [("conditions", "type"), ("podIPs", "ip")];

#[derive(Default)]
pub(super) struct Pods {
    /// By resource path.
    objects: HashMap<String, Value>,
    version: u64,
}

impl Pods {
    /// Remembers a pod that is pushed.
    pub(super) fn note(&mut self, message: &Value) {
        let resource = message["route"]["resource"].as_str().unwrap_or_default();
        if kind_of(resource) != "pod" || message["content"]["metadata"]["uid"].is_null() {
            return;
        }
        match message["route"]["operation"].as_str() {
            Some("insert" | "update") => {
                let version = &message["content"]["metadata"]["resourceVersion"];
                let version = version.as_str().and_then(|text| text.parse().ok()).unwrap_or_default();
                self.version = self.version.max(version);
                self.objects.insert(resource.to_owned(), message["content"].clone());
            }
            Some("delete") => drop(self.objects.remove(resource)),
            _ => {}
        }
    }

    /// The answer to a status patch, and the push of the changed pod; `None` when the request is another, or about a pod that was
    /// not pushed.
    pub(super) fn patch(&mut self, request: &Received) -> Option<Vec<Value>> {
        let path: Vec<&str> = request.route("resource").split('/').collect();
        let &[namespace, "podpatch", name] = path.as_slice() else { return None };
        let resource = format!("{namespace}/pod/{name}");
        let object = self.objects.get_mut(&resource)?;
        let patch: Value = serde_json::from_str(request.message["content"].as_str()?).ok()?;
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        if !object["status"].is_object() {
            object["status"] = json!({});
        }
        if let (Some(status), Some(patch)) = (object["status"].as_object_mut(), patch["status"].as_object()) {
            merge(status, patch);
        }
        let mut bare = object.clone();
        if let Some(bare) = bare.as_object_mut() {
            // The Go cloud leaves these out of answers, but not of pushes.
            bare.remove("kind");
            bare.remove("apiVersion");
        }
        let version = self.version.to_string();
        let message = |operation: &str, resource: &str, content: Value| {
            json!({
                "header": {"msg_id": fresh_id(), "timestamp": now_ms(), "resourceversion": version},
                "route": {"source": "edgecontroller", "group": "resource", "operation": operation, "resource": resource},
                "content": content,
            })
        };
        let mut answer = message("response", request.route("resource"), json!({"Object": bare, "Err": null}));
        answer["header"]["parent_msg_id"] = json!(request.id());
        Some(vec![answer, message("update", &resource, object.clone())])
    }
}

/// A strategic merge, as far as status patches need it: null removes, keyed lists are joined, the rest is replaced.
fn merge(target: &mut Map<String, Value>, patch: &Map<String, Value>) {
    for (field, value) in patch.iter().filter(|(field, _)| !field.starts_with('$')) {
        let key = MERGED.iter().find(|(list, _)| list == field).map(|(_, key)| *key);
        match (value, key) {
            (Value::Null, _) => drop(target.remove(field)),
            (Value::Array(items), Some(key)) => {
                let list = target.entry(field.clone()).or_insert_with(|| json!([]));
                if let Some(list) = list.as_array_mut() {
                    items.iter().for_each(|item| join(list, item, key));
                }
            }
            (value, _) => drop(target.insert(field.clone(), value.clone())),
        }
    }
}

fn join(list: &mut Vec<Value>, item: &Value, key: &str) {
    let place = list.iter().position(|old| old[key] == item[key]);
    if item["$patch"] == "delete" {
        if let Some(place) = place {
            list.remove(place);
        }
        return;
    }
    match place.map(|place| &mut list[place]) {
        Some(Value::Object(old)) => {
            for (field, value) in item.as_object().into_iter().flatten() {
                old.insert(field.clone(), value.clone());
            }
            old.retain(|_, value| !value.is_null());
        }
        _ => list.push(item.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_changes_what_it_names() {
        let mut pods = Pods::default();
        pods.note(&json!({
            "route": {"operation": "update", "resource": "d/pod/p"},
            "content": {"kind": "Pod", "metadata": {"uid": "u", "resourceVersion": "7"},
                "status": {"phase": "Pending", "message": "m", "conditions": [{"type": "A", "status": "False", "reason": "r"}]}},
        }));
        let patch = json!({"status": {"phase": "Running", "message": null, "$setElementOrder/conditions": [],
            "conditions": [{"type": "A", "status": "True", "reason": null}, {"type": "B"}]}});
        let request = |resource: &str| Received {
            connection: 0,
            message: json!({"header": {"msg_id": "q"}, "route": {"resource": resource}, "content": patch.to_string()}),
        };
        let answers = pods.patch(&request("d/podpatch/p")).expect("known");
        let status = json!({"phase": "Running", "conditions": [{"type": "A", "status": "True"}, {"type": "B"}]});
        assert_eq!(answers[0]["content"]["Object"]["status"], status);
        assert_eq!(answers[0]["header"]["parent_msg_id"], "q");
        assert_eq!(answers[1]["content"]["metadata"]["resourceVersion"], "8");
        assert!(pods.patch(&request("d/podpatch/other")).is_none());
    }
}
