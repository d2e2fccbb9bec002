//! The garbage collector: deletes what has lost its owners, and carries out foreground and orphaning deletions.
//!
//! [`graph`] knows who belongs to whom and decides, `watches` feeds it from every kind that is served; this file carries out.
//! Keys of its queue are UIDs.

pub mod graph;
mod watches;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kubeapi::ApiError;
use serde_json::{Value, json};
use tracing::debug;

use crate::client::{Client, DeleteOptions, Resource};
use crate::informer::{Change, Informer};
use crate::object::{Key, Object};
use crate::queue::WorkQueue;
use crate::reconcile::Reconcile;
use graph::{Entry, FOREGROUND, Graph, ORPHAN, OwnerRef, OwnerState, Verdict, verdict};
pub use watches::Watches;

/// An owner whose kind is not served (any more) is asked for again after this time.
const UNKNOWN_KIND_RETRY: Duration = Duration::from_secs(300);

/// The graph, shared by the watches that feed it and the collector that reads it.
#[derive(Clone, Default)]
pub struct SharedGraph(Arc<Mutex<Graph>>);

impl SharedGraph {
    fn lock(&self) -> MutexGuard<'_, Graph> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The controller.
pub struct GarbageCollector {
    client: Client,
    graph: SharedGraph,
}

/// Builds the collector, the task that watches all kinds without a shared informer, and the queue.
pub fn new(
    client: Client,
    informers: &mut [(&Resource, &mut Informer)],
    definitions: &mut Informer,
) -> (GarbageCollector, Watches, Arc<WorkQueue>) {
    let queue = Arc::new(WorkQueue::default());
    let graph = SharedGraph::default();
    let mut shared = Vec::new();
    for (resource, informer) in informers {
        let (graph, queue, name) = (graph.clone(), queue.clone(), (*resource).clone());
        informer.on_change(move |change| {
            let look = match change {
                Change::Set { new, .. } => graph.lock().set(Entry::of(&name, new)),
                Change::Gone(last) => graph.lock().remove(last.uid()),
            };
            look_at(&queue, look);
        });
        shared.push((*resource).clone());
    }
    let watches = Watches::new(client.clone(), graph.clone(), queue.clone(), shared, definitions);
    (GarbageCollector { client, graph }, watches, queue)
}

fn look_at(queue: &WorkQueue, uids: Vec<String>) {
    for uid in uids {
        queue.add(Key::new("", uid));
    }
}

impl Reconcile for GarbageCollector {
    const NAME: &'static str = "garbage-collector";

    async fn reconcile(&mut self, key: &Key) -> Result<Option<Duration>, ApiError> {
        let (entry, dependents) = {
            let graph = self.graph.lock();
            (graph.get(&key.name).cloned(), graph.dependents(&key.name))
        };
        let Some(entry) = entry else { return Ok(None) };
        if entry.deleting && entry.orphan {
            return self.orphan(&entry, dependents).await;
        }
        if entry.deleting && entry.foreground {
            return self.foreground(&entry, dependents).await;
        }
        let mut states = Vec::new();
        for owner in &entry.owners {
            match self.state(&entry, owner).await? {
                Some(state) => states.push(state),
                None => return Ok(Some(UNKNOWN_KIND_RETRY)),
            }
        }
        match verdict(&entry, &states, !dependents.is_empty()) {
            Verdict::Keep => {}
            Verdict::Detach(uids) => self.detach(&entry, &uids).await?,
            Verdict::Delete(propagation) => {
                debug!(resource = %entry.resource, object = %entry.key, "deleting what has lost its owner");
                self.delete(&entry, propagation).await?;
            }
        }
        Ok(None)
    }
}

impl GarbageCollector {
    /// How an owner stands; `None` if its kind is not served.
    async fn state(&self, entry: &Entry, owner: &OwnerRef) -> Result<Option<OwnerState>, ApiError> {
        let group = owner.api_version.rsplit_once('/').map_or("", |(group, _)| group);
        let Some(kind) = self.client.kind(group, &owner.kind) else { return Ok(None) };
        let namespace = if kind.namespaced { entry.key.namespace.as_str() } else { "" };
        match self.client.get(&kind.resource, &Key::new(namespace, owner.name.as_str())).await {
            Ok(found) if found.uid() != owner.uid => Ok(Some(OwnerState::Gone)),
            Ok(found) if found.is_deleting() && found.has_finalizer(FOREGROUND) => Ok(Some(OwnerState::Waiting)),
            Ok(_) => Ok(Some(OwnerState::Solid)),
            Err(error) if error.is_not_found() => Ok(Some(OwnerState::Gone)),
            Err(error) => Err(error),
        }
    }

    /// Deletes the dependents of an object that waits for them; when none of those it waits for is left, lets it go.
    async fn foreground(&self, entry: &Entry, dependents: Vec<Entry>) -> Result<Option<Duration>, ApiError> {
        let mut waits = false;
        for dependent in dependents {
            waits |= dependent.owners.iter().any(|o| o.uid == entry.uid && o.blocks);
            if dependent.deleting {
                continue;
            }
            let mut states = Vec::new();
            for owner in &dependent.owners {
                states.push(self.state(&dependent, owner).await?.unwrap_or(OwnerState::Solid));
            }
            let deeper = !self.graph.lock().dependents(&dependent.uid).is_empty();
            match verdict(&dependent, &states, deeper) {
                Verdict::Keep => {}
                Verdict::Detach(uids) => self.detach(&dependent, &uids).await?,
                Verdict::Delete(propagation) => self.delete(&dependent, propagation).await?,
            }
        }
        if !waits {
            self.remove_finalizer(entry, FOREGROUND).await?;
        }
        Ok(None)
    }

    async fn orphan(&self, entry: &Entry, dependents: Vec<Entry>) -> Result<Option<Duration>, ApiError> {
        for dependent in &dependents {
            self.detach(dependent, std::slice::from_ref(&entry.uid)).await?;
        }
        self.remove_finalizer(entry, ORPHAN).await?;
        Ok(None)
    }

    async fn delete(&self, entry: &Entry, propagation: &'static str) -> Result<(), ApiError> {
        let options = DeleteOptions { uid: entry.uid.clone(), now: false, propagation };
        match self.client.delete(&entry.resource, &entry.key, options).await {
            // Gone, or the name belongs to somebody else by now.
            Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
            other => other.map(drop),
        }
    }

    async fn detach(&self, entry: &Entry, owners: &[String]) -> Result<(), ApiError> {
        self.filter(entry, "ownerReferences", |o| !owners.iter().any(|uid| o["uid"] == uid.as_str())).await
    }

    async fn remove_finalizer(&self, entry: &Entry, name: &str) -> Result<(), ApiError> {
        self.filter(entry, "finalizers", |f| f != name).await
    }

    /// Takes elements out of a list in the metadata of exactly this object.
    async fn filter(&self, entry: &Entry, field: &str, keep: impl Fn(&Value) -> bool) -> Result<(), ApiError> {
        let current: Object = match self.client.get(&entry.resource, &entry.key).await {
            Ok(object) if object.uid() == entry.uid => object,
            Ok(_) => return Ok(()),
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) => return Err(error),
        };
        let old = current.at("/metadata")[field].as_array().cloned().unwrap_or_default();
        let new: Vec<Value> = old.iter().filter(|v| keep(v)).cloned().collect();
        if new.len() == old.len() {
            return Ok(());
        }
        let mut patch =
            json!({"metadata": {"uid": entry.uid, "resourceVersion": current.text("/metadata/resourceVersion")}});
        patch["metadata"][field] = json!(new);
        self.client.patch(&entry.resource, &entry.key, None, patch).await.map(drop)
    }
}
