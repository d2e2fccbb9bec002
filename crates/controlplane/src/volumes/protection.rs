//! Keeps claims that pods use and volumes that claims are bound to, after their deletion was asked for.
//!
//! The API server puts the finalizers on; this controller takes them off.

use std::sync::Arc;
use std::time::Duration;

use kubeapi::ApiError;
use serde_json::{Value, json};

use crate::client::{CLAIMS, Client, PODS, Resource, VOLUMES};
use crate::informer::{Cache, Change, Informer};
use crate::object::{Key, Object};
use crate::queue::WorkQueue;
use crate::reconcile::Reconcile;

const CLAIM_FINALIZER: &str = "kubernetes.io/pvc-protection";
const VOLUME_FINALIZER: &str = "kubernetes.io/pv-protection";

/// The controller. Its keys are those of claims and, without namespace, of volumes.
pub struct Protection {
    client: Client,
    claims: Arc<Cache>,
    volumes: Arc<Cache>,
}

/// Builds the controller and its queue.
pub fn new(
    client: Client,
    claims: &mut Informer,
    volumes: &mut Informer,
    pods: &mut Informer,
) -> (Protection, Arc<WorkQueue>) {
    let queue = Arc::new(WorkQueue::default());
    for informer in [&mut *claims, &mut *volumes] {
        let queue = queue.clone();
        informer.on_change(move |change| {
            if let Change::Set { new, .. } = change
                && new.is_deleting()
            {
                queue.add(new.key());
            }
        });
    }
    let for_pods = queue.clone();
    pods.on_change(move |change| {
        if let Change::Gone(pod) = change {
            for name in claims_of(pod) {
                for_pods.add(Key::new(pod.namespace(), name));
            }
        }
    });
    (Protection { client, claims: claims.cache(), volumes: volumes.cache() }, queue)
}

impl Reconcile for Protection {
    const NAME: &'static str = "pv-protection-controller";

    async fn reconcile(&mut self, key: &Key) -> Result<Option<Duration>, ApiError> {
        if key.namespace.is_empty() {
            let volume = self.volumes.get(key).filter(|v| may_go(v, VOLUME_FINALIZER));
            if let Some(volume) = volume.filter(|v| v.text("/status/phase") != "Bound") {
                self.release(&VOLUMES, &volume, VOLUME_FINALIZER).await?;
            }
        } else if let Some(claim) = self.claims.get(key).filter(|c| may_go(c, CLAIM_FINALIZER)) {
            // Asked of the API and not of the cache: a pod that was bound a moment ago counts.
            let pods = self.client.list_in(&PODS, &key.namespace).await?;
            if !pods.iter().any(|pod| uses(pod, claim.name())) {
                self.release(&CLAIMS, &claim, CLAIM_FINALIZER).await?;
            }
        }
        Ok(None)
    }
}

impl Protection {
    async fn release(&self, resource: &Resource, object: &Object, finalizer: &str) -> Result<(), ApiError> {
        let rest: Vec<&Value> = object.list("/metadata/finalizers").iter().filter(|f| *f != finalizer).collect();
        let patch = json!({"metadata": {
            "uid": object.uid(), "resourceVersion": object.text("/metadata/resourceVersion"), "finalizers": rest,
        }});
        match self.client.patch(resource, &object.key(), None, patch).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }
}

fn may_go(object: &Object, finalizer: &str) -> bool {
    object.is_deleting() && object.has_finalizer(finalizer)
}

/// The claims that a pod names.
pub fn claims_of(pod: &Object) -> impl Iterator<Item = &str> {
    pod.list("/spec/volumes").iter().filter_map(|volume| volume["persistentVolumeClaim"]["claimName"].as_str())
}

/// Whether a pod holds a claim: as soon as it is on a node, until it is gone (as upstream).
pub fn uses(pod: &Object, claim: &str) -> bool {
    !pod.text("/spec/nodeName").is_empty() && claims_of(pod).any(|name| name == claim)
}
