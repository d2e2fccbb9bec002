//! The scheduler: gives every pending pod of `default-scheduler` a node, or says why none will have it.
//!
//! [`decide`] is the decision, [`node`] what it sees; this file keeps the list of waiting pods and carries out.

pub mod affinity;
pub mod decide;
pub mod node;
pub mod resources;
pub mod taints;
#[cfg(test)]
mod tests;
pub mod volumes;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kubeapi::ApiError;
use serde_json::json;
use tracing::debug;

use crate::client::{Client, PODS, VOLUMES};
use crate::events::Recorder;
use crate::informer::{Cache, Change, Informer};
use crate::object::{Key, Object, time_text};
use crate::pods;
use crate::queue::WorkQueue;
use crate::reconcile::Reconcile;
use decide::{Decision, decide};
use node::snapshot;
use volumes::{Promise, Stock};

const KIND: (&str, &str) = ("v1", "Pod");
/// A pod that fits nowhere is looked at again after this time even if nothing is known to have changed (as upstream).
const RETRY_UNSCHEDULABLE: Duration = Duration::from_secs(300);
/// The name that pods without a wish of their own have.
const NAME: &str = "default-scheduler";

/// The scheduler.
pub struct Scheduler {
    client: Client,
    events: Recorder,
    nodes: Arc<Cache>,
    pods: Arc<Cache>,
    claims: Arc<Cache>,
    volumes: Arc<Cache>,
    classes: Arc<Cache>,
    /// Pods that were bound but whose watch event has not come yet, by UID.
    assumed: HashMap<String, String>,
}

/// Builds the scheduler and its queue.
pub fn new(
    client: Client,
    events: &Recorder,
    nodes: &mut Informer,
    pods: &mut Informer,
    [claims, volumes, classes]: [&mut Informer; 3],
) -> (Scheduler, Arc<WorkQueue>) {
    let queue = Arc::new(WorkQueue::default());
    let (for_pods, all) = (queue.clone(), pods.cache());
    pods.on_change(move |change| {
        let pod = change.object();
        let frees = matches!(change, Change::Gone(_)) || pods::is_finished(pod);
        if frees {
            wake_waiting(&for_pods, &all);
        } else if is_waiting(pod) && !only_our_verdict(change) {
            for_pods.add(pod.key());
        }
    });
    let (for_nodes, all) = (queue.clone(), pods.cache());
    nodes.on_change(move |change| {
        let relevant =
            |n: &Object| (n.at("/metadata/labels").clone(), n.at("/spec").clone(), n.at("/status/allocatable").clone());
        if let Change::Set { old: Some(old), new } = change
            && relevant(old) == relevant(new)
        {
            return;
        }
        wake_waiting(&for_nodes, &all);
    });
    for informer in [&mut *claims, &mut *volumes, &mut *classes] {
        let (queue, all) = (queue.clone(), pods.cache());
        informer.on_change(move |_| wake_waiting(&queue, &all));
    }
    let scheduler = Scheduler {
        client,
        events: events.component(NAME),
        nodes: nodes.cache(),
        pods: pods.cache(),
        claims: claims.cache(),
        volumes: volumes.cache(),
        classes: classes.cache(),
        assumed: HashMap::new(),
    };
    (scheduler, queue)
}

fn is_waiting(pod: &Object) -> bool {
    let scheduler = pod.text("/spec/schedulerName");
    pod.text("/spec/nodeName").is_empty() && pods::is_active(pod) && (scheduler.is_empty() || scheduler == NAME)
}

/// The change is the condition that the scheduler itself wrote: no reason to try again.
fn only_our_verdict(change: Change<'_>) -> bool {
    matches!(change, Change::Set { old: Some(old), new }
        if old.at("/spec") == new.at("/spec") && old.labels() == new.labels() && old.at("/status") != new.at("/status"))
}

/// Queues all waiting pods, the most important and then the oldest first.
fn wake_waiting(queue: &WorkQueue, pods: &Cache) {
    let mut waiting = pods.matching(is_waiting);
    waiting.sort_by_key(|p| (-p.int("/spec/priority").unwrap_or(0), p.created(), p.name().to_owned()));
    for pod in waiting {
        queue.add(pod.key());
    }
}

impl Reconcile for Scheduler {
    const NAME: &'static str = NAME;

    async fn reconcile(&mut self, key: &Key) -> Result<Option<Duration>, ApiError> {
        let Some(pod) = self.pods.get(key).filter(is_waiting) else { return Ok(None) };
        self.forget_confirmed();
        if self.assumed.contains_key(pod.uid()) {
            return Ok(None);
        }
        if !pod.list("/spec/schedulingGates").is_empty() {
            self.verdict(&pod, "SchedulingGated", "Scheduling is blocked due to non-empty scheduling gates").await?;
            return Ok(None);
        }
        let nodes = snapshot(self.nodes.all(), self.pods.all(), |p| self.assumed.get(p.uid()).map(String::as_str));
        let stock = Stock::of(&pod, &self.claims, &self.volumes, &self.classes);
        match decide(&pod, &nodes, &stock) {
            Decision::Bind(node) => {
                self.bind(&pod, node).await?;
                Ok(None)
            }
            Decision::Promise(promises) => {
                for promise in promises {
                    self.promise(&promise).await?;
                }
                Ok(None)
            }
            Decision::Wait => Ok(None),
            Decision::Unschedulable(message) => {
                debug!(pod = %key, message, "pod fits nowhere");
                self.events.warning(&pod, KIND, "FailedScheduling", message.as_str());
                self.verdict(&pod, "Unschedulable", &message).await?;
                Ok(Some(RETRY_UNSCHEDULABLE))
            }
        }
    }
}

impl Scheduler {
    async fn bind(&mut self, pod: &Object, node: String) -> Result<(), ApiError> {
        match self.client.bind(pod, &node).await {
            Ok(()) => {
                let text = format!("Successfully assigned {} to {node}", pod.key());
                self.events.normal(pod, KIND, "Scheduled", text);
                self.assumed.insert(pod.uid().to_owned(), node);
                Ok(())
            }
            // Deleted or bound by somebody else meanwhile: the watch will tell.
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Writes on a volume whose it becomes; the binder does the rest, and the bound claim brings the pod back here.
    async fn promise(&self, promise: &Promise) -> Result<(), ApiError> {
        let volume = self.volumes.get(&Key::new("", promise.volume.as_str()));
        let (Some(volume), Some(claim)) = (volume, self.claims.get(&promise.claim)) else { return Ok(()) };
        let patch = crate::volumes::plan::promise(&volume, &claim);
        let volume = self.client.patch(&VOLUMES, &volume.key(), None, patch).await?;
        self.volumes.learn(&volume);
        Ok(())
    }

    /// Writes the `PodScheduled` condition unless it says so already.
    async fn verdict(&self, pod: &Object, reason: &str, message: &str) -> Result<(), ApiError> {
        let mut conditions = pod.list("/status/conditions").to_vec();
        if !pods::set_condition(&mut conditions, "PodScheduled", "False", reason, message, &time_text(Timestamp::now()))
        {
            return Ok(());
        }
        let patch = json!({
            "metadata": {"uid": pod.uid(), "resourceVersion": pod.text("/metadata/resourceVersion")},
            "status": {"conditions": conditions},
        });
        match self.client.patch(&PODS, &pod.key(), Some("status"), patch).await {
            Ok(pod) => self.pods.learn(&pod),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn forget_confirmed(&mut self) {
        if self.assumed.is_empty() {
            return;
        }
        let unbound = self.pods.matching(|p| p.text("/spec/nodeName").is_empty() && self.assumed.contains_key(p.uid()));
        self.assumed.retain(|uid, _| unbound.iter().any(|p| p.uid() == uid));
    }
}
