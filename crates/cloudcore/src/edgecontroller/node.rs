//! What a node may say of itself: its status, its annotations, and those labels that decide over nobody else (Kubernetes,
//! NodeRestriction).

use serde_json::{Map, Value, json};
use tracing::warn;

/// Labels of these domains, and of those below them, are Kubernetes' own.
const RESERVED: [&str; 2] = ["kubernetes.io", "k8s.io"];
/// Labels of this domain tell nodes apart for administrators: no node has them from itself.
const RESTRICTED: &str = "node-restriction.kubernetes.io";
/// Of the reserved ones, those of these domains a node sets itself.
const OPEN: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];
/// And these.
const OWN: [&str; 11] = [
    "kubernetes.io/hostname",
    "kubernetes.io/arch",
    "kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
];

fn is_within(label: &str, domain: &str) -> bool {
    label
        .split_once('/')
        .and_then(|(prefix, _)| prefix.strip_suffix(domain))
        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Whether a node may change this label of itself at any time.
pub(super) fn may_set(label: &str) -> bool {
    let is_reserved = RESERVED.iter().any(|domain| is_within(label, domain));
    let is_open = OPEN.iter().any(|domain| is_within(label, domain));
    !is_reserved || is_open || OWN.contains(&label)
}

/// Whether not even a new node may have this label from itself.
pub(super) fn is_restricted(label: &str) -> bool {
    is_within(label, RESTRICTED)
}

/// Why a label is refused, and what to do.
pub(super) fn not_its_own(node: &str, label: &str) -> String {
    format!("node {node} may not set its label {label}: take it out of edgecore.yaml and use kubectl label node {node}")
}

/// The labels in an object or a patch. Directives of a patch are no labels.
pub(super) fn labels(object: &Value) -> Map<String, Value> {
    entries(&object["metadata"]["labels"])
}

/// The annotations, likewise.
pub(super) fn annotations(object: &Value) -> Map<String, Value> {
    entries(&object["metadata"]["annotations"])
}

fn entries(map: &Value) -> Map<String, Value> {
    let entries = map.as_object().into_iter().flatten();
    entries.filter(|(key, _)| !key.starts_with('$')).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// The Node to create, without labels, and those that it asks for.
pub(super) fn new(node: &str, content: Value) -> Result<(Value, Map<String, Value>), &'static str> {
    let Value::Object(mut object) = content else { return Err("the content is no object") };
    let mut metadata = match object.remove("metadata") {
        Some(Value::Object(metadata)) => metadata,
        None | Some(Value::Null) => Map::new(),
        Some(_) => return Err("metadata is no object"),
    };
    let labels = entries(metadata.get("labels").unwrap_or(&Value::Null));
    metadata.insert("name".to_owned(), json!(node));
    object.insert("metadata".to_owned(), Value::Object(metadata));
    object.insert("apiVersion".to_owned(), json!("v1"));
    object.insert("kind".to_owned(), json!("Node"));
    Ok((Value::Object(object), labels))
}

/// What is passed on of a patch of the status: that, and of the rest what a node may change. A status is not refused for a label.
pub(super) fn status_patch(node: &str, patch: &Value) -> Value {
    let mut metadata = Map::new();
    if let Some(uid) = patch["metadata"].get("uid").filter(|uid| uid.is_string()) {
        metadata.insert("uid".to_owned(), uid.clone());
    }
    let (own, others): (Map<_, _>, Map<_, _>) = labels(patch).into_iter().partition(|(label, _)| may_set(label));
    if !others.is_empty() {
        let labels: Vec<&String> = others.keys().take(8).collect();
        warn!(node, ?labels, "a node may not change these labels of itself; they are left out");
    }
    for (field, entries) in [("labels", own), ("annotations", annotations(patch))] {
        if !entries.is_empty() {
            metadata.insert(field.to_owned(), Value::Object(entries));
        }
    }
    let mut passed = Map::new();
    if !metadata.is_empty() {
        passed.insert("metadata".to_owned(), Value::Object(metadata));
    }
    if let Some(status) = patch.get("status") {
        passed.insert("status".to_owned(), status.clone());
    }
    Value::Object(passed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_that_decide_over_others_are_not_a_nodes_own() {
        for (label, allowed) in [
            ("colour", true),
            ("example.org/colour", true),
            ("notkubernetes.io/x", true),
            ("kubernetes.io/arch", true),
            ("topology.kubernetes.io/zone", true),
            ("node.kubernetes.io/x", true),
            ("sub.kubelet.kubernetes.io/x", true),
            ("kubernetes.io/x", false),
            ("node-role.kubernetes.io/control-plane", false),
            ("node-restriction.kubernetes.io/x", false),
            ("x.node-restriction.kubernetes.io/x", false),
            ("x.k8s.io/x", false),
        ] {
            assert_eq!(may_set(label), allowed, "{label}");
        }
        assert!(is_restricted("x.node-restriction.kubernetes.io/x") && !is_restricted("node-role.kubernetes.io/edge"));
    }

    #[test]
    fn of_a_patch_only_what_a_node_may_change_is_passed_on() {
        let patch = json!({
            "$patch": "replace",
            "metadata": {
                "uid": "u", "ownerReferences": [], "finalizers": [],
                "labels": {"$patch": "replace", "kubernetes.io/arch": "arm64", "node-role.kubernetes.io/control-plane": ""},
                "annotations": {"a": "b", "$retainKeys": []},
            },
            "spec": {"taints": []},
            "status": {"phase": "x"},
        });
        let expected = json!({
            "metadata": {"uid": "u", "labels": {"kubernetes.io/arch": "arm64"}, "annotations": {"a": "b"}},
            "status": {"phase": "x"},
        });
        assert_eq!(status_patch("n1", &patch), expected);
        for odd in [json!("x"), json!([]), json!({"metadata": "x", "status": null}), Value::Null] {
            assert!(status_patch("n1", &odd).get("metadata").is_none(), "{odd}");
        }
    }

    #[test]
    fn odd_nodes_are_refused() {
        for odd in [json!("x"), json!([]), Value::Null, json!({"metadata": "x"}), json!({"metadata": []})] {
            new("n1", odd).expect_err("no Node");
        }
        let (object, labels) = new("n1", json!({"metadata": {"name": "n2", "labels": {"a": "b"}}})).expect("a Node");
        assert_eq!((&object["metadata"]["name"], &labels["a"]), (&json!("n1"), &json!("b")));
        new("n1", json!({})).expect("a Node without anything");
    }
}
