//! The latest that was read of a device, as it is told.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use dmi::v1beta1::{Twin, TwinProperty};

use crate::device::Property;
use crate::slot::Reading;

/// The latest of each property.
#[derive(Default)]
pub(crate) struct Readings(Mutex<BTreeMap<String, Twin>>);

impl Readings {
    pub fn twins(&self) -> Vec<Twin> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub fn set(&self, twin: Twin) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(twin.property_name.clone(), twin);
    }

    pub fn retain(&self, wanted: impl Fn(&str) -> bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|name, _| wanted(name));
    }
}

/// What is reported: what the property shall be, if it can be, and what it is.
pub(crate) fn twin(property: &Property, reading: &Reading) -> Twin {
    let of = |value: &str| TwinProperty {
        value: value.to_owned(),
        metadata: [("timestamp", reading.at.as_millisecond().to_string()), ("type", property.kind.name().to_owned())]
            .map(|(key, value)| (key.to_owned(), value))
            .into(),
    };
    Twin {
        property_name: property.name.clone(),
        observed_desired: Some(of(property.observed())),
        reported: Some(of(&reading.value)),
    }
}
