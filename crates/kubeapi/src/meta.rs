//! The metadata that every object has.

use jiff::Timestamp;
use rand::RngExt;
use serde_json::{Map, Value, json};

/// The letters of generated names and hashes: none that could spell a word.
const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// How many letters a generated name gets.
const SUFFIX: usize = 5;
/// The longest base of a generated name.
const MAX_BASE: usize = 58;

/// `metadata.name`.
pub fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// `metadata.namespace`, empty for cluster scope.
pub fn namespace(object: &Value) -> &str {
    object["metadata"]["namespace"].as_str().unwrap_or_default()
}

/// `metadata.uid`.
pub fn uid(object: &Value) -> &str {
    object["metadata"]["uid"].as_str().unwrap_or_default()
}

/// `metadata.resourceVersion`.
pub fn resource_version(object: &Value) -> &str {
    object["metadata"]["resourceVersion"].as_str().unwrap_or_default()
}

/// Whether somebody has asked for the object's deletion.
pub fn is_terminating(object: &Value) -> bool {
    object["metadata"]["deletionTimestamp"].is_string()
}

/// Whether finalizers keep the object.
pub fn has_finalizers(object: &Value) -> bool {
    object["metadata"]["finalizers"].as_array().is_some_and(|list| !list.is_empty())
}

/// `metadata`, made an object if it is none.
pub fn metadata(object: &mut Value) -> &mut Map<String, Value> {
    if !object.is_object() {
        *object = json!({});
    }
    let metadata = &mut object["metadata"];
    if !metadata.is_object() {
        *metadata = json!({});
    }
    metadata.as_object_mut().expect("just made an object")
}

/// The current time as `metav1.Time`: whole seconds.
pub fn now() -> String {
    time(Timestamp::now())
}

/// A time as `metav1.Time`.
pub fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A fresh uid.
pub fn new_uid() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// A name from `metadata.generateName`.
pub fn generate_name(base: &str) -> String {
    let end = (0..=base.len().min(MAX_BASE)).rev().find(|end| base.is_char_boundary(*end)).unwrap_or(0);
    let mut random = rand::rng();
    let suffix: String = (0..SUFFIX).map(|_| char::from(LETTERS[random.random_range(0..LETTERS.len())])).collect();
    format!("{}{suffix}", &base[..end])
}
