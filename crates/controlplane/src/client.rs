//! The controllers' way to the API: in the process, by the same operations that HTTP requests go through.

use std::borrow::Cow;
use std::fmt;

use kubeapi::api::{DeleteOptions as ApiDeleteOptions, ListOptions, Watch, WatchKind};
use kubeapi::{Api, ApiError, PatchType, ResourceRef, User, WriteOptions};
use serde_json::Value;

use crate::object::{Key, Object};

/// A kind of objects, by the name of its list in the API.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Resource {
    /// Group; empty for the core group.
    pub group: Cow<'static, str>,
    /// Plural name.
    pub plural: Cow<'static, str>,
}

impl Resource {
    /// A built-in kind.
    pub const fn new(group: &'static str, plural: &'static str) -> Self {
        Self { group: Cow::Borrowed(group), plural: Cow::Borrowed(plural) }
    }

    /// A kind found at run time.
    pub fn named(group: &str, plural: &str) -> Self {
        Self { group: Cow::Owned(group.to_owned()), plural: Cow::Owned(plural.to_owned()) }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.group.is_empty() { f.write_str(&self.plural) } else { write!(f, "{}.{}", self.plural, self.group) }
    }
}

/// Pods.
pub const PODS: Resource = Resource::new("", "pods");
/// Nodes.
pub const NODES: Resource = Resource::new("", "nodes");
/// Namespaces.
pub const NAMESPACES: Resource = Resource::new("", "namespaces");
/// Events of the core group.
pub const EVENTS: Resource = Resource::new("", "events");
/// ConfigMaps.
pub const CONFIG_MAPS: Resource = Resource::new("", "configmaps");
/// ServiceAccounts.
pub const SERVICE_ACCOUNTS: Resource = Resource::new("", "serviceaccounts");
/// Services.
pub const SERVICES: Resource = Resource::new("", "services");
/// Endpoints of Services.
pub const ENDPOINTS: Resource = Resource::new("", "endpoints");
/// Endpoints of Services in pieces.
pub const ENDPOINT_SLICES: Resource = Resource::new("discovery.k8s.io", "endpointslices");
/// Deployments.
pub const DEPLOYMENTS: Resource = Resource::new("apps", "deployments");
/// ReplicaSets.
pub const REPLICA_SETS: Resource = Resource::new("apps", "replicasets");
/// DaemonSets.
pub const DAEMON_SETS: Resource = Resource::new("apps", "daemonsets");
/// Revisions of DaemonSets and StatefulSets.
pub const CONTROLLER_REVISIONS: Resource = Resource::new("apps", "controllerrevisions");
/// Leases: heartbeats of nodes.
pub const LEASES: Resource = Resource::new("coordination.k8s.io", "leases");
/// Definitions of custom resources.
pub const CUSTOM_RESOURCES: Resource = Resource::new("apiextensions.k8s.io", "customresourcedefinitions");

/// StatefulSets.
pub const STATEFUL_SETS: Resource = Resource::new("apps", "statefulsets");
/// Jobs.
pub const JOBS: Resource = Resource::new("batch", "jobs");
/// Volumes.
pub const VOLUMES: Resource = Resource::new("", "persistentvolumes");
/// Claims on volumes.
pub const CLAIMS: Resource = Resource::new("", "persistentvolumeclaims");
/// Classes of volumes.
pub const STORAGE_CLASSES: Resource = Resource::new("storage.k8s.io", "storageclasses");

/// How to delete.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// Only the object with this UID; empty means whichever has the name.
    pub uid: String,
    /// At once, without waiting for the node.
    pub now: bool,
    /// `Background`, `Foreground`, `Orphan`; empty means the kind's default.
    pub propagation: &'static str,
}

impl DeleteOptions {
    /// Deletes this very object and no later namesake.
    pub fn only(object: &Object) -> Self {
        Self { uid: object.uid().to_owned(), ..Self::default() }
    }

    /// Deletes this very object at once.
    pub fn at_once(object: &Object) -> Self {
        Self { now: true, ..Self::only(object) }
    }
}

/// A handle to the API for one component.
#[derive(Clone)]
pub struct Client {
    api: Api,
    user: User,
}

impl Client {
    /// A handle that acts as this component of the control plane.
    pub fn new(api: Api, component: &str) -> Self {
        Self { api, user: User::system(component) }
    }

    /// One object.
    ///
    /// # Errors
    /// 404 when it is not there.
    pub async fn get(&self, resource: &Resource, key: &Key) -> Result<Object, ApiError> {
        self.api.get(&self.at(resource, key)?).map(Object::from)
    }

    /// All objects of a kind and the version of the list.
    ///
    /// # Errors
    /// The storage failed or the kind is not served.
    pub async fn list(&self, resource: &Resource) -> Result<(Vec<Object>, u64), ApiError> {
        let list = self.api.list(&self.at(resource, &Key::new("", ""))?, &ListOptions::default())?;
        Ok((list.items.into_iter().map(Object::from).collect(), list.revision))
    }

    /// All objects of a kind in one namespace.
    ///
    /// # Errors
    /// The storage failed or the kind is not served.
    pub async fn list_in(&self, resource: &Resource, namespace: &str) -> Result<Vec<Object>, ApiError> {
        let list = self.api.list(&self.at(resource, &Key::new(namespace, ""))?, &ListOptions::default())?;
        Ok(list.items.into_iter().map(Object::from).collect())
    }

    /// Follows a kind from a version on.
    ///
    /// # Errors
    /// 410 when the version is too old: list again.
    pub async fn watch(&self, resource: &Resource, since: u64) -> Result<Events, ApiError> {
        let what = self.at(resource, &Key::new("", ""))?;
        Ok(Events(self.api.watch(&what, &ListOptions::default(), Some(since))?))
    }

    /// Creates an object in the namespace that it names.
    ///
    /// # Errors
    /// 409 when the name is taken, 422 when a field is wrong.
    pub async fn create(&self, resource: &Resource, object: Value) -> Result<Object, ApiError> {
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
        let what = self.at(resource, &Key::new(namespace, ""))?;
        self.api.create(&self.user, &what, object, &WriteOptions::default()).await.map(Object::from)
    }

    /// Creates an object unless its name is taken. Tells whether it was created.
    ///
    /// # Errors
    /// As [`Client::create`], without 409.
    pub async fn ensure(&self, resource: &Resource, object: Value) -> Result<bool, ApiError> {
        match self.create(resource, object).await {
            Ok(_) => Ok(true),
            Err(error) if error.reason == "AlreadyExists" => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Replaces the status of an object. A version in it must be the current one.
    ///
    /// # Errors
    /// 404 when it is gone, 409 when it changed meanwhile.
    pub async fn update_status(&self, resource: &Resource, object: Value) -> Result<Object, ApiError> {
        self.update_sub(resource, "status", object).await
    }

    /// Replaces a subresource of an object.
    ///
    /// # Errors
    /// As [`Client::update_status`].
    pub async fn update_sub(&self, resource: &Resource, sub: &str, object: Value) -> Result<Object, ApiError> {
        let object = Object::from(object);
        let what = self.at(resource, &object.key())?.sub(sub);
        self.api.update(&what, object.to_value(), &WriteOptions::default()).await.map(Object::from)
    }

    /// Merges a JSON merge patch into an object or one of its subresources.
    ///
    /// # Errors
    /// 404 when it is gone, 409 when the patch names another version or UID.
    pub async fn patch(
        &self,
        resource: &Resource,
        key: &Key,
        sub: Option<&str>,
        patch: Value,
    ) -> Result<Object, ApiError> {
        let what = self.at(resource, key)?.sub(sub.unwrap_or_default());
        self.api.patch(&what, &patch, PatchType::Merge, &WriteOptions::default()).await.map(Object::from)
    }

    /// Binds a pod to a node.
    ///
    /// # Errors
    /// 409 when the pod is bound already or being deleted.
    pub async fn bind(&self, pod: &Object, node: &str) -> Result<(), ApiError> {
        let what = self.at(&PODS, &pod.key())?.sub("binding");
        let binding = serde_json::json!({
            "apiVersion": "v1", "kind": "Binding",
            "metadata": {"name": pod.name(), "namespace": pod.namespace(), "uid": pod.uid()},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        });
        self.api.create(&self.user, &what, binding, &WriteOptions::default()).await.map(drop)
    }

    /// Deletes an object; its last state if it stays until its node or its finalizers let it go.
    ///
    /// # Errors
    /// 404 when it is gone already, 409 when the name belongs to another object now.
    pub async fn delete(
        &self,
        resource: &Resource,
        key: &Key,
        options: DeleteOptions,
    ) -> Result<Option<Object>, ApiError> {
        let options = ApiDeleteOptions {
            grace_period_seconds: options.now.then_some(0),
            propagation_policy: options.propagation.to_owned(),
            uid: options.uid,
            ..ApiDeleteOptions::default()
        };
        let (last, gone) = self.api.delete(&self.at(resource, key)?, &options).await?;
        Ok((!gone).then(|| last.into()))
    }

    /// Every kind that is served and can be listed, deleted and watched, once per kind whatever its versions.
    pub fn kinds(&self) -> Vec<Kind> {
        let mut kinds: Vec<Kind> = Vec::new();
        for resource in self.api.catalog().all() {
            let can = |verb: &str| resource.verbs.iter().any(|v| v == verb);
            let name = Resource::named(&resource.group, &resource.plural);
            if can("list") && can("watch") && can("delete") && !kinds.iter().any(|k| k.resource == name) {
                kinds.push(Kind { resource: name, kind: resource.kind.clone(), namespaced: resource.namespaced });
            }
        }
        kinds
    }

    /// The kind of this name in a group, if it is served.
    pub fn kind(&self, group: &str, kind: &str) -> Option<Kind> {
        let resource = self.api.catalog().find_any(group, "", kind)?;
        let name = Resource::named(&resource.group, &resource.plural);
        Some(Kind { resource: name, kind: resource.kind.clone(), namespaced: resource.namespaced })
    }

    fn at(&self, resource: &Resource, key: &Key) -> Result<ResourceRef, ApiError> {
        self.api.reference(&resource.group, &resource.plural, &key.namespace, &key.name)
    }
}

/// A kind that is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kind {
    /// The name of its list.
    pub resource: Resource,
    /// The name of the kind.
    pub kind: String,
    /// Its objects live in namespaces.
    pub namespaced: bool,
}

/// A running watch.
pub struct Events(Watch);

/// What a watch tells.
pub enum WatchEvent {
    /// The object is there, new or changed.
    Set(Object),
    /// The object is gone; its last state.
    Gone(Object),
}

impl Events {
    /// The next event; waits for it.
    ///
    /// # Errors
    /// 410 when the reader fell too far behind: list again.
    pub async fn next(&mut self) -> Result<WatchEvent, ApiError> {
        let event = self.0.next().await?;
        let object = Object::from(event.object()?);
        Ok(if event.kind == WatchKind::Deleted { WatchEvent::Gone(object) } else { WatchEvent::Set(object) })
    }
}
