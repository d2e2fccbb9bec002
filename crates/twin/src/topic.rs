//! The MQTT topics of devices and of the node.

use std::fmt;

/// Of a device without a namespace in its topic.
const DEFAULT: &str = "default";

/// The id of a device: namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// A topic that DeviceTwin listens to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Topic {
    /// `$hw/events/device/ID/twin/update`: a report, or a wish of the edge.
    TwinUpdate(DeviceId),
    /// `$hw/events/device/ID/twin/cloud_updated`: a wish of the cloud.
    CloudUpdated(DeviceId),
    /// `$hw/events/device/ID/twin/get`.
    TwinGet(DeviceId),
    /// `$hw/events/device/ID/state/update`.
    StateUpdate(DeviceId),
    /// `$hw/events/device/ID/updated`: attributes.
    Attributes(DeviceId),
    /// `$hw/events/node/NODE/membership/get`; of whichever node, as KubeEdge v1.23.
    MembershipGet,
    /// `$hw/events/node/NODE/membership/updated`.
    MembershipUpdated,
}

impl Topic {
    /// Reads a topic; `None` when it is none of DeviceTwin's. A device's id is `NAMESPACE/NAME`; a bare name is in the namespace `default`.
    pub fn parse(topic: &str) -> Option<Self> {
        if let Some(rest) = topic.strip_prefix("$hw/events/node/") {
            return match rest.split_once('/')? {
                (_, "membership/get") => Some(Self::MembershipGet),
                (_, "membership/updated") => Some(Self::MembershipUpdated),
                _ => None,
            };
        }
        let rest = topic.strip_prefix("$hw/events/device/")?;
        let of = |suffix: &str| DeviceId::parse(rest.strip_suffix(suffix)?);
        of("/twin/update")
            .map(Self::TwinUpdate)
            .or_else(|| of("/twin/cloud_updated").map(Self::CloudUpdated))
            .or_else(|| of("/twin/get").map(Self::TwinGet))
            .or_else(|| of("/state/update").map(Self::StateUpdate))
            .or_else(|| of("/updated").map(Self::Attributes))
    }
}

impl DeviceId {
    /// Reads `NAMESPACE/NAME` or `NAME`.
    pub fn parse(text: &str) -> Option<Self> {
        let (namespace, name) = text.split_once('/').unwrap_or((DEFAULT, text));
        let is_name = |text: &str| {
            let is_good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
            (1..=253).contains(&text.len()) && text.bytes().all(is_good)
        };
        (is_name(namespace) && is_name(name)).then(|| Self { namespace: namespace.to_owned(), name: name.to_owned() })
    }

    /// A topic of this device.
    pub fn topic(&self, what: &str) -> String {
        format!("$hw/events/device/{self}/{what}")
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_name_their_device() {
        let id = |namespace: &str, name: &str| DeviceId { namespace: namespace.into(), name: name.into() };
        for (topic, expected) in [
            ("$hw/events/device/plant/t1/twin/update", Some(Topic::TwinUpdate(id("plant", "t1")))),
            ("$hw/events/device/t1/twin/update", Some(Topic::TwinUpdate(id("default", "t1")))),
            // Names that KubeEdge v1.23 loses.
            ("$hw/events/device/device/node/twin/get", Some(Topic::TwinGet(id("device", "node")))),
            ("$hw/events/device/twin/twin/get", Some(Topic::TwinGet(id("default", "twin")))),
            ("$hw/events/device/a/b/twin/cloud_updated", Some(Topic::CloudUpdated(id("a", "b")))),
            ("$hw/events/device/a/b/state/update", Some(Topic::StateUpdate(id("a", "b")))),
            ("$hw/events/device/a/b/updated", Some(Topic::Attributes(id("a", "b")))),
            ("$hw/events/node/any/membership/get", Some(Topic::MembershipGet)),
            ("$hw/events/node/any/membership/updated", Some(Topic::MembershipUpdated)),
            ("$hw/events/device/a/b/twin/update/result", None),
            ("$hw/events/device//twin/update", None),
            ("$hw/events/device/a/b/c/twin/update", None),
            ("$hw/events/device/A/ä/twin/update", None),
            ("default/up", None),
        ] {
            assert_eq!(Topic::parse(topic), expected, "{topic}");
        }
        assert_eq!(id("a", "b").topic("twin/get/result"), "$hw/events/device/a/b/twin/get/result");
    }
}
