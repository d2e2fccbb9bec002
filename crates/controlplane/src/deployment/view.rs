//! A Deployment and its ReplicaSets as numbers: the settings with their percentages resolved, revisions, the template hash.

use std::time::Duration;

use serde_json::{Value, json};

use crate::object::{Object, normalised};
use crate::pods::TEMPLATE_HASH;

/// The revision number of a ReplicaSet, and on a Deployment that of its current one.
pub const REVISION: &str = "deployment.kubernetes.io/revision";
/// Earlier revision numbers of a ReplicaSet that a rollback made current again.
pub const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// How many pods the Deployment wanted when the ReplicaSet was last scaled.
pub const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
/// How many pods a rollout might have had then.
pub const MAX: &str = "deployment.kubernetes.io/max-replicas";

/// Annotations of a Deployment that its ReplicaSets do not inherit.
const OWN_ANNOTATIONS: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];
/// The letters of a template hash: none that could form a word or be mistaken for another.
const SAFE_LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// `progressDeadlineSeconds` with this value means: no deadline.
const NO_DEADLINE: i64 = i32::MAX as i64;

/// The settings of a Deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Pods wanted.
    pub replicas: i64,
    /// All old pods go before the first new one comes.
    pub recreate: bool,
    /// Pods above `replicas` during a rollout.
    pub max_surge: i64,
    /// Pods below `replicas` during a rollout.
    pub max_unavailable: i64,
    /// Only scaling, no rollout.
    pub paused: bool,
    /// Old ReplicaSets to keep.
    pub history_limit: usize,
    /// How long a rollout may stand still.
    pub progress_deadline: Option<Duration>,
}

impl Settings {
    /// Reads them, with the API's defaults.
    pub fn of(deployment: &Object) -> Self {
        let replicas = deployment.int("/spec/replicas").unwrap_or(1).max(0);
        let recreate = deployment.text("/spec/strategy/type") == "Recreate";
        let rolling = deployment.at("/spec/strategy/rollingUpdate");
        let (mut max_surge, mut max_unavailable) = (0, 0);
        if !recreate {
            max_surge = int_or_percent(&rolling["maxSurge"], replicas, true).unwrap_or((replicas + 3) / 4);
            max_unavailable = int_or_percent(&rolling["maxUnavailable"], replicas, false).unwrap_or(replicas / 4);
            if max_surge == 0 && max_unavailable == 0 {
                max_unavailable = 1;
            }
            max_unavailable = max_unavailable.min(replicas);
        }
        let deadline = deployment.int("/spec/progressDeadlineSeconds").unwrap_or(600);
        Self {
            replicas,
            recreate,
            max_surge,
            max_unavailable,
            paused: deployment.at("/spec/paused") == true,
            history_limit: deployment
                .int("/spec/revisionHistoryLimit")
                .and_then(|n| usize::try_from(n).ok())
                .unwrap_or(10),
            progress_deadline: (deadline != NO_DEADLINE)
                .then(|| Duration::from_secs(u64::try_from(deadline).unwrap_or(0))),
        }
    }

    /// The most pods that may exist while a rollout is under way.
    pub fn ceiling(&self) -> i64 {
        self.replicas + self.max_surge
    }
}

/// A number, or a percentage of `total` rounded up or down.
pub fn int_or_percent(value: &Value, total: i64, up: bool) -> Option<i64> {
    if let Some(number) = value.as_i64() {
        return Some(number);
    }
    let percent: i64 = value.as_str()?.strip_suffix('%')?.parse().ok()?;
    let product = percent * total;
    Some(product.div_euclid(100) + i64::from(up && product.rem_euclid(100) > 0))
}

/// `spec.replicas` of a ReplicaSet.
pub fn size(set: &Object) -> i64 {
    set.int("/spec/replicas").unwrap_or(1)
}

/// A count in the status of a ReplicaSet.
pub fn count(set: &Object, field: &str) -> i64 {
    set.at("/status")[field].as_i64().unwrap_or(0)
}

/// The revision of a ReplicaSet; 0 if it has none.
pub fn revision(object: &Object) -> i64 {
    object.annotation(REVISION).and_then(|r| r.parse().ok()).unwrap_or(0)
}

/// The ReplicaSet whose template is the Deployment's; the oldest one if there are several.
pub fn new_set<'a>(deployment: &Object, sets: &'a [Object]) -> Option<&'a Object> {
    let wanted = bare_template(deployment.at("/spec/template"));
    let mut candidates: Vec<&Object> =
        sets.iter().filter(|s| bare_template(s.at("/spec/template")) == wanted).collect();
    candidates.sort_by_key(|s| (s.created(), s.name().to_owned()));
    candidates.first().copied()
}

fn bare_template(template: &Value) -> Value {
    let mut template = template.clone();
    if let Some(labels) = template["metadata"]["labels"].as_object_mut() {
        labels.remove(TEMPLATE_HASH);
    }
    normalised(&template)
}

/// The hash of a template in the alphabet of Kubernetes; `collisions` picks another one after a name clash.
pub fn template_hash(template: &Value, collisions: i64) -> String {
    // FNV-1a over the canonical JSON: maps of `serde_json` are sorted by key.
    let mut text = bare_template(template).to_string().into_bytes();
    if collisions > 0 {
        text.extend_from_slice(&collisions.to_le_bytes());
    }
    let hash = text.iter().fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(*b)).wrapping_mul(0x0100_0193));
    hash.to_string().bytes().map(|b| char::from(SAFE_LETTERS[usize::from(b) % SAFE_LETTERS.len()])).collect()
}

/// The new ReplicaSet of a Deployment, ready to be created.
pub fn make_set(deployment: &Object, settings: &Settings, replicas: i64, revision: i64) -> Value {
    let template = deployment.at("/spec/template");
    let hash = template_hash(template, deployment.int("/status/collisionCount").unwrap_or(0));
    let mut template = template.clone();
    template["metadata"]["labels"][TEMPLATE_HASH] = json!(hash);
    let mut selector = deployment.at("/spec/selector").clone();
    selector["matchLabels"][TEMPLATE_HASH] = json!(hash);
    let mut annotations = inherited_annotations(deployment);
    annotations[REVISION] = json!(revision.to_string());
    annotations[DESIRED] = json!(settings.replicas.to_string());
    annotations[MAX] = json!(settings.ceiling().to_string());
    let mut spec = json!({"replicas": replicas, "selector": selector, "template": template});
    if let Some(seconds) = deployment.int("/spec/minReadySeconds").filter(|s| *s > 0) {
        spec["minReadySeconds"] = json!(seconds);
    }
    json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet",
        "metadata": {
            "name": format!("{}-{hash}", deployment.name()),
            "namespace": deployment.namespace(),
            "labels": template["metadata"]["labels"],
            "annotations": annotations,
            "ownerReferences": [crate::object::controller_reference(deployment, "apps/v1", "Deployment")],
        },
        "spec": spec,
    })
}

/// The annotations that a Deployment hands on to its current ReplicaSet.
pub fn inherited_annotations(deployment: &Object) -> Value {
    let all = deployment.at("/metadata/annotations").as_object();
    let kept = all.into_iter().flatten().filter(|(k, _)| !OWN_ANNOTATIONS.contains(&k.as_str()));
    Value::Object(kept.map(|(k, v)| (k.clone(), v.clone())).collect())
}
