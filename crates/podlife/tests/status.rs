//! Container state mapping, the merge with the API's status, and the text of the patches.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod support;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};
use podlife::{
    containers::{StartFailure, StartFailures, next_restart_count},
    observed::{ObservedPod, RuntimeState},
    patch::status_patch,
    probe::ProbeResults,
    resize::Progress,
    stage::deadline_exceeded,
    status::{self, EndVerdict, Ending, StatusInput},
};
use serde_json::{Value, json};
use support::{at, container, observed, pod, sandbox};

use RuntimeState::{Created, Exited, Running, Unknown};

struct Case {
    pod: Pod,
    api: PodStatus,
    observed: ObservedPod,
    failures: StartFailures,
    ending: Ending,
    now: i64,
}

impl Case {
    fn new(pod: Pod) -> Self {
        let mut observed = observed();
        observed.sandboxes.push(sandbox("s0", 0, true));
        let api =
            PodStatus { phase: Some("Pending".into()), qos_class: Some("BestEffort".into()), ..PodStatus::default() };
        Self { pod, api, observed, failures: StartFailures::new(), ending: Ending::No, now: 100 }
    }

    fn compute(&self) -> PodStatus {
        self.compute_after(None)
    }

    fn compute_with(&self, observed: &ObservedPod, verdict: Option<&EndVerdict>) -> PodStatus {
        status::compute(&StatusInput {
            pod: &self.pod,
            api: &self.api,
            previous: None,
            observed,
            failures: &self.failures,
            probes: &ProbeResults::default(),
            runtime_name: "containerd",
            host_ips: &["192.0.2.2".into()],
            ending: self.ending,
            resize: &Progress::default(),
            verdict,
            now: at(self.now),
        })
    }

    fn compute_after(&self, previous: Option<&PodStatus>) -> PodStatus {
        status::compute(&StatusInput {
            pod: &self.pod,
            api: &self.api,
            previous,
            observed: &self.observed,
            failures: &self.failures,
            probes: &ProbeResults::default(),
            runtime_name: "containerd",
            host_ips: &["192.0.2.2".into()],
            ending: self.ending,
            resize: &Progress::default(),
            verdict: None,
            now: at(self.now),
        })
    }
}

fn only(status: &PodStatus) -> Value {
    let mut value = serde_json::to_value(&status.container_statuses.as_ref().unwrap()[0]).unwrap();
    for noise in ["image", "imageID", "name"] {
        value.as_object_mut().unwrap().remove(noise);
    }
    value
}

fn api_container(state: Value, last: Value, count: i32) -> Option<Vec<ContainerStatus>> {
    serde_json::from_value(json!([{
        "name": "a", "image": "i", "imageID": "x", "ready": false, "restartCount": count, "state": state, "lastState": last,
    }]))
    .unwrap()
}

#[test]
fn runtime_states_map_to_api_states() {
    let started = "2027-01-15T08:00:10Z";
    let ended = "2027-01-15T08:00:11Z";
    for (row, state, said, expected) in [
        (
            "running",
            Running,
            None,
            json!({"state": {"running": {"startedAt": started}}, "ready": true, "started": true, "restartCount": 0}),
        ),
        (
            "created",
            Created,
            None,
            json!({"state": {"waiting": {}}, "ready": false, "started": false, "restartCount": 0}),
        ),
        (
            "exited",
            Exited,
            None,
            json!({"state": {"terminated": {"exitCode": 3, "reason": "Error", "startedAt": started, "finishedAt": ended,
                "containerID": "containerd://a-0"}}, "ready": false, "started": false, "restartCount": 0}),
        ),
        (
            "unknown, said running",
            Unknown,
            Some((json!({"running": {}}), 4)),
            json!({"state": {"terminated": {"exitCode": 137, "reason": "ContainerStatusUnknown",
                "message": "The container could not be located when the pod was terminated"}},
                "ready": false, "started": false, "restartCount": 5}),
        ),
        (
            "unknown otherwise",
            Unknown,
            None,
            json!({"state": {"waiting": {}}, "ready": false, "started": false, "restartCount": 0}),
        ),
    ] {
        let mut case = Case::new(pod("Always", &[], &[], &["a"]));
        case.observed.containers.push(container(&case.pod, "a", 0, state, 3));
        if let Some((state, count)) = said {
            case.api.container_statuses = api_container(state, json!({}), count);
        }
        let mut expected = expected;
        expected["lastState"] = json!({});
        expected["containerID"] = json!("containerd://a-0");
        assert_eq!(only(&case.compute()), expected, "{row}");
    }
}

#[test]
fn a_container_that_the_runtime_lost() {
    for (row, said, deleted, state, last, count) in [
        ("never seen", None, false, json!({"waiting": {"reason": "ContainerCreating"}}), json!({}), 0),
        (
            "said terminated",
            Some((json!({"terminated": {"exitCode": 0}}), 2)),
            false,
            json!({"terminated": {"exitCode": 0}}),
            json!({}),
            2,
        ),
        (
            "said running",
            Some((json!({"running": {}}), 2)),
            false,
            json!({"waiting": {"reason": "ContainerCreating"}}),
            json!({"terminated": {"exitCode": 137, "reason": "ContainerStatusUnknown",
                "message": "The container could not be located when the pod was deleted.  The container used to be Running"}}),
            3,
        ),
        (
            "said running, deleted",
            Some((json!({"running": {}}), 2)),
            true,
            json!({"waiting": {"reason": "ContainerCreating"}}),
            json!({"terminated": {"exitCode": 137, "reason": "ContainerStatusUnknown",
                "message": "The container could not be located when the pod was deleted.  The container used to be Running"}}),
            2,
        ),
    ] {
        let mut case = Case::new(pod("Always", &[], &[], &["a"]));
        if let Some((state, count)) = said {
            case.api.container_statuses = api_container(state, json!({}), count);
        }
        if deleted {
            case.pod.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(0)));
        }
        let status = only(&case.compute());
        assert_eq!(
            (&status["state"], &status["lastState"], &status["restartCount"]),
            (&state, &last, &json!(count)),
            "{row}"
        );
    }
    let mut with_init = Case::new(pod("Always", &["i"], &[], &["a"]));
    with_init.observed.sandboxes.clear();
    assert_eq!(only(&with_init.compute())["state"], json!({"waiting": {"reason": "PodInitializing"}}));
}

#[test]
fn crash_loop_shows_the_exit_as_last_state() {
    let mut case = Case::new(pod("Always", &[], &[], &["a"]));
    case.observed.containers = vec![container(&case.pod, "a", 4, Exited, 1), container(&case.pod, "a", 3, Exited, 2)];
    let failure = StartFailure { reason: "CrashLoopBackOff".into(), message: "back-off 40s".into() };
    let before = only(&case.compute());
    assert_eq!(before["lastState"]["terminated"]["exitCode"], 2);
    assert_eq!(before["state"]["terminated"]["exitCode"], 1);
    case.failures.insert("a".into(), failure);
    let status = case.compute();
    assert_eq!(status.phase.as_deref(), Some("Running"));
    let after = only(&status);
    assert_eq!(after["state"], json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}}));
    assert_eq!(after["lastState"]["terminated"]["exitCode"], 1);
    assert_eq!(after["restartCount"], 4);
}

#[test]
fn restart_counts_go_on() {
    let pod = pod("Always", &[], &[], &["a"]);
    let newest = container(&pod, "a", 6, Exited, 1);
    let said = |state, count| api_container(state, json!({}), count).unwrap().remove(0);
    assert_eq!(next_restart_count(Some(&newest), None), 7);
    assert_eq!(next_restart_count(None, None), 0);
    assert_eq!(next_restart_count(None, Some(&said(json!({"waiting": {}}), 3))), 3, "counted when it was lost");
    assert_eq!(next_restart_count(None, Some(&said(json!({"terminated": {"exitCode": 1}}), 3))), 4);
}

#[test]
fn the_end_of_a_pod() {
    for (row, containers, code, ending, phase) in [
        ("killed", true, 137, Ending::Stopped, "Failed"),
        ("ended well", true, 0, Ending::Stopped, "Succeeded"),
        ("never started, still stopping", false, 0, Ending::Stopped, "Pending"),
        ("never started", false, 0, Ending::Final, "Failed"),
    ] {
        let mut case = Case::new(pod("Always", &[], &[], &["a"]));
        case.observed.sandboxes[0].ready = false;
        case.ending = ending;
        if containers {
            case.observed.containers.push(container(&case.pod, "a", 0, Exited, code));
        }
        let status = case.compute();
        assert_eq!(status.phase.as_deref(), Some(phase), "{row}");
        if ending == Ending::Final {
            assert_eq!(only(&status)["state"]["terminated"]["exitCode"], 137);
        }
    }
}

#[test]
fn a_terminal_phase_waits_until_nothing_runs() {
    let mut case = Case::new(pod("Never", &[], &["s"], &["a"]));
    case.api.phase = Some("Running".into());
    case.observed.containers = vec![container(&case.pod, "a", 0, Exited, 0), container(&case.pod, "s", 0, Running, 0)];
    let status = case.compute();
    assert_eq!(status.phase.as_deref(), Some("Running"), "the sidecar still runs");
    case.observed.containers[1] = container(&case.pod, "s", 0, Exited, 0);
    case.ending = Ending::Stopped;
    assert_eq!(case.compute().phase.as_deref(), Some("Succeeded"));
}

#[test]
fn a_verdict_fails_the_pod() {
    let mut case = Case::new(pod("Always", &[], &[], &["a"]));
    case.ending = Ending::Stopped;
    let verdict = deadline_exceeded();
    let status = case.compute_with(&observed(), Some(&verdict));
    assert_eq!((status.phase.as_deref(), status.reason.as_deref()), (Some("Failed"), Some("DeadlineExceeded")));
}

#[test]
fn a_rejected_pod_tells_the_refusal_and_nothing_else() {
    let case = Case::new(pod("Always", &["i"], &[], &["a"]));
    let verdict = EndVerdict::rejected("OutOfcpu", "no room");
    let status = case.compute_with(&observed(), Some(&verdict));
    assert_eq!(
        serde_json::to_value(&status).unwrap(),
        json!({"phase": "Failed", "reason": "OutOfcpu", "message": "Pod was rejected: no room", "qosClass": "BestEffort",
            "startTime": "2027-01-15T08:01:40Z"})
    );
    // One that runs from an earlier life keeps what can be said of it.
    let mut running = Case::new(pod("Always", &[], &[], &["a"]));
    running.observed.containers.push(container(&running.pod, "a", 0, Exited, 137));
    running.ending = Ending::Stopped;
    let status = running.compute_with(&running.observed, Some(&verdict));
    assert_eq!((status.phase.as_deref(), status.reason.as_deref()), (Some("Failed"), Some("OutOfcpu")));
    assert_eq!(status.container_statuses.unwrap().len(), 1);
}

#[test]
fn a_disruption_is_told_with_the_end_and_keeps_its_place() {
    let mut case = Case::new(pod("Always", &[], &[], &["a"]));
    case.api.conditions =
        serde_json::from_value(json!([{"type": "DisruptionTarget", "status": "True", "reason": "Theirs"},
            {"type": "x/y", "status": "True"}]))
        .unwrap();
    case.observed.containers.push(container(&case.pod, "a", 0, Running, 0));
    let verdict = EndVerdict::disruption("Evicted", "low", "low on memory");
    let target = |status: &PodStatus| {
        let conditions = status.conditions.as_ref().unwrap();
        assert_eq!(conditions[1].type_, "x/y");
        (conditions[0].type_.clone(), conditions[0].reason.clone().unwrap())
    };
    let early = case.compute_with(&case.observed, Some(&verdict));
    assert_eq!(early.phase.as_deref(), Some("Pending"));
    assert_eq!(target(&early), ("DisruptionTarget".into(), "Theirs".into()));
    case.observed.containers[0] = container(&case.pod, "a", 0, Exited, 137);
    case.ending = Ending::Stopped;
    let late = case.compute_with(&case.observed, Some(&verdict));
    assert_eq!(late.phase.as_deref(), Some("Failed"));
    assert_eq!(target(&late), ("DisruptionTarget".into(), "TerminationByKubelet".into()));
    let rebased = status::rebase(late, &case.api);
    assert_eq!(target(&rebased), ("DisruptionTarget".into(), "TerminationByKubelet".into()));
}

#[test]
fn ephemeral_containers_have_statuses_and_count_for_nothing() {
    let mut case = Case::new(pod("Never", &[], &[], &["a"]));
    case.pod.spec.as_mut().unwrap().ephemeral_containers =
        serde_json::from_value(json!([{"name": "z"}, {"name": "e", "targetContainerName": "a"}])).unwrap();
    case.observed.containers = vec![container(&case.pod, "a", 0, Running, 0), container(&case.pod, "e", 0, Exited, 3)];
    case.failures.insert("z".into(), StartFailure { reason: "ErrImagePull".into(), message: "no".into() });
    let status = case.compute();
    assert_eq!(status.phase.as_deref(), Some("Running"));
    let ready = status.conditions.as_ref().unwrap().iter().find(|c| c.type_ == "Ready").unwrap();
    assert_eq!(ready.status, "True");
    let value = serde_json::to_value(status.ephemeral_container_statuses.unwrap()).unwrap();
    assert_eq!((&value[0]["name"], &value[0]["state"]["terminated"]["exitCode"]), (&json!("e"), &json!(3)));
    assert_eq!((&value[1]["name"], &value[1]["state"]["waiting"]["reason"]), (&json!("z"), &json!("ErrImagePull")));
}

#[test]
fn times_change_only_when_a_status_flips_and_foreign_conditions_stay() {
    let mut case = Case::new(pod("Always", &[], &[], &["a"]));
    case.api.conditions = serde_json::from_value(
        json!([{"type": "x/y", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]),
    )
    .unwrap();
    let first = case.compute();
    case.now = 200;
    case.observed.containers.push(container(&case.pod, "a", 0, Running, 0));
    let second = case.compute_after(Some(&first));
    case.now = 300;
    let third = case.compute_after(Some(&second));
    assert_eq!(second, third, "nothing changed but the time");
    let conditions = second.conditions.as_ref().unwrap();
    let kinds: Vec<&str> = conditions.iter().map(|c| c.type_.as_str()).collect();
    assert_eq!(kinds, ["x/y", "PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"]);
    let time =
        |kind: &str| conditions.iter().find(|c| c.type_ == kind).unwrap().last_transition_time.clone().unwrap().0;
    assert_eq!((time("PodScheduled"), time("Ready")), (at(100), at(200)));
    assert_eq!(second.start_time.as_ref().unwrap().0, at(100));
}

#[test]
fn the_last_address_stays() {
    let mut case = Case::new(pod("Always", &[], &[], &["a"]));
    let first = case.compute();
    assert_eq!(first.pod_ip.as_deref(), Some("10.0.0.7"));
    case.observed.sandboxes[0].ready = false;
    case.observed.sandboxes[0].ips = None;
    assert_eq!(case.compute_after(Some(&first)).pod_ips, first.pod_ips);
}

#[test]
fn terminated_containers_do_not_come_back() {
    let status = |state| PodStatus { container_statuses: api_container(state, json!({}), 0), ..PodStatus::default() };
    let (failed, well, back) = (
        status(json!({"terminated": {"exitCode": 1}})),
        status(json!({"terminated": {"exitCode": 0}})),
        status(json!({"running": {}})),
    );
    for (policy, before, legal) in
        [("Always", &well, true), ("OnFailure", &failed, true), ("OnFailure", &well, false), ("Never", &failed, false)]
    {
        let result = status::check_transition(&pod(policy, &[], &[], &["a"]), before, &back);
        assert_eq!(result.is_ok(), legal, "{policy}");
    }
}

/// The four patches that KubeEdge v1.23.1 sent for a pod with an init container, from the same events.
#[test]
fn patches_equal_the_recorded_ones() {
    let golden: Vec<Value> = include_str!("golden/pod-status-patches.jsonl")
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let pod: Pod = serde_json::from_value(golden[0]["pod"].clone()).unwrap();
    let mut api: PodStatus = serde_json::from_value(json!({"phase": "Pending", "qosClass": "BestEffort"})).unwrap();
    for (index, recorded) in golden[1..].iter().enumerate() {
        let after: PodStatus = serde_json::from_value(recorded["after"].clone()).unwrap();
        let text = status_patch(pod.metadata.uid.as_deref().unwrap(), &api, &after).unwrap().unwrap();
        let patch: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(patch, recorded["patch"], "patch {index}");
        assert_eq!(status_patch("u", &after, &after).unwrap(), None);
        api = after;
    }
}

#[test]
fn patch_directives() {
    let status = |value: Value| -> PodStatus { serde_json::from_value(value).unwrap() };
    let old = status(json!({"phase": "Failed", "reason": "Evicted", "podIPs": [{"ip": "10.0.0.1"}],
        "conditions": [{"type": "x", "status": "True"}, {"type": "Ready", "status": "False", "reason": "r"}]}));
    let new = status(json!({"phase": "Failed", "podIPs": [{"ip": "10.0.0.2"}],
        "conditions": [{"type": "x", "status": "True"}, {"type": "Ready", "status": "True"}]}));
    let patch: Value = serde_json::from_str(&status_patch("u1", &old, &new).unwrap().unwrap()).unwrap();
    assert_eq!(
        patch,
        json!({"metadata": {"uid": "u1"}, "status": {
            "reason": null,
            "$setElementOrder/podIPs": [{"ip": "10.0.0.2"}],
            "podIPs": [{"ip": "10.0.0.2"}, {"$patch": "delete", "ip": "10.0.0.1"}],
            "$setElementOrder/conditions": [{"type": "x"}, {"type": "Ready"}],
            "conditions": [{"type": "Ready", "status": "True", "reason": null}],
        }})
    );
}
