//! The resources that are served: those of Kubernetes from embedded data, and those that CRDs define while the server runs.

mod custom;
mod node;

use std::io::Read;
use std::sync::{Arc, PoisonError, RwLock};

use serde::Deserialize;
use serde_json::Value;

pub use custom::{CustomResource, Versions, resources_of_crd};

use crate::ApiError;

/// Dumped from a kube-apiserver 1.36.2 by `cargo xtask gen-kube`.
const RESOURCES: &[u8] = include_bytes!("../data/resources.json.gz");

/// A resource in one version.
#[derive(Clone, Debug)]
pub struct Resource {
    /// API group, empty for core.
    pub group: String,
    /// API version, for example `v1`.
    pub version: String,
    /// Plural name, for example `pods`.
    pub plural: String,
    /// Singular name.
    pub singular: String,
    /// Kind.
    pub kind: String,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// Short names.
    pub short_names: Vec<String>,
    /// Categories, for example `all`.
    pub categories: Vec<String>,
    /// Verbs.
    pub verbs: Vec<String>,
    /// Subresources.
    pub subresources: Vec<Subresource>,
    /// Columns of its table.
    pub columns: Vec<Column>,
    /// What its CRD says.
    pub custom: Option<Arc<CustomResource>>,
}

/// A subresource.
#[derive(Clone, Debug)]
pub struct Subresource {
    /// Its name, for example `status`.
    pub name: String,
    /// Group of its kind; empty means the resource's.
    pub group: String,
    /// Version of its kind; empty means the resource's.
    pub version: String,
    /// Its kind.
    pub kind: String,
    /// Verbs.
    pub verbs: Vec<String>,
}

/// A column of a table (`metav1.TableColumnDefinition`).
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Column {
    /// Heading.
    pub name: String,
    /// `string`, `integer`, `date`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// `name` for the object's name.
    #[serde(default)]
    pub format: String,
    /// 0 is always shown, 1 with `-o wide`.
    #[serde(default)]
    pub priority: i32,
    /// Where a CRD's column takes its value from.
    #[serde(skip)]
    pub json_path: String,
}

/// All resources.
pub struct Catalog {
    builtin: Vec<Arc<Resource>>,
    custom: RwLock<Vec<Arc<Resource>>>,
}

impl Catalog {
    /// The resources of Kubernetes.
    pub fn new() -> Self {
        Self { builtin: builtin().into_iter().map(Arc::new).collect(), custom: RwLock::default() }
    }

    /// These, and what the nodes answer.
    pub(crate) fn with_nodes() -> Self {
        let mut resources = builtin();
        resources.iter_mut().for_each(node::add_subresources);
        resources.extend(node::metrics());
        Self { builtin: resources.into_iter().map(Arc::new).collect(), custom: RwLock::default() }
    }

    /// Every resource.
    pub fn all(&self) -> Vec<Arc<Resource>> {
        let custom = self.custom.read().unwrap_or_else(PoisonError::into_inner);
        self.builtin.iter().chain(custom.iter()).cloned().collect()
    }

    /// A resource by group, version and plural.
    ///
    /// # Errors
    /// Nothing of that name is served.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Result<Arc<Resource>, ApiError> {
        let fits = |r: &&Arc<Resource>| r.plural == plural && r.group == group && r.version == version;
        if let Some(resource) = self.builtin.iter().find(fits) {
            return Ok(resource.clone());
        }
        let custom = self.custom.read().unwrap_or_else(PoisonError::into_inner);
        custom.iter().find(fits).cloned().ok_or_else(ApiError::no_such_path)
    }

    /// A resource by group and plural, or by kind when `plural` is empty, in the version that its objects are kept in if that is served.
    pub fn find_any(&self, group: &str, plural: &str, kind: &str) -> Option<Arc<Resource>> {
        let mut found = self.all();
        found.retain(|r| r.group == group && (r.plural == plural || (plural.is_empty() && r.kind == kind)));
        found.iter().find(|r| r.is_as_kept()).or(found.first()).cloned()
    }

    /// Replaces what a CRD defines; an empty list removes it.
    pub fn set_custom(&self, group: &str, plural: &str, resources: Vec<Resource>) {
        let mut custom = self.custom.write().unwrap_or_else(PoisonError::into_inner);
        custom.retain(|r| r.group != group || r.plural != plural);
        custom.extend(resources.into_iter().map(Arc::new));
    }
}

impl Default for Catalog {
    fn default() -> Self {
        Self::new()
    }
}

impl Resource {
    /// `version` or `group/version`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// The name under which objects are kept: `plural` or `plural.group`.
    pub fn storage_name(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// Whether objects are kept in this version.
    pub fn is_as_kept(&self) -> bool {
        self.custom.as_ref().is_none_or(|custom| custom.versions.kept == self.api_version())
    }

    /// Whether it has this subresource.
    pub fn has(&self, subresource: &str) -> bool {
        self.subresources.iter().any(|s| s.name == subresource)
    }
}

/// Reads one of the embedded tables.
pub(crate) fn unpack(data: &[u8]) -> Value {
    let mut text = Vec::new();
    let read = flate2::read::GzDecoder::new(data).read_to_end(&mut text);
    read.map_err(|e| e.to_string())
        .and_then(|_| serde_json::from_slice(&text).map_err(|e| e.to_string()))
        .expect("embedded data is valid: a test reads all of it")
}

fn builtin() -> Vec<Resource> {
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let data = unpack(RESOURCES);
    let resources = data.as_array().into_iter().flatten().map(|r| Resource {
        group: text(&r["group"]),
        version: "v1".to_owned(),
        plural: text(&r["resource"]),
        singular: text(&r["singularResource"]),
        kind: text(&r["responseKind"]["kind"]),
        namespaced: r["scope"] == "Namespaced",
        short_names: texts(&r["shortNames"]),
        categories: texts(&r["categories"]),
        verbs: texts(&r["verbs"]),
        subresources: r["subresources"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|s| Subresource {
                name: text(&s["subresource"]),
                group: text(&s["responseKind"]["group"]),
                version: text(&s["responseKind"]["version"]),
                kind: text(&s["responseKind"]["kind"]),
                verbs: texts(&s["verbs"]),
            })
            .collect(),
        columns: serde_json::from_value(r["columns"].clone()).unwrap_or_default(),
        custom: None,
    });
    resources.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_resources_can_be_read() {
        let catalog = Catalog::new();
        let pods = catalog.find("", "v1", "pods").expect("pods");
        assert!(pods.namespaced && pods.has("status") && pods.has("eviction") && !pods.has("exec"));
        assert_eq!(pods.short_names, ["po"]);
        assert_eq!(pods.columns[0].name, "Name");
        let deployments = catalog.find("apps", "v1", "deployments").expect("deployments");
        assert_eq!(deployments.storage_name(), "deployments.apps");
        assert!(catalog.find("batch", "v1", "cronjobs").is_err(), "what has no controller is not served");
    }
}
