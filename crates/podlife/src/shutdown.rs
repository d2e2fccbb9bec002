//! The node shuts down: which pods end when, and how long they get. The rules are the kubelet's.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use crate::{grace, status::EndVerdict};

/// From this priority on a pod is critical.
const CRITICAL: i32 = 2_000_000_000;
/// Priority of pods that have none.
const DEFAULT_PRIORITY: i32 = 0;

/// Pods that end together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// Least priority of its pods; those below the lowest group belong to that one.
    pub priority: i32,
    /// How long they get, and how long the next group waits for them at most.
    pub period: Duration,
}

/// The settings contradict each other.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum GroupError {
    /// Nothing is left for usual pods.
    #[error("shutdownGracePeriodCriticalPods is longer than shutdownGracePeriod, of which it is a part: shorten it")]
    CriticalTooLong,
    /// Two kinds of settings.
    #[error(
        "shutdownGracePeriodByPodPriority replaces shutdownGracePeriod and shutdownGracePeriodCriticalPods: set only one kind"
    )]
    Both,
}

/// The groups of a configuration, the lowest priority first; none when nothing is configured, which switches it off.
/// `critical` is the last part of `period`.
///
/// # Errors
/// The settings contradict each other.
pub fn groups(period: Duration, critical: Duration, by_priority: &[Group]) -> Result<Vec<Group>, GroupError> {
    if !by_priority.is_empty() {
        if !(period.is_zero() && critical.is_zero()) {
            return Err(GroupError::Both);
        }
        let mut groups = by_priority.to_vec();
        groups.sort_by_key(|group| group.priority);
        return Ok(groups);
    }
    let usual = period.checked_sub(critical).ok_or(GroupError::CriticalTooLong)?;
    if period.is_zero() {
        return Ok(Vec::new());
    }
    let usual = Group { priority: DEFAULT_PRIORITY, period: usual };
    Ok(vec![usual, Group { priority: CRITICAL, period: critical }])
}

/// How long the shutdown must be held up for all groups.
pub fn total(groups: &[Group]) -> Duration {
    groups.iter().fold(Duration::ZERO, |sum, group| sum.saturating_add(group.period))
}

/// The place of a pod's group among these.
pub fn group_of(groups: &[Group], pod: &Pod) -> usize {
    let priority = pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(DEFAULT_PRIORITY);
    groups.iter().rposition(|group| group.priority <= priority).unwrap_or(0)
}

/// Grace of a pod in seconds: its own, or what its group gets.
pub fn pod_grace(group: Group, pod: &Pod) -> i64 {
    let seconds = i64::try_from(group.period.as_secs()).unwrap_or(grace::MAX_GRACE);
    grace::pod_grace(pod, None, None).min(seconds)
}

/// The verdict on pods that end with the node.
pub fn verdict() -> EndVerdict {
    let text = "Pod was terminated in response to imminent node shutdown.";
    EndVerdict::disruption("Terminated", text, text)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PodSpec;

    use super::*;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn group(priority: i32, period: u64) -> Group {
        Group { priority, period: seconds(period) }
    }

    fn pod(priority: Option<i32>, grace: i64) -> Pod {
        let spec = PodSpec { priority, termination_grace_period_seconds: Some(grace), ..PodSpec::default() };
        Pod { spec: Some(spec), ..Pod::default() }
    }

    #[test]
    fn groups_of_a_configuration() {
        for (period, critical, by_priority, expected) in [
            (0, 0, vec![], Ok(vec![])),
            (30, 10, vec![], Ok(vec![group(0, 20), group(CRITICAL, 10)])),
            (30, 0, vec![], Ok(vec![group(0, 30), group(CRITICAL, 0)])),
            (10, 30, vec![], Err(GroupError::CriticalTooLong)),
            (0, 0, vec![group(100, 5), group(-7, 60)], Ok(vec![group(-7, 60), group(100, 5)])),
            (30, 10, vec![group(100, 5)], Err(GroupError::Both)),
        ] {
            assert_eq!(groups(seconds(period), seconds(critical), &by_priority), expected, "{period} {critical}");
        }
        assert_eq!(total(&[group(0, 20), group(CRITICAL, 10)]), seconds(30));
    }

    #[test]
    fn each_pod_has_one_group_and_no_more_grace_than_it() {
        let groups = [group(0, 20), group(1000, 5), group(CRITICAL, 10)];
        for (priority, grace, place, expected) in [
            (None, 30, 0, 20),
            (Some(-5), 3, 0, 3),
            (Some(999), 30, 0, 20),
            (Some(1000), 30, 1, 5),
            (Some(CRITICAL), 30, 2, 10),
            (Some(i32::MAX), 2, 2, 2),
        ] {
            let pod = pod(priority, grace);
            let found = group_of(&groups, &pod);
            assert_eq!((found, pod_grace(groups[found], &pod)), (place, expected), "{priority:?}");
        }
        assert_eq!(verdict().reason, "Terminated");
    }
}
