//! What becomes of a claim or a volume, without IO.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::fit::{self, BIND_COMPLETED, BOUND_BY_CONTROLLER, NO_PROVISIONER};
use crate::object::{Object, time_text};

/// On a volume: an external provisioner made it, and deletes it.
const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";

/// Something to tell the user.
#[derive(Debug, Clone, PartialEq)]
pub struct Note {
    /// It is no part of the usual course.
    pub warning: bool,
    /// Reason of the event.
    pub reason: &'static str,
    /// Message of the event.
    pub message: String,
}

/// What becomes of a claim.
#[derive(Debug, Clone, PartialEq)]
pub enum ClaimStep {
    /// It stays as it is.
    Nothing,
    /// It and this volume are to be bound, or stay so.
    Bind(Object),
    /// It stays pending.
    Wait(Note),
    /// Its volume is gone or another's.
    Lost(Note),
}

/// What becomes of a volume.
#[derive(Debug, Clone, PartialEq)]
pub enum VolumeStep {
    /// It stays as it is.
    Nothing,
    /// It is in this phase.
    Phase(&'static str),
    /// Its claim has another volume: it is free again. The new `claimRef`.
    Unbind(Value),
    /// It should be reclaimed, but nobody can.
    Fail(Note),
}

/// Decides for a claim.
pub fn claim(claim: &Object, volumes: &[Object], classes: &[Object]) -> ClaimStep {
    match claim.text("/spec/volumeName") {
        "" if claim.is_deleting() => ClaimStep::Nothing,
        "" => unbound(claim, volumes, classes),
        name => named(claim, volumes.iter().find(|volume| volume.name() == name)),
    }
}

fn unbound(claim: &Object, volumes: &[Object], classes: &[Object]) -> ClaimStep {
    // The scheduler or the user has promised it a volume.
    let promised = volumes.iter().find(|volume| fit::is_for(volume, claim) && !volume.is_deleting());
    if let Some(volume) = promised {
        return accept(claim, volume);
    }
    let name = claim.text("/spec/storageClassName");
    let class = fit::class(classes, name);
    if class.is_some_and(fit::is_delayed) {
        let message = "waiting for first consumer to be created before binding";
        return wait(false, "WaitForFirstConsumer", message.to_owned());
    }
    if let Some(volume) = fit::find(claim, volumes, |_| true) {
        return ClaimStep::Bind(volume.clone());
    }
    match class.map(|class| class.text("/provisioner")) {
        None if name.is_empty() => {
            let message = "no persistent volumes available for this claim and no storage class is set";
            wait(false, "FailedBinding", message.to_owned())
        }
        None => wait(true, "ProvisioningFailed", format!("storageclass.storage.k8s.io \"{name}\" not found")),
        Some(NO_PROVISIONER) => {
            wait(true, "ProvisioningFailed", format!("no volume plugin matched name: {NO_PROVISIONER}"))
        }
        Some(other) => wait(
            false,
            "ExternalProvisioning",
            format!(
                "Waiting for a volume to be created either by the external provisioner '{other}' or manually by the system administrator. If volume creation is delayed, please verify that the provisioner is running and correctly registered."
            ),
        ),
    }
}

fn named(claim: &Object, volume: Option<&Object>) -> ClaimStep {
    let was_bound = claim.annotation(BIND_COMPLETED).is_some();
    let lost = |reason, message: &str| ClaimStep::Lost(Note { warning: true, reason, message: message.to_owned() });
    match volume {
        None if was_bound => {
            lost("ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!")
        }
        None => ClaimStep::Nothing,
        Some(volume) if fit::is_for(volume, claim) && was_bound => ClaimStep::Bind(volume.clone()),
        Some(volume) if fit::is_for(volume, claim) => accept(claim, volume),
        Some(volume) if volume.at("/spec/claimRef").is_null() => accept(claim, volume),
        Some(_) if was_bound => {
            lost("ClaimMisbound", "Two claims are bound to the same volume, this one is bound incorrectly")
        }
        Some(volume) => {
            wait(true, "FailedBinding", format!("volume \"{}\" already bound to a different claim.", volume.name()))
        }
    }
}

fn accept(claim: &Object, volume: &Object) -> ClaimStep {
    match fit::mismatch(volume, claim) {
        None => ClaimStep::Bind(volume.clone()),
        Some(why) => {
            wait(true, "VolumeMismatch", format!("Cannot bind to requested volume \"{}\": {why}", volume.name()))
        }
    }
}

fn wait(warning: bool, reason: &'static str, message: String) -> ClaimStep {
    ClaimStep::Wait(Note { warning, reason, message })
}

/// Decides for a volume. `claim` is the one that its `claimRef` names, if that exists, whatever its UID.
pub fn volume(volume: &Object, claim: Option<&Object>) -> VolumeStep {
    let promised = volume.at("/spec/claimRef");
    let uid = promised["uid"].as_str().unwrap_or_default();
    if uid.is_empty() {
        return VolumeStep::Phase("Available");
    }
    let Some(claim) = claim.filter(|claim| claim.uid() == uid) else { return reclaim(volume) };
    match claim.text("/spec/volumeName") {
        // The claim comes to it.
        "" => VolumeStep::Nothing,
        name if name == volume.name() => VolumeStep::Phase("Bound"),
        _ if volume.annotation(BOUND_BY_CONTROLLER).is_some() => VolumeStep::Unbind(Value::Null),
        _ => VolumeStep::Unbind(json!({"uid": null, "resourceVersion": null})),
    }
}

fn reclaim(volume: &Object) -> VolumeStep {
    let (reason, message) = match volume.text("/spec/persistentVolumeReclaimPolicy") {
        "Delete" if volume.annotation(PROVISIONED_BY).is_none() => (
            "VolumeFailedDelete",
            format!(
                "error getting deleter volume plugin for volume \"{}\": no deletable volume plugin matched",
                volume.name()
            ),
        ),
        "Recycle" => ("VolumeFailedRecycle", "No recycler plugin found for the volume!".to_owned()),
        _ => return VolumeStep::Phase("Released"),
    };
    VolumeStep::Fail(Note { warning: true, reason, message })
}

/// One write of a binding, as a merge patch.
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    /// Of the volume.
    Volume(Value),
    /// Of the volume's status.
    VolumeStatus(Value),
    /// Of the claim.
    Claim(Value),
    /// Of the claim's status.
    ClaimStatus(Value),
}

/// What is missing for the two to be bound, in the order in which it must be written.
pub fn binding(volume: &Object, claim: &Object, now: Timestamp) -> Vec<Write> {
    let mut writes = Vec::new();
    if volume.text("/spec/claimRef/uid") != claim.uid() {
        writes.push(Write::Volume(promise(volume, claim)));
    }
    if volume.text("/status/phase") != "Bound" {
        writes.push(Write::VolumeStatus(phase("Bound", None, now)));
    }
    if claim.text("/spec/volumeName") != volume.name() || claim.annotation(BIND_COMPLETED).is_none() {
        let mut annotations = json!({BIND_COMPLETED: "yes"});
        if claim.text("/spec/volumeName").is_empty() {
            annotations[BOUND_BY_CONTROLLER] = json!("yes");
        }
        writes.push(Write::Claim(
            json!({"metadata": {"annotations": annotations}, "spec": {"volumeName": volume.name()}}),
        ));
    }
    let status = json!({"phase": "Bound", "accessModes": volume.at("/spec/accessModes"), "capacity": volume.at("/spec/capacity")});
    if ["phase", "accessModes", "capacity"].iter().any(|field| claim.at("/status")[field] != status[field]) {
        writes.push(Write::ClaimStatus(json!({"status": status})));
    }
    writes
}

/// The patch that promises the volume to the claim, unless somebody else is faster.
pub fn promise(volume: &Object, claim: &Object) -> Value {
    let mut metadata = json!({"uid": volume.uid(), "resourceVersion": volume.text("/metadata/resourceVersion")});
    if volume.at("/spec/claimRef").is_null() {
        metadata["annotations"] = json!({BOUND_BY_CONTROLLER: "yes"});
    }
    json!({"metadata": metadata, "spec": {"claimRef": {
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": claim.namespace(), "name": claim.name(),
        "uid": claim.uid(), "resourceVersion": claim.text("/metadata/resourceVersion"),
    }}})
}

/// The patch that puts a volume into a phase.
pub fn phase(phase: &str, message: Option<&str>, now: Timestamp) -> Value {
    json!({"status": {"phase": phase, "message": message, "lastPhaseTransitionTime": time_text(now)}})
}
