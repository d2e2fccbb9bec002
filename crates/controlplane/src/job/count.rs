//! Counting the ended pods of a Job, each exactly once.
//!
//! A pod that has ended is first noted in `status.uncountedTerminatedPods`; then its finalizer is taken off; then it moves from
//! the note into the counter. Wherever the controller stops in between, it goes on from there.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::pods::{self, End, TRACKING};
use crate::object::Object;

/// The pause after the first failed pod; it doubles with each further one (as upstream).
const FIRST_PAUSE: Duration = Duration::from_secs(10);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

/// After so many doublings the pause is the longest by far.
const MOST_DOUBLINGS: usize = 16;

/// What has ended so far.
#[derive(Debug, Default)]
pub struct Count {
    /// `status.succeeded`, without what is only noted.
    succeeded: i64,
    /// `status.failed`, without what is only noted.
    failed: i64,
    noted_succeeded: Vec<String>,
    noted_failed: Vec<String>,
    /// The indexes of an indexed Job that are done.
    pub done: BTreeSet<i64>,
    /// Pods whose finalizer may go when the note is written.
    pub release: Vec<Object>,
}

impl Count {
    /// Brings the counters of the Job's status up to date with its pods.
    pub fn of(job: &Object, own: &[Object]) -> Self {
        let mut count = Self {
            succeeded: job.int("/status/succeeded").unwrap_or(0),
            failed: job.int("/status/failed").unwrap_or(0),
            done: pods::parse_indexes(job.text("/status/completedIndexes")),
            ..Self::default()
        };
        let held: HashSet<&str> = own.iter().filter(|p| p.has_finalizer(TRACKING)).map(Object::uid).collect();
        let noted = |list: &str| job.list(&format!("/status/uncountedTerminatedPods/{list}"));
        for uid in noted("succeeded").iter().filter_map(Value::as_str) {
            if held.contains(uid) {
                count.noted_succeeded.push(uid.to_owned());
            } else {
                count.succeeded += 1;
            }
        }
        for uid in noted("failed").iter().filter_map(Value::as_str) {
            if held.contains(uid) {
                count.noted_failed.push(uid.to_owned());
            } else {
                count.failed += 1;
            }
        }
        for pod in own.iter().filter(|p| p.has_finalizer(TRACKING)) {
            count.take(job, pod);
        }
        if pods::is_indexed(job) {
            count.succeeded = i64::try_from(count.done.len()).unwrap_or(i64::MAX);
        }
        count
    }

    fn take(&mut self, job: &Object, pod: &Object) {
        let uid = pod.uid().to_owned();
        if self.noted_succeeded.contains(&uid) || self.noted_failed.contains(&uid) {
            self.release.push(pod.clone());
            return;
        }
        match pods::end(job, pod) {
            None => return,
            Some(End::Failed) => self.noted_failed.push(uid),
            Some(End::Succeeded) => {
                self.done.extend(pods::index(pod));
                self.noted_succeeded.push(uid);
            }
        }
        self.release.push(pod.clone());
    }

    /// All that ended well.
    pub fn succeeded(&self, job: &Object) -> i64 {
        if pods::is_indexed(job) { self.succeeded } else { self.succeeded + length(&self.noted_succeeded) }
    }

    /// All that ended badly.
    pub fn failed(&self) -> i64 {
        self.failed + length(&self.noted_failed)
    }

    /// Whether every ended pod is in the counters.
    pub fn is_settled(&self) -> bool {
        self.noted_succeeded.is_empty() && self.noted_failed.is_empty()
    }

    /// Writes the counters into a status.
    pub fn write(&self, job: &Object, status: &mut Value) {
        for (field, value) in [("succeeded", self.succeeded), ("failed", self.failed)] {
            if value > 0 {
                status[field] = json!(value);
            }
        }
        let mut notes = json!({});
        for (list, uids) in [("succeeded", &self.noted_succeeded), ("failed", &self.noted_failed)] {
            if !uids.is_empty() {
                notes[list] = json!(uids);
            }
        }
        status["uncountedTerminatedPods"] = notes;
        if pods::is_indexed(job) {
            status["completedIndexes"] = json!(pods::indexes_text(&self.done));
        }
    }
}

/// Failed pods of a Job since its last success, also those that have been deleted meanwhile. It begins with the pods that are
/// there, and is kept while the controller runs (as upstream).
#[derive(Debug, Default)]
pub struct Failures {
    /// When each pod ended, by its UID; only as many as make a difference.
    ended: HashMap<String, Timestamp>,
    success: Option<Timestamp>,
}

impl Failures {
    /// Takes in what has ended by now.
    pub fn observe(&mut self, job: &Object, own: &[Object], now: Timestamp) {
        for pod in own {
            // What this controller deleted itself, uncounted, is no failure.
            if pod.is_deleting() && !pod.has_finalizer(TRACKING) {
                continue;
            }
            match pods::end(job, pod) {
                Some(End::Succeeded) => self.success = self.success.max(Some(pods::ended_at(pod, now))),
                Some(End::Failed) => {
                    self.ended.entry(pod.uid().to_owned()).or_insert_with(|| pods::ended_at(pod, now));
                }
                None => {}
            }
        }
        self.ended.retain(|_, at| self.success.is_none_or(|good| *at > good));
        while self.ended.len() > MOST_DOUBLINGS + 1 {
            let Some(first) = self.ended.iter().min_by_key(|(_, at)| **at).map(|(uid, _)| uid.clone()) else { break };
            self.ended.remove(&first);
        }
    }

    /// How long the next pod must wait.
    pub fn pause(&self, now: Timestamp) -> Option<Duration> {
        let last = *self.ended.values().max()?;
        let doublings = u32::try_from(self.ended.len() - 1).unwrap_or(u32::MAX);
        let pause = FIRST_PAUSE.saturating_mul(1 << doublings).min(LONGEST_PAUSE);
        let past = Duration::try_from(now.duration_since(last)).unwrap_or_default();
        pause.checked_sub(past).filter(|rest| !rest.is_zero())
    }
}

fn length(list: &[String]) -> i64 {
    i64::try_from(list.len()).unwrap_or(i64::MAX)
}
