//! What the real cloudcore sent, adapted to another edge's ids and names.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::Received;
use crate::golden::{Direction, Frame, frames};

/// The node of the recordings.
const NODE: &str = "go-edge";
/// Searched in this order.
const RECORDINGS: [&str; 4] = ["wire-fresh-node", "wire-unhappy", "wire-websocket", "wire-offline"];
/// Types whose answers hold for an object of any name.
const ANY_NAME: [&str; 6] = ["node", "nodepatch", "lease", "podpatch", "pod", "serviceaccounttoken"];

/// The recordings.
pub struct Recorded {
    frames: Vec<Frame>,
}

impl Recorded {
    pub(super) fn load() -> Result<Self> {
        let mut all = Vec::new();
        for recording in RECORDINGS {
            all.extend(frames(recording)?);
        }
        Ok(Self { frames: all })
    }

    /// The first message that the cloud pushed with this verb and resource type, with a fresh id.
    ///
    /// # Errors
    /// None was recorded.
    pub fn push(&self, operation: &str, kind: &str) -> Result<Value> {
        let is_push = |frame: &&Frame| {
            frame.direction == Direction::FromCloud
                && frame.parent().is_empty()
                && frame.route("operation") == operation
                && kind_of(frame.route("resource")) == kind
        };
        let frame = self.frames.iter().find(is_push).with_context(|| format!("no {operation} of a {kind}"))?;
        let mut message = frame.message.clone();
        message["header"]["msg_id"] = fresh_id();
        Ok(message)
    }

    /// The answer to a request of the edge, and what the cloud pushed right after it. Nothing for what no cloud answers.
    pub(super) fn answers(&self, request: &Received, node: &str) -> Vec<Value> {
        if !wants_answer(request) {
            return Vec::new();
        }
        let (operation, resource) = (request.route("operation"), request.route("resource"));
        let kind = kind_of(resource);
        let asked = |frame: &Frame| {
            let name_fits = ANY_NAME.contains(&kind) || frame.route("resource").replace(NODE, node) == resource;
            frame.direction == Direction::FromEdge
                && frame.route("operation") == operation
                && kind_of(frame.route("resource")) == kind
                && name_fits
        };
        let found = self.frames.iter().filter(|frame| asked(frame)).find_map(|question| {
            let at = self
                .frames
                .iter()
                .position(|frame| frame.direction == Direction::FromCloud && frame.parent() == question.id())?;
            Some((question, at))
        });
        let Some((question, at)) = found else {
            let missing =
                if operation == "query" { vec![answer_with(request, not_found(resource))] } else { Vec::new() };
            return missing;
        };
        let mut answers = vec![adapt(&self.frames[at], question, request, node)];
        // The cloud pushes the Node as it is after a change.
        let pushed = self.frames[at + 1..].iter().take_while(|frame| frame.direction == Direction::FromCloud);
        for frame in pushed.filter(|frame| frame.parent().is_empty() && kind_of(frame.route("resource")) == "node") {
            let mut push = renamed(frame, NODE, node);
            push["header"]["msg_id"] = fresh_id();
            answers.push(push);
        }
        answers
    }
}

/// Whether the real cloudcore answers such a message.
pub(super) fn wants_answer(message: &Received) -> bool {
    message.route("group") == "meta"
        && message.parent().is_empty()
        && kind_of(message.route("resource")) != "event"
        && matches!(message.route("operation"), "query" | "insert" | "update" | "patch" | "delete")
}

/// An answer in EdgeController's form.
pub(super) fn answer_with(request: &Received, content: Value) -> Value {
    let version = content["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
    let mut answer = json!({
        "header": {"msg_id": fresh_id(), "parent_msg_id": request.id(), "timestamp": now_ms()},
        "route": {
            "source": "edgecontroller", "group": "resource", "operation": "response",
            "resource": request.route("resource"),
        },
        "content": content,
    });
    if !version.is_empty() {
        answer["header"]["resourceversion"] = json!(version);
    }
    answer
}

/// The API server's words for a missing object, as a query is answered with them.
pub(super) fn not_found(resource: &str) -> Value {
    let (kind, name) = (kind_of(resource), resource.rsplit('/').next().unwrap_or_default());
    json!({"ErrStatus": {
        "metadata": {}, "status": "Failure", "message": format!("{kind} \"{name}\" not found"),
        "reason": "NotFound", "details": {"name": name, "kind": kind}, "code": 404,
    }})
}

fn adapt(answer: &Frame, question: &Frame, request: &Received, node: &str) -> Value {
    let mut message = renamed(answer, NODE, node);
    message["header"]["msg_id"] = fresh_id();
    message["header"]["parent_msg_id"] = json!(request.id());
    message["header"]["timestamp"] = json!(now_ms());
    message["route"]["resource"] = json!(request.route("resource"));
    let content = &mut message["content"];
    if question.route("operation") == "query" && kind_of(request.route("resource")) == "serviceaccounttoken" {
        let lifetime = content["spec"]["expirationSeconds"].as_u64().unwrap_or(3607);
        let expires = SystemTime::now() + Duration::from_secs(lifetime);
        content["status"]["expirationTimestamp"] =
            json!(Timestamp::try_from(expires).map(|at| at.to_string()).unwrap_or_default());
    }
    let object = if content.get("Object").is_some() { &mut content["Object"] } else { content };
    let path: Vec<&str> = request.route("resource").split('/').collect();
    if let (&[namespace, _, name], Some(metadata)) =
        (path.as_slice(), object.get_mut("metadata").and_then(Value::as_object_mut))
    {
        metadata.insert("name".to_owned(), json!(name));
        if namespace != "null" {
            metadata.insert("namespace".to_owned(), json!(namespace));
        }
        if let Some(uid) = asked_uid(&request.message["content"]) {
            metadata.insert("uid".to_owned(), json!(uid));
        }
    }
    message
}

/// The uid that a patch names.
fn asked_uid(content: &Value) -> Option<String> {
    let patch: Value = serde_json::from_str(content.as_str()?).ok()?;
    patch["metadata"]["uid"].as_str().map(str::to_owned)
}

fn renamed(frame: &Frame, from: &str, to: &str) -> Value {
    serde_json::from_str(&frame.text.replace(from, to)).unwrap_or_default()
}

pub(super) fn kind_of(resource: &str) -> &str {
    resource.split('/').nth(1).unwrap_or_default()
}

pub(super) fn fresh_id() -> Value {
    json!(uuid::Uuid::new_v4().to_string())
}

pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(operation: &str, resource: &str, content: Value) -> Received {
        let message = json!({
            "header": {"msg_id": "q", "timestamp": 1},
            "route": {"source": "edged", "group": "meta", "operation": operation, "resource": resource},
            "content": content,
        });
        Received { connection: 0, message }
    }

    #[test]
    fn answers_are_the_recorded_ones_under_the_edges_names() {
        let recorded = Recorded::load().expect("recordings");
        let answers = recorded.answers(&request("insert", "null/node/box-7", json!({})), "box-7");
        assert_eq!(answers.len(), 2, "the answer and the push of the Node");
        assert_eq!(answers[0]["header"]["parent_msg_id"], "q");
        assert_eq!(answers[0]["content"]["Object"]["metadata"]["name"], "box-7");
        assert_eq!(answers[1]["route"]["operation"], "update");
        assert_eq!(answers[1]["content"]["metadata"]["name"], "box-7");

        let patch = json!({"metadata": {"uid": "u7"}}).to_string();
        let answers = recorded.answers(&request("patch", "default/podpatch/p", json!(patch)), "box-7");
        assert_eq!(answers[0]["content"]["Object"]["metadata"]["uid"], "u7");

        let answers = recorded.answers(&request("query", "default/configmap/nobody", Value::Null), "box-7");
        assert_eq!(answers[0]["content"]["ErrStatus"]["code"], 404);
        let known = recorded.answers(&request("query", "default/configmap/kube-root-ca.crt", Value::Null), "box-7");
        assert_eq!(known[0]["content"]["kind"], "ConfigMap");
        assert_eq!(recorded.answers(&request("delete", "default/pod/p", json!({})), "b")[0]["content"], "OK");
        assert!(recorded.answers(&request("insert", "default/event/e", json!({})), "b").is_empty());
    }
}
