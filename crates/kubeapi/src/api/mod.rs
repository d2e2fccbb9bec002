//! The operations of the API, for HTTP handlers and for callers in the process alike.
//!
//! `read` gets and lists, `write` creates and changes, `delete` removes, `subresource` has what is special about status,
//! scale, binding, eviction and the like, `watch` follows changes, `convert` has the versions of custom resources.

mod convert;
mod delete;
mod read;
mod subresource;
mod watch;
mod write;

use std::sync::Arc;

use serde_json::Value;

pub use delete::DeleteOptions;
pub use read::List;
pub use watch::{Watch, WatchEvent, WatchKind};
pub use write::Outcome;

use crate::ApiError;
use crate::catalog::{Catalog, Resource};
use crate::node::{Kubelets, Nodes};
use crate::storage::{Key, Storage};

/// Who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// For example `system:admin`.
    pub name: String,
    /// For example `system:masters`.
    pub groups: Vec<String>,
    /// Of a ServiceAccount.
    pub uid: String,
}

impl User {
    /// A part of the control plane itself.
    pub fn system(component: &str) -> Self {
        Self { name: format!("system:{component}"), groups: vec!["system:masters".to_owned()], uid: String::new() }
    }
}

/// What a request is about.
#[derive(Clone, Debug)]
pub struct ResourceRef {
    /// The resource.
    pub resource: Arc<Resource>,
    /// Empty for cluster scope, and for lists of all namespaces.
    pub namespace: String,
    /// Empty for lists and creation.
    pub name: String,
    /// Empty for the object itself.
    pub subresource: String,
}

/// How to list.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// `app=web,tier!=db`.
    pub label_selector: String,
    /// `spec.nodeName=n1`.
    pub field_selector: String,
    /// Objects in one page; 0 means all.
    pub limit: usize,
    /// Where the last page ended.
    pub continue_token: String,
}

/// How to write.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// Check everything, store nothing.
    pub dry_run: bool,
    /// Unknown fields are an error.
    pub strict: bool,
}

/// What the API needs from whoever knows identities.
pub trait Authority: Send + Sync + 'static {
    /// Issues a token for a ServiceAccount: fills the status of the TokenRequest.
    ///
    /// # Errors
    /// The request asks for what cannot be issued.
    fn issue_token(&self, service_account: &Value, request: Value) -> Result<Value, ApiError>;

    /// Who presents this token, and for which of the audiences it is; none asked for means this API itself.
    fn authenticate(&self, api: &Api, token: &str, audiences: &[&str]) -> Option<(User, Vec<String>)>;

    /// Whether the user may do this; `path` instead of a resource for URLs that are none.
    fn authorize(&self, api: &Api, user: &User, action: &Action<'_>) -> bool;
}

/// Something that a user may or may not do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Action<'a> {
    /// `get`, `list`, `create`, …
    pub verb: &'a str,
    /// API group.
    pub group: &'a str,
    /// Plural, empty for other URLs.
    pub resource: &'a str,
    /// For example `status`.
    pub subresource: &'a str,
    /// Empty for cluster scope or all namespaces.
    pub namespace: &'a str,
    /// Empty when no single object is meant.
    pub name: &'a str,
    /// The URL's path when it is no resource.
    pub path: &'a str,
}

/// A handle to the API. Cloning is cheap.
#[derive(Clone)]
pub struct Api {
    shared: Arc<Shared>,
}

struct Shared {
    storage: Box<dyn Storage>,
    catalog: Catalog,
    authority: Box<dyn Authority>,
    nodes: Option<Nodes>,
}

impl Api {
    /// An API over a storage; definitions of custom resources in it are served at once.
    ///
    /// # Errors
    /// The storage cannot be read.
    pub fn new(storage: impl Storage, authority: impl Authority) -> Result<Self, ApiError> {
        Self::start(Shared {
            storage: Box::new(storage),
            catalog: Catalog::new(),
            authority: Box::new(authority),
            nodes: None,
        })
    }

    /// The same, which also serves what the nodes answer: logs, streams into pods, the proxy of a node, metrics.
    ///
    /// # Errors
    /// The storage cannot be read.
    pub fn with_kubelets(
        storage: impl Storage,
        authority: impl Authority,
        kubelets: impl Kubelets,
    ) -> Result<Self, ApiError> {
        Self::start(Shared {
            storage: Box::new(storage),
            catalog: Catalog::with_nodes(),
            authority: Box::new(authority),
            nodes: Some(Nodes::new(kubelets)),
        })
    }

    fn start(shared: Shared) -> Result<Self, ApiError> {
        let api = Self { shared: Arc::new(shared) };
        api.load_custom()?;
        Ok(api)
    }

    /// The resources that are served.
    pub fn catalog(&self) -> &Catalog {
        &self.shared.catalog
    }

    /// Who knows identities.
    pub fn authority(&self) -> &dyn Authority {
        self.shared.authority.as_ref()
    }

    /// What leads to the nodes, if they can be reached.
    pub(crate) fn nodes(&self) -> Option<&Nodes> {
        self.shared.nodes.as_ref()
    }

    /// The resource version of the last change of anything.
    pub fn revision(&self) -> u64 {
        self.shared.storage.revision()
    }

    /// A reference to an object of a built-in or custom resource by group and plural, in the version that it is kept in.
    ///
    /// # Errors
    /// Nothing of that name is served.
    pub fn reference(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Result<ResourceRef, ApiError> {
        let resource = self.catalog().find_any(group, plural, "").ok_or_else(ApiError::no_such_path)?;
        Ok(ResourceRef { resource, namespace: namespace.to_owned(), name: name.to_owned(), subresource: String::new() })
    }

    fn storage(&self) -> &dyn Storage {
        self.shared.storage.as_ref()
    }

    fn load_custom(&self) -> Result<(), ApiError> {
        let crds = self.reference("apiextensions.k8s.io", "customresourcedefinitions", "", "")?;
        for crd in self.list(&crds, &ListOptions::default())?.items {
            self.define_custom(&crd);
        }
        Ok(())
    }

    fn define_custom(&self, crd: &Value) {
        let group = crd["spec"]["group"].as_str().unwrap_or_default();
        let plural = crd["spec"]["names"]["plural"].as_str().unwrap_or_default();
        self.catalog().set_custom(group, plural, crate::catalog::resources_of_crd(crd));
    }
}

impl ResourceRef {
    /// The same resource, another object.
    pub fn named(&self, namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned(), ..self.clone() }
    }

    /// A subresource of the object.
    pub fn sub(&self, subresource: &str) -> Self {
        Self { subresource: subresource.to_owned(), ..self.clone() }
    }

    pub(crate) fn key(&self) -> Key {
        Key { resource: self.resource.storage_name(), namespace: self.namespace.clone(), name: self.name.clone() }
    }

    pub(crate) fn not_found(&self) -> ApiError {
        ApiError::not_found(&self.resource.plural, &self.resource.group, &self.name)
    }

    pub(crate) fn modified(&self) -> ApiError {
        ApiError::modified(&self.resource.plural, &self.resource.group, &self.name)
    }
}
