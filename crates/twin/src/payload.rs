//! What travels on the topics of twins, as JSON.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::check::Refusal;

/// A longer payload is refused.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// Properties by name. `None` deletes one, or says that it is deleted.
pub type Entries = BTreeMap<String, Option<Entry>>;

/// One property. Everything may be missing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Entry {
    /// What the device shall be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected: Option<Value>,
    /// What the device is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actual: Option<Value>,
    /// Whether the property may be deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub optional: Option<bool>,
    /// Its type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<TypeMetadata>,
    /// The version of `expected`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected_version: Option<Version>,
    /// The version of `actual`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actual_version: Option<Version>,
}

/// A value, which is always a text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Value {
    /// The value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// When it was set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<ValueMetadata>,
}

/// What is known of a value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ValueMetadata {
    /// Unix milliseconds.
    pub timestamp: i64,
}

/// What is known of a property.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TypeMetadata {
    /// The type of its values; `deleted` deletes it.
    #[serde(rename = "type", skip_serializing_if = "String::is_empty")]
    pub kind: String,
}

/// How often each side has set a value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Version {
    /// The cloud.
    pub cloud: i64,
    /// The edge.
    pub edge: i64,
}

/// A request on `…/twin/update`, `…/twin/cloud_updated` or `…/twin/get`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Request {
    /// Comes back in the answers.
    pub event_id: String,
    /// When it was made, by the clock of whoever did. Nothing goes by it.
    pub timestamp: i64,
    /// The properties.
    pub twin: Option<Entries>,
}

impl Request {
    /// Reads a payload.
    ///
    /// # Errors
    /// It is too long, or not of this shape.
    pub fn parse(payload: &[u8]) -> Result<Self, Refusal> {
        if payload.len() > MAX_PAYLOAD {
            return Err(Refusal::Long { bytes: payload.len() });
        }
        serde_json::from_slice(payload).map_err(|error| Refusal::Shape { cause: error.to_string() })
    }

    /// The properties of an update.
    ///
    /// # Errors
    /// There are none.
    pub fn entries(&self) -> Result<&Entries, Refusal> {
        self.twin.as_ref().ok_or(Refusal::NoTwin)
    }
}
