//! The namespace controller: empties a namespace that is being deleted, then lets it go.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kubeapi::ApiError;
use serde_json::{Value, json};
use tracing::info;

use crate::client::{Client, DeleteOptions, NAMESPACES};
use crate::informer::{Cache, Change, Informer};
use crate::object::{Key, Object, time_text};
use crate::pods;
use crate::queue::WorkQueue;
use crate::reconcile::Reconcile;

/// The finalizer in `spec.finalizers` that is this controller's.
const FINALIZER: &str = "kubernetes";
/// How long to wait for what is on its way out, unless a pod's end tells earlier.
const RETRY: Duration = Duration::from_secs(2);

/// The controller.
pub struct Namespaces {
    client: Client,
    namespaces: Arc<Cache>,
}

/// What is left in a namespace: (kind, how many, the finalizers that hold some of them).
type Remains = Vec<(String, usize, Vec<String>)>;

/// Builds the controller and its queue.
pub fn new(client: Client, namespaces: &mut Informer, pods: &mut Informer) -> (Namespaces, Arc<WorkQueue>) {
    let queue = Arc::new(WorkQueue::default());
    let own = queue.clone();
    namespaces.on_change(move |change| {
        if change.object().is_deleting() {
            own.add(change.object().key());
        }
    });
    let (for_pods, all) = (queue.clone(), namespaces.cache());
    pods.on_change(move |change| {
        if let Change::Gone(pod) = change {
            let key = Key::new("", pod.namespace());
            if all.get(&key).is_some_and(|n| n.is_deleting()) {
                for_pods.add(key);
            }
        }
    });
    (Namespaces { client, namespaces: namespaces.cache() }, queue)
}

impl Reconcile for Namespaces {
    const NAME: &'static str = "namespace-controller";

    async fn reconcile(&mut self, key: &Key) -> Result<Option<Duration>, ApiError> {
        let Some(namespace) = self.namespaces.get(key).filter(Object::is_deleting) else { return Ok(None) };
        if !namespace.list("/spec/finalizers").iter().any(|f| f == FINALIZER) {
            return Ok(None);
        }
        let remains = self.empty(&key.name).await?;
        if remains.is_empty() {
            let mut done = namespace.to_value();
            let finalizers: Vec<Value> =
                namespace.list("/spec/finalizers").iter().filter(|f| *f != FINALIZER).cloned().collect();
            done["spec"]["finalizers"] = json!(finalizers);
            match self.client.update_sub(&NAMESPACES, "finalize", done).await {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => info!(namespace = key.name, "namespace is empty and gone"),
            }
            return Ok(None);
        }
        self.report(&namespace, &remains).await?;
        Ok(Some(RETRY))
    }
}

impl Namespaces {
    /// Asks for the deletion of everything in the namespace; what is still there afterwards.
    async fn empty(&self, namespace: &str) -> Result<Remains, ApiError> {
        let mut remains = Remains::new();
        for kind in self.client.kinds().into_iter().filter(|k| k.namespaced) {
            let objects = self.client.list_in(&kind.resource, namespace).await?;
            let (mut left, mut finalizers) = (0, Vec::new());
            for object in objects {
                let stays = if object.is_deleting() {
                    Some(object)
                } else {
                    let options = DeleteOptions { propagation: "Background", ..DeleteOptions::only(&object) };
                    match self.client.delete(&kind.resource, &object.key(), options).await {
                        Ok(last) => last,
                        Err(error) if error.is_not_found() => None,
                        Err(error) => return Err(error),
                    }
                };
                if let Some(object) = stays {
                    left += 1;
                    finalizers.extend(
                        object.list("/metadata/finalizers").iter().filter_map(Value::as_str).map(str::to_owned),
                    );
                }
            }
            if left > 0 {
                remains.push((kind.resource.to_string(), left, finalizers));
            }
        }
        Ok(remains)
    }

    /// Says in the status what the deletion waits for.
    async fn report(&self, namespace: &Object, remains: &Remains) -> Result<(), ApiError> {
        let list: Vec<String> =
            remains.iter().map(|(kind, n, _)| format!("{kind} has {n} resource instances")).collect();
        let mut held: Vec<String> = remains.iter().flat_map(|(_, _, f)| f.clone()).collect();
        held.sort();
        held.dedup();
        let now = time_text(Timestamp::now());
        let mut conditions = namespace.list("/status/conditions").to_vec();
        let message = format!("Some resources are remaining: {}", list.join(", "));
        let mut changed = pods::set_condition(
            &mut conditions,
            "NamespaceContentRemaining",
            "True",
            "SomeResourcesRemain",
            &message,
            &now,
        );
        let (status, reason, message) = if held.is_empty() {
            ("False", "ContentHasNoFinalizers", "All content-preserving finalizers finished".to_owned())
        } else {
            let text = format!("Some content in the namespace has finalizers remaining: {}", held.join(", "));
            ("True", "SomeFinalizersRemain", text)
        };
        changed |= pods::set_condition(&mut conditions, "NamespaceFinalizersRemaining", status, reason, &message, &now);
        if changed {
            let patch = json!({"metadata": {"uid": namespace.uid()}, "status": {"conditions": conditions}});
            match self.client.patch(&NAMESPACES, &namespace.key(), Some("status"), patch).await {
                Ok(new) => self.namespaces.learn(&new),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
