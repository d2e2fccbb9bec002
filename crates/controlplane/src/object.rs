//! One Kubernetes object as the controllers see it: shared, read-only JSON with accessors for the fields that every kind has.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Map, Value};

static NULL: Value = Value::Null;

/// Where an object lives inside its kind: namespace (empty for cluster scope) and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Namespace; empty for kinds of cluster scope.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Key {
    /// A key from its two parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

/// One entry of `metadata.ownerReferences`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner<'a> {
    /// `group/version` or `version`.
    pub api_version: &'a str,
    /// Kind of the owner.
    pub kind: &'a str,
    /// Name of the owner, in the same namespace or of cluster scope.
    pub name: &'a str,
    /// UID of the owner; a namesake with another UID is somebody else.
    pub uid: &'a str,
    /// The owner is the one that manages the object.
    pub controller: bool,
    /// A foreground deletion of the owner waits for this object.
    pub blocks: bool,
}

/// A shared, immutable object. Cloning copies a pointer.
#[derive(Clone, Debug, PartialEq)]
pub struct Object(Arc<Value>);

impl From<Value> for Object {
    fn from(value: Value) -> Self {
        Self(Arc::new(value))
    }
}

impl From<Arc<Value>> for Object {
    fn from(value: Arc<Value>) -> Self {
        Self(value)
    }
}

impl Object {
    /// The whole JSON.
    pub fn value(&self) -> &Value {
        &self.0
    }

    /// A copy to change.
    pub fn to_value(&self) -> Value {
        (*self.0).clone()
    }

    /// The value at a JSON pointer; `null` if there is none.
    pub fn at(&self, pointer: &str) -> &Value {
        self.0.pointer(pointer).unwrap_or(&NULL)
    }

    /// The text at a JSON pointer; empty if there is none.
    pub fn text(&self, pointer: &str) -> &str {
        self.at(pointer).as_str().unwrap_or_default()
    }

    /// The whole number at a JSON pointer.
    pub fn int(&self, pointer: &str) -> Option<i64> {
        self.at(pointer).as_i64()
    }

    /// The elements of the list at a JSON pointer; none if it is no list.
    pub fn list(&self, pointer: &str) -> &[Value] {
        self.at(pointer).as_array().map(Vec::as_slice).unwrap_or_default()
    }

    /// Namespace and name.
    pub fn key(&self) -> Key {
        Key::new(self.namespace(), self.name())
    }

    /// `metadata.name`.
    pub fn name(&self) -> &str {
        self.text("/metadata/name")
    }

    /// `metadata.namespace`; empty for cluster scope.
    pub fn namespace(&self) -> &str {
        self.text("/metadata/namespace")
    }

    /// `metadata.uid`.
    pub fn uid(&self) -> &str {
        self.text("/metadata/uid")
    }

    /// `metadata.resourceVersion` as the store's counter; 0 if it is missing.
    pub fn version(&self) -> u64 {
        self.text("/metadata/resourceVersion").parse().unwrap_or(0)
    }

    /// `metadata.generation`.
    pub fn generation(&self) -> i64 {
        self.int("/metadata/generation").unwrap_or(0)
    }

    /// `metadata.labels`.
    pub fn labels(&self) -> Option<&Map<String, Value>> {
        self.at("/metadata/labels").as_object()
    }

    /// One label.
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels()?.get(name)?.as_str()
    }

    /// One annotation.
    pub fn annotation(&self, name: &str) -> Option<&str> {
        self.at("/metadata/annotations").get(name)?.as_str()
    }

    /// Deletion was asked for.
    pub fn is_deleting(&self) -> bool {
        !self.text("/metadata/deletionTimestamp").is_empty()
    }

    /// The finalizer is present.
    pub fn has_finalizer(&self, name: &str) -> bool {
        self.list("/metadata/finalizers").iter().any(|f| f == name)
    }

    /// When it was created.
    pub fn created(&self) -> Option<Timestamp> {
        self.time("/metadata/creationTimestamp")
    }

    /// The time at a JSON pointer.
    pub fn time(&self, pointer: &str) -> Option<Timestamp> {
        self.text(pointer).parse().ok()
    }

    /// All owner references.
    pub fn owners(&self) -> impl Iterator<Item = Owner<'_>> {
        self.list("/metadata/ownerReferences").iter().map(|r| Owner {
            api_version: r["apiVersion"].as_str().unwrap_or_default(),
            kind: r["kind"].as_str().unwrap_or_default(),
            name: r["name"].as_str().unwrap_or_default(),
            uid: r["uid"].as_str().unwrap_or_default(),
            controller: r["controller"].as_bool().unwrap_or(false),
            blocks: r["blockOwnerDeletion"].as_bool().unwrap_or(false),
        })
    }

    /// The owner that manages it.
    pub fn controller(&self) -> Option<Owner<'_>> {
        self.owners().find(|o| o.controller)
    }

    /// It is managed by the object with this UID.
    pub fn is_controlled_by(&self, uid: &str) -> bool {
        self.controller().is_some_and(|o| o.uid == uid)
    }

    /// The entry of `status.conditions` with this type.
    pub fn condition(&self, kind: &str) -> Option<&Value> {
        condition(self.list("/status/conditions"), kind)
    }
}

/// The entry of a list of conditions with this type.
pub fn condition<'a>(conditions: &'a [Value], kind: &str) -> Option<&'a Value> {
    conditions.iter().find(|c| c["type"] == kind)
}

/// A time as Kubernetes writes `metav1.Time`: whole seconds, UTC.
pub fn time_text(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// An owner reference that makes `owner` the managing controller.
pub fn controller_reference(owner: &Object, api_version: &str, kind: &str) -> Value {
    serde_json::json!({
        "apiVersion": api_version, "kind": kind, "name": owner.name(), "uid": owner.uid(),
        "controller": true, "blockOwnerDeletion": true,
    })
}

/// Flags and numbers that mean the same whether they are false, 0 or missing.
const SAME_AS_MISSING: [&str; 9] =
    ["stdin", "stdinOnce", "tty", "hostNetwork", "hostPID", "hostIPC", "readOnly", "hostPort", "generation"];
/// Maps and structures that mean the same whether they are empty or missing.
const SAME_WHEN_EMPTY: [&str; 4] = ["labels", "annotations", "resources", "securityContext"];

/// A value in a form in which two spellings of one meaning are equal: without nulls, empty lists, and what is the
/// same as missing. Clients in Go leave these out when they send back what they read.
pub fn normalised(value: &Value) -> Value {
    let says_nothing = |key: &str, value: &Value| match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty() && SAME_WHEN_EMPTY.contains(&key),
        Value::Bool(flag) => !flag && SAME_AS_MISSING.contains(&key),
        Value::Number(number) => number.as_i64() == Some(0) && SAME_AS_MISSING.contains(&key),
        Value::String(_) => false,
    };
    match value {
        Value::Object(map) => {
            let kept = map.iter().filter(|(k, v)| !says_nothing(k, v));
            Value::Object(kept.map(|(k, v)| (k.clone(), normalised(v))).collect())
        }
        Value::Array(list) => Value::Array(list.iter().map(normalised).collect()),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn spellings_of_one_meaning_are_equal() {
        let long =
            json!({"a": null, "l": [], "labels": {}, "tty": false, "ports": [{"hostPort": 0, "containerPort": 80}]});
        assert_eq!(normalised(&long), json!({"ports": [{"containerPort": 80}]}));
        // These say something.
        for value in [json!({"emptyDir": {}}), json!({"replicas": 0}), json!({"automountServiceAccountToken": false})] {
            assert_eq!(normalised(&value), value);
        }
    }
}
