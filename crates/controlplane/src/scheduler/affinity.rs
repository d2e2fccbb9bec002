//! Required pod affinity and anti-affinity, and hard topology spread constraints.

use std::collections::HashMap;

use serde_json::Value;

use super::node::NodeInfo;
use crate::object::Object;
use crate::selector;

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";

/// The required terms of a pod's affinity or anti-affinity.
fn terms<'a>(pod: &'a Object, kind: &str) -> &'a [Value] {
    pod.at("/spec/affinity")[kind][REQUIRED].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Whether `candidate` is one of the pods that a term of `owner` means. Namespaces by label are not looked up: such a term
/// means every namespace only if its selector is empty.
fn term_means(term: &Value, owner: &Object, candidate: &Object) -> bool {
    let names = term["namespaces"].as_array().map(Vec::as_slice).unwrap_or_default();
    let by_label = &term["namespaceSelector"];
    let namespace = if names.is_empty() && by_label.is_null() {
        candidate.namespace() == owner.namespace()
    } else {
        names.iter().any(|n| n == candidate.namespace()) || by_label.as_object().is_some_and(serde_json::Map::is_empty)
    };
    namespace && selector::matches(&term["labelSelector"], candidate.labels())
}

fn topology<'a>(term: &Value, node: &'a Object) -> Option<&'a str> {
    node.label(term["topologyKey"].as_str().unwrap_or_default())
}

/// A pod somewhere in the same topology domain as `node` fits the predicate.
fn in_domain(term: &Value, node: &Object, nodes: &[NodeInfo], fits: impl Fn(&Object) -> bool) -> bool {
    let Some(domain) = topology(term, node) else { return false };
    nodes.iter().filter(|n| topology(term, &n.node) == Some(domain)).any(|n| n.pods.iter().any(&fits))
}

/// Why this node does not suit the pod's company, in upstream's words.
pub fn objection(pod: &Object, node: &NodeInfo, nodes: &[NodeInfo]) -> Option<&'static str> {
    for term in terms(pod, "podAffinity") {
        let company = in_domain(term, &node.node, nodes, |p| term_means(term, pod, p));
        // The first pod of a group that wants to be together may go anywhere that has the topology label.
        let first = term_means(term, pod, pod)
            && topology(term, &node.node).is_some()
            && !nodes.iter().any(|n| n.pods.iter().any(|p| term_means(term, pod, p)));
        if !company && !first {
            return Some("node(s) didn't match pod affinity rules");
        }
    }
    for term in terms(pod, "podAntiAffinity") {
        if in_domain(term, &node.node, nodes, |p| term_means(term, pod, p)) {
            return Some("node(s) didn't match pod anti-affinity rules");
        }
    }
    let hostile = nodes.iter().any(|other| {
        other.pods.iter().any(|p| {
            terms(p, "podAntiAffinity").iter().any(|term| {
                let same = topology(term, &other.node).is_some_and(|d| topology(term, &node.node) == Some(d));
                same && term_means(term, p, pod)
            })
        })
    });
    if hostile {
        return Some("node(s) didn't satisfy existing pods anti-affinity rules");
    }
    spread(pod, node, nodes)
}

fn spread(pod: &Object, node: &NodeInfo, nodes: &[NodeInfo]) -> Option<&'static str> {
    for constraint in pod.list("/spec/topologySpreadConstraints") {
        if constraint["whenUnsatisfiable"] == "ScheduleAnyway" {
            continue;
        }
        let Some(domain) = topology(constraint, &node.node) else {
            return Some("node(s) didn't match pod topology spread constraints (missing required label)");
        };
        let mut counts: HashMap<&str, i64> = HashMap::new();
        for other in nodes.iter().filter(|n| selector::pod_accepts_node(pod.at("/spec"), &n.node)) {
            let Some(d) = topology(constraint, &other.node) else { continue };
            let same = |p: &&Object| {
                p.namespace() == pod.namespace()
                    && !p.is_deleting()
                    && selector::matches(&constraint["labelSelector"], p.labels())
            };
            *counts.entry(d).or_default() += i64::try_from(other.pods.iter().filter(same).count()).unwrap_or(i64::MAX);
        }
        let own = i64::from(selector::matches(&constraint["labelSelector"], pod.labels()));
        let least = counts.values().copied().min().unwrap_or(0);
        let here = counts.get(domain).copied().unwrap_or(0) + own;
        if here - least > constraint["maxSkew"].as_i64().unwrap_or(1) {
            return Some("node(s) didn't match pod topology spread constraints");
        }
    }
    None
}
