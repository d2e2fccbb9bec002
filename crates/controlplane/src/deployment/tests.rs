//! Tables for the decisions of the Deployment controller, and a rollout played to its end.

use serde_json::{Value, json};

use super::plan::{Action, plan};
use super::status::{Happened, status};
use super::view::{DESIRED, REVISION, Settings, make_set, new_set, size, template_hash};
use crate::fixtures::now;
use crate::object::Object;

fn deployment(replicas: i64, image: &str, change: Value) -> Object {
    let mut d = json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "d", "generation": 1},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}}}});
    for (field, value) in change.as_object().into_iter().flatten() {
        d["spec"][field] = value.clone();
    }
    d.into()
}

/// A ReplicaSet as the Deployment would make it, with so many pods that are all available.
fn set(d: &Object, replicas: i64, available: i64, revision: i64) -> Object {
    let mut s = make_set(d, &Settings::of(d), replicas, revision);
    s["metadata"]["uid"] = json!(format!("rs-{revision}"));
    s["metadata"]["generation"] = json!(1);
    s["metadata"]["creationTimestamp"] = json!(format!("2026-11-24T11:0{revision}:00Z"));
    s["status"] = json!({"replicas": replicas, "readyReplicas": available, "availableReplicas": available, "observedGeneration": 1});
    s.into()
}

fn scales(actions: &[Action]) -> Vec<(i64, i64)> {
    actions
        .iter()
        .filter_map(|a| match a {
            Action::Scale { set, to } => Some((size(set), *to)),
            _ => None,
        })
        .collect()
}

#[test]
fn percentages_round_as_upstream() {
    for (replicas, surge, unavailable, expected) in [
        (4, json!("25%"), json!("25%"), (1, 1)),
        (3, json!("25%"), json!("25%"), (1, 0)),
        (1, json!("25%"), json!("25%"), (1, 0)),
        (10, json!(0), json!(0), (0, 1)),
        (2, json!(0), json!("100%"), (0, 2)),
        (3, json!(null), json!(null), (1, 0)),
    ] {
        let d = deployment(
            replicas,
            "a",
            json!({"strategy": {"rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}}),
        );
        let s = Settings::of(&d);
        assert_eq!((s.max_surge, s.max_unavailable), expected, "{replicas}");
    }
}

#[test]
fn the_first_set_gets_all_replicas_and_the_hash_ignores_itself() {
    let d = deployment(3, "a", json!({}));
    assert_eq!(plan(&d, &[], false), vec![Action::Create { replicas: 3, revision: 1 }]);
    let made = set(&d, 3, 0, 1);
    assert_eq!(new_set(&d, std::slice::from_ref(&made)), Some(&made));
    assert_eq!(template_hash(made.at("/spec/template"), 0), template_hash(d.at("/spec/template"), 0));
    assert_ne!(template_hash(d.at("/spec/template"), 1), template_hash(d.at("/spec/template"), 0));
    assert_eq!(plan(&d, &[made], false), vec![]);
}

#[test]
fn a_rolling_update_never_leaves_its_bounds_and_ends() {
    let before = deployment(4, "a", json!({}));
    let after = deployment(4, "b", json!({}));
    let mut sets = vec![set(&before, 4, 4, 1)];
    for round in 0..20 {
        let actions = plan(&after, &sets, false);
        if actions.is_empty() {
            assert_eq!(sets.iter().map(size).collect::<Vec<_>>(), vec![0, 4], "after {round} rounds");
            return;
        }
        for action in actions {
            match action {
                Action::Create { replicas, revision } => sets.push(set(&after, replicas, 0, revision)),
                Action::Scale { set, to } => {
                    let place = sets.iter_mut().find(|s| s.uid() == set.uid()).expect("known");
                    let mut new = place.to_value();
                    new["spec"]["replicas"] = json!(to);
                    *place = new.into();
                }
                Action::Patch { .. } | Action::Delete(_) => panic!("not here"),
            }
        }
        assert!(sets.iter().map(size).sum::<i64>() <= 5, "above the ceiling");
        // The kubelet: everything becomes available.
        for s in &mut sets {
            let mut new = s.to_value();
            let n = size(s);
            new["status"] = json!({"replicas": n, "readyReplicas": n, "availableReplicas": n, "observedGeneration": 1});
            *s = new.into();
        }
        assert!(sets.iter().map(size).sum::<i64>() >= 3, "below the floor");
    }
    panic!("the rollout does not end");
}

#[test]
fn a_stuck_rollout_keeps_the_old_pods() {
    let before = deployment(4, "a", json!({}));
    let after = deployment(4, "broken", json!({}));
    let sets = [set(&before, 3, 3, 1), set(&after, 2, 0, 2)];
    assert_eq!(scales(&plan(&after, &sets, false)), vec![]);
    // Broken pods of the old revision go first.
    let sets = [set(&before, 3, 1, 1), set(&after, 2, 2, 2)];
    assert_eq!(scales(&plan(&after, &sets, false)), vec![(3, 1)]);
}

#[test]
fn recreate_waits_for_the_last_old_pod() {
    let strategy = json!({"strategy": {"type": "Recreate"}});
    let (before, after) = (deployment(2, "a", strategy.clone()), deployment(2, "b", strategy));
    let old = set(&before, 2, 2, 1);
    assert_eq!(scales(&plan(&after, std::slice::from_ref(&old), true)), vec![(2, 0)]);
    let empty = set(&before, 0, 0, 1);
    assert_eq!(plan(&after, std::slice::from_ref(&empty), true), vec![]);
    assert_eq!(plan(&after, &[empty], false), vec![Action::Create { replicas: 2, revision: 2 }]);
}

#[test]
fn scaling_and_pausing() {
    let d = deployment(3, "a", json!({}));
    let one = set(&d, 3, 3, 1);
    assert_eq!(scales(&plan(&deployment(5, "a", json!({})), std::slice::from_ref(&one), false)), vec![(3, 5)]);
    assert_eq!(scales(&plan(&deployment(0, "a", json!({})), std::slice::from_ref(&one), false)), vec![(3, 0)]);
    // Paused: no new revision, but scaling goes on.
    let paused = deployment(4, "b", json!({"paused": true}));
    assert_eq!(plan(&paused, std::slice::from_ref(&one), false).len(), 1);
    assert_eq!(scales(&plan(&paused, &[one], false)), vec![(3, 4)]);
    // In the middle of a rollout the sizes grow in proportion.
    let (before, after) = (deployment(10, "a", json!({})), deployment(10, "b", json!({})));
    let sets = [set(&before, 8, 8, 1), set(&after, 5, 5, 2)];
    let scaled = scales(&plan(&deployment(20, "b", json!({})), &sets, false));
    assert_eq!(scaled.iter().map(|(_, to)| to).sum::<i64>(), 25);
    assert!(scaled.iter().all(|(from, to)| to > from), "{scaled:?}");
}

#[test]
fn a_rollback_takes_the_old_set_under_a_new_revision() {
    let (first, second) = (deployment(2, "a", json!({})), deployment(2, "b", json!({})));
    let sets = [set(&first, 0, 0, 1), set(&second, 2, 2, 2)];
    let actions = plan(&first, &sets, false);
    let Some(Action::Patch { set, patch }) = actions.first() else { panic!("{actions:?}") };
    assert_eq!(set.uid(), "rs-1");
    assert_eq!(patch["metadata"]["annotations"][REVISION], "3");
    assert_eq!(patch["metadata"]["annotations"]["deployment.kubernetes.io/revision-history"], "1");
    assert_eq!(scales(&actions), vec![(0, 1)]);
}

#[test]
fn history_is_cut_when_the_rollout_is_complete() {
    let mut d = deployment(1, "c", json!({"revisionHistoryLimit": 1})).to_value();
    d["status"] = json!({"replicas": 1, "updatedReplicas": 1, "availableReplicas": 1, "observedGeneration": 1});
    let d = Object::from(d);
    let sets =
        [set(&deployment(1, "a", json!({})), 0, 0, 1), set(&deployment(1, "b", json!({})), 0, 0, 2), set(&d, 1, 1, 3)];
    assert_eq!(plan(&d, &sets, false), vec![Action::Delete(sets[0].clone())]);
}

#[test]
fn conditions_tell_the_story_of_a_rollout() {
    let d = deployment(2, "a", json!({}));
    let reason = |status: &Value, kind: &str| -> String {
        let list = status["conditions"].as_array().expect("conditions");
        let c = list.iter().find(|c| c["type"] == kind).expect("condition");
        format!("{} {}", c["status"].as_str().unwrap_or(""), c["reason"].as_str().unwrap_or(""))
    };
    let with = |status: &Value| -> Object {
        let mut new = d.to_value();
        new["status"] = status.clone();
        new.into()
    };
    let fresh = set(&d, 2, 0, 1);
    let (first, wait) = status(&d, Some(&fresh), std::slice::from_ref(&fresh), Happened::Created(fresh.name()), now());
    assert_eq!(reason(&first, "Progressing"), "True NewReplicaSetCreated");
    assert_eq!(reason(&first, "Available"), "False MinimumReplicasUnavailable");
    assert_eq!(wait.map(|w| w.as_secs()), Some(600));
    let half = set(&d, 2, 1, 1);
    let (second, _) = status(&with(&first), Some(&half), std::slice::from_ref(&half), Happened::Nothing, now());
    assert_eq!(reason(&second, "Progressing"), "True ReplicaSetUpdated");
    let full = set(&d, 2, 2, 1);
    let (third, wait) = status(&with(&second), Some(&full), std::slice::from_ref(&full), Happened::Nothing, now());
    assert_eq!(reason(&third, "Progressing"), "True NewReplicaSetAvailable");
    assert_eq!(reason(&third, "Available"), "True MinimumReplicasAvailable");
    assert_eq!(wait, None);
    // Nothing changes any more: the status is the same to the letter.
    assert_eq!(status(&with(&third), Some(&full), std::slice::from_ref(&full), Happened::Nothing, now()).0, third);
    // Without progress the deadline passes.
    let late = now() + jiff::SignedDuration::from_secs(601);
    let (stuck, _) = status(&with(&second), Some(&half), std::slice::from_ref(&half), Happened::Nothing, late);
    assert_eq!(reason(&stuck, "Progressing"), "False ProgressDeadlineExceeded");
    assert_eq!(half.annotation(DESIRED), Some("2"));
}
