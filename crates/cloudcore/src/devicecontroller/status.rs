//! What is in a `DeviceStatus` (`devices.kubeedge.io/v1beta1`), and how a report changes it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::downstream::DEVICE;
use super::reports::Values;
use crate::kubernetes::KubernetesError;

/// A value, and what is said of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reported {
    /// The value.
    pub value: String,
    /// `timestamp` (Unix milliseconds) and `type`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
}

/// One property.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Twin {
    property_name: String,
    reported: Reported,
    observed_desired: Reported,
}

/// `status` of a DeviceStatus.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    twins: Option<Vec<Twin>>,
    state: Option<String>,
    last_online_time: Option<String>,
}

/// A DeviceStatus as the API had it last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// What it says.
    pub status: Status,
    /// Its version.
    pub version: String,
    /// The uid of the device that it belongs to; may be empty.
    pub owner: String,
}

impl Status {
    /// As it is with what was reported. Properties that the device does not have are left out.
    pub(super) fn with(&self, values: &Values, properties: &BTreeSet<String>) -> Self {
        let has = |twin: &Twin| properties.contains(&twin.property_name);
        let mut twins: Vec<Twin> = self.twins.iter().flatten().filter(|twin| has(twin)).cloned().collect();
        for (property, (actual, expected)) in values.twins.iter().filter(|(name, _)| properties.contains(*name)) {
            let at = twins.iter().position(|twin| twin.property_name == *property).unwrap_or_else(|| {
                twins.push(Twin { property_name: property.clone(), ..Twin::default() });
                twins.len() - 1
            });
            if let Some(actual) = actual {
                twins[at].reported.clone_from(actual);
            }
            if let Some(expected) = expected {
                twins[at].observed_desired.clone_from(expected);
            }
        }
        let is_absent = twins.is_empty() && self.twins.is_none();
        Self {
            twins: (!is_absent).then_some(twins),
            state: values.state.clone().or_else(|| self.state.clone()),
            last_online_time: values.last_online.clone().or_else(|| self.last_online_time.clone()),
        }
    }

    /// The merge patch that makes `self` of `before`: what differs, lists as a whole.
    pub(super) fn patch(&self, before: &Self) -> Value {
        let mut patch = serde_json::Map::new();
        if self.twins != before.twins {
            patch.insert("twins".to_owned(), json!(self.twins));
        }
        for (field, now, before) in [
            ("state", &self.state, &before.state),
            ("lastOnlineTime", &self.last_online_time, &before.last_online_time),
        ] {
            if now != before {
                patch.insert(field.to_owned(), json!(now));
            }
        }
        Value::Object(patch)
    }
}

/// Reads one as the API has it.
///
/// # Errors
/// It is no DeviceStatus.
pub(super) fn read(text: &[u8]) -> Result<Known, KubernetesError> {
    #[derive(Deserialize)]
    struct Object {
        metadata: Metadata,
        status: Option<Status>,
    }
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Metadata {
        resource_version: String,
        owner_references: Vec<Owner>,
    }
    #[derive(Deserialize)]
    struct Owner {
        kind: String,
        uid: String,
    }
    let object: Object = serde_json::from_slice(text).map_err(|error| KubernetesError::Request(error.into()))?;
    let owner = object.metadata.owner_references.into_iter().find(|owner| owner.kind == DEVICE);
    Ok(Known {
        status: object.status.unwrap_or_default(),
        version: object.metadata.resource_version,
        owner: owner.map(|owner| owner.uid).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &str) -> Option<Reported> {
        Some(Reported { value: text.to_owned(), metadata: BTreeMap::from([("type".to_owned(), "int".to_owned())]) })
    }

    #[test]
    fn a_patch_has_what_changed_and_twins_as_a_whole() {
        let properties = BTreeSet::from(["t", "h"].map(str::to_owned));
        let twins = BTreeMap::from([("t".to_owned(), (value("1"), None)), ("unknown".to_owned(), (value("2"), None))]);
        let values = Values { twins, state: Some("online".to_owned()), last_online: None };
        let first = Status::default().with(&values, &properties);
        let twin = json!({"propertyName": "t", "reported": {"value": "1", "metadata": {"type": "int"}}, "observedDesired": {"value": ""}});
        assert_eq!(first.patch(&Status::default()), json!({"twins": [twin], "state": "online"}));
        assert_eq!(first.with(&values, &properties), first, "once more");
        let twins = BTreeMap::from([("h".to_owned(), (None, value("9")))]);
        let second = first.with(&Values { twins, ..Values::default() }, &properties);
        let other = json!({"propertyName": "h", "reported": {"value": ""}, "observedDesired": {"value": "9", "metadata": {"type": "int"}}});
        assert_eq!(second.patch(&first), json!({"twins": [twin, other]}));
        let fewer = second.with(&Values::default(), &BTreeSet::from(["h".to_owned()]));
        assert_eq!(fewer.patch(&second), json!({"twins": [other]}), "a property that is gone");
        assert_eq!(Status::default().patch(&first), json!({"twins": null, "state": null}));
    }

    #[test]
    fn what_go_writes_can_be_read() {
        let text = br#"{"metadata":{"resourceVersion":"7","ownerReferences":[{"apiVersion":"devices.kubeedge.io/v1beta1","kind":"Device","name":"d","uid":"u"}]},
            "spec":{},"status":{"twins":[{"propertyName":"t","reported":{"value":""},"observedDesired":{"value":""}}],"extensions":null}}"#;
        let known = read(text).expect("read");
        assert_eq!((known.version.as_str(), known.owner.as_str()), ("7", "u"));
        assert_eq!(known.status.twins.map(|twins| twins.len()), Some(1));
    }
}
