//! The phase table of the kubelet (`getPhase`), row by row, and its conditions.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod support;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition};
use podlife::{
    conditions,
    phase::{Phase, phase},
};
use serde_json::{Value, json};
use support::{pod, restarting, running, status, terminated, waiting};

fn statuses(list: &[(&str, Value)]) -> Vec<ContainerStatus> {
    list.iter().map(|(name, state)| status(name, state.clone())).collect()
}

#[test]
fn phase_table() {
    let plain = |policy| pod(policy, &[], &[], &["a", "b"]);
    let with_init = |policy| pod(policy, &["i"], &[], &["a"]);
    let with_sidecar = |policy| pod(policy, &[], &["s"], &["a"]);
    let unstarted = json!({"state": {"running": {}}, "started": false});
    type Row = (&'static str, Pod, Vec<(&'static str, Value)>, Vec<(&'static str, Value)>, bool, Phase);
    let rows: Vec<Row> = vec![
        (
            "1 failed init, Never",
            with_init("Never"),
            vec![("i", terminated(1))],
            vec![("a", waiting())],
            false,
            Phase::Failed,
        ),
        (
            "1 failed init, OnFailure",
            with_init("OnFailure"),
            vec![("i", restarting(1))],
            vec![("a", waiting())],
            false,
            Phase::Pending,
        ),
        ("2 init runs", with_init("Always"), vec![("i", running())], vec![("a", waiting())], false, Phase::Pending),
        ("2 init waits", with_init("Always"), vec![("i", waiting())], vec![("a", waiting())], false, Phase::Pending),
        ("2 init without status", with_init("Always"), vec![], vec![("a", waiting())], false, Phase::Pending),
        (
            "2 sidecar not started",
            with_sidecar("Always"),
            vec![("s", unstarted.clone())],
            vec![("a", waiting())],
            false,
            Phase::Pending,
        ),
        (
            "2 sidecar not started, main runs",
            with_sidecar("Always"),
            vec![("s", unstarted)],
            vec![("a", running())],
            false,
            Phase::Running,
        ),
        ("3 waiting", plain("Always"), vec![], vec![("a", running()), ("b", waiting())], false, Phase::Pending),
        ("4 running", plain("Always"), vec![], vec![("a", running()), ("b", running())], false, Phase::Running),
        (
            "4 one runs, one failed",
            plain("Never"),
            vec![],
            vec![("a", running()), ("b", terminated(1))],
            false,
            Phase::Running,
        ),
        ("4 init done", with_init("Always"), vec![("i", terminated(0))], vec![("a", running())], false, Phase::Running),
        (
            "5 ended by the agent, all good",
            plain("Always"),
            vec![],
            vec![("a", terminated(0)), ("b", terminated(0))],
            true,
            Phase::Succeeded,
        ),
        (
            "5 ended by the agent, one killed",
            plain("Always"),
            vec![],
            vec![("a", terminated(137)), ("b", terminated(0))],
            true,
            Phase::Failed,
        ),
        ("6 Always", plain("Always"), vec![], vec![("a", terminated(0)), ("b", restarting(1))], false, Phase::Running),
        (
            "7 all succeeded",
            plain("OnFailure"),
            vec![],
            vec![("a", terminated(0)), ("b", terminated(0))],
            false,
            Phase::Succeeded,
        ),
        (
            "7 sidecar still there",
            with_sidecar("Never"),
            vec![("s", terminated(137))],
            vec![("a", terminated(0))],
            false,
            Phase::Succeeded,
        ),
        (
            "8 Never with a failure",
            plain("Never"),
            vec![],
            vec![("a", terminated(0)), ("b", terminated(3))],
            false,
            Phase::Failed,
        ),
        (
            "9 OnFailure with a failure",
            plain("OnFailure"),
            vec![],
            vec![("a", terminated(0)), ("b", terminated(3))],
            false,
            Phase::Running,
        ),
        ("10 unknown", plain("Always"), vec![], vec![("a", running())], false, Phase::Pending),
        ("10 no statuses", plain("Always"), vec![], vec![], false, Phase::Pending),
    ];
    for (row, pod, init, main, terminal, expected) in rows {
        assert_eq!(phase(&pod, &statuses(&init), &statuses(&main), terminal), expected, "row {row}");
    }
}

#[test]
fn a_static_pod_is_not_forced_into_a_terminal_phase() {
    let mut pod = pod("Always", &[], &[], &["a"]);
    pod.metadata.annotations = Some([("kubernetes.io/config.source".to_owned(), "file".to_owned())].into());
    assert_eq!(phase(&pod, &[], &statuses(&[("a", terminated(137))]), true), Phase::Running);
}

fn find<'a>(list: &'a [PodCondition], kind: &str) -> (&'a str, &'a str, &'a str) {
    let found = list.iter().find(|c| c.type_ == kind).unwrap();
    (&found.status, found.reason.as_deref().unwrap_or(""), found.message.as_deref().unwrap_or(""))
}

#[test]
fn readiness_table() {
    let two = pod("Always", &[], &[], &["a", "b"]);
    for (phase, main, expected) in [
        (Phase::Pending, vec![], ("False", "UnknownContainerStatuses", "")),
        (Phase::Succeeded, vec![("a", terminated(0)), ("b", terminated(0))], ("False", "PodCompleted", "")),
        (Phase::Failed, vec![("a", terminated(1)), ("b", terminated(0))], ("False", "PodFailed", "")),
        (
            Phase::Running,
            vec![("b", waiting())],
            ("False", "ContainersNotReady", "containers with unknown status: [a], containers with unready status: [b]"),
        ),
        (
            Phase::Pending,
            vec![("a", waiting()), ("b", waiting())],
            ("False", "ContainersNotReady", "containers with unready status: [a b]"),
        ),
        (Phase::Running, vec![("a", running()), ("b", running())], ("True", "", "")),
    ] {
        let list = conditions::owned(&two, phase, &[], &statuses(&main), true, &[]);
        assert_eq!(find(&list, "ContainersReady"), expected, "{main:?}");
        assert_eq!(find(&list, "Ready"), expected, "{main:?}");
    }
}

#[test]
fn readiness_gates() {
    let mut gated = pod("Always", &[], &[], &["a"]);
    gated.spec.as_mut().unwrap().readiness_gates =
        serde_json::from_value(json!([{"conditionType": "x/y"}, {"conditionType": "x/z"}])).unwrap();
    let main = statuses(&[("a", running())]);
    let gates: Vec<PodCondition> = serde_json::from_value(json!([{"type": "x/z", "status": "False"}])).unwrap();
    let list = conditions::owned(&gated, Phase::Running, &[], &main, true, &gates);
    assert_eq!(find(&list, "ContainersReady").0, "True");
    assert_eq!(
        find(&list, "Ready"),
        (
            "False",
            "ReadinessGatesNotReady",
            "corresponding condition of pod readiness gate \"x/y\" does not exist., \
             the status of pod readiness gate \"x/z\" is not \"True\", but False"
        )
    );
}

#[test]
fn initialized_table() {
    let plain = pod("Always", &[], &[], &["a"]);
    let init = pod("Always", &["i", "j"], &[], &["a"]);
    let sidecar = pod("Always", &[], &["s"], &["a"]);
    for (row, pod, phase, init, main, expected) in [
        ("none", &plain, Phase::Pending, vec![], vec![("a", waiting())], ("True", "", "")),
        ("completed", &plain, Phase::Succeeded, vec![], vec![("a", terminated(0))], ("True", "PodCompleted", "")),
        ("no statuses", &init, Phase::Pending, vec![], vec![], ("False", "UnknownContainerStatuses", "")),
        (
            "second runs",
            &init,
            Phase::Pending,
            vec![("i", terminated(0)), ("j", json!({"state": {"running": {}}}))],
            vec![("a", waiting())],
            ("False", "ContainersNotInitialized", "containers with incomplete status: [j]"),
        ),
        (
            "one unknown",
            &init,
            Phase::Pending,
            vec![("j", waiting())],
            vec![("a", waiting())],
            (
                "False",
                "ContainersNotInitialized",
                "containers with unknown status: [i], containers with incomplete status: [j]",
            ),
        ),
        (
            "all done",
            &init,
            Phase::Pending,
            vec![("i", terminated(0)), ("j", terminated(0))],
            vec![("a", waiting())],
            ("True", "", ""),
        ),
        (
            "main runs",
            &init,
            Phase::Running,
            vec![("i", waiting()), ("j", waiting())],
            vec![("a", running())],
            ("True", "", ""),
        ),
        (
            "last state does not count",
            &sidecar,
            Phase::Running,
            vec![("s", waiting())],
            vec![("a", restarting(1))],
            ("False", "ContainersNotInitialized", "containers with incomplete status: [s]"),
        ),
        ("sidecar started", &sidecar, Phase::Pending, vec![("s", running())], vec![("a", waiting())], ("True", "", "")),
    ] {
        let list = conditions::owned(pod, phase, &statuses(&init), &statuses(&main), true, &[]);
        assert_eq!(find(&list, "Initialized"), expected, "{row}");
    }
}
