//! The DaemonSet controller: one pod on every node that suits, replaced step by step when the template changes.
//!
//! [`plan`] decides, this file carries out. Each template is kept as a ControllerRevision, so that `kubectl rollout history`
//! and `undo` work. `maxSurge` is not supported and said so in an event; the update then goes by `maxUnavailable`.

pub mod plan;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kubeapi::ApiError;

use crate::claim::{claim_pods, write_status};
use crate::client::{Client, DAEMON_SETS, DeleteOptions, PODS};
use crate::events::Recorder;
use crate::informer::{Cache, Change, Informer};
use crate::object::{Key, Object};
use crate::queue::WorkQueue;
use crate::reconcile::Reconcile;
use crate::revisions;
use plan::REVISION_HASH;

const KIND: (&str, &str) = ("apps/v1", "DaemonSet");

/// The controller.
pub struct DaemonSets {
    client: Client,
    events: Recorder,
    sets: Arc<Cache>,
    nodes: Arc<Cache>,
    pods: Arc<Cache>,
}

/// Builds the controller and its queue.
pub fn new(
    client: Client,
    events: &Recorder,
    sets: &mut Informer,
    nodes: &mut Informer,
    pods: &mut Informer,
) -> (DaemonSets, Arc<WorkQueue>) {
    let queue = Arc::new(WorkQueue::default());
    let own = queue.clone();
    sets.on_change(move |change| own.add(change.object().key()));
    let (for_nodes, all) = (queue.clone(), sets.cache());
    nodes.on_change(move |change| {
        let relevant = |n: &Object| (n.at("/metadata/labels").clone(), n.at("/spec").clone());
        if let Change::Set { old: Some(old), new } = change
            && relevant(old) == relevant(new)
        {
            return;
        }
        for set in all.all() {
            for_nodes.add(set.key());
        }
    });
    let for_pods = queue.clone();
    pods.on_change(move |change| {
        let pod = change.object();
        if let Some(owner) = pod.controller().filter(|o| o.kind == "DaemonSet") {
            for_pods.add(Key::new(pod.namespace(), owner.name));
        }
    });
    let events = events.component("daemonset-controller");
    (DaemonSets { client, events, sets: sets.cache(), nodes: nodes.cache(), pods: pods.cache() }, queue)
}

impl Reconcile for DaemonSets {
    const NAME: &'static str = "daemonset-controller";

    async fn reconcile(&mut self, key: &Key) -> Result<Option<Duration>, ApiError> {
        let Some(set) = self.sets.get(key) else { return Ok(None) };
        if crate::selector::is_empty(set.at("/spec/selector")) {
            let text = "This daemon set is selecting all pods. A non-empty selector is required.";
            self.events.warning(&set, KIND, "SelectingAll", text);
            return Ok(None);
        }
        let surge = set.at("/spec/updateStrategy/rollingUpdate/maxSurge");
        if !(surge.is_null() || *surge == 0 || *surge == "0%") {
            let text = "maxSurge is not supported by the embedded control plane; the update goes by maxUnavailable";
            self.events.warning(&set, KIND, "UnsupportedMaxSurge", text);
        }
        let hash = if set.is_deleting() { String::new() } else { self.revision(&set).await? };
        let own = self.claim_pods(&set).await?;
        let plan = plan::plan(&set, &self.nodes.all(), &own, &hash, Timestamp::now());
        for pod in &plan.failed {
            let text =
                format!("Found failed daemon pod {} on node {}, will try to kill it", pod.key(), plan::node_of(pod));
            self.events.warning(&set, KIND, "FailedDaemonPod", text);
        }
        for pod in &plan.delete {
            self.delete(&set, pod).await?;
        }
        for node in &plan.create {
            self.create(&set, node, &hash).await?;
        }
        write_status(&self.client, &DAEMON_SETS, &self.sets, &set, plan.status).await?;
        Ok(plan.wait)
    }
}

impl DaemonSets {
    async fn claim_pods(&self, set: &Object) -> Result<Vec<Object>, ApiError> {
        Ok(claim_pods(&self.client, &self.pods, set, KIND, |_| true).await?.own)
    }

    async fn create(&self, set: &Object, node: &str, hash: &str) -> Result<(), ApiError> {
        match self.client.create(&PODS, plan::pod_for(set, node, hash)).await {
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

    async fn delete(&self, set: &Object, pod: &Object) -> Result<(), ApiError> {
        match self.client.delete(&PODS, &pod.key(), DeleteOptions::only(pod)).await {
            Ok(last) => {
                if let Some(last) = last {
                    self.pods.learn(&last);
                }
                self.events.normal(set, KIND, "SuccessfulDelete", format!("Deleted pod: {}", pod.name()));
                Ok(())
            }
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => {
                self.events.warning(set, KIND, "FailedDelete", format!("Error deleting: {error}"));
                Err(error)
            }
        }
    }

    /// The hash of the current revision.
    async fn revision(&self, set: &Object) -> Result<String, ApiError> {
        let history = revisions::ensure(&self.client, set, KIND, REVISION_HASH).await?;
        let hash = history.last().and_then(|r| r.label(REVISION_HASH)).unwrap_or_default().to_owned();
        let pods = self.pods.in_namespace(set.namespace());
        let used = |r: &Object| {
            let own = r.label(REVISION_HASH);
            own == Some(hash.as_str())
                || pods.iter().any(|p| p.is_controlled_by(set.uid()) && p.label(REVISION_HASH) == own)
        };
        revisions::prune(&self.client, set, &history, used).await?;
        Ok(hash)
    }
}
