//! The devices of a simulated node. Each measures one property; the node tells the cloud the latest value of each until that has confirmed it,
//! one message of a device at a time and a second apart, in the shape of edgecore's DeviceTwin.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use beehive::compose;
use serde::Deserialize;
use serde_json::json;
use twin::payload::{Entries, Entry, TypeMetadata, Value};
use twin::twin::Twin;
use wire::{Content, EdgeResource, Message, group, kind, operation, source};

/// After so long without a confirmation the latest is sent again, as edgecore does.
const RESEND_AFTER: Duration = Duration::from_secs(60);
/// Messages of one device are so far apart, as edgecore's.
const INTERVAL: Duration = Duration::from_secs(1);
/// The type of what is measured: a count.
const KIND: &str = "int";

/// Of one node, by `NAMESPACE/NAME`.
#[derive(Default)]
pub(crate) struct Devices {
    all: BTreeMap<String, Device>,
    /// Whose turn it is to measure.
    turn: usize,
    /// By message id, what is under way: the device, the value, and since when.
    flying: HashMap<String, (String, usize, Instant)>,
    /// Devices with something to say, and when they may.
    waiting: BTreeSet<(Instant, String)>,
}

struct Device {
    uid: String,
    property: String,
    twin: Twin,
    /// When each value was measured. A value is the number of those before it.
    measured: Vec<Instant>,
    /// Values up to this count are confirmed, or a newer one is.
    told: usize,
    is_flying: bool,
    /// When its last message went.
    said: Option<Instant>,
}

impl Devices {
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// The node has stored a Device. One without properties measures nothing.
    pub(crate) fn put(&mut self, resource: &str, object: &Content) {
        #[derive(Deserialize)]
        struct Object {
            metadata: Metadata,
            #[serde(default)]
            spec: Spec,
        }
        #[derive(Deserialize)]
        struct Metadata {
            #[serde(default)]
            uid: String,
        }
        #[derive(Default, Deserialize)]
        struct Spec {
            #[serde(default)]
            properties: Vec<Property>,
        }
        #[derive(Deserialize)]
        struct Property {
            name: String,
        }
        let Some(name) = name_of(resource) else { return };
        let Ok(Object { metadata, spec }) = object.parse::<Object>() else { return };
        let Some(Property { name: property }) = spec.properties.into_iter().next() else {
            return self.remove(resource);
        };
        let is_same = |device: &Device| device.uid == metadata.uid && device.property == property;
        if !self.all.get(&name).is_some_and(is_same) {
            let (twin, measured) = (Twin::default(), Vec::new());
            self.all.insert(
                name,
                Device { uid: metadata.uid, property, twin, measured, told: 0, is_flying: false, said: None },
            );
        }
    }

    /// The Device is gone.
    pub(crate) fn remove(&mut self, resource: &str) {
        if let Some(name) = name_of(resource) {
            self.all.remove(&name);
        }
    }

    /// The next one measures; what is to be said then.
    pub(crate) fn measure(&mut self, now: Instant) -> Option<Message> {
        self.turn = (self.turn + 1) % self.all.len().max(1);
        let (name, device) = self.all.iter_mut().nth(self.turn)?;
        let value = Value { value: Some(device.measured.len().to_string()), ..Value::default() };
        let metadata = Some(TypeMetadata { kind: KIND.to_owned() });
        let entry = Entry { actual: Some(value), metadata, ..Entry::default() };
        let entries = Entries::from([(device.property.clone(), Some(entry))]);
        // A name that an edge would refuse has no values.
        device.twin.update(&entries, compose::now()).ok()?;
        device.measured.push(now);
        let name = name.clone();
        self.report(&name, now)
    }

    /// The latest of a device, unless it is told or something is under way.
    fn report(&mut self, name: &str, now: Instant) -> Option<Message> {
        let device = self.all.get_mut(name)?;
        let count = device.measured.len();
        if device.is_flying || device.told == count {
            return None;
        }
        if let Some(may) = device.said.map(|said| said + INTERVAL).filter(|may| *may > now) {
            self.waiting.insert((may, name.to_owned()));
            return None;
        }
        device.said = Some(now);
        let entry = device.twin.properties.get(&device.property)?.report(true, true);
        let entries = Entries::from([(device.property.clone(), Some(entry))]);
        let content = json!({"event_id": compose::id(), "timestamp": compose::now(), "twin": entries});
        let content = Content::json(&content).ok()?;
        let resource = format!("device/{name}/twin/edge_updated");
        let message = compose::message(source::TWIN, group::RESOURCE, operation::UPDATE, &resource, content);
        device.is_flying = true;
        self.flying.insert(message.header.msg_id.clone(), (name.to_owned(), count, now));
        Some(message)
    }

    /// An answer to the message with this id; what is to be said after it. A refusal confirms nothing.
    pub(crate) fn answered(&mut self, id: &str, is_refused: bool, now: Instant) -> Option<Message> {
        if is_refused {
            return None;
        }
        let (name, count, _) = self.flying.remove(id)?;
        let device = self.all.get_mut(&name)?;
        device.is_flying = false;
        // A namesake that came meanwhile has measured less, and is not meant.
        device.told = device.told.max(count.min(device.measured.len()));
        self.report(&name, now)
    }

    /// When the next device may speak that waits to.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.waiting.first().map(|(due, _)| *due)
    }

    /// What devices say that have waited.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<Message> {
        let mut said = Vec::new();
        while self.next_due().is_some_and(|due| due <= now)
            && let Some((_, name)) = self.waiting.pop_first()
        {
            said.extend(self.report(&name, now));
        }
        said
    }

    /// A new connection: what was under way may be lost. All that the cloud has to hear.
    pub(crate) fn connected(&mut self, now: Instant) -> Vec<Message> {
        self.flying.clear();
        self.waiting.clear();
        for device in self.all.values_mut() {
            (device.is_flying, device.said) = (false, None);
        }
        self.report_all(now)
    }

    /// What was not confirmed in time, in its latest value.
    pub(crate) fn late(&mut self, now: Instant) -> Vec<Message> {
        let is_late = |sent: Instant| sent + RESEND_AFTER <= now;
        for (name, _, _) in self.flying.values().filter(|(_, _, sent)| is_late(*sent)) {
            self.all.get_mut(name).into_iter().for_each(|device| device.is_flying = false);
        }
        self.flying.retain(|_, (_, _, sent)| !is_late(*sent));
        self.report_all(now)
    }

    fn report_all(&mut self, now: Instant) -> Vec<Message> {
        let names: Vec<String> = self.all.keys().cloned().collect();
        names.iter().filter_map(|name| self.report(name, now)).collect()
    }

    /// When each device measured its values.
    pub(crate) fn measured(&self) -> impl Iterator<Item = (&str, &[Instant])> {
        self.all.iter().map(|(name, device)| (name.as_str(), device.measured.as_slice()))
    }

    /// Devices whose latest value the cloud has not confirmed.
    pub(crate) fn untold(&self) -> usize {
        self.all.values().filter(|device| device.told < device.measured.len()).count()
    }
}

fn name_of(resource: &str) -> Option<String> {
    let resource = EdgeResource::parse(resource).ok().filter(|resource| resource.kind == kind::DEVICE)?;
    Some(format!("{}/{}", resource.namespace, resource.name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(uid: &str) -> Content {
        let object = json!({"metadata": {"uid": uid}, "spec": {"properties": [{"name": "t"}, {"name": "u"}]}});
        Content::json(&object).expect("JSON")
    }

    fn value(message: &Message) -> String {
        let content: serde_json::Value = message.content.parse().expect("JSON");
        content["twin"]["t"]["actual"]["value"].as_str().unwrap_or_default().to_owned()
    }

    fn id(message: &Message) -> &str {
        &message.header.msg_id
    }

    #[test]
    fn one_message_of_a_device_is_under_way_and_the_next_has_the_latest_value() {
        let (mut devices, now) = (Devices::default(), Instant::now());
        devices.put("default/device/a", &of("1"));
        let first = devices.measure(now).expect("said");
        assert_eq!(first.route.resource, "device/default/a/twin/edge_updated");
        assert!((0..3).all(|_| devices.measure(now).is_none()), "the first is under way");
        assert!(devices.answered(id(&first), true, now).is_none() && devices.untold() == 1, "refused");
        assert!(devices.answered(id(&first), false, now).is_none(), "within a second");
        let later = devices.next_due().expect("it waits");
        assert!(devices.due(now).is_empty() && later == now + INTERVAL);
        let second = devices.due(later).pop().expect("what came meanwhile");
        assert_eq!((value(&first), value(&second)), ("0".to_owned(), "3".to_owned()));
        assert!(devices.answered(id(&second), false, now).is_none() && devices.untold() == 0);
    }

    #[test]
    fn what_is_not_confirmed_goes_again() {
        let (mut devices, now) = (Devices::default(), Instant::now());
        devices.put("default/device/a", &of("1"));
        let lost = devices.measure(now).expect("said");
        assert!(devices.measure(now).is_none());
        let again = devices.connected(now);
        assert_eq!(again.iter().map(value).collect::<Vec<_>>(), ["1"]);
        assert!(devices.answered(id(&lost), false, now).is_none() && devices.untold() == 1, "of the lost connection");
        assert!(devices.late(now).is_empty());
        assert_eq!(devices.late(now + RESEND_AFTER).len(), 1);
    }

    #[test]
    fn a_namesake_begins_anew_and_all_take_turns() {
        let (mut devices, now) = (Devices::default(), Instant::now());
        for name in ["a", "b", "c"] {
            devices.put(&format!("default/device/{name}"), &of("1"));
        }
        (0..6).for_each(|_| drop(devices.measure(now)));
        devices.put("default/device/a", &of("1"));
        devices.put("default/device/b", &of("2"));
        devices.remove("default/device/c");
        let counts: Vec<(&str, usize)> = devices.measured().map(|(name, measured)| (name, measured.len())).collect();
        assert_eq!(counts, [("default/a", 2), ("default/b", 0)]);
    }
}
