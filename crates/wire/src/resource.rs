//! Resource paths: `{namespace}/{type}[/{name}]` at the edge, with `node/{node}/` in front in the cloud.

use std::fmt;

/// The namespace part of a cluster-scoped object.
pub const NO_NAMESPACE: &str = "null";

/// A Kubernetes object or list as the edge names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EdgeResource {
    /// `null` for cluster-scoped objects.
    pub namespace: String,
    /// The resource type, for example `pod`.
    pub kind: String,
    /// `None` names the list.
    pub name: Option<String>,
}

/// A path is not of the form `{namespace}/{type}[/{name}]`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("resource {0:?} is not of the form namespace/type or namespace/type/name")]
pub struct PathError(String);

impl EdgeResource {
    /// The path of one object; an empty namespace becomes `null`.
    pub fn object(namespace: &str, kind: &str, name: &str) -> Self {
        let namespace = if namespace.is_empty() { NO_NAMESPACE } else { namespace };
        Self { namespace: namespace.to_owned(), kind: kind.to_owned(), name: Some(name.to_owned()) }
    }

    /// Reads a path of two or three non-empty parts.
    ///
    /// # Errors
    /// Any other number of parts, or an empty one.
    pub fn parse(path: &str) -> Result<Self, PathError> {
        let wrong = || PathError(path.chars().take(256).collect());
        let mut parts = path.split('/');
        let (Some(namespace), Some(kind), name, None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            return Err(wrong());
        };
        if namespace.is_empty() || kind.is_empty() || name == Some("") {
            return Err(wrong());
        }
        Ok(Self { namespace: namespace.to_owned(), kind: kind.to_owned(), name: name.map(str::to_owned) })
    }

    /// The name, empty for a list.
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or_default()
    }
}

impl fmt::Display for EdgeResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.kind)?;
        match &self.name {
            Some(name) => write!(f, "/{name}"),
            None => Ok(()),
        }
    }
}

/// The node that a cloud-side path is for: the first part `node` that a non-empty part follows.
pub fn node_of(resource: &str) -> Option<&str> {
    let mut parts = resource.split('/').peekable();
    while let Some(part) = parts.next() {
        if part == "node"
            && let Some(next) = parts.peek().filter(|next| !next.is_empty())
        {
            return Some(next);
        }
    }
    None
}

/// The path as the edge sees it: a leading `node/{node}/` is dropped when something follows it.
pub fn strip_node(resource: &str) -> &str {
    if !resource.starts_with("node") {
        return resource;
    }
    let mut parts = resource.splitn(3, '/');
    parts.next();
    parts.next();
    parts.next().unwrap_or(resource)
}

/// The path as the cloud sees it.
pub fn with_node(node: &str, resource: &str) -> String {
    format!("node/{node}/{resource}")
}
