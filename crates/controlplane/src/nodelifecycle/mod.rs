//! The node life cycle: notices silent nodes, taints them, marks their pods, and evicts where that is right.
//!
//! An edge node that is merely offline keeps its pods: they go on there. [`health`] decides, this file carries out.

pub mod health;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kubeapi::ApiError;
use serde_json::json;
use tracing::info;

use crate::client::{Client, DeleteOptions, NODES, PODS};
use crate::events::Recorder;
use crate::informer::{Cache, Change, Informer};
use crate::object::{Key, Object};
use crate::pods;
use crate::queue::WorkQueue;
use crate::reconcile::Reconcile;
use health::{Eviction, Heartbeat};

/// Where the leases of nodes are.
const LEASE_NAMESPACE: &str = "kube-node-lease";
const NODE: (&str, &str) = ("v1", "Node");
const POD: (&str, &str) = ("v1", "Pod");

/// The controller.
pub struct NodeLifecycle {
    client: Client,
    events: Recorder,
    eviction_events: Recorder,
    nodes: Arc<Cache>,
    pods: Arc<Cache>,
    leases: Arc<Cache>,
    /// How long a node may be silent.
    grace: Duration,
    /// The last sign of life of each node, by UID.
    heartbeats: HashMap<String, (Key, Heartbeat)>,
}

/// Builds the controller and its queue.
pub fn new(
    client: Client,
    events: &Recorder,
    nodes: &mut Informer,
    pods: &mut Informer,
    leases: &mut Informer,
    grace: Duration,
) -> (NodeLifecycle, Arc<WorkQueue>) {
    let queue = Arc::new(WorkQueue::default());
    let for_nodes = queue.clone();
    nodes.on_change(move |change| for_nodes.add(change.object().key()));
    let for_leases = queue.clone();
    leases.on_change(move |change| {
        if change.object().namespace() == LEASE_NAMESPACE {
            for_leases.add(Key::new("", change.object().name()));
        }
    });
    // A pod that arrives on a tainted node has to be looked at.
    let for_pods = queue.clone();
    pods.on_change(move |change| {
        let node = change.object().text("/spec/nodeName");
        let moved = match change {
            Change::Set { old: Some(old), new } => {
                old.text("/spec/nodeName") != node || old.at("/spec/tolerations") != new.at("/spec/tolerations")
            }
            Change::Set { old: None, .. } => true,
            Change::Gone(_) => false,
        };
        if moved && !node.is_empty() {
            for_pods.add(Key::new("", node));
        }
    });
    let controller = NodeLifecycle {
        client,
        eviction_events: events.component("taint-eviction-controller"),
        events: events.component("node-controller"),
        nodes: nodes.cache(),
        pods: pods.cache(),
        leases: leases.cache(),
        grace,
        heartbeats: HashMap::new(),
    };
    (controller, queue)
}

impl Reconcile for NodeLifecycle {
    const NAME: &'static str = "node-lifecycle-controller";

    async fn reconcile(&mut self, key: &Key) -> Result<Option<Duration>, ApiError> {
        let now = Timestamp::now();
        let Some(node) = self.nodes.get(key) else {
            self.heartbeats.retain(|_, (k, _)| k != key);
            return Ok(None);
        };
        let lease = self.leases.get(&Key::new(LEASE_NAMESPACE, node.name()));
        if !self.heartbeats.contains_key(node.uid()) {
            self.heartbeats.retain(|_, (k, _)| k != key);
            let text = format!("Node {0} event: Registered Node {0} in Controller", node.name());
            self.events.normal(&node, NODE, "RegisteredNode", text);
        }
        let (_, heartbeat) = self
            .heartbeats
            .entry(node.uid().to_owned())
            .or_insert_with(|| (key.clone(), Heartbeat::new(&node, lease.as_ref(), now)));
        heartbeat.observe(&node, lease.as_ref(), now);
        let remaining = heartbeat.remaining(&node, self.grace, now);
        let node = match remaining {
            Some(_) => node,
            None => self.mark_silent(node, now).await?,
        };
        let node = self.taint(node, now).await?;
        let ready = node.condition("Ready").and_then(|c| c["status"].as_str());
        if matches!(ready, Some("False" | "Unknown")) {
            self.mark_pods_unready(&node, now).await?;
        }
        let eviction = self.evict(&node, now).await?;
        Ok([remaining, eviction].into_iter().flatten().min())
    }
}

impl NodeLifecycle {
    async fn mark_silent(&self, node: Object, now: Timestamp) -> Result<Object, ApiError> {
        let Some(conditions) = health::silent_conditions(&node, now) else { return Ok(node) };
        let was_ready = node.condition("Ready").is_some_and(|c| c["status"] == "True");
        let patch = json!({
            "metadata": {"uid": node.uid(), "resourceVersion": node.text("/metadata/resourceVersion")},
            "status": {"conditions": conditions},
        });
        let new = self.client.patch(&NODES, &node.key(), Some("status"), patch).await?;
        self.nodes.learn(&new);
        info!(node = node.name(), "node is silent");
        if was_ready {
            let text = format!("Node {} status is now: NodeNotReady", node.name());
            self.events.normal(&node, NODE, "NodeNotReady", text);
        }
        Ok(new)
    }

    async fn taint(&self, node: Object, now: Timestamp) -> Result<Object, ApiError> {
        let Some(taints) = health::wanted_taints(&node, now) else { return Ok(node) };
        let taints = if taints.is_empty() { json!(null) } else { json!(taints) };
        let patch = json!({
            "metadata": {"uid": node.uid(), "resourceVersion": node.text("/metadata/resourceVersion")},
            "spec": {"taints": taints},
        });
        let new = self.client.patch(&NODES, &node.key(), None, patch).await?;
        self.nodes.learn(&new);
        Ok(new)
    }

    fn pods_of(&self, node: &Object) -> Vec<Object> {
        self.pods.matching(|p| p.text("/spec/nodeName") == node.name() && !pods::is_finished(p))
    }

    async fn mark_pods_unready(&self, node: &Object, now: Timestamp) -> Result<(), ApiError> {
        // Only silence is our business: a node that says itself that it is not ready speaks for its pods too.
        if node.condition("Ready").is_none_or(|c| c["status"] != "Unknown") {
            return Ok(());
        }
        for pod in self.pods_of(node) {
            let Some(conditions) = health::unready_pod_conditions(&pod, now) else { continue };
            let patch = json!({
                "metadata": {"uid": pod.uid(), "resourceVersion": pod.text("/metadata/resourceVersion")},
                "status": {"conditions": conditions},
            });
            match self.client.patch(&PODS, &pod.key(), Some("status"), patch).await {
                Ok(new) => {
                    self.pods.learn(&new);
                    self.events.warning(&pod, POD, "NodeNotReady", "Node is not ready");
                }
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Deletes the pods that do not tolerate the node's `NoExecute` taints (any longer); when the next one is due.
    async fn evict(&self, node: &Object, now: Timestamp) -> Result<Option<Duration>, ApiError> {
        if !node.list("/spec/taints").iter().any(|t| t["effect"] == "NoExecute") {
            return Ok(None);
        }
        let mut next: Option<Duration> = None;
        for pod in self.pods_of(node) {
            if pod.is_deleting() {
                continue;
            }
            match health::eviction(node, &pod, now) {
                Eviction::Stay => {}
                Eviction::Later(rest) => next = Some(next.map_or(rest, |n| n.min(rest))),
                Eviction::Now => {
                    let text = format!("Marking for deletion Pod {}", pod.key());
                    self.eviction_events.normal(&pod, POD, "TaintManagerEviction", text);
                    match self.client.delete(&PODS, &pod.key(), DeleteOptions::only(&pod)).await {
                        Err(error) if !error.is_not_found() => return Err(error),
                        _ => {}
                    }
                }
            }
        }
        Ok(next)
    }
}
