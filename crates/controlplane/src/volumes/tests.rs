//! Tables for the decisions about claims and volumes.

use serde_json::{Value, json};

use super::fit::{self, BIND_COMPLETED, BOUND_BY_CONTROLLER, NO_PROVISIONER};
use super::plan::{ClaimStep, VolumeStep, Write, binding, claim, promise, volume};
use super::protection::uses;
use crate::fixtures::{merge, now};
use crate::object::Object;

fn pv(name: &str, size: &str, change: Value) -> Object {
    let mut volume = json!({"metadata": {"name": name, "uid": name}, "spec": {"capacity": {"storage": size}, "storageClassName": "local",
        "accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem", "persistentVolumeReclaimPolicy": "Retain"}});
    merge(&mut volume, change);
    volume.into()
}

fn pvc(change: Value) -> Object {
    let mut claim = json!({"metadata": {"name": "data", "namespace": "shop", "uid": "c1"}, "spec": {"storageClassName": "local",
        "accessModes": ["ReadWriteOnce"], "volumeMode": "Filesystem", "resources": {"requests": {"storage": "1Gi"}}}});
    merge(&mut claim, change);
    claim.into()
}

fn class(mode: &str, provisioner: &str) -> Object {
    json!({"metadata": {"name": "local"}, "provisioner": provisioner, "volumeBindingMode": mode}).into()
}

fn bound(claim: &Object) -> Value {
    json!({"spec": {"claimRef": {"namespace": claim.namespace(), "name": claim.name(), "uid": claim.uid()}}})
}

/// A step in a word.
fn word(step: &ClaimStep) -> String {
    match step {
        ClaimStep::Nothing => "nothing".to_owned(),
        ClaimStep::Bind(volume) => format!("bind {}", volume.name()),
        ClaimStep::Wait(note) => format!("wait {}", note.reason),
        ClaimStep::Lost(note) => format!("lost {}", note.reason),
    }
}

#[test]
fn a_claim_gets_the_smallest_volume_that_fits() {
    let immediate = [class("Immediate", NO_PROVISIONER)];
    for (change, size, expected) in [
        (json!({}), "1Gi", "bind v"),
        (json!({}), "512Mi", "wait ProvisioningFailed"),
        (json!({"spec": {"storageClassName": "other"}}), "1Gi", "wait ProvisioningFailed"),
        (json!({"spec": {"volumeMode": "Block"}}), "1Gi", "wait ProvisioningFailed"),
        (json!({"spec": {"accessModes": ["ReadOnlyMany"]}}), "1Gi", "wait ProvisioningFailed"),
        (json!({"spec": {"accessModes": ["ReadOnlyMany", "ReadWriteOnce"]}}), "1Gi", "bind v"),
        (json!({"spec": {"claimRef": {"namespace": "shop", "name": "other"}}}), "1Gi", "wait ProvisioningFailed"),
        (json!({"metadata": {"deletionTimestamp": "2026-11-24T12:00:00Z"}}), "1Gi", "wait ProvisioningFailed"),
    ] {
        let volumes = [pv("v", size, change.clone())];
        assert_eq!(word(&claim(&pvc(json!({})), &volumes, &immediate)), expected, "{change} {size}");
    }
    let volumes = [pv("big", "9Gi", json!({})), pv("b", "2Gi", json!({})), pv("a", "2Gi", json!({}))];
    assert_eq!(word(&claim(&pvc(json!({})), &volumes, &immediate)), "bind a");
    let picky = pvc(json!({"spec": {"selector": {"matchLabels": {"disk": "ssd"}}}}));
    assert_eq!(word(&claim(&picky, &volumes, &immediate)), "wait ProvisioningFailed");
    let ssd = [pv("ssd", "1Gi", json!({"metadata": {"labels": {"disk": "ssd"}}}))];
    assert_eq!(word(&claim(&picky, &ssd, &immediate)), "bind ssd");
}

#[test]
fn a_claim_that_must_wait_says_for_what() {
    let free = [pv("v", "1Gi", json!({}))];
    let delayed = [class("WaitForFirstConsumer", NO_PROVISIONER)];
    let external = [class("Immediate", "csi.example.org")];
    let without = pvc(json!({"spec": {"storageClassName": ""}}));
    for (claim_, volumes, classes, expected) in [
        (pvc(json!({})), &free[..], &delayed[..], "wait WaitForFirstConsumer"),
        (pvc(json!({})), &[], &external, "wait ExternalProvisioning"),
        (pvc(json!({})), &[], &[], "wait ProvisioningFailed"),
        (without, &[], &[], "wait FailedBinding"),
        (pvc(json!({"metadata": {"deletionTimestamp": "2026-11-24T12:00:00Z"}})), &free, &[], "nothing"),
    ] {
        assert_eq!(word(&claim(&claim_, volumes, classes)), expected);
    }
    // What the scheduler or the user promised it does not wait for.
    for uid in [json!("c1"), Value::Null] {
        let promised = json!({"spec": {"claimRef": {"namespace": "shop", "name": "data", "uid": uid}}});
        assert_eq!(word(&claim(&pvc(json!({})), &[pv("v", "1Gi", promised)], &delayed)), "bind v");
    }
}

#[test]
fn a_claim_that_names_its_volume() {
    let named = |completed: bool| {
        let mut claim = json!({"spec": {"volumeName": "v"}});
        if completed {
            claim["metadata"]["annotations"][BIND_COMPLETED] = json!("yes");
        }
        pvc(claim)
    };
    let others = json!({"spec": {"claimRef": {"namespace": "shop", "name": "other", "uid": "c2"}}});
    let own = bound(&named(true));
    for (completed, volumes, expected) in [
        (false, vec![], "nothing"),
        (true, vec![], "lost ClaimLost"),
        (false, vec![pv("v", "1Gi", json!({}))], "bind v"),
        (false, vec![pv("v", "1Mi", json!({}))], "wait VolumeMismatch"),
        (false, vec![pv("v", "1Gi", others.clone())], "wait FailedBinding"),
        (true, vec![pv("v", "1Gi", others)], "lost ClaimMisbound"),
        (true, vec![pv("v", "1Gi", own)], "bind v"),
    ] {
        assert_eq!(word(&claim(&named(completed), &volumes, &[])), expected, "{completed} {volumes:?}");
    }
}

#[test]
fn a_binding_is_written_once_and_in_order() {
    let (free, wish) = (pv("v", "1Gi", json!({})), pvc(json!({})));
    let writes = binding(&free, &wish, now());
    let order: Vec<&str> = writes
        .iter()
        .map(|write| match write {
            Write::Volume(_) => "volume",
            Write::VolumeStatus(_) => "volume status",
            Write::Claim(_) => "claim",
            Write::ClaimStatus(_) => "claim status",
        })
        .collect();
    assert_eq!(order, ["volume", "volume status", "claim", "claim status"]);
    let (mut volume, mut claim) = (free.to_value(), wish.to_value());
    for write in writes {
        match write {
            Write::Volume(patch) | Write::VolumeStatus(patch) => merge(&mut volume, patch),
            Write::Claim(patch) | Write::ClaimStatus(patch) => merge(&mut claim, patch),
        }
    }
    let (volume, claim) = (Object::from(volume), Object::from(claim));
    assert!(fit::is_bound(&claim) && fit::is_for(&volume, &claim));
    assert_eq!(volume.annotation(BOUND_BY_CONTROLLER), Some("yes"));
    assert_eq!(
        claim.at("/status"),
        &json!({"phase": "Bound", "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}})
    );
    assert_eq!(binding(&volume, &claim, now()), vec![]);
}

#[test]
fn a_volume_follows_its_claim() {
    let claim = |volume: &str| pvc(json!({"spec": {"volumeName": volume}}));
    let own = bound(&pvc(json!({})));
    let policy = |policy: &str| {
        let mut change = own.clone();
        merge(&mut change, json!({"spec": {"persistentVolumeReclaimPolicy": policy}}));
        change
    };
    let by_controller = {
        let mut change = own.clone();
        merge(&mut change, json!({"metadata": {"annotations": {BOUND_BY_CONTROLLER: "yes"}}}));
        change
    };
    let stranger = pvc(json!({"metadata": {"uid": "c2"}}));
    for (change, claim, expected) in [
        (json!({}), None, VolumeStep::Phase("Available")),
        (json!({"spec": {"claimRef": {"namespace": "shop", "name": "data"}}}), None, VolumeStep::Phase("Available")),
        (own.clone(), Some(claim("")), VolumeStep::Nothing),
        (own.clone(), Some(claim("v")), VolumeStep::Phase("Bound")),
        (own.clone(), None, VolumeStep::Phase("Released")),
        (own.clone(), Some(stranger), VolumeStep::Phase("Released")),
        (by_controller, Some(claim("w")), VolumeStep::Unbind(Value::Null)),
    ] {
        assert_eq!(volume(&pv("v", "1Gi", change.clone()), claim.as_ref()), expected, "{change}");
    }
    for (policy_, reason) in [("Delete", "VolumeFailedDelete"), ("Recycle", "VolumeFailedRecycle")] {
        let VolumeStep::Fail(note) = volume(&pv("v", "1Gi", policy(policy_)), None) else { panic!("{policy_}") };
        assert_eq!(note.reason, reason);
    }
    let external = json!({"metadata": {"annotations": {"pv.kubernetes.io/provisioned-by": "csi.example.org"}}});
    let mut change = policy("Delete");
    merge(&mut change, external);
    assert_eq!(volume(&pv("v", "1Gi", change), None), VolumeStep::Phase("Released"), "its provisioner deletes it");
}

#[test]
fn a_promise_says_whose_it_was() {
    let claim = pvc(json!({}));
    let patch = promise(&pv("v", "1Gi", json!({"metadata": {"resourceVersion": "7"}})), &claim);
    assert_eq!((&patch["metadata"]["resourceVersion"], &patch["spec"]["claimRef"]["uid"]), (&json!("7"), &json!("c1")));
    let by_user = json!({"spec": {"claimRef": {"namespace": "shop", "name": "data"}}});
    assert!(promise(&pv("v", "1Gi", by_user), &claim)["metadata"]["annotations"].is_null());
}

#[test]
fn a_pod_on_a_node_holds_its_claims() {
    let pod = |node: &str| -> Object {
        json!({"spec": {"nodeName": node, "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]}})
            .into()
    };
    assert!(uses(&pod("n1"), "data") && !uses(&pod(""), "data") && !uses(&pod("n1"), "other"));
}
