//! The ReplicaSet controller: keeps as many pods as `spec.replicas` says.
//!
//! It talks to the API only. [`plan`] decides, this file carries out.

pub mod plan;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kubeapi::ApiError;
use serde_json::json;
use tracing::debug;

use crate::claim::claim_pods;
use crate::client::{Client, DeleteOptions, PODS, REPLICA_SETS};
use crate::events::Recorder;
use crate::informer::{Cache, Change, Informer};
use crate::object::{Key, Object};
use crate::pods;
use crate::queue::WorkQueue;
use crate::reconcile::Reconcile;
use plan::Step;

/// The first batch of new pods; it doubles with each batch that succeeds, so that a mistake costs one failure only.
const FIRST_BATCH: usize = 1;
const KIND: (&str, &str) = ("apps/v1", "ReplicaSet");

/// The controller.
pub struct ReplicaSets {
    client: Client,
    events: Recorder,
    sets: Arc<Cache>,
    pods: Arc<Cache>,
}

/// Builds the controller and its queue.
pub fn new(
    client: Client,
    events: &Recorder,
    sets: &mut Informer,
    pods: &mut Informer,
) -> (ReplicaSets, Arc<WorkQueue>) {
    let queue = Arc::new(WorkQueue::default());
    let for_sets = queue.clone();
    sets.on_change(move |change| for_sets.add(change.object().key()));
    let (for_pods, all_sets) = (queue.clone(), sets.cache());
    pods.on_change(move |change| {
        if let Change::Set { old: Some(old), .. } = change {
            wake_owner(&for_pods, &all_sets, old);
        }
        wake_owner(&for_pods, &all_sets, change.object());
    });
    let events = events.component("replicaset-controller");
    (ReplicaSets { client, events, sets: sets.cache(), pods: pods.cache() }, queue)
}

fn wake_owner(queue: &WorkQueue, sets: &Cache, pod: &Object) {
    match pod.controller() {
        Some(owner) if owner.kind == "ReplicaSet" => queue.add(Key::new(pod.namespace(), owner.name)),
        Some(_) => {}
        None => {
            for set in sets.in_namespace(pod.namespace()) {
                if crate::selector::matches(set.at("/spec/selector"), pod.labels()) {
                    queue.add(set.key());
                }
            }
        }
    }
}

impl Reconcile for ReplicaSets {
    const NAME: &'static str = "replicaset-controller";

    async fn reconcile(&mut self, key: &Key) -> Result<Option<Duration>, ApiError> {
        let Some(set) = self.sets.get(key) else { return Ok(None) };
        let active = self.claim_pods(&set).await?;
        let siblings: Vec<Object> =
            self.sets.in_namespace(&key.namespace).into_iter().filter(|s| plan::related(&set, s)).collect();
        let related: Vec<Object> = self
            .pods
            .in_namespace(&key.namespace)
            .into_iter()
            .filter(|p| pods::is_active(p) && siblings.iter().any(|s| p.is_controlled_by(s.uid())))
            .collect();
        let outcome = match plan::plan(&set, &active, &related, Timestamp::now()) {
            Step::Nothing => Ok(()),
            Step::Create(count) => self.create(&set, count).await,
            Step::Delete(victims) => self.delete(&set, victims).await,
        };
        let failure = outcome.as_ref().err().map(|e| (e.0, e.1.to_string()));
        let wait = self.write_status(&set, failure.as_ref().map(|(r, m)| (*r, m.as_str()))).await?;
        match outcome {
            Err((_, error)) if !error.is_conflict() => Err(error),
            _ => Ok(wait),
        }
    }
}

impl ReplicaSets {
    async fn claim_pods(&self, set: &Object) -> Result<Vec<Object>, ApiError> {
        Ok(claim_pods(&self.client, &self.pods, set, KIND, pods::is_active).await?.own)
    }

    async fn create(&self, set: &Object, count: usize) -> Result<(), (&'static str, ApiError)> {
        let (mut rest, mut batch) = (count, FIRST_BATCH);
        while rest > 0 {
            let now = batch.min(rest);
            let made = futures_util::future::join_all((0..now).map(|_| self.create_one(set))).await;
            made.into_iter().collect::<Result<Vec<()>, ApiError>>().map_err(|e| ("FailedCreate", e))?;
            rest -= now;
            batch *= 2;
        }
        Ok(())
    }

    async fn create_one(&self, set: &Object) -> Result<(), ApiError> {
        let pod = pods::from_template(set, KIND.0, KIND.1, set.at("/spec/template"));
        match self.client.create(&PODS, pod).await {
            Ok(pod) => {
                self.pods.learn(&pod);
                self.events.normal(set, KIND, "SuccessfulCreate", format!("Created pod: {}", pod.name()));
                Ok(())
            }
            Err(error) => {
                self.events.warning(set, KIND, "FailedCreate", format!("Error creating: {error}"));
                Err(error)
            }
        }
    }

    async fn delete(&self, set: &Object, victims: Vec<Object>) -> Result<(), (&'static str, ApiError)> {
        for pod in victims {
            match self.client.delete(&PODS, &pod.key(), DeleteOptions::only(&pod)).await {
                Ok(last) => {
                    if let Some(last) = last {
                        self.pods.learn(&last);
                    }
                    self.events.normal(set, KIND, "SuccessfulDelete", format!("Deleted pod: {}", pod.name()));
                }
                Err(error) if error.is_not_found() => debug!(pod = %pod.key(), "already deleted"),
                Err(error) => {
                    self.events.warning(set, KIND, "FailedDelete", format!("Error deleting: {error}"));
                    return Err(("FailedDelete", error));
                }
            }
        }
        Ok(())
    }

    async fn write_status(&self, set: &Object, failure: Option<(&str, &str)>) -> Result<Option<Duration>, ApiError> {
        let own: Vec<Object> = self
            .pods
            .in_namespace(set.namespace())
            .into_iter()
            .filter(|p| pods::is_active(p) && p.is_controlled_by(set.uid()))
            .collect();
        let (status, wait) = plan::status(set, &own, failure, Timestamp::now());
        let differs = ["replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas", "observedGeneration"]
            .iter()
            .any(|f| set.at("/status")[f].as_i64().unwrap_or(0) != status[f].as_i64().unwrap_or(0))
            || set.list("/status/conditions") != status["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
        if differs {
            let mut new = set.to_value();
            new["status"] = status;
            let new = match self.client.update_status(&REPLICA_SETS, new).await {
                Err(error) if error.is_not_found() => return Ok(None),
                other => other?,
            };
            self.sets.learn(&new);
        }
        Ok(wait)
    }
}

/// The patch that a size change needs; other controllers scale with it.
pub fn scale_patch(to: i64, annotations: &[(&str, String)]) -> serde_json::Value {
    let mut patch = json!({"spec": {"replicas": to}});
    for (key, value) in annotations {
        patch["metadata"]["annotations"][*key] = json!(value);
    }
    patch
}
