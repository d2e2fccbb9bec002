//! DeviceTwin: what the devices of this node are and shall be, property by property.
//!
//! A request of a device comes from EventBus; it changes the twin in memory (`requests`, by the rules of crate `twin`), the change
//! is written down with all others that came at the same time, and only then answered and told to the cloud (`reports`). Device
//! objects come from MetaManager (`objects`). `device` has the state, whose only owner is this module; `rows` the database. `history` says
//! which values are kept, `kept` keeps them; `pages` shows them, and the twins, to the node's API.

mod device;
mod history;
mod kept;
mod objects;
mod pages;
#[cfg(test)]
mod replay;
mod reports;
mod requests;
mod rows;
#[cfg(test)]
mod tests;

use std::time::Duration;

use beehive::{BoxFuture, Context, Inbox, Module, ModuleError};
use edged::events::{EventSender, EventType, Recorder};
use edged::meta::MetaClient;
use store::{Database, StoreError};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};
use twin::topic::DeviceId;
use wire::{AnswerError, EdgeResource, Message, group, kind, module, operation};

use crate::dmi::Changed;
use crate::eventbus::{Arrived, Bus};
use device::Devices;
use reports::Reports;
use requests::{Answer, Told};

pub(crate) use kept::TABLES as HISTORY;
pub(crate) use pages::pages;
pub(crate) use rows::TABLES;

/// Requests that are written down together.
const MAX_TOGETHER: usize = 512;
/// Between two commits there is so much time at least, in which more gathers: a thousand devices that speak now and then cost half of the commits.
const GATHER: Duration = Duration::from_millis(2);
/// What the cloud has confirmed may be written down so much later: without it, it is only told once more.
const CONFIRMED_WITHIN: Duration = Duration::from_millis(250);

/// The module.
pub struct DeviceTwin {
    node: String,
    rows: rows::Rows,
    /// What devices say.
    arrived: mpsc::Receiver<Arrived>,
    bus: Bus,
    /// Mappers have to hear of changed objects.
    changed: Changed,
    /// Whether the link stands: nobody says so again to a module that was started again after a failure.
    connected: bool,
    recorder: Recorder,
    /// Sends what the recorder records; with `run` while that runs.
    events: Option<EventSender>,
}

/// What is to be done next.
enum Event {
    Stopping,
    Message(Box<Message>),
    Arrived(Arrived),
    Late,
}

/// What has been carried out in memory and is not written down yet.
#[derive(Default)]
struct Batch {
    answers: Vec<Answer>,
    /// They hear that their messages have been taken when that is written down.
    arrived: Vec<Arrived>,
}

impl DeviceTwin {
    /// On the node's database, for the devices that EventBus and DMI hear. `events` sends what is recorded of devices, here and elsewhere.
    pub fn new(
        node: &str,
        database: Database,
        (arrived, bus): (mpsc::Receiver<Arrived>, Bus),
        changed: Changed,
        (recorder, events): (Recorder, EventSender),
    ) -> Self {
        let rows = rows::Rows::new(database);
        Self { node: node.to_owned(), rows, arrived, bus, changed, connected: false, recorder, events: Some(events) }
    }

    async fn serve(&mut self, context: &Context, inbox: &mut Inbox) -> Result<(), ModuleError> {
        let mut devices = Devices::new(self.rows.devices().map_err(|error| Box::new(error) as ModuleError)?);
        let mut reports = Reports::default();
        reports.link(self.connected, &devices, Instant::now());
        let mut batch = Batch { answers: self.compare(&mut devices), ..Batch::default() };
        let (mut may_commit, mut must_commit) = (Instant::now(), None);
        loop {
            let now = Instant::now();
            let is_urgent = !batch.answers.is_empty() || !batch.arrived.is_empty();
            if is_urgent || must_commit.is_some_and(|must| must <= now) {
                (may_commit, must_commit) = (now + GATHER, None);
                batch.answers = self.finish(context, &mut devices, &mut reports, std::mem::take(&mut batch)).await?;
            } else {
                must_commit = must_commit.or(devices.has_writes().then_some(now + CONFIRMED_WITHIN));
                report(context, &mut reports, &devices).await;
            }
            let due = reports.next_due().into_iter().chain(must_commit).min();
            let mut next = tokio::select! {
                () = context.stopping() => Event::Stopping,
                Some(message) = inbox.recv() => Event::Message(Box::new(message)),
                Some(arrived) = self.arrived.recv() => Event::Arrived(arrived),
                () = until(due) => Event::Late,
            };
            loop {
                match next {
                    Event::Stopping => return Ok(()),
                    Event::Message(message) => {
                        self.take(&mut devices, &mut reports, &message, &mut batch);
                        self.connected = reports.is_connected();
                    }
                    Event::Arrived(arrived) => self.carry_out(&mut devices, arrived, &mut batch),
                    Event::Late => reports.repeat(Instant::now()),
                }
                if batch.arrived.len() >= MAX_TOGETHER {
                    break;
                }
                next = match (inbox.try_recv(), self.arrived.try_recv()) {
                    (Some(message), arrived) => {
                        if let Ok(arrived) = arrived {
                            self.carry_out(&mut devices, arrived, &mut batch);
                        }
                        Event::Message(Box::new(message))
                    }
                    (None, Ok(arrived)) => Event::Arrived(arrived),
                    (None, Err(_)) if batch.arrived.is_empty() => break,
                    (None, Err(_)) => tokio::select! {
                        () = tokio::time::sleep_until(may_commit) => break,
                        Some(message) = inbox.recv() => Event::Message(Box::new(message)),
                        Some(arrived) = self.arrived.recv() => Event::Arrived(arrived),
                    },
                };
            }
        }
    }

    /// Objects that MetaManager has stored or removed while this module did not run.
    fn compare(&self, devices: &mut Devices) -> Vec<Answer> {
        let objects = match self.rows.objects() {
            Ok(objects) => objects,
            Err(error) => {
                error!(%error, "the node's Devices cannot be read from its database");
                return Vec::new();
            }
        };
        let mut answers = Vec::new();
        let mut there = std::collections::HashSet::new();
        for (_, object) in &objects {
            let put = objects::put(devices, &self.node, object, |path| self.rows.object(path));
            answers.extend(put.map(|(id, answer)| {
                there.insert(id);
                answer
            }));
        }
        let gone: Vec<DeviceId> = devices
            .all()
            .into_iter()
            .filter(|(id, device)| !device.about.uid.is_empty() && !there.contains(id))
            .map(|(id, _)| id.clone())
            .collect();
        answers.extend(gone.iter().map(|id| objects::remove(devices, &self.node, id, "")));
        answers
    }

    fn carry_out(&self, devices: &mut Devices, mut arrived: Arrived, batch: &mut Batch) {
        match requests::carry_out(devices, &self.node, &arrived) {
            Some(answer) => {
                arrived.refused = answer.refused.clone();
                batch.answers.push(answer);
            }
            None => tracing::debug!(topic = arrived.topic, "no request to DeviceTwin"),
        }
        batch.arrived.push(arrived);
    }

    /// A message of the cloud, of MetaManager or of EdgeHub.
    fn take(&self, devices: &mut Devices, reports: &mut Reports, message: &Message, batch: &mut Batch) {
        let route = &message.route;
        if route.resource == kind::NODE_CONNECTION {
            let connected = message.content.payload().as_ref() == b"cloud_connected";
            return reports.link(connected, devices, Instant::now());
        }
        if !message.header.parent_msg_id.is_empty() {
            let (report, now) = (&message.header.parent_msg_id, Instant::now());
            let is_refusal = matches!(message.content.object(), Err(AnswerError::Refused(_)));
            if route.operation == operation::ERROR || is_refusal {
                reports.refused(report, now);
            } else {
                reports.confirmed(report, devices, now);
            }
            return;
        }
        if route.group == group::TWIN && route.resource.contains("membership") {
            batch.answers.extend(objects::member(devices, &self.node, &message.content.payload()));
            return;
        }
        let Ok(resource) = EdgeResource::parse(&route.resource) else { return };
        // MetaManager has stored it.
        self.changed.tell();
        if resource.kind == kind::DEVICE_MODEL {
            batch.answers.extend(self.model_changed(devices, &resource.namespace, resource.name()));
        }
        if resource.kind != kind::DEVICE {
            return;
        }
        match route.operation.as_str() {
            operation::DELETE => {
                let Some(id) = DeviceId::parse(&format!("{}/{}", resource.namespace, resource.name())) else { return };
                let uid = crate::metamanager::uid(&message.content);
                batch.answers.push(objects::remove(devices, &self.node, &id, &uid));
            }
            _ => {
                let put = objects::put(devices, &self.node, &message.content.payload(), |path| self.rows.object(path));
                batch.answers.extend(put.map(|(_, answer)| answer));
            }
        }
    }

    /// A DeviceModel is there, is different, or is gone: what its devices wish, and what of them is kept, may be otherwise.
    fn model_changed(&self, devices: &mut Devices, namespace: &str, model: &str) -> Vec<Answer> {
        let all = devices.all().into_iter();
        let of_it = all.filter(|(id, device)| id.namespace == namespace && device.history.is_of(model));
        let ids: Vec<DeviceId> = of_it.map(|(id, _)| id.clone()).collect();
        let mut answers = Vec::new();
        for id in ids {
            // One that is gone has a message on its way.
            let Some(object) = self.rows.object(&format!("{namespace}/{}/{}", kind::DEVICE, id.name)) else { continue };
            let put = objects::put(devices, &self.node, &object, |path| self.rows.object(path));
            answers.extend(put.map(|(_, answer)| answer));
        }
        answers
    }

    /// Writes down what has changed, then answers, then tells the cloud. What could not be written and is to be tried with the next batch.
    async fn finish(
        &self,
        context: &Context,
        devices: &mut Devices,
        reports: &mut Reports,
        batch: Batch,
    ) -> Result<Vec<Answer>, StoreError> {
        batch.answers.iter().flat_map(|answer| &answer.notes).for_each(|note| self.note(devices, note));
        let mut again = Vec::new();
        let writes = devices.take_writes();
        let stored = if writes.is_empty() { Ok(()) } else { self.rows.write(writes).await };
        let told: Vec<Told> = match stored {
            Ok(()) => {
                let now = Instant::now();
                batch.answers.iter().filter_map(|answer| answer.device.as_ref()).for_each(|id| reports.want(id, now));
                batch.arrived.into_iter().for_each(Arrived::complete);
                batch.answers.into_iter().flat_map(|answer| answer.told).collect()
            }
            Err(error) => {
                again = self.forget(devices, &error)?;
                let reason = format!("nothing was stored: {error}");
                batch.answers.into_iter().flat_map(|answer| answer.not_stored(&reason)).collect()
            }
        };
        for told in told {
            self.bus.publish(told.topic, told.payload).await;
        }
        report(context, reports, devices).await;
        Ok(again)
    }

    /// Tells users what they have to know of a device that is in the cluster.
    fn note(&self, devices: &Devices, note: &requests::Note) {
        let (id, text) = (&note.device, note.text.as_str());
        let uid = devices.get(id).map(|device| device.about.uid.as_str()).unwrap_or_default();
        if !uid.is_empty() {
            self.recorder.device(&id.namespace, &id.name, uid, EventType::Warning, note.reason, text);
        }
    }

    /// What is in memory only did not happen. What the objects wish is tried again.
    fn forget(&self, devices: &mut Devices, error: &StoreError) -> Result<Vec<Answer>, StoreError> {
        error!(%error, "changes of devices could not be stored");
        *devices = Devices::new(self.rows.devices()?);
        Ok(self.compare(devices))
    }
}

/// Tells the cloud what it may be told now.
async fn report(context: &Context, reports: &mut Reports, devices: &Devices) {
    while let Some(report) = reports.next(devices, Instant::now()) {
        if let Err(error) = context.send(module::EDGE_HUB, report).await {
            warn!(%error, "a report of a device could not be sent to the cloud");
            break;
        }
    }
}

impl Module for DeviceTwin {
    fn name(&self) -> &'static str {
        module::TWIN
    }

    fn group(&self) -> &'static str {
        group::TWIN
    }

    fn run<'a>(&'a mut self, context: Context, inbox: &'a mut Inbox) -> BoxFuture<'a, Result<(), ModuleError>> {
        Box::pin(async move {
            let (meta, stop) = (MetaClient::new(context.clone()), CancellationToken::new());
            let (mut events, rows) = (self.events.take(), self.rows.clone());
            let serving = async {
                let ended = self.serve(&context, inbox).await;
                stop.cancel();
                ended
            };
            let sending = async {
                if let Some(events) = &mut events {
                    events.run(&meta, &stop).await;
                }
            };
            let (ended, (), ()) = tokio::join!(serving, sending, rows.forget_old(&stop));
            self.events = events;
            ended
        })
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
