//! How long a pod and its containers get to stop.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::probe::ProbeKind;

/// `terminationGracePeriodSeconds` when the spec has none.
pub const DEFAULT_POD_GRACE: i64 = 30;
/// Least time between the stop signal and the kill.
pub const MIN_CONTAINER_GRACE: Duration = Duration::from_secs(2);
/// Grace of pods that only the runtime knows.
pub const ORPHAN_GRACE: i64 = 1;

/// Grace of a pod that is being terminated, in seconds: the spec's, lowered by `deletionGracePeriodSeconds` and by the
/// killer's wish; it never grows while terminating and is at least 1.
pub fn pod_grace(pod: &Pod, wish: Option<i64>, before: Option<i64>) -> i64 {
    let spec = pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds).unwrap_or(DEFAULT_POD_GRACE);
    [pod.metadata.deletion_grace_period_seconds, wish, before].into_iter().flatten().fold(spec, i64::min).max(1)
}

/// Grace for one container of a terminating pod after what preStop and ordering have used up.
pub fn container_grace(pod_grace: i64, used: Duration) -> Duration {
    let grace = Duration::from_secs(u64::try_from(pod_grace).unwrap_or(0));
    grace.saturating_sub(used).max(MIN_CONTAINER_GRACE)
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
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0)).max(MIN_CONTAINER_GRACE)
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
            (Some(60), Some(90), None, None, 60),
            (Some(60), Some(5), Some(1), None, 1),
            (Some(60), Some(30), None, Some(10), 10),
            (Some(0), None, None, None, 1),
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
        assert_eq!(container_grace(30, Duration::from_secs(5)), Duration::from_secs(25));
        assert_eq!(container_grace(10, Duration::from_secs(60)), Duration::from_secs(2));
        assert_eq!(container_grace(1, Duration::ZERO), Duration::from_secs(2));
    }
}
