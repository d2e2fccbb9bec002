//! Collects pods that nobody will ever end: those whose node is gone, and ended ones beyond a limit.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kubeapi::ApiError;
use serde_json::json;
use tracing::info;

use crate::client::{Client, DeleteOptions, NODES, PODS};
use crate::events::Recorder;
use crate::informer::{Cache, Change, Informer};
use crate::object::{Key, Object, time_text};
use crate::pods;
use crate::queue::WorkQueue;
use crate::reconcile::Reconcile;

/// Ended pods that may stay for people to look at (as upstream).
const ENDED_LIMIT: usize = 12_500;
const POD: (&str, &str) = ("v1", "Pod");

/// The controller.
pub struct PodCollector {
    client: Client,
    events: Recorder,
    nodes: Arc<Cache>,
    pods: Arc<Cache>,
}

/// Builds the controller and its queue. Its keys are node names.
pub fn new(
    client: Client,
    events: &Recorder,
    nodes: &mut Informer,
    pods: &mut Informer,
) -> (PodCollector, Arc<WorkQueue>) {
    let queue = Arc::new(WorkQueue::default());
    let for_nodes = queue.clone();
    nodes.on_change(move |change| {
        if let Change::Gone(node) = change {
            for_nodes.add(node.key());
        }
    });
    let (for_pods, all_nodes) = (queue.clone(), nodes.cache());
    pods.on_change(move |change| {
        if let Change::Set { new, .. } = change {
            let node = Key::new("", new.text("/spec/nodeName"));
            if pods::is_finished(new) || (!node.name.is_empty() && all_nodes.get(&node).is_none()) {
                for_pods.add(node);
            }
        }
    });
    let events = events.component("pod-garbage-collector");
    (PodCollector { client, events, nodes: nodes.cache(), pods: pods.cache() }, queue)
}

impl Reconcile for PodCollector {
    const NAME: &'static str = "pod-garbage-collector";

    async fn reconcile(&mut self, node: &Key) -> Result<Option<Duration>, ApiError> {
        if !node.name.is_empty() && self.nodes.get(node).is_none() {
            let orphans = self.pods.matching(|p| p.text("/spec/nodeName") == node.name);
            // The watch of nodes may be behind that of pods: ask.
            if !orphans.is_empty() && self.client.get(&NODES, node).await.is_err_and(|e| e.is_not_found()) {
                for pod in orphans {
                    self.collect(&pod).await?;
                }
            }
        }
        let mut ended = self.pods.matching(pods::is_finished);
        if ended.len() > ENDED_LIMIT {
            ended.sort_by_key(Object::created);
            for pod in &ended[..ended.len() - ENDED_LIMIT] {
                self.remove(pod).await?;
            }
        }
        Ok(None)
    }
}

impl PodCollector {
    async fn collect(&self, pod: &Object) -> Result<(), ApiError> {
        info!(pod = %pod.key(), node = pod.text("/spec/nodeName"), "collecting the pod of a node that is gone");
        if !pods::is_finished(pod) {
            let mut conditions = pod.list("/status/conditions").to_vec();
            let message = "PodGC: node no longer exists";
            pods::set_condition(
                &mut conditions,
                "DisruptionTarget",
                "True",
                "DeletionByPodGC",
                message,
                &time_text(Timestamp::now()),
            );
            let patch =
                json!({"metadata": {"uid": pod.uid()}, "status": {"phase": "Failed", "conditions": conditions}});
            match self.client.patch(&PODS, &pod.key(), Some("status"), patch).await {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
            self.events.normal(pod, POD, "DeletingOrphanedPod", "Deleting pod: its node is gone");
        }
        self.remove(pod).await
    }

    async fn remove(&self, pod: &Object) -> Result<(), ApiError> {
        match self.client.delete(&PODS, &pod.key(), DeleteOptions::at_once(pod)).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }
}
