//! `cargo xtask gen-kube`: the compact tables that `kubeapi` embeds, made from dumps of a kube-apiserver.
//!
//! Input is a folder with `discovery.json`, `openapi-schemas.json`, `protobuf-fields.json` and `table-columns.json`. Output are
//! three gzip files in `crates/kubeapi/src/data`. Only the resources that the API server serves are kept, and the types that they
//! reach. A type maps each field to a code: `s` text, `i` integer, `n` number, `b` boolean, `x` text or number, `a` anything,
//! `o:TYPE`, `l:TYPE` list, `m:TYPE` map, with `|key` (merge key) and `|retainKeys` behind lists.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use flate2::{Compression, GzBuilder};
use serde_json::{Map, Value, json};

use crate::workspace::root;

/// Options of `gen-kube`.
#[derive(Args)]
pub struct GenOptions {
    /// The folder with the dumps
    #[arg(long)]
    from: PathBuf,
}

/// What the embedded API server serves: group and resources.
const SERVED: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "configmaps",
            "endpoints",
            "events",
            "namespaces",
            "nodes",
            "persistentvolumeclaims",
            "persistentvolumes",
            "pods",
            "secrets",
            "serviceaccounts",
            "services",
        ],
    ),
    ("apps", &["controllerrevisions", "daemonsets", "deployments", "replicasets", "statefulsets"]),
    ("batch", &["jobs"]),
    ("authentication.k8s.io", &["selfsubjectreviews", "tokenreviews"]),
    ("authorization.k8s.io", &["selfsubjectaccessreviews", "subjectaccessreviews"]),
    ("certificates.k8s.io", &["certificatesigningrequests"]),
    ("rbac.authorization.k8s.io", &["clusterrolebindings", "clusterroles", "rolebindings", "roles"]),
    ("storage.k8s.io", &["csidrivers", "csinodes", "storageclasses", "volumeattachments"]),
    ("apiextensions.k8s.io", &["customresourcedefinitions"]),
    ("scheduling.k8s.io", &["priorityclasses"]),
    ("coordination.k8s.io", &["leases"]),
    ("node.k8s.io", &["runtimeclasses"]),
    ("discovery.k8s.io", &["endpointslices"]),
];
/// Subresources that the API server serves.
const SUBRESOURCES: &[&str] =
    &["status", "scale", "binding", "eviction", "ephemeralcontainers", "resize", "token", "approval", "finalize"];
/// Types of request bodies that are no resources.
const EXTRA_TYPES: &[&str] = &[
    "io.k8s.api.core.v1.Binding",
    "io.k8s.api.policy.v1.Eviction",
    "io.k8s.api.autoscaling.v1.Scale",
    "io.k8s.api.authentication.v1.TokenRequest",
    "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions",
    "io.k8s.apimachinery.pkg.runtime.Unknown",
];
/// Kinds whose JSON is not an object of their fields, and their codes.
const LEAVES: &[(&str, &str)] = &[
    ("io.k8s.apimachinery.pkg.api.resource.Quantity", "x"),
    ("io.k8s.apimachinery.pkg.util.intstr.IntOrString", "x"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.Time", "s"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime", "s"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.Duration", "s"),
];
/// The codes of what has no fields.
const LEAF_CODES: &[&str] = &["s", "i", "n", "b", "x"];

/// Writes the three files.
pub fn generate(options: &GenOptions) -> Result<()> {
    let read = |name: &str| -> Result<Value> {
        let path = options.from.join(name);
        let text = std::fs::read(&path).with_context(|| path.display().to_string())?;
        serde_json::from_slice(&text).with_context(|| path.display().to_string())
    };
    let (schemas, protobuf) = (read("openapi-schemas.json")?, read("protobuf-fields.json")?);
    let resources = resources(&read("discovery.json")?, &read("table-columns.json")?)?;
    let roots = roots(&schemas, &resources);
    let types = types(&schemas, &roots);
    let messages = messages(&protobuf, &roots);
    let out = root().join("crates/kubeapi/src/data");
    std::fs::create_dir_all(&out)?;
    write(&out.join("resources.json.gz"), &json!(resources))?;
    write(&out.join("types.json.gz"), &json!({"kinds": kinds(&schemas, &types), "types": types}))?;
    write(&out.join("protobuf.json.gz"), &json!(messages))?;
    Ok(())
}

fn resources(discovery: &Value, columns: &Value) -> Result<Vec<Value>> {
    let mut kept = Vec::new();
    for (group, names) in SERVED {
        let items = discovery[if group.is_empty() { "/api" } else { "/apis" }]["items"].as_array().context("items")?;
        let found = items.iter().find(|g| g["metadata"]["name"].as_str().unwrap_or_default() == *group);
        let version =
            found.and_then(|g| g["versions"].as_array()?.iter().find(|v| v["version"] == "v1")).context("v1")?;
        for resource in version["resources"].as_array().context("resources")? {
            let name = resource["resource"].as_str().context("name")?;
            if !names.contains(&name) {
                continue;
            }
            let mut resource = resource.clone();
            let subresources = resource["subresources"].as_array().cloned().unwrap_or_default();
            let subresources: Vec<Value> = subresources
                .into_iter()
                .filter(|s| s["subresource"].as_str().is_some_and(|s| SUBRESOURCES.contains(&s)))
                .collect();
            resource["subresources"] = json!(subresources);
            resource["group"] = json!(group);
            let path = if group.is_empty() { format!("v1/{name}") } else { format!("{group}/v1/{name}") };
            resource["columns"] = columns[&path].clone();
            kept.push(resource);
        }
    }
    Ok(kept)
}

/// The schema names of every kind that a request body may have.
fn roots(schemas: &Value, resources: &[Value]) -> BTreeSet<String> {
    let mut wanted = BTreeSet::new();
    for (name, schema) in schemas.as_object().into_iter().flatten() {
        for gvk in schema["x-kubernetes-group-version-kind"].as_array().into_iter().flatten() {
            let served = resources.iter().any(|r| {
                r["group"] == gvk["group"] && gvk["version"] == "v1" && r["responseKind"]["kind"] == gvk["kind"]
            });
            if served {
                wanted.insert(name.clone());
            }
        }
    }
    wanted.extend(EXTRA_TYPES.iter().map(|name| (*name).to_owned()));
    wanted
}

fn kinds(schemas: &Value, types: &BTreeMap<String, Value>) -> Map<String, Value> {
    let mut kinds = Map::new();
    for (name, schema) in schemas.as_object().into_iter().flatten().filter(|(name, _)| types.contains_key(&short(name)))
    {
        for gvk in schema["x-kubernetes-group-version-kind"].as_array().into_iter().flatten() {
            let (group, version) =
                (gvk["group"].as_str().unwrap_or_default(), gvk["version"].as_str().unwrap_or_default());
            let kind = gvk["kind"].as_str().unwrap_or_default();
            let api = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
            kinds.insert(format!("{api}/{kind}"), json!(short(name)));
        }
    }
    kinds
}

fn types(schemas: &Value, roots: &BTreeSet<String>) -> BTreeMap<String, Value> {
    let mut done = BTreeMap::new();
    let mut open: Vec<String> = roots.iter().cloned().collect();
    while let Some(name) = open.pop() {
        let Some(properties) = schemas[&name]["properties"].as_object() else { continue };
        if done.contains_key(&name) {
            continue;
        }
        let mut fields = Map::new();
        for (field, schema) in properties {
            fields.insert(field.clone(), json!(code(schemas, schema, &mut open)));
        }
        done.insert(name, Value::Object(fields));
    }
    done.into_iter().map(|(name, fields)| (short(&name), fields)).collect()
}

fn code(schemas: &Value, schema: &Value, open: &mut Vec<String>) -> String {
    let schema = match schema["allOf"][0].as_object() {
        Some(_) => &schema["allOf"][0],
        None => schema,
    };
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.rsplit('/').next().unwrap_or_default();
        if let Some((_, code)) = LEAVES.iter().find(|(leaf, _)| *leaf == name) {
            return (*code).to_owned();
        }
        if schemas[name]["properties"].is_object() {
            open.push(name.to_owned());
            return format!("o:{}", short(name));
        }
        return "a".to_owned();
    }
    match schema["type"].as_str() {
        Some("array") => {
            let item = inner(&code(schemas, &schema["items"], open));
            let mut text = format!("l:{item}");
            let strategy = schema["x-kubernetes-patch-strategy"].as_str().unwrap_or_default();
            if strategy.contains("merge") {
                text.push('|');
                text.push_str(schema["x-kubernetes-patch-merge-key"].as_str().unwrap_or_default());
            }
            if strategy.contains("retainKeys") {
                text.push_str("|retainKeys");
            }
            text
        }
        Some("object") if schema["additionalProperties"].is_object() => {
            format!("m:{}", inner(&code(schemas, &schema["additionalProperties"], open)))
        }
        Some("object") | None => "a".to_owned(),
        Some("integer") => "i".to_owned(),
        Some("number") => "n".to_owned(),
        Some("boolean") => "b".to_owned(),
        Some(_) => "s".to_owned(),
    }
}

/// A list's or map's item: the name of a type, the code of a leaf, or `a`.
fn inner(code: &str) -> String {
    match code.strip_prefix("o:") {
        Some(name) => name.to_owned(),
        None if LEAF_CODES.contains(&code) => code.to_owned(),
        None => "a".to_owned(),
    }
}

fn messages(protobuf: &Value, roots: &BTreeSet<String>) -> BTreeMap<String, Value> {
    let mut done = BTreeMap::new();
    let mut open: Vec<String> =
        roots.iter().map(|name| name.replace("apiextensions-apiserver", "apiextensions_apiserver")).collect();
    while let Some(name) = open.pop() {
        let Some(fields) = protobuf[&name].as_object() else { continue };
        if done.contains_key(&name) {
            continue;
        }
        for field in fields.values() {
            let kind = field[1].as_str().unwrap_or_default();
            let kind = kind.strip_prefix("repeated ").unwrap_or(kind);
            let kind = kind.strip_prefix("map<string,").and_then(|kind| kind.strip_suffix('>')).unwrap_or(kind);
            if kind.contains('.') {
                open.push(kind.to_owned());
            }
        }
        done.insert(name, json!(fields));
    }
    done
}

fn short(name: &str) -> String {
    name.replace("io.k8s.api.", "").replace("io.k8s.apimachinery.pkg.apis.", "").replace("io.k8s.", "")
}

fn write(path: &Path, value: &Value) -> Result<()> {
    let file = std::fs::File::create(path).with_context(|| path.display().to_string())?;
    let mut out = GzBuilder::new().write(file, Compression::best());
    out.write_all(value.to_string().as_bytes())?;
    out.finish()?;
    Ok(())
}
