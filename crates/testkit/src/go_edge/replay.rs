//! Driving an edge with recorded frames: what the recording's edge sent is sent again with this node's name, fresh ids and the
//! uids and versions of the objects that live now; what the recording's cloud answered is compared with what ours does.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::edge::{fresh_id, now};
use crate::golden::Frame;

/// The node of every recording.
pub const RECORDED_NODE: &str = "go-edge";

/// Translates between a recording and what happens now.
pub struct Replay {
    node: String,
    /// Texts of the recording and what stands for them now.
    texts: Vec<(String, String)>,
    /// Newest version by (live) uid.
    versions: HashMap<String, String>,
}

impl Replay {
    /// For an edge with this name.
    pub fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            texts: vec![(RECORDED_NODE.to_owned(), node.to_owned())],
            versions: HashMap::new(),
        }
    }

    /// Says what stands for a text of the recording.
    pub fn substitute(&mut self, recorded: &str, live: &str) {
        if recorded != live && !recorded.is_empty() && !self.texts.iter().any(|(known, _)| known == recorded) {
            self.texts.push((recorded.to_owned(), live.to_owned()));
        }
    }

    /// Learns uid and version of an object that was recorded as one and lives as the other. Both may be wrapped as answers are.
    pub fn learn(&mut self, recorded: &Value, live: &Value) {
        let (recorded, live) = (&object(recorded)["metadata"], &object(live)["metadata"]);
        if let (Some(recorded), Some(live_uid)) = (recorded["uid"].as_str(), live["uid"].as_str()) {
            self.substitute(recorded, live_uid);
            if let Some(version) = live["resourceVersion"].as_str() {
                self.versions.insert(live_uid.to_owned(), version.to_owned());
            }
        }
    }

    /// What to send instead of a recorded message of the edge.
    pub fn message(&self, frame: &Frame) -> Value {
        let mut message = self.translate(&frame.message);
        message["header"]["msg_id"] = fresh_id().into();
        message["header"]["timestamp"] = now().into();
        message
    }

    /// A value of the recording with today's names, uids and versions.
    pub fn translate(&self, recorded: &Value) -> Value {
        match recorded {
            Value::String(text) => Value::String(self.text(text)),
            Value::Array(items) => items.iter().map(|item| self.translate(item)).collect(),
            Value::Object(fields) => {
                let mut fields: Map<String, Value> =
                    fields.iter().map(|(key, value)| (key.clone(), self.translate(value))).collect();
                let version = fields.get("uid").and_then(Value::as_str).and_then(|uid| self.versions.get(uid));
                if let (Some(version), true) = (version, fields.contains_key("resourceVersion")) {
                    fields.insert(String::from("resourceVersion"), version.as_str().into());
                }
                Value::Object(fields)
            }
            other => other.clone(),
        }
    }

    /// How a live message differs from the recorded one in what a Go edge relies on; empty when it does not. Values that differ
    /// from cluster to cluster (uids, versions, times, what other controllers write) are compared for being there only.
    pub fn differences(&self, recorded: &Value, live: &Value) -> Vec<String> {
        let mut found = Vec::new();
        for part in ["source", "group", "operation", "resource"] {
            let expected = self.translate(&recorded["route"][part]);
            if expected != live["route"][part] {
                found.push(format!("route.{part}: recorded {expected}, got {}", live["route"][part]));
            }
        }
        for name in ["parent_msg_id", "resourceversion", "sync", "type"] {
            let (was, is) = (recorded["header"].get(name).is_some(), live["header"].get(name).is_some());
            if was != is {
                found.push(format!("header.{name}: recorded {was}, got {is}"));
            }
        }
        self.content(&recorded["content"], &live["content"], &mut found);
        found
    }

    fn content(&self, recorded: &Value, live: &Value, found: &mut Vec<String>) {
        let (Some(was), Some(is)) = (recorded.as_object(), live.as_object()) else {
            if self.translate(recorded) != *live {
                found.push(format!("content: recorded {recorded:.200}, got {live:.200}"));
            }
            return;
        };
        if was.contains_key("Err") {
            if !is.contains_key("Err") || !is.contains_key("Object") {
                found.push(format!("content: recorded Object and Err, got {:?}", is.keys()));
            }
            self.status(&recorded["Err"], &live["Err"], found);
            // The empty object beside an error says nothing.
            if recorded["Err"].is_null() {
                self.object(&recorded["Object"], &live["Object"], false, found);
            }
        } else if was.contains_key("ErrStatus") {
            self.status(recorded, live, found);
        } else {
            self.object(recorded, live, true, found);
        }
    }

    fn status(&self, recorded: &Value, live: &Value, found: &mut Vec<String>) {
        let (was, is) = (&recorded["ErrStatus"], &live["ErrStatus"]);
        // The message's words differ between API servers.
        for field in ["status", "reason", "code"] {
            let expected = self.translate(&was[field]);
            if expected != is[field] {
                found.push(format!("ErrStatus.{field}: recorded {expected}, got {}", is[field]));
            }
        }
    }

    fn object(&self, recorded: &Value, live: &Value, bare: bool, found: &mut Vec<String>) {
        // Inside an answer the kind may be there or not: the edge knows it.
        for field in ["kind", "apiVersion"].iter().filter(|_| bare) {
            if recorded.get(field).is_some() && recorded[field] != live[field] {
                found.push(format!("{field}: recorded {}, got {}", recorded[field], live[field]));
            }
        }
        for field in ["name", "namespace"] {
            let expected = self.translate(&recorded["metadata"][field]);
            if expected != live["metadata"][field] {
                found.push(format!("metadata.{field}: recorded {expected}, got {}", live["metadata"][field]));
            }
        }
        for field in ["uid", "resourceVersion", "creationTimestamp"] {
            if recorded["metadata"][field].is_string() && !live["metadata"][field].is_string() {
                found.push(format!("metadata.{field} is missing"));
            }
        }
        for field in ["spec", "status", "data"] {
            if recorded.get(field).is_some_and(|value| value.as_object().is_some_and(|o| !o.is_empty()))
                && live.get(field).is_none()
            {
                found.push(format!("{field} is missing"));
            }
        }
    }

    fn text(&self, recorded: &str) -> String {
        // Longer texts first, so that the node's name inside another text is not replaced before it.
        let mut texts: Vec<&(String, String)> = self.texts.iter().collect();
        texts.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
        texts.iter().fold(recorded.to_owned(), |text, (from, to)| text.replace(from.as_str(), to))
    }

    /// The edge's name.
    pub fn node(&self) -> &str {
        &self.node
    }
}

/// The object of an answer, wrapped or bare.
pub fn object(content: &Value) -> &Value {
    content.get("Object").filter(|object| object.is_object()).unwrap_or(content)
}
