//! The stages of a pod worker: one way from syncing to finished.

use std::fmt;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, PodStatus};

use crate::{grace, spec, status::EndVerdict};

/// Stage of a pod's worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Containers are kept as the spec wants them.
    Syncing,
    /// Containers are being stopped; left only when the runtime shows none alive.
    Terminating,
    /// Sandboxes, volumes and directories are being released.
    Terminated,
    /// Nothing is left on the node but the status to be told.
    Finished,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stage::Syncing => "syncing",
            Stage::Terminating => "terminating",
            Stage::Terminated => "terminated",
            Stage::Finished => "finished",
        })
    }
}

/// Why a pod is ended by the agent or by its source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// `deletionTimestamp` is set.
    Deleted,
    /// The source no longer has it.
    Removed,
    /// The API says Succeeded or Failed, or all containers are done under the restart policy.
    Completed,
    /// Only the runtime knows it.
    Orphan,
    /// The agent ends it: deadline, eviction.
    Killed {
        /// Reason and message for the status.
        verdict: EndVerdict,
        /// Grace in seconds instead of the spec's.
        grace: Option<i64>,
    },
}

/// Where a worker stands.
#[derive(Clone, Debug)]
pub struct Lifecycle {
    stage: Stage,
    grace: Option<i64>,
    verdict: Option<EndVerdict>,
    removed: bool,
    orphan: bool,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self { stage: Stage::Syncing, grace: None, verdict: None, removed: false, orphan: false }
    }
}

impl Lifecycle {
    /// The stage.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Grace of the pod in seconds, while it is being terminated.
    pub fn grace(&self) -> Option<i64> {
        self.grace
    }

    /// What the killer wants in the status.
    pub fn verdict(&self) -> Option<&EndVerdict> {
        self.verdict.as_ref()
    }

    /// The source no longer has the pod: no status can be told.
    pub fn is_removed(&self) -> bool {
        self.removed
    }

    /// The pod is known from the runtime only.
    pub fn is_orphan(&self) -> bool {
        self.orphan
    }

    /// Asks for the end. True when something changed that running steps should hear of: the stage, or a shorter grace.
    pub fn end(&mut self, pod: &Pod, end: End) -> bool {
        let wish = match end {
            End::Orphan => Some(grace::ORPHAN_GRACE),
            End::Killed { grace, .. } => grace,
            End::Deleted | End::Removed | End::Completed => None,
        };
        match end {
            End::Removed => self.removed = true,
            End::Orphan => (self.removed, self.orphan) = (true, true),
            End::Killed { verdict, .. } => {
                self.verdict.get_or_insert(verdict);
            }
            End::Deleted | End::Completed => {}
        }
        if self.stage > Stage::Terminating {
            return false;
        }
        let grace = grace::pod_grace(pod, wish, self.grace);
        let changed = self.stage == Stage::Syncing || self.grace != Some(grace);
        self.stage = Stage::Terminating;
        self.grace = Some(grace);
        changed
    }

    /// Looks at a new version of the pod for reasons to end it.
    pub fn observe(&mut self, pod: &Pod, api: &PodStatus) -> bool {
        if spec::is_deleted(pod) {
            self.end(pod, End::Deleted)
        } else if spec::is_terminal_phase(api.phase.as_deref()) {
            self.stage == Stage::Syncing && self.end(pod, End::Completed)
        } else {
            false
        }
    }

    /// All containers have stopped.
    pub fn containers_stopped(&mut self) {
        if self.stage == Stage::Terminating {
            self.stage = Stage::Terminated;
        }
    }

    /// Everything on the node is released.
    pub fn released(&mut self) {
        if self.stage == Stage::Terminated {
            self.stage = Stage::Finished;
        }
    }
}

/// What is left of `activeDeadlineSeconds`, counted from `status.startTime`; zero when it has passed.
pub fn deadline_left(pod: &Pod, start: Option<Timestamp>, now: Timestamp) -> Option<SignedDuration> {
    let seconds = pod.spec.as_ref()?.active_deadline_seconds?;
    let left = SignedDuration::from_secs(seconds).saturating_sub(now.duration_since(start?));
    Some(left.max(SignedDuration::ZERO))
}

/// The verdict on a pod that was active for too long.
pub fn deadline_exceeded() -> EndVerdict {
    EndVerdict::new("DeadlineExceeded", "Pod was active on the node longer than the specified deadline")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_go_one_way_and_grace_only_shrinks() {
        let mut pod = Pod { spec: Some(Default::default()), ..Pod::default() };
        let mut life = Lifecycle::default();
        assert!(life.end(&pod, End::Deleted));
        assert_eq!((life.stage(), life.grace()), (Stage::Terminating, Some(30)));
        assert!(!life.end(&pod, End::Deleted), "nothing new");
        pod.metadata.deletion_grace_period_seconds = Some(5);
        assert!(life.end(&pod, End::Deleted), "shorter grace");
        pod.metadata.deletion_grace_period_seconds = Some(50);
        assert!(!life.end(&pod, End::Removed), "grace never grows");
        assert_eq!(life.grace(), Some(5));
        life.released();
        assert_eq!(life.stage(), Stage::Terminating, "not before the containers have stopped");
        life.containers_stopped();
        life.released();
        assert!(!life.end(&pod, End::Orphan));
        assert_eq!(life.stage(), Stage::Finished);
        assert!(life.is_removed());
    }
}
