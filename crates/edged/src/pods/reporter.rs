//! Tells the API about pods: status patches and the final delete call.
//!
//! Knows for each pod what the API has acknowledged and what it should have. One request per pod is in flight, the newest
//! status wins; while the cloud is away requests fail at once and are repeated. The delete call is sent when all hold:
//! the pod has a deletion timestamp, its worker has released everything, and the API knows a terminal phase.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use podlife::{observed::PodIdentity, patch, spec, status};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use wire::{Content, kind};

use super::{PodRecord, PodVersion, mailbox::Mailbox, source::compact_status};
use crate::meta::{MetaClient, MetaError};

/// Reports waiting for the reporter: a few per pod of a full node.
const REPORT_QUEUE: usize = 512;
/// Requests in flight over all pods: keeps a reconnection from flooding the link.
const MAX_IN_FLIGHT: usize = 16;
/// First pause after a failed request.
const RETRY_INITIAL: Duration = Duration::from_secs(1);
/// Longest pause (the kubelet's batch interval).
const RETRY_MAX: Duration = Duration::from_secs(10);

/// Handle to the reporter.
#[derive(Clone)]
pub(crate) struct Reporter {
    sender: mpsc::Sender<Report>,
}

pub(super) enum Report {
    /// The API sent the pod.
    Api {
        identity: PodIdentity,
        version: u64,
        deleted: bool,
        is_static: bool,
        status: Box<PodStatus>,
        mailbox: Arc<Mailbox>,
    },
    /// The worker computed this.
    Status { uid: String, status: Box<PodStatus> },
    /// The worker has released everything of the pod.
    Released { uid: String },
    /// The pod is gone from the API, or its worker ended.
    Forget { uid: String },
    /// The link to the cloud is back: repeat at once.
    Online,
    /// A static pod has a mirror in the API, which shows its status.
    Mirror(MirrorOf),
    /// Somebody asks how these pods are.
    List { pods: Vec<(PodIdentity, Arc<Pod>)>, answer: oneshot::Sender<Vec<PodRecord>> },
}

/// The mirror of a static pod.
pub(crate) struct MirrorOf {
    /// UID of the static pod.
    pub uid: String,
    /// The mirror as the API has it.
    pub version: Box<PodVersion>,
}

struct Entry {
    identity: PodIdentity,
    /// UID of the object in the API that shows the status: the pod's own, or that of a static pod's mirror once there is one.
    target: Option<String>,
    /// The newest status of a static pod: each new mirror is to show it.
    latest: Option<Box<PodStatus>>,
    acked: PodStatus,
    version: u64,
    wanted: Option<Box<PodStatus>>,
    deleted: bool,
    released: bool,
    is_static: bool,
    /// The API refused a status or knows no such pod: nothing more to tell.
    closed: bool,
    in_flight: bool,
    retry: Option<(Instant, Duration)>,
    mailbox: Arc<Mailbox>,
}

struct Done {
    uid: String,
    outcome: Outcome,
}

enum Outcome {
    Patched { sent: Box<PodStatus>, answer: Result<Option<Content>, MetaError> },
    Deleted(Result<(), MetaError>),
}

enum Step {
    Patch(Box<PodStatus>, String),
    Delete,
}

impl Reporter {
    /// Hands over a report; waits while the queue is full. Nothing is lost unless the agent stops.
    pub(super) async fn send(&self, report: Report) {
        // The reporter ends only with the agent.
        let _ = self.sender.send(report).await;
    }

    /// Tells of the mirror of a static pod.
    pub async fn mirror(&self, mirror: MirrorOf) {
        self.send(Report::Mirror(mirror)).await;
    }
}

/// A reporter and its handle.
pub(super) fn reporter(meta: MetaClient) -> (Reporter, ReporterTask) {
    let (sender, receiver) = mpsc::channel(REPORT_QUEUE);
    (Reporter { sender }, ReporterTask { meta, receiver, entries: BTreeMap::new(), requests: JoinSet::new() })
}

/// The owner of what the API knows.
pub(super) struct ReporterTask {
    meta: MetaClient,
    receiver: mpsc::Receiver<Report>,
    entries: BTreeMap<String, Entry>,
    requests: JoinSet<Done>,
}

impl ReporterTask {
    /// Runs until cancelled.
    pub async fn run(mut self, stopping: CancellationToken) {
        loop {
            let retry = self.next_retry();
            tokio::select! {
                () = stopping.cancelled() => return,
                report = self.receiver.recv() => match report {
                    Some(report) => self.take(report),
                    None => return,
                },
                Some(done) = self.requests.join_next() => {
                    if let Ok(done) = done {
                        self.finish(done);
                    }
                }
                () = sleep_until(retry) => {}
            }
            self.send_due();
        }
    }

    fn take(&mut self, report: Report) {
        match report {
            Report::Api { identity, version, deleted, is_static, status, mailbox } => {
                let target = (!is_static).then(|| identity.uid.clone());
                let entry = self.entries.entry(identity.uid.clone()).or_insert_with(|| Entry {
                    identity,
                    target,
                    latest: None,
                    acked: PodStatus::default(),
                    version: 0,
                    wanted: None,
                    deleted: false,
                    released: false,
                    is_static,
                    closed: false,
                    in_flight: false,
                    retry: None,
                    mailbox: Arc::clone(&mailbox),
                });
                entry.mailbox = mailbox;
                if entry.is_static {
                    // What the API has of it comes with its mirror.
                    return;
                }
                entry.deleted |= deleted;
                // Answers and pushed objects may overtake each other: the newer resource version counts.
                if version == 0 || version >= entry.version {
                    entry.acked = *status;
                    // The API still has the pod, whatever it answered before.
                    entry.closed &= version == entry.version;
                    entry.version = version;
                }
            }
            Report::Status { uid, status } => {
                if let Some(entry) = self.entries.get_mut(&uid) {
                    if entry.is_static {
                        entry.latest = Some(status.clone());
                    }
                    entry.wanted = Some(status);
                }
            }
            Report::Released { uid } => {
                if let Some(entry) = self.entries.get_mut(&uid) {
                    entry.released = true;
                }
            }
            Report::Forget { uid } => {
                self.entries.remove(&uid);
            }
            Report::Mirror(MirrorOf { uid, version: mirror }) => {
                if let Some(entry) = self.entries.get_mut(&uid) {
                    entry.show_on(*mirror);
                }
            }
            Report::List { pods, answer } => {
                let status = |uid: &str| {
                    let entry = self.entries.get(uid)?;
                    Some(entry.wanted.clone().unwrap_or_else(|| Box::new(entry.acked.clone())))
                };
                let records = pods.into_iter().map(|(identity, pod)| {
                    let status = status(&identity.uid).unwrap_or_default();
                    PodRecord { identity, pod, status }
                });
                // Who asked may be gone.
                let _ = answer.send(records.collect());
            }
            Report::Online => {
                for entry in self.entries.values_mut() {
                    entry.retry = None;
                }
            }
        }
    }

    fn next_retry(&self) -> Option<Instant> {
        if self.requests.len() >= MAX_IN_FLIGHT {
            return None;
        }
        self.entries.values().filter(|e| !e.in_flight).filter_map(|e| e.retry.map(|(at, _)| at)).min()
    }

    fn send_due(&mut self) {
        let now = Instant::now();
        for (uid, entry) in &mut self.entries {
            if self.requests.len() >= MAX_IN_FLIGHT {
                return;
            }
            if entry.in_flight || entry.retry.is_some_and(|(at, _)| at > now) {
                continue;
            }
            let Some(step) = entry.next_step() else {
                entry.retry = None;
                continue;
            };
            entry.in_flight = true;
            let (meta, uid, identity) = (self.meta.clone(), uid.clone(), entry.identity.clone());
            self.requests.spawn(async move {
                let outcome = match step {
                    Step::Patch(sent, text) => {
                        let answer = meta.patch(&identity.namespace, kind::POD_PATCH, &identity.name, &text).await;
                        Outcome::Patched { sent, answer }
                    }
                    Step::Delete => Outcome::Deleted(
                        meta.delete_pod(&identity.namespace, &identity.name, Some(&identity.uid)).await,
                    ),
                };
                Done { uid, outcome }
            });
        }
    }

    fn finish(&mut self, done: Done) {
        let Some(entry) = self.entries.get_mut(&done.uid) else { return };
        entry.in_flight = false;
        let result = match done.outcome {
            Outcome::Patched { sent, answer } => answer.map(|object| entry.acknowledge(sent, object.as_ref())),
            Outcome::Deleted(result) => result.map(|()| entry.closed = true),
        };
        match result {
            Ok(()) => entry.retry = None,
            Err(error) if error.is_final() || error.is_other_object() => entry.refused(&error),
            Err(error) => {
                let pause = entry.retry.map_or(RETRY_INITIAL, |(_, pause)| (pause * 2).min(RETRY_MAX));
                entry.retry = Some((Instant::now() + pause, pause));
                tracing::debug!(pod = entry.identity.name, error = %error, "pod status not delivered yet");
            }
        }
    }
}

impl Entry {
    fn next_step(&mut self) -> Option<Step> {
        if self.closed {
            return None;
        }
        let target = self.target.clone()?;
        if let Some(wanted) = self.wanted.take() {
            let wanted = status::rebase(*wanted, &self.acked);
            match patch::status_patch(&target, &self.acked, &wanted) {
                Ok(Some(text)) => {
                    let wanted = Box::new(wanted);
                    self.wanted = Some(wanted.clone());
                    return Some(Step::Patch(wanted, text));
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::error!(pod = self.identity.name, error = %error, "pod status cannot be written as JSON");
                }
            }
        }
        let ended = spec::is_terminal_phase(self.acked.phase.as_deref());
        (self.deleted && self.released && ended).then_some(Step::Delete)
    }

    /// A mirror has come, or has a new version.
    fn show_on(&mut self, mirror: PodVersion) {
        let version = resource_version(&mirror.pod);
        let is_new = self.target.as_ref() != Some(&mirror.identity.uid);
        if is_new {
            self.target = Some(mirror.identity.uid);
            (self.version, self.closed, self.retry) = (0, false, None);
            self.wanted.clone_from(&self.latest);
        }
        if version >= self.version {
            self.version = version;
            self.mailbox.acknowledged(Box::new(mirror.api.clone()));
            self.acked = mirror.api;
        }
    }

    /// The API took the status: what it answers is the new base.
    fn acknowledge(&mut self, sent: Box<PodStatus>, object: Option<&Content>) {
        if self.wanted.as_ref() == Some(&sent) {
            self.wanted = None;
        }
        let answered = object.and_then(|content| content.parse::<Pod>().ok());
        let (version, mut status) = match answered {
            Some(pod) if pod.metadata.uid == self.target => (resource_version(&pod), pod.status.map_or(sent, Box::new)),
            _ => (self.version, sent),
        };
        if version >= self.version {
            self.version = version;
            compact_status(&mut status);
            self.mailbox.acknowledged(status.clone());
            self.acked = *status;
        }
    }

    fn refused(&mut self, error: &MetaError) {
        if error.is_not_found() || error.is_other_object() {
            self.closed = true;
        } else {
            tracing::warn!(pod = self.identity.name, error = %error, "pod status or deletion refused by the API");
            // A deletion must not hang on a status that the API does not want; one that the API forbids ends here.
            self.closed = self.wanted.take().is_none();
            if self.deleted && self.released {
                self.acked.phase = Some("Failed".into());
            }
        }
        self.retry = None;
    }
}

/// Resource versions of one API are numbers in practice; 0 when not.
pub(super) fn resource_version(pod: &Pod) -> u64 {
    pod.metadata.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
