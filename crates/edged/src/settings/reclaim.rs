//! When the node takes resources back: eviction, garbage collection of images, and what is kept from pods at all.

use std::collections::BTreeMap;
use std::time::Duration;

use podlife::eviction::threshold::{self, Texts, Threshold, ThresholdError};
use podlife::image_gc::Policy;

use super::bytes;

/// Entries that the kubelet takes when the configuration says nothing.
const EVICTION_HARD: [(&str, &str); 5] = [
    ("memory.available", "100Mi"),
    ("nodefs.available", "10%"),
    ("nodefs.inodesFree", "5%"),
    ("imagefs.available", "15%"),
    ("imagefs.inodesFree", "5%"),
];

/// When pods are evicted.
#[derive(Clone, Debug, PartialEq)]
pub struct EvictionSettings {
    /// `evictionHard`, `evictionSoft` with `evictionSoftGracePeriod` and `evictionMinimumReclaim`.
    pub thresholds: Vec<Threshold>,
    /// How long a condition stays after its cause has gone (`evictionPressureTransitionPeriod`).
    pub pressure_transition: Duration,
    /// Longest grace period, in seconds, at a soft threshold (`evictionMaxPodGracePeriod`).
    pub max_pod_grace: i64,
}

/// The maps of the configuration, each from the name of a signal.
#[derive(Clone, Debug, Default)]
pub struct EvictionMaps {
    /// `evictionHard`.
    pub hard: BTreeMap<String, String>,
    /// `evictionSoft`.
    pub soft: BTreeMap<String, String>,
    /// `evictionSoftGracePeriod`.
    pub soft_grace: BTreeMap<String, Duration>,
    /// `evictionMinimumReclaim`.
    pub min_reclaim: BTreeMap<String, String>,
}

impl EvictionMaps {
    /// What they mean.
    ///
    /// # Errors
    /// Every entry that makes no sense.
    pub fn thresholds(&self) -> Result<Vec<Threshold>, Vec<ThresholdError>> {
        let Self { hard, soft, soft_grace, min_reclaim } = self;
        threshold::parse(Texts { hard, soft, soft_grace, min_reclaim }, bytes)
    }
}

impl Default for EvictionSettings {
    fn default() -> Self {
        let hard = EVICTION_HARD.map(|(signal, value)| (signal.to_owned(), value.to_owned()));
        let maps = EvictionMaps { hard: hard.into(), ..Default::default() };
        Self {
            thresholds: maps.thresholds().unwrap_or_default(),
            pressure_transition: Duration::from_secs(300),
            max_pod_grace: 0,
        }
    }
}

/// When images are removed, as upstream has it.
pub(super) const IMAGE_GC: Policy =
    Policy { high_percent: 85, low_percent: 80, min_age: Duration::from_secs(120), max_age: Duration::ZERO };

/// What pods do not get (`systemReserved` and `kubeReserved` together).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reserved {
    /// Thousandths of processors.
    pub cpu: u64,
    /// Bytes.
    pub memory: u64,
    /// Bytes of disk.
    pub ephemeral_storage: u64,
    /// Process ids.
    pub pid: u64,
}

impl Reserved {
    /// Adds a map of the configuration, `{cpu: 100m, memory: 256Mi}`. Returns the keys that make no sense.
    pub fn add(&mut self, map: &BTreeMap<String, String>) -> Vec<String> {
        let mut wrong = Vec::new();
        for (name, text) in map {
            let quantity = k8s_openapi::apimachinery::pkg::api::resource::Quantity(text.clone());
            let value =
                if name == "cpu" { podlife::quantity::milli(&quantity) } else { podlife::quantity::value(&quantity) };
            let field = match name.as_str() {
                "cpu" => &mut self.cpu,
                "memory" => &mut self.memory,
                "ephemeral-storage" => &mut self.ephemeral_storage,
                "pid" => &mut self.pid,
                _ => {
                    wrong.push(name.clone());
                    continue;
                }
            };
            match value.and_then(|value| u64::try_from(value).ok()) {
                Some(value) => *field = field.saturating_add(value),
                None => wrong.push(name.clone()),
            }
        }
        wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_resources_add_up() {
        let map = |entries: &[(&str, &str)]| {
            entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<BTreeMap<_, _>>()
        };
        let mut reserved = Reserved::default();
        assert_eq!(reserved.add(&map(&[("cpu", "100m"), ("memory", "1Mi")])), [""; 0]);
        assert_eq!(reserved.add(&map(&[("cpu", "1"), ("gpu", "1"), ("memory", "some")])), ["gpu", "memory"]);
        assert_eq!((reserved.cpu, reserved.memory), (1100, 1 << 20));
    }

    #[test]
    fn the_default_is_upstreams() {
        // memory.available stands for all pods together too.
        assert_eq!(EvictionSettings::default().thresholds.len(), EVICTION_HARD.len() + 1);
    }
}
