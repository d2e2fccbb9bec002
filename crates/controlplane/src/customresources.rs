//! Removes the objects of a custom resource before its definition goes, so that a later definition of the same name does not
//! find them.

use std::sync::Arc;
use std::time::Duration;

use kubeapi::ApiError;
use serde_json::{Value, json};

use crate::client::{CUSTOM_RESOURCES, Client, DeleteOptions, Resource};
use crate::informer::{Cache, Informer};
use crate::object::{Key, Object};
use crate::queue::WorkQueue;
use crate::reconcile::Reconcile;

/// The finalizer that every definition gets (as upstream).
const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";
/// How long to wait for objects whose finalizers hold them.
const RETRY: Duration = Duration::from_secs(2);

/// The controller.
pub struct CustomResources {
    client: Client,
    definitions: Arc<Cache>,
}

/// Builds the controller and its queue.
pub fn new(client: Client, definitions: &mut Informer) -> (CustomResources, Arc<WorkQueue>) {
    let queue = Arc::new(WorkQueue::default());
    let own = queue.clone();
    definitions.on_change(move |change| own.add(change.object().key()));
    (CustomResources { client, definitions: definitions.cache() }, queue)
}

impl Reconcile for CustomResources {
    const NAME: &'static str = "customresource-controller";

    async fn reconcile(&mut self, key: &Key) -> Result<Option<Duration>, ApiError> {
        let Some(definition) = self.definitions.get(key) else { return Ok(None) };
        let marked = definition.has_finalizer(FINALIZER);
        match (definition.is_deleting(), marked) {
            (false, true) | (true, false) => Ok(None),
            (false, false) => {
                let mut finalizers = definition.list("/metadata/finalizers").to_vec();
                finalizers.push(json!(FINALIZER));
                self.set_finalizers(&definition, finalizers).await.map(|()| None)
            }
            (true, true) if self.remove_all(&definition).await? => {
                let rest =
                    definition.list("/metadata/finalizers").iter().filter(|f| *f != FINALIZER).cloned().collect();
                self.set_finalizers(&definition, rest).await.map(|()| None)
            }
            (true, true) => Ok(Some(RETRY)),
        }
    }
}

impl CustomResources {
    /// Deletes all objects of the kind; whether none is left.
    async fn remove_all(&self, definition: &Object) -> Result<bool, ApiError> {
        let resource = Resource::named(definition.text("/spec/group"), definition.text("/spec/names/plural"));
        let mut none_left = true;
        for object in self.client.list(&resource).await?.0 {
            let stays = object.is_deleting()
                || match self.client.delete(&resource, &object.key(), DeleteOptions::only(&object)).await {
                    Ok(last) => last.is_some(),
                    Err(error) if error.is_not_found() => false,
                    Err(error) => return Err(error),
                };
            none_left &= !stays;
        }
        Ok(none_left)
    }

    async fn set_finalizers(&self, definition: &Object, finalizers: Vec<Value>) -> Result<(), ApiError> {
        let patch = json!({"metadata": {
            "uid": definition.uid(), "resourceVersion": definition.text("/metadata/resourceVersion"), "finalizers": finalizers,
        }});
        match self.client.patch(&CUSTOM_RESOURCES, &definition.key(), None, patch).await {
            Ok(new) => self.definitions.learn(&new),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}
