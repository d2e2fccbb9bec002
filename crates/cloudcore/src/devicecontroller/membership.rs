//! Which devices a node has, as a Go edge's DeviceTwin wants to hear it beside the objects (KubeEdge v1.23). Nobody acknowledges it; it is told
//! whole after each connection, and whenever the node asks.

use beehive::compose;
use serde::Serialize;
use wire::{Content, Message, group, kind, operation, source};

use super::devices::{Device, Devices};
use crate::edgecontroller::view::NamespacedName;

/// A device in such a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Member {
    id: String,
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    description: String,
}

impl Member {
    /// This device.
    pub fn of(name: &NamespacedName, device: &Device) -> Self {
        let description = device.description.clone();
        Self { id: format!("{}/{}", name.0, name.1), name: name.1.clone(), description }
    }
}

/// A device comes to the node, or leaves it.
pub fn change(member: &Member, is_added: bool) -> Message {
    #[derive(Serialize)]
    struct Change<'a> {
        event_id: String,
        timestamp: i64,
        added_devices: Option<[&'a Member; 1]>,
        removed_devices: Option<[&'a Member; 1]>,
    }
    let (added, removed) = if is_added { (Some([member]), None) } else { (None, Some([member])) };
    let content =
        Change { event_id: compose::id(), timestamp: compose::now(), added_devices: added, removed_devices: removed };
    message(kind::MEMBERSHIP, &content)
}

/// All devices of the node, if they are known: it forgets others.
pub fn all(devices: &Devices, node: &str) -> Option<Message> {
    #[derive(Serialize)]
    struct All {
        event_id: String,
        timestamp: i64,
        devices: Vec<Member>,
    }
    if !devices.are_listed() {
        return None;
    }
    let members = devices.of_node(node).map(|(name, device)| Member::of(name, device)).collect();
    let all = All { event_id: compose::id(), timestamp: compose::now(), devices: members };
    Some(message(kind::MEMBERSHIP_DETAIL, &all))
}

fn message(resource: &str, content: &impl Serialize) -> Message {
    let content = Content::json(content).unwrap_or_else(|_| Content::null());
    compose::message(source::DEVICE_CONTROLLER, group::TWIN, operation::UPDATE, resource, content)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn as_recorded() {
        let device = Device { description: "in the hall".to_owned(), ..Device::default() };
        let member = Member::of(&("default".to_owned(), "thermo-1".to_owned()), &device);
        let message = change(&member, false);
        let mut content: Value = message.content.parse().expect("JSON");
        content["event_id"] = Value::Null;
        content["timestamp"] = Value::Null;
        let expected = json!({"id": "default/thermo-1", "name": "thermo-1", "description": "in the hall"});
        assert_eq!(
            content,
            json!({"event_id": null, "timestamp": null, "added_devices": null, "removed_devices": [expected]})
        );
        let route = &message.route;
        assert_eq!((route.source.as_str(), route.group.as_str()), ("devicecontroller", "twin"));
        assert_eq!((route.operation.as_str(), route.resource.as_str()), ("update", "membership"));
        assert!(all(&Devices::default(), "n1").is_none(), "what is not known is not none");
    }
}
