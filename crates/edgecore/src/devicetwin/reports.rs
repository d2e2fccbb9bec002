//! What the cloud is to hear of devices: the latest of each property and of the state, until it has confirmed it.
//!
//! What is untold is written down with the values, so that neither a broken link nor a killed edgecore loses a report. One message of
//! a device is under way at a time, and messages of it are a second apart, for cloudcore writes no faster: what changes meanwhile goes with the
//! next, in its latest value, and has not grown old in cloudcore when it is written.

use std::collections::{BTreeSet, HashMap, HashSet};
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
pub(super) const MAX_IN_FLIGHT: usize = 256;
/// Properties in one message.
const MAX_PROPERTIES: usize = 256;
/// Messages of one device are so far apart.
const INTERVAL: Duration = Duration::from_secs(1);
/// After so long without a confirmation, or after a refusal, the latest is sent again (KubeEdge v1.23).
const RESEND_AFTER: Duration = Duration::from_secs(60);

/// Of all devices.
#[derive(Default)]
pub(super) struct Reports {
    connected: bool,
    /// Devices with something untold and nothing under way, and when they may speak.
    waiting: BTreeSet<(Instant, DeviceId)>,
    /// The same, to find them.
    waits: HashSet<DeviceId>,
    /// By message id, what is under way.
    in_flight: HashMap<String, Flight>,
    flying: HashSet<DeviceId>,
    /// The last message of each on this link.
    said: HashMap<DeviceId, Said>,
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

/// A message that was sent.
struct Said {
    at: Instant,
    /// It was about properties: a state that is untold comes first now.
    is_twin: bool,
}

enum What {
    /// Properties, and the versions that were told.
    Twin(Vec<(String, [Version; 2])>),
    /// A state and when the device was last online.
    State(String, String),
}

impl Reports {
    /// Something of this device may be untold.
    pub(super) fn want(&mut self, id: &DeviceId, now: Instant) {
        if self.flying.contains(id) || self.waits.contains(id) {
            return;
        }
        let due = self.said.get(id).map_or(now, |said| now.max(said.at + INTERVAL));
        self.wait(id, due);
    }

    fn wait(&mut self, id: &DeviceId, due: Instant) {
        self.waits.insert(id.clone());
        self.waiting.insert((due, id.clone()));
    }

    /// The link stands, or does not: what was under way may be lost.
    pub(super) fn link(&mut self, connected: bool, devices: &Devices, now: Instant) {
        *self = Self { connected, count: self.count, ..Self::default() };
        if connected {
            for (id, device) in devices.all() {
                if has_untold(device) {
                    self.want(id, now);
                }
            }
        }
    }

    /// Whether the link stands.
    pub(super) fn is_connected(&self) -> bool {
        self.connected
    }

    /// The next message, if one may go now.
    pub(super) fn next(&mut self, devices: &Devices, now: Instant) -> Option<Message> {
        while self.connected && self.in_flight.len() < MAX_IN_FLIGHT {
            self.waiting.first().filter(|(due, _)| *due <= now)?;
            let (_, id) = self.waiting.pop_first()?;
            self.waits.remove(&id);
            let state_first = self.said.get(&id).is_some_and(|said| said.is_twin);
            let Some(device) = devices.get(&id) else {
                self.said.remove(&id);
                continue;
            };
            let Some((what, message)) = compose_report(&id, device, state_first, self.count) else { continue };
            self.count = self.count.wrapping_add(1);
            self.said.insert(id.clone(), Said { at: now, is_twin: matches!(what, What::Twin(_)) });
            let uid = device.about.uid.clone();
            self.flying.insert(id.clone());
            self.in_flight.insert(message.header.msg_id.clone(), Flight { device: id, uid, what, sent: now });
            return Some(message);
        }
        None
    }

    /// The cloud has confirmed the message with this id: what was told is noted, unless it is something else by now.
    pub(super) fn confirmed(&mut self, id: &str, devices: &mut Devices, now: Instant) {
        let Some(Flight { device: id, uid, what, .. }) = self.in_flight.remove(id) else { return };
        self.flying.remove(&id);
        let Some(device) = devices.get_mut(&id) else {
            self.said.remove(&id);
            return;
        };
        if device.about.uid != uid {
            return self.want(&id, now);
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
            self.want(&id, now);
        }
    }

    /// The cloud could not do what the message with this id says: the latest goes later, and others in the meantime.
    pub(super) fn refused(&mut self, id: &str, now: Instant) {
        let Some(Flight { device, .. }) = self.in_flight.remove(id) else { return };
        self.flying.remove(&device);
        self.wait(&device, now + RESEND_AFTER);
    }

    /// When something has to be sent without further events.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let may_speak = self.connected && self.in_flight.len() < MAX_IN_FLIGHT;
        let first = self.waiting.first().map(|(due, _)| *due).filter(|_| may_speak);
        first.into_iter().chain(self.in_flight.values().map(|flight| flight.sent + RESEND_AFTER)).min()
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
            self.want(&flight.device, now);
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
    use crate::eventbus::Arrived;

    /// Devices and a link whose clock the test has; at each look a device may speak again.
    struct World {
        devices: Devices,
        reports: Reports,
        id: DeviceId,
        now: Instant,
    }

    impl World {
        fn new() -> Self {
            let (mut devices, id) = (Devices::default(), DeviceId::parse("t1").expect("id"));
            devices.add(&id, About::default());
            Self { devices, reports: Reports::default(), id, now: Instant::now() }
        }

        fn link(&mut self, stands: bool) {
            self.reports.link(stands, &self.devices, self.now);
        }

        fn say(&mut self, topic: &str, payload: &str) {
            let topic = format!("$hw/events/device/default/t1/{topic}");
            let arrived = Arrived::of_test(&topic, payload.to_owned().into());
            let answer = carry_out(&mut self.devices, "n", &arrived).expect("answered");
            self.reports.want(&answer.device.expect("changed"), self.now);
        }

        fn report(&mut self, value: u32) {
            let twin = json!({"temperature": {"actual": {"value": value.to_string()}}});
            self.say("twin/update", &json!({"event_id": "e", "twin": twin}).to_string());
        }

        fn next(&mut self) -> Option<Message> {
            self.now += INTERVAL;
            self.reports.next(&self.devices, self.now)
        }

        fn confirm(&mut self, message: &Message) {
            self.reports.confirmed(&message.header.msg_id, &mut self.devices, self.now);
        }

        fn has_untold(&self) -> bool {
            has_untold(self.devices.get(&self.id).expect("device"))
        }
    }

    fn value(message: &Message) -> String {
        let content: serde_json::Value = message.content.parse().expect("JSON");
        content["twin"]["temperature"]["actual"]["value"].as_str().unwrap_or_default().to_owned()
    }

    #[test]
    fn one_message_of_a_device_is_under_way_and_the_next_has_the_latest_value() {
        let mut world = World::new();
        world.report(1);
        assert!(world.next().is_none(), "no link");
        world.link(true);
        let first = world.next().expect("sent");
        assert_eq!(
            (value(&first).as_str(), first.route.resource.as_str()),
            ("1", "device/default/t1/twin/edge_updated")
        );
        for number in 2..10 {
            world.report(number);
            assert!(world.next().is_none(), "the first is under way");
        }
        world.confirm(&first);
        let second = world.next().expect("what came meanwhile");
        assert_eq!(value(&second), "9");
        world.confirm(&first);
        assert!(world.has_untold(), "late, and of the first");
        world.confirm(&second);
        assert!(!world.has_untold() && world.next().is_none());
    }

    #[test]
    fn messages_of_a_device_are_apart_and_the_next_has_what_is_the_latest_then() {
        let mut world = World::new();
        world.link(true);
        world.report(1);
        let first = world.reports.next(&world.devices, world.now).expect("the first goes at once");
        let (sent, due) = (world.now, world.now + INTERVAL);
        world.now += INTERVAL / 10;
        world.report(2);
        world.confirm(&first);
        assert_eq!(world.reports.next_due(), Some(due));
        world.now = sent + INTERVAL / 2;
        assert!(world.reports.next(&world.devices, world.now).is_none(), "too early");
        world.report(3);
        assert_eq!(value(&world.reports.next(&world.devices, due).expect("due")), "3");
        // A link that is new owes nothing to the one before.
        world.report(4);
        world.link(false);
        assert_eq!(world.reports.next_due(), None);
        world.link(true);
        assert_eq!(value(&world.reports.next(&world.devices, world.now).expect("at once")), "4");
    }

    #[test]
    fn what_was_under_way_when_the_link_broke_goes_again() {
        let mut world = World::new();
        world.link(true);
        world.report(1);
        let lost = world.next().expect("sent");
        world.link(false);
        world.report(2);
        world.link(true);
        assert_eq!(value(&world.next().expect("again")), "2");
        world.confirm(&lost);
        assert!(world.next().is_none(), "one is under way");
        world.now += RESEND_AFTER;
        world.reports.repeat(world.now);
        assert_eq!(value(&world.next().expect("not confirmed in time")), "2");
    }

    #[test]
    fn devices_that_are_refused_wait_and_hold_nobody_up() {
        let mut world = World::new();
        world.link(true);
        for number in 0..MAX_IN_FLIGHT {
            let id = DeviceId::parse(&format!("d{number}")).expect("id");
            world.devices.add(&id, About { is_state_untold: true, ..About::default() });
            world.reports.want(&id, world.now);
        }
        let next = |world: &mut World, now| world.reports.next(&world.devices, now);
        let now = world.now;
        let all: Vec<Message> = std::iter::from_fn(|| next(&mut world, now)).collect();
        world.report(1);
        assert!(all.len() == MAX_IN_FLIGHT && next(&mut world, now).is_none(), "as many as may be under way");
        // Also if it is told twice.
        all.iter().chain(&all).for_each(|message| world.reports.refused(&message.header.msg_id, now));
        let other = next(&mut world, now).expect("another device");
        assert_eq!(value(&other), "1");
        world.confirm(&other);
        let due = now + RESEND_AFTER;
        assert_eq!(world.reports.next_due(), Some(due));
        let id = DeviceId::parse("d0").expect("id");
        world.reports.want(&id, now);
        assert!(next(&mut world, due - INTERVAL).is_none(), "not sooner for what it says meanwhile");
        assert_eq!(std::iter::from_fn(|| next(&mut world, due)).count(), MAX_IN_FLIGHT);
    }

    #[test]
    fn a_state_that_is_said_all_the_time_keeps_no_value_back() {
        let mut world = World::new();
        world.link(true);
        let mut told = Vec::new();
        for number in 0..4 {
            world.say("state/update", r#"{"state":"ok"}"#);
            world.report(number);
            let message = world.next().expect("sent");
            told.push(message.route.resource.ends_with("state/update"));
            world.confirm(&message);
        }
        assert_eq!(told, [false, true, false, true]);
    }

    #[test]
    fn a_confirmation_is_of_the_device_that_was_told_of() {
        let mut world = World::new();
        world.link(true);
        world.report(1);
        let of_the_first = world.next().expect("sent");
        world.devices.add(&world.id, About { uid: "another".to_owned(), ..About::default() });
        world.report(1);
        world.confirm(&of_the_first);
        assert_eq!(value(&world.next().expect("of the second")), "1");
    }
}
