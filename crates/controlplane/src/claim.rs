//! What controllers do alike with what they own: taking over and letting go, by a patch of the owner references that only hits
//! the very same object, and writing a status.

use kubeapi::ApiError;
use serde_json::{Value, json};

use crate::client::{Client, PODS, Resource};
use crate::informer::Cache;
use crate::object::{Object, controller_reference};
use crate::replicaset::plan::{Claim, claim};

/// The pods of an owner, after those that fit were taken over and those that fit no more were let go.
pub struct Claimed {
    /// Its own.
    pub own: Vec<Object>,
    /// Let go just now.
    pub released: Vec<Object>,
}

/// Looks at those pods of the owner's namespace that could be its own.
///
/// # Errors
/// A pod changed meanwhile or is gone.
pub async fn claim_pods(
    client: &Client,
    pods: &Cache,
    owner: &Object,
    kind: (&str, &str),
    could_be: impl Fn(&Object) -> bool,
) -> Result<Claimed, ApiError> {
    let mut claimed = Claimed { own: Vec::new(), released: Vec::new() };
    for pod in pods.in_namespace(owner.namespace()).into_iter().filter(could_be) {
        match claim(owner, owner.at("/spec/selector"), &pod) {
            Claim::Own => claimed.own.push(pod),
            Claim::Ignore => {}
            Claim::Adopt => {
                let pod = adopt(client, &PODS, owner, kind, &pod).await?;
                pods.learn(&pod);
                claimed.own.push(pod);
            }
            Claim::Release => {
                let pod = release(client, &PODS, owner, &pod).await?;
                pods.learn(&pod);
                claimed.released.push(pod);
            }
        }
    }
    Ok(claimed)
}

/// Writes the status of an object if it differs; false when the object is gone.
///
/// # Errors
/// The object changed meanwhile, or the storage failed.
pub async fn write_status(
    client: &Client,
    resource: &Resource,
    known: &Cache,
    object: &Object,
    status: Value,
) -> Result<bool, ApiError> {
    if *object.at("/status") == status {
        return Ok(true);
    }
    let mut new = object.to_value();
    new["status"] = status;
    match client.update_status(resource, new).await {
        Ok(new) => known.learn(&new),
        Err(error) if error.is_not_found() => return Ok(false),
        Err(error) => return Err(error),
    }
    Ok(true)
}

/// Makes `owner` the controller of `object`.
///
/// # Errors
/// The object changed meanwhile or is gone.
pub async fn adopt(
    client: &Client,
    resource: &Resource,
    owner: &Object,
    (api_version, kind): (&str, &str),
    object: &Object,
) -> Result<Object, ApiError> {
    let mut owners: Vec<Value> = object.list("/metadata/ownerReferences").to_vec();
    owners.push(controller_reference(owner, api_version, kind));
    patch_owners(client, resource, object, owners).await
}

/// Takes `owner` out of the owners of `object`.
///
/// # Errors
/// The object changed meanwhile or is gone.
pub async fn release(
    client: &Client,
    resource: &Resource,
    owner: &Object,
    object: &Object,
) -> Result<Object, ApiError> {
    let mut owners: Vec<Value> = object.list("/metadata/ownerReferences").to_vec();
    owners.retain(|o| o["uid"] != owner.uid());
    patch_owners(client, resource, object, owners).await
}

async fn patch_owners(
    client: &Client,
    resource: &Resource,
    object: &Object,
    owners: Vec<Value>,
) -> Result<Object, ApiError> {
    let patch = json!({"metadata": {
        "uid": object.uid(), "resourceVersion": object.text("/metadata/resourceVersion"), "ownerReferences": owners,
    }});
    client.patch(resource, &object.key(), None, patch).await
}
