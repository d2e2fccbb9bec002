//! What a node says: acknowledgements, requests, signs of life.

use beehive::compose;
use link::rate::Rate;
use link::ws::{Incoming, LinkError, Reader};
use tokio::time::Instant;
use tracing::{debug, info, warn};
use wire::{Message, acks, batch, group, operation, source};

use super::feed;
use super::monitor::count;
use super::session::{Services, SessionHandle};
use super::turns::Turns;
use crate::edgecontroller::told::NotTaken;
use crate::edgecontroller::upstream::Outcome;
use crate::objectsync::{Acknowledged, Records};

/// Messages that a node may send a second, and at once. A Go edge acknowledges each object by itself; this is for much more than a node has to
/// say.
const MESSAGES_PER_SECOND: u32 = 2000;
const MESSAGES_AT_ONCE: u32 = 10_000;
/// Of what a node says about its failures, so many characters are kept.
const MAX_TEXT: usize = 512;

/// Reads until the connection ends; why it did.
pub(super) async fn read(handle: &SessionHandle, reader: &mut Reader, services: &Services, turns: &Turns) -> String {
    let mut rate = Rate::new(MESSAGES_PER_SECOND, MESSAGES_AT_ONCE);
    let mut alive_until = Instant::now() + services.keepalive;
    loop {
        let incoming = match tokio::time::timeout_at(alive_until, reader.next()).await {
            Ok(incoming) => incoming,
            Err(_) => return format!("no keepalive for {} s", services.keepalive.as_secs()),
        };
        let messages = match messages(handle, incoming) {
            Ok(messages) => messages,
            Err(reason) => return reason,
        };
        for message in messages {
            // Who talks too much waits in his own connection.
            let ready = rate.ready_at(0.0);
            // A timer takes a millisecond at least.
            if ready > Instant::now() {
                tokio::time::sleep_until(ready).await;
            }
            rate.take();
            if message.route.operation == operation::KEEPALIVE {
                alive_until = Instant::now() + services.keepalive;
                continue;
            }
            let Some(work) = dispatch(handle, services, message) else { continue };
            let Some(place) = turns.place().await else { return "cloudcore ends".to_owned() };
            let (handle, upstream, records) = (handle.clone(), services.upstream.clone(), services.records.clone());
            let devices = services.devices.clone();
            let mut turn = turns.queue(work.resource());
            services.tasks.spawn(async move {
                turn.come().await;
                match work {
                    Work::Request(request) => {
                        let outcome = upstream.handle(handle.node(), &request).await;
                        conclude(&handle, &records, &request.header.msg_id, outcome, place);
                    }
                    Work::Device(said) => {
                        if let Some(answer) = devices.handle(&handle, &said).await {
                            handle.answer("", answer, place);
                        }
                    }
                    Work::NotTaken(not_taken) => upstream.tell(handle.node(), &not_taken).await,
                }
                drop(turn);
            });
        }
    }
}

/// The messages in what arrived, or why the connection ends.
fn messages(handle: &SessionHandle, incoming: Result<Incoming, LinkError>) -> Result<Vec<Message>, String> {
    let no_message = |error: &dyn std::error::Error| {
        let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
        format!("the node sent what is no message: {error}{cause}")
    };
    match incoming {
        Ok(Incoming::Binary(frame)) if handle.peer().features.batch => {
            batch::decode(&frame).map_err(|error| no_message(&error))
        }
        Ok(Incoming::Message(frame) | Incoming::Binary(frame)) => {
            Message::parse(&frame).map(|message| vec![message]).map_err(|error| no_message(&error))
        }
        Ok(Incoming::Alive) => Ok(Vec::new()),
        Ok(Incoming::Closed(reason)) => Err(format!("the node closed the connection {reason}")),
        Err(error) => {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            Err(format!("{error}{cause}"))
        }
    }
}

fn conclude(
    handle: &SessionHandle,
    records: &Records,
    id: &str,
    outcome: Outcome,
    place: tokio::sync::OwnedSemaphorePermit,
) {
    if let Some((uid, deletion)) = outcome.orphan {
        handle.offer(&uid, u64::MAX, deletion);
    }
    match outcome.answer {
        Some(answer) => {
            let mut uid = if answer.header.resource_version.is_empty() { String::new() } else { uid_of(&answer) };
            // A node that is distrusted keeps what it has, if that looks newer than the answer, and acknowledges it nevertheless.
            if !uid.is_empty() && records.doubt(handle.node()).is_some() {
                records.expect(handle.node(), &uid, &answer.route.resource);
                uid.clear();
            }
            handle.answer(&uid, answer, place);
        }
        // What could not be carried out now is sent again by our own edge.
        None if !outcome.failed => handle.done(id),
        None => {}
    }
}

/// What a message of the node is cause for and takes a while.
enum Work {
    Request(Message),
    /// What DeviceTwin says.
    Device(Message),
    NotTaken(NotTaken),
}

impl Work {
    fn resource(&self) -> &str {
        match self {
            Self::Request(request) | Self::Device(request) => &request.route.resource,
            Self::NotTaken(not_taken) => &not_taken.resource,
        }
    }
}

/// What is no request is dealt with at once.
fn dispatch(handle: &SessionHandle, services: &Services, message: Message) -> Option<Work> {
    let node = handle.node();
    let route = &message.route;
    if message.is_empty_envelope() {
        info!(node, "the node's agent stops");
        return None;
    }
    match route.operation.as_str() {
        operation::RESPONSE if handle.takes_inventory(&message, &services.records) => return None,
        operation::RESPONSE | operation::ERROR if handle.takes_answer(&message) => return None,
        operation::RESPONSE => {
            // What a newer session was told to forget must not come back.
            let ids = acks::read(&message).unwrap_or_else(|| vec![message.header.parent_msg_id.clone()]);
            for id in ids {
                let acknowledged = handle.acknowledge(&id).filter(|_| !handle.has_ended());
                if let Some(acknowledged) = acknowledged {
                    services.records.acknowledged(node, &acknowledged);
                    count(&services.counters.acknowledged, 1);
                    services.feed.tell(node, || acknowledged_event(id, &acknowledged));
                }
            }
            return None;
        }
        operation::ERROR => {
            let why = bounded(&message);
            warn!(node, resource = route.resource, why, "the node could not carry out a message; it is sent again");
            let (uid, resource) = handle.refused(&message.header.parent_msg_id)?;
            count(&services.counters.not_stored, 1);
            services.feed.tell(node, || feed::Event::Refused {
                id: message.header.parent_msg_id.clone(),
                resource: resource.clone(),
                reason: why.clone(),
            });
            return Some(Work::NotTaken(NotTaken { uid, resource, why }));
        }
        _ => {}
    }
    let own = [
        source::CLOUD_HUB,
        source::CLOUD_STREAM,
        source::DEVICE_CONTROLLER,
        source::EDGE_CONTROLLER,
        source::SYNC_CONTROLLER,
    ];
    if route.source == source::TWIN {
        return Some(Work::Device(message));
    }
    let not_here = matches!(route.group.as_str(), group::USER | group::TWIN)
        || route.source == source::META_SERVER
        || matches!(
            route.operation.as_str(),
            operation::UPGRADE | operation::PREPULL | operation::UPDATE_NODE_ACTION_STATUS
        );
    if own.contains(&route.source.as_str()) || not_here {
        debug!(
            node,
            source = route.source,
            group = route.group,
            resource = route.resource,
            "a message for a part that this version does not have"
        );
        handle.done(&message.header.msg_id);
        return None;
    }
    Some(Work::Request(message))
}

fn acknowledged_event(id: String, acknowledged: &Acknowledged) -> feed::Event {
    let milliseconds = compose::now().saturating_sub(acknowledged.made);
    feed::Event::Acknowledged { id, resource: acknowledged.resource.clone(), milliseconds }
}

/// The text of a failure, for logs and people.
fn bounded(message: &Message) -> String {
    let text = message.content.payload();
    String::from_utf8_lossy(&text).chars().filter(|letter| !letter.is_control()).take(MAX_TEXT).collect()
}

/// The uid of the object in an answer.
fn uid_of(message: &Message) -> String {
    #[derive(serde::Deserialize)]
    struct Object {
        metadata: Metadata,
    }
    #[derive(serde::Deserialize)]
    struct Metadata {
        #[serde(default)]
        uid: String,
    }
    message.content.parse::<Object>().map(|object| object.metadata.uid).unwrap_or_default()
}
