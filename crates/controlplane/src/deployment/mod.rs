//! The Deployment controller: rolls templates out through ReplicaSets, scales them, keeps their history.
//!
//! [`view`] reads the objects, [`plan`] decides the writes, [`status`] the conditions; this file carries out.

pub mod plan;
pub mod status;
#[cfg(test)]
mod tests;
pub mod view;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kubeapi::ApiError;
use serde_json::json;

use crate::claim::{adopt, release};
use crate::client::{Client, DEPLOYMENTS, DeleteOptions, REPLICA_SETS};
use crate::events::Recorder;
use crate::informer::{Cache, Change, Informer};
use crate::object::{Key, Object};
use crate::pods;
use crate::queue::WorkQueue;
use crate::reconcile::Reconcile;
use crate::replicaset::{plan as sets_plan, scale_patch};
use crate::selector;
use plan::Action;
use sets_plan::Claim;
use status::Happened;
use view::{DESIRED, MAX, REVISION, Settings};

const KIND: (&str, &str) = ("apps/v1", "Deployment");

/// The controller.
pub struct Deployments {
    client: Client,
    events: Recorder,
    deployments: Arc<Cache>,
    sets: Arc<Cache>,
    pods: Arc<Cache>,
}

/// Builds the controller and its queue.
pub fn new(
    client: Client,
    events: &Recorder,
    deployments: &mut Informer,
    sets: &mut Informer,
    pods: &mut Informer,
) -> (Deployments, Arc<WorkQueue>) {
    let queue = Arc::new(WorkQueue::default());
    let own = queue.clone();
    deployments.on_change(move |change| own.add(change.object().key()));
    let (for_sets, all) = (queue.clone(), deployments.cache());
    sets.on_change(move |change| {
        if let Change::Set { old: Some(old), .. } = change {
            wake_owner(&for_sets, &all, old);
        }
        wake_owner(&for_sets, &all, change.object());
    });
    // `Recreate` waits for the last old pod to be gone.
    let (for_pods, all_sets) = (queue.clone(), sets.cache());
    pods.on_change(move |change| {
        let pod = change.object();
        if let (true, Some(owner)) = (matches!(change, Change::Gone(_)) || pods::is_finished(pod), pod.controller())
            && let Some(set) = all_sets.get(&Key::new(pod.namespace(), owner.name))
            && let Some(deployment) = set.controller()
        {
            for_pods.add(Key::new(pod.namespace(), deployment.name));
        }
    });
    let events = events.component("deployment-controller");
    let controller =
        Deployments { client, events, deployments: deployments.cache(), sets: sets.cache(), pods: pods.cache() };
    (controller, queue)
}

fn wake_owner(queue: &WorkQueue, deployments: &Cache, set: &Object) {
    match set.controller() {
        Some(owner) if owner.kind == "Deployment" => queue.add(Key::new(set.namespace(), owner.name)),
        Some(_) => {}
        None => {
            for deployment in deployments.in_namespace(set.namespace()) {
                if selector::matches(deployment.at("/spec/selector"), set.labels()) {
                    queue.add(deployment.key());
                }
            }
        }
    }
}

impl Reconcile for Deployments {
    const NAME: &'static str = "deployment-controller";

    async fn reconcile(&mut self, key: &Key) -> Result<Option<Duration>, ApiError> {
        let Some(deployment) = self.deployments.get(key) else { return Ok(None) };
        if selector::is_empty(deployment.at("/spec/selector")) {
            let text = "This deployment is selecting all pods. A non-empty selector is required.";
            self.events.warning(&deployment, KIND, "SelectingAll", text);
            return Ok(None);
        }
        let sets = self.claim_sets(&deployment).await?;
        let old_pods_run = self.old_pods_run(&deployment, &sets);
        let mut created = None;
        let mut failure = None;
        for action in plan::plan(&deployment, &sets, old_pods_run) {
            match action {
                Action::Create { replicas, revision } => match self.create(&deployment, replicas, revision).await {
                    Ok(name) => created = name,
                    Err(error) => failure = Some(error),
                },
                Action::Scale { set, to } => self.scale(&deployment, &set, to).await?,
                Action::Patch { set, patch } => {
                    self.sets.learn(&self.client.patch(&REPLICA_SETS, &set.key(), None, patch).await?);
                }
                Action::Delete(set) => {
                    self.client.delete(&REPLICA_SETS, &set.key(), DeleteOptions::only(&set)).await?;
                }
            }
        }
        let text = failure.as_ref().map(|e| format!("Failed to create new replica set: {e}"));
        let happened = match (&created, &text) {
            (_, Some(text)) => Happened::CreateFailed(text),
            (Some(name), None) => Happened::Created(name),
            (None, None) => Happened::Nothing,
        };
        let wait = self.write_status(&deployment, happened).await?;
        failure.map_or(Ok(wait), Err)
    }
}

impl Deployments {
    fn own_sets(&self, deployment: &Object) -> Vec<Object> {
        let all = self.sets.in_namespace(deployment.namespace());
        all.into_iter().filter(|s| s.is_controlled_by(deployment.uid())).collect()
    }

    async fn claim_sets(&self, deployment: &Object) -> Result<Vec<Object>, ApiError> {
        let mut own = Vec::new();
        for set in self.sets.in_namespace(deployment.namespace()) {
            match sets_plan::claim(deployment, deployment.at("/spec/selector"), &set) {
                Claim::Own => own.push(set),
                Claim::Ignore => {}
                Claim::Adopt => {
                    let set = adopt(&self.client, &REPLICA_SETS, deployment, KIND, &set).await?;
                    self.sets.learn(&set);
                    own.push(set);
                }
                Claim::Release => self.sets.learn(&release(&self.client, &REPLICA_SETS, deployment, &set).await?),
            }
        }
        Ok(own)
    }

    fn old_pods_run(&self, deployment: &Object, sets: &[Object]) -> bool {
        if !Settings::of(deployment).recreate {
            return false;
        }
        let current = view::new_set(deployment, sets).map(|s| s.uid().to_owned());
        self.pods.in_namespace(deployment.namespace()).iter().filter(|p| !pods::is_finished(p)).any(|pod| {
            let owner = pod.controller().map(|o| o.uid);
            sets.iter().any(|s| Some(s.uid()) == owner && Some(s.uid()) != current.as_deref())
        })
    }

    /// Makes the ReplicaSet of the current template; its name, or `None` if a name clash made another hash necessary.
    async fn create(&self, deployment: &Object, replicas: i64, revision: i64) -> Result<Option<String>, ApiError> {
        let settings = Settings::of(deployment);
        let set = view::make_set(deployment, &settings, replicas, revision);
        match self.client.create(&REPLICA_SETS, set.clone()).await {
            Ok(set) => {
                self.sets.learn(&set);
                if replicas > 0 {
                    let text = format!("Scaled up replica set {} from 0 to {replicas}", set.name());
                    self.events.normal(deployment, KIND, "ScalingReplicaSet", text);
                }
                Ok(Some(set.name().to_owned()))
            }
            Err(error) if error.is_conflict() => {
                let name = set["metadata"]["name"].as_str().unwrap_or_default();
                let taken = self.client.get(&REPLICA_SETS, &Key::new(deployment.namespace(), name)).await?;
                if taken.is_controlled_by(deployment.uid()) {
                    self.sets.learn(&taken);
                    return Ok(None);
                }
                let collisions = deployment.int("/status/collisionCount").unwrap_or(0) + 1;
                let patch = json!({"status": {"collisionCount": collisions}});
                let new = self.client.patch(&DEPLOYMENTS, &deployment.key(), Some("status"), patch).await?;
                self.deployments.learn(&new);
                Err(error)
            }
            Err(error) => {
                let text = format!("Failed to create new replica set: {error}");
                self.events.warning(deployment, KIND, "ReplicaSetCreateError", text);
                Err(error)
            }
        }
    }

    async fn scale(&self, deployment: &Object, set: &Object, to: i64) -> Result<(), ApiError> {
        let settings = Settings::of(deployment);
        let annotations = [(DESIRED, settings.replicas.to_string()), (MAX, settings.ceiling().to_string())];
        let mut patch = scale_patch(to, &annotations);
        patch["metadata"]["resourceVersion"] = set.at("/metadata/resourceVersion").clone();
        // A status write of the ReplicaSet controller in between is a conflict: the next round sees it.
        let new = self.client.patch(&REPLICA_SETS, &set.key(), None, patch).await?;
        self.sets.learn(&new);
        let from = view::size(set);
        if from != to {
            let direction = if to > from { "up" } else { "down" };
            let text = format!("Scaled {direction} replica set {} from {from} to {to}", set.name());
            self.events.normal(deployment, KIND, "ScalingReplicaSet", text);
        }
        Ok(())
    }

    /// Writes the revision and the status if they differ.
    async fn write_status(&self, deployment: &Object, happened: Happened<'_>) -> Result<Option<Duration>, ApiError> {
        let sets = self.own_sets(deployment);
        let current = view::new_set(deployment, &sets);
        let mut latest = self.deployments.get(&deployment.key()).unwrap_or_else(|| deployment.clone());
        if latest.uid() != deployment.uid() {
            return Ok(None);
        }
        if let Some(revision) = current.and_then(|s| s.annotation(REVISION))
            && latest.annotation(REVISION) != Some(revision)
            && !deployment.is_deleting()
        {
            let patch = json!({"metadata": {"uid": latest.uid(), "annotations": {REVISION: revision}}});
            latest = self.client.patch(&DEPLOYMENTS, &latest.key(), None, patch).await?;
            self.deployments.learn(&latest);
        }
        if latest.generation() != deployment.generation() {
            // The user was faster; the status of this round would claim to have seen the new template.
            return Ok(Some(Duration::ZERO));
        }
        let (status, wait) = status::status(&latest, current, &sets, happened, Timestamp::now());
        if *latest.at("/status") != status {
            let mut new = latest.to_value();
            new["status"] = status;
            match self.client.update_status(&DEPLOYMENTS, new).await {
                Ok(new) => self.deployments.learn(&new),
                Err(error) if error.is_not_found() => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(wait)
    }
}
