//! Tables for the decisions of the StatefulSet controller.

use serde_json::{Value, json};

use super::identity::{REVISION, claim_owners, claims, ordinal, pod as make};
use super::plan::{Plan, Revisions, plan};
use crate::fixtures::{merge, now};
use crate::object::Object;

const BOTH: Revisions<'static> = Revisions { current: "web-1", update: "web-2" };

fn set(spec: Value) -> Object {
    let mut set = json!({"metadata": {"name": "web", "namespace": "default", "uid": "s", "generation": 3}, "spec": {
        "replicas": 3, "serviceName": "web", "podManagementPolicy": "OrderedReady", "selector": {"matchLabels": {"app": "web"}},
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c"}]}}}});
    merge(&mut set, json!({"spec": spec}));
    set.into()
}

/// A pod `web-N` of a revision: `+` ready, `-` not ready, `x` failed, `d` ready and on its way out.
fn pod(text: &str) -> Object {
    let (number, rest) = text.split_at(1);
    let (revision, state) = rest.split_at(1);
    let mut pod = json!({
        "metadata": {"name": format!("web-{number}"), "uid": text, "labels": {REVISION: format!("web-{revision}")}},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-11-24T11:59:54Z"}]}});
    match state {
        "-" => pod["status"]["conditions"][0]["status"] = json!("False"),
        "x" => pod["status"]["phase"] = json!("Failed"),
        "d" => pod["metadata"]["deletionTimestamp"] = json!("2026-11-24T12:00:00Z"),
        _ => {}
    }
    pod.into()
}

fn pods(text: &str) -> Vec<Object> {
    text.split_whitespace().map(pod).collect()
}

/// A round in words: `make 1/2` is the pod 1 of the revision 2.
fn round(spec: Value, own: &str) -> String {
    let Plan { create, delete, .. } = plan(&set(spec), &pods(own), BOTH, now());
    let made = create.iter().map(|(ordinal, updated)| format!("make {ordinal}/{}", if *updated { 2 } else { 1 }));
    let gone = delete.iter().map(|pod| format!("delete {}", pod.name()));
    made.chain(gone).collect::<Vec<String>>().join(", ")
}

#[test]
fn pods_come_and_go_one_after_the_other() {
    for (spec, own, expected) in [
        (json!({}), "", "make 0/2"),
        (json!({}), "02-", ""),
        (json!({}), "02+", "make 1/2"),
        (json!({}), "02+ 22+", "make 1/2"),
        (json!({}), "02d", ""),
        (json!({}), "02x", "delete web-0"),
        (json!({}), "02+ 12+ 22+", ""),
        (json!({"replicas": 1}), "02+ 12+ 22+", "delete web-2"),
        (json!({"replicas": 1}), "02+ 12+ 22d", ""),
        (json!({"replicas": 1}), "02- 12+ 22+", ""),
        (json!({"replicas": 1}), "02+ 12+ 22-", "delete web-2"),
        (json!({"replicas": 1}), "02+ 12- 22-", ""),
        (json!({"replicas": 2, "ordinals": {"start": 5}}), "52+", "make 6/2"),
        (json!({"minReadySeconds": 10}), "02+", ""),
        (json!({"minReadySeconds": 5}), "02+", "make 1/2"),
    ] {
        assert_eq!(round(spec.clone(), own), expected, "{spec} {own}");
    }
}

#[test]
fn parallel_pods_wait_for_none() {
    for (spec, own, expected) in [
        (json!({}), "", "make 0/2, make 1/2, make 2/2"),
        (json!({}), "02- 12d", "make 2/2"),
        (json!({"replicas": 1}), "02- 12- 22+", "delete web-2, delete web-1"),
        (json!({}), "01+ 11+ 21+", "delete web-2"),
        (json!({}), "01x 12+ 22+", "delete web-0"),
    ] {
        let mut parallel = json!({"podManagementPolicy": "Parallel"});
        merge(&mut parallel, spec.clone());
        assert_eq!(round(parallel, own), expected, "{spec} {own}");
    }
}

#[test]
fn an_update_goes_from_the_last_to_the_first_down_to_the_partition() {
    let partition = |n: i64| json!({"updateStrategy": {"rollingUpdate": {"partition": n}}});
    let on_delete = json!({"updateStrategy": {"type": "OnDelete", "rollingUpdate": null}});
    for (spec, own, expected) in [
        (json!({}), "01+ 11+ 21+", "delete web-2"),
        (json!({}), "01+ 11+ 22-", ""),
        (json!({}), "01+ 11+ 22+", "delete web-1"),
        (partition(2), "01+ 11+ 22+", ""),
        (partition(2), "01+ 22+", "make 1/1"),
        (partition(1), "01+ 22+", "make 1/2"),
        (on_delete.clone(), "01+ 11+ 21+", ""),
        (on_delete, "01+ 11+", "make 2/2"),
    ] {
        assert_eq!(round(spec.clone(), own), expected, "{spec} {own}");
    }
}

#[test]
fn the_status_counts_and_the_revision_moves_when_all_have_arrived() {
    let half = plan(&set(json!({})), &pods("01+ 11- 22+"), BOTH, now()).status;
    assert_eq!(
        half,
        json!({"observedGeneration": 3, "replicas": 3, "readyReplicas": 2, "availableReplicas": 2, "currentReplicas": 2,
            "updatedReplicas": 1, "currentRevision": "web-1", "updateRevision": "web-2", "collisionCount": 0})
    );
    let whole = plan(&set(json!({})), &pods("02+ 12+ 22+"), BOTH, now()).status;
    assert_eq!((&whole["currentRevision"], &whole["currentReplicas"]), (&json!("web-2"), &json!(3)));
    let young = plan(&set(json!({"minReadySeconds": 10})), &pods("02+"), BOTH, now());
    assert_eq!((&young.status["availableReplicas"], young.wait.map(|w| w.as_secs())), (&json!(0), Some(4)));
    let mut deleting = set(json!({})).to_value();
    deleting["metadata"]["deletionTimestamp"] = json!("2026-11-24T12:00:00Z");
    assert_eq!(plan(&deleting.into(), &[], BOTH, now()).create, []);
}

#[test]
fn a_pod_has_a_name_and_claims_of_its_own() {
    let set = set(json!({
        "volumeClaimTemplates": [{"metadata": {"name": "data", "labels": {"a": "b"}}, "spec": {"accessModes": ["ReadWriteOnce"]}}]}));
    let template = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [],
        "volumes": [{"name": "data", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}]}});
    let made = make(&set, &template, "web-2", 1);
    assert_eq!((&made["metadata"]["name"], &made["metadata"]["generateName"]), (&json!("web-1"), &Value::Null));
    assert_eq!((&made["spec"]["hostname"], &made["spec"]["subdomain"]), (&json!("web-1"), &json!("web")));
    assert_eq!(made["metadata"]["labels"]["statefulset.kubernetes.io/pod-name"], "web-1");
    assert_eq!(
        made["spec"]["volumes"],
        json!([{"name": "tmp", "emptyDir": {}}, {"name": "data", "persistentVolumeClaim": {"claimName": "data-web-1"}}])
    );
    let claim = &claims(&set, 1)[0];
    assert_eq!(
        claim["metadata"],
        json!({"name": "data-web-1", "namespace": "default", "labels": {"a": "b", "app": "web"}})
    );
    for (name, expected) in
        [("web-12", Some(12)), ("web-x", None), ("web-", None), ("other-1", None), ("web-1-2", None)]
    {
        assert_eq!(ordinal(&set, &json!({"metadata": {"name": name}}).into()), expected, "{name}");
    }
}

#[test]
fn claims_go_with_what_the_policy_says() {
    let web = pod("12+");
    for (deleted, scaled, condemned, expected) in [
        ("Retain", "Retain", true, vec![]),
        ("Delete", "Retain", true, vec!["StatefulSet"]),
        ("Delete", "Retain", false, vec!["StatefulSet"]),
        ("Retain", "Delete", true, vec!["Pod"]),
        ("Retain", "Delete", false, vec![]),
        ("Delete", "Delete", true, vec!["Pod"]),
    ] {
        let set = set(json!({"persistentVolumeClaimRetentionPolicy": {"whenDeleted": deleted, "whenScaled": scaled}}));
        let mut claim = Object::from(json!({"metadata": {"ownerReferences": [{"kind": "Other", "uid": "o"}]}}));
        // Again and again, and from any other state.
        for condemned in [condemned, !condemned, condemned] {
            let owners = claim_owners(&set, &web, condemned, &claim);
            claim = json!({"metadata": {"ownerReferences": owners}}).into();
        }
        let kinds: Vec<&str> =
            claim.list("/metadata/ownerReferences").iter().skip(1).filter_map(|o| o["kind"].as_str()).collect();
        assert_eq!(kinds, expected, "{deleted} {scaled} {condemned}");
    }
}
