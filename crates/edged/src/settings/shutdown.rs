//! Settings of a graceful shutdown of the node.

use std::time::Duration;

use podlife::shutdown::{Group, GroupError, groups};

use super::Places;

/// How pods end when the machine shuts down.
#[derive(Clone, Debug)]
pub struct ShutdownSettings {
    /// Which pods end when, the lowest priority first.
    pub groups: Vec<Group>,
    /// Where systemd-logind is.
    pub places: Places,
}

impl ShutdownSettings {
    /// From `shutdownGracePeriod`, `shutdownGracePeriodCriticalPods`, and `shutdownGracePeriodByPodPriority` (least priority and
    /// period of each group). `None` when nothing is set: then a shutdown does not wait.
    ///
    /// # Errors
    /// The settings contradict each other.
    pub fn new(
        period: Duration,
        critical: Duration,
        by_priority: impl IntoIterator<Item = (i32, Duration)>,
    ) -> Result<Option<Self>, GroupError> {
        let by_priority: Vec<Group> =
            by_priority.into_iter().map(|(priority, period)| Group { priority, period }).collect();
        let groups = groups(period, critical, &by_priority)?;
        Ok((!groups.is_empty()).then(|| Self { groups, places: Places::default() }))
    }
}
