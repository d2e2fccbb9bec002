//! The status of a Deployment: counts and the conditions `Available`, `Progressing` and `ReplicaFailure`.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::view::{Settings, count, size};
use crate::object::{Object, condition, time_text};

/// The counts of one status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counts {
    replicas: i64,
    updated: i64,
    ready: i64,
    available: i64,
}

impl Counts {
    fn stored(deployment: &Object) -> Self {
        let n = |field: &str| deployment.at("/status")[field].as_i64().unwrap_or(0);
        Self {
            replicas: n("replicas"),
            updated: n("updatedReplicas"),
            ready: n("readyReplicas"),
            available: n("availableReplicas"),
        }
    }

    fn complete(self, wanted: i64) -> bool {
        self.updated == wanted && self.replicas == wanted && self.available == wanted
    }

    fn progressed_from(self, old: Self) -> bool {
        self.updated > old.updated
            || self.replicas - self.updated < old.replicas - old.updated
            || self.ready > old.ready
            || self.available > old.available
    }
}

/// Something that happened in this round besides what the counts tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happened<'a> {
    /// Nothing.
    Nothing,
    /// The ReplicaSet of the current template was made.
    Created(&'a str),
    /// Making it failed.
    CreateFailed(&'a str),
}

/// The status that the Deployment should have, and when to look again for the progress deadline.
pub fn status(
    deployment: &Object,
    current: Option<&Object>,
    sets: &[Object],
    happened: Happened<'_>,
    now: Timestamp,
) -> (Value, Option<Duration>) {
    let settings = Settings::of(deployment);
    let counts = Counts {
        replicas: sets.iter().map(|s| count(s, "replicas")).sum(),
        updated: current.map_or(0, |s| count(s, "replicas")),
        ready: sets.iter().map(|s| count(s, "readyReplicas")).sum(),
        available: sets.iter().map(|s| count(s, "availableReplicas")).sum(),
    };
    let mut conditions = deployment.list("/status/conditions").to_vec();
    let now_text = time_text(now);
    let mut set = |kind: &str, status: &str, reason: &str, message: &str, touch: bool| {
        put(&mut conditions, kind, status, reason, message, &now_text, touch);
    };
    if counts.available >= settings.replicas - settings.max_unavailable {
        set("Available", "True", "MinimumReplicasAvailable", "Deployment has minimum availability.", false);
    } else {
        set(
            "Available",
            "False",
            "MinimumReplicasUnavailable",
            "Deployment does not have minimum availability.",
            false,
        );
    }
    let wait = progress(&mut conditions, deployment, &settings, current, counts, happened, now);
    replica_failure(&mut conditions, sets);

    let wanted_total: i64 = sets.iter().map(size).sum();
    let mut status = json!({"observedGeneration": deployment.generation(), "conditions": conditions});
    for (field, value) in [
        ("replicas", counts.replicas),
        ("updatedReplicas", counts.updated),
        ("readyReplicas", counts.ready),
        ("availableReplicas", counts.available),
        ("unavailableReplicas", (wanted_total - counts.available).max(0)),
        ("collisionCount", deployment.int("/status/collisionCount").unwrap_or(0)),
    ] {
        if value > 0 {
            status[field] = json!(value);
        }
    }
    (status, wait)
}

fn progress(
    conditions: &mut Vec<Value>,
    deployment: &Object,
    settings: &Settings,
    current: Option<&Object>,
    counts: Counts,
    happened: Happened<'_>,
    now: Timestamp,
) -> Option<Duration> {
    let Some(deadline) = settings.progress_deadline else {
        conditions.retain(|c| c["type"] != "Progressing");
        return None;
    };
    let now_text = time_text(now);
    let old = condition(conditions, "Progressing").cloned();
    let reason = old.as_ref().and_then(|c| c["reason"].as_str()).unwrap_or_default().to_owned();
    let subject = current
        .map_or_else(|| format!("Deployment \"{}\"", deployment.name()), |s| format!("ReplicaSet \"{}\"", s.name()));
    if settings.paused {
        if reason != "ProgressDeadlineExceeded" {
            put(conditions, "Progressing", "Unknown", "DeploymentPaused", "Deployment is paused", &now_text, false);
        }
        return None;
    }
    match happened {
        Happened::Created(name) => {
            let text = format!("Created new replica set \"{name}\"");
            put(conditions, "Progressing", "True", "NewReplicaSetCreated", &text, &now_text, true);
            return Some(deadline);
        }
        Happened::CreateFailed(text) => {
            put(conditions, "Progressing", "False", "ReplicaSetCreateError", text, &now_text, false);
            return None;
        }
        Happened::Nothing => {}
    }
    if reason == "DeploymentPaused" {
        put(conditions, "Progressing", "Unknown", "DeploymentResumed", "Deployment is resumed", &now_text, true);
        return Some(deadline);
    }
    if reason == "NewReplicaSetAvailable" && counts.replicas == counts.updated {
        return None;
    }
    if counts.complete(settings.replicas) {
        let text = format!("{subject} has successfully progressed.");
        put(conditions, "Progressing", "True", "NewReplicaSetAvailable", &text, &now_text, true);
        return None;
    }
    if counts.progressed_from(Counts::stored(deployment)) || old.is_none() {
        let text = format!("{subject} is progressing.");
        put(conditions, "Progressing", "True", "ReplicaSetUpdated", &text, &now_text, true);
        return Some(deadline);
    }
    if reason == "NewReplicaSetAvailable" {
        // A finished rollout, and now another template: the clock starts anew.
        let text = format!("{subject} is progressing.");
        put(conditions, "Progressing", "True", "ReplicaSetUpdated", &text, &now_text, true);
        return Some(deadline);
    }
    let since: Option<Timestamp> = old.as_ref().and_then(|c| c["lastUpdateTime"].as_str()).and_then(|t| t.parse().ok());
    let past = since.and_then(|s| Duration::try_from(now.duration_since(s)).ok()).unwrap_or_default();
    if past >= deadline {
        let text = format!("{subject} has timed out progressing.");
        put(conditions, "Progressing", "False", "ProgressDeadlineExceeded", &text, &now_text, false);
        return None;
    }
    Some(deadline - past + Duration::from_secs(1))
}

fn replica_failure(conditions: &mut Vec<Value>, sets: &[Object]) {
    conditions.retain(|c| c["type"] != "ReplicaFailure");
    if let Some(failure) = sets.iter().find_map(|s| s.condition("ReplicaFailure")) {
        let mut failure = failure.clone();
        failure["lastUpdateTime"] = failure["lastTransitionTime"].clone();
        conditions.push(failure);
    }
}

/// Sets a condition. With `touch` the update time moves although status and reason stay.
fn put(conditions: &mut Vec<Value>, kind: &str, status: &str, reason: &str, message: &str, now: &str, touch: bool) {
    let old = condition(conditions, kind);
    if !touch && old.is_some_and(|c| c["status"] == status && c["reason"] == reason) {
        return;
    }
    let since = match old {
        Some(c) if c["status"] == status => c["lastTransitionTime"].clone(),
        _ => json!(now),
    };
    let new = json!({"type": kind, "status": status, "reason": reason, "message": message,
        "lastUpdateTime": now, "lastTransitionTime": since});
    match conditions.iter_mut().find(|c| c["type"] == kind) {
        Some(place) => *place = new,
        None => conditions.push(new),
    }
}
