//! The pods of a Job: how they are made, how they ended, and which index of an indexed Job they work on.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::object::Object;
use crate::pods;

/// Keeps an ended pod until it is counted.
pub const TRACKING: &str = "batch.kubernetes.io/job-tracking";
/// The index of a pod, as label and annotation.
const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// The same as a variable of its containers.
const INDEX_VARIABLE: &str = "JOB_COMPLETION_INDEX";

/// How a pod ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Well.
    Succeeded,
    /// Badly, or it was deleted before it could end well.
    Failed,
}

/// Whether the Job's pods have indexes.
pub fn is_indexed(job: &Object) -> bool {
    job.text("/spec/completionMode") == "Indexed"
}

/// How the pod ended, if it has. One that is being deleted counts as failed at once, unless it is to be replaced only after
/// its end.
pub fn end(job: &Object, pod: &Object) -> Option<End> {
    match pod.text("/status/phase") {
        "Succeeded" => Some(End::Succeeded),
        "Failed" => Some(End::Failed),
        _ if pod.is_deleting() && !replaces_late(job) => Some(End::Failed),
        _ => None,
    }
}

/// Whether a pod is replaced only when the one before has ended.
pub fn replaces_late(job: &Object) -> bool {
    job.text("/spec/podReplacementPolicy") == "Failed"
}

/// When the pod ended, as far as it is known.
pub fn ended_at(pod: &Object, now: Timestamp) -> Timestamp {
    let containers = pod.list("/status/containerStatuses").iter();
    let ended = containers.filter_map(|c| c["state"]["terminated"]["finishedAt"].as_str()?.parse().ok()).max();
    let unready = || pod.condition("Ready").and_then(|c| c["lastTransitionTime"].as_str()?.parse().ok());
    let deleted = || pod.time("/metadata/deletionTimestamp").filter(|time| *time <= now);
    ended.or_else(unready).or_else(deleted).unwrap_or(now)
}

/// How often the containers of the pods were started again.
pub fn restarts(pod: &Object) -> i64 {
    let lists = ["/status/initContainerStatuses", "/status/containerStatuses"];
    let statuses = lists.iter().flat_map(|list| pod.list(list));
    statuses.filter_map(|status| status["restartCount"].as_i64()).sum()
}

/// The index that a pod works on.
pub fn index(pod: &Object) -> Option<i64> {
    pod.annotation(INDEX)?.parse().ok()
}

/// A new pod of the Job.
pub fn make(job: &Object, index: Option<i64>) -> Value {
    let mut pod = pods::from_template(job, "batch/v1", "Job", job.at("/spec/template"));
    let mut finalizers = pod["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    finalizers.push(json!(TRACKING));
    pod["metadata"]["finalizers"] = json!(finalizers);
    let Some(index) = index else { return pod };
    pod["metadata"]["generateName"] = json!(format!("{}-{index}-", job.name()));
    for map in ["labels", "annotations"] {
        pod["metadata"][map][INDEX] = json!(index.to_string());
    }
    pod["spec"]["hostname"] = json!(format!("{}-{index}", job.name()));
    let field = json!({"fieldRef": {"fieldPath": format!("metadata.annotations['{INDEX}']")}});
    for list in ["initContainers", "containers"] {
        let containers = pod["spec"].get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let mut env = container["env"].as_array().cloned().unwrap_or_default();
            if !env.iter().any(|variable| variable["name"] == INDEX_VARIABLE) {
                env.push(json!({"name": INDEX_VARIABLE, "valueFrom": field}));
            }
            container["env"] = json!(env);
        }
    }
    pod
}

/// Reads `0-2,5`.
pub fn parse_indexes(text: &str) -> BTreeSet<i64> {
    let mut found = BTreeSet::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<i64>(), last.parse::<i64>()) {
            found.extend(first..=last);
        }
    }
    found
}

/// Writes `0-2,5`.
pub fn indexes_text(indexes: &BTreeSet<i64>) -> String {
    let mut ranges: Vec<(i64, i64)> = Vec::new();
    for index in indexes {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *index => *last = *index,
            _ => ranges.push((*index, *index)),
        }
    }
    let parts = ranges.iter().map(|(first, last)| match last - first {
        0 => first.to_string(),
        1 => format!("{first},{last}"),
        _ => format!("{first}-{last}"),
    });
    parts.collect::<Vec<String>>().join(",")
}
