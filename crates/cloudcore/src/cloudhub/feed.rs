//! The live feed of `/events`: what happens on the message channel, one JSON event a frame.
//!
//! Nothing is made while nobody watches. A watcher that is slower than the feed misses events and hears how many.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use link::identity::{Identity, OBSERVER_GROUP};
use link::ws::{Incoming, Reader, Writer};
use serde::Serialize;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;
use wire::Message;

/// Events that a watcher may lie behind.
const BACKLOG: usize = 4096;
/// Watchers get a ping this often. They need not answer (curl does not); but a connection that has died ends by it.
const PING: Duration = Duration::from_secs(30);

/// Something on the message channel.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub(super) enum Event {
    /// A node's session began.
    Connected {
        /// Its address.
        peer: String,
        /// What both ends agreed on.
        features: String,
    },
    /// A node's session ended.
    Disconnected {
        /// Why.
        reason: String,
    },
    /// A message about an object was written to the node's connection.
    Sent {
        /// The message's id.
        id: String,
        /// The object's path.
        resource: String,
        /// What to do with it.
        operation: String,
    },
    /// The node has stored it.
    Acknowledged {
        /// The message's id.
        id: String,
        /// The object's path.
        resource: String,
        /// Since cloudcore made the message.
        milliseconds: i64,
    },
    /// The node could not store it.
    Refused {
        /// The message's id.
        id: String,
        /// The object's path.
        resource: String,
        /// What the node says.
        reason: String,
    },
    /// The node has been behind for a while; told again and again until it has caught up.
    Lag {
        /// Objects that it has not acknowledged.
        pending: usize,
        /// Since it last had everything.
        seconds: u64,
    },
    /// It has everything again.
    CaughtUp,
    /// The watcher was too slow for this many events.
    Missed {
        /// Events.
        count: u64,
    },
}

impl Event {
    pub(super) fn sent(message: &Message) -> Self {
        let (id, route) = (message.header.msg_id.clone(), &message.route);
        Self::Sent { id, resource: route.resource.clone(), operation: route.operation.clone() }
    }
}

/// One event of one node, as it stands in a frame.
#[derive(Serialize)]
struct Frame<'a> {
    /// Milliseconds count.
    time: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    node: &'a str,
    #[serde(flatten)]
    event: &'a Event,
}

struct Told {
    node: String,
    event: Event,
    at: Timestamp,
}

/// Where events are told, and watched. Cloning is cheap.
#[derive(Clone)]
pub(super) struct Feed {
    sender: broadcast::Sender<Arc<Told>>,
}

/// Whose events a certificate may watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// Of the whole fleet: certificates of the group `ferroedge:observers`.
    All,
    /// A node sees its own.
    Node(String),
}

impl Scope {
    /// Of the holder of this certificate, which was verified.
    pub(super) fn of(identity: &Identity) -> Option<Self> {
        if identity.organisations.iter().any(|group| group == OBSERVER_GROUP) {
            return Some(Self::All);
        }
        identity.node().map(|node| Self::Node(node.to_owned()))
    }

    fn includes(&self, node: &str) -> bool {
        match self {
            Self::All => true,
            Self::Node(own) => own == node,
        }
    }
}

impl Default for Feed {
    fn default() -> Self {
        Self { sender: broadcast::channel(BACKLOG).0 }
    }
}

impl Feed {
    /// Tells what happened to a node; `event` is only made when somebody watches.
    pub(super) fn tell(&self, node: &str, event: impl FnOnce() -> Event) {
        if self.sender.receiver_count() > 0 {
            let told = Told { node: node.to_owned(), event: event(), at: Timestamp::now() };
            // The last watcher may just have left.
            let _ = self.sender.send(Arc::new(told));
        }
    }

    /// Writes the events of this scope to a watcher until it leaves or its connection dies.
    pub(super) async fn serve(&self, scope: &Scope, reader: &mut Reader, writer: &mut Writer) {
        let mut events = self.sender.subscribe();
        let mut ping = tokio::time::interval_at(Instant::now() + PING, PING);
        loop {
            let frame = tokio::select! {
                // A watcher has nothing to say; but it may leave.
                said = reader.next() => match said {
                    Ok(Incoming::Closed(_)) | Err(_) => return,
                    Ok(_) => continue,
                },
                _ = ping.tick() => match writer.ping().await {
                    Ok(()) => continue,
                    Err(_) => return,
                },
                event = events.recv() => match event {
                    Ok(told) if scope.includes(&told.node) => frame(&told.node, &told.event, told.at),
                    Ok(_) => continue,
                    Err(RecvError::Lagged(count)) => frame("", &Event::Missed { count }, Timestamp::now()),
                    Err(RecvError::Closed) => return,
                },
            };
            if writer.send(frame).await.is_err() {
                return;
            }
        }
    }
}

fn frame(node: &str, event: &Event, at: Timestamp) -> Vec<u8> {
    let frame = Frame { time: at.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string(), node, event };
    // Strings and numbers always have a JSON form.
    serde_json::to_vec(&frame).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_flat_object() {
        let event = Event::Lag { pending: 3, seconds: 40 };
        let text = String::from_utf8(frame("n1", &event, Timestamp::UNIX_EPOCH)).expect("text");
        assert_eq!(text, r#"{"time":"1970-01-01T00:00:00.000Z","node":"n1","type":"lag","pending":3,"seconds":40}"#);
        let missed = frame("", &Event::Missed { count: 7 }, Timestamp::UNIX_EPOCH);
        assert_eq!(missed, br#"{"time":"1970-01-01T00:00:00.000Z","type":"missed","count":7}"#);
    }

    #[test]
    fn a_node_sees_itself_and_an_observer_all() {
        let identity = |name: &str, group: &str| Identity {
            common_name: name.to_owned(),
            organisations: vec![group.to_owned()],
            not_before: std::time::UNIX_EPOCH,
            not_after: std::time::UNIX_EPOCH,
        };
        let node = Scope::of(&identity("system:node:n1", "system:nodes")).expect("its own");
        assert!(node.includes("n1") && !node.includes("n2") && !node.includes(""));
        assert_eq!(Scope::of(&identity("ferroedge:observer", OBSERVER_GROUP)), Some(Scope::All));
        assert_eq!(Scope::of(&identity("somebody", "others")), None);
    }
}
