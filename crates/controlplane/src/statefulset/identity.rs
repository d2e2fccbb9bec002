//! Who the pods of a StatefulSet are: their names, their claims, and what of both belongs to which ordinal.

use serde_json::{Value, json};

use crate::object::{Object, controller_reference};
use crate::pods;

/// The label that tells the pods of one revision apart; its value is the name of the ControllerRevision.
pub const REVISION: &str = "controller-revision-hash";
/// The label with the pod's own name, for Services of single pods.
const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
/// The label with the pod's ordinal.
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// The ordinal in the name of a pod of this set.
pub fn ordinal(set: &Object, pod: &Object) -> Option<i64> {
    let digits = pod.name().strip_prefix(set.name())?.strip_prefix('-')?;
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
}

/// The name of the claim that a pod has by one of the set's claim templates.
pub fn claim_name(set: &Object, template: &Value, ordinal: i64) -> String {
    format!("{}-{}-{ordinal}", template["metadata"]["name"].as_str().unwrap_or_default(), set.name())
}

/// The pod of this ordinal, by the template of this revision.
pub fn pod(set: &Object, template: &Value, revision: &str, ordinal: i64) -> Value {
    let mut pod = pods::from_template(set, "apps/v1", "StatefulSet", template);
    let name = format!("{}-{ordinal}", set.name());
    if let Some(metadata) = pod["metadata"].as_object_mut() {
        metadata.remove("generateName");
    }
    pod["metadata"]["name"] = json!(name);
    for (label, value) in [(POD_NAME, name.as_str()), (POD_INDEX, &ordinal.to_string()), (REVISION, revision)] {
        pod["metadata"]["labels"][label] = json!(value);
    }
    pod["spec"]["hostname"] = json!(name);
    let service = set.text("/spec/serviceName");
    if !service.is_empty() {
        pod["spec"]["subdomain"] = json!(service);
    }
    let templates = set.list("/spec/volumeClaimTemplates");
    if templates.is_empty() {
        return pod;
    }
    let is_claimed = |volume: &Value| templates.iter().any(|t| t["metadata"]["name"] == volume["name"]);
    let mut volumes = pod["spec"]["volumes"].as_array().cloned().unwrap_or_default();
    volumes.retain(|volume| !is_claimed(volume));
    volumes.extend(templates.iter().map(|template| {
        let claim = json!({"claimName": claim_name(set, template, ordinal)});
        json!({"name": template["metadata"]["name"], "persistentVolumeClaim": claim})
    }));
    pod["spec"]["volumes"] = json!(volumes);
    pod
}

/// The claims of the pod of this ordinal.
pub fn claims(set: &Object, ordinal: i64) -> Vec<Value> {
    let templates = set.list("/spec/volumeClaimTemplates").iter();
    let claims = templates.map(|template| {
        let mut claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "spec": template["spec"],
            "metadata": {"name": claim_name(set, template, ordinal), "namespace": set.namespace()}});
        for field in ["labels", "annotations"] {
            if template["metadata"][field].is_object() {
                claim["metadata"][field] = template["metadata"][field].clone();
            }
        }
        for (key, value) in set.at("/spec/selector/matchLabels").as_object().into_iter().flatten() {
            claim["metadata"]["labels"][key] = value.clone();
        }
        claim
    });
    claims.collect()
}

/// The owners that a claim of a pod should have by the set's retention policy; those of others stay. A claim that is to go
/// with a pod that is scaled away belongs to the pod, one that is to go with the set belongs to the set.
pub fn claim_owners(set: &Object, pod: &Object, condemned: bool, claim: &Object) -> Vec<Value> {
    let policy = set.at("/spec/persistentVolumeClaimRetentionPolicy");
    let with_pod = policy["whenScaled"] == "Delete" && condemned;
    let with_set = policy["whenDeleted"] == "Delete" && !with_pod;
    let of_this = |owner: &Value| owner["uid"] == set.uid() || (owner["kind"] == "Pod" && owner["name"] == pod.name());
    let mut owners: Vec<Value> =
        claim.list("/metadata/ownerReferences").iter().filter(|o| !of_this(o)).cloned().collect();
    let reference = match (with_pod, with_set) {
        (true, _) => controller_reference(pod, "v1", "Pod"),
        (_, true) => controller_reference(set, "apps/v1", "StatefulSet"),
        _ => return owners,
    };
    let mut reference = reference;
    for field in ["controller", "blockOwnerDeletion"] {
        reference.as_object_mut().map(|fields| fields.remove(field));
    }
    owners.push(reference);
    owners
}
