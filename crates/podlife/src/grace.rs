//! How long a pod and its containers get to stop.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::{probe::ProbeKind, spec};

/// `terminationGracePeriodSeconds` when the spec has none.
pub const DEFAULT_POD_GRACE: i64 = 30;
/// Least time between the stop signal and the kill.
pub const MIN_CONTAINER_GRACE: Duration = Duration::from_secs(2);
/// Longest grace: a time so far away that nobody waits for it, and that can still be added to any other.
pub const MAX_GRACE: i64 = 0x7fff_ffff;
/// Grace of pods that only the runtime knows.
pub const ORPHAN_GRACE: i64 = 1;

/// Grace of a pod that is being terminated, in seconds: what the API says (`deletionGracePeriodSeconds`), lowered by the
/// killer's wish; where neither is there, the spec's. It never grows while terminating and is at least 1.
pub fn pod_grace(pod: &Pod, wish: Option<i64>, before: Option<i64>) -> i64 {
    let spec = pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds).unwrap_or(DEFAULT_POD_GRACE);
    let asked = [pod.metadata.deletion_grace_period_seconds, wish].into_iter().flatten().min().unwrap_or(spec);
    before.map_or(asked, |before| before.min(asked)).clamp(1, MAX_GRACE)
}

/// What is left for the signal of a container after what its preStop hook and its turn have used up, in whole seconds.
pub fn container_grace(grace: Duration, used: Duration) -> Duration {
    grace.saturating_sub(Duration::from_secs(used.as_secs())).max(MIN_CONTAINER_GRACE)
}

/// The turn of a container in the end of its pod: `None` at once, others in rising order. Main containers go at once, a
/// sidecar after them and after the sidecars declared behind it.
pub fn stop_turn(pod: &Pod, name: &str) -> Option<usize> {
    let mut sidecars = spec::init_containers(pod).iter().rev().filter(|c| spec::is_sidecar(c));
    sidecars.position(|c| c.name == name)
}

/// Grace for a container that is restarted while its pod goes on: a probe's own value, else the spec's.
pub fn restart_grace(pod: &Pod, container: &Container, probe: Option<ProbeKind>) -> Duration {
    let probe = match probe {
        Some(ProbeKind::Liveness) => container.liveness_probe.as_ref(),
        Some(ProbeKind::Startup) => container.startup_probe.as_ref(),
        _ => None,
    };
    let seconds = probe
        .and_then(|p| p.termination_grace_period_seconds)
        .or_else(|| pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds))
        .unwrap_or(2);
    Duration::from_secs(u64::try_from(seconds.min(MAX_GRACE)).unwrap_or(0)).max(MIN_CONTAINER_GRACE)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PodSpec;

    use super::*;

    #[test]
    fn pod_grace_only_shrinks() {
        let pod = |spec, deletion| {
            let mut pod = Pod {
                spec: Some(PodSpec { termination_grace_period_seconds: spec, ..PodSpec::default() }),
                ..Pod::default()
            };
            pod.metadata.deletion_grace_period_seconds = deletion;
            pod
        };
        for (spec, deletion, wish, before, expected) in [
            (None, None, None, None, 30),
            (Some(60), None, None, None, 60),
            (Some(60), Some(5), None, None, 5),
            (Some(60), Some(90), None, None, 90),
            (Some(60), None, Some(90), None, 90),
            (Some(60), Some(90), None, Some(60), 60),
            (Some(60), Some(5), Some(1), None, 1),
            (Some(60), Some(30), None, Some(10), 10),
            (Some(0), None, None, None, 1),
            (Some(i64::MAX), None, None, None, MAX_GRACE),
            (Some(30), Some(0), None, None, 1),
        ] {
            assert_eq!(
                pod_grace(&pod(spec, deletion), wish, before),
                expected,
                "{spec:?} {deletion:?} {wish:?} {before:?}"
            );
        }
    }

    #[test]
    fn containers_always_get_two_seconds() {
        for (grace, used, left) in [(30, 5000, 25), (30, 400, 30), (10, 60_000, 2), (1, 0, 2)] {
            let left_over = container_grace(Duration::from_secs(grace), Duration::from_millis(used));
            assert_eq!(left_over, Duration::from_secs(left), "{grace} {used}");
        }
    }
}
