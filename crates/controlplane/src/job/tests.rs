//! Tables for the decisions of the Job controller.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::count::Failures;
use super::plan::{self, Plan};
use super::pods::{TRACKING, indexes_text, make, parse_indexes};
use crate::fixtures::merge;
use crate::object::Object;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).expect("time")
}

fn text(seconds: i64) -> Value {
    json!(crate::object::time_text(at(seconds)))
}

fn job(spec: Value, status: Value) -> Object {
    let mut job = json!({"metadata": {"name": "j", "namespace": "default", "uid": "j"}, "status": status,
        "spec": {"completions": 1, "parallelism": 1, "backoffLimit": 6, "selector": {"matchLabels": {"u": "j"}},
            "template": {"metadata": {"labels": {"u": "j"}}, "spec": {"restartPolicy": "Never", "containers": [{"name": "c"}]}}}});
    merge(&mut job, json!({"spec": spec}));
    job.into()
}

/// A pod of the Job in a phase that ended, if it did, at this second.
fn pod(name: &str, phase: &str, second: i64) -> Object {
    json!({"metadata": {"name": name, "uid": name, "finalizers": [TRACKING], "labels": {"u": "j"},
            "ownerReferences": [{"kind": "Job", "name": "j", "uid": "j", "controller": true}]},
        "status": {"phase": phase, "containerStatuses": [{"restartCount": 0, "state": {"terminated": {"finishedAt": text(second)}}}]}})
    .into()
}

fn with(object: &Object, change: Value) -> Object {
    let mut value = object.to_value();
    merge(&mut value, change);
    value.into()
}

fn names(pods: &[Object]) -> Vec<&str> {
    pods.iter().map(Object::name).collect()
}

/// A round of a controller that has just begun.
fn plan(job: &Object, own: &[Object], now: Timestamp) -> Plan {
    plan::plan(job, own, &mut Failures::default(), now)
}

fn holds(plan: &Plan, kind: &str) -> String {
    let list = plan.status["conditions"].as_array().cloned().unwrap_or_default();
    let found = list.into_iter().find(|c| c["type"] == kind).unwrap_or_default();
    format!("{} {}", found["status"].as_str().unwrap_or(""), found["reason"].as_str().unwrap_or(""))
}

/// What the job and its pods are like after a round was carried out.
fn carry_out(job: &Object, own: &[Object], plan: &Plan) -> (Object, Vec<Object>) {
    let mut next = job.to_value();
    next["status"] = plan.status.clone();
    let released = |p: &Object| plan.release.iter().any(|r| r.uid() == p.uid());
    let own =
        own.iter().map(|p| if released(p) { with(p, json!({"metadata": {"finalizers": []}})) } else { p.clone() });
    (next.into(), own.collect())
}

#[test]
fn a_finished_pod_is_counted_once_whatever_happens_in_between() {
    let (mut job, mut own) = (job(json!({"completions": 3}), json!({})), vec![pod("a", "Succeeded", 0)]);
    let first = plan(&job, &own, at(1));
    assert_eq!(first.status["uncountedTerminatedPods"], json!({"succeeded": ["a"]}));
    assert_eq!((names(&first.release), &first.status["succeeded"]), (vec!["a"], &Value::Null));
    // The controller stops after the status: the pod is noted once.
    job = with(&job, json!({"status": first.status}));
    let again = plan(&job, &own, at(2));
    assert_eq!((&again.status, names(&again.release)), (&first.status, vec!["a"]));
    // The finalizer is off: the note becomes a count.
    (job, own) = carry_out(&job, &own, &again);
    let third = plan(&job, &own, at(3));
    assert_eq!((&third.status["succeeded"], &third.status["uncountedTerminatedPods"]), (&json!(1), &json!({})));
    // The pod itself no longer matters, whether it is there or not.
    (job, own) = carry_out(&job, &own, &third);
    for own in [own, vec![]] {
        let last = plan(&job, &own, at(4));
        assert_eq!((&last.status["succeeded"], last.release.len()), (&json!(1), 0));
    }
}

#[test]
fn as_many_pods_as_are_missing_and_no_more_than_in_parallel() {
    let running = |name: &str| pod(name, "Running", 0);
    for (spec, status, own, expected, surplus) in [
        (json!({}), json!({}), vec![], 1, 0),
        (json!({"completions": 5, "parallelism": 3}), json!({}), vec![running("a")], 2, 0),
        (json!({"completions": 5, "parallelism": 3}), json!({"succeeded": 4}), vec![], 1, 0),
        (json!({"completions": null, "parallelism": 2}), json!({}), vec![], 2, 0),
        (json!({"completions": null, "parallelism": 2}), json!({"succeeded": 1}), vec![running("a")], 0, 0),
        (json!({"completions": 5, "parallelism": 1}), json!({}), vec![running("a"), running("b")], 0, 1),
        (json!({"parallelism": 0}), json!({}), vec![running("a")], 0, 1),
    ] {
        let plan = plan(&job(spec.clone(), status), &own, at(0));
        assert_eq!((plan.create.len(), plan.surplus.len()), (expected, surplus), "{spec}");
    }
}

#[test]
fn failures_pause_longer_and_longer_until_the_limit() {
    let start = json!({"startTime": text(0)});
    let failed = |n: usize| -> Vec<Object> { (0..n).map(|i| pod(&format!("p{i}"), "Failed", 100)).collect() };
    for (failures, now, wait, create) in
        [(1, 100, Some(10), 0), (1, 107, Some(3), 0), (1, 110, None, 1), (2, 110, Some(10), 0), (3, 139, Some(1), 0)]
    {
        let plan = plan(&job(json!({}), start.clone()), &failed(failures), at(now));
        assert_eq!((plan.wait.map(|w| w.as_secs()), plan.create.len()), (wait, create), "{failures} at {now}");
    }
    // A success in between begins anew.
    let mut own = failed(3);
    own.push(pod("good", "Succeeded", 101));
    assert_eq!(plan(&job(json!({"completions": 2}), start.clone()), &own, at(101)).create.len(), 1);

    let limited = job(json!({"backoffLimit": 1, "parallelism": 3, "completions": 3}), start);
    let mut own = failed(2);
    own.push(pod("other", "Running", 0));
    let over = plan(&limited, &own, at(500));
    assert_eq!((over.create.len(), names(&over.stop)), (0, vec!["other"]));
    assert_eq!(holds(&over, "FailureTarget"), "True BackoffLimitExceeded");
    assert_eq!(holds(&over, "Failed"), " ", "not before its pods have ended");
    let (job, own) = carry_out(&limited, &own[..2], &over);
    let last = plan(&job, &own, at(501));
    assert_eq!((holds(&last, "Failed"), &last.status["failed"]), ("True BackoffLimitExceeded".to_owned(), &json!(2)));
    let told = (true, "BackoffLimitExceeded".to_owned(), "Job has reached the specified backoff limit".to_owned());
    assert_eq!(last.tell, [told]);
}

#[test]
fn failures_count_after_their_pods_are_gone() {
    let job = job(json!({}), json!({"startTime": text(0)}));
    let mut failures = Failures::default();
    let mut round = |own: &[Object], now| plan::plan(&job, own, &mut failures, at(now)).wait.map(|w| w.as_secs());
    assert_eq!(round(&[pod("a", "Failed", 100)], 100), Some(10));
    assert_eq!(round(&[pod("a", "Failed", 100)], 105), Some(5), "counted once");
    assert_eq!(round(&[], 106), Some(4), "somebody deleted it");
    assert_eq!(round(&[pod("b", "Failed", 120)], 120), Some(20));
    assert_eq!(round(&[], 130), Some(10));
    assert_eq!(round(&[pod("good", "Succeeded", 131)], 131), None);
    assert_eq!(round(&[pod("c", "Failed", 140)], 140), Some(10), "a success begins anew");
    // However many there are, few are remembered.
    let many: Vec<Object> = (0..100).map(|i| pod(&format!("m{i}"), "Failed", 200 + i)).collect();
    assert_eq!(round(&many, 300), None, "over its limit");
    assert_eq!(format!("{failures:?}").matches("2027-").count(), 18, "{failures:?}");
}

#[test]
fn restarts_in_place_count_against_the_limit() {
    let spec = json!({"backoffLimit": 2, "template": {"spec": {"restartPolicy": "OnFailure"}}});
    for (restarts, expected) in [(1, " "), (2, "True BackoffLimitExceeded")] {
        let running = json!({"status": {"phase": "Running", "containerStatuses": [{"restartCount": restarts}]}});
        let own = [with(&pod("a", "Running", 0), running)];
        assert_eq!(holds(&plan(&job(spec.clone(), json!({})), &own, at(0)), "FailureTarget"), expected, "{restarts}");
    }
}

#[test]
fn a_job_is_complete_when_enough_pods_succeeded() {
    let status = json!({"startTime": text(0), "succeeded": 1});
    let own = [pod("late", "Running", 0)];
    let met = plan(&job(json!({}), status.clone()), &own, at(5));
    assert_eq!(
        (holds(&met, "SuccessCriteriaMet"), names(&met.surplus)),
        ("True CompletionsReached".into(), vec!["late"])
    );
    assert_eq!(holds(&met, "Complete"), " ");
    let done = plan(&job(json!({}), status), &[], at(5));
    assert_eq!(holds(&done, "Complete"), "True CompletionsReached");
    assert_eq!((&done.status["completionTime"], done.create.len()), (&text(5), 0));
    // One that is over stays as it is.
    let over = job(json!({"ttlSecondsAfterFinished": 60}), done.status.clone());
    let later = plan(&over, &[], at(35));
    assert_eq!((&later.status, later.expired, later.wait.map(|w| w.as_secs())), (&done.status, false, Some(30)));
    assert!(plan(&over, &[], at(65)).expired);
}

#[test]
fn a_deadline_ends_it() {
    let spec = json!({"activeDeadlineSeconds": 60});
    let early = plan(&job(spec.clone(), json!({"startTime": text(0)})), &[pod("a", "Running", 0)], at(50));
    assert_eq!((early.wait.map(|w| w.as_secs()), early.stop.len()), (Some(10), 0));
    let late = plan(&job(spec, json!({"startTime": text(0)})), &[pod("a", "Running", 0)], at(60));
    assert_eq!((holds(&late, "FailureTarget"), names(&late.stop)), ("True DeadlineExceeded".into(), vec!["a"]));
}

#[test]
fn a_suspended_job_has_no_pods_and_no_start() {
    let own = [pod("a", "Running", 0)];
    let held = plan(&job(json!({"suspend": true}), json!({"startTime": text(0)})), &own, at(5));
    assert_eq!((names(&held.surplus), holds(&held, "Suspended")), (vec!["a"], "True JobSuspended".into()));
    assert_eq!(held.status["startTime"], Value::Null);
    let resumed = plan(&job(json!({"suspend": false}), held.status), &[], at(9));
    assert_eq!((resumed.create.len(), holds(&resumed, "Suspended")), (1, "False JobResumed".into()));
    assert_eq!(resumed.status["startTime"], text(9));
}

#[test]
fn a_pod_on_its_way_out_is_replaced_at_once_or_after_its_end() {
    let leaving = [with(&pod("a", "Running", 0), json!({"metadata": {"deletionTimestamp": text(0)}}))];
    let at_once = plan(&job(json!({}), json!({})), &leaving, at(50));
    assert_eq!((at_once.create.len(), &at_once.status["uncountedTerminatedPods"]), (1, &json!({"failed": ["a"]})));
    let late = plan(&job(json!({"podReplacementPolicy": "Failed"}), json!({})), &leaving, at(50));
    assert_eq!((late.create.len(), &late.status["uncountedTerminatedPods"]), (0, &json!({})));
    assert_eq!(late.status["terminating"], 1);
}

#[test]
fn each_index_gets_one_pod() {
    let spec = json!({"completionMode": "Indexed", "completions": 4, "parallelism": 3});
    let indexed = |name: &str, phase: &str, index: &str| {
        let annotations = json!({"batch.kubernetes.io/job-completion-index": index});
        with(&pod(name, phase, 0), json!({"metadata": {"annotations": annotations}}))
    };
    let own = [indexed("a", "Succeeded", "0"), indexed("b", "Running", "2"), indexed("c", "Running", "2")];
    let plan = plan(&job(spec.clone(), json!({})), &own, at(0));
    assert_eq!((plan.create, plan.surplus.len()), (vec![Some(1), Some(3)], 1));
    assert_eq!((&plan.status["completedIndexes"], &plan.status["succeeded"]), (&json!("0"), &json!(1)));
    let made = make(&job(spec, json!({})), Some(3));
    assert_eq!((&made["metadata"]["generateName"], &made["spec"]["hostname"]), (&json!("j-3-"), &json!("j-3")));
    assert_eq!(made["spec"]["containers"][0]["env"][0]["name"], "JOB_COMPLETION_INDEX");
    for text in ["", "0", "0,1", "0-2,5", "1,3-9"] {
        assert_eq!(indexes_text(&parse_indexes(text)), text);
    }
}
