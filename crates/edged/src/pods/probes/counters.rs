//! How often each probe ended how: `prober_probe_total` of `/metrics/probes`.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use podlife::probe::ProbeKind;

/// Which probe.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProbeLabels {
    /// UID of the pod.
    pub pod_uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub pod: String,
    /// Name of the container.
    pub container: String,
    /// Kind of the probe; [`ProbeKind::word`] is the label's value.
    pub kind: ProbeKind,
}

/// Ends of one probe so far, by the values of the label `result`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeCount {
    /// `successful`.
    pub successful: u64,
    /// `failed`.
    pub failed: u64,
}

/// The counters of the pods on the node. Shared between their workers and whoever serves metrics.
#[derive(Debug, Default)]
pub struct ProbeCounters(Mutex<BTreeMap<ProbeLabels, ProbeCount>>);

impl ProbeCounters {
    /// All counters.
    pub fn rows(&self) -> Vec<(ProbeLabels, ProbeCount)> {
        self.lock().iter().map(|(labels, count)| (labels.clone(), *count)).collect()
    }

    pub(super) fn add(&self, labels: &ProbeLabels, success: bool) {
        let mut rows = self.lock();
        let count = match rows.get_mut(labels) {
            Some(count) => count,
            None => rows.entry(labels.clone()).or_default(),
        };
        let counter = if success { &mut count.successful } else { &mut count.failed };
        *counter += 1;
    }

    /// Drops the counters of a pod that is gone.
    pub(in crate::pods) fn forget(&self, pod_uid: &str) {
        self.lock().retain(|labels, _| labels.pod_uid != pod_uid);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ProbeLabels, ProbeCount>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
