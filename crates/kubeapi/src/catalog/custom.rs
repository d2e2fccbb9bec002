//! Resources that a CustomResourceDefinition defines.

use serde_json::Value;

use std::sync::Arc;

use super::{Column, Resource, Subresource};
use crate::webhook::Conversion;

/// What a CRD says about one version of its resource.
#[derive(Debug)]
pub struct CustomResource {
    /// The structural schema.
    pub schema: Value,
    /// `spec.subresources.scale`, or null.
    pub scale: Value,
    /// What is the same for all versions.
    pub versions: Arc<Versions>,
}

/// The version in which objects of a custom resource are kept, and how they get from it to others and back.
#[derive(Debug)]
pub struct Versions {
    /// `group/version` that objects are kept in.
    pub kept: String,
    /// The schema of that version.
    pub kept_schema: Value,
    /// How an object gets into another version.
    pub conversion: Conversion,
}

const VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// The resources of a CRD: one per served version.
pub fn resources_of_crd(crd: &Value) -> Vec<Resource> {
    let spec = &crd["spec"];
    let names = &spec["names"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let texts = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let (group, kind) = (text(&spec["group"]), text(&names["kind"]));
    let all = || spec["versions"].as_array().into_iter().flatten();
    let kept = all().find(|version| version["storage"] == true).unwrap_or(&Value::Null);
    let versions = Arc::new(Versions {
        kept: format!("{group}/{}", text(&kept["name"])),
        kept_schema: kept["schema"]["openAPIV3Schema"].clone(),
        conversion: Conversion::of(&spec["conversion"]),
    });
    all()
        .filter(|version| version["served"] == true)
        .map(|version| {
            let mut subresources = Vec::new();
            let mut add = |name: &str, group: &str, version: &str, kind: &str| {
                subresources.push(Subresource {
                    name: name.to_owned(),
                    group: group.to_owned(),
                    version: version.to_owned(),
                    kind: kind.to_owned(),
                    verbs: ["get", "patch", "update"].map(str::to_owned).to_vec(),
                });
            };
            if version["subresources"]["status"].is_object() {
                add("status", "", "", &kind);
            }
            let scale = version["subresources"]["scale"].clone();
            if scale.is_object() {
                add("scale", "autoscaling", "v1", "Scale");
            }
            Resource {
                group: group.clone(),
                version: text(&version["name"]),
                plural: text(&names["plural"]),
                singular: names["singular"].as_str().map_or_else(|| kind.to_lowercase(), str::to_owned),
                kind: kind.clone(),
                namespaced: spec["scope"] == "Namespaced",
                short_names: texts(&names["shortNames"]),
                categories: texts(&names["categories"]),
                verbs: VERBS.iter().map(|verb| (*verb).to_owned()).collect(),
                subresources,
                columns: columns(&version["additionalPrinterColumns"]),
                custom: Some(Arc::new(CustomResource {
                    schema: version["schema"]["openAPIV3Schema"].clone(),
                    scale,
                    versions: versions.clone(),
                })),
            }
        })
        .collect()
}

fn columns(defined: &Value) -> Vec<Column> {
    let name = Column { name: "Name".into(), kind: "string".into(), format: "name".into(), ..Column::default() };
    let mut columns = vec![name];
    let own = defined.as_array().into_iter().flatten().map(|column| Column {
        name: column["name"].as_str().unwrap_or_default().to_owned(),
        kind: column["type"].as_str().unwrap_or("string").to_owned(),
        format: column["format"].as_str().unwrap_or_default().to_owned(),
        priority: i32::try_from(column["priority"].as_i64().unwrap_or_default()).unwrap_or_default(),
        json_path: column["jsonPath"].as_str().unwrap_or_default().to_owned(),
    });
    columns.extend(own);
    if columns.len() == 1 {
        let age = ".metadata.creationTimestamp".to_owned();
        columns.push(Column { name: "Age".into(), kind: "date".into(), json_path: age, ..Column::default() });
    }
    columns
}
