//! The devices of this node in memory, and what of them has to be written.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};
use twin::payload::Version;
use twin::topic::DeviceId;
use twin::twin::{Property, Twin};

use super::history::Asked;

/// A device.
#[derive(Clone, Debug, Default)]
pub(super) struct Device {
    pub(super) about: About,
    pub(super) twin: Twin,
    /// Properties whose values the cloud has not confirmed.
    pub(super) untold: BTreeSet<String>,
    /// What is asked for of its history; its objects say so at each start.
    pub(super) history: Asked,
}

/// A reported value that is to be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) property: String,
    /// Unix milliseconds.
    pub(super) time: i64,
    pub(super) value: String,
    /// Values of the property that are kept with this one.
    pub(super) at_most: u32,
}

/// A device without its properties, as it is stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct About {
    /// The uid of the Device object; empty when only a membership message has told of the device.
    pub(super) uid: String,
    pub(super) description: String,
    /// The properties that the Device object names.
    pub(super) properties: BTreeSet<String>,
    /// What the Device object wished last, by property; without what could not be taken.
    pub(super) desired: BTreeMap<String, String>,
    /// Empty as long as nobody has said one.
    pub(super) state: String,
    /// When it was last said to be online, RFC 3339.
    pub(super) last_online: String,
    /// The cloud has not confirmed that state.
    pub(super) is_state_untold: bool,
}

/// A property as it is stored.
#[derive(Serialize, Deserialize)]
pub(super) struct Stored {
    /// The cloud has not confirmed these values.
    pub(super) untold: bool,
    #[serde(flatten)]
    pub(super) property: Property,
}

/// All of them.
#[derive(Default)]
pub(super) struct Devices {
    all: HashMap<DeviceId, Device>,
    dirty: BTreeMap<DeviceId, Dirty>,
}

/// What differs from the database.
#[derive(Default)]
struct Dirty {
    about: bool,
    properties: BTreeSet<String>,
    /// In the order of their reports.
    kept: Vec<Kept>,
    /// What the database has of it is of another device of this name, or of one that is gone.
    removed: bool,
}

/// One change of the database.
pub(super) enum Write {
    Remove { device: String },
    About { device: String, value: Vec<u8> },
    Property { device: String, name: String, value: Vec<u8> },
    Keep { device: String, kept: Kept },
}

impl Device {
    /// The versions of a property: they tell whether what was told is still what is so.
    pub(super) fn versions(&self, property: &str) -> Option<[Version; 2]> {
        self.twin.properties.get(property).map(|property| [property.expected.version, property.actual.version])
    }
}

impl Devices {
    /// With what the database has.
    pub(super) fn new(all: HashMap<DeviceId, Device>) -> Self {
        Self { all, dirty: BTreeMap::new() }
    }

    pub(super) fn get(&self, id: &DeviceId) -> Option<&Device> {
        self.all.get(id)
    }

    /// All, in the order of their names.
    pub(super) fn all(&self) -> BTreeMap<&DeviceId, &Device> {
        self.all.iter().collect()
    }

    /// To change a device; what is changed has to be said with [`Devices::touch`] and [`Devices::touch_property`].
    pub(super) fn get_mut(&mut self, id: &DeviceId) -> Option<&mut Device> {
        self.all.get_mut(id)
    }

    /// A new device; one of the same name is forgotten.
    pub(super) fn add(&mut self, id: &DeviceId, about: About) {
        if self.all.contains_key(id) {
            self.remove(id);
        }
        self.all.insert(id.clone(), Device { about, ..Device::default() });
        self.touch(id);
    }

    /// The device that was here under this name, if any.
    pub(super) fn remove(&mut self, id: &DeviceId) -> Option<Device> {
        let removed = self.all.remove(id)?;
        self.dirty.insert(id.clone(), Dirty { removed: true, ..Dirty::default() });
        Some(removed)
    }

    pub(super) fn touch(&mut self, id: &DeviceId) {
        self.dirty.entry(id.clone()).or_default().about = true;
    }

    pub(super) fn touch_property(&mut self, id: &DeviceId, property: &str) {
        self.dirty.entry(id.clone()).or_default().properties.insert(property.to_owned());
    }

    /// Values for the history of a device.
    pub(super) fn keep(&mut self, id: &DeviceId, kept: Vec<Kept>) {
        self.dirty.entry(id.clone()).or_default().kept.extend(kept);
    }

    /// Whether something has to be written.
    pub(super) fn has_writes(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// What has to be written, in its order.
    pub(super) fn take_writes(&mut self) -> Vec<Write> {
        let mut writes = Vec::new();
        for (id, dirty) in std::mem::take(&mut self.dirty) {
            let device = id.to_string();
            if dirty.removed {
                writes.push(Write::Remove { device: device.clone() });
            }
            let Some(of) = self.all.get(&id) else { continue };
            if dirty.about {
                // It has texts only.
                let value = serde_json::to_vec(&of.about).unwrap_or_default();
                writes.push(Write::About { device: device.clone(), value });
            }
            for name in dirty.properties {
                let Some(property) = of.twin.properties.get(&name) else { continue };
                let stored = Stored { untold: of.untold.contains(&name), property: property.clone() };
                let value = serde_json::to_vec(&stored).unwrap_or_default();
                writes.push(Write::Property { device: device.clone(), name, value });
            }
            writes.extend(dirty.kept.into_iter().map(|kept| Write::Keep { device: device.clone(), kept }));
        }
        writes
    }
}
