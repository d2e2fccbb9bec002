//! Which volume fits which claim, and which node can reach a volume.

use kubeapi::quantity;

use crate::object::Object;
use crate::selector;

/// The provisioner of classes whose volumes are made by hand.
pub const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";
/// On a claim and on a volume: the controller bound them, and may unbind them.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// On a claim: it was bound once; without its volume it is lost.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";

/// Whether the volume is promised to this claim: by its name, and by its UID unless none is given yet.
pub fn is_for(volume: &Object, claim: &Object) -> bool {
    let promised = volume.at("/spec/claimRef");
    let uid = promised["uid"].as_str().unwrap_or_default();
    promised["namespace"] == claim.namespace()
        && promised["name"] == claim.name()
        && (uid.is_empty() || uid == claim.uid())
}

/// Whether claims of the class are bound only when a pod that uses them is scheduled.
pub fn is_delayed(class: &Object) -> bool {
    class.text("/volumeBindingMode") == "WaitForFirstConsumer"
}

/// The class of this name.
pub fn class<'a>(classes: &'a [Object], name: &str) -> Option<&'a Object> {
    classes.iter().find(|class| class.name() == name)
}

/// Whether the claim has its volume for good.
pub fn is_bound(claim: &Object) -> bool {
    !claim.text("/spec/volumeName").is_empty() && claim.annotation(BIND_COMPLETED).is_some()
}

/// Why the volume cannot serve the claim, in upstream's words.
pub fn mismatch(volume: &Object, claim: &Object) -> Option<&'static str> {
    let mode = |o: &Object| match o.text("/spec/volumeMode") {
        "" => "Filesystem".to_owned(),
        mode => mode.to_owned(),
    };
    let modes = volume.list("/spec/accessModes");
    if size(volume) < wanted(claim) {
        Some("requested PV is too small")
    } else if volume.text("/spec/storageClassName") != claim.text("/spec/storageClassName") {
        Some("storageClassName does not match")
    } else if mode(volume) != mode(claim) {
        Some("incompatible volumeMode")
    } else if !claim.list("/spec/accessModes").iter().all(|mode| modes.contains(mode)) {
        Some("incompatible accessMode")
    } else {
        None
    }
}

/// The smallest free volume that serves the claim, of those that `allowed` accepts.
pub fn find<'a>(claim: &Object, volumes: &'a [Object], allowed: impl Fn(&Object) -> bool) -> Option<&'a Object> {
    let wish = claim.at("/spec/selector");
    let fits = |volume: &&Object| {
        volume.at("/spec/claimRef").is_null()
            && !volume.is_deleting()
            && mismatch(volume, claim).is_none()
            && (wish.is_null() || selector::matches(wish, volume.labels()))
            && allowed(volume)
    };
    volumes.iter().filter(fits).min_by_key(|volume| (size(volume), volume.name()))
}

/// Whether pods on the node can use the volume.
pub fn reaches(node: &Object, volume: &Object) -> bool {
    let required = volume.at("/spec/nodeAffinity/required");
    required.is_null() || selector::node_selector(required, node)
}

/// What the claim asks for, in thousandths of a byte.
pub fn wanted(claim: &Object) -> i128 {
    quantity::milli(claim.at("/spec/resources/requests/storage")).unwrap_or(0)
}

fn size(volume: &Object) -> i128 {
    quantity::milli(volume.at("/spec/capacity/storage")).unwrap_or(0)
}
