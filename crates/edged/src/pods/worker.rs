//! The owner task of one pod: takes its mail, does one step of the stage it is in, sleeps until there is a reason to look again.

use std::{borrow::Cow, collections::BTreeSet, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use podlife::{
    backoff::Backoff,
    containers::StartFailures,
    observed::{ObservedContainer, ObservedPod, PodIdentity, RuntimeState},
    probe::{ProbeKind, ProbeResults, Verdict},
    recover, resize, spec,
    stage::{self, End, Lifecycle, Stage},
    status::{self, Ending, StatusInput},
};
use rand::RngExt;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    Tools,
    hooks::PreStops,
    mailbox::{Mail, Mailbox},
    probes::Prober,
    reporter::{Report, Reporter},
    source::PodVersion,
};
use crate::runtime::RuntimeError;

/// A healthy pod is looked at again after this time (kubelet's sync frequency), lengthened by up to half.
const RESYNC: Duration = Duration::from_secs(60);
/// A step that failed is repeated after this time, lengthened by up to half.
const RETRY: Duration = Duration::from_secs(10);
/// Same while the runtime's network is not ready.
pub(super) const NETWORK_RETRY: Duration = Duration::from_secs(1);
/// Same while the runtime itself does not answer.
const RUNTIME_RETRY: Duration = Duration::from_secs(2);

/// Steps in a row that changed something, before the worker pauses.
const MAX_BUSY: u32 = 20;

/// When to look again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// At once: something was changed.
    Now,
    /// After a while, or when mail arrives.
    After(Duration),
    /// When mail arrives.
    Mail,
    /// Never: the worker is done.
    Exit,
}

impl Next {
    pub fn resync() -> Self {
        Self::After(jittered(RESYNC))
    }

    pub fn retry() -> Self {
        Self::After(jittered(RETRY))
    }

    pub fn network() -> Self {
        Self::After(jittered(NETWORK_RETRY))
    }

    /// Nothing is under way.
    fn is_rest(self) -> bool {
        match self {
            Next::Now => false,
            Next::After(pause) => pause >= RESYNC,
            Next::Mail | Next::Exit => true,
        }
    }

    /// The earlier of the two.
    pub fn or_after(self, other: Duration) -> Self {
        match self {
            Next::After(delay) => Next::After(delay.min(other)),
            Next::Mail => Next::After(other),
            other => other,
        }
    }
}

fn jittered(base: Duration) -> Duration {
    base.mul_f64(rand::rng().random_range(1.0..1.5))
}

/// Everything about one pod.
pub(super) struct PodWorker {
    pub(super) identity: PodIdentity,
    pub(super) tools: Tools,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) reporter: Reporter,
    pub(super) pod: Arc<Pod>,
    /// Status as the API has it.
    pub(super) api: PodStatus,
    /// Status as computed last.
    pub(super) status: Option<PodStatus>,
    pub(super) life: Lifecycle,
    pub(super) backoff: Backoff,
    /// When the worker began: times of the back-off count from here.
    pub(super) began: Instant,
    /// Names of containers that could be made here and not started.
    pub(super) start_failed: BTreeSet<String>,
    pub(super) failures: StartFailures,
    pub(super) probes: ProbeResults,
    pub(super) prober: Prober,
    pub(super) pre_stops: PreStops,
    /// When the volumes were last written.
    pub(super) prepared: Option<Instant>,
    /// Unsupported fields have been told.
    pub(super) warned: bool,
    /// When the end began; time already spent is taken off the grace period.
    pub(super) stopping_since: Option<Instant>,
    /// Something is being started or stopped.
    busy: bool,
    /// The active deadline, once looked at.
    deadline: Option<Deadline>,
    /// Somebody waits for the room that the pod, which has ended, takes on disk.
    pub(super) make_room: Option<mpsc::Sender<()>>,
    /// Where a change of its resources stands.
    pub(super) resize: resize::Progress,
    /// The limits of the pod's cgroup are to be set anew.
    pub(super) pod_cgroup_due: bool,
    /// Everything on the node is released; only the API has still to delete it.
    pub(super) cleaned: bool,
}

/// An active deadline: what was left of it when it was first looked at.
#[derive(Clone, Copy)]
struct Deadline {
    of: (Timestamp, i64),
    left: Duration,
    since: Instant,
}

impl PodWorker {
    /// A worker for a pod that a source wants.
    pub fn new(version: PodVersion, mailbox: Arc<Mailbox>, reporter: Reporter, tools: Tools) -> Self {
        let PodVersion { identity, pod, api, refusal: _ } = version;
        let mut life = Lifecycle::default();
        life.observe(&pod, &api);
        Self {
            identity,
            tools,
            mailbox,
            reporter,
            pod,
            api,
            status: None,
            life,
            backoff: Backoff::default(),
            began: Instant::now(),
            start_failed: BTreeSet::new(),
            failures: StartFailures::new(),
            probes: ProbeResults::enforced(),
            prober: Prober::default(),
            pre_stops: PreStops::default(),
            prepared: None,
            warned: false,
            stopping_since: None,
            busy: false,
            deadline: None,
            make_room: None,
            resize: resize::Progress::default(),
            pod_cgroup_due: false,
            cleaned: false,
        }
    }

    /// A worker that ends a pod which only the runtime knows.
    pub fn orphan(observed: &ObservedPod, mailbox: Arc<Mailbox>, reporter: Reporter, tools: Tools) -> Self {
        let identity = observed.identity.clone();
        let version =
            PodVersion { identity, pod: Arc::new(recover::pod(observed)), api: PodStatus::default(), refusal: None };
        let mut worker = Self::new(version, mailbox, reporter, tools);
        worker.life.end(&worker.pod, End::Orphan);
        worker
    }

    /// Works until the pod is gone from its source and from the node, or the agent stops.
    pub async fn run(mut self, stopping: CancellationToken) {
        let mut wake = Some(Instant::now());
        let mut busy = 0;
        loop {
            let due = tokio::select! {
                () = stopping.cancelled() => return,
                () = sleep_until(wake) => true,
                () = self.mailbox.arrived() => false,
            };
            let (mail, step) = self.mailbox.take();
            let look = self.read(mail);
            self.mailbox.set_stage(self.life.stage());
            if !look && !due {
                continue;
            }
            // Boxed: its tens of KiB are there only while something is done.
            let next = tokio::select! {
                () = stopping.cancelled() => return,
                next = Box::pin(self.step(&step)) => next,
            };
            self.mailbox.set_stage(self.life.stage());
            busy = if next == Next::Now { busy + 1 } else { 0 };
            self.mark_busy(!next.is_rest());
            wake = match next {
                Next::Exit => break,
                // A runtime that says yes and does nothing must not keep the processor busy.
                Next::Now if busy > MAX_BUSY => Some(Instant::now() + NETWORK_RETRY),
                Next::Now => Some(Instant::now()),
                // What lies beyond all time never comes.
                Next::After(pause) => Instant::now().checked_add(pause),
                Next::Mail => None,
            };
        }
        tracing::info!(
            pod = self.identity.name,
            namespace = self.identity.namespace,
            uid = self.identity.uid,
            "pod is gone"
        );
    }

    fn mark_busy(&mut self, busy: bool) {
        if std::mem::replace(&mut self.busy, busy) != busy {
            self.tools.busy.change(&self.tools.runtime, busy);
        }
    }

    /// Takes in the mail; true when it is a reason to look at the pod.
    fn read(&mut self, mail: Mail) -> bool {
        let mut look = mail.runtime || mail.configuration || mail.make_room.is_some() || !mail.ends.is_empty();
        if mail.make_room.is_some() {
            self.make_room = mail.make_room;
        }
        if let Some(status) = mail.acknowledged {
            self.api = *status;
        }
        if let Some(version) = mail.version {
            look |= differs(&self.pod, &version.pod) || self.has_readiness_gates();
            look |= self.resize.refusal != version.refusal;
            self.note_resize(&version);
            self.pod = version.pod;
            self.api = version.api;
        }
        if mail.configuration {
            self.prepared = None;
        }
        for ((id, kind), verdict) in mail.probes {
            look |= self.probes.set(&id, kind, verdict);
        }
        let stage = self.life.stage();
        look |= self.life.observe(&self.pod, &self.api);
        for end in mail.ends {
            self.life.end(&self.pod, end);
        }
        if stage == Stage::Syncing && self.life.stage() == Stage::Terminating {
            self.stopping_since = Some(Instant::now());
        }
        look
    }

    fn has_readiness_gates(&self) -> bool {
        self.pod.spec.as_ref().is_some_and(|s| s.readiness_gates.as_ref().is_some_and(|gates| !gates.is_empty()))
    }

    async fn step(&mut self, cancel: &CancellationToken) -> Next {
        let stage = self.life.stage();
        let result = match stage {
            Stage::Syncing => {
                // What runs keeps its last dead container.
                self.make_room = None;
                self.sync(cancel).await
            }
            Stage::Terminating => self.terminate(cancel).await,
            Stage::Terminated => self.release().await,
            Stage::Finished => self.finished().await,
        };
        match result {
            Ok(next) => next,
            Err(error) => {
                let source = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(pod = self.identity.name, stage = %stage, error = %error, cause = source, "pod step failed; it is repeated");
                if matches!(error, RuntimeError::Unreachable { .. }) {
                    Next::After(jittered(RUNTIME_RETRY))
                } else {
                    Next::retry()
                }
            }
        }
    }

    /// Computes the status from a fresh observation and reports it when it changed.
    pub(super) async fn report(&mut self, observed: &ObservedPod, ending: Ending) {
        if self.life.is_orphan() {
            return;
        }
        let host_ips = self.tools.runtime.host_ips();
        let observed = self.without_unborn(observed, ending);
        let computed = status::compute(&StatusInput {
            pod: &self.pod,
            api: &self.api,
            previous: self.status.as_ref(),
            observed: &observed,
            failures: &self.failures,
            probes: &self.probes,
            runtime_name: self.tools.runtime.name(),
            host_ips: &host_ips,
            ending,
            resize: &self.resize,
            verdict: self.life.verdict(),
            now: Timestamp::now(),
        });
        let before = self.status.as_ref().unwrap_or(&self.api);
        if let Err(error) = status::check_transition(&self.pod, before, &computed) {
            tracing::error!(pod = self.identity.name, error = %error, "computed status is refused");
            return;
        }
        let runs = |status: &PodStatus| status.phase.as_deref() == Some("Running");
        if runs(&computed)
            && !runs(before)
            && let Some(start) = &computed.start_time
        {
            let took = Timestamp::now().duration_since(start.0);
            self.tools.runtime.measures.pod_start.add(Duration::try_from(took).unwrap_or_default());
        }
        if self.status.as_ref() != Some(&computed) {
            let (uid, status) = (self.identity.uid.clone(), Box::new(computed.clone()));
            self.status = Some(computed);
            self.reporter.send(Report::Status { uid, status }).await;
        }
    }

    /// A container that never ran because an agent was killed while it asked for its start is made anew as if it had not been: were its
    /// end reported, and the agent killed once more, that would count as a restart.
    fn without_unborn<'a>(&self, observed: &'a ObservedPod, ending: Ending) -> Cow<'a, ObservedPod> {
        let is_unborn = |c: &ObservedContainer| {
            c.state == RuntimeState::Exited && c.never_ran() && !self.start_failed.contains(&c.name)
        };
        let goes_on = self.life.stage() == Stage::Syncing && matches!(ending, Ending::No);
        if !goes_on || !observed.containers.iter().any(is_unborn) {
            return Cow::Borrowed(observed);
        }
        let mut shown = observed.clone();
        shown.containers.retain(|c| !is_unborn(c));
        Cow::Owned(shown)
    }

    /// Probes of what runs; verdicts that the API knows of a container that runs on are kept, so that a restart of the agent
    /// does not take a ready pod out of service.
    pub(super) fn supervise_probes(&mut self, observed: &ObservedPod) {
        self.probes.retain(|id| observed.containers.iter().any(|c| c.id == id));
        if self.status.is_none() {
            let lists = [&self.api.container_statuses, &self.api.init_container_statuses];
            for status in lists.into_iter().flatten().flatten() {
                let Some((_, id)) = status.container_id.as_deref().and_then(|id| id.split_once("://")) else {
                    continue;
                };
                if status.started == Some(true) {
                    self.probes.set(id, ProbeKind::Startup, Verdict::Success);
                }
                if status.ready {
                    self.probes.set(id, ProbeKind::Readiness, Verdict::Success);
                }
            }
        }
        self.prober.supervise(&self.pod, observed, &self.probes, &self.tools, &self.mailbox);
    }

    /// What is left of the pod's active deadline. The clock is read once for each deadline: one that is set later neither ends
    /// the pod nor lets it run on.
    pub(super) fn deadline_left(&mut self) -> Option<Duration> {
        let seconds = self.pod.spec.as_ref()?.active_deadline_seconds?;
        let start = self.status.as_ref().unwrap_or(&self.api).start_time.as_ref()?.0;
        let (left, since) = match self.deadline {
            Some(deadline) if deadline.of == (start, seconds) => (deadline.left, deadline.since),
            _ => {
                let left = stage::deadline_left(&self.pod, Some(start), Timestamp::now())?.unsigned_abs();
                let since = Instant::now();
                self.deadline = Some(Deadline { of: (start, seconds), left, since });
                (left, since)
            }
        };
        Some(left.saturating_sub(since.elapsed()))
    }

    /// Whether the pod has volumes that follow their ConfigMap, Secret or token.
    pub(super) fn has_volumes(&self) -> bool {
        self.pod.spec.as_ref().and_then(|s| s.volumes.as_ref()).is_some_and(|v| !v.is_empty())
    }

    pub(super) fn is_deleted(&self) -> bool {
        spec::is_deleted(&self.pod) || self.life.is_removed()
    }
}

impl Drop for PodWorker {
    fn drop(&mut self) {
        self.mark_busy(false);
        self.tools.probe_counters.forget(&self.identity.uid);
    }
}

/// Whether the new version of a pod asks for other work: spec, labels, annotations or its deletion changed.
fn differs(old: &Pod, new: &Pod) -> bool {
    let (a, b) = (&old.metadata, &new.metadata);
    old.spec != new.spec
        || a.labels != b.labels
        || a.annotations != b.annotations
        || a.deletion_timestamp != b.deletion_timestamp
        || a.deletion_grace_period_seconds != b.deletion_grace_period_seconds
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
