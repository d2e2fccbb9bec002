//! The decisions of the ReplicaSet controller, without IO: which pods belong to it, how many to make, which to delete.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::object::{Object, condition, time_text};
use crate::pods;
use crate::selector;

/// At most so many pods are made or deleted at once (as upstream).
pub const BURST: usize = 500;

/// What a controller does with an object that its selector or its UID points at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// It is already its own and the selector still matches.
    Own,
    /// Nobody manages it and the selector matches: take it.
    Adopt,
    /// It is its own but the selector no longer matches: let go.
    Release,
    /// Somebody else's, or nobody's and not wanted.
    Ignore,
}

/// How `owner` with `selector` stands to `object`. A controller that is being deleted neither takes nor releases.
pub fn claim(owner: &Object, selector: &Value, object: &Object) -> Claim {
    let matches = selector::matches(selector, object.labels());
    match object.controller() {
        Some(o) if o.uid != owner.uid() => Claim::Ignore,
        Some(_) if matches => Claim::Own,
        Some(_) if owner.is_deleting() => Claim::Ignore,
        Some(_) => Claim::Release,
        None if matches && !owner.is_deleting() && !object.is_deleting() => Claim::Adopt,
        None => Claim::Ignore,
    }
}

/// What to do about the number of pods.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// There are as many as wanted.
    Nothing,
    /// Make so many.
    Create(usize),
    /// Delete these.
    Delete(Vec<Object>),
}

/// Compares the active pods with `spec.replicas`. `related` are the active pods of all ReplicaSets of the same owner.
pub fn plan(set: &Object, active: &[Object], related: &[Object], now: Timestamp) -> Step {
    let wanted = usize::try_from(set.int("/spec/replicas").unwrap_or(1)).unwrap_or(0);
    if set.is_deleting() {
        return Step::Nothing;
    }
    match active.len().cmp(&wanted) {
        Ordering::Equal => Step::Nothing,
        Ordering::Less => Step::Create((wanted - active.len()).min(BURST)),
        Ordering::Greater => {
            let mut neighbours: HashMap<&str, usize> = HashMap::new();
            for pod in related.iter().filter(|p| pods::is_active(p)) {
                *neighbours.entry(pod.text("/spec/nodeName")).or_default() += 1;
            }
            let mut ranked = active.to_vec();
            ranked.sort_by(|a, b| deletion_order(a, b, &neighbours, now));
            ranked.truncate((active.len() - wanted).min(BURST));
            Step::Delete(ranked)
        }
    }
}

/// Which of two pods goes first: the one that does or will do the least work (as upstream ranks them).
fn deletion_order(a: &Object, b: &Object, neighbours: &HashMap<&str, usize>, now: Timestamp) -> Ordering {
    let assigned = |p: &Object| !p.text("/spec/nodeName").is_empty();
    let phase = |p: &Object| match p.text("/status/phase") {
        "Running" => 2,
        "Unknown" => 1,
        _ => 0,
    };
    let cost = |p: &Object| -> i32 {
        p.annotation("controller.kubernetes.io/pod-deletion-cost").and_then(|c| c.parse().ok()).unwrap_or(0)
    };
    let crowd = |p: &Object| neighbours.get(p.text("/spec/nodeName")).copied().unwrap_or(0);
    let ready_for = |p: &Object| pods::ready_since(p).map(|t| now.duration_since(t));
    assigned(a)
        .cmp(&assigned(b))
        .then_with(|| phase(a).cmp(&phase(b)))
        .then_with(|| pods::is_ready(a).cmp(&pods::is_ready(b)))
        .then_with(|| cost(a).cmp(&cost(b)))
        .then_with(|| crowd(b).cmp(&crowd(a)))
        .then_with(|| ready_for(a).cmp(&ready_for(b)))
        .then_with(|| pods::restarts(b).cmp(&pods::restarts(a)))
        .then_with(|| b.created().cmp(&a.created()))
        .then_with(|| a.name().cmp(b.name()))
}

/// The status that `set` should have, and when to look again because a pod becomes available by time alone.
pub fn status(
    set: &Object,
    active: &[Object],
    failure: Option<(&str, &str)>,
    now: Timestamp,
) -> (Value, Option<Duration>) {
    let min_ready =
        Duration::from_secs(set.int("/spec/minReadySeconds").and_then(|s| u64::try_from(s).ok()).unwrap_or(0));
    let template_labels = set.at("/spec/template/metadata/labels").as_object();
    let (mut labelled, mut ready, mut available, mut wait) = (0, 0, 0, None::<Duration>);
    for pod in active {
        let has = |(k, v): (&String, &Value)| pod.label(k) == v.as_str();
        labelled += i64::from(template_labels.into_iter().flatten().all(has));
        ready += i64::from(pods::is_ready(pod));
        match pods::is_available(pod, min_ready, now) {
            Ok(()) => available += 1,
            Err(Some(rest)) => wait = Some(wait.map_or(rest, |w| w.min(rest))),
            Err(None) => {}
        }
    }
    let mut conditions = set.list("/status/conditions").to_vec();
    match failure {
        Some((reason, message)) => {
            if condition(&conditions, "ReplicaFailure").is_none_or(|c| c["reason"] != reason) {
                pods::set_condition(&mut conditions, "ReplicaFailure", "True", reason, message, &time_text(now));
            }
        }
        None => conditions.retain(|c| c["type"] != "ReplicaFailure"),
    }
    let mut status = json!({"replicas": active.len(), "observedGeneration": set.generation()});
    for (field, value) in
        [("fullyLabeledReplicas", labelled), ("readyReplicas", ready), ("availableReplicas", available)]
    {
        if value > 0 {
            status[field] = json!(value);
        }
    }
    if !conditions.is_empty() {
        status["conditions"] = Value::Array(conditions);
    }
    (status, wait)
}

/// Whether two ReplicaSet states are of the same revision family: managed by the same owner, or the very same set.
pub fn related(set: &Object, other: &Object) -> bool {
    match set.controller() {
        Some(owner) => other.is_controlled_by(owner.uid),
        None => set.uid() == other.uid(),
    }
}
