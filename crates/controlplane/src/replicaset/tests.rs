//! Tables for the decisions of the ReplicaSet controller.

use serde_json::{Value, json};

use super::plan::{Claim, Step, claim, plan, status};
use crate::fixtures::{merge, now};
use crate::object::Object;

fn set(replicas: i64) -> Object {
    json!({"metadata": {"name": "web-1", "namespace": "default", "uid": "rs", "generation": 4},
        "spec": {"replicas": replicas, "minReadySeconds": 10,
            "selector": {"matchLabels": {"app": "web"}}, "template": {"metadata": {"labels": {"app": "web"}}}}})
    .into()
}

fn pod(name: &str, change: Value) -> Object {
    let mut pod = json!({"metadata": {"name": name, "labels": {"app": "web"}, "creationTimestamp": "2026-11-24T11:00:00Z"},
        "spec": {"nodeName": "n1"},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-11-24T11:30:00Z"}]}});
    merge(&mut pod, change);
    pod.into()
}

#[test]
fn claims() {
    let owned_by = |uid: &str| json!({"metadata": {"ownerReferences": [{"uid": uid, "controller": true}]}});
    let set = set(1);
    let selector = set.at("/spec/selector");
    for (change, expected) in [
        (json!({}), Claim::Adopt),
        (owned_by("rs"), Claim::Own),
        (owned_by("other"), Claim::Ignore),
        (json!({"metadata": {"labels": {"app": "db"}}}), Claim::Ignore),
        (json!({"metadata": {"deletionTimestamp": "2026-11-24T11:00:00Z"}}), Claim::Ignore),
        (
            json!({"metadata": {"labels": {"app": "db"}, "ownerReferences": [{"uid": "rs", "controller": true}]}}),
            Claim::Release,
        ),
    ] {
        assert_eq!(claim(&set, selector, &pod("p", change.clone())), expected, "{change}");
    }
}

#[test]
fn makes_what_is_missing_and_stops_while_deleting() {
    assert_eq!(plan(&set(3), &[pod("a", json!({}))], &[], now()), Step::Create(2));
    assert_eq!(plan(&set(1), &[pod("a", json!({}))], &[], now()), Step::Nothing);
    assert_eq!(plan(&set(2000), &[], &[], now()), Step::Create(500));
    let mut deleting = set(3).to_value();
    deleting["metadata"]["deletionTimestamp"] = json!("2026-11-24T12:00:00Z");
    assert_eq!(plan(&deleting.into(), &[], &[], now()), Step::Nothing);
}

#[test]
fn deletes_the_least_useful_pod_first() {
    let ready_later = json!({"status": {"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-11-24T11:50:00Z"}]}});
    let cases = [
        ("unassigned", json!({"spec": {"nodeName": null}})),
        ("pending", json!({"status": {"phase": "Pending"}})),
        ("not ready", json!({"status": {"conditions": []}})),
        ("cheap", json!({"metadata": {"annotations": {"controller.kubernetes.io/pod-deletion-cost": "-5"}}})),
        ("ready later", ready_later),
        ("restarted", json!({"status": {"containerStatuses": [{"restartCount": 4}]}})),
        ("younger", json!({"metadata": {"creationTimestamp": "2026-11-24T11:20:00Z"}})),
    ];
    for (name, change) in cases {
        let victim = pod("victim", change);
        let keep = pod("keep", json!({}));
        let active = [keep, victim.clone()];
        assert_eq!(plan(&set(1), &active, &active, now()), Step::Delete(vec![victim]), "{name}");
    }
    let crowded = pod("crowded", json!({"spec": {"nodeName": "n2"}}));
    let alone = pod("alone", json!({}));
    let related = [crowded.clone(), alone.clone(), pod("old revision", json!({"spec": {"nodeName": "n2"}}))];
    assert_eq!(plan(&set(1), &[alone, crowded.clone()], &related, now()), Step::Delete(vec![crowded]));
}

#[test]
fn status_counts_and_waits_for_min_ready() {
    let fresh = json!({"status": {"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-11-24T11:59:54Z"}]}});
    let pods = [pod("a", json!({})), pod("b", fresh), pod("c", json!({"status": {"conditions": []}}))];
    let (status, wait) = status(&set(3), &pods, None, now());
    assert_eq!(
        status,
        json!({"replicas": 3, "observedGeneration": 4, "fullyLabeledReplicas": 3, "readyReplicas": 2, "availableReplicas": 1})
    );
    assert_eq!(wait.map(|w| w.as_secs()), Some(4));
}
