//! From the nodes to the cluster: one request, one call of the API, one answer (KubeEdge v1.23, upstream dispatch).

use std::sync::Arc;
use std::time::Duration;

use beehive::compose;
use bytes::Bytes;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;
use tracing::{debug, warn};
use wire::{Content, EdgeResource, ErrorAnswer, Message, ObjectResp, Status, kind, operation, source};

use super::authorize::{self, Decision};
use super::node;
use super::object::{push, tombstone};
use super::view::View;
use crate::cloudstream::address::Published;
use crate::kubernetes::{Kubernetes, KubernetesError, parse};

const STRATEGIC: &str = "strategic-merge-patch";
/// Calls of the API for nodes at the same time.
const MAX_CALLS: usize = 256;
/// How long the first list of the pods may take. An edge waits for a minute, and asks again when it hears that it must.
const LISTING: Duration = Duration::from_secs(30);

/// Answers requests of nodes. Cloning is cheap.
#[derive(Clone)]
pub struct Upstream {
    pub(super) kubernetes: Kubernetes,
    view: Arc<View>,
    calls: Arc<Semaphore>,
    published: Published,
}

/// How the answer to a request is shaped.
enum Shape {
    /// `{"Object":…,"Err":…}`.
    ObjectResp,
    /// The object itself, or `{"ErrStatus":…}`.
    Bare,
    /// `OK`, or `{"ErrStatus":…}`.
    Ok,
    /// Nobody waits.
    None,
}

/// What a request leads to.
#[derive(Default)]
pub struct Outcome {
    /// Its answer, if one is due.
    pub answer: Option<Message>,
    /// The node has a pod that is gone: its uid, and the deletion to be sent.
    pub orphan: Option<(String, Message)>,
    /// It could not be carried out now and is worth another try.
    pub failed: bool,
}

impl From<Message> for Outcome {
    fn from(answer: Message) -> Self {
        Self { answer: Some(answer), ..Self::default() }
    }
}

impl Upstream {
    /// On this API, with this knowledge of pods.
    pub fn new(kubernetes: Kubernetes, view: Arc<View>, published: Published) -> Self {
        Self { kubernetes, view, calls: Arc::new(Semaphore::new(MAX_CALLS)), published }
    }

    /// Carries out a request of a node.
    pub async fn handle(&self, node: &str, message: &Message) -> Outcome {
        if message.route.resource == kind::CA_CERT {
            return self.ca(message).into();
        }
        let resource = match EdgeResource::parse(&message.route.resource) {
            Ok(resource) => resource,
            Err(error) => {
                warn!(node, %error, source = message.route.source, "a message of a node is not understood");
                return answer(message, Shape::Bare, Err(Status::failure(400, "BadRequest", error.to_string()))).into();
            }
        };
        let shape = shape(&resource, &message.route.operation);
        let result = self.decide_and_carry_out(node, &resource, message).await;
        if let Err(status) = &result {
            let (reason, why, operation) = (&status.reason, &status.message, &message.route.operation);
            match status.code {
                403 => warn!(node, resource = %resource, operation, why, "a request was refused"),
                _ => debug!(node, resource = %resource, operation, reason, why, "a request failed"),
            }
        }
        let is_gone = resource.kind == kind::POD_PATCH && matches!(&result, Err(status) if status.code == 404);
        let orphan = if is_gone { self.orphan(node, &resource, message) } else { None };
        let failed = result.as_ref().is_err_and(|status| status.code >= 500 || status.code == 429);
        Outcome { answer: reply(message, shape, result), orphan, failed }
    }

    /// The node reports on a pod that is gone, and nobody may have told it: its namespace took the record along.
    fn orphan(&self, node: &str, resource: &EdgeResource, message: &Message) -> Option<(String, Message)> {
        let name = (resource.namespace.clone(), resource.name().to_owned());
        // An edge stores pods by name: one that came meanwhile must stay.
        if self.view.read().get(&name.0, &name.1).is_some() {
            return None;
        }
        let patch: Value = message.content.parse().ok()?;
        let uid = patch["metadata"]["uid"].as_str().filter(|uid| !uid.is_empty())?;
        debug!(node, resource = %resource, uid, "the node has a pod that is gone");
        let path = EdgeResource::object(&name.0, kind::POD, &name.1).to_string();
        Some((uid.to_owned(), push(operation::DELETE, &path, u64::MAX, tombstone(&name, uid))))
    }

    async fn decide_and_carry_out(
        &self,
        node: &str,
        resource: &EdgeResource,
        message: &Message,
    ) -> Result<Option<Bytes>, Status> {
        if authorize::needs_view(resource) && tokio::time::timeout(LISTING, self.view.listed()).await.is_err() {
            let why =
                "cloudcore has not read the pods yet: is the Kubernetes API in reach, and may cloudcore list pods?";
            return Err(Status::failure(503, "ServiceUnavailable", why));
        }
        let verb = message.route.operation.as_str();
        // What was decided about is what is sent: a text that says a field twice would be read otherwise elsewhere.
        let content: Value = message.content.parse().unwrap_or_default();
        if authorize::needs_devices(resource, verb, &content) && !self.view.knows_devices(LISTING).await {
            return Err(Status::failure(503, "ServiceUnavailable", "cloudcore has not read the devices yet"));
        }
        let forbidden = |why: String| Status::failure(403, "Forbidden", why);
        let decision = authorize::check(&self.view, node, resource, verb, &content).map_err(forbidden)?;
        // First come, first served, and few per node at once: no node holds the others up for long.
        let _place =
            self.calls.acquire().await.map_err(|_| Status::failure(503, "ServiceUnavailable", "cloudcore ends"))?;
        let uid = match decision {
            Decision::Allowed => String::new(),
            Decision::OwnPod(uid) => uid,
            Decision::IfOwn((namespace, name)) => {
                let pod = self.kubernetes.get_value(&format!("/api/v1/namespaces/{namespace}/pods/{name}")).await;
                match pod {
                    Ok(pod) if pod["spec"]["nodeName"] == node => {
                        pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned()
                    }
                    Ok(_) => return Err(forbidden(authorize::refusal(node, verb, resource, authorize::FOREIGN_POD))),
                    Err(error) if error.code() != 404 => return Err(error.to_status()),
                    // Of a pod that is gone there are events still, and nothing is left to be deleted.
                    Err(_) if resource.kind == kind::EVENT => String::new(),
                    Err(_) if resource.kind == kind::POD && verb == operation::DELETE => return Ok(None),
                    Err(error) => return Err(error.to_status()),
                }
            }
        };
        self.carry_out(node, resource, message, content, &uid).await
    }

    /// What pods at the edge that speak to the Kubernetes API believe.
    fn ca(&self, message: &Message) -> Message {
        let mut answer = compose::response(message, Content::text(self.kubernetes.ca()));
        answer.route.source = source::CLOUD_HUB.to_owned();
        answer.route.group = wire::group::RESOURCE.to_owned();
        answer
    }

    /// The object that results, if any. `uid` is of the pod that the node was found to have.
    async fn carry_out(
        &self,
        node: &str,
        resource: &EdgeResource,
        message: &Message,
        content: Value,
        uid: &str,
    ) -> Result<Option<Bytes>, Status> {
        let body = match &content {
            Value::Object(_) => Bytes::from(content.to_string()),
            _ => Bytes::from(message.content.payload().into_owned()),
        };
        let (namespace, name) = (resource.namespace.as_str(), resource.name());
        let api = &self.kubernetes;
        let core = |plural: &str| format!("/api/v1/namespaces/{namespace}/{plural}");
        let lease = format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases");
        let done = match (resource.kind.as_str(), message.route.operation.as_str()) {
            (kind::NODE, operation::INSERT) => return self.create_node(node, content).await.map(Some),
            (kind::NODE, operation::QUERY) => api.get(&format!("/api/v1/nodes/{node}")).await,
            (kind::NODE, operation::UPDATE) => return self.update_node(node, &content).await.map(Some),
            (kind::NODE_PATCH, _) => {
                let mut patch = node::status_patch(node, &content);
                self.published.put_into(&mut patch);
                let patch = patch.to_string();
                api.patch(&format!("/api/v1/nodes/{node}/status"), STRATEGIC, patch).await
            }
            (kind::POD_PATCH, _) => {
                let patch = of_pod(&content, uid).to_string();
                api.patch(&format!("{}/{name}/status", core("pods")), STRATEGIC, patch).await
            }
            (kind::POD, operation::INSERT) => api.create(&core("pods"), body).await,
            (kind::POD, operation::DELETE) => {
                return self.delete_pod(&core("pods"), name, &body, uid).await;
            }
            (kind::CONFIG_MAP, operation::QUERY) => api.get(&format!("{}/{name}", core("configmaps"))).await,
            (kind::SECRET, operation::QUERY) => api.get(&format!("{}/{name}", core("secrets"))).await,
            (kind::PERSISTENT_VOLUME_CLAIM, operation::QUERY) => {
                api.get(&format!("{}/{name}", core("persistentvolumeclaims"))).await
            }
            (kind::SERVICE, operation::QUERY) => api.get(&format!("{}/{name}", core("services"))).await,
            (kind::ENDPOINTS, operation::QUERY) => api.get(&format!("{}/{name}", core("endpoints"))).await,
            (kind::PERSISTENT_VOLUME, operation::QUERY) => api.get(&format!("/api/v1/persistentvolumes/{name}")).await,
            (kind::RUNTIME_CLASS, operation::QUERY) => {
                api.get(&format!("/apis/node.k8s.io/v1/runtimeclasses/{name}")).await
            }
            (kind::VOLUME_ATTACHMENT, operation::QUERY) => {
                api.get(&format!("/apis/storage.k8s.io/v1/volumeattachments/{name}")).await
            }
            (kind::SERVICE_ACCOUNT_TOKEN, operation::QUERY) => {
                api.create(&format!("{}/{name}/token", core("serviceaccounts")), body).await
            }
            (kind::LEASE, operation::QUERY) => api.get(&format!("{lease}/{name}")).await,
            (kind::LEASE, operation::INSERT) => api.create(&lease, body).await,
            (kind::LEASE, operation::UPDATE) => api.replace(&format!("{lease}/{name}"), body).await,
            (kind::EVENT, operation::INSERT) => api.create(&core("events"), body).await,
            (kind::EVENT, operation::UPDATE | operation::PATCH) => {
                let verb = message.route.operation.as_str();
                return self.change_event(&core("events"), name, verb, &content).await.map(Some);
            }
            (kind::CERTIFICATE_SIGNING_REQUEST, operation::INSERT) => {
                api.create("/apis/certificates.k8s.io/v1/certificatesigningrequests", body).await
            }
            (kind::CERTIFICATE_SIGNING_REQUEST, operation::QUERY) => {
                api.get(&format!("/apis/certificates.k8s.io/v1/certificatesigningrequests/{name}")).await
            }
            (what, verb) => {
                let why = format!("{verb} of resource type {what:?} is not supported by this cloud");
                return Err(Status::failure(501, "NotImplemented", why));
            }
        };
        let object = done.map_err(|error| error.to_status())?;
        let to_check = [kind::PERSISTENT_VOLUME, kind::VOLUME_ATTACHMENT, kind::CERTIFICATE_SIGNING_REQUEST];
        if to_check.contains(&resource.kind.as_str()) {
            let value = parse(&object).map_err(|error| error.to_status())?;
            authorize::check_answer(&self.view, node, resource, &value)
                .map_err(|why| Status::failure(403, "Forbidden", why))?;
        }
        Ok(Some(object))
    }

    /// Labels that the API server keeps from nodes are set apart, with cloudcore's own rights.
    async fn create_node(&self, node: &str, content: Value) -> Result<Bytes, Status> {
        let (mut object, labels) = node::new(node, content).map_err(|why| {
            Status::failure(400, "BadRequest", format!("the Node of {node} cannot be created: {why}"))
        })?;
        if let Some(label) = labels.keys().find(|label| node::is_restricted(label)) {
            return Err(Status::failure(403, "Forbidden", node::not_its_own(node, label)));
        }
        let (own, kept): (Map<_, _>, Map<_, _>) = labels.into_iter().partition(|(key, _)| node::may_set(key));
        object["metadata"]["labels"] = json!(own);
        self.published.put_into(&mut object);
        let created =
            self.kubernetes.create("/api/v1/nodes", object.to_string()).await.map_err(|error| error.to_status())?;
        if kept.is_empty() {
            return Ok(created);
        }
        let patch = json!({"metadata": {"labels": kept}}).to_string();
        let path = format!("/api/v1/nodes/{node}");
        self.kubernetes.patch(&path, "merge-patch", patch).await.map_err(|error| error.to_status())
    }

    /// Labels and annotations of the node are added to those it has.
    async fn update_node(&self, node: &str, content: &Value) -> Result<Bytes, Status> {
        let path = format!("/api/v1/nodes/{node}");
        let failed = |error: KubernetesError| error.to_status();
        let wanted = node::labels(content);
        if wanted.keys().any(|label| !node::may_set(label)) {
            // What it has already, for example from its registration, it may repeat.
            let current = self.kubernetes.get_value(&path).await.map_err(failed)?;
            let has =
                |(label, value): &(&String, &Value)| current["metadata"]["labels"].get(label.as_str()) == Some(*value);
            if let Some((label, _)) = wanted.iter().find(|pair| !node::may_set(pair.0) && !has(pair)) {
                return Err(Status::failure(403, "Forbidden", node::not_its_own(node, label)));
            }
        }
        let metadata = json!({"labels": wanted, "annotations": node::annotations(content)});
        let patch = json!({"metadata": metadata}).to_string();
        self.kubernetes.patch(&path, STRATEGIC, patch).await.map_err(failed)
    }

    /// A pod that is gone, or whose name another has, is deleted as far as the node is concerned.
    async fn delete_pod(&self, pods: &str, name: &str, body: &[u8], uid: &str) -> Result<Option<Bytes>, Status> {
        let mut options = match serde_json::from_slice::<Value>(body) {
            Ok(options @ Value::Object(_)) => options,
            // Old edges send the uid alone.
            _ => {
                let uid = String::from_utf8_lossy(body).trim_matches('"').to_owned();
                json!({"gracePeriodSeconds": 0, "preconditions": {"uid": uid}})
            }
        };
        // Not a namesake on another node that was made since.
        if options["preconditions"]["uid"].is_null() {
            options["preconditions"] = json!({"uid": uid});
        }
        let options = options.to_string();
        match self.kubernetes.delete(&format!("{pods}/{name}"), options).await {
            Ok(_) => Ok(None),
            Err(error) if error.code() == 404 => Ok(None),
            Err(error) if error.code() == 409 && error.to_string().contains("UID in precondition") => Ok(None),
            Err(error) => Err(error.to_status()),
        }
    }

    /// Events with one name may be about different objects; a node changes those that are about what it may speak of.
    async fn change_event(&self, events: &str, name: &str, verb: &str, content: &Value) -> Result<Bytes, Status> {
        let path = format!("{events}/{name}");
        let failed = |error: KubernetesError| error.to_status();
        let event = authorize::event_of(verb, content);
        let about = |event: &Value| ["kind", "namespace", "name"].map(|field| event["involvedObject"][field].clone());
        match self.kubernetes.get_value(&path).await {
            Ok(found) if about(&found) != about(event) => {
                return Err(Status::failure(403, "Forbidden", format!("event {name} is about something else")));
            }
            Ok(_) => {}
            // The event has expired: the count goes on with a new one.
            Err(error) if error.code() == 404 && verb == operation::PATCH && content["event"].is_object() => {
                let mut event = event.clone();
                if let Some(metadata) = event["metadata"].as_object_mut() {
                    metadata.remove("resourceVersion");
                }
                return self.kubernetes.create(events, event.to_string()).await.map_err(failed);
            }
            Err(error) => return Err(failed(error)),
        }
        if verb == operation::UPDATE {
            return self.kubernetes.replace(&path, content.to_string()).await.map_err(failed);
        }
        let patch: Value =
            content["patchData"].as_str().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let kept = ["count", "message", "firstTimestamp", "lastTimestamp", "series"];
        let kept: Map<_, _> =
            kept.iter().filter_map(|field| Some(((*field).to_owned(), patch.get(*field)?.clone()))).collect();
        self.kubernetes.patch(&path, STRATEGIC, json!(kept).to_string()).await.map_err(failed)
    }
}

/// A patch of a pod's status, for the pod with this uid alone.
fn of_pod(patch: &Value, uid: &str) -> Value {
    let uid = patch["metadata"]["uid"].as_str().unwrap_or(uid);
    json!({"metadata": {"uid": uid}, "status": patch["status"]})
}

fn shape(resource: &EdgeResource, verb: &str) -> Shape {
    match (resource.kind.as_str(), verb) {
        (kind::EVENT, _) => Shape::None,
        (kind::POD, operation::DELETE) | (kind::NODE, operation::UPDATE) => Shape::Ok,
        (kind::LEASE | kind::NODE_PATCH | kind::POD_PATCH, _) => Shape::ObjectResp,
        (kind::NODE | kind::POD | kind::CERTIFICATE_SIGNING_REQUEST, operation::INSERT) => Shape::ObjectResp,
        _ => Shape::Bare,
    }
}

fn reply(message: &Message, shape: Shape, result: Result<Option<Bytes>, Status>) -> Option<Message> {
    match shape {
        Shape::None => {
            if let Err(status) = result {
                debug!(resource = message.route.resource, reason = status.reason, "an event was not taken");
            }
            None
        }
        shape => Some(answer(message, shape, result)),
    }
}

/// The answer to a request. Its header has the object's version where upstream's has: with the object or a patch of it.
fn answer(message: &Message, shape: Shape, result: Result<Option<Bytes>, Status>) -> Message {
    let mut version = String::new();
    let content = match (shape, result) {
        (Shape::Ok, Ok(_)) => Content::ok(),
        (Shape::ObjectResp, Ok(object)) => {
            if has_version(&message.route) {
                version = object.as_deref().map(version_of).unwrap_or_default();
            }
            let object = object.and_then(|text| RawValue::from_string(String::from_utf8(text.to_vec()).ok()?).ok());
            Content::json(&ObjectResp { object, err: None }).unwrap_or_else(|_| Content::null())
        }
        (Shape::Bare | Shape::None, Ok(object)) => {
            version = object.as_deref().map(version_of).unwrap_or_default();
            object.and_then(|text| Content::from_raw(text).ok()).unwrap_or_else(Content::null)
        }
        (Shape::ObjectResp, Err(status)) => {
            Content::json(&ObjectResp::error(status)).unwrap_or_else(|_| Content::null())
        }
        (_, Err(status)) => Content::json(&ErrorAnswer { status }).unwrap_or_else(|_| Content::null()),
    };
    let mut answer = compose::response(message, content);
    answer.route.source = source::EDGE_CONTROLLER.to_owned();
    answer.route.group = wire::group::RESOURCE.to_owned();
    answer.header.resource_version = version;
    answer
}

/// Whether the header of an answer with both Object and Err has the object's version.
fn has_version(route: &wire::Route) -> bool {
    let is = |kind: &str| route.resource.split('/').nth(1) == Some(kind);
    is(kind::NODE_PATCH) || is(kind::POD_PATCH) || is(kind::POD)
}

fn version_of(object: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Object {
        metadata: Metadata,
    }
    #[derive(serde::Deserialize)]
    struct Metadata {
        #[serde(default, rename = "resourceVersion")]
        version: String,
    }
    serde_json::from_slice::<Object>(object).map(|object| object.metadata.version).unwrap_or_default()
}
