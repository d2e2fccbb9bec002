//! The StatefulSet controller: pods with names and claims of their own, made and replaced in order.
//!
//! [`plan`] decides, [`identity`] says who each pod is, this file carries out. Each template is kept as a ControllerRevision;
//! pods below the partition of a rolling update are made by the one that the set comes from.

pub mod identity;
pub mod plan;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kubeapi::ApiError;
use serde_json::json;

use crate::claim::{claim_pods, write_status};
use crate::client::{CLAIMS, Client, DeleteOptions, PODS, STATEFUL_SETS};
use crate::events::Recorder;
use crate::informer::{Cache, Change, Informer};
use crate::object::{Key, Object};
use crate::queue::WorkQueue;
use crate::reconcile::Reconcile;
use crate::revisions;
use identity::REVISION;
use plan::{Plan, Revisions};

const KIND: (&str, &str) = ("apps/v1", "StatefulSet");
/// Where a revision of a StatefulSet says its hash.
const HASH: &str = "controller.kubernetes.io/hash";

/// The controller.
pub struct StatefulSets {
    client: Client,
    events: Recorder,
    sets: Arc<Cache>,
    pods: Arc<Cache>,
    claims: Arc<Cache>,
}

/// Builds the controller and its queue.
pub fn new(
    client: Client,
    events: &Recorder,
    sets: &mut Informer,
    pods: &mut Informer,
    claims: &Informer,
) -> (StatefulSets, Arc<WorkQueue>) {
    let queue = Arc::new(WorkQueue::default());
    let own = queue.clone();
    sets.on_change(move |change| own.add(change.object().key()));
    let (for_pods, all) = (queue.clone(), sets.cache());
    pods.on_change(move |change| {
        let pod = change.object();
        match pod.controller() {
            Some(owner) if owner.kind == "StatefulSet" => for_pods.add(Key::new(pod.namespace(), owner.name)),
            Some(_) => {}
            None if matches!(change, Change::Set { .. }) => {
                for set in all.in_namespace(pod.namespace()) {
                    if crate::selector::matches(set.at("/spec/selector"), pod.labels()) {
                        for_pods.add(set.key());
                    }
                }
            }
            None => {}
        }
    });
    let events = events.component("statefulset-controller");
    let controller = StatefulSets { client, events, sets: sets.cache(), pods: pods.cache(), claims: claims.cache() };
    (controller, queue)
}

impl Reconcile for StatefulSets {
    const NAME: &'static str = "statefulset-controller";

    async fn reconcile(&mut self, key: &Key) -> Result<Option<Duration>, ApiError> {
        let Some(set) = self.sets.get(key) else { return Ok(None) };
        let own = self.claim_pods(&set).await?;
        let history = if set.is_deleting() {
            revisions::list(&self.client, &set).await?
        } else {
            revisions::ensure(&self.client, &set, KIND, HASH).await?
        };
        let Some(update) = history.last() else { return Ok(None) };
        let named = |r: &&Object| r.name() == set.text("/status/currentRevision");
        let current = history.iter().find(named).unwrap_or(update);
        let plan =
            plan::plan(&set, &own, Revisions { current: current.name(), update: update.name() }, Timestamp::now());
        let done = self.carry_out(&set, &own, &plan, current, update).await;
        let wait = plan.wait;
        write_status(&self.client, &STATEFUL_SETS, &self.sets, &set, plan.status).await?;
        done?;
        if !set.is_deleting() {
            let used = |r: &Object| {
                [current.name(), update.name()].contains(&r.name())
                    || own.iter().any(|p| p.label(REVISION) == Some(r.name()))
            };
            revisions::prune(&self.client, &set, &history, used).await?;
        }
        Ok(wait)
    }
}

impl StatefulSets {
    async fn claim_pods(&self, set: &Object) -> Result<Vec<Object>, ApiError> {
        Ok(claim_pods(&self.client, &self.pods, set, KIND, |pod| identity::ordinal(set, pod).is_some()).await?.own)
    }

    async fn carry_out(
        &self,
        set: &Object,
        own: &[Object],
        plan: &Plan,
        current: &Object,
        update: &Object,
    ) -> Result<(), ApiError> {
        if !set.is_deleting() {
            for pod in own {
                let waits = pod.text("/status/phase") == "Pending" && !pod.is_deleting();
                if let Some(ordinal) = identity::ordinal(set, pod).filter(|_| waits) {
                    self.make_claims(set, ordinal).await?;
                }
            }
        }
        for pod in own {
            self.hand_over(set, pod, plan.condemned.contains(pod)).await?;
        }
        for pod in &plan.delete {
            if plan.ended.contains(pod) {
                let (reason, word) = match pod.text("/status/phase") {
                    "Failed" => ("RecreatingFailedPod", "failed"),
                    _ => ("RecreatingTerminatedPod", "terminated"),
                };
                let text = format!("StatefulSet {} is recreating {word} Pod {}", set.key(), pod.name());
                self.events.warning(set, KIND, reason, text);
            }
            self.delete(set, pod).await?;
        }
        for (ordinal, updated) in &plan.create {
            let revision = if *updated { update } else { current };
            self.make_claims(set, *ordinal).await?;
            self.create(set, revision, *ordinal).await?;
        }
        Ok(())
    }

    async fn make_claims(&self, set: &Object, ordinal: i64) -> Result<(), ApiError> {
        for claim in identity::claims(set, ordinal) {
            let name = claim["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            if self.claims.get(&Key::new(set.namespace(), name.as_str())).is_some() {
                continue;
            }
            let pod = format!("{}-{ordinal}", set.name());
            match self.client.ensure(&CLAIMS, claim).await {
                Ok(true) => {
                    let text = format!("create Claim {name} Pod {pod} in StatefulSet {} success", set.name());
                    self.events.normal(set, KIND, "SuccessfulCreate", text);
                }
                Ok(false) => {}
                Err(error) => {
                    let text = format!(
                        "create Claim {name} for Pod {pod} in StatefulSet {} failed error: {error}",
                        set.name()
                    );
                    self.events.warning(set, KIND, "FailedCreate", text);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Gives the claims of a pod the owners that the retention policy asks for.
    async fn hand_over(&self, set: &Object, pod: &Object, condemned: bool) -> Result<(), ApiError> {
        let Some(ordinal) = identity::ordinal(set, pod) else { return Ok(()) };
        for template in set.list("/spec/volumeClaimTemplates") {
            let name = identity::claim_name(set, template, ordinal);
            let Some(claim) = self.claims.get(&Key::new(set.namespace(), name)) else { continue };
            let owners = identity::claim_owners(set, pod, condemned, &claim);
            if claim.is_deleting() || owners == claim.list("/metadata/ownerReferences") {
                continue;
            }
            let patch = json!({"metadata": {
                "uid": claim.uid(), "resourceVersion": claim.text("/metadata/resourceVersion"), "ownerReferences": owners,
            }});
            self.claims.learn(&self.client.patch(&CLAIMS, &claim.key(), None, patch).await?);
        }
        Ok(())
    }

    async fn create(&self, set: &Object, revision: &Object, ordinal: i64) -> Result<(), ApiError> {
        let pod = identity::pod(set, &revisions::template(revision), revision.name(), ordinal);
        let name = format!("{}-{ordinal}", set.name());
        match self.client.create(&PODS, pod).await {
            Ok(pod) => {
                self.pods.learn(&pod);
                let text = format!("create Pod {name} in StatefulSet {} successful", set.name());
                self.events.normal(set, KIND, "SuccessfulCreate", text);
                Ok(())
            }
            Err(error) => {
                let text = format!("create Pod {name} in StatefulSet {} failed error: {error}", set.name());
                self.events.warning(set, KIND, "FailedCreate", text);
                Err(error)
            }
        }
    }

    async fn delete(&self, set: &Object, pod: &Object) -> Result<(), ApiError> {
        match self.client.delete(&PODS, &pod.key(), DeleteOptions::only(pod)).await {
            Ok(last) => {
                if let Some(last) = last {
                    self.pods.learn(&last);
                }
                let text = format!("delete Pod {} in StatefulSet {} successful", pod.name(), set.name());
                self.events.normal(set, KIND, "SuccessfulDelete", text);
                Ok(())
            }
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => {
                let text = format!("delete Pod {} in StatefulSet {} failed error: {error}", pod.name(), set.name());
                self.events.warning(set, KIND, "FailedDelete", text);
                Err(error)
            }
        }
    }
}
