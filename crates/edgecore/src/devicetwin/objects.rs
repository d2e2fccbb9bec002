//! What the cloud says of devices: Device objects, and membership messages.
//!
//! A device is on this node because its object is, which MetaManager has stored and acknowledged. A membership message adds one
//! only if there is no object yet (a Go cloud may send it first), and takes one away like the deletion of the object.

use std::collections::{BTreeMap, BTreeSet};

use beehive::compose;
use serde::Deserialize;
use serde_json::json;
use tracing::warn;
use twin::check::Refusal;
use twin::payload::{Entries, Entry, TypeMetadata, Value, Version};
use twin::topic::DeviceId;

use super::device::{About, Devices};
use super::history::{self, Asked};
use super::requests::{Answer, Told, listed, node_topic, take_in, tell_changes};

/// What becomes of a desired value that is not taken.
const AGAIN: &str = "tried again when the Device or its DeviceModel changes";
/// Letters of a property's name that a refusal repeats.
const MAX_SHOWN: usize = 128;

/// A Device (`devices.kubeedge.io/v1beta1`).
#[derive(Default, Deserialize)]
#[serde(default)]
struct Object {
    metadata: Metadata,
    spec: Spec,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Metadata {
    name: String,
    namespace: String,
    uid: String,
    labels: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    device_model_ref: Option<ModelRef>,
    properties: Option<Vec<Property>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ModelRef {
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Property {
    name: String,
    desired: Option<Desired>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Desired {
    value: String,
    metadata: Option<BTreeMap<String, String>>,
}

/// A DeviceModel.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Model {
    spec: ModelSpec,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ModelSpec {
    properties: Vec<ModelProperty>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ModelProperty {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    minimum: String,
    maximum: String,
}

/// Why a desired value is not taken.
#[derive(Debug, thiserror::Error)]
enum NotTaken {
    #[error(transparent)]
    Twin(#[from] Refusal),
    #[error("property {name:?}: the value is out of bounds: the DeviceModel allows {minimum} to {maximum}")]
    Bounds { name: String, minimum: String, maximum: String },
}

impl NotTaken {
    /// As in [`Refusal::summary`].
    fn summary(&self) -> String {
        match self {
            Self::Twin(refusal) => refusal.summary(),
            Self::Bounds { .. } => self.to_string(),
        }
    }
}

impl ModelProperty {
    /// Whether a desired value is a number out of the model's bounds. A bound that is no number is none.
    fn check(&self, value: &str) -> Result<(), NotTaken> {
        let number = |text: &str| text.parse::<f64>().ok().filter(|number| number.is_finite());
        let is_number = matches!(kind_of(&self.kind).as_str(), "int" | "float");
        let Some(value) = number(value).filter(|_| is_number) else { return Ok(()) };
        let is_less = number(&self.minimum).is_some_and(|minimum| value < minimum);
        if !is_less && number(&self.maximum).is_none_or(|maximum| value <= maximum) {
            return Ok(());
        }
        let shown = |bound: &str| number(bound).map_or_else(|| "anything".to_owned(), |bound| bound.to_string());
        let (minimum, maximum) = (shown(&self.minimum), shown(&self.maximum));
        Err(NotTaken::Bounds { name: self.name.chars().take(MAX_SHOWN).collect(), minimum, maximum })
    }
}

/// A membership message.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Membership {
    added_devices: Option<Vec<Member>>,
    removed_devices: Option<Vec<Member>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Member {
    id: String,
    description: String,
}

/// A Device is there, or is different. `model` finds a DeviceModel by its path.
pub(super) fn put(
    devices: &mut Devices,
    node: &str,
    text: &[u8],
    model: impl Fn(&str) -> Option<Vec<u8>>,
) -> Option<(DeviceId, Answer)> {
    let object: Object = match serde_json::from_slice(text) {
        Ok(object) => object,
        Err(error) => {
            warn!(%error, "a Device cannot be read");
            return None;
        }
    };
    let id = DeviceId::parse(&format!("{}/{}", object.metadata.namespace, object.metadata.name))?;
    let mut answer = Answer::about(&id);
    let known = devices.get(&id).map(|device| device.about.clone());
    let is_same = known.as_ref().is_some_and(|about| about.uid.is_empty() || about.uid == object.metadata.uid);
    let description = object.metadata.labels.get("description").cloned().unwrap_or_default();
    if is_same {
        let about = known.clone().unwrap_or_default();
        let now = About { uid: object.metadata.uid.clone(), description, ..about.clone() };
        if now != about
            && let Some(device) = devices.get_mut(&id)
        {
            device.about = now;
            devices.touch(&id);
        }
    } else {
        if known.is_some() {
            answer.told.push(updated(devices, node, &id, false));
        }
        devices.add(&id, About { uid: object.metadata.uid.clone(), description, ..About::default() });
        answer.told.push(updated(devices, node, &id, true));
    }
    let model_name = object.spec.device_model_ref.as_ref().map(|model| model.name.as_str()).unwrap_or_default();
    let model = model(&format!("{}/{}/{model_name}", id.namespace, wire::kind::DEVICE_MODEL));
    history::ask(devices, &id, Asked::new(text, model_name, model.as_deref()), &mut answer);
    name_properties(devices, &id, &object);
    desire(devices, &id, &object, model.as_deref(), &mut answer);
    Some((id, answer))
}

/// A Device is gone, or another has its name.
pub(super) fn remove(devices: &mut Devices, node: &str, id: &DeviceId, uid: &str) -> Answer {
    let mut answer = Answer::about(id);
    let is_it = |about: &About| uid.is_empty() || about.uid.is_empty() || about.uid == uid;
    if devices.get(id).is_some_and(|device| is_it(&device.about)) {
        answer.told.push(updated(devices, node, id, false));
        devices.remove(id);
    }
    answer
}

/// A membership message.
pub(super) fn member(devices: &mut Devices, node: &str, message: &[u8]) -> Vec<Answer> {
    let Ok(membership) = serde_json::from_slice::<Membership>(message) else {
        warn!("a membership message cannot be read");
        return Vec::new();
    };
    let mut answers = Vec::new();
    for added in membership.added_devices.into_iter().flatten() {
        let Some(id) = DeviceId::parse(&added.id).filter(|id| devices.get(id).is_none()) else { continue };
        devices.add(&id, About { description: added.description, ..About::default() });
        let mut answer = Answer::about(&id);
        answer.told.push(updated(devices, node, &id, true));
        answers.push(answer);
    }
    for removed in membership.removed_devices.into_iter().flatten() {
        // One that has an object goes with it.
        let Some(id) = DeviceId::parse(&removed.id) else { continue };
        if devices.get(&id).is_some_and(|device| device.about.uid.is_empty()) {
            answers.push(remove(devices, node, &id, ""));
        }
    }
    answers
}

/// The cloud takes values of the properties that the object names: when those are others, it may not have heard of some.
fn name_properties(devices: &mut Devices, id: &DeviceId, object: &Object) {
    let Some(device) = devices.get_mut(id) else { return };
    let named: BTreeSet<String> =
        object.spec.properties.iter().flatten().map(|property| property.name.clone()).collect();
    if named == device.about.properties {
        return;
    }
    device.about.properties = named;
    let all: Vec<String> = device.twin.properties.keys().cloned().collect();
    device.untold.extend(all.iter().cloned());
    devices.touch(id);
    all.iter().for_each(|property| devices.touch_property(id, property));
}

/// What the object wishes otherwise than it did before counts for more than what the edge wished.
fn desire(devices: &mut Devices, id: &DeviceId, object: &Object, model: Option<&[u8]>, answer: &mut Answer) {
    let Some(device) = devices.get_mut(id) else { return };
    let wishes = object.spec.properties.iter().flatten();
    let wishes: BTreeMap<&str, &Desired> = wishes
        .filter_map(|property| Some((property.name.as_str(), property.desired.as_ref()?)))
        .filter(|(_, desired)| !desired.value.is_empty())
        .collect();
    let mut desired: BTreeMap<String, String> =
        wishes.iter().map(|(name, desired)| ((*name).to_owned(), desired.value.clone())).collect();
    if desired == device.about.desired {
        return;
    }
    let properties = properties(model);
    let mut all = twin::twin::Outcome::default();
    for (name, wish) in wishes {
        if device.about.desired.get(name) == Some(&wish.value) {
            continue;
        }
        let given = wish.metadata.as_ref().and_then(|metadata| metadata.get("type"));
        let of_model = properties.get(name);
        let kind = of_model
            .map(|property| kind_of(&property.kind))
            .or_else(|| given.map(|kind| kind_of(kind)))
            .unwrap_or_default();
        let version = device.versions(name).map(|[expected, _]| expected).unwrap_or_default();
        let entry = Entry {
            expected: Some(Value { value: Some(wish.value.clone()), metadata: None }),
            metadata: Some(TypeMetadata { kind }),
            expected_version: Some(Version { cloud: version.cloud + 1, ..version }),
            ..Entry::default()
        };
        let within = of_model.map_or(Ok(()), |property| property.check(&wish.value));
        let entries = Entries::from([(name.to_owned(), Some(entry))]);
        match within.and_then(|()| Ok(device.twin.sync(&entries, compose::now())?)) {
            Ok(outcome) => {
                all.document.extend(outcome.document);
                all.changed.extend(outcome.changed);
                all.report.extend(outcome.report);
                all.delta = outcome.delta;
            }
            Err(refusal) => {
                warn!(device = %id, reason = %refusal, "a desired value is not taken; {AGAIN}");
                answer.note(id, "DesiredValueRefused", format!("{}; {AGAIN}", refusal.summary()));
                desired.remove(name);
            }
        }
    }
    // The cloud hears what is now expected here.
    let entries = all
        .changed
        .iter()
        .filter_map(|name| Some((name.clone(), Some(device.twin.properties.get(name)?.report(true, false)))));
    all.report.extend(entries.collect::<Entries>());
    device.about.desired = desired;
    devices.touch(id);
    take_in(devices, id, &all);
    tell_changes(answer, id, "", &all);
}

/// What the model says of properties.
fn properties(model: Option<&[u8]>) -> BTreeMap<String, ModelProperty> {
    let model: Model = model.and_then(|text| serde_json::from_slice(text).ok()).unwrap_or_default();
    model.spec.properties.into_iter().map(|property| (property.name.clone(), property)).collect()
}

/// The type of a twin's property for one of a DeviceModel's.
fn kind_of(model: &str) -> String {
    match model.to_ascii_lowercase().as_str() {
        "int" | "integer" => "int",
        "float" | "double" => "float",
        "boolean" => "boolean",
        _ => "string",
    }
    .to_owned()
}

fn updated(devices: &Devices, node: &str, id: &DeviceId, is_there: bool) -> Told {
    let device = devices.get(id).map(|device| device.about.clone()).unwrap_or_default();
    let member = json!([listed(id, &About { description: device.description, ..About::default() })]);
    let (added, removed) = if is_there { (member, json!(null)) } else { (json!(null), member) };
    let payload = json!({
        "event_id": compose::id(),
        "timestamp": compose::now(),
        "added_devices": added,
        "removed_devices": removed,
    });
    Told { topic: node_topic(node, "membership/updated"), payload: payload.to_string().into_bytes() }
}
