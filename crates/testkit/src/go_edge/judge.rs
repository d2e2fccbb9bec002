//! What a Go edge would choke on: each rule is a fault of the cloud that upstream's edge answers with a crash, a wrong object in
//! its database, a dropped message or no acknowledgement (KubeEdge v1.23).

use serde_json::Value;

const GROUPS: [&str; 5] = ["resource", "func", "twin", "user", "taskmanager"];
/// Updates of these sources are acknowledged.
pub(super) const SOURCES: [&str; 4] = ["edgecontroller", "dynamiccontroller", "devicecontroller", "policycontroller"];
const OPERATIONS: [&str; 7] = [
    "insert",
    "update",
    "delete",
    "createvolume",
    "deletevolume",
    "controllerpublishvolume",
    "controllerunpublishvolume",
];

/// What is wrong with a message from the cloud; empty when nothing is.
pub fn faults(message: &Value) -> Vec<String> {
    let mut faults = envelope(message);
    let route = &message["route"];
    let text = |part: &str| route[part].as_str().unwrap_or_default();
    let (group, operation, resource) = (text("group"), text("operation"), text("resource"));
    if !GROUPS.contains(&group) {
        faults.push(format!("group {group:?} is not routed at the edge"));
    }
    if ["config", "ping", "pong"].contains(&operation) {
        faults.push(format!("operation {operation:?} is taken by the transport"));
    }
    if ["resource", "func"].contains(&group) {
        match message["header"]["parent_msg_id"].as_str() {
            None => faults.extend(push(message, operation, resource)),
            Some(_) => faults.extend(answer(&message["content"])),
        }
    }
    faults.into_iter().map(|fault| format!("{operation} {resource}: {fault}")).collect()
}

fn envelope(message: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    let Some(header) = message["header"].as_object() else { return vec![String::from("no header")] };
    let is_text = |name: &str| header.get(name).is_none_or(|value| value.as_str().is_some_and(|text| !text.is_empty()));
    if !header.contains_key("msg_id") {
        faults.push(String::from("no msg_id"));
    }
    for name in ["msg_id", "parent_msg_id", "resourceversion"] {
        if !is_text(name) {
            faults.push(format!("{name} is no text or empty"));
        }
    }
    if let Some(version) = header.get("resourceversion").and_then(Value::as_str)
        && version.parse::<u64>().is_err()
    {
        faults.push(format!("resourceversion {version:?} is no number"));
    }
    if !header.get("timestamp").is_some_and(Value::is_i64) {
        faults.push(String::from("timestamp is no integer"));
    }
    for name in ["sync", "type"] {
        if header.contains_key(name) {
            faults.push(format!("{name} never appears on the wire"));
        }
    }
    if message.get("content").is_none() {
        faults.push(String::from("no content"));
    }
    faults
}

fn push(message: &Value, operation: &str, resource: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let content = &message["content"];
    if !OPERATIONS.contains(&operation) {
        faults.push(String::from("the edge does not know this operation"));
    }
    if resource.starts_with("node/") {
        faults.push(String::from("the resource still has its node"));
    }
    if resource.split('/').count() != 3 {
        faults.push(String::from("a resource has three parts"));
    }
    let source = message["route"]["source"].as_str().unwrap_or_default();
    if operation == "update" && !SOURCES.contains(&source) {
        faults.push(format!("updates of {source:?} are not acknowledged"));
    }
    if ["insert", "update"].contains(&operation) {
        for (what, value) in [
            ("kind", &content["kind"]),
            ("apiVersion", &content["apiVersion"]),
            ("metadata.uid", &content["metadata"]["uid"]),
            ("metadata.resourceVersion", &content["metadata"]["resourceVersion"]),
        ] {
            if value.as_str().is_none_or(str::is_empty) {
                faults.push(format!("the object has no {what}"));
            }
        }
        if message["header"]["resourceversion"] != content["metadata"]["resourceVersion"] {
            faults.push(String::from("the header's resourceversion is not the object's"));
        }
    }
    if operation == "delete" && content["metadata"]["name"].as_str().is_none_or(str::is_empty) {
        faults.push(String::from("a deletion names its object"));
    }
    faults
}

fn answer(content: &Value) -> Vec<String> {
    let Some(object) = content.as_object() else {
        let ok = content == "OK" || content.is_string();
        return if ok { Vec::new() } else { vec![format!("an answer of {content} means nothing")] };
    };
    let is_error = |value: &Value| value["ErrStatus"]["reason"].as_str().is_some_and(|reason| !reason.is_empty());
    if object.is_empty() {
        return vec![String::from("{} is stored as if it were the object")];
    }
    if let Some(error) = object.get("Err") {
        // A Go edge takes an Err without ErrStatus for success, and dereferences the Object.
        return match (error, object.get("Object")) {
            (Value::Null, Some(Value::Object(_))) => Vec::new(),
            (Value::Null, _) => vec![String::from("neither Object nor Err: a Go edge crashes")],
            (error, Some(_)) if is_error(error) => Vec::new(),
            _ => vec![String::from("Err without ErrStatus and reason: a Go edge takes it for success")],
        };
    }
    if object.contains_key("ErrStatus") && !is_error(content) {
        return vec![String::from("ErrStatus without a reason")];
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::{Direction, frames};

    #[test]
    fn nothing_that_a_go_cloud_sent_is_a_fault() {
        for recording in ["wire-fresh-node", "wire-websocket", "wire-offline", "wire-unhappy", "wire-static-pod"] {
            for frame in frames(recording).expect("recording") {
                // A Go cloud sends `{}` for errors that are not the API server's: the known fault that ours must not have.
                let known = frame.message["content"] == serde_json::json!({});
                if frame.direction == Direction::FromCloud && !known {
                    assert_eq!(faults(&frame.message), Vec::<String>::new(), "{recording}: {}", frame.text);
                }
            }
        }
    }

    #[test]
    fn what_kills_a_go_edge_is_a_fault() {
        let message = |content: Value| {
            serde_json::json!({"header": {"msg_id": "a", "parent_msg_id": "b", "timestamp": 1},
                "route": {"source": "edgecontroller", "group": "resource", "operation": "response", "resource": "null/node/n"},
                "content": content})
        };
        let good = message(serde_json::json!({"Object": {"metadata": {}}, "Err": null}));
        assert!(faults(&good).is_empty());
        for content in [
            serde_json::json!({"Object": null, "Err": {}}),
            serde_json::json!({"Object": null, "Err": null}),
            serde_json::json!({}),
            serde_json::json!(7),
        ] {
            assert_eq!(faults(&message(content.clone())).len(), 1, "{content}");
        }
        let mut push = message(serde_json::json!({"metadata": {"uid": "u"}}));
        push["header"] = serde_json::json!({"msg_id": "a", "timestamp": 1.5, "sync": true});
        push["route"]["operation"] = "update".into();
        push["route"]["resource"] = "node/n/null/node/n".into();
        assert!(faults(&push).len() >= 6, "{:?}", faults(&push));
    }
}
