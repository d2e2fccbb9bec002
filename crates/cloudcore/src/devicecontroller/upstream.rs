//! What a node's DeviceTwin says (KubeEdge v1.23): values of properties, states of devices, and the question which devices it has. Only the node that
//! a device is bound to may speak of it.

use std::collections::BTreeMap;
use std::time::Duration;

use beehive::compose;
use serde::Deserialize;
use tracing::{debug, warn};
use twin::payload::{self, Request};
use wire::{Content, ErrorAnswer, Message, Status, group, kind, source};

use super::DeviceController;
use super::downstream::DEVICE;
use super::membership;
use super::reports::Values;
use super::status::Reported;
use super::writer::{Confirmation, confirmation};
use crate::cloudhub::session::SessionHandle;
use crate::edgecontroller::view::NamespacedName;

/// How long the first list of the devices may take.
const LISTING: Duration = Duration::from_secs(30);
/// The longest value of a property, in bytes; an object of the API has room for some of them.
const MAX_VALUE: usize = 64 << 10;

/// What is said about a device.
enum About {
    Twin,
    State,
}

impl DeviceController {
    /// Takes what a node says; the answer, unless it comes when what was reported has been written. Without any the edge says it again.
    pub async fn handle(&self, session: &SessionHandle, message: &Message) -> Option<Message> {
        let node = session.node();
        // A message that comes early waits for the list.
        if !self.view.knows_devices(LISTING).await {
            warn!(node, "the devices have not been read yet; what the node says of them is not taken");
            return None;
        }
        if message.route.resource.contains(kind::MEMBERSHIP_DETAIL) {
            let all = membership::all(&self.view.devices.read(), node);
            // Nothing is said where nothing is known.
            if all.is_some_and(|all| session.post(all).is_err()) {
                return None;
            }
            return Some(answer(message, Content::ok()));
        }
        let Some((about, name)) = about(&message.route.resource) else {
            debug!(node, resource = message.route.resource, "a message of DeviceTwin is not understood");
            session.done(&message.header.msg_id);
            return None;
        };
        match self.report(session, message, about, &name) {
            Ok(true) => None,
            Ok(false) => Some(confirmation(&message.header.msg_id)),
            Err(status) => {
                warn!(node, namespace = name.0, device = name.1, why = status.message, "a report was refused");
                Some(answer(
                    message,
                    Content::json(&ErrorAnswer { status: *status }).unwrap_or_else(|_| Content::null()),
                ))
            }
        }
    }

    /// Whether something is to be written before it is confirmed.
    fn report(
        &self,
        session: &SessionHandle,
        message: &Message,
        about: About,
        name: &NamespacedName,
    ) -> Result<bool, Box<Status>> {
        let node = session.node();
        let device = self.view.devices.read().get(&name.0, &name.1).cloned();
        let Some(device) = device else {
            if !self.view.versions.is_absent(DEVICE) {
                warn!(node, namespace = name.0, device = name.1, "a node reports of a device that does not exist");
            }
            return Ok(false);
        };
        if device.node != node {
            let why = format!("device {}/{} is not bound to node {node}", name.0, name.1);
            return Err(Box::new(Status::failure(403, "Forbidden", why)));
        }
        let mut values = match about {
            About::Twin => twins(message)?,
            About::State => state(message)?,
        };
        values.twins.retain(|property, _| device.properties.contains(property));
        if values.is_empty() {
            return Ok(false);
        }
        let waiting = Confirmation { session: session.clone(), id: message.header.msg_id.clone() };
        self.writer.take_in(name, values, waiting);
        Ok(true)
    }
}

fn answer(message: &Message, content: Content) -> Message {
    let mut answer = compose::response(message, content);
    source::DEVICE_CONTROLLER.clone_into(&mut answer.route.source);
    group::TWIN.clone_into(&mut answer.route.group);
    answer
}

fn about(resource: &str) -> Option<(About, NamespacedName)> {
    let parts: Vec<&str> = resource.split('/').collect();
    let (about, namespace, name) = match parts[..] {
        [kind::DEVICE, namespace, name, "twin", "edge_updated"] => (About::Twin, namespace, name),
        [kind::DEVICE, namespace, name, "state", "update"] => (About::State, namespace, name),
        _ => return None,
    };
    Some((about, (namespace.to_owned(), name.to_owned())))
}

fn bad(why: String) -> Box<Status> {
    Box::new(Status::failure(400, "BadRequest", why))
}

fn twins(message: &Message) -> Result<Values, Box<Status>> {
    let request = Request::parse(&message.content.payload()).map_err(|error| bad(error.to_string()))?;
    let mut values = Values::default();
    for (property, entry) in request.twin.into_iter().flatten() {
        // One that was deleted at the edge has nothing to report.
        let Some(entry) = entry else { continue };
        let kind = entry.metadata.unwrap_or_default().kind;
        let twin = (reported(entry.actual, &kind), reported(entry.expected, &kind));
        if [&twin.0, &twin.1].into_iter().flatten().any(|reported| reported.value.len() > MAX_VALUE) {
            return Err(bad(format!("the value of property {property:.64} is longer than {MAX_VALUE} bytes")));
        }
        if twin != (None, None) {
            values.twins.insert(property, twin);
        }
    }
    Ok(values)
}

fn reported(value: Option<payload::Value>, kind: &str) -> Option<Reported> {
    let payload::Value { value, metadata } = value?;
    let mut said = BTreeMap::new();
    if let Some(metadata) = metadata {
        said.insert("timestamp".to_owned(), metadata.timestamp.to_string());
    }
    if !kind.is_empty() {
        said.insert("type".to_owned(), kind.to_owned());
    }
    Some(Reported { value: value?, metadata: said })
}

fn state(message: &Message) -> Result<Values, Box<Status>> {
    #[derive(Deserialize)]
    struct Update {
        #[serde(alias = "Device")]
        device: Device,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Device {
        state: Option<String>,
        last_online_time: Option<String>,
    }
    let Update { device } = message.content.parse().map_err(|error| bad(format!("no state of a device: {error}")))?;
    let said = |text: Option<String>| text.filter(|text| !text.is_empty());
    let values = Values { state: said(device.state), last_online: said(device.last_online_time), ..Values::default() };
    if [&values.state, &values.last_online].into_iter().flatten().any(|text| text.len() > MAX_VALUE) {
        return Err(bad(format!("the state of a device is longer than {MAX_VALUE} bytes")));
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use wire::Route;

    use super::*;

    fn message(content: &Value) -> Message {
        let route = Route::new("twin", "resource", "update", "device/default/d/x");
        Message::new("m".to_owned(), 0, route, Content::json(content).expect("JSON"))
    }

    #[test]
    fn values_as_recorded() {
        let read = twins(&message(&json!({"event_id": "e", "timestamp": 1, "twin": {
            "temperature": {"expected": {"value": "21"}, "actual": {"value": "20.5", "metadata": {"timestamp": 1795402892699_i64}},
                "optional": true, "metadata": {"type": "string"}, "actual_version": {"cloud": 0, "edge": 1}},
            "gone": null, "empty": {"actual": {}}}})))
        .expect("read");
        let (actual, expected) = read.twins["temperature"].clone();
        let metadata = [("timestamp", "1795402892699"), ("type", "string")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(actual, Some(Reported { value: "20.5".to_owned(), metadata: metadata.into() }));
        assert_eq!(expected.map(|expected| expected.value).as_deref(), Some("21"));
        assert_eq!(read.twins.len(), 1);
        assert!(twins(&message(&json!("{"))).is_err());
        let long = json!({"twin": {"t": {"actual": {"value": "x".repeat(MAX_VALUE + 1)}}}});
        assert!(twins(&message(&long)).expect_err("too long").message.contains("longer than"));
    }

    #[test]
    fn states_as_text_or_object_under_either_key() {
        let update = |key: &str| json!({"event_id": "e", key: {"name": "d", "state": "online", "lastOnlineTime": "2026-11-23T02:11:05Z"}});
        for content in [update("device"), update("Device"), json!(update("device").to_string())] {
            let values = state(&message(&content)).expect("read");
            assert_eq!(
                (values.state.as_deref(), values.last_online.as_deref()),
                (Some("online"), Some("2026-11-23T02:11:05Z"))
            );
        }
        let offline = json!({"device": {"state": "offline", "lastOnlineTime": ""}});
        assert_eq!(state(&message(&offline)).expect("read").last_online, None);
        assert!(state(&message(&json!({"device": 7}))).is_err());
    }
}
