//! The templates that a workload had, each kept as a ControllerRevision, so that `kubectl rollout history` and `undo` work.

use kubeapi::ApiError;
use serde_json::{Value, json};

use crate::client::{CONTROLLER_REVISIONS, Client, DeleteOptions};
use crate::deployment::view::{inherited_annotations, template_hash};
use crate::object::{Object, controller_reference, normalised};

/// Revisions kept without `revisionHistoryLimit`.
const DEFAULT_HISTORY: i64 = 10;

/// All revisions of the workload, the oldest first; the last one is that of its present template, made or made the newest
/// again if need be. `label` is where a revision says its hash.
///
/// # Errors
/// A read or write failed.
pub async fn ensure(client: &Client, owner: &Object, kind: (&str, &str), label: &str) -> Result<Vec<Object>, ApiError> {
    let mut own = list(client, owner).await?;
    let newest = own.last().and_then(|r| r.int("/revision")).unwrap_or(0);
    let data = data(owner);
    let same = own.iter().position(|r| normalised(r.at("/data")) == normalised(&data));
    let present = match same.map(|at| own.remove(at)) {
        Some(found) if found.int("/revision") == Some(newest) => found,
        Some(found) => {
            let patch = json!({"revision": newest + 1});
            client.patch(&CONTROLLER_REVISIONS, &found.key(), None, patch).await?
        }
        None => {
            let hash = template_hash(owner.at("/spec/template"), owner.int("/status/collisionCount").unwrap_or(0));
            let mut labels = owner.at("/spec/template/metadata/labels").clone();
            labels[label] = json!(hash);
            let revision = json!({
                "apiVersion": "apps/v1", "kind": "ControllerRevision",
                "metadata": {
                    "name": format!("{}-{hash}", owner.name()), "namespace": owner.namespace(), "labels": labels,
                    "annotations": inherited_annotations(owner),
                    "ownerReferences": [controller_reference(owner, kind.0, kind.1)],
                },
                "data": data, "revision": newest + 1,
            });
            client.create(&CONTROLLER_REVISIONS, revision).await?
        }
    };
    own.push(present);
    Ok(own)
}

/// All revisions of the workload, the oldest first.
///
/// # Errors
/// They cannot be read.
pub async fn list(client: &Client, owner: &Object) -> Result<Vec<Object>, ApiError> {
    let all = client.list_in(&CONTROLLER_REVISIONS, owner.namespace()).await?;
    let mut own: Vec<Object> = all.into_iter().filter(|r| r.is_controlled_by(owner.uid())).collect();
    own.sort_by_key(|r| r.int("/revision").unwrap_or(0));
    Ok(own)
}

/// Deletes the oldest revisions beyond the workload's limit that nobody uses.
///
/// # Errors
/// One cannot be deleted.
pub async fn prune(
    client: &Client,
    owner: &Object,
    own: &[Object],
    in_use: impl Fn(&Object) -> bool,
) -> Result<(), ApiError> {
    let limit = owner.int("/spec/revisionHistoryLimit").unwrap_or(DEFAULT_HISTORY).max(0);
    let idle: Vec<&Object> = own.iter().filter(|r| !in_use(r)).collect();
    let surplus = idle.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    for old in idle.into_iter().take(surplus) {
        match client.delete(&CONTROLLER_REVISIONS, &old.key(), DeleteOptions::only(old)).await {
            Err(error) if !error.is_not_found() => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// What a revision keeps of the workload.
fn data(owner: &Object) -> Value {
    let mut template = owner.at("/spec/template").clone();
    template["$patch"] = json!("replace");
    json!({"spec": {"template": template}})
}

/// The template that a revision keeps.
pub fn template(revision: &Object) -> Value {
    let mut template = revision.at("/data/spec/template").clone();
    if let Some(fields) = template.as_object_mut() {
        fields.remove("$patch");
    }
    template
}
