//! Whether a node is one of those that a selector means (node affinity of pods and of PersistentVolumes).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};

/// Terms are alternatives; an empty one, or none, selects no node.
pub fn matches(selector: &NodeSelector, name: &str, labels: &BTreeMap<String, String>) -> bool {
    selector.node_selector_terms.iter().any(|term| term_matches(term, name, labels))
}

fn term_matches(term: &NodeSelectorTerm, name: &str, labels: &BTreeMap<String, String>) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let field = |key: &str| (key == "metadata.name").then_some(name);
    !(expressions.is_empty() && fields.is_empty())
        && expressions.iter().all(|wanted| holds(wanted, labels.get(&wanted.key).map(String::as_str)))
        && fields.iter().all(|wanted| holds(wanted, field(&wanted.key)))
}

fn holds(wanted: &NodeSelectorRequirement, found: Option<&str>) -> bool {
    let values = wanted.values.as_deref().unwrap_or_default();
    let listed = || found.is_some_and(|found| values.iter().any(|value| value == found));
    let number = |text: Option<&str>| text.and_then(|text| text.parse::<i64>().ok());
    let compared = || match values {
        [value] => Some((number(found)?, number(Some(value))?)),
        _ => None,
    };
    match wanted.operator.as_str() {
        "In" => listed(),
        "NotIn" => !listed(),
        "Exists" => found.is_some(),
        "DoesNotExist" => found.is_none(),
        "Gt" => compared().is_some_and(|(found, value)| found > value),
        "Lt" => compared().is_some_and(|(found, value)| found < value),
        // An operator that nobody knows selects nothing.
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(terms: Value) -> bool {
        let labels = BTreeMap::from([("zone".to_owned(), "a".to_owned()), ("disks".to_owned(), "4".to_owned())]);
        let selector = serde_json::from_value(json!({"nodeSelectorTerms": terms})).unwrap();
        matches(&selector, "n1", &labels)
    }

    #[test]
    fn operators() {
        for (key, operator, values, result) in [
            ("zone", "In", json!(["a", "b"]), true),
            ("zone", "In", json!(["b"]), false),
            ("none", "In", json!(["a"]), false),
            ("zone", "NotIn", json!(["b"]), true),
            ("none", "NotIn", json!(["b"]), true),
            ("zone", "NotIn", json!(["a"]), false),
            ("zone", "Exists", json!([]), true),
            ("none", "Exists", json!([]), false),
            ("none", "DoesNotExist", json!([]), true),
            ("zone", "DoesNotExist", json!([]), false),
            ("disks", "Gt", json!(["3"]), true),
            ("disks", "Gt", json!(["4"]), false),
            ("disks", "Lt", json!(["5"]), true),
            ("zone", "Lt", json!(["5"]), false),
            ("disks", "Gt", json!([]), false),
            ("zone", "Like", json!(["a"]), false),
        ] {
            let expression = json!({"key": key, "operator": operator, "values": values});
            assert_eq!(check(json!([{"matchExpressions": [expression]}])), result, "{key} {operator} {values}");
        }
    }

    #[test]
    fn terms_are_alternatives_and_their_parts_are_not() {
        let zone = |value: &str| json!({"key": "zone", "operator": "In", "values": [value]});
        let name = |value: &str| json!({"key": "metadata.name", "operator": "In", "values": [value]});
        assert!(check(json!([{"matchExpressions": [zone("b")]}, {"matchExpressions": [zone("a")]}])));
        assert!(!check(json!([{"matchExpressions": [zone("a"), zone("b")]}])));
        assert!(check(json!([{"matchFields": [name("n1")]}])));
        assert!(!check(json!([{"matchExpressions": [zone("a")], "matchFields": [name("n2")]}])));
        assert!(!check(json!([{}])));
        assert!(!check(json!([])));
    }
}
