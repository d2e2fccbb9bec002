//! EventBus: MQTT on this node, between devices, DeviceTwin and the cloud.
//!
//! A broker inside edgecore, one beside it, or both ([`mqtt`]). What devices say about themselves goes to DeviceTwin, everything else that is
//! subscribed to goes to the cloud. A message has been taken when DeviceTwin has written it down, and only then its sender hears so
//! (QoS 1 and 2). Read `inside` for the broker inside edgecore; the one beside it is a matter of [`mqtt::Client`].

mod files;
mod inside;
#[cfg(test)]
mod tests;
mod users;

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use api::edgecore::EventBus as Settings;
use beehive::{BoxFuture, Context, Inbox, Module, ModuleError, compose};
use bytes::Bytes;
use futures_util::future::OptionFuture;
use mqtt::{Certificate, ClientConfig, ClientTls, Publish, Qos, Received, Taken};
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, warn};
use wire::{Content, group, module, operation, source};

/// What edgecore hears (KubeEdge v1.23), and the same for devices whose topic does not name their namespace, `default`.
const FILTERS: [&str; 8] = [
    "$hw/events/upload/#",
    "$hw/events/device/+/+/state/update",
    "$hw/events/device/+/+/twin/+",
    "$hw/events/device/+/state/update",
    "$hw/events/device/+/twin/+",
    "$hw/events/node/+/membership/get",
    "SYS/dis/upload_records",
    "+/user/#",
];
/// Messages that wait for DeviceTwin, or that DeviceTwin has said and that wait to be published.
pub(crate) const WAITING: usize = 1024;
/// How often a broker beside edgecore hears of us, and how long a connection may take (KubeEdge v1.23).
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// A message of a device on its way to DeviceTwin. One that is dropped was not taken: whoever published it with QoS 1 or 2 does so again.
pub struct Arrived {
    /// Its topic.
    pub topic: String,
    /// What it says.
    pub payload: Bytes,
    /// A broker had kept it, and says it again at each subscription.
    pub(crate) was_retained: bool,
    /// Why it was refused, once DeviceTwin has looked at it.
    pub(crate) refused: Option<Refused>,
    sender: Sender,
}

/// Who hears that a message has been taken.
enum Sender {
    /// Over MQTT.
    Mqtt(Taken),
    /// A mapper.
    Mapper(oneshot::Sender<Option<Refused>>),
    #[cfg(test)]
    Nobody,
}

/// Why a request was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// As on the topics (KubeEdge v1.23): 404 for a device that is not here, 400 for a request that is none.
    pub code: u16,
    /// What is wrong with it.
    pub reason: String,
}

/// Where messages are published. Cloning is cheap.
#[derive(Clone)]
pub struct Bus {
    publishes: mpsc::Sender<Published>,
}

/// A message for subscribers.
pub struct Published {
    /// Its topic.
    pub topic: String,
    /// What it says.
    pub payload: Bytes,
}

/// The module.
pub struct EventBus {
    settings: Settings,
    /// What the broker inside edgecore has to keep.
    database: PathBuf,
    to_twin: mpsc::Sender<Arrived>,
    publishes: mpsc::Receiver<Published>,
}

impl EventBus {
    /// With these settings; what the broker inside edgecore keeps lies beside the node's `database`. What devices say about themselves goes
    /// `to_twin`. Also where DeviceTwin publishes.
    pub fn new(settings: Settings, database: &std::path::Path, to_twin: mpsc::Sender<Arrived>) -> (Self, Bus) {
        let (publish, publishes) = mpsc::channel(WAITING);
        let database = database.with_file_name("mqtt.db");
        (Self { settings, database, to_twin, publishes }, Bus { publishes: publish })
    }

    async fn serve(&mut self, context: &Context) -> Result<(), ModuleError> {
        let (beside, from_beside) = self.beside()?.unzip();
        // DeviceTwin and the other broker do not wait for it; before it is there nobody can have subscribed.
        let inside = OnceLock::new();
        let hearing_inside = async {
            let Some(started) = inside::start(context, &self.settings, &self.database).await else { return };
            let bus = inside.get_or_init(|| started.bus);
            let certificates = OptionFuture::from(started.certificates.map(inside::Certificates::keep));
            let users = OptionFuture::from(started.users.map(|users| users.keep(bus)));
            // It tells of what comes, not of what it has kept.
            tokio::join!(hear(context, &self.to_twin, started.received, false), certificates, users);
        };
        let hearing_beside = async {
            if let Some(incoming) = from_beside {
                hear(context, &self.to_twin, incoming, true).await;
            }
        };
        let (qos, retain) = (Qos::from_number(self.settings.qos).unwrap_or(Qos::AtMostOnce), self.settings.retain);
        let publishes = &mut self.publishes;
        let publishing = async {
            while let Some(Published { topic, payload }) = publishes.recv().await {
                let message = |qos, retain| Publish { topic: topic.clone(), payload: payload.clone(), qos, retain };
                // KubeEdge v1.23 has its own settings for its own broker only.
                publish(beside.as_ref(), message(Qos::AtLeastOnce, false)).await;
                publish(inside.get(), message(qos, retain)).await;
            }
        };
        tokio::select! {
            () = context.stopping() => {}
            // Whoever hears must not wait for whoever speaks: DeviceTwin does both.
            _ = async { tokio::join!(hearing_inside, hearing_beside, publishing) } => {}
        }
        let stopping = beside.into_iter().chain(inside.into_inner()).map(mqtt::Bus::stop);
        futures_util::future::join_all(stopping).await;
        Ok(())
    }

    fn beside(&self) -> Result<Option<(mqtt::Bus, mpsc::Receiver<Received>)>, ModuleError> {
        let Some(broker) = &self.settings.external else { return Ok(None) };
        // A name that stays the same is one that the broker can keep messages for.
        let keep_session = !broker.client_id.is_empty();
        let tls = broker.tls.clone().map(|files| ClientTls {
            // Checked with the configuration.
            ca: files.ca.unwrap_or_default(),
            own: files.own.map(|(certificate, key)| Certificate { certificate, key }),
        });
        let config = ClientConfig {
            host: broker.host.clone(),
            port: broker.port,
            tls,
            client_id: if keep_session { broker.client_id.clone() } else { format!("edgecore-{}", compose::id()) },
            keep_session,
            user: (!broker.username.is_empty()).then(|| (broker.username.clone(), broker.password.clone())),
            keep_alive: KEEP_ALIVE,
            connect_timeout: KEEP_ALIVE,
        };
        Ok(Some(mqtt::Bus::client(config, &FILTERS)?))
    }
}

async fn publish(bus: Option<&mqtt::Bus>, publish: Publish) {
    let Some(bus) = bus else { return };
    let topic = publish.topic.clone();
    if let Err(error) = bus.publish(publish).await {
        warn!(%error, topic, "a message could not be published");
    }
}

/// Hands on what arrives until the broker ends; it may say again what it has kept, if it `repeats`.
async fn hear(
    context: &Context,
    to_twin: &mpsc::Sender<Arrived>,
    mut incoming: mpsc::Receiver<Received>,
    repeats: bool,
) {
    while let Some(Received { publish: Publish { topic, payload, retain, .. }, taken }) = incoming.recv().await {
        let is_of_devices = topic.starts_with("$hw/events/device/") || topic.starts_with("$hw/events/node/");
        if is_of_devices && context.has_module(module::TWIN) {
            let (was_retained, sender) = (repeats && retain, Sender::Mqtt(taken));
            if to_twin.send(Arrived { topic, payload, was_retained, refused: None, sender }).await.is_err() {
                debug!("DeviceTwin has ended");
            }
            continue;
        }
        if !is_of_devices {
            upload(context, &topic, &payload).await;
        }
        // Without DeviceTwin nobody takes what devices say.
        taken.complete();
    }
}

/// What rules may have a use for.
async fn upload(context: &Context, topic: &str, payload: &[u8]) {
    let content = Content::text(&String::from_utf8_lossy(payload));
    let message = compose::message(source::EVENT_BUS, group::USER, operation::UPLOAD, topic, content);
    if let Err(error) = context.send(module::EDGE_HUB, message).await {
        warn!(%error, topic, "a message could not be sent to the cloud");
    }
}

impl Bus {
    /// Where nobody hears.
    pub fn silent() -> Self {
        Self { publishes: mpsc::channel(1).0 }
    }

    /// Publishes; waits while too much waits already. Without EventBus nobody hears.
    pub(crate) async fn publish(&self, topic: String, payload: Vec<u8>) {
        // EventBus ends with the process.
        let _ = self.publishes.send(Published { topic, payload: payload.into() }).await;
    }

    #[cfg(test)]
    pub(crate) fn of_test(room: usize) -> (Self, mpsc::Receiver<Published>) {
        let (publishes, heard) = mpsc::channel(room);
        (Self { publishes }, heard)
    }
}

impl Arrived {
    /// Whether a mapper says it.
    pub(crate) fn is_of_mapper(&self) -> bool {
        matches!(self.sender, Sender::Mapper(_))
    }

    /// Of a mapper, which waits for what comes of it. The answer fails when it could not be written down.
    pub(crate) fn with_answer(topic: String, payload: Bytes) -> (Self, oneshot::Receiver<Option<Refused>>) {
        let (answer, answered) = oneshot::channel();
        (Self { topic, payload, was_retained: false, refused: None, sender: Sender::Mapper(answer) }, answered)
    }

    /// It is where it must be.
    pub(crate) fn complete(self) {
        match self.sender {
            Sender::Mqtt(taken) => taken.complete(),
            // A mapper that has ended does not wait.
            Sender::Mapper(answer) => drop(answer.send(self.refused)),
            #[cfg(test)]
            Sender::Nobody => {}
        }
    }

    #[cfg(test)]
    pub(crate) fn of_test(topic: &str, payload: Bytes) -> Self {
        Self { topic: topic.to_owned(), payload, was_retained: false, refused: None, sender: Sender::Nobody }
    }
}

impl Module for EventBus {
    fn name(&self) -> &'static str {
        module::EVENT_BUS
    }

    fn group(&self) -> &'static str {
        group::BUS
    }

    fn run<'a>(&'a mut self, context: Context, inbox: &'a mut Inbox) -> BoxFuture<'a, Result<(), ModuleError>> {
        Box::pin(async move {
            // Rules of the cloud would come here; this version has none.
            let ignoring = async { while inbox.recv().await.is_some() {} };
            tokio::select! {
                ended = self.serve(&context) => ended,
                () = ignoring => Ok(()),
            }
        })
    }
}
