//! One simulated node.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use beehive::compose;
use http::HeaderMap;
use link::backoff::Backoff;
use link::rustls::ClientConfig;
use link::ws::{Incoming, LinkError, Reader, Target, Writer};
use serde::Deserialize;
use serde_json::Value;
use testkit::go_edge::Credentials;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;
use wire::inventory::{self, Digest};
use wire::{
    AnswerError, Content, EdgeResource, FEATURES, Features, INVENTORY, Message, acks, batch, group, kind, operation,
    source,
};

use crate::devices::Devices;
use crate::{Behaviour, Stored, objects};

/// The project of every edge that was not told another one.
const PROJECT: &str = "e632aba927ea4ac2b575ec1603d56f10";
/// As edgecore waits between connections.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(8);
/// For connecting, and for each message.
const DEADLINE: Duration = Duration::from_secs(30);

/// Heartbeats without a byte from the cloud after which the link counts as dead.
const MAX_QUIET: u32 = 3;

/// An object that a node has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its path.
    pub resource: String,
    /// Its uid.
    pub uid: String,
    /// Its version.
    pub version: u64,
}

/// A node: who it is, and what outlives its connections.
pub struct Node {
    place: usize,
    name: String,
    tls: Arc<ClientConfig>,
    /// By path, as an edge stores objects by name.
    held: Mutex<HashMap<String, Held>>,
    devices: Mutex<Devices>,
    /// How often each device measures; never as long as nobody said so.
    period: watch::Sender<Option<Duration>>,
    connected: AtomicBool,
    synced: AtomicBool,
    registered: AtomicBool,
    leased: AtomicBool,
    connections: AtomicUsize,
}

/// A connection and what was agreed on.
struct Connection {
    writer: Writer,
    features: Features,
}

impl Connection {
    async fn send(&mut self, messages: &[Message]) -> Result<(), LinkError> {
        let documents: Vec<Vec<u8>> = messages.iter().map(Message::to_json).collect();
        if self.features.batch {
            return self.writer.send_binary(batch::encode(documents.iter().map(Vec::as_slice))).await;
        }
        for mut line in documents {
            line.push(b'\n');
            self.writer.send(line).await?;
        }
        Ok(())
    }
}

impl Node {
    pub(crate) fn registered(place: usize, name: String, credentials: &Credentials) -> Result<Self> {
        Ok(Self::new(place, name, link::tls::client(&credentials.ca, Some(&credentials.own))?))
    }

    /// The node at this place of a fleet.
    pub fn new(place: usize, name: String, tls: Arc<ClientConfig>) -> Self {
        Self {
            place,
            name,
            tls,
            held: Mutex::default(),
            devices: Mutex::default(),
            period: watch::Sender::default(),
            connected: AtomicBool::new(false),
            synced: AtomicBool::new(false),
            registered: AtomicBool::new(false),
            leased: AtomicBool::new(false),
            connections: AtomicUsize::new(0),
        }
    }

    pub(crate) fn place(&self) -> usize {
        self.place
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// Whether it is connected and has everything that it lacked.
    pub fn is_synced(&self) -> bool {
        self.synced.load(Ordering::Relaxed)
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// What it has.
    pub fn held(&self) -> Vec<Held> {
        self.lock().values().cloned().collect()
    }

    /// Its database is lost.
    pub(crate) fn empty(&self) {
        self.lock().clear();
        *self.devices() = Devices::default();
    }

    /// From now on each of its devices measures that often, or not at all.
    pub(crate) fn measure_every(&self, period: Option<Duration>) {
        self.period.send_replace(period);
    }

    pub(crate) fn devices(&self) -> MutexGuard<'_, Devices> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection is gone.
    pub fn cut(&self) {
        self.connected.store(false, Ordering::Relaxed);
        self.synced.store(false, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stays connected, or comes back. `open` opens a connection; the target's address is the host and port of `cloud`.
    pub async fn run(
        self: Arc<Self>,
        cloud: watch::Receiver<String>,
        open: impl AsyncFn(&Target) -> Result<(Reader, Writer, HeaderMap), LinkError>,
        behaviour: Behaviour,
        stored: Option<mpsc::Sender<Stored>>,
    ) {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        loop {
            let target = self.target(&cloud.borrow());
            if let Ok((reader, writer, answer)) = open(&target).await {
                let theirs = answer.get(FEATURES).and_then(|value| value.to_str().ok()).unwrap_or_default();
                let connection = Connection { writer, features: Features::parse(theirs) };
                backoff.reset();
                self.connected.store(true, Ordering::Relaxed);
                self.connections.fetch_add(1, Ordering::Relaxed);
                // Why it ended does not matter: it comes back.
                let _ = self.serve(reader, connection, behaviour, stored.as_ref()).await;
                self.cut();
            }
            tokio::time::sleep(backoff.next_wait()).await;
        }
    }

    fn target(&self, cloud: &str) -> Target {
        Target {
            url: format!("wss://{cloud}/{PROJECT}/{}/events", self.name),
            headers: vec![
                ("node_id", self.name.clone()),
                ("project_id", PROJECT.to_owned()),
                (FEATURES, Features::ALL.to_string()),
                (INVENTORY, self.digest()),
            ],
            tls: self.tls.clone(),
            connect_deadline: DEADLINE,
            write_deadline: DEADLINE,
        }
    }

    fn digest(&self) -> String {
        let mut digest = Digest::default();
        let held = self.lock();
        if !held.contains_key(&format!("null/node/{}", self.name)) {
            return String::new();
        }
        held.values().filter(|held| is_noted(&held.resource)).for_each(|held| digest.add(&held.uid, held.version));
        digest.to_text()
    }

    async fn serve(
        &self,
        mut reader: Reader,
        mut connection: Connection,
        behaviour: Behaviour,
        stored: Option<&mpsc::Sender<Stored>>,
    ) -> Result<(), LinkError> {
        if behaviour.register && !self.registered.load(Ordering::Relaxed) {
            connection
                .send(&[self.request(
                    operation::INSERT,
                    &format!("null/node/{}", self.name),
                    &objects::node(&self.name),
                )])
                .await?;
        }
        let mut beat = ticks(behaviour.heartbeat);
        let mut lease = ticks(behaviour.lease.unwrap_or(Duration::MAX));
        let mut period = self.period.subscribe();
        let mut next = self.next_measurement(None);
        let untold = self.devices().connected(Instant::now());
        if !untold.is_empty() {
            connection.send(&untold).await?;
        }
        let mut quiet = 0;
        loop {
            let due = self.devices().next_due().map(tokio::time::Instant::from_std);
            tokio::select! {
                () = until(due) => {
                    let said = self.devices().due(Instant::now());
                    if !said.is_empty() {
                        connection.send(&said).await?;
                    }
                }
                incoming = reader.next() => {
                    let messages = match incoming? {
                        Incoming::Binary(frame) if connection.features.batch => batch::decode(&frame).unwrap_or_default(),
                        Incoming::Message(frame) | Incoming::Binary(frame) => Message::parse(&frame).into_iter().collect(),
                        Incoming::Alive => Vec::new(),
                        Incoming::Closed(_) => return Ok(()),
                    };
                    quiet = 0;
                    if !behaviour.pause.is_zero() {
                        tokio::time::sleep(behaviour.pause * u32::try_from(messages.len()).unwrap_or(u32::MAX)).await;
                    }
                    let answers = self.take(&messages, stored);
                    if !answers.is_empty() {
                        connection.send(&answers).await?;
                    }
                }
                _ = beat.tick() => {
                    quiet += 1;
                    if quiet > MAX_QUIET {
                        return Ok(());
                    }
                    let ping = Content::text("ping");
                    let about = compose::message(source::EDGE_HUB, group::RESOURCE, operation::KEEPALIVE, kind::NODE, ping);
                    connection.send(&[about]).await?;
                    connection.writer.ping().await?;
                    let late = self.devices().late(Instant::now());
                    if !late.is_empty() {
                        connection.send(&late).await?;
                    }
                }
                Ok(()) = period.changed() => next = self.next_measurement(None),
                () = until(next) => {
                    let report = self.measure();
                    next = self.next_measurement(next);
                    if let Some(report) = report {
                        connection.send(&[report]).await?;
                    }
                }
                _ = lease.tick(), if behaviour.lease.is_some() => {
                    let verb = if self.leased.swap(true, Ordering::Relaxed) { operation::UPDATE } else { operation::INSERT };
                    let path = format!("kube-node-lease/{}/{}", kind::LEASE, self.name);
                    connection.send(&[self.request(verb, &path, &objects::lease(&self.name))]).await?;
                }
            }
        }
    }

    fn measure(&self) -> Option<Message> {
        let mut devices = self.devices();
        // Looked at under the lock: whoever has said that it is over finds nothing new afterwards.
        let is_over = self.period.borrow().is_none();
        if is_over { None } else { devices.measure(Instant::now()) }
    }

    /// When the next device measures, after one did `before`: the devices of a node take turns.
    fn next_measurement(&self, before: Option<tokio::time::Instant>) -> Option<tokio::time::Instant> {
        let period = *self.period.borrow();
        let each = period? / u32::try_from(self.devices().len()).unwrap_or(u32::MAX).max(1);
        let now = tokio::time::Instant::now();
        // Who begins does so somewhere within the period, so that a fleet does not speak as one; who is late does not catch up.
        Some(before.map_or_else(|| now + each.mul_f64(rand::random::<f64>()), |before| (before + each).max(now)))
    }

    /// Stores what came; what is to be said to it.
    fn take(&self, messages: &[Message], stored: Option<&mpsc::Sender<Stored>>) -> Vec<Message> {
        let (mut done, mut answers) = (Vec::new(), Vec::new());
        for message in messages {
            let (verb, about) = (message.route.operation.as_str(), message.route.resource.as_str());
            match verb {
                operation::QUERY if about == inventory::RESOURCE => answers.push(self.inventory(message)),
                inventory::SYNCED => self.synced.store(true, Ordering::Relaxed),
                operation::INSERT | operation::UPDATE | operation::DELETE => {
                    let version = self.store(message);
                    done.push(message.header.msg_id.clone());
                    if let Some(stored) = stored {
                        let told = Stored { node: self.place, resource: about.to_owned(), version, at: Instant::now() };
                        // Who wanted to know may have gone, or be too slow.
                        let _ = stored.try_send(told);
                    }
                }
                operation::RESPONSE if about.starts_with("null/node/") => {
                    self.registered.store(true, Ordering::Relaxed)
                }
                operation::RESPONSE if message.route.group == group::TWIN => {
                    let is_refused = matches!(message.content.object(), Err(AnswerError::Refused(_)));
                    let answered = &message.header.parent_msg_id;
                    answers.extend(self.devices().answered(answered, is_refused, Instant::now()));
                }
                _ => {}
            }
        }
        if !done.is_empty() {
            answers.push(acks::of(&done, source::EDGE_HUB, compose::id(), compose::now()));
        }
        answers
    }

    fn store(&self, message: &Message) -> u64 {
        #[derive(Deserialize)]
        struct Object {
            metadata: Metadata,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Metadata {
            #[serde(default)]
            uid: String,
            #[serde(default)]
            resource_version: String,
        }
        let resource = message.route.resource.clone();
        if message.route.operation == operation::DELETE {
            self.lock().remove(&resource);
            self.devices().remove(&resource);
            return 0;
        }
        let Ok(Object { metadata }) = message.content.parse::<Object>() else { return 0 };
        let version = metadata.resource_version.parse().unwrap_or_default();
        self.devices().put(&resource, &message.content);
        let held = Held { resource: resource.clone(), uid: metadata.uid, version };
        self.lock().insert(resource, held);
        version
    }

    fn inventory(&self, question: &Message) -> Message {
        let held = self.held().into_iter().filter(|held| is_noted(&held.resource));
        let held: Vec<inventory::Held> =
            held.map(|held| inventory::Held(held.uid, held.resource, held.version)).collect();
        let content = Content::json(&held).unwrap_or_else(|_| Content::null());
        question.response(compose::id(), compose::now(), content)
    }

    fn request(&self, verb: &str, path: &str, object: &Value) -> Message {
        let content = Content::json(object).unwrap_or_else(|_| Content::null());
        compose::message(source::EDGED, group::META, verb, path, content)
    }
}

/// Ticks of which the first comes somewhere within the period, so that a fleet does not tick as one.
fn ticks(period: Duration) -> tokio::time::Interval {
    let period = period.min(Duration::from_secs(24 * 3600));
    let first = tokio::time::Instant::now() + period.mul_f64(rand::random::<f64>());
    let mut ticks = tokio::time::interval_at(first, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

async fn until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// What the cloud keeps note of.
fn is_noted(resource: &str) -> bool {
    let kind = EdgeResource::parse(resource).map(|resource| resource.kind).unwrap_or_default();
    inventory::KINDS.contains(&kind.as_str())
}
