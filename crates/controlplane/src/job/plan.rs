//! What a Job does next, without IO: which pods it makes and ends, what its status says, when it is over.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::count::{Count, Failures};
use super::pods as job_pods;
use crate::object::{Object, condition, time_text};
use crate::pods;

/// At most so many pods are made at once (as upstream).
const BURST: i64 = 500;

/// The writes of one round.
#[derive(Debug, Default)]
pub struct Plan {
    /// Pods to make, with their indexes if they have some.
    pub create: Vec<Option<i64>>,
    /// Pods that are too many: they go uncounted.
    pub surplus: Vec<Object>,
    /// Pods that end with the Job: they count as failed.
    pub stop: Vec<Object>,
    /// Pods whose finalizer goes when the status is written.
    pub release: Vec<Object>,
    /// `status` of the Job.
    pub status: Value,
    /// Warning or not, reason and message of events.
    pub tell: Vec<(bool, String, String)>,
    /// When to look again because time alone changes something.
    pub wait: Option<Duration>,
    /// The Job has been over for as long as it may: delete it.
    pub expired: bool,
}

/// How a Job is going to end.
struct Verdict {
    /// Interim and final condition.
    kinds: (&'static str, &'static str),
    reason: String,
    message: String,
}

/// Decides one round. `own` are all pods of the Job, `failures` what is known of earlier ones.
pub fn plan(job: &Object, own: &[Object], failures: &mut Failures, now: Timestamp) -> Plan {
    failures.observe(job, own, now);
    let count = Count::of(job, own);
    let mut plan = Plan { release: count.release.clone(), ..Plan::default() };
    if let Some(end) = finished(job) {
        plan.status = job.at("/status").clone();
        let rest = ttl(job, end, now);
        plan.expired = rest.is_some_and(|rest| rest.is_zero()) && !job.is_deleting();
        plan.wait = rest.filter(|rest| !rest.is_zero());
        return plan;
    }
    let active: Vec<Object> = own.iter().filter(|p| pods::is_active(p)).cloned().collect();
    let terminating = own.iter().filter(|p| p.is_deleting() && !pods::is_finished(p)).count();
    let mut conditions = job.list("/status/conditions").to_vec();
    let mut start = job.at("/status/startTime").clone();
    let suspended = job.at("/spec/suspend") == true;
    if suspended {
        start = Value::Null;
    } else if start.is_null() {
        start = json!(time_text(now));
    }
    let verdict = verdict(job, &count, &active, &start, now, &mut plan.wait);
    let mut completed = Value::Null;
    match verdict {
        Some(verdict) => {
            let failed = verdict.kinds.1 == "Failed";
            let (stop, surplus) = if failed { (active.clone(), Vec::new()) } else { (Vec::new(), active.clone()) };
            (plan.stop, plan.surplus) = (stop, surplus);
            put(&mut conditions, verdict.kinds.0, "True", &verdict.reason, &verdict.message, now);
            if active.is_empty() && terminating == 0 && count.is_settled() {
                put(&mut conditions, verdict.kinds.1, "True", &verdict.reason, &verdict.message, now);
                if failed {
                    plan.tell.push((true, verdict.reason, verdict.message));
                } else {
                    completed = json!(time_text(now));
                    plan.tell.push((false, "Completed".to_owned(), "Job completed".to_owned()));
                }
            }
        }
        None if job.is_deleting() => {}
        None => {
            suspension(suspended, &mut conditions, &mut plan.tell, now);
            if suspended {
                plan.surplus = active.clone();
            } else {
                let pause = failures.pause(now);
                manage(job, own, &count, &active, terminating, pause, &mut plan);
            }
        }
    }
    let ready = active.iter().filter(|p| pods::is_ready(p)).count();
    let mut status = json!({"ready": ready, "terminating": terminating});
    if !active.is_empty() {
        status["active"] = json!(active.len());
    }
    for (field, value) in [("startTime", start), ("completionTime", completed), ("conditions", json!(conditions))] {
        if !value.is_null() && value != json!([]) {
            status[field] = value;
        }
    }
    count.write(job, &mut status);
    plan.status = status;
    plan
}

/// Whether the Job is over.
pub fn is_finished(job: &Object) -> bool {
    finished(job).is_some()
}

/// When the Job ended, if it has.
fn finished(job: &Object) -> Option<Timestamp> {
    let end = |kind: &str| job.condition(kind).filter(|c| c["status"] == "True");
    let found = end("Complete").or_else(|| end("Failed"))?;
    Some(found["lastTransitionTime"].as_str().and_then(|time| time.parse().ok()).unwrap_or_default())
}

/// How long a Job that has ended may still stay.
fn ttl(job: &Object, end: Timestamp, now: Timestamp) -> Option<Duration> {
    let ttl = Duration::from_secs(u64::try_from(job.int("/spec/ttlSecondsAfterFinished")?).ok()?);
    let past = Duration::try_from(now.duration_since(end)).unwrap_or_default();
    Some(ttl.saturating_sub(past))
}

fn verdict(
    job: &Object,
    count: &Count,
    active: &[Object],
    start: &Value,
    now: Timestamp,
    wait: &mut Option<Duration>,
) -> Option<Verdict> {
    let failed = |reason: &str, message: &str| {
        Some(Verdict { kinds: ("FailureTarget", "Failed"), reason: reason.to_owned(), message: message.to_owned() })
    };
    // What was decided once stays so.
    if let Some(old) = job.condition("FailureTarget").filter(|c| c["status"] == "True") {
        return failed(old["reason"].as_str().unwrap_or_default(), old["message"].as_str().unwrap_or_default());
    }
    let limit = job.int("/spec/backoffLimit").unwrap_or(6);
    let restarts: i64 = active.iter().map(job_pods::restarts).sum();
    let restarts_too_often = job.text("/spec/template/spec/restartPolicy") == "OnFailure"
        && if limit == 0 { restarts > 0 } else { restarts >= limit };
    let deadline = deadline(job, start, now);
    *wait = deadline.filter(|rest| !rest.is_zero());
    let met = job.condition("SuccessCriteriaMet").is_some_and(|c| c["status"] == "True");
    if !met && (count.failed() > limit || restarts_too_often) {
        return failed("BackoffLimitExceeded", "Job has reached the specified backoff limit");
    }
    if !met && deadline.is_some_and(|rest| rest.is_zero()) {
        return failed("DeadlineExceeded", "Job was active longer than specified deadline");
    }
    let succeeded = count.succeeded(job);
    let complete = match job.int("/spec/completions") {
        Some(wanted) => succeeded >= wanted,
        None => succeeded > 0 && active.is_empty(),
    };
    (met || complete).then(|| Verdict {
        kinds: ("SuccessCriteriaMet", "Complete"),
        reason: "CompletionsReached".to_owned(),
        message: "Reached expected number of succeeded pods".to_owned(),
    })
}

/// How long the Job may still run.
fn deadline(job: &Object, start: &Value, now: Timestamp) -> Option<Duration> {
    let limit = Duration::from_secs(u64::try_from(job.int("/spec/activeDeadlineSeconds")?).ok()?);
    let start: Timestamp = start.as_str()?.parse().ok()?;
    let past = Duration::try_from(now.duration_since(start)).unwrap_or_default();
    Some(limit.saturating_sub(past))
}

fn suspension(suspended: bool, conditions: &mut Vec<Value>, tell: &mut Vec<(bool, String, String)>, now: Timestamp) {
    let was = condition(conditions, "Suspended").is_some_and(|c| c["status"] == "True");
    if suspended != was {
        let (status, verb) = if suspended { ("True", "suspended") } else { ("False", "resumed") };
        let reason = if suspended { "Suspended" } else { "Resumed" };
        let message = format!("Job {verb}");
        put(conditions, "Suspended", status, &format!("Job{reason}"), &message, now);
        tell.push((false, reason.to_owned(), message));
    }
}

/// Makes the pods that are missing, and ends those that are too many.
fn manage(
    job: &Object,
    own: &[Object],
    count: &Count,
    active: &[Object],
    terminating: usize,
    pause: Option<Duration>,
    plan: &mut Plan,
) {
    let length = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    let parallel = job.int("/spec/parallelism").unwrap_or(1).max(0);
    let succeeded = count.succeeded(job);
    let wanted = match job.int("/spec/completions") {
        Some(completions) => (completions - succeeded).min(parallel).max(0),
        None if succeeded > 0 => length(active.len()),
        None => parallel,
    };
    let mut keep = active.to_vec();
    keep.sort_by_key(|p| (!pods::is_ready(p), p.text("/spec/nodeName").is_empty(), p.created(), p.name().to_owned()));
    if job_pods::is_indexed(job) {
        // One pod an index, and none for what is done.
        let mut first: BTreeMap<Option<i64>, Object> = BTreeMap::new();
        for pod in std::mem::take(&mut keep) {
            let index = job_pods::index(&pod);
            if index.is_none_or(|index| count.done.contains(&index)) || first.contains_key(&index) {
                plan.surplus.push(pod);
            } else {
                first.insert(index, pod);
            }
        }
        keep = first.into_values().collect();
    }
    while length(keep.len()) > wanted {
        plan.surplus.extend(keep.pop());
    }
    let leaving = if job_pods::replaces_late(job) { length(terminating) } else { 0 };
    let missing = (wanted - length(keep.len()) - leaving).clamp(0, BURST);
    if missing == 0 {
        return;
    }
    if let Some(rest) = pause {
        plan.wait = Some(plan.wait.map_or(rest, |wait| wait.min(rest)));
        return;
    }
    let missing = usize::try_from(missing).unwrap_or(0);
    if job_pods::is_indexed(job) {
        let late = |p: &&Object| job_pods::replaces_late(job) && p.is_deleting() && !pods::is_finished(p);
        let mut taken: Vec<i64> = keep.iter().filter_map(job_pods::index).collect();
        taken.extend(own.iter().filter(late).filter_map(job_pods::index));
        let free = (0..job.int("/spec/completions").unwrap_or(0))
            .filter(|index| !count.done.contains(index) && !taken.contains(index));
        plan.create = free.take(missing).map(Some).collect();
    } else {
        plan.create = vec![None; missing];
    }
}

fn put(conditions: &mut Vec<Value>, kind: &str, status: &str, reason: &str, message: &str, now: Timestamp) {
    if pods::set_condition(conditions, kind, status, reason, message, &time_text(now))
        && let Some(place) = conditions.iter_mut().find(|c| c["type"] == kind)
    {
        place["lastProbeTime"] = json!(time_text(now));
    }
}
