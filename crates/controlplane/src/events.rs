//! Events that controllers record for users: written by one task, repeated ones counted instead of written anew, and old ones
//! of everybody removed.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::client::{Client, DeleteOptions, EVENTS};
use crate::object::{Key, Object, time_text};

/// Events that may wait for being written; past that they are dropped, for they are hints, not state.
const WAITING: usize = 256;
/// Events that are remembered for counting.
const REMEMBERED: usize = 512;
/// A repetition after this time is a new event.
const FORGET_AFTER: Duration = Duration::from_secs(600);
/// Events that nothing was added to for so long are removed (as upstream).
const LIFETIME: Duration = Duration::from_secs(3600);
/// How often old events are looked for.
const SWEEP: Duration = Duration::from_secs(600);

/// Something to tell the user about an object.
#[derive(Debug, Clone)]
struct Note {
    involved: Value,
    component: &'static str,
    kind: &'static str,
    reason: String,
    message: String,
}

/// A handle for one component to record events with.
#[derive(Debug, Clone)]
pub struct Recorder {
    sender: mpsc::Sender<Note>,
    component: &'static str,
}

impl Recorder {
    /// The same recorder under another component's name.
    pub fn component(&self, component: &'static str) -> Self {
        Self { sender: self.sender.clone(), component }
    }

    /// Something that is as it should be.
    pub fn normal(&self, object: &Object, kind: (&str, &str), reason: &str, message: impl Into<String>) {
        self.send("Normal", object, kind, reason, message.into());
    }

    /// Something that the user should look at.
    pub fn warning(&self, object: &Object, kind: (&str, &str), reason: &str, message: impl Into<String>) {
        self.send("Warning", object, kind, reason, message.into());
    }

    fn send(
        &self,
        kind: &'static str,
        object: &Object,
        (api_version, object_kind): (&str, &str),
        reason: &str,
        message: String,
    ) {
        let involved = json!({
            "apiVersion": api_version, "kind": object_kind, "namespace": object.namespace(), "name": object.name(),
            "uid": object.uid(), "resourceVersion": object.text("/metadata/resourceVersion"),
        });
        let note = Note { involved, component: self.component, kind, reason: reason.to_owned(), message };
        if self.sender.try_send(note).is_err() {
            debug!(reason, "event dropped: too many are waiting");
        }
    }
}

/// The task that writes events.
pub struct Writer {
    client: Client,
    notes: mpsc::Receiver<Note>,
    seen: HashMap<String, Seen>,
    order: VecDeque<String>,
}

struct Seen {
    key: Key,
    count: i64,
    last: Timestamp,
}

/// A recorder and the task behind it.
pub fn recorder(client: Client) -> (Recorder, Writer) {
    let (sender, notes) = mpsc::channel(WAITING);
    (Recorder { sender, component: "" }, Writer { client, notes, seen: HashMap::new(), order: VecDeque::new() })
}

impl Writer {
    /// Writes until cancelled.
    pub async fn run(mut self, token: CancellationToken) {
        let mut sweep = tokio::time::interval(SWEEP);
        loop {
            let note = tokio::select! {
                () = token.cancelled() => return,
                note = self.notes.recv() => note,
                _ = sweep.tick() => {
                    self.sweep(Timestamp::now()).await;
                    continue;
                }
            };
            let Some(note) = note else { return };
            self.write(note).await;
        }
    }

    async fn sweep(&self, now: Timestamp) {
        let events = match self.client.list(&EVENTS).await {
            Ok((events, _)) => events,
            Err(error) => return debug!(%error, "old events stay for now"),
        };
        for event in events.iter().filter(|e| is_old(e, now)) {
            if let Err(error) = self.client.delete(&EVENTS, &event.key(), DeleteOptions::only(event)).await {
                debug!(%error, event = %event.key(), "an old event stays for now");
            }
        }
    }

    async fn write(&mut self, note: Note) {
        let now = Timestamp::now();
        let id = format!("{}\n{}\n{}\n{}", note.involved["uid"], note.component, note.reason, note.message);
        if let Some(seen) = self.seen.get_mut(&id) {
            let fresh = Duration::try_from(now.duration_since(seen.last)).unwrap_or_default() < FORGET_AFTER;
            seen.count += 1;
            seen.last = now;
            let patch = json!({"count": seen.count, "lastTimestamp": time_text(now)});
            if fresh && self.client.patch(&EVENTS, &seen.key.clone(), None, patch).await.is_ok() {
                return;
            }
        }
        let event = event(&note, now);
        match self.client.create(&EVENTS, event).await {
            Ok(created) => self.remember(id, Seen { key: created.key(), count: 1, last: now }),
            Err(error) => debug!(%error, reason = note.reason, "event not written"),
        }
    }

    fn remember(&mut self, id: String, seen: Seen) {
        if self.seen.insert(id.clone(), seen).is_none() {
            self.order.push_back(id);
        }
        while self.order.len() > REMEMBERED {
            if let Some(oldest) = self.order.pop_front() {
                self.seen.remove(&oldest);
            }
        }
    }
}

/// Whether nothing was added to the event for its lifetime.
fn is_old(event: &Object, now: Timestamp) -> bool {
    let times = ["/series/lastObservedTime", "/lastTimestamp", "/eventTime", "/metadata/creationTimestamp"];
    let latest = times.iter().filter_map(|t| event.time(t)).max();
    latest.is_some_and(|t| Duration::try_from(now.duration_since(t)).unwrap_or_default() > LIFETIME)
}

fn event(note: &Note, now: Timestamp) -> Value {
    let involved_namespace = note.involved["namespace"].as_str().unwrap_or_default();
    let namespace = if involved_namespace.is_empty() { "default" } else { involved_namespace };
    let name = note.involved["name"].as_str().unwrap_or_default();
    let time = time_text(now);
    let nanos = now.as_nanosecond();
    let mut involved = note.involved.clone();
    if involved_namespace.is_empty()
        && let Some(map) = involved.as_object_mut()
    {
        map.remove("namespace");
    }
    json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": {"name": format!("{name}.{nanos:x}"), "namespace": namespace},
        "involvedObject": involved, "type": note.kind, "reason": note.reason, "message": note.message,
        "source": {"component": note.component}, "reportingComponent": note.component, "reportingInstance": "",
        "firstTimestamp": time, "lastTimestamp": time, "eventTime": null, "count": 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_lives_an_hour_after_its_last_repetition() {
        let now: Timestamp = "2026-11-24T12:00:00Z".parse().expect("time");
        for (event, expected) in [
            (json!({"metadata": {"creationTimestamp": "2026-11-24T10:00:00Z"}}), true),
            (json!({"metadata": {"creationTimestamp": "2026-11-24T11:30:00Z"}}), false),
            (
                json!({"metadata": {"creationTimestamp": "2026-11-24T10:00:00Z"}, "lastTimestamp": "2026-11-24T11:59:00Z"}),
                false,
            ),
            (json!({"metadata": {}}), false),
        ] {
            assert_eq!(is_old(&event.clone().into(), now), expected, "{event}");
        }
    }
}
