//! The endpoints controller: writes the addresses of the pods behind each Service, as Endpoints and as EndpointSlices.
//!
//! [`plan`] decides, this file carries out. Nothing here carries traffic: that is up to whatever reads these objects.

pub mod plan;

use std::sync::Arc;
use std::time::Duration;

use kubeapi::ApiError;
use serde_json::{Value, json};

use crate::client::{Client, DeleteOptions, ENDPOINT_SLICES, ENDPOINTS};
use crate::informer::{Cache, Change, Informer};
use crate::object::{Key, Object, controller_reference};
use crate::queue::WorkQueue;
use crate::reconcile::Reconcile;
use plan::{MANAGED_BY, MANAGER, SERVICE_NAME};

/// The controller.
pub struct Endpoints {
    client: Client,
    services: Arc<Cache>,
    pods: Arc<Cache>,
}

/// Builds the controller and its queue.
pub fn new(client: Client, services: &mut Informer, pods: &mut Informer) -> (Endpoints, Arc<WorkQueue>) {
    let queue = Arc::new(WorkQueue::default());
    let own = queue.clone();
    services.on_change(move |change| own.add(change.object().key()));
    let (for_pods, all) = (queue.clone(), services.cache());
    pods.on_change(move |change| {
        let old = if let Change::Set { old, .. } = change { old } else { None };
        for service in all.in_namespace(change.object().namespace()) {
            if plan::selects(&service, change.object()) || old.is_some_and(|old| plan::selects(&service, old)) {
                for_pods.add(service.key());
            }
        }
    });
    (Endpoints { client, services: services.cache(), pods: pods.cache() }, queue)
}

impl Reconcile for Endpoints {
    const NAME: &'static str = "endpoint-controller";

    async fn reconcile(&mut self, key: &Key) -> Result<Option<Duration>, ApiError> {
        // What belongs to a Service that is gone, the garbage collector takes.
        let Some(service) = self.services.get(key).filter(|s| plan::is_ours(s) && !s.is_deleting()) else {
            return Ok(None);
        };
        let pods = self.pods.in_namespace(&key.namespace);
        self.write_endpoints(&service, plan::subsets(&service, &pods)).await?;
        self.write_slices(&service, plan::slices(&service, &pods)).await?;
        Ok(None)
    }
}

impl Endpoints {
    async fn write_endpoints(&self, service: &Object, subsets: Vec<Value>) -> Result<(), ApiError> {
        match self.client.get(&ENDPOINTS, &service.key()).await {
            Ok(current) if current.list("/subsets") == subsets.as_slice() => {}
            Ok(_) => drop(self.client.patch(&ENDPOINTS, &service.key(), None, json!({"subsets": subsets})).await?),
            Err(error) if error.is_not_found() => {
                let endpoints = json!({
                    "apiVersion": "v1", "kind": "Endpoints",
                    "metadata": {
                        "name": service.name(), "namespace": service.namespace(), "labels": service.at("/metadata/labels"),
                        "ownerReferences": [controller_reference(service, "v1", "Service")],
                    },
                    "subsets": subsets,
                });
                self.client.create(&ENDPOINTS, endpoints).await?;
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn write_slices(&self, service: &Object, wanted: Vec<Value>) -> Result<(), ApiError> {
        let all = self.client.list_in(&ENDPOINT_SLICES, service.namespace()).await?;
        let ours = |s: &&Object| s.label(SERVICE_NAME) == Some(service.name()) && s.label(MANAGED_BY) == Some(MANAGER);
        let current: Vec<&Object> = all.iter().filter(ours).collect();
        for slice in &current {
            if !wanted.iter().any(|w| w["metadata"]["name"] == slice.name()) {
                match self.client.delete(&ENDPOINT_SLICES, &slice.key(), DeleteOptions::only(slice)).await {
                    Err(error) if !error.is_not_found() => return Err(error),
                    _ => {}
                }
            }
        }
        for slice in wanted {
            let found = current.iter().find(|c| slice["metadata"]["name"] == c.name());
            match found {
                Some(c) if c.value()["endpoints"] == slice["endpoints"] => {}
                Some(c) => {
                    let patch = json!({"endpoints": slice["endpoints"]});
                    self.client.patch(&ENDPOINT_SLICES, &c.key(), None, patch).await?;
                }
                None => drop(self.client.create(&ENDPOINT_SLICES, slice).await?),
            }
        }
        Ok(())
    }
}
