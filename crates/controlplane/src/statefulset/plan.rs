//! What a StatefulSet does next, without IO: which pods come and go, in which order, and what the status says.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::identity::{self, REVISION};
use crate::object::Object;
use crate::pods;

/// The names of the revisions between which the set moves.
#[derive(Debug, Clone, Copy)]
pub struct Revisions<'a> {
    /// Where it comes from.
    pub current: &'a str,
    /// Where it goes: the revision of its present template.
    pub update: &'a str,
}

/// The writes of one round.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// Ordinals to make, and whether by the update revision.
    pub create: Vec<(i64, bool)>,
    /// Pods to delete.
    pub delete: Vec<Object>,
    /// Of these, the ones that ended and are made again: the user is told.
    pub ended: Vec<Object>,
    /// Pods beyond the size of the set.
    pub condemned: Vec<Object>,
    /// `status` of the set.
    pub status: Value,
    /// When to look again because a pod becomes available by time alone.
    pub wait: Option<Duration>,
}

/// The pods as the set sees them.
struct View<'a> {
    set: &'a Object,
    revisions: Revisions<'a>,
    start: i64,
    size: i64,
    /// Pods by ordinal.
    slots: BTreeMap<i64, &'a Object>,
    /// Pods beyond the size, the highest ordinal first.
    condemned: Vec<&'a Object>,
    min_ready: Duration,
    now: Timestamp,
}

/// Decides one round. `own` are the pods of this set.
pub fn plan(set: &Object, own: &[Object], revisions: Revisions<'_>, now: Timestamp) -> Plan {
    let view = View::new(set, own, revisions, now);
    let mut plan = Plan { status: view.status(own), wait: view.wait(own), ..Plan::default() };
    plan.condemned = view.condemned.iter().map(|pod| (*pod).clone()).collect();
    if !set.is_deleting() && view.fill(&mut plan) && view.shrink(&mut plan) {
        view.update(&mut plan);
    }
    plan
}

impl<'a> View<'a> {
    fn new(set: &'a Object, own: &'a [Object], revisions: Revisions<'a>, now: Timestamp) -> Self {
        let start = set.int("/spec/ordinals/start").unwrap_or(0);
        let size = set.int("/spec/replicas").unwrap_or(1).max(0);
        let (mut slots, mut condemned) = (BTreeMap::new(), Vec::new());
        for pod in own {
            match identity::ordinal(set, pod) {
                Some(ordinal) if (start..start + size).contains(&ordinal) => drop(slots.insert(ordinal, pod)),
                Some(_) => condemned.push(pod),
                None => {}
            }
        }
        condemned.sort_by_key(|pod| std::cmp::Reverse(identity::ordinal(set, pod)));
        let seconds = set.int("/spec/minReadySeconds").and_then(|s| u64::try_from(s).ok()).unwrap_or(0);
        Self { set, revisions, start, size, slots, condemned, min_ready: Duration::from_secs(seconds), now }
    }

    /// One pod after the other, each only when those before it are available.
    fn is_ordered(&self) -> bool {
        self.set.text("/spec/podManagementPolicy") != "Parallel"
    }

    fn ordinals(&self) -> std::ops::Range<i64> {
        self.start..self.start + self.size
    }

    /// The first ordinal that an update reaches.
    fn partition(&self) -> i64 {
        self.start + self.set.int("/spec/updateStrategy/rollingUpdate/partition").unwrap_or(0).max(0)
    }

    fn is_rolling(&self) -> bool {
        self.set.text("/spec/updateStrategy/type") != "OnDelete"
    }

    fn is_running(&self, pod: &Object) -> bool {
        pod.text("/status/phase") == "Running" && pods::is_ready(pod)
    }

    fn is_available(&self, pod: &Object) -> bool {
        self.is_running(pod) && pods::is_available(pod, self.min_ready, self.now).is_ok()
    }

    fn is_healthy(&self, pod: &Object) -> bool {
        self.is_available(pod) && !pod.is_deleting()
    }

    /// Makes the pods that are missing. Tells whether the set may go on to the next step.
    fn fill(&self, plan: &mut Plan) -> bool {
        for ordinal in self.ordinals() {
            let fine = match self.slots.get(&ordinal) {
                None => {
                    let updated = !self.is_rolling() || ordinal >= self.partition();
                    plan.create.push((ordinal, updated));
                    false
                }
                // It is made again once it is gone.
                Some(pod) if pods::is_finished(pod) => {
                    if !pod.is_deleting() {
                        plan.delete.push((*pod).clone());
                        plan.ended.push((*pod).clone());
                    }
                    false
                }
                Some(pod) => self.is_healthy(pod),
            };
            if !fine && self.is_ordered() {
                return false;
            }
        }
        true
    }

    /// Deletes the pods that are too many, the last first. Tells whether the set may go on to the next step.
    fn shrink(&self, plan: &mut Plan) -> bool {
        let ascending = self.slots.values().chain(self.condemned.iter().rev());
        let first_ill = ascending.copied().find(|pod| !self.is_healthy(pod)).map(Object::uid);
        for pod in &self.condemned {
            let waits = pod.is_deleting() || (!self.is_available(pod) && first_ill != Some(pod.uid()));
            if self.is_ordered() && waits {
                return false;
            }
            if !pod.is_deleting() {
                plan.delete.push((*pod).clone());
                if self.is_ordered() {
                    return false;
                }
            }
        }
        true
    }

    /// Replaces the pods of other revisions, the last first, one at a time.
    fn update(&self, plan: &mut Plan) {
        if !self.is_rolling() {
            return;
        }
        for ordinal in self.ordinals().rev().take_while(|ordinal| *ordinal >= self.partition()) {
            let Some(pod) = self.slots.get(&ordinal) else { return };
            if pod.label(REVISION) != Some(self.revisions.update) && !pod.is_deleting() {
                if !plan.delete.contains(pod) {
                    plan.delete.push((*pod).clone());
                }
                return;
            }
            if !self.is_healthy(pod) {
                return;
            }
        }
    }

    fn status(&self, own: &[Object]) -> Value {
        let count = |fits: &dyn Fn(&Object) -> bool| {
            i64::try_from(own.iter().filter(|pod| fits(pod)).count()).unwrap_or(i64::MAX)
        };
        let of = |revision: &str| count(&|pod| !pod.is_deleting() && pod.label(REVISION) == Some(revision));
        let replicas = count(&|_| true);
        let ready = count(&|pod| self.is_running(pod));
        let available = count(&|pod| self.is_available(pod));
        let updated = of(self.revisions.update);
        let (mut current, mut current_revision) = (of(self.revisions.current), self.revisions.current);
        let arrived = [updated, ready, replicas].iter().all(|n| *n == self.size);
        if self.is_rolling() && arrived {
            (current, current_revision) = (updated, self.revisions.update);
        }
        let mut status = json!({
            "observedGeneration": self.set.generation(), "replicas": replicas, "availableReplicas": available,
            "currentRevision": current_revision, "updateRevision": self.revisions.update,
            "collisionCount": self.set.int("/status/collisionCount").unwrap_or(0),
        });
        for (field, value) in [("readyReplicas", ready), ("currentReplicas", current), ("updatedReplicas", updated)] {
            if value > 0 {
                status[field] = json!(value);
            }
        }
        status
    }

    fn wait(&self, own: &[Object]) -> Option<Duration> {
        own.iter().filter_map(|pod| pods::is_available(pod, self.min_ready, self.now).err().flatten()).min()
    }
}
