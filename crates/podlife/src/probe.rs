//! Probes as the decisions need them: when they run ([`ProbePlan`]), what they do ([`ProbeAction`]), how results become a
//! verdict ([`Streak`]), and what the verdicts mean for a container ([`ProbeResults`]).

mod action;

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::api::core::v1::{Container, Probe};

pub use action::{HttpGet, ProbeAction, action, http_get};

/// Kinds of probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProbeKind {
    /// Decides whether traffic is sent.
    Readiness,
    /// Decides whether the container is restarted.
    Liveness,
    /// Holds the other two back until the container is up.
    Startup,
}

impl ProbeKind {
    /// All kinds.
    pub const ALL: [ProbeKind; 3] = [ProbeKind::Startup, ProbeKind::Liveness, ProbeKind::Readiness];

    /// The probe of this kind.
    pub fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            ProbeKind::Readiness => container.readiness_probe.as_ref(),
            ProbeKind::Liveness => container.liveness_probe.as_ref(),
            ProbeKind::Startup => container.startup_probe.as_ref(),
        }
    }

    /// The word in events.
    pub fn word(self) -> &'static str {
        match self {
            ProbeKind::Readiness => "Readiness",
            ProbeKind::Liveness => "Liveness",
            ProbeKind::Startup => "Startup",
        }
    }
}

/// When a probe runs and how many results make a verdict; the API's defaults filled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbePlan {
    /// Pause after the start of the container.
    pub initial_delay: Duration,
    /// Pause between two attempts.
    pub period: Duration,
    /// Longest time for one attempt.
    pub timeout: Duration,
    /// Successes in a row.
    pub successes: u32,
    /// Failures in a row.
    pub failures: u32,
}

impl ProbePlan {
    /// The plan of a probe.
    pub fn new(probe: &Probe) -> Self {
        let number = |value: Option<i32>, default: u32| match value.and_then(|v| u32::try_from(v).ok()) {
            Some(value) if value > 0 => value,
            _ => default,
        };
        let seconds = |value, default| Duration::from_secs(u64::from(number(value, default)));
        Self {
            initial_delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10),
            timeout: seconds(probe.timeout_seconds, 1),
            successes: number(probe.success_threshold, 1),
            failures: number(probe.failure_threshold, 3),
        }
    }
}

/// Counts results in a row.
#[derive(Clone, Copy, Debug, Default)]
pub struct Streak {
    success: bool,
    length: u32,
}

impl Streak {
    /// Adds a result; the verdict once the threshold is reached.
    pub fn add(&mut self, success: bool, plan: &ProbePlan) -> Option<Verdict> {
        if self.success != success {
            self.length = 0;
        }
        self.success = success;
        self.length = self.length.saturating_add(1);
        match success {
            true if self.length >= plan.successes => Some(Verdict::Success),
            false if self.length >= plan.failures => Some(Verdict::Failure),
            _ => None,
        }
    }
}

/// Verdict after thresholds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Enough successes.
    Success,
    /// Enough failures.
    Failure,
}

/// Verdicts by container id; a new container has none until its first result.
#[derive(Clone, Debug, Default)]
pub struct ProbeResults {
    /// Probes are carried out. When false, probes in the spec count as absent.
    pub enforced: bool,
    results: BTreeMap<(String, ProbeKind), Verdict>,
}

impl ProbeResults {
    /// Results of an agent that carries out probes.
    pub fn enforced() -> Self {
        Self { enforced: true, results: BTreeMap::new() }
    }

    /// Stores a verdict; true when it differs from the one before.
    pub fn set(&mut self, container_id: &str, kind: ProbeKind, verdict: Verdict) -> bool {
        self.results.insert((container_id.to_owned(), kind), verdict) != Some(verdict)
    }

    /// The verdict of a probe that has run.
    pub fn get(&self, container_id: &str, kind: ProbeKind) -> Option<Verdict> {
        if self.enforced { self.results.get(&(container_id.to_owned(), kind)).copied() } else { None }
    }

    /// Drops the verdicts of containers that are gone.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.results.retain(|(id, _), _| keep(id));
    }

    /// `started` of the status: running and past its startup probe.
    pub fn is_started(&self, container: &Container, id: &str) -> bool {
        !self.applies(container, ProbeKind::Startup) || self.get(id, ProbeKind::Startup) == Some(Verdict::Success)
    }

    /// `ready` of a started container.
    pub fn is_ready(&self, container: &Container, id: &str) -> bool {
        !self.applies(container, ProbeKind::Readiness) || self.get(id, ProbeKind::Readiness) == Some(Verdict::Success)
    }

    /// The container has such a probe. One that cannot be carried out never succeeds.
    fn applies(&self, container: &Container, kind: ProbeKind) -> bool {
        self.enforced && kind.of(container).is_some()
    }

    /// The probe whose failure asks for a restart, if any.
    pub fn failed(&self, container: &Container, id: &str) -> Option<ProbeKind> {
        if container.liveness_probe.is_some() && self.get(id, ProbeKind::Liveness) == Some(Verdict::Failure) {
            return Some(ProbeKind::Liveness);
        }
        if container.startup_probe.is_some() && self.get(id, ProbeKind::Startup) == Some(Verdict::Failure) {
            return Some(ProbeKind::Startup);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn probe(value: serde_json::Value) -> Probe {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn defaults_of_a_plan() {
        let plan = ProbePlan::new(&probe(json!({"initialDelaySeconds": 0, "periodSeconds": 0, "failureThreshold": 5})));
        assert_eq!(plan.initial_delay, Duration::ZERO);
        assert_eq!((plan.period, plan.timeout), (Duration::from_secs(10), Duration::from_secs(1)));
        assert_eq!((plan.successes, plan.failures), (1, 5));
    }

    #[test]
    fn verdicts_need_results_in_a_row() {
        let plan = ProbePlan::new(&probe(json!({"failureThreshold": 3, "successThreshold": 2})));
        let mut streak = Streak::default();
        let verdicts: Vec<_> = [false, false, true, false, false, false, true, true, true]
            .into_iter()
            .map(|success| streak.add(success, &plan))
            .collect();
        let (good, bad) = (Some(Verdict::Success), Some(Verdict::Failure));
        assert_eq!(verdicts, [None, None, None, None, None, bad, None, good, good]);
    }
}
