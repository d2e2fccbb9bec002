//! Of which properties what a device reports is kept, and how much: annotations of Devices and DeviceModels say so.

use std::collections::BTreeMap;

use serde::Deserialize;
use tracing::warn;
use twin::payload::Entries;
use twin::topic::DeviceId;

use super::device::{Devices, Kept};
use super::requests::Answer;

/// On a Device, or on a DeviceModel for all its devices: `temperature=1000,state=100`, or `*=500`.
pub(super) const ANNOTATION: &str = "devices.kubeedge.io/history";
/// Values of a property at most.
const MAX_VALUES: u32 = 10_000;
/// The name that stands for all properties that are not named.
const OTHERS: &str = "*";
/// Letters of an annotation that a complaint repeats.
const REPEATED: usize = 64;
/// Reason of the event.
const REASON: &str = "HistoryIgnored";

/// What is asked for of one device.
#[derive(Clone, Debug, Default)]
pub(super) struct Asked {
    /// By the Device itself; it counts instead of what its model says.
    own: Annotation,
    /// The name of its model.
    model: String,
    of_model: Annotation,
}

/// What an object's annotation says, and what of it is not understood: that is as if it were not there.
#[derive(Clone, Debug, Default)]
struct Annotation {
    wish: Option<Wish>,
    complaint: Option<String>,
}

/// What an annotation says: how many values are kept, by property.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Wish(BTreeMap<String, u32>);

/// An annotation that is not understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum WishError {
    #[error("{part:?} is not of the form PROPERTY=VALUES, or *=VALUES for all other properties")]
    Part { part: String },
    #[error("{part:?}: the number of values is 0 to {MAX_VALUES}")]
    Values { part: String },
    #[error("{part:?} is there twice")]
    Twice { part: String },
}

/// The part of an object that has annotations.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Annotated {
    metadata: Metadata,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Metadata {
    annotations: Option<BTreeMap<String, String>>,
}

impl Wish {
    fn parse(text: &str) -> Result<Self, WishError> {
        let mut wish = BTreeMap::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let told = || part.chars().take(REPEATED).collect();
            let Some((name, values)) = part.rsplit_once('=') else { return Err(WishError::Part { part: told() }) };
            let (name, values) = (name.trim(), values.trim());
            if name.is_empty() {
                return Err(WishError::Part { part: told() });
            }
            let values: Option<u32> = values.parse().ok().filter(|values| *values <= MAX_VALUES);
            let values = values.ok_or_else(|| WishError::Values { part: told() })?;
            if wish.insert(name.to_owned(), values).is_some() {
                return Err(WishError::Twice { part: told() });
            }
        }
        Ok(Self(wish))
    }
}

impl Annotation {
    /// Of an object as JSON text, which is a `kind`.
    fn of(object: &[u8], kind: &str) -> Self {
        let object: Annotated = serde_json::from_slice(object).unwrap_or_default();
        let text = object.metadata.annotations.as_ref().and_then(|all| all.get(ANNOTATION));
        match text.map(|text| Wish::parse(text)).transpose() {
            Ok(wish) => Self { wish, complaint: None },
            Err(error) => {
                let complaint = format!("annotation {ANNOTATION} of the {kind} is ignored: {error}");
                Self { wish: None, complaint: Some(complaint) }
            }
        }
    }
}

impl Asked {
    /// By a Device and its model of this name, both as JSON text.
    pub(super) fn new(object: &[u8], name: &str, model: Option<&[u8]>) -> Self {
        let own = Annotation::of(object, "Device");
        Self {
            own,
            model: name.to_owned(),
            of_model: model.map(|model| Annotation::of(model, "DeviceModel")).unwrap_or_default(),
        }
    }

    /// Whether the device has the model of this name.
    pub(super) fn is_of(&self, model: &str) -> bool {
        self.model == model
    }

    /// How many values of this property are kept.
    fn of(&self, property: &str) -> u32 {
        let Some(Wish(wish)) = self.own.wish.as_ref().or(self.of_model.wish.as_ref()) else { return 0 };
        wish.get(property).or_else(|| wish.get(OTHERS)).copied().unwrap_or_default()
    }

    fn complaint(&self) -> Option<&String> {
        self.own.complaint.as_ref().or(self.of_model.complaint.as_ref())
    }
}

/// A device asks for this from now on.
pub(super) fn ask(devices: &mut Devices, id: &DeviceId, asked: Asked, answer: &mut Answer) {
    let Some(device) = devices.get_mut(id) else { return };
    if asked.complaint() != device.history.complaint()
        && let Some(complaint) = asked.complaint()
    {
        warn!(device = %id, complaint, "what is asked for of a device's history is not understood");
        answer.note(id, REASON, complaint.clone());
    }
    device.history = asked;
}

/// Keeps what a device has reported, as far as it is asked for. Also a value that stays what it is: it was so at that time.
pub(super) fn keep(devices: &mut Devices, id: &DeviceId, reported: &Entries) {
    let Some(device) = devices.get(id) else { return };
    let values = reported.iter().filter_map(|(property, entry)| {
        let at_most = device.history.of(property);
        let value = entry.as_ref().filter(|_| at_most > 0)?.actual.as_ref()?;
        let (time, value) = (value.metadata?.timestamp, value.value.clone()?);
        Some(Kept { property: property.clone(), time, value, at_most })
    });
    let kept: Vec<Kept> = values.collect();
    if !kept.is_empty() {
        devices.keep(id, kept);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn annotations() {
        let asked = |own: Option<&str>, model: Option<&str>| {
            let object = |text: Option<&str>| {
                let annotations = text.map(|text| json!({ANNOTATION: text}));
                json!({"metadata": {"annotations": annotations}}).to_string().into_bytes()
            };
            Asked::new(&object(own), "m", Some(&object(model)))
        };
        for (own, model, temperature, other) in [
            (None, None, 0, 0),
            (Some("temperature=1000,state=100"), None, 1000, 0),
            (Some(" temperature = 7 , *=3,"), None, 7, 3),
            (Some("*=500"), None, 500, 500),
            (None, Some("*=2"), 2, 2),
            (Some("temperature=10000"), Some("*=2"), 10_000, 0),
            (Some("temperature=0,*=5"), None, 0, 5),
            // Empty: nothing, whatever the model says.
            (Some(""), Some("*=2"), 0, 0),
        ] {
            let asked = asked(own, model);
            let found = (asked.of("temperature"), asked.of("other"), asked.complaint().is_none());
            assert_eq!(found, (temperature, other, true), "{own:?} {model:?}");
        }
        for (own, model, why) in [
            (Some("temperature"), Some("*=2"), "of the Device is ignored: \"temperature\" is not of the form"),
            (Some("=3"), Some("*=2"), "\"=3\" is not of the form"),
            (Some("a=10001"), Some("*=2"), "\"a=10001\": the number of values is 0 to 10000"),
            (Some("a=-1"), Some("*=2"), "\"a=-1\": the number"),
            (Some("a=many"), Some("*=2"), "\"a=many\": the number"),
            (Some("a=1,a=2"), Some("*=2"), "\"a=2\" is there twice"),
            (Some("*=2"), Some("a"), "of the DeviceModel is ignored: \"a\""),
        ] {
            let asked = asked(own, model);
            assert_eq!(asked.of("temperature"), 2, "what is understood counts: {own:?}");
            let complaint = asked.complaint().cloned().unwrap_or_default();
            assert!(complaint.contains(ANNOTATION) && complaint.contains(why), "{complaint}");
        }
        let long = format!("{}=x", "a".repeat(1000));
        assert!(asked(Some(&long), None).complaint().is_some_and(|complaint| complaint.len() < 250));
    }
}
