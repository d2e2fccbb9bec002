//! Events that controllers record for users: written by one task, repeated ones counted instead of written anew.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::client::{Client, EVENTS};
use crate::object::{Key, Object, time_text};

/// Events that may wait for being written; past that they are dropped, for they are hints, not state.
const WAITING: usize = 256;
/// Events that are remembered for counting.
const REMEMBERED: usize = 512;
/// A repetition after this time is a new event.
const FORGET_AFTER: Duration = Duration::from_secs(600);

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
        loop {
            let note = tokio::select! {
                () = token.cancelled() => return,
                note = self.notes.recv() => note,
            };
            let Some(note) = note else { return };
            self.write(note).await;
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
