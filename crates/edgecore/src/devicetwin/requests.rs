//! What devices say over MQTT, and what they hear.

use beehive::compose;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use twin::check::Refusal;
use twin::payload::{Entries, MAX_PAYLOAD, Request};
use twin::topic::{DeviceId, Topic};
use twin::twin::Outcome;

use super::device::{About, Devices};
use super::history;
use crate::eventbus::{Arrived, Refused};

/// States that a device may have (KubeEdge v1.23; in any case of letters).
const STATES: [&str; 5] = ["online", "offline", "ok", "unknown", "unhealthy"];

/// Letters of a state that an answer repeats.
const MAX_STATE: usize = 128;

/// A message for whoever has subscribed to its topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) topic: String,
    pub(super) payload: Vec<u8>,
}

/// What a request leads to, once it is written down.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) told: Vec<Told>,
    /// The device that the request was about, if it may have changed.
    pub(super) device: Option<DeviceId>,
    /// What users hear of the device.
    pub(super) notes: Vec<Note>,
    /// Where a refusal is told, and the id of the request.
    refusals: Option<(String, String)>,
    /// It was refused.
    pub(super) refused: Option<Refused>,
}

/// For an event of a device, if it exists.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Note {
    pub(super) device: DeviceId,
    pub(super) reason: &'static str,
    pub(super) text: String,
}

/// Answers of twins, in the order of KubeEdge's fields.
#[derive(Serialize)]
struct TwinAnswer<'a, T: Serialize> {
    event_id: &'a str,
    timestamp: i64,
    twin: T,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct StateRequest {
    event_id: String,
    #[serde(alias = "State")]
    state: Option<String>,
}

/// Of a request that the node's table of devices has no part in.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Bare {
    event_id: String,
}

/// Why a request about a device is refused.
#[derive(Debug, thiserror::Error)]
enum NotDone {
    #[error(transparent)]
    Twin(#[from] Refusal),
    #[error("the payload has no \"state\": it is one of {}", STATES.join(", "))]
    NoState,
    #[error("there is no state {state:?}, only {}", STATES.join(", "))]
    State { state: String },
    #[error("the payload is no request as JSON: {0}")]
    Shape(#[source] serde_json::Error),
}

impl NotDone {
    fn code(&self) -> u16 {
        match self {
            Self::Twin(refusal) => refusal.code(),
            _ => 400,
        }
    }

    /// As in [`Refusal::summary`].
    fn summary(&self) -> String {
        match self {
            Self::Twin(refusal) => refusal.summary(),
            Self::NoState => self.to_string(),
            Self::State { .. } => format!("there is no such state, only {}", STATES.join(", ")),
            Self::Shape(_) => "the payload is no request as JSON".to_owned(),
        }
    }
}

impl Answer {
    /// Of a change of this device.
    pub(super) fn about(id: &DeviceId) -> Self {
        Self { device: Some(id.clone()), ..Self::default() }
    }

    /// An event of this device.
    pub(super) fn note(&mut self, device: &DeviceId, reason: &'static str, text: String) {
        self.notes.push(Note { device: device.clone(), reason, text });
    }

    fn tell(&mut self, topic: String, payload: &impl Serialize) {
        // What is told has texts and numbers only.
        let payload = serde_json::to_vec(payload).unwrap_or_default();
        self.told.push(Told { topic, payload });
    }

    fn refuse(&mut self, code: u16, reason: &str) {
        self.refused = Some(Refused { code, reason: reason.to_owned() });
        let Some((topic, event_id)) = self.refusals.take() else { return };
        self.told.clear();
        self.tell(topic, &json!({"event_id": event_id, "timestamp": compose::now(), "code": code, "reason": reason}));
    }

    /// It could not be written down: nothing of it was done.
    pub(super) fn not_stored(mut self, reason: &str) -> Vec<Told> {
        self.told.clear();
        self.refuse(500, reason);
        self.told
    }
}

/// Carries out a request; `node` is the own one.
pub(super) fn carry_out(devices: &mut Devices, node: &str, request: &Arrived) -> Option<Answer> {
    let payload = &request.payload[..];
    let Some(topic) = Topic::parse(&request.topic) else { return nobody(&request.topic, payload) };
    let mut answer = Answer::default();
    let done = match &topic {
        Topic::MembershipGet => {
            let results = node_topic(node, "membership/get/result");
            answer.refusals = Some((results.clone(), String::new()));
            membership(devices, &results, payload, &mut answer)
        }
        Topic::StateUpdate(id) => state(devices, id, payload, &mut answer),
        Topic::TwinGet(id) => get(devices, id, payload, &mut answer),
        Topic::TwinUpdate(id) => update(devices, id, request, false, &mut answer),
        Topic::CloudUpdated(id) => update(devices, id, request, true, &mut answer),
        // What DeviceTwin says itself.
        Topic::Attributes(_) | Topic::MembershipUpdated => return None,
    };
    if let Err(error) = done {
        answer.device = None;
        answer.refuse(error.code(), &error.to_string());
        let noted = match &topic {
            Topic::StateUpdate(id) => Some((id, "ReportRefused", "state/update")),
            Topic::TwinUpdate(id) => Some((id, "ReportRefused", "twin/update")),
            Topic::CloudUpdated(id) => Some((id, "DesiredValueRefused", "twin/cloud_updated")),
            _ => None,
        };
        if let Some((id, reason, what)) = noted {
            answer.note(id, reason, format!("{what}: {}", error.summary()));
        }
    }
    Some(answer)
}

/// Of a name that no device can have whoever uses it hears where it would listen.
fn nobody(topic: &str, payload: &[u8]) -> Option<Answer> {
    let asks = ["/twin/update", "/twin/get", "/state/update"].iter().any(|request| topic.ends_with(request));
    if !asks || !topic.starts_with("$hw/events/device/") {
        return None;
    }
    let bare: Bare = parse(payload).unwrap_or_default();
    let mut answer = Answer { refusals: Some((format!("{topic}/result"), bare.event_id)), ..Answer::default() };
    let why = "no device has such a name: NAMESPACE/NAME, both of a-z 0-9 - .";
    answer.refuse(Refusal::NoDevice.code(), why);
    Some(answer)
}

/// A topic of this node.
pub(super) fn node_topic(node: &str, what: &str) -> String {
    format!("$hw/events/node/{node}/{what}")
}

fn parse<'a, T: Deserialize<'a>>(payload: &'a [u8]) -> Result<T, NotDone> {
    if payload.len() > MAX_PAYLOAD {
        return Err(Refusal::Long { bytes: payload.len() }.into());
    }
    serde_json::from_slice(payload).map_err(NotDone::Shape)
}

fn membership(devices: &Devices, topic: &str, payload: &[u8], answer: &mut Answer) -> Result<(), NotDone> {
    let bare: Bare = parse(payload)?;
    let all: Vec<_> = devices.all().into_iter().map(|(id, device)| listed(id, &device.about)).collect();
    answer.tell(topic.to_owned(), &json!({"event_id": bare.event_id, "timestamp": compose::now(), "devices": all}));
    Ok(())
}

/// A device as membership messages have it.
pub(super) fn listed(id: &DeviceId, about: &About) -> serde_json::Value {
    let mut listed = json!({"id": id.to_string(), "name": id.name});
    for (name, text) in
        [("description", &about.description), ("state", &about.state), ("last_online", &about.last_online)]
    {
        if !text.is_empty() {
            listed[name] = text.as_str().into();
        }
    }
    listed
}

fn state(devices: &mut Devices, id: &DeviceId, payload: &[u8], answer: &mut Answer) -> Result<(), NotDone> {
    answer.refusals = Some((id.topic("state/update/result"), String::new()));
    let request: StateRequest = parse(payload)?;
    answer.refusals = Some((id.topic("state/update/result"), request.event_id));
    let state = request.state.ok_or(NotDone::NoState)?;
    if !STATES.iter().any(|known| known.eq_ignore_ascii_case(&state)) {
        return Err(NotDone::State { state: state.chars().take(MAX_STATE).collect() });
    }
    let device = devices.get_mut(id).ok_or(Refusal::NoDevice)?;
    let about = &mut device.about;
    let is_there = ["online", "ok"].iter().any(|known| known.eq_ignore_ascii_case(&state));
    about.last_online = if is_there { now_text() } else { String::new() };
    about.state = state;
    about.is_state_untold = true;
    let told = state_message(id, about);
    devices.touch(id);
    answer.device = Some(id.clone());
    answer.tell(id.topic("state/update/result"), &told);
    Ok(())
}

/// What the cloud and subscribers hear of a device's state.
pub(super) fn state_message(id: &DeviceId, about: &About) -> serde_json::Value {
    let mut device = json!({"name": id.name, "state": about.state});
    if !about.last_online.is_empty() {
        device["lastOnlineTime"] = about.last_online.as_str().into();
    }
    json!({"event_id": compose::id(), "timestamp": compose::now(), "device": device})
}

fn get(devices: &Devices, id: &DeviceId, payload: &[u8], answer: &mut Answer) -> Result<(), NotDone> {
    answer.refusals = Some((id.topic("twin/get/result"), String::new()));
    let request = Request::parse(payload)?;
    answer.refusals = Some((id.topic("twin/get/result"), request.event_id.clone()));
    let device = devices.get(id).ok_or(Refusal::NoDevice)?;
    let (event_id, timestamp) = (request.event_id.as_str(), compose::now());
    answer.tell(id.topic("twin/get/result"), &TwinAnswer { event_id, timestamp, twin: device.twin.get() });
    Ok(())
}

fn update(
    devices: &mut Devices,
    id: &DeviceId,
    arrived: &Arrived,
    is_of_cloud: bool,
    answer: &mut Answer,
) -> Result<(), NotDone> {
    answer.refusals = Some((id.topic("twin/update/result"), String::new()));
    let mut request = Request::parse(&arrived.payload)?;
    answer.refusals = Some((id.topic("twin/update/result"), request.event_id.clone()));
    request.entries()?;
    let device = devices.get_mut(id).ok_or(Refusal::NoDevice)?;
    if arrived.is_of_mapper() {
        // That the Device wishes what cannot be was told when it came.
        request.twin = request.twin.map(|entries| device.twin.reported(entries));
    }
    let entries = request.entries()?;
    let now = compose::now();
    let outcome = if is_of_cloud { device.twin.sync(entries, now)? } else { device.twin.update(entries, now)? };
    take_in(devices, id, &outcome);
    if !is_of_cloud {
        // When it was said what a broker had kept, nobody knows; it may have a place in the history already.
        if !arrived.was_retained {
            history::keep(devices, id, &outcome.result);
        }
        let result: &Entries = &outcome.result;
        let event_id = request.event_id.as_str();
        answer.tell(id.topic("twin/update/result"), &TwinAnswer { event_id, timestamp: now, twin: result });
    }
    tell_changes(answer, id, &request.event_id, &outcome);
    answer.device = Some(id.clone());
    Ok(())
}

/// Notes what an outcome has changed, for the database and for the cloud.
pub(super) fn take_in(devices: &mut Devices, id: &DeviceId, outcome: &Outcome) {
    if let Some(device) = devices.get_mut(id) {
        device.untold.extend(outcome.report.keys().cloned());
    }
    for property in outcome.changed.iter().chain(outcome.report.keys()) {
        devices.touch_property(id, property);
    }
}

/// What subscribers hear of changes, whoever made them.
pub(super) fn tell_changes(answer: &mut Answer, id: &DeviceId, event_id: &str, outcome: &Outcome) {
    let timestamp = compose::now();
    if !outcome.document.is_empty() {
        answer.tell(id.topic("twin/update/document"), &TwinAnswer { event_id, timestamp, twin: &outcome.document });
    }
    if let Some(delta) = &outcome.delta {
        #[derive(Serialize)]
        struct Told<'a> {
            event_id: String,
            timestamp: i64,
            #[serde(flatten)]
            delta: &'a twin::twin::Delta,
        }
        answer.tell(id.topic("twin/update/delta"), &Told { event_id: compose::id(), timestamp, delta });
    }
}

fn now_text() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
