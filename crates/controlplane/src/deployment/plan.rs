//! What a Deployment does next with its ReplicaSets, without IO: one step of a rollout, of scaling, of cleaning up.

use serde_json::{Value, json};

use super::view::{DESIRED, MAX, Settings, count, inherited_annotations, new_set, revision, size};
use super::view::{REVISION, REVISION_HISTORY};
use crate::object::Object;

/// One write.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Make the ReplicaSet of the current template.
    Create {
        /// Its first size.
        replicas: i64,
        /// Its revision.
        revision: i64,
    },
    /// Change a ReplicaSet's size and the annotations that go with it.
    Scale {
        /// Which.
        set: Object,
        /// The new size, possibly the old one when only the annotations are stale.
        to: i64,
    },
    /// Merge this patch into a ReplicaSet: annotations, revision, `minReadySeconds`.
    Patch {
        /// Which.
        set: Object,
        /// JSON merge patch.
        patch: Value,
    },
    /// Remove a ReplicaSet that is past the history limit.
    Delete(Object),
}

/// The next writes, all of which may be done at once. After them the status is brought up to date.
///
/// `old_pods_run` is only asked by the `Recreate` strategy: pods of old revisions still exist.
pub fn plan(deployment: &Object, sets: &[Object], old_pods_run: bool) -> Vec<Action> {
    let settings = Settings::of(deployment);
    if deployment.is_deleting() {
        return Vec::new();
    }
    let current = new_set(deployment, sets);
    let old: Vec<&Object> = sets.iter().filter(|s| current.is_none_or(|c| c.uid() != s.uid())).collect();
    if settings.paused || is_scaling(&settings, sets) {
        return scale(&settings, deployment, current, &old);
    }
    let next_revision = old.iter().map(|s| revision(s)).max().unwrap_or(0) + 1;
    if settings.recreate {
        return recreate(&settings, deployment, current, &old, next_revision, old_pods_run);
    }
    let Some(current) = current else {
        return vec![Action::Create { replicas: new_size(&settings, 0, sets), revision: next_revision }];
    };
    let mut actions: Vec<Action> = refresh(deployment, current, next_revision).into_iter().collect();
    let target = new_size(&settings, size(current), sets);
    if target != size(current) {
        actions.push(Action::Scale { set: current.clone(), to: target });
        return actions;
    }
    actions.extend(shrink_old(&settings, current, &old));
    actions.extend(clean_up(&settings, deployment, &old));
    actions
}

/// Whether somebody changed `spec.replicas` since the sets were last scaled.
fn is_scaling(settings: &Settings, sets: &[Object]) -> bool {
    let desired = |s: &Object| s.annotation(DESIRED).and_then(|d| d.parse::<i64>().ok());
    sets.iter().filter(|s| size(s) > 0).any(|s| desired(s).is_some_and(|d| d != settings.replicas))
}

fn recreate(
    settings: &Settings,
    deployment: &Object,
    current: Option<&Object>,
    old: &[&Object],
    next_revision: i64,
    old_pods_run: bool,
) -> Vec<Action> {
    let down: Vec<Action> =
        old.iter().filter(|s| size(s) > 0).map(|s| Action::Scale { set: (*s).clone(), to: 0 }).collect();
    if !down.is_empty() || old_pods_run {
        return down;
    }
    let Some(current) = current else {
        return vec![Action::Create { replicas: settings.replicas, revision: next_revision }];
    };
    let mut actions: Vec<Action> = refresh(deployment, current, next_revision).into_iter().collect();
    if size(current) != settings.replicas {
        actions.push(Action::Scale { set: current.clone(), to: settings.replicas });
    }
    actions.extend(clean_up(settings, deployment, old));
    actions
}

/// The size that the current ReplicaSet may have now: as large as wanted, within the ceiling of all pods together.
fn new_size(settings: &Settings, now: i64, sets: &[Object]) -> i64 {
    if settings.recreate || now >= settings.replicas {
        return settings.replicas;
    }
    let room = settings.ceiling() - sets.iter().map(size).sum::<i64>();
    now + room.clamp(0, settings.replicas - now)
}

/// Takes pods from old ReplicaSets as far as availability allows: first those that do not work anyway.
fn shrink_old(settings: &Settings, current: &Object, old: &[&Object]) -> Vec<Action> {
    let mut old: Vec<(&Object, i64)> = old.iter().map(|s| (*s, size(s))).filter(|(_, n)| *n > 0).collect();
    old.sort_by_key(|(s, _)| (s.created(), s.name().to_owned()));
    let floor = settings.replicas - settings.max_unavailable;
    let total: i64 = size(current) + old.iter().map(|(_, n)| n).sum::<i64>();
    let unready_new = size(current) - count(current, "availableReplicas");
    let mut budget = total - floor - unready_new;
    if budget <= 0 {
        return Vec::new();
    }
    for (set, wanted) in &mut old {
        let broken = (*wanted - count(set, "availableReplicas")).clamp(0, budget);
        *wanted -= broken;
        budget -= broken;
    }
    let available: i64 =
        count(current, "availableReplicas") + old.iter().map(|(s, _)| count(s, "availableReplicas")).sum::<i64>();
    let mut spare = (available - floor).max(0);
    for (_, wanted) in &mut old {
        let taken = spare.min(*wanted);
        *wanted -= taken;
        spare -= taken;
    }
    old.into_iter()
        .filter(|(set, wanted)| *wanted != size(set))
        .map(|(set, to)| Action::Scale { set: set.clone(), to })
        .collect()
}

/// Scaling without a rollout: the one active set, or all active ones in proportion.
fn scale(settings: &Settings, deployment: &Object, current: Option<&Object>, old: &[&Object]) -> Vec<Action> {
    let all: Vec<&Object> = current.into_iter().chain(old.iter().copied()).collect();
    let active: Vec<&Object> = all.iter().copied().filter(|s| size(s) > 0).collect();
    let only = match active.len() {
        0 => current.or_else(|| all.iter().copied().max_by_key(|s| revision(s))),
        1 => Some(active[0]),
        _ => None,
    };
    let stale =
        |s: &Object, to: i64| size(s) != to || s.annotation(DESIRED) != Some(settings.replicas.to_string().as_str());
    let action = |s: &Object, to: i64| stale(s, to).then(|| Action::Scale { set: s.clone(), to });
    if let Some(set) = only {
        return action(set, settings.replicas).into_iter().collect();
    }
    if let Some(current) = current.filter(|c| is_saturated(settings, c)) {
        let rest = active.iter().filter(|s| s.uid() != current.uid());
        return rest.filter_map(|s| action(s, 0)).collect();
    }
    if settings.recreate {
        return Vec::new();
    }
    let allowed = if settings.replicas > 0 { settings.ceiling() } else { 0 };
    let to_add = allowed - active.iter().map(|s| size(s)).sum::<i64>();
    let mut sorted = active;
    sorted.sort_by(|a, b| {
        let age = if to_add > 0 { b.created().cmp(&a.created()) } else { a.created().cmp(&b.created()) };
        size(b).cmp(&size(a)).then(age)
    });
    let mut targets: Vec<i64> = sorted.iter().map(|s| size(s)).collect();
    let mut added = 0;
    for (set, target) in sorted.iter().zip(&mut targets) {
        let share = if to_add == 0 { 0 } else { proportion(settings, deployment, set, to_add, added) };
        *target += share;
        added += share;
    }
    if let Some(first) = targets.first_mut() {
        *first = (*first + to_add - added).max(0);
    }
    sorted.iter().zip(targets).filter_map(|(s, to)| action(s, to)).collect()
}

fn is_saturated(settings: &Settings, set: &Object) -> bool {
    let desired = set.annotation(DESIRED).and_then(|d| d.parse().ok());
    size(set) == settings.replicas
        && desired == Some(settings.replicas)
        && count(set, "availableReplicas") == settings.replicas
}

fn proportion(settings: &Settings, deployment: &Object, set: &Object, to_add: i64, added: i64) -> i64 {
    let rest = to_add - added;
    if size(set) == 0 || rest == 0 {
        return 0;
    }
    let share = if settings.replicas == 0 {
        -size(set)
    } else {
        let before = set
            .annotation(MAX)
            .and_then(|m| m.parse::<i64>().ok())
            .filter(|m| *m > 0)
            .unwrap_or_else(|| deployment.int("/status/replicas").unwrap_or(1).max(1));
        // Rounded half up, in whole numbers.
        (size(set) * settings.ceiling() * 2 + before).div_euclid(before * 2) - size(set)
    };
    if to_add > 0 { share.min(rest) } else { share.max(rest) }
}

/// The patch that brings the current set's annotations and `minReadySeconds` up to date, if they are not.
fn refresh(deployment: &Object, current: &Object, next_revision: i64) -> Option<Action> {
    let mut patch = json!({});
    let inherited = inherited_annotations(deployment);
    for (key, value) in inherited.as_object().into_iter().flatten() {
        if current.annotation(key) != value.as_str() {
            patch["metadata"]["annotations"][key] = value.clone();
        }
    }
    let own = revision(current);
    if own < next_revision {
        patch["metadata"]["annotations"][REVISION] = json!(next_revision.to_string());
        if own > 0 {
            let history = current.annotation(REVISION_HISTORY).filter(|h| !h.is_empty());
            patch["metadata"]["annotations"][REVISION_HISTORY] =
                json!(history.map_or_else(|| own.to_string(), |h| format!("{h},{own}")));
        }
    }
    let min_ready = deployment.int("/spec/minReadySeconds").unwrap_or(0);
    if current.int("/spec/minReadySeconds").unwrap_or(0) != min_ready {
        patch["spec"]["minReadySeconds"] = json!(min_ready);
    }
    (patch != json!({})).then(|| Action::Patch { set: current.clone(), patch })
}

/// Old, empty sets past the history limit; only once the rollout is complete.
fn clean_up(settings: &Settings, deployment: &Object, old: &[&Object]) -> Vec<Action> {
    if !is_complete(settings, deployment) {
        return Vec::new();
    }
    let mut empty: Vec<&Object> = old.iter().copied().filter(|s| !s.is_deleting()).collect();
    empty.sort_by_key(|s| revision(s));
    let surplus = empty.len().saturating_sub(settings.history_limit);
    empty
        .into_iter()
        .take(surplus)
        .filter(|s| size(s) == 0 && count(s, "replicas") == 0 && s.generation() <= count(s, "observedGeneration"))
        .map(|s| Action::Delete(s.clone()))
        .collect()
}

/// The stored status says that all pods are new and available.
pub fn is_complete(settings: &Settings, deployment: &Object) -> bool {
    let status = |field: &str| deployment.at("/status")[field].as_i64().unwrap_or(0);
    status("updatedReplicas") == settings.replicas
        && status("replicas") == settings.replicas
        && status("availableReplicas") == settings.replicas
        && status("observedGeneration") >= deployment.generation()
}
