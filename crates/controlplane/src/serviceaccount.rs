//! Gives every namespace what pods expect there: the ServiceAccount `default` and the CA certificate of the API server.

use std::sync::Arc;
use std::time::Duration;

use kubeapi::ApiError;
use serde_json::json;

use crate::client::{CONFIG_MAPS, Client, SERVICE_ACCOUNTS};
use crate::informer::{Cache, Change, Informer};
use crate::object::Key;
use crate::queue::WorkQueue;
use crate::reconcile::Reconcile;

const CA_CONFIG_MAP: &str = "kube-root-ca.crt";

/// The controller.
pub struct ServiceAccounts {
    client: Client,
    namespaces: Arc<Cache>,
    accounts: Arc<Cache>,
    ca_certificate: String,
}

/// Builds the controller and its queue; `ca_certificate` is PEM.
pub fn new(
    client: Client,
    namespaces: &mut Informer,
    accounts: &mut Informer,
    ca_certificate: String,
) -> (ServiceAccounts, Arc<WorkQueue>) {
    let queue = Arc::new(WorkQueue::default());
    let own = queue.clone();
    namespaces.on_change(move |change| own.add(change.object().key()));
    let for_accounts = queue.clone();
    accounts.on_change(move |change| {
        if let Change::Gone(account) = change {
            for_accounts.add(Key::new("", account.namespace()));
        }
    });
    let controller =
        ServiceAccounts { client, namespaces: namespaces.cache(), accounts: accounts.cache(), ca_certificate };
    (controller, queue)
}

impl Reconcile for ServiceAccounts {
    const NAME: &'static str = "serviceaccount-controller";

    async fn reconcile(&mut self, key: &Key) -> Result<Option<Duration>, ApiError> {
        if self.namespaces.get(key).is_none_or(|n| n.is_deleting()) {
            return Ok(None);
        }
        let namespace = key.name.as_str();
        if self.accounts.get(&Key::new(namespace, "default")).is_none() {
            let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": namespace}});
            match self.client.create(&SERVICE_ACCOUNTS, account).await {
                Ok(account) => self.accounts.learn(&account),
                Err(error) if error.reason == "AlreadyExists" || error.reason == "Forbidden" => {}
                Err(error) => return Err(error),
            }
        }
        let data = json!({"ca.crt": self.ca_certificate});
        let place = Key::new(namespace, CA_CONFIG_MAP);
        match self.client.get(&CONFIG_MAPS, &place).await {
            Ok(map) if *map.at("/data") == data => {}
            Ok(_) => {
                self.client.patch(&CONFIG_MAPS, &place, None, json!({"data": data})).await?;
            }
            Err(error) if error.is_not_found() => {
                let map = json!({
                    "apiVersion": "v1", "kind": "ConfigMap",
                    "metadata": {"name": CA_CONFIG_MAP, "namespace": namespace, "annotations": {
                        "kubernetes.io/description": "Contains the CA certificate with which pods check the API server."}},
                    "data": data,
                });
                self.client.create(&CONFIG_MAPS, map).await?;
            }
            Err(error) => return Err(error),
        }
        Ok(None)
    }
}
