//! Mail for one pod worker: only the newest version of the pod is kept, reasons to end it add up.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use k8s_openapi::api::core::v1::PodStatus;
use podlife::{
    probe::{ProbeKind, Verdict},
    spec,
    stage::{End, Stage},
};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::source::PodVersion;

/// Mail of one pod. Shared between the desk and the worker.
pub(super) struct Mailbox {
    slot: Mutex<Slot>,
    arrived: Notify,
    /// Where the worker stands, for those who wait for the pod's end.
    stage: watch::Sender<Stage>,
}

impl Default for Mailbox {
    fn default() -> Self {
        Self { slot: Mutex::default(), arrived: Notify::new(), stage: watch::Sender::new(Stage::Syncing) }
    }
}

#[derive(Default)]
struct Slot {
    mail: Mail,
    /// Ends long waits of the step at hand when urgent mail arrives.
    step: CancellationToken,
    /// What the newest version said about the pod's end.
    end: Option<EndSigns>,
}

/// Deletion timestamp set, deletion grace, terminal phase.
type EndSigns = (bool, Option<i64>, bool);

/// What has arrived since the worker last looked.
#[derive(Default)]
pub(super) struct Mail {
    /// The newest version of the pod.
    pub version: Option<Box<PodVersion>>,
    /// Reasons to end it.
    pub ends: Vec<End>,
    /// The runtime has news of it.
    pub runtime: bool,
    /// Volumes are to be written again.
    pub configuration: bool,
    /// Verdicts of probes by container id.
    pub probes: BTreeMap<(String, ProbeKind), Verdict>,
    /// The disk is short of room: what has ended keeps nothing. Dropped when that is done.
    pub make_room: Option<mpsc::Sender<()>>,
    /// The API's status after a patch.
    pub acknowledged: Option<Box<PodStatus>>,
}

impl Mailbox {
    pub fn version(&self, version: Box<PodVersion>) {
        let deleted = spec::is_deleted(&version.pod);
        let terminal = spec::is_terminal_phase(version.api.phase.as_deref());
        let signs = (deleted, version.pod.metadata.deletion_grace_period_seconds, terminal);
        let mut slot = self.lock();
        // Only news about the end are urgent: every status that comes back from the API passes here too.
        if (deleted || terminal) && slot.end != Some(signs) {
            slot.step.cancel();
        }
        slot.end = Some(signs);
        slot.mail.version = Some(version);
        drop(slot);
        self.arrived.notify_one();
    }

    pub fn end(&self, end: End) {
        let mut slot = self.lock();
        if !slot.mail.ends.contains(&end) {
            slot.mail.ends.push(end);
        }
        slot.step.cancel();
        drop(slot);
        self.arrived.notify_one();
    }

    pub fn runtime_changed(&self) {
        self.lock().mail.runtime = true;
        self.arrived.notify_one();
    }

    pub fn probed(&self, id: &str, kind: ProbeKind, verdict: Verdict) {
        self.lock().mail.probes.insert((id.to_owned(), kind), verdict);
        self.arrived.notify_one();
    }

    pub fn configuration_changed(&self) {
        self.lock().mail.configuration = true;
        self.arrived.notify_one();
    }

    /// See [`Mail::make_room`].
    pub fn make_room(&self, done: mpsc::Sender<()>) {
        self.lock().mail.make_room = Some(done);
        self.arrived.notify_one();
    }

    /// No reason to look at the pod: the worker reads it with its next mail.
    pub fn acknowledged(&self, status: Box<PodStatus>) {
        self.lock().mail.acknowledged = Some(status);
    }

    /// The worker tells where it stands.
    pub fn set_stage(&self, stage: Stage) {
        self.stage.send_if_modified(|old| std::mem::replace(old, stage) != stage);
    }

    /// Where the worker stands.
    pub fn stage(&self) -> watch::Receiver<Stage> {
        self.stage.subscribe()
    }

    /// No container of the pod runs any more.
    pub fn is_stopped(&self) -> bool {
        *self.stage.borrow() > Stage::Terminating
    }

    /// Waits for mail.
    pub async fn arrived(&self) {
        self.arrived.notified().await;
    }

    /// Takes the mail and the token of the step that is about to begin: urgent mail cancels it.
    pub fn take(&self) -> (Mail, CancellationToken) {
        let mut slot = self.lock();
        slot.step = CancellationToken::new();
        (std::mem::take(&mut slot.mail), slot.step.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
