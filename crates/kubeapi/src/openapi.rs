//! OpenAPI v3: the paths that kubectl looks at, without schemas.
//!
//! kubectl needs per kind a path with a `patch` operation, its `x-kubernetes-group-version-kind` and a query parameter
//! `fieldValidation`; then `apply`, `create -f`, `edit` and `replace` work. A partial schema would be worse than none.

use serde_json::{Map, Value, json};

use crate::api::Api;
use crate::catalog::Resource;

/// The one form in which kubectl asks for `/openapi/v2`.
pub const V2_TYPE: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
/// That document, in protobuf: version 2.0, title, no paths and no definitions. kubectl looks into it before it takes a `v1.List`.
pub const V2: &[u8] = b"\x0a\x032.0\x12\x10\x0a\x0aKubernetes\x12\x02v1\x42\x00";

/// `GET /openapi/v3`.
pub fn index(api: &Api) -> Value {
    let mut paths = Map::new();
    for resource in api.catalog().all() {
        let path = group_path(&resource);
        if !paths.contains_key(&path) {
            let url = format!("/openapi/v3/{path}?hash={}", hash(&document(api, &path)));
            paths.insert(path, json!({"serverRelativeURL": url}));
        }
    }
    json!({"paths": paths})
}

/// The document of one group and version, for example `apis/apps/v1`.
pub fn document(api: &Api, group_path: &str) -> Value {
    let mut paths = Map::new();
    for resource in api.catalog().all().iter().filter(|resource| self::group_path(resource) == group_path) {
        let scope = if resource.namespaced { "namespaces/{namespace}/" } else { "" };
        let path = format!("/{group_path}/{scope}{}/{{name}}", resource.plural);
        let gvk = json!({"group": resource.group, "version": resource.version, "kind": resource.kind});
        let operation = |action: &str| {
            json!({
                "x-kubernetes-action": action,
                "x-kubernetes-group-version-kind": gvk,
                "parameters": [{"name": "fieldValidation", "in": "query", "schema": {"type": "string", "uniqueItems": true}}],
                "responses": {"200": {"description": "OK"}},
            })
        };
        paths.insert(path, json!({"patch": operation("patch"), "put": operation("put")}));
        let list = format!("/{group_path}/{scope}{}", resource.plural);
        paths.insert(list, json!({"post": operation("post")}));
    }
    // The empty list is for `kubectl explain`, which stumbles over none at all.
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "v1"},
        "paths": paths,
        "components": {"schemas": {}},
    })
}

/// `api/v1` or `apis/GROUP/VERSION`.
fn group_path(resource: &Resource) -> String {
    if resource.group.is_empty() {
        format!("api/{}", resource.version)
    } else {
        format!("apis/{}", resource.api_version())
    }
}

/// A hash for caches, the same for the same text.
pub fn hash(document: &Value) -> String {
    // FNV-1a; it only tells versions apart.
    let hash = document
        .to_string()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016X}")
}
