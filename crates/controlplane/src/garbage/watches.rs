//! Watches of all kinds that no controller shares an informer for: only owners and finalizers are kept of what they tell.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kubeapi::ApiError;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::graph::Entry;
use super::{SharedGraph, look_at};
use crate::client::{Client, EVENTS, Resource, WatchEvent};
use crate::informer::Informer;
use crate::queue::WorkQueue;

/// The pause before a failed list is tried again.
const RELIST_PAUSE: Duration = Duration::from_secs(1);

/// The task that keeps one watch for every such kind, as kinds come and go.
pub struct Watches {
    client: Client,
    graph: SharedGraph,
    queue: Arc<WorkQueue>,
    shared: Vec<Resource>,
    changed: Arc<Notify>,
}

impl Watches {
    pub(super) fn new(
        client: Client,
        graph: SharedGraph,
        queue: Arc<WorkQueue>,
        shared: Vec<Resource>,
        definitions: &mut Informer,
    ) -> Self {
        let changed = Arc::new(Notify::new());
        let notify = changed.clone();
        definitions.on_change(move |_| notify.notify_one());
        Self { client, graph, queue, shared, changed }
    }

    /// Runs until cancelled.
    pub async fn run(self, token: CancellationToken) {
        let mut running: HashMap<Resource, CancellationToken> = HashMap::new();
        let mut tasks = JoinSet::new();
        loop {
            let served: Vec<Resource> = self.client.kinds().into_iter().map(|k| k.resource).collect();
            running.retain(|resource, stop| {
                let keep = served.contains(resource);
                if !keep {
                    stop.cancel();
                }
                keep
            });
            for resource in served {
                if resource == EVENTS
                    || resource.plural == "events"
                    || self.shared.contains(&resource)
                    || running.contains_key(&resource)
                {
                    continue;
                }
                let stop = token.child_token();
                running.insert(resource.clone(), stop.clone());
                let (client, graph, queue) = (self.client.clone(), self.graph.clone(), self.queue.clone());
                tasks.spawn(async move {
                    stop.run_until_cancelled(follow_forever(&client, &resource, &graph, &queue)).await;
                });
            }
            tokio::select! {
                () = token.cancelled() => break,
                () = self.changed.notified() => {}
                Some(_) = tasks.join_next() => {}
            }
        }
        while tasks.join_next().await.is_some() {}
    }
}

async fn follow_forever(client: &Client, resource: &Resource, graph: &SharedGraph, queue: &WorkQueue) {
    loop {
        if let Err(error) = follow(client, resource, graph, queue).await {
            debug!(%resource, %error, "watch ended, listing again");
            if error.reason != "Expired" {
                tokio::time::sleep(RELIST_PAUSE).await;
            }
        }
    }
}

async fn follow(client: &Client, resource: &Resource, graph: &SharedGraph, queue: &WorkQueue) -> Result<(), ApiError> {
    let (items, version) = client.list(resource).await?;
    let entries = items.iter().map(|o| Entry::of(resource, o)).collect();
    drop(items);
    let look = graph.lock().relist(resource, entries);
    look_at(queue, look);
    let mut events = client.watch(resource, version).await?;
    loop {
        let look = match events.next().await? {
            WatchEvent::Set(object) => graph.lock().set(Entry::of(resource, &object)),
            WatchEvent::Gone(object) => graph.lock().remove(object.uid()),
        };
        look_at(queue, look);
    }
}
