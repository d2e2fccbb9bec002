//! Whether a node is alive, and what follows from it, without IO: conditions, taints, evictions.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::object::{Object, time_text};
use crate::scheduler::taints;

/// So long may a node be silent before its conditions become `Unknown` (as upstream).
pub const GRACE: Duration = Duration::from_secs(40);
/// The label by which KubeEdge marks edge nodes.
pub const EDGE_LABEL: &str = "node-role.kubernetes.io/edge";

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// The conditions that a kubelet owns and that become `Unknown` with it.
const OWNED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];
/// Taints that follow from conditions: (condition, status, taint).
const BY_CONDITION: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
];
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// What a node last said, and when we heard it by our own clock: clocks of edge nodes drift.
#[derive(Debug, Clone, PartialEq)]
pub struct Heartbeat {
    renewed: Value,
    reported: Value,
    heard: Timestamp,
}

impl Heartbeat {
    /// The first look at a node. If it spoke before, its silence is counted from now on.
    pub fn new(node: &Object, lease: Option<&Object>, now: Timestamp) -> Self {
        let (renewed, reported) = signs(node, lease);
        Self { renewed, reported, heard: now }
    }

    /// Another look: any new sign of life counts from now.
    pub fn observe(&mut self, node: &Object, lease: Option<&Object>, now: Timestamp) {
        let (renewed, reported) = signs(node, lease);
        if renewed != self.renewed || reported != self.reported {
            *self = Self { renewed, reported, heard: now };
        }
    }

    /// How long the node may still be silent; `None` if it has been silent for too long.
    pub fn remaining(&self, node: &Object, grace: Duration, now: Timestamp) -> Option<Duration> {
        // A node that never spoke gets a little longer (as upstream: 60 s).
        let grace = if node.condition("Ready").is_some() { grace } else { grace * 3 / 2 };
        let silent = Duration::try_from(now.duration_since(self.heard)).unwrap_or_default();
        grace.checked_sub(silent).filter(|rest| !rest.is_zero())
    }
}

fn signs(node: &Object, lease: Option<&Object>) -> (Value, Value) {
    let renewed = lease.map(|l| l.at("/spec/renewTime").clone()).unwrap_or_default();
    // Our own `Unknown` is no sign of life.
    let ready = node.condition("Ready").filter(|c| c["status"] != "Unknown");
    (renewed, ready.map(|c| c["lastHeartbeatTime"].clone()).unwrap_or_default())
}

/// The conditions of a node that fell silent; `None` if they say so already.
pub fn silent_conditions(node: &Object, now: Timestamp) -> Option<Vec<Value>> {
    let mut conditions = node.list("/status/conditions").to_vec();
    let mut changed = false;
    for kind in OWNED {
        match conditions.iter_mut().find(|c| c["type"] == kind) {
            Some(c) if c["status"] == "Unknown" => {}
            Some(c) => {
                c["status"] = json!("Unknown");
                c["reason"] = json!("NodeStatusUnknown");
                c["message"] = json!("Kubelet stopped posting node status.");
                c["lastTransitionTime"] = json!(time_text(now));
                changed = true;
            }
            None => {
                let since = node.text("/metadata/creationTimestamp");
                conditions.push(json!({"type": kind, "status": "Unknown", "reason": "NodeStatusNeverUpdated",
                    "message": "Kubelet never posted node status.", "lastHeartbeatTime": since,
                    "lastTransitionTime": time_text(now)}));
                changed = true;
            }
        }
    }
    changed.then_some(conditions)
}

/// The taints that the node should have, if they differ from those it has. Foreign taints stay untouched.
pub fn wanted_taints(node: &Object, now: Timestamp) -> Option<Vec<Value>> {
    let status = |kind: &str| node.condition(kind).and_then(|c| c["status"].as_str()).unwrap_or_default().to_owned();
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    // A node that never reported is as little ready as one that says so.
    let silent = node.condition("Ready").is_none();
    for (kind, value, taint) in BY_CONDITION {
        if status(kind) == value || (silent && taint == NOT_READY) {
            wanted.push((taint, "NoSchedule"));
            if kind == "Ready" && !silent {
                wanted.push((taint, "NoExecute"));
            }
        }
    }
    if node.at("/spec/unschedulable") == true {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    let ours = |t: &Value| {
        let key = t["key"].as_str().unwrap_or_default();
        let managed = key == UNSCHEDULABLE || BY_CONDITION.iter().any(|(_, _, k)| *k == key);
        let executes = t["effect"] == "NoExecute" && (key == NOT_READY || key == UNREACHABLE);
        managed && (t["effect"] == "NoSchedule" || executes)
    };
    let is = |t: &Value, (key, effect): (&str, &str)| t["key"] == key && t["effect"] == effect;
    let old = node.list("/spec/taints");
    let mut new: Vec<Value> = old.iter().filter(|t| !ours(t) || wanted.iter().any(|w| is(t, *w))).cloned().collect();
    for (key, effect) in wanted {
        if !new.iter().any(|t| is(t, (key, effect))) {
            let mut taint = json!({"key": key, "effect": effect});
            taint["timeAdded"] = json!(time_text(now));
            new.push(taint);
        }
    }
    (new != old).then_some(new)
}

/// The node belongs to the edge: silence is normal there, and its pods go on.
pub fn is_edge(node: &Object) -> bool {
    node.label(EDGE_LABEL).is_some()
}

/// What a `NoExecute` taint means for one pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Eviction {
    /// It may stay for good.
    Stay,
    /// It may stay so long.
    Later(Duration),
    /// It has to go.
    Now,
}

/// Whether a pod has to leave its node. An edge node that is merely offline keeps its pods.
pub fn eviction(node: &Object, pod: &Object, now: Timestamp) -> Eviction {
    let tolerations = pod.list("/spec/tolerations");
    let mut earliest: Option<Duration> = None;
    for taint in node.list("/spec/taints").iter().filter(|t| t["effect"] == "NoExecute") {
        let silence = taint["key"] == UNREACHABLE || taint["key"] == NOT_READY;
        if silence && is_edge(node) {
            continue;
        }
        let mut covering = tolerations.iter().filter(|t| taints::tolerates_one(t, taint)).peekable();
        if covering.peek().is_none() {
            return Eviction::Now;
        }
        let Some(seconds) = covering.filter_map(|t| t["tolerationSeconds"].as_i64()).min() else { continue };
        let allowed = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        let since: Option<Timestamp> = taint["timeAdded"].as_str().and_then(|t| t.parse().ok());
        let past = since.and_then(|s| Duration::try_from(now.duration_since(s)).ok()).unwrap_or_default();
        match allowed.checked_sub(past).filter(|d| !d.is_zero()) {
            Some(rest) => earliest = Some(earliest.map_or(rest, |e| e.min(rest))),
            None => return Eviction::Now,
        }
    }
    earliest.map_or(Eviction::Stay, Eviction::Later)
}

/// The conditions of a pod whose node fell silent: not ready. `None` if they say so already, or the pod never was.
pub fn unready_pod_conditions(pod: &Object, now: Timestamp) -> Option<Vec<Value>> {
    let mut conditions = pod.list("/status/conditions").to_vec();
    let ready = conditions.iter_mut().find(|c| c["type"] == "Ready" && c["status"] == "True")?;
    ready["status"] = json!("False");
    ready["lastTransitionTime"] = json!(time_text(now));
    ready["reason"] = json!("NodeNotReady");
    Some(conditions)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).expect("time")
    }

    fn node(ready: &str, change: Value) -> Object {
        let mut node = json!({"metadata": {"name": "n", "labels": {}}, "spec": {},
            "status": {"conditions": [{"type": "Ready", "status": ready, "lastHeartbeatTime": "2026-11-24T12:00:00Z"}]}});
        for (pointer, value) in change.as_object().into_iter().flatten() {
            let (parent, field) = pointer.rsplit_once('/').expect("pointer");
            node.pointer_mut(parent).expect("parent")[field] = value.clone();
        }
        node.into()
    }

    fn keys(taints: &[Value]) -> Vec<String> {
        taints
            .iter()
            .map(|t| format!("{}:{}", t["key"].as_str().unwrap_or(""), t["effect"].as_str().unwrap_or("")))
            .collect()
    }

    #[test]
    fn silence_counts_by_our_own_clock() {
        let lease = |t: &str| Object::from(json!({"spec": {"renewTime": t}}));
        let (node, first) = (node("True", json!({})), lease("2026-01-01T00:00:00.000000Z"));
        let mut beat = Heartbeat::new(&node, Some(&first), at(0));
        assert_eq!(beat.remaining(&node, GRACE, at(39)), Some(Duration::from_secs(1)));
        beat.observe(&node, Some(&first), at(39));
        assert_eq!(beat.remaining(&node, GRACE, at(40)), None);
        beat.observe(&node, Some(&lease("2026-01-01T00:00:10.000000Z")), at(45));
        assert_eq!(beat.remaining(&node, GRACE, at(50)), Some(Duration::from_secs(35)));
    }

    #[test]
    fn a_silent_node_is_unknown_once() {
        let silent = silent_conditions(&node("True", json!({})), at(0)).expect("changed");
        assert_eq!(silent[0]["reason"], "NodeStatusUnknown");
        assert_eq!(silent[3]["reason"], "NodeStatusNeverUpdated");
        let after = node("True", json!({"/status/conditions": silent}));
        assert_eq!(silent_conditions(&after, at(1)), None);
    }

    #[test]
    fn taints_follow_the_conditions_and_leave_others_alone() {
        let own = json!({"key": "own", "effect": "NoExecute"});
        for (ready, spec, expected) in [
            ("True", json!({}), None),
            (
                "False",
                json!({}),
                Some(vec!["node.kubernetes.io/not-ready:NoSchedule", "node.kubernetes.io/not-ready:NoExecute"]),
            ),
            (
                "Unknown",
                json!({"/spec/taints": [own]}),
                Some(vec![
                    "own:NoExecute",
                    "node.kubernetes.io/unreachable:NoSchedule",
                    "node.kubernetes.io/unreachable:NoExecute",
                ]),
            ),
            ("True", json!({"/spec/unschedulable": true}), Some(vec!["node.kubernetes.io/unschedulable:NoSchedule"])),
            (
                "True",
                json!({"/spec/taints": [{"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}]}),
                Some(vec![]),
            ),
            ("True", json!({"/status/conditions": []}), Some(vec!["node.kubernetes.io/not-ready:NoSchedule"])),
        ] {
            let got = wanted_taints(&node(ready, spec.clone()), at(0));
            assert_eq!(
                got.as_deref().map(keys),
                expected.map(|e| e.into_iter().map(str::to_owned).collect()),
                "{ready} {spec}"
            );
        }
    }

    #[test]
    fn an_edge_node_that_is_offline_keeps_its_pods() {
        let taint = |key: &str| json!([{"key": key, "effect": "NoExecute", "timeAdded": time_text(at(0))}]);
        let edge = json!({EDGE_LABEL: ""});
        let pod = |tolerations: Value| Object::from(json!({"spec": {"tolerations": tolerations}}));
        let patient =
            json!([{"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}]);
        for (labels, key, tolerations, expected) in [
            (json!({}), UNREACHABLE, json!([]), Eviction::Now),
            (json!({}), UNREACHABLE, patient.clone(), Eviction::Later(Duration::from_secs(200))),
            (json!({}), UNREACHABLE, json!([{"operator": "Exists"}]), Eviction::Stay),
            (edge.clone(), UNREACHABLE, json!([]), Eviction::Stay),
            (edge.clone(), NOT_READY, patient, Eviction::Stay),
            (edge, "maintenance", json!([]), Eviction::Now),
        ] {
            let node = node("Unknown", json!({"/metadata/labels": labels, "/spec/taints": taint(key)}));
            assert_eq!(eviction(&node, &pod(tolerations.clone()), at(100)), expected, "{key} {tolerations}");
        }
    }
}
