//! Decision tables: new sandbox, restart, init containers and sidecars; and that the decisions converge.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod support;

use k8s_openapi::api::core::v1::Pod;
use podlife::{
    actions::{self, PodActions},
    observed::{ObservedPod, RuntimeState},
    probe::ProbeResults,
    spec,
};
use proptest::prelude::*;
use support::{at, container, observed, pod, sandbox};

use RuntimeState::{Created, Exited, Running, Unknown};

fn with_sandbox(containers: Vec<podlife::observed::ObservedContainer>) -> ObservedPod {
    let mut observed = observed();
    observed.sandboxes.push(sandbox("s0", 0, true));
    observed.containers = containers;
    observed.sort();
    observed
}

fn compute(pod: &Pod, observed: &ObservedPod) -> PodActions {
    actions::compute(pod, observed, &ProbeResults::default())
}

#[test]
fn new_sandbox_table() {
    let pod = pod("Always", &[], &[], &["a"]);
    let mut host = pod.clone();
    host.spec.as_mut().unwrap().host_network = Some(true);
    let mut without_ip = sandbox("s", 2, true);
    without_ip.ips = Some(vec![String::new()]);
    let mut without_status = sandbox("s", 2, true);
    without_status.ips = None;
    for (row, pod, sandboxes, expected) in [
        ("none", &pod, vec![], Some(0)),
        ("two ready", &pod, vec![sandbox("s1", 1, true), sandbox("s0", 0, true)], Some(2)),
        ("newest not ready", &pod, vec![sandbox("s0", 3, false)], Some(4)),
        ("older not ready", &pod, vec![sandbox("s1", 1, true), sandbox("s0", 0, false)], None),
        ("network mode", &host, vec![sandbox("s0", 0, true)], Some(1)),
        ("empty IP", &pod, vec![without_ip], Some(3)),
        ("no network status", &pod, vec![without_status], None),
        ("good", &pod, vec![sandbox("s0", 0, true)], None),
    ] {
        let mut observed = observed();
        observed.sandboxes = sandboxes;
        assert_eq!(actions::new_sandbox_attempt(pod, &observed), expected, "{row}");
    }
}

#[test]
fn a_completed_pod_gets_no_new_sandbox() {
    for (policy, code, creates) in
        [("Never", 1, false), ("Never", 0, false), ("OnFailure", 0, false), ("OnFailure", 1, true), ("Always", 0, true)]
    {
        let pod = pod(policy, &[], &[], &["a"]);
        let mut observed = with_sandbox(vec![container(&pod, "a", 0, Exited, code)]);
        observed.sandboxes[0].ready = false;
        let actions = compute(&pod, &observed);
        assert_eq!(actions.create_sandbox.is_some(), creates, "{policy} {code}");
        assert!(actions.kill_pod);
    }
}

#[test]
fn restart_table() {
    for (state, code, never, on_failure, always) in [
        (Created, 0, true, true, true),
        (Unknown, 0, true, true, true),
        (Exited, 0, false, false, true),
        (Exited, 3, false, true, true),
        (Running, 0, false, false, false),
    ] {
        for (policy, expected) in [("Never", never), ("OnFailure", on_failure), ("Always", always)] {
            // A second container keeps the pod alive.
            let mut pod = pod(policy, &[], &[], &["a", "keep"]);
            let mut observed =
                with_sandbox(vec![container(&pod, "a", 0, state, code), container(&pod, "keep", 0, Running, 0)]);
            let actions = compute(&pod, &observed);
            assert_eq!(actions.start, if expected { vec![0] } else { vec![] }, "{policy} {state:?} {code}");
            assert_eq!(actions.kill.len(), usize::from(state == Unknown), "{policy} {state:?}");
            assert!(!actions.kill_pod);
            pod.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(0)));
            observed.containers.retain(|c| c.name == "a");
            assert!(compute(&pod, &observed).start.is_empty(), "nothing starts in a deleted pod");
        }
    }
}

#[test]
fn a_changed_image_restarts_under_every_policy() {
    for policy in ["Never", "OnFailure", "Always"] {
        let mut pod = pod(policy, &[], &[], &["a", "b"]);
        let observed = with_sandbox(vec![container(&pod, "a", 0, Running, 0), container(&pod, "b", 0, Running, 0)]);
        pod.spec.as_mut().unwrap().containers[0].image = Some("busybox:2".into());
        let actions = compute(&pod, &observed);
        assert_eq!(actions.start, [0]);
        assert_eq!(actions.kill[0].message, "Container a definition changed, will be restarted");
        assert_eq!(actions.kill.len(), 1, "the other one is left alone");
    }
}

#[test]
fn init_containers_run_one_after_the_other() {
    let pod = pod("Always", &["i", "j"], &[], &["a"]);
    let i = |state, code| container(&pod, "i", 0, state, code);
    let j = |state, code| container(&pod, "j", 0, state, code);
    for (row, containers, start_init, start) in [
        ("nothing yet", vec![], vec![0], vec![]),
        ("first runs", vec![i(Running, 0)], vec![], vec![]),
        ("first done", vec![i(Exited, 0)], vec![1], vec![]),
        ("first failed", vec![i(Exited, 1)], vec![0], vec![]),
        ("first created only", vec![i(Created, 0)], vec![0], vec![]),
        ("second runs", vec![i(Exited, 0), j(Running, 0)], vec![], vec![]),
        ("both done", vec![i(Exited, 0), j(Exited, 0)], vec![], vec![0]),
        ("first was removed", vec![j(Exited, 0)], vec![], vec![0]),
        ("main exists", vec![container(&pod, "a", 0, Exited, 1)], vec![], vec![0]),
    ] {
        let actions = compute(&pod, &with_sandbox(containers));
        assert_eq!((actions.start_init, actions.start), (start_init, start), "{row}");
    }
}

#[test]
fn a_failed_init_container_ends_a_never_pod() {
    let pod = pod("Never", &["i"], &[], &["a"]);
    let actions = compute(&pod, &with_sandbox(vec![container(&pod, "i", 0, Exited, 1)]));
    assert!(actions.kill_pod);
    assert!(actions.start_init.is_empty() && actions.start.is_empty());
}

#[test]
fn sidecars_start_first_stay_and_do_not_keep_the_pod() {
    let pod = pod("Never", &["i"], &["s"], &["a"]);
    let done = container(&pod, "i", 0, Exited, 0);
    let steps = |containers| {
        let actions = compute(&pod, &with_sandbox(containers));
        (actions.start_init, actions.start, actions.kill_pod)
    };
    let s = |state| container(&pod, "s", 0, state, 0);
    let a = |state, code| container(&pod, "a", 0, state, code);
    assert_eq!(steps(vec![done.clone()]), (vec![1], vec![], false));
    assert_eq!(steps(vec![done.clone(), s(Running)]), (vec![], vec![0], false));
    assert_eq!(
        steps(vec![done.clone(), s(Exited), a(Running, 0)]),
        (vec![1], vec![], false),
        "restarted in a Never pod"
    );
    assert_eq!(steps(vec![done, s(Running), a(Exited, 0)]), (vec![], vec![], true), "the pod is complete");
}

#[test]
fn a_new_sandbox_initializes_again_whatever_is_left_of_the_old_one() {
    let pod = pod("Always", &["i", "j"], &[], &["a"]);
    let old = ["i", "j", "a"].map(|name| container(&pod, name, 0, Exited, 0));
    let mut observed = with_sandbox(old.to_vec());
    observed.sandboxes = vec![sandbox("s1", 1, true), sandbox("s0", 0, false)];
    let actions = compute(&pod, &observed);
    assert_eq!((actions.start_init, actions.start), (vec![0], vec![]), "the agent was killed before it removed them");
    let mut again = container(&pod, "i", 1, Exited, 0);
    again.sandbox_id = "s1".into();
    observed.containers.push(again);
    observed.sort();
    let actions = compute(&pod, &observed);
    assert_eq!((actions.start_init, actions.start), (vec![1], vec![]));
}

#[test]
fn a_clock_that_was_set_back_does_not_make_the_old_instance_the_newest() {
    let pod = pod("Always", &[], &[], &["a"]);
    let mut new = container(&pod, "a", 1, Running, 0);
    new.created_at = at(-86_400);
    let observed = with_sandbox(vec![container(&pod, "a", 0, Exited, 1), new]);
    assert!(compute(&pod, &observed).is_noop());
    let mut sandboxes = observed.clone();
    let mut second = sandbox("s1", 1, true);
    second.created_at = at(-86_400);
    sandboxes.sandboxes = vec![sandbox("s0", 0, false), second];
    sandboxes.sort();
    assert_eq!(actions::new_sandbox_attempt(&pod, &sandboxes), None);
}

/// Carries actions out on a model of the runtime.
fn apply(pod: &Pod, observed: &mut ObservedPod, actions: &PodActions) {
    let stop = |c: &mut podlife::observed::ObservedContainer| {
        if matches!(c.state, Running | Unknown) {
            (c.state, c.exit_code, c.finished_at) = (Exited, 137, Some(at(1000)));
        }
    };
    if actions.kill_pod {
        observed.containers.iter_mut().for_each(stop);
        observed.sandboxes.iter_mut().for_each(|s| s.ready = false);
    }
    for kill in &actions.kill {
        observed.containers.iter_mut().filter(|c| c.id == kill.id).for_each(stop);
    }
    if let Some(attempt) = actions.create_sandbox {
        observed.sandboxes.push(sandbox(&format!("s{attempt}"), attempt, true));
        observed.containers.retain(|c| !spec::init_containers(pod).iter().any(|i| i.name == c.name));
    }
    let init = actions.start_init.iter().map(|&i| &spec::init_containers(pod)[i]);
    for started in init.chain(actions.start.iter().map(|&i| &spec::containers(pod)[i])) {
        let alive = observed.instances(&started.name).any(|c| c.state == Running);
        assert!(!alive, "{} would run twice", started.name);
        let count = observed.newest(&started.name).map_or(0, |c| c.restart_count + 1);
        let mut new = container(pod, &started.name, count, Running, 0);
        new.sandbox_id = observed.sandboxes.iter().max_by_key(|s| s.attempt).unwrap().id.clone();
        observed.containers.push(new);
    }
    observed.sort();
}

fn refs(list: &[String]) -> Vec<&str> {
    list.iter().map(String::as_str).collect()
}

fn state() -> impl Strategy<Value = RuntimeState> {
    prop_oneof![Just(Running), Just(Exited), Just(Created), Just(Unknown)]
}

proptest! {
    /// From any mixture of sandboxes and containers, an Always pod comes to rest with everything running once, and then
    /// nothing is done any more: what makes a restart of the agent harmless.
    #[test]
    fn decisions_converge(
        sidecars in 0_usize..2,
        inits in 0_usize..3,
        mains in 1_usize..3,
        sandboxes in proptest::collection::vec(any::<bool>(), 0..3),
        found in proptest::collection::vec((0_usize..7, state(), 0_i32..2), 0..6),
    ) {
        let names = |prefix: &str, n: usize| (0..n).map(|i| format!("{prefix}{i}")).collect::<Vec<_>>();
        let (init, side, main) = (names("i", inits), names("s", sidecars), names("m", mains));
        let pod = pod("Always", &refs(&init), &refs(&side), &refs(&main));
        let all: Vec<String> = init.iter().chain(&side).chain(&main).cloned().collect();
        let mut observed = observed();
        for (index, ready) in sandboxes.iter().enumerate() {
            observed.sandboxes.push(sandbox(&format!("s{index}"), index as u32, *ready));
        }
        for (which, state, code) in found {
            let name = &all[which % all.len()];
            let count = observed.instances(name).count() as u32;
            if observed.instances(name).all(|c| c.state != Running) {
                observed.containers.insert(0, container(&pod, name, count, state, code));
            }
        }
        observed.sort();
        for _ in 0..20 {
            let actions = compute(&pod, &observed);
            if actions.is_noop() {
                // Plain init containers that run are waited for: they end well now.
                let waiting = observed.containers.iter_mut().find(|c| c.state == Running && init.contains(&c.name));
                match waiting {
                    Some(running) => (running.state, running.exit_code, running.reason) = (Exited, 0, "Completed".into()),
                    None => break,
                }
                continue;
            }
            apply(&pod, &mut observed, &actions);
        }
        prop_assert!(compute(&pod, &observed).is_noop());
        for name in main.iter().chain(&side) {
            prop_assert_eq!(observed.newest(name).map(|c| c.state), Some(Running), "{}", name);
        }
        prop_assert_eq!(observed.sandboxes.iter().filter(|s| s.ready).count(), 1);
    }
}

#[test]
fn ephemeral_containers_start_once() {
    let mut pod = pod("Always", &["i"], &[], &["a"]);
    pod.spec.as_mut().unwrap().ephemeral_containers =
        serde_json::from_value(serde_json::json!([{"name": "e"}, {"name": "f"}])).unwrap();
    let i = container(&pod, "i", 0, Running, 0);
    let starts = |containers| compute(&pod, &with_sandbox(containers)).start_ephemeral;
    assert_eq!(starts(vec![i.clone()]), [0, 1], "before initialization is over");
    for state in [Created, Running, Exited, Unknown] {
        assert_eq!(starts(vec![i.clone(), container(&pod, "e", 0, state, 1)]), [1], "{state:?}");
    }
}
