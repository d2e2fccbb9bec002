//! The twin of one device: its state, and what a message changes in it.
//!
//! A report of the edge is never lost and a wish of the cloud wins: each value has a version of both sides; the edge counts its own up, the cloud's
//! is taken as it comes unless it is older than what is here. A value that stays what it is changes nothing, so that it costs no write and is
//! not told to the cloud. (KubeEdge v1.23 writes and tells it each time.)

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::check::{self, DELETED, Refusal, STRING};
use crate::payload::{Entries, Entry, TypeMetadata, Value, ValueMetadata, Version};

/// One of the two values of a property.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Side {
    /// Empty when there is none.
    pub value: String,
    /// When it was last set, Unix milliseconds.
    pub timestamp: i64,
    /// How often each end has set it.
    pub version: Version,
}

/// One property.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Property {
    /// What the device shall be.
    pub expected: Side,
    /// What it is.
    pub actual: Side,
    /// Whether it may be deleted.
    pub optional: bool,
    /// Its type; [`DELETED`] when it is, its versions are kept then.
    pub kind: String,
}

/// What a message has changed, and what is to be told of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// For `twin/update/result`: what was set.
    pub result: Entries,
    /// For `twin/update/document`: each property before and after. Empty: nothing is told.
    pub document: BTreeMap<String, Change>,
    /// For `twin/update/delta`.
    pub delta: Option<Delta>,
    /// For the cloud: what is new for it, with versions. Empty: nothing is told.
    pub report: Entries,
    /// Properties that are to be written.
    pub changed: BTreeSet<String>,
}

/// A property before and after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Before; `None` when there was none.
    pub last: Option<Entry>,
    /// After; `None` when there is none.
    pub current: Option<Entry>,
}

/// What the device shall become.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Delta {
    /// All properties of which is known what they shall be.
    pub twin: BTreeMap<String, Entry>,
    /// What those shall become that are not yet.
    pub delta: BTreeMap<String, String>,
}

/// The twin of one device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Twin {
    /// By name; deleted ones too.
    pub properties: BTreeMap<String, Property>,
}

impl Property {
    fn new(kind: &str, optional: bool) -> Self {
        let kind = if kind.is_empty() { STRING } else { kind }.to_owned();
        Self { expected: Side::default(), actual: Side::default(), optional, kind }
    }

    /// Whether it is there.
    pub fn is_live(&self) -> bool {
        self.kind != DELETED
    }

    /// As it is told.
    pub fn entry(&self) -> Entry {
        self.entry_of(true, true)
    }

    fn entry_of(&self, expected: bool, actual: bool) -> Entry {
        Entry {
            expected: self.expected.value().filter(|_| expected),
            actual: self.actual.value().filter(|_| actual),
            optional: Some(self.optional),
            metadata: Some(TypeMetadata { kind: self.kind.clone() }),
            ..Entry::default()
        }
    }

    /// The same with the versions of these sides, for the cloud.
    ///
    /// One that was cleared is told as an empty text: without it the cloud would keep what was.
    pub fn report(&self, expected: bool, actual: bool) -> Entry {
        Entry {
            expected: self.expected.told().filter(|_| expected),
            actual: self.actual.told().filter(|_| actual),
            expected_version: expected.then_some(self.expected.version),
            actual_version: actual.then_some(self.actual.version),
            ..self.entry_of(false, false)
        }
    }

    fn delete(&mut self) {
        self.kind = DELETED.to_owned();
        for side in [&mut self.expected, &mut self.actual] {
            side.value.clear();
            side.timestamp = 0;
        }
    }
}

impl Side {
    fn value(&self) -> Option<Value> {
        let metadata = Some(ValueMetadata { timestamp: self.timestamp });
        (!self.value.is_empty()).then(|| Value { value: Some(self.value.clone()), metadata })
    }

    /// The value, also an empty one that once was another.
    fn told(&self) -> Option<Value> {
        let metadata = Some(ValueMetadata { timestamp: self.timestamp });
        (self.version != Version::default()).then(|| Value { value: Some(self.value.clone()), metadata })
    }

    /// The edge sets it; whether it is another value now.
    fn set(&mut self, value: Option<&Value>, now: i64) -> bool {
        let Some(text) = value.and_then(|value| value.value.as_deref()) else { return false };
        self.timestamp = now;
        if self.value == text {
            return false;
        }
        text.clone_into(&mut self.value);
        self.version.edge += 1;
        true
    }

    /// The cloud sets it; `false` when that is older than what is here, or has no version.
    fn sync(&mut self, value: &Value, version: Option<Version>, now: i64) -> bool {
        let Some(version) = version.filter(|version| !self.version.is_newer(*version)) else { return false };
        self.value = value.value.clone().unwrap_or_default();
        self.timestamp = now;
        self.version = version;
        true
    }
}

impl Version {
    fn is_newer(self, other: Self) -> bool {
        self.cloud > other.cloud || self.edge > other.edge
    }
}

impl Twin {
    /// An update of the edge, from MQTT or a mapper, at this time (Unix milliseconds). All of it counts or nothing.
    ///
    /// # Errors
    /// Something in it is not allowed.
    pub fn update(&mut self, entries: &Entries, now: i64) -> Result<Outcome, Refusal> {
        check::characters(entries)?;
        for (name, entry) in entries.iter().filter_map(|(name, entry)| Some((name, entry.as_ref()?))) {
            let kind = self.kind_of(name, entry);
            check::kind(name, kind)?;
            check::values(name, kind, entry)?;
        }
        let mut outcome = Outcome::default();
        for (name, entry) in entries {
            match entry {
                Some(entry) => self.set(name, entry, now, &mut outcome),
                None => self.remove(name, &mut outcome),
            }
        }
        outcome.delta = self.delta();
        Ok(outcome)
    }

    /// What a mapper reports. It says with each value which desired value it has seen; one that is not allowed is left out, so that it
    /// does not take the value with it.
    pub fn reported(&self, mut entries: Entries) -> Entries {
        for (name, entry) in &mut entries {
            let Some(entry) = entry.as_mut().filter(|entry| entry.actual.is_some()) else { continue };
            let seen = Entry { expected: entry.expected.take(), ..Entry::default() };
            let kind = self.kind_of(name, entry).to_owned();
            let alone = Entries::from([(name.clone(), Some(seen.clone()))]);
            if check::characters(&alone).is_ok() && check::values(name, &kind, &seen).is_ok() {
                entry.expected = seen.expected;
            }
        }
        entries
    }

    /// A wish of the cloud at this time. What is older than what is here is refused: the cloud hears then what is here.
    ///
    /// # Errors
    /// Something in it is not allowed; nothing of it was done.
    pub fn sync(&mut self, entries: &Entries, now: i64) -> Result<Outcome, Refusal> {
        check::characters(entries)?;
        for (name, entry) in entries.iter().filter_map(|(name, entry)| Some((name, entry.as_ref()?))) {
            let kind = self.kind_of(name, entry);
            check::kind(name, kind)?;
            check::values(name, kind, entry)?;
        }
        let mut outcome = Outcome::default();
        for (name, entry) in entries {
            self.sync_one(name, entry.as_ref(), now, &mut outcome);
        }
        outcome.delta = self.delta();
        Ok(outcome)
    }

    /// For `twin/get/result`.
    pub fn get(&self) -> BTreeMap<String, Entry> {
        let live = self.properties.iter().filter(|(_, property)| property.is_live());
        live.map(|(name, property)| (name.clone(), property.entry())).collect()
    }

    /// That of a property that is there cannot change.
    fn kind_of<'a>(&'a self, name: &str, entry: &'a Entry) -> &'a str {
        let live = self.properties.get(name).filter(|property| property.is_live());
        let asked = entry.metadata.as_ref().map(|metadata| metadata.kind.as_str()).unwrap_or_default();
        live.map_or(asked, |property| property.kind.as_str())
    }

    fn set(&mut self, name: &str, entry: &Entry, now: i64, outcome: &mut Outcome) {
        let asked = entry.metadata.as_ref().map(|metadata| metadata.kind.as_str()).unwrap_or_default();
        let is_new = self.properties.get(name).is_none_or(|property| !property.is_live());
        if is_new && asked == DELETED {
            return;
        }
        let property = self.properties.entry(name.to_owned()).or_insert_with(|| Property::new(asked, true));
        let last = (!is_new).then(|| property.entry());
        if is_new {
            // One that comes back goes on with its versions.
            let fresh = Property::new(asked, entry.optional.unwrap_or(true));
            (property.kind, property.optional) = (fresh.kind, fresh.optional);
        }
        let expected = property.expected.set(entry.expected.as_ref(), now);
        let actual = property.actual.set(entry.actual.as_ref(), now);
        let told = |value: &Option<Value>| value.as_ref().is_some_and(|value| value.value.is_some());
        let result = match is_new || told(&entry.expected) || told(&entry.actual) {
            true => property.entry_of(told(&entry.expected), told(&entry.actual)),
            false => Entry::default(),
        };
        outcome.result.insert(name.to_owned(), Some(result));
        outcome.document.insert(name.to_owned(), Change { last, current: Some(property.entry()) });
        if is_new || expected || actual {
            outcome.report.insert(name.to_owned(), Some(property.report(expected, actual)));
            outcome.changed.insert(name.to_owned());
        }
    }

    fn remove(&mut self, name: &str, outcome: &mut Outcome) {
        let may = |property: &&mut Property| property.is_live() && property.optional;
        let Some(property) = self.properties.get_mut(name).filter(may) else { return };
        let last = Some(property.entry());
        let (expected, actual) = (!property.expected.value.is_empty(), !property.actual.value.is_empty());
        property.delete();
        for (side, was_there) in [(&mut property.expected, expected), (&mut property.actual, actual)] {
            side.version.edge += i64::from(was_there);
        }
        outcome.result.insert(name.to_owned(), None);
        outcome.document.insert(name.to_owned(), Change { last, current: None });
        outcome.report.insert(name.to_owned(), Some(property.report(expected, actual)));
        outcome.changed.insert(name.to_owned());
    }

    fn sync_one(&mut self, name: &str, entry: Option<&Entry>, now: i64, outcome: &mut Outcome) {
        let asked = entry.and_then(|entry| entry.metadata.as_ref()).map(|metadata| metadata.kind.as_str());
        let before = self.properties.get(name).cloned();
        let last = before.as_ref().filter(|property| property.is_live()).map(Property::entry);
        let Some(entry) = entry.filter(|_| asked != Some(DELETED)) else {
            return self.sync_deletion(name, entry, last, outcome);
        };
        let mut property = before.clone().unwrap_or_else(|| Property::new("", true));
        if last.is_none() {
            let fresh = Property::new(asked.unwrap_or_default(), entry.optional.unwrap_or(true));
            (property.kind, property.optional) = (fresh.kind, fresh.optional);
        }
        let taken = |side: &mut Side, value: Option<&Value>, version| value.map(|value| side.sync(value, version, now));
        let expected = taken(&mut property.expected, entry.expected.as_ref(), entry.expected_version);
        let actual = taken(&mut property.actual, entry.actual.as_ref(), entry.actual_version);
        if let (Some(before), true) = (&before, expected == Some(false) || actual == Some(false)) {
            let report = before.report(expected == Some(false), actual == Some(false));
            outcome.report.insert(name.to_owned(), Some(report));
        }
        if expected == Some(true) || actual == Some(true) {
            outcome.document.insert(name.to_owned(), Change { last, current: Some(property.entry()) });
            outcome.changed.insert(name.to_owned());
            self.properties.insert(name.to_owned(), property);
        }
    }

    /// The cloud deletes a property; without a version it may, too.
    fn sync_deletion(&mut self, name: &str, entry: Option<&Entry>, last: Option<Entry>, outcome: &mut Outcome) {
        let Some(property) = self.properties.get_mut(name).filter(|property| property.is_live()) else { return };
        let versions = [
            (&property.expected, entry.and_then(|entry| entry.expected_version)),
            (&property.actual, entry.and_then(|entry| entry.actual_version)),
        ];
        let is_older = |(side, version): &(&Side, Option<Version>)| version.is_some_and(|v| side.version.is_newer(v));
        if versions.iter().any(is_older) {
            outcome.report.insert(name.to_owned(), Some(property.report(true, true)));
            return;
        }
        let [expected, actual] = versions.map(|(side, version)| version.unwrap_or(side.version));
        property.delete();
        (property.expected.version, property.actual.version) = (expected, actual);
        outcome.document.insert(name.to_owned(), Change { last, current: None });
        outcome.changed.insert(name.to_owned());
    }

    /// What the device shall become; `None` when it is that already.
    fn delta(&self) -> Option<Delta> {
        let wanted = self.properties.iter().filter(|(_, property)| !property.expected.value.is_empty());
        let differs = |property: &Property| property.expected.value != property.actual.value;
        let delta: BTreeMap<String, String> = wanted
            .clone()
            .filter(|(_, property)| differs(property))
            .map(|(name, property)| (name.clone(), property.expected.value.clone()))
            .collect();
        let twin = wanted.map(|(name, property)| (name.clone(), property.entry())).collect();
        (!delta.is_empty()).then_some(Delta { twin, delta })
    }
}
