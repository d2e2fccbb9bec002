//! Taking over and letting go of objects, by a patch of their owner references that only hits the very same object.

use kubeapi::ApiError;
use serde_json::{Value, json};

use crate::client::{Client, Resource};
use crate::object::{Object, controller_reference};

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
