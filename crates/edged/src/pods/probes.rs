//! Carries out probes: one task per container instance and kind, verdicts go into the worker's mailbox.
//!
//! The startup probe goes first; readiness and liveness begin once it has succeeded. After a failed liveness probe or any
//! verdict of a startup probe the task ends: the next instance of the container gets a new one. What one attempt does is in
//! `attempt`. Times are monotonic: a clock that is set does not make a probe early or late.

mod attempt;
mod counters;
mod grpc;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use podlife::{
    observed::{ObservedContainer, ObservedPod, RuntimeState},
    probe::{self, ProbeAction, ProbeKind, ProbePlan, ProbeResults, Streak, Verdict},
    spec,
};
use rand::RngExt;
use tokio::{
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep, sleep_until},
};

use super::{Tools, mailbox::Mailbox};
use crate::events::EventType;
use attempt::{Attempt, attempt};
pub use counters::{ProbeCount, ProbeCounters, ProbeLabels};

/// How probes name themselves.
const USER_AGENT: &str = "kube-probe/1.32";
/// Longest output in an event.
const MAX_OUTPUT: usize = 1024;

/// The probe tasks of one pod.
#[derive(Default)]
pub(super) struct Prober {
    tasks: JoinSet<()>,
    running: BTreeMap<(String, ProbeKind), AbortHandle>,
    /// Since when each instance has been running.
    started: BTreeMap<String, Instant>,
    /// When the containers were looked at last.
    looked: Option<Instant>,
    /// The pod is ending: only readiness is still probed.
    ending: bool,
}

/// One probe of one container instance.
struct Probing {
    pod: Arc<Pod>,
    id: String,
    labels: ProbeLabels,
    plan: ProbePlan,
    action: Result<ProbeAction, String>,
    address: String,
    tools: Tools,
    mailbox: Arc<Mailbox>,
}

impl Prober {
    /// Starts the probes that are due for the containers that run, and ends those of containers that are gone.
    pub fn supervise(
        &mut self,
        pod: &Arc<Pod>,
        observed: &ObservedPod,
        results: &ProbeResults,
        tools: &Tools,
        mailbox: &Arc<Mailbox>,
    ) {
        while self.tasks.try_join_next().is_some() {}
        let adopts = self.looked.is_none();
        self.note_starts(observed);
        let started = &self.started;
        self.running.retain(|(id, _), task| {
            let keep = started.contains_key(id);
            if !keep {
                task.abort();
            }
            keep
        });
        let host_ips = if spec::host_network(pod) { tools.runtime.host_ips() } else { Vec::new() };
        let Some(address) = observed.ips().first().or(host_ips.first()) else { return };
        let sidecars = spec::init_containers(pod).iter().filter(|c| spec::is_sidecar(c));
        for container in spec::containers(pod).iter().chain(sidecars) {
            let newest = observed.newest(&container.name);
            let Some((id, &since)) = newest.and_then(|instance| self.started.get_key_value(&instance.id)) else {
                continue;
            };
            for kind in ProbeKind::ALL {
                let due = (kind == ProbeKind::Startup) != results.is_started(container, id);
                let key = (id.clone(), kind);
                if !due || self.ending && kind != ProbeKind::Readiness || self.running.contains_key(&key) {
                    continue;
                }
                if let Some(probe) = kind.of(container) {
                    let probing = Probing::new(pod, container, id, (kind, probe), address, tools, mailbox);
                    let mut begin = since + probing.plan.initial_delay;
                    if adopts {
                        // All that a restarted agent finds would be probed at once.
                        let spread = probing.plan.period.mul_f64(rand::rng().random_range(0.0..1.0));
                        begin = begin.max(Instant::now() + spread);
                    }
                    self.running.insert(key, self.tasks.spawn(probing.run(begin)));
                }
            }
        }
    }

    /// An instance that was not there at the last look cannot have been running for longer than since then, whatever the
    /// clock says.
    fn note_starts(&mut self, observed: &ObservedPod) {
        let now = Instant::now();
        let newest_age = self.looked.map(|looked| now.duration_since(looked));
        let runs = |c: &&ObservedContainer| c.state == RuntimeState::Running;
        self.started.retain(|id, _| observed.containers.iter().filter(runs).any(|c| c.id == *id));
        for container in observed.containers.iter().filter(runs) {
            self.started.entry(container.id.clone()).or_insert_with(|| {
                let by_clock = container.started_at.map(|at| Timestamp::now().duration_since(at));
                let by_clock = by_clock.and_then(|age| Duration::try_from(age).ok()).unwrap_or_default();
                let age = newest_age.map_or(by_clock, |newest| by_clock.min(newest));
                now.checked_sub(age).unwrap_or(now)
            });
        }
        self.looked = Some(now);
    }

    /// The pod is ending: nothing is restarted any more, but whether it serves is still asked.
    pub fn keep_readiness(&mut self) {
        self.ending = true;
        self.running.retain(|(_, kind), task| {
            let keep = *kind == ProbeKind::Readiness;
            if !keep {
                task.abort();
            }
            keep
        });
    }

    /// Ends all probes.
    pub fn stop(&mut self) {
        self.ending = true;
        self.tasks.abort_all();
        self.running.clear();
    }
}

impl Probing {
    fn new(
        pod: &Arc<Pod>,
        container: &Container,
        id: &str,
        (kind, probe): (ProbeKind, &Probe),
        address: &str,
        tools: &Tools,
        mailbox: &Arc<Mailbox>,
    ) -> Self {
        let meta = &pod.metadata;
        Self {
            pod: Arc::clone(pod),
            id: id.to_owned(),
            labels: ProbeLabels {
                pod_uid: meta.uid.clone().unwrap_or_default(),
                namespace: meta.namespace.clone().unwrap_or_default(),
                pod: meta.name.clone().unwrap_or_default(),
                container: container.name.clone(),
                kind,
            },
            plan: ProbePlan::new(probe),
            action: probe::action(probe, container),
            address: address.to_owned(),
            tools: tools.clone(),
            mailbox: Arc::clone(mailbox),
        }
    }

    /// Probes until the verdict that ends it.
    async fn run(self, begin: Instant) {
        sleep_until(begin).await;
        let kind = self.labels.kind;
        let mut streak = Streak::default();
        let mut told = None;
        loop {
            let began = Instant::now();
            let verdict = self.once().await.and_then(|success| streak.add(success, &self.plan));
            if verdict.is_some() && verdict != told {
                told = verdict;
                if let Some(verdict) = verdict {
                    self.mailbox.probed(&self.id, kind, verdict);
                }
            }
            let over = match kind {
                ProbeKind::Startup => verdict.is_some(),
                ProbeKind::Liveness => verdict == Some(Verdict::Failure),
                ProbeKind::Readiness => false,
            };
            if over {
                return;
            }
            sleep(self.plan.period.saturating_sub(began.elapsed())).await;
        }
    }

    /// One attempt: counted, its failure told. `None` when it could not be made.
    async fn once(&self) -> Option<bool> {
        let word = self.labels.kind.word();
        let outcome = attempt(&self.tools.runtime, &self.id, &self.address, &self.action, self.plan.timeout).await;
        let (success, event) = match outcome {
            Attempt::Success => (Some(true), None),
            Attempt::Warning(text) => {
                (Some(true), Some(("ProbeWarning", format!("{word} probe warning: {}", cut(&text)))))
            }
            Attempt::Failure(output) => {
                (Some(false), Some(("Unhealthy", format!("{word} probe failed: {}", cut(&output)))))
            }
            Attempt::Error(cause) => {
                let text = format!("{word} probe errored and resulted in unknown state: {}", cut(&cause));
                (None, Some(("Unhealthy", text)))
            }
        };
        if let Some((reason, text)) = event {
            self.tools.recorder.container(&self.pod, &self.labels.container, EventType::Warning, reason, text);
        }
        if let Some(success) = success {
            self.tools.probe_counters.add(&self.labels, success);
        }
        success
    }
}

fn cut(output: &str) -> &str {
    let end = output.char_indices().map(|(at, _)| at).take_while(|at| *at <= MAX_OUTPUT).last().unwrap_or(0);
    if output.len() <= MAX_OUTPUT { output } else { &output[..end] }
}
