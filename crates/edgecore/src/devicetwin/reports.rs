//! What the cloud is to hear of devices: the latest of each property and of the state, until it has confirmed it.
//!
//! What is untold is written down with the values, so that neither a broken link nor a killed edgecore loses a report. One message of
//! a device is under way at a time; what changes meanwhile goes with the next, in its latest value.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use beehive::compose;
use serde_json::json;
use tokio::time::Instant;
use twin::payload::{Entries, Version};
use twin::topic::DeviceId;
use wire::{Content, Message, group, operation, source};

use super::device::{Device, Devices};
use super::requests::state_message;

/// Devices with a message under way at any time.
const MAX_IN_FLIGHT: usize = 256;
/// Properties in one message.
const MAX_PROPERTIES: usize = 256;
/// After so long without a confirmation the latest is sent again (KubeEdge v1.23).
const RESEND_AFTER: Duration = Duration::from_secs(60);

/// Of all devices.
#[derive(Default)]
pub(super) struct Reports {
    connected: bool,
    /// Devices with something untold and nothing under way.
    waiting: VecDeque<DeviceId>,
    /// The same, to find them.
    waits: HashSet<DeviceId>,
    /// By message id, what is under way.
    in_flight: HashMap<String, Flight>,
    flying: HashSet<DeviceId>,
    /// Of these the last message was about properties: a state that is untold comes first now.
    said_twin: HashSet<DeviceId>,
    /// Messages so far: those of a device with very many properties begin at another each time.
    count: usize,
}

/// A message under way.
struct Flight {
    device: DeviceId,
    /// Another may have its name by now.
    uid: String,
    what: What,
    sent: Instant,
}

enum What {
    /// Properties, and the versions that were told.
    Twin(Vec<(String, [Version; 2])>),
    /// A state and when the device was last online.
    State(String, String),
}

impl Reports {
    /// Something of this device may be untold.
    pub(super) fn want(&mut self, id: &DeviceId) {
        if !self.flying.contains(id) && self.waits.insert(id.clone()) {
            self.waiting.push_back(id.clone());
        }
    }

    /// The link stands, or does not: what was under way may be lost.
    pub(super) fn link(&mut self, connected: bool, devices: &Devices) {
        self.connected = connected;
        self.in_flight.clear();
        self.flying.clear();
        if connected {
            for (id, device) in devices.all() {
                if has_untold(device) {
                    self.want(id);
                }
            }
        }
    }

    /// Whether the link stands.
    pub(super) fn is_connected(&self) -> bool {
        self.connected
    }

    /// The next message, if one may go now.
    pub(super) fn next(&mut self, devices: &Devices) -> Option<Message> {
        while self.connected && self.in_flight.len() < MAX_IN_FLIGHT {
            let id = self.waiting.pop_front()?;
            self.waits.remove(&id);
            let state_first = self.said_twin.contains(&id);
            let Some(device) = devices.get(&id) else { continue };
            let Some((what, message)) = compose_report(&id, device, state_first, self.count) else { continue };
            self.count = self.count.wrapping_add(1);
            match what {
                What::Twin(_) => self.said_twin.insert(id.clone()),
                What::State(..) => self.said_twin.remove(&id),
            };
            let uid = device.about.uid.clone();
            self.flying.insert(id.clone());
            self.in_flight
                .insert(message.header.msg_id.clone(), Flight { device: id, uid, what, sent: Instant::now() });
            return Some(message);
        }
        None
    }

    /// The cloud has confirmed the message with this id: what was told is noted, unless it is something else by now.
    pub(super) fn confirmed(&mut self, id: &str, devices: &mut Devices) {
        let Some(Flight { device: id, uid, what, .. }) = self.in_flight.remove(id) else { return };
        self.flying.remove(&id);
        let Some(device) = devices.get_mut(&id) else {
            self.said_twin.remove(&id);
            return;
        };
        if device.about.uid != uid {
            return self.want(&id);
        }
        let mut told = Vec::new();
        match what {
            What::Twin(properties) => {
                for (name, versions) in properties {
                    if device.versions(&name) == Some(versions) && device.untold.remove(&name) {
                        told.push(name);
                    }
                }
            }
            What::State(state, last_online) => {
                let about = &mut device.about;
                if about.is_state_untold && about.state == state && about.last_online == last_online {
                    about.is_state_untold = false;
                    devices.touch(&id);
                }
            }
        }
        told.iter().for_each(|name| devices.touch_property(&id, name));
        if devices.get(&id).is_some_and(has_untold) {
            self.want(&id);
        }
    }

    /// When something has to be sent again without further events.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.in_flight.values().map(|flight| flight.sent + RESEND_AFTER).min()
    }

    /// What was not confirmed in time goes again, in its latest value.
    pub(super) fn repeat(&mut self, now: Instant) {
        let late: Vec<String> = self
            .in_flight
            .iter()
            .filter(|(_, flight)| flight.sent + RESEND_AFTER <= now)
            .map(|(id, _)| id.clone())
            .collect();
        for flight in late.iter().filter_map(|id| self.in_flight.remove(id)).collect::<Vec<_>>() {
            self.flying.remove(&flight.device);
            self.want(&flight.device);
        }
    }
}

fn has_untold(device: &Device) -> bool {
    device.about.is_state_untold || !device.untold.is_empty()
}

fn compose_report(id: &DeviceId, device: &Device, state_first: bool, count: usize) -> Option<(What, Message)> {
    if device.about.is_state_untold && (state_first || device.untold.is_empty()) {
        let what = What::State(device.about.state.clone(), device.about.last_online.clone());
        // A text that holds JSON (KubeEdge v1.23).
        let content = Content::text(&state_message(id, &device.about).to_string());
        return Some((what, message(id, "state/update", content)));
    }
    let all = device.untold.len();
    let first = if all > MAX_PROPERTIES { count.wrapping_mul(MAX_PROPERTIES) % all } else { 0 };
    let told = device.untold.iter().cycle().skip(first).take(all.min(MAX_PROPERTIES));
    let told: Vec<(String, [Version; 2])> =
        told.filter_map(|name| Some((name.clone(), device.versions(name)?))).collect();
    let entry = |name: &String| device.twin.properties.get(name).map(|property| property.report(true, true));
    let entries: Entries = told.iter().map(|(name, _)| (name.clone(), entry(name))).collect();
    let content = json!({"event_id": compose::id(), "timestamp": compose::now(), "twin": entries});
    let content = Content::json(&content).ok()?;
    (!told.is_empty()).then(|| (What::Twin(told), message(id, "twin/edge_updated", content)))
}

fn message(id: &DeviceId, what: &str, content: Content) -> Message {
    compose::message(source::TWIN, group::RESOURCE, operation::UPDATE, &format!("device/{id}/{what}"), content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devicetwin::device::About;
    use crate::devicetwin::requests::carry_out;

    fn world() -> (Devices, Reports, DeviceId) {
        let mut devices = Devices::default();
        let id = DeviceId::parse("t1").expect("id");
        devices.add(&id, About::default());
        (devices, Reports::default(), id)
    }

    fn report(devices: &mut Devices, reports: &mut Reports, value: &str) {
        let payload = json!({"event_id": "e", "twin": {"temperature": {"actual": {"value": value}}}}).to_string();
        let topic = "$hw/events/device/default/t1/twin/update";
        let answer = carry_out(devices, "n", topic, payload.as_bytes()).expect("answered");
        reports.want(&answer.device.expect("changed"));
    }

    fn value(message: &Message) -> String {
        let content: serde_json::Value = message.content.parse().expect("JSON");
        content["twin"]["temperature"]["actual"]["value"].as_str().unwrap_or_default().to_owned()
    }

    #[test]
    fn one_message_of_a_device_is_under_way_and_the_next_has_the_latest_value() {
        let (mut devices, mut reports, id) = world();
        report(&mut devices, &mut reports, "1");
        assert!(reports.next(&devices).is_none(), "no link");
        reports.link(true, &devices);
        let first = reports.next(&devices).expect("sent");
        assert_eq!(
            (value(&first).as_str(), first.route.resource.as_str()),
            ("1", "device/default/t1/twin/edge_updated")
        );
        for number in 2..10 {
            report(&mut devices, &mut reports, &number.to_string());
            assert!(reports.next(&devices).is_none(), "the first is under way");
        }
        reports.confirmed(&first.header.msg_id, &mut devices);
        let second = reports.next(&devices).expect("what came meanwhile");
        assert_eq!(value(&second), "9");
        reports.confirmed(&first.header.msg_id, &mut devices);
        assert!(!devices.get(&id).expect("device").untold.is_empty(), "late, and of the first");
        reports.confirmed(&second.header.msg_id, &mut devices);
        assert!(devices.get(&id).expect("device").untold.is_empty() && reports.next(&devices).is_none());
    }

    #[test]
    fn what_was_under_way_when_the_link_broke_goes_again() {
        let (mut devices, mut reports, _) = world();
        reports.link(true, &devices);
        report(&mut devices, &mut reports, "1");
        let lost = reports.next(&devices).expect("sent");
        reports.link(false, &devices);
        report(&mut devices, &mut reports, "2");
        reports.link(true, &devices);
        assert_eq!(value(&reports.next(&devices).expect("again")), "2");
        reports.confirmed(&lost.header.msg_id, &mut devices);
        assert!(reports.next(&devices).is_none(), "one is under way");
        reports.repeat(Instant::now() + RESEND_AFTER);
        assert_eq!(value(&reports.next(&devices).expect("not confirmed in time")), "2");
    }

    fn say_state(devices: &mut Devices, reports: &mut Reports) {
        let answer =
            carry_out(devices, "n", "$hw/events/device/t1/state/update", br#"{"state":"ok"}"#).expect("answered");
        reports.want(&answer.device.expect("changed"));
    }

    #[test]
    fn a_state_that_is_said_all_the_time_keeps_no_value_back() {
        let (mut devices, mut reports, _) = world();
        reports.link(true, &devices);
        let mut told = Vec::new();
        for number in 0..4 {
            say_state(&mut devices, &mut reports);
            report(&mut devices, &mut reports, &number.to_string());
            let message = reports.next(&devices).expect("sent");
            told.push(message.route.resource.ends_with("state/update"));
            reports.confirmed(&message.header.msg_id, &mut devices);
        }
        assert_eq!(told, [false, true, false, true]);
    }

    #[test]
    fn a_confirmation_is_of_the_device_that_was_told_of() {
        let (mut devices, mut reports, id) = world();
        reports.link(true, &devices);
        report(&mut devices, &mut reports, "1");
        let of_the_first = reports.next(&devices).expect("sent");
        devices.add(&id, About { uid: "another".to_owned(), ..About::default() });
        report(&mut devices, &mut reports, "1");
        reports.confirmed(&of_the_first.header.msg_id, &mut devices);
        assert_eq!(value(&reports.next(&devices).expect("of the second")), "1");
    }
}
