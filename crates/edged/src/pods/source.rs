//! What MetaManager's messages say about pods.

use std::sync::Arc;

use k8s_openapi::{
    api::core::v1::{Pod, PodStatus},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use podlife::{observed::PodIdentity, resize::Refusal, spec};
use serde::Deserialize;
use wire::{Content, EdgeResource, Message, kind, operation};

use super::field_path;
use crate::meta::{self, MetaError};

/// One version of a pod: the object without its status, and its status.
#[derive(Clone, Debug)]
pub struct PodVersion {
    /// Namespace, name, UID.
    pub identity: PodIdentity,
    /// Spec and metadata; `status` and `managedFields` are taken out.
    pub pod: Arc<Pod>,
    /// Status as the API has it.
    pub api: PodStatus,
    /// What the API's version asks for more than the node has room for; `pod` has the resources from before instead.
    pub refusal: Option<Refusal>,
}

/// What a message asks for.
#[derive(Clone, Debug)]
pub enum PodChange {
    /// Run this, or look at its newer version.
    Upsert(Box<PodVersion>),
    /// A newer version of a pod that is to be held back until somebody on the node releases it.
    Hold(Box<PodVersion>),
    /// Somebody on the node releases what was held.
    Release {
        /// Namespace and name of the pod; all pods when absent.
        pod: Option<(String, String)>,
    },
    /// The pod is gone from the API.
    Remove {
        /// Its UID.
        uid: String,
    },
    /// Something about pods that cannot be understood as it is: read the list again.
    Relist,
    /// The complete list of stored pods.
    Set(Vec<PodVersion>),
    /// A ConfigMap or Secret of this namespace changed.
    Configuration {
        /// Its namespace.
        namespace: String,
    },
    /// Nothing for the pod side.
    None,
}

/// A pod that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The JSON has not the shape of a Pod.
    #[error("pod {resource} cannot be read and is left out: {reason}")]
    Pod {
        /// `<namespace>/pod/<name>`, or its namespace and name.
        resource: String,
        /// Which field, and what is wrong with it.
        reason: String,
        /// The pod, of which only the metadata could be read; for an event about it.
        about: Option<Box<Pod>>,
    },
    /// Namespace, name or UID is missing.
    #[error("pod {resource} has no namespace, name or uid and is left out")]
    Identity {
        /// What is known of it.
        resource: String,
    },
    /// A list answer that is no list.
    #[error("the list of pods cannot be read")]
    List(#[source] MetaError),
}

/// Operation that releases a held update (KubeEdge v1.23, sent on the node by its MetaServer).
const UNHOLD: &str = "unhold-upgrade";
/// Asks that updates of a pod wait until they are released.
const HOLD_ANNOTATION: &str = "edge.kubeedge.io/hold-upgrade";

/// Whether updates of this pod wait: it asks for that, has not run yet and is not being deleted.
pub(super) fn is_held(version: &PodVersion) -> bool {
    let wanted = version.pod.metadata.annotations.as_ref().and_then(|annotations| annotations.get(HOLD_ANNOTATION));
    wanted.is_some_and(|value| value == "true")
        && version.api.phase.as_deref() == Some("Pending")
        && !spec::is_deleted(&version.pod)
}

/// Reads a message of edged's inbox.
pub fn read_change(message: &Message) -> Result<PodChange, SourceError> {
    let Ok(resource) = EdgeResource::parse(&message.route.resource) else { return Ok(PodChange::None) };
    match (resource.kind.as_str(), message.route.operation.as_str()) {
        (kind::POD, operation::INSERT | operation::UPDATE) => {
            let version = Box::new(read_pod(&message.route.resource, &message.content)?);
            let hold = message.route.operation == operation::UPDATE && is_held(&version);
            Ok(if hold { PodChange::Hold(version) } else { PodChange::Upsert(version) })
        }
        (kind::POD, UNHOLD) => Ok(PodChange::Release { pod: resource.name.map(|name| (resource.namespace, name)) }),
        (kind::NODE, UNHOLD) => Ok(PodChange::Release { pod: None }),
        (kind::POD, operation::DELETE) => Ok(read_delete(&message.content)),
        (kind::POD, operation::RESPONSE) if resource.name.is_none() => {
            let items = meta::list(&message.route.resource, &message.content).map_err(SourceError::List)?;
            Ok(PodChange::Set(read_list(&items)))
        }
        (kind::CONFIG_MAP | kind::SECRET, operation::INSERT | operation::UPDATE) => {
            Ok(PodChange::Configuration { namespace: resource.namespace })
        }
        _ => Ok(PodChange::None),
    }
}

/// Reads one pod.
pub fn read_pod(resource: &str, content: &Content) -> Result<PodVersion, SourceError> {
    let mut pod: Pod = content.parse().map_err(|error| unreadable(resource, content, &error))?;
    let identity = spec::identity(&pod).ok_or_else(|| SourceError::Identity { resource: resource.to_owned() })?;
    let mut api = pod.status.take().unwrap_or_default();
    compact_status(&mut api);
    pod.metadata.managed_fields = None;
    compact(&mut pod);
    Ok(PodVersion { identity, pod: Arc::new(pod), api, refusal: None })
}

/// Gives back what lists have taken for elements that never came: a parser makes room for four at once, and a pod is kept as long as
/// it runs.
fn compact(pod: &mut Pod) {
    let Some(spec) = &mut pod.spec else { return };
    let containers = spec.init_containers.iter_mut().flatten().chain(&mut spec.containers);
    for container in containers {
        shrink(&mut container.env);
        shrink(&mut container.volume_mounts);
        shrink(&mut container.ports);
        shrink(&mut container.command);
        shrink(&mut container.args);
    }
    for projected in spec.volumes.iter_mut().flatten().filter_map(|volume| volume.projected.as_mut()) {
        shrink(&mut projected.sources);
    }
    spec.containers.shrink_to_fit();
    shrink(&mut spec.init_containers);
    shrink(&mut spec.volumes);
    shrink(&mut spec.tolerations);
    shrink(&mut pod.metadata.owner_references);
}

/// The same of a status that is kept.
pub(super) fn compact_status(status: &mut PodStatus) {
    shrink(&mut status.container_statuses);
    shrink(&mut status.init_container_statuses);
    shrink(&mut status.conditions);
    shrink(&mut status.pod_ips);
    shrink(&mut status.host_ips);
}

fn shrink<T>(list: &mut Option<Vec<T>>) {
    if let Some(list) = list {
        list.shrink_to_fit();
    }
}

fn unreadable(resource: &str, content: &Content, error: &wire::ContentError) -> SourceError {
    #[derive(Deserialize)]
    struct Object {
        metadata: Name,
    }
    /// As little as an event needs: the rest of the metadata may be what is wrong.
    #[derive(Deserialize)]
    struct Name {
        namespace: String,
        name: String,
        uid: String,
    }
    let reason = match error {
        wire::ContentError::Shape(error) => {
            let path = field_path::at(&content.payload(), error.line(), error.column());
            let text = error.to_string();
            // A place in a text that nobody sees helps nobody.
            let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(text, _)| text);
            format!("{path}: {text}")
        }
        other => other.to_string(),
    };
    let object = content.parse::<Object>().ok();
    let about = object.map(|Object { metadata: Name { namespace, name, uid } }| {
        let metadata =
            ObjectMeta { namespace: Some(namespace), name: Some(name), uid: Some(uid), ..ObjectMeta::default() };
        Box::new(Pod { metadata, ..Pod::default() })
    });
    SourceError::Pod { resource: resource.to_owned(), reason, about }
}

/// Reads a list of pods; one that cannot be read does not stop the others.
pub fn read_list(items: &[Content]) -> Vec<PodVersion> {
    let mut pods = Vec::with_capacity(items.len());
    for item in items {
        match read_pod("of the stored list", item) {
            Ok(version) => pods.push(version),
            Err(error) => {
                tracing::warn!(error = %error, cause = ?std::error::Error::source(&error), "stored pod left out")
            }
        }
    }
    pods
}

/// A deletion counts only when it names the pod by UID: the same name may be in use again.
fn read_delete(content: &Content) -> PodChange {
    #[derive(Deserialize)]
    struct Object {
        metadata: Metadata,
    }
    #[derive(Deserialize)]
    struct Metadata {
        #[serde(default)]
        uid: String,
    }
    match content.parse::<Object>() {
        Ok(object) if !object.metadata.uid.is_empty() => PodChange::Remove { uid: object.metadata.uid },
        _ => PodChange::Relist,
    }
}
