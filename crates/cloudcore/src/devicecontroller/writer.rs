//! The task that writes what was reported into `DeviceStatus` objects, some devices at a time. A device is one node's, and a node is connected to one
//! cloudcore; where somebody else writes nevertheless, the version in the patch tells.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use beehive::compose;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};
use wire::{Content, Message, Route, group, kind, operation, source};

use super::devices::Device;
use super::downstream::DEVICE;
use super::reports::{Job, Reports, Values};
use super::status::{Known, Status, read};
use crate::cloudhub::session::SessionHandle;
use crate::edgecontroller::view::{NamespacedName, View};
use crate::kubernetes::kinds::{self, DEVICES};
use crate::kubernetes::{Kubernetes, KubernetesError};

/// Devices whose status is written at the same time.
const AT_ONCE: usize = 32;
/// Tries of one write when somebody else writes too.
const TRIES: usize = 4;

/// A report that waits to be confirmed.
pub struct Confirmation {
    /// Who waits.
    pub session: SessionHandle,
    /// For a message with this id.
    pub id: String,
}

impl Confirmation {
    /// The word that it was written; `false` when too much waits for the node already.
    fn send(&self) -> bool {
        self.session.has_ended() || self.session.post(confirmation(&self.id)).is_ok()
    }
}

/// The word that a report was taken (KubeEdge v1.23).
pub fn confirmation(id: &str) -> Message {
    let route = Route::new(source::DEVICE_CONTROLLER, group::TWIN, operation::RESPONSE, kind::TWIN);
    let mut message = Message::new(compose::id(), compose::now(), route, Content::ok());
    id.clone_into(&mut message.header.parent_msg_id);
    message
}

/// Writes what is reported. Cloning is cheap.
#[derive(Clone)]
pub struct Writer {
    shared: Arc<Shared>,
}

struct Shared {
    kubernetes: Kubernetes,
    view: Arc<View>,
    reports: Mutex<Reports<Confirmation>>,
    wake: Notify,
}

impl Writer {
    /// Until `stopping`. What is not written then was not confirmed, and the edge says it again.
    pub fn start(kubernetes: Kubernetes, view: Arc<View>, tasks: &TaskTracker, stopping: &CancellationToken) -> Self {
        let shared = Shared { kubernetes, view, reports: Mutex::default(), wake: Notify::new() };
        let writer = Self { shared: Arc::new(shared) };
        let (running, stopping) = (writer.clone(), stopping.clone());
        tasks.spawn(async move {
            let _ = stopping.run_until_cancelled(running.run()).await;
        });
        writer
    }

    /// A report about a device of the node.
    pub fn take_in(&self, name: &NamespacedName, values: Values, confirmation: Confirmation) {
        self.reports().take_in(name, values, confirmation, now());
        self.shared.wake.notify_one();
    }

    async fn run(&self) {
        let mut writing = FuturesUnordered::new();
        loop {
            while writing.len() < AT_ONCE
                && let Some(job) = self.next()
            {
                writing.push(self.write(job));
            }
            let due = self.reports().next_due().filter(|_| writing.len() < AT_ONCE);
            let due = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(()) = writing.next() => {}
                () = self.shared.wake.notified(), if writing.len() < AT_ONCE => {}
                () = due => {}
            }
        }
    }

    fn next(&self) -> Option<Job<Confirmation>> {
        self.reports().next(now())
    }

    async fn write(&self, mut job: Job<Confirmation>) {
        let devices = &self.shared.view.devices;
        let device = devices.read().get(&job.name.0, &job.name.1).cloned();
        let written = match device {
            Some(device) => self.shared.bring(&job.name, &device, &job.values, job.known.take()).await,
            None if devices.are_listed() => {
                debug!(namespace = job.name.0, device = job.name.1, "a device that was reported of is gone");
                let late = self.reports().forget(&job.name);
                job.confirmations.iter().chain(&late).for_each(|waiting| {
                    // One that does not read says it again.
                    let _ = waiting.send();
                });
                return;
            }
            None => Err(KubernetesError::Request("devices are being listed".into())),
        };
        match written {
            Ok(known) => {
                let sent = job.confirmations.iter().take_while(|waiting| waiting.send()).count();
                let left: VecDeque<_> = job.confirmations.split_off(sent);
                self.reports().written(&job.name, known, left, now());
            }
            Err(error) => {
                let (namespace, name) = job.name.clone();
                let failures = self.reports().failed(job, now());
                if failures == 1 {
                    warn!(namespace, device = name, %error, "the status of a device could not be written; tried again");
                }
            }
        }
    }

    fn reports(&self) -> MutexGuard<'_, Reports<Confirmation>> {
        self.shared.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The time by tokio's clock, which a test may let run faster.
fn now() -> std::time::Instant {
    Instant::now().into_std()
}

impl Shared {
    /// Brings the API's DeviceStatus to what was reported; what it is then.
    async fn bring(
        &self,
        (namespace, name): &NamespacedName,
        device: &Device,
        values: &Values,
        mut known: Option<Known>,
    ) -> Result<Known, KubernetesError> {
        let list = format!("{}/namespaces/{namespace}/devicestatuses", kinds::group(DEVICES));
        let path = format!("{list}/{name}");
        let owner = json!([{
            "apiVersion": DEVICES, "kind": DEVICE, "name": name, "uid": device.uid, "controller": true, "blockOwnerDeletion": true,
        }]);
        let mut last = None;
        for _ in 0..TRIES {
            let found = match known.take() {
                Some(known) => Some(known),
                None => found(self.kubernetes.get(&path).await)?,
            };
            let result = match found {
                None => {
                    let status = Status::default().with(values, &device.properties);
                    let object = json!({
                        "apiVersion": DEVICES,
                        "kind": "DeviceStatus",
                        "metadata": {"name": name, "namespace": namespace, "ownerReferences": owner},
                        "spec": {},
                        "status": status.patch(&Status::default()),
                    });
                    self.kubernetes.create(&list, object.to_string()).await
                }
                Some(known) => {
                    let is_own = known.owner == device.uid;
                    // That of an earlier device of the name would go with it, and says nothing of this one.
                    let is_foreign = !is_own && !known.owner.is_empty();
                    let before = if is_foreign { Status::default() } else { known.status.clone() };
                    let status = before.with(values, &device.properties);
                    if is_own && status == known.status {
                        return Ok(known);
                    }
                    let mut metadata = json!({"resourceVersion": known.version});
                    if !is_own {
                        metadata["ownerReferences"] = owner.clone();
                    }
                    let patch = json!({"metadata": metadata, "status": status.patch(&known.status)});
                    self.kubernetes.patch(&path, "merge-patch", patch.to_string()).await
                }
            };
            match result {
                Ok(text) => return read(&text),
                // Somebody else has written, made or deleted it: once more with what is there now.
                Err(error) if matches!(error.code(), 404 | 409) => last = Some(error),
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| KubernetesError::Request("others write it all the time".into())))
    }
}

fn found(answer: Result<Bytes, KubernetesError>) -> Result<Option<Known>, KubernetesError> {
    match answer {
        Ok(text) => read(&text).map(Some),
        Err(error) if error.code() == 404 => Ok(None),
        Err(error) => Err(error),
    }
}
