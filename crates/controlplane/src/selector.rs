//! `metav1.LabelSelector` and the node selector terms of pods, matched against objects.

use serde_json::{Map, Value};

use crate::object::Object;

/// Whether a `metav1.LabelSelector` matches these labels. An empty selector matches everything, a missing one nothing, an
/// unknown operator nothing.
pub fn matches(selector: &Value, labels: Option<&Map<String, Value>>) -> bool {
    let Some(selector) = selector.as_object() else { return false };
    let label = |key: &str| labels.and_then(|l| l.get(key)).and_then(Value::as_str);
    let simple = selector.get("matchLabels").and_then(Value::as_object);
    let simple = simple.into_iter().flatten().all(|(k, v)| label(k) == v.as_str());
    simple
        && selector
            .get("matchExpressions")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .all(|e| requirement(e, label))
}

/// A selector that names nothing: for a workload that is a mistake, it would own everything.
pub fn is_empty(selector: &Value) -> bool {
    selector["matchLabels"].as_object().is_none_or(Map::is_empty)
        && selector["matchExpressions"].as_array().is_none_or(Vec::is_empty)
}

/// Whether the pod's `nodeSelector` and required node affinity accept the node.
pub fn pod_accepts_node(pod_spec: &Value, node: &Object) -> bool {
    let wanted = pod_spec["nodeSelector"].as_object();
    if !wanted.into_iter().flatten().all(|(k, v)| node.label(k) == v.as_str()) {
        return false;
    }
    let required = &pod_spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    required.is_null() || node_selector(required, node)
}

/// Whether one of the terms of a `v1.NodeSelector` accepts the node. An empty term accepts nothing.
pub fn node_selector(selector: &Value, node: &Object) -> bool {
    selector["nodeSelectorTerms"].as_array().into_iter().flatten().any(|term| node_term(term, node))
}

/// Whether one `v1.NodeSelectorTerm` accepts the node.
pub fn node_term(term: &Value, node: &Object) -> bool {
    let expressions = term["matchExpressions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let fields = term["matchFields"].as_array().map(Vec::as_slice).unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    expressions.iter().all(|e| requirement(e, |key| node.label(key)))
        && fields.iter().all(|e| requirement(e, |key| (key == "metadata.name").then(|| node.name())))
}

fn requirement<'a>(e: &Value, label: impl Fn(&str) -> Option<&'a str>) -> bool {
    let found = label(e["key"].as_str().unwrap_or_default());
    let values = || e["values"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let compare = |greater: bool| {
        let (Some(found), Some(bound)) = (found, values().next()) else { return false };
        match (found.parse::<i64>(), bound.parse::<i64>()) {
            (Ok(found), Ok(bound)) => {
                if greater {
                    found > bound
                } else {
                    found < bound
                }
            }
            _ => false,
        }
    };
    match e["operator"].as_str().unwrap_or_default() {
        "In" => found.is_some_and(|f| values().any(|v| v == f)),
        "NotIn" => found.is_none_or(|f| values().all(|v| v != f)),
        "Exists" => found.is_some(),
        "DoesNotExist" => found.is_none(),
        "Gt" => compare(true),
        "Lt" => compare(false),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn label_selectors() {
        let labels = json!({"app": "web", "tier": "2"});
        for (selector, expected) in [
            (json!({}), true),
            (json!(null), false),
            (json!({"matchLabels": {"app": "web"}}), true),
            (json!({"matchLabels": {"app": "db"}}), false),
            (json!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["x", "web"]}]}), true),
            (json!({"matchExpressions": [{"key": "no", "operator": "NotIn", "values": ["x"]}]}), true),
            (json!({"matchExpressions": [{"key": "no", "operator": "Exists"}]}), false),
            (json!({"matchExpressions": [{"key": "no", "operator": "DoesNotExist"}]}), true),
            (json!({"matchExpressions": [{"key": "app", "operator": "Sometimes"}]}), false),
        ] {
            assert_eq!(matches(&selector, labels.as_object()), expected, "{selector}");
        }
    }

    #[test]
    fn node_terms() {
        let node = Object::from(json!({"metadata": {"name": "n1", "labels": {"zone": "a", "size": "5"}}}));
        let affinity = |term: Value| json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}});
        for (spec, expected) in [
            (json!({}), true),
            (json!({"nodeSelector": {"zone": "a"}}), true),
            (json!({"nodeSelector": {"zone": "b"}}), false),
            (affinity(json!({})), false),
            (affinity(json!({"matchExpressions": [{"key": "size", "operator": "Gt", "values": ["4"]}]})), true),
            (affinity(json!({"matchExpressions": [{"key": "size", "operator": "Lt", "values": ["4"]}]})), false),
            (affinity(json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]})), true),
            (affinity(json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n2"]}]})), false),
        ] {
            assert_eq!(pod_accepts_node(&spec, &node), expected, "{spec}");
        }
    }
}
