//! Objects of the API as text, and what is read of them; the messages that carry them.

use std::hash::{DefaultHasher, Hash, Hasher};

use beehive::compose;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use tracing::warn;
use wire::{Content, Message, group, source};

use super::references;
use super::view::{NamespacedName, PodEntry};
use crate::kubernetes::kinds::Kind;

/// An object of the API, as far as this task reads it.
#[derive(Deserialize)]
pub(crate) struct Object<'a> {
    #[serde(default, borrow)]
    kind: Option<&'a str>,
    pub(crate) metadata: Map<String, Value>,
    #[serde(default, borrow)]
    pub(crate) spec: Option<&'a RawValue>,
    #[serde(default, borrow)]
    status: Option<&'a RawValue>,
}

/// A message that the node must acknowledge. A deletion without a version has none in its header.
pub(crate) fn push(verb: &str, path: &str, version: u64, content: Content) -> Message {
    let from = Kind::of_path(path).map_or(source::EDGE_CONTROLLER, |kind| kind.source);
    let mut message = compose::message(from, group::RESOURCE, verb, path, content);
    if version != u64::MAX {
        message.header.resource_version = version.to_string();
    }
    message
}

/// What is left of an object whose last state nobody knows.
pub(crate) fn tombstone((namespace, name): &NamespacedName, uid: &str) -> Content {
    let object = serde_json::json!({"metadata": {"name": name, "namespace": namespace, "uid": uid}});
    Content::json(&object).unwrap_or_else(|_| Content::null())
}

/// Objects in lists have no kind; an edge needs it.
pub(crate) fn with_kind(text: Bytes, kind: &str) -> Content {
    let has_kind = serde_json::from_slice::<Object<'_>>(&text)
        .is_ok_and(|object| object.kind.is_some_and(|kind| !kind.is_empty()));
    let text = match text.strip_prefix(b"{") {
        Some(rest) if !has_kind => {
            let version = Kind::named(kind).map_or("v1", |kind| kind.api_version);
            let mut full = format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{version}\",").into_bytes();
            full.extend_from_slice(rest);
            full.into()
        }
        _ => text,
    };
    Content::from_raw(text).unwrap_or_else(|_| Content::null())
}

/// Reads an object of the API.
pub(crate) fn read(text: &Bytes) -> Option<Object<'_>> {
    serde_json::from_slice(text).inspect_err(|error| warn!(%error, "an object of the API cannot be read")).ok()
}

/// Name, entry, and whether the pod is being deleted; `None` for one that is on no node.
pub(super) fn read_pod(text: &Bytes) -> Option<(NamespacedName, PodEntry, bool)> {
    let object = read(text)?;
    let spec: Value = serde_json::from_str(object.spec?.get()).ok()?;
    let node = spec["nodeName"].as_str().filter(|node| !node.is_empty())?.to_owned();
    let entry = PodEntry {
        uid: object.uid().to_owned(),
        node,
        service_account: spec["serviceAccountName"].as_str().unwrap_or_default().to_owned(),
        references: references::of_pod(&spec),
        version: object.version(),
    };
    let name = (object.namespace().to_owned(), object.name().to_owned());
    Some((name, entry, object.metadata.contains_key("deletionTimestamp")))
}

impl Object<'_> {
    fn text(&self, field: &str) -> &str {
        self.metadata.get(field).and_then(Value::as_str).unwrap_or_default()
    }

    pub(crate) fn name(&self) -> &str {
        self.text("name")
    }

    pub(crate) fn namespace(&self) -> &str {
        self.text("namespace")
    }

    pub(crate) fn uid(&self) -> &str {
        self.text("uid")
    }

    pub(crate) fn version(&self) -> u64 {
        self.text("resourceVersion").parse().unwrap_or_default()
    }

    /// A hash of everything that a node must know of itself: not what changes with every write, nor when a condition was last
    /// confirmed.
    pub(super) fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for (field, value) in &self.metadata {
            if !matches!(field.as_str(), "resourceVersion" | "generation" | "managedFields") {
                field.hash(&mut hasher);
                value.to_string().hash(&mut hasher);
            }
        }
        self.spec.map(RawValue::get).hash(&mut hasher);
        let mut status: Value =
            self.status.and_then(|status| serde_json::from_str(status.get()).ok()).unwrap_or_default();
        let conditions = status.get_mut("conditions").and_then(Value::as_array_mut);
        for condition in conditions.into_iter().flatten().filter_map(Value::as_object_mut) {
            condition.remove("lastHeartbeatTime");
        }
        status.to_string().hash(&mut hasher);
        hasher.finish()
    }
}
