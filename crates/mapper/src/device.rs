//! A device as a driver sees it: the messages of edgecore, checked and joined with the model.

use std::fmt;
use std::time::Duration;

use dmi::v1beta1 as proto;
use serde_json::{Map, Value as Json};

use crate::value::{Kind, Value, ValueError, number};

/// Properties that one device may have.
pub(crate) const MAX_PROPERTIES: usize = 500;
/// A cycle of 0.
const USUAL_CYCLE: Duration = Duration::from_secs(1);
/// Bounds of a cycle.
const SHORTEST_CYCLE: Duration = Duration::from_millis(10);
const LONGEST_CYCLE: Duration = Duration::from_secs(365 * 24 * 3600);

/// The id of a device or a model: `NAMESPACE/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Id {
    /// By its parts; no namespace is `default`.
    pub fn new(namespace: &str, name: &str) -> Self {
        let namespace = if namespace.is_empty() { "default" } else { namespace };
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A device.
#[derive(Clone, Debug, PartialEq)]
pub struct Device {
    /// Its id.
    pub id: Id,
    /// `spec.protocol.configData`, of the model and of the device: how it is reached.
    pub config: Map<String, Json>,
    /// Its properties that its model knows.
    pub properties: Vec<Property>,
    /// How often its state is told, if it shall be.
    pub state_cycle: Option<Duration>,
    /// Properties that cannot be used, and why.
    pub(crate) unusable: Vec<String>,
}

/// A property of a device.
#[derive(Clone, Debug, PartialEq)]
pub struct Property {
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: Kind,
    /// Whether it can be read only.
    pub read_only: bool,
    /// The least value, of a number.
    pub minimum: Option<f64>,
    /// The greatest value, of a number.
    pub maximum: Option<f64>,
    /// `visitors.configData`, of the model and of the device: where it is found in the device.
    pub visitor: Map<String, Json>,
    /// What it shall be; empty: nobody wishes anything.
    pub desired: String,
    /// How often it is read.
    pub collect_cycle: Duration,
    /// How often it is told and pushed.
    pub report_cycle: Duration,
    /// Whether the cloud is told.
    pub report_to_cloud: bool,
    /// Where else it goes.
    pub(crate) push: Option<proto::PushMethod>,
}

/// A device cannot be driven.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DeviceError {
    #[error("a device without a name was sent")]
    NoName,
    #[error("device {0} has {1} properties; a mapper takes {MAX_PROPERTIES}")]
    TooManyProperties(Id, usize),
}

impl Device {
    /// The device of a message, with its model.
    pub(crate) fn new(message: &proto::Device, model: &proto::DeviceModel) -> Result<Self, DeviceError> {
        let id = Id::new(&message.namespace, &message.name);
        if id.name.is_empty() {
            return Err(DeviceError::NoName);
        }
        let spec = message.spec.as_ref();
        let listed = spec.map_or(&[][..], |spec| &spec.properties);
        if listed.len() > MAX_PROPERTIES {
            return Err(DeviceError::TooManyProperties(id, listed.len()));
        }
        let known = model.spec.as_ref().map_or(&[][..], |spec| &spec.properties);
        let (mut properties, mut unusable) = (Vec::<Property>::new(), Vec::new());
        for property in listed {
            let name = &property.name;
            let usable = match known.iter().find(|known| known.name == *name) {
                _ if properties.iter().any(|other| other.name == *name) => Err(format!("{name} is listed twice")),
                None => Err(format!("{name} is not in model {}: add it there", model.name)),
                Some(of_model) => Property::new(property, of_model),
            };
            match usable {
                Ok(property) => properties.push(property),
                Err(why) => unusable.push(why),
            }
        }
        let config = spec.and_then(|spec| spec.protocol.as_ref()).and_then(|protocol| protocol.config_data.as_ref());
        let states = message.status.as_ref().filter(|status| status.report_to_cloud);
        Ok(Self {
            id,
            config: config.map(dmi::value::plain).unwrap_or_default(),
            properties,
            state_cycle: states.map(|status| cycle(status.report_cycle)),
            unusable,
        })
    }
}

impl Property {
    fn new(property: &proto::DeviceProperty, of_model: &proto::ModelProperty) -> Result<Self, String> {
        let name = &property.name;
        let kind = Kind::from_name(&of_model.r#type).ok_or_else(|| {
            format!(
                "{name} is of type {:?} in its model: INT, FLOAT, DOUBLE, BOOLEAN, STRING and BYTES can be driven",
                of_model.r#type
            )
        })?;
        let bound = |what: &str, text: &str| match number(text) {
            None if !text.is_empty() => Err(format!("{name} has the {what} {text:?} in its model, which is no number")),
            bound => Ok(bound),
        };
        let visitor = property.visitors.as_ref().and_then(|visitors| visitors.config_data.as_ref());
        Ok(Self {
            name: name.clone(),
            kind,
            read_only: of_model.access_mode.eq_ignore_ascii_case("ReadOnly"),
            minimum: bound("minimum", &of_model.minimum)?,
            maximum: bound("maximum", &of_model.maximum)?,
            visitor: visitor.map(dmi::value::plain).unwrap_or_default(),
            desired: property.desired.as_ref().map(|desired| desired.value.clone()).unwrap_or_default(),
            collect_cycle: cycle(property.collect_cycle),
            report_cycle: cycle(property.report_cycle),
            report_to_cloud: property.report_to_cloud,
            push: property.push_method.clone(),
        })
    }

    /// The desired value as it is told: nothing of one that is not taken.
    pub(crate) fn observed(&self) -> &str {
        match self.value_to_write(&self.desired) {
            Err(ValueError::Kind { .. } | ValueError::Bounds { .. }) => "",
            Ok(_) | Err(ValueError::ReadOnly { .. }) => &self.desired,
        }
    }

    /// The value to write for a text.
    ///
    /// # Errors
    /// It is none of this type, out of bounds, or the property can only be read.
    pub fn value_to_write(&self, text: &str) -> Result<Value, ValueError> {
        let (property, value) = (self.name.clone(), text.to_owned());
        if self.read_only {
            return Err(ValueError::ReadOnly { property, value });
        }
        let Some(parsed) = Value::parse(self.kind, text) else {
            let hint = if self.kind == Kind::Bytes { ": write hexadecimal digits" } else { "" };
            return Err(ValueError::Kind { property, value, kind: self.kind.name(), hint });
        };
        let number = match parsed {
            Value::Int(number) => number as f64,
            Value::Number(number) => number,
            _ => return Ok(parsed),
        };
        if self.minimum.is_some_and(|minimum| number < minimum) || self.maximum.is_some_and(|maximum| number > maximum)
        {
            let shown = |bound: Option<f64>| bound.map_or_else(|| "anything".to_owned(), |bound| bound.to_string());
            let (minimum, maximum) = (shown(self.minimum), shown(self.maximum));
            return Err(ValueError::Bounds { property, value, minimum, maximum });
        }
        Ok(parsed)
    }
}

fn cycle(milliseconds: i64) -> Duration {
    match u64::try_from(milliseconds) {
        Ok(0) | Err(_) => USUAL_CYCLE,
        Ok(milliseconds) => Duration::from_millis(milliseconds).clamp(SHORTEST_CYCLE, LONGEST_CYCLE),
    }
}

#[cfg(test)]
#[path = "device_tests.rs"]
pub(crate) mod tests;
