//! Verdicts of probes as the decisions need them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Container;

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
        !self.enforced
            || container.startup_probe.is_none()
            || self.get(id, ProbeKind::Startup) == Some(Verdict::Success)
    }

    /// `ready` of a started container.
    pub fn is_ready(&self, container: &Container, id: &str) -> bool {
        !self.enforced
            || container.readiness_probe.is_none()
            || self.get(id, ProbeKind::Readiness) == Some(Verdict::Success)
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
