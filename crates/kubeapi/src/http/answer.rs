//! Answers: JSON texts, tables, partial objects, errors; compressed where it pays.

use std::io::Write;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use link::http_server::Body;
use serde_json::{Value, json};

use crate::ApiError;
use crate::api::{List, ResourceRef};
use crate::table::{self, Include};

/// Shorter answers are not worth compressing.
const COMPRESS_FROM: usize = 8 << 10;

/// The form that a client wishes objects in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// As they are.
    Plain,
    /// A table.
    Table(Include),
    /// Metadata only.
    Partial,
}

impl Form {
    /// The first form of the Accept header that is known here.
    pub(super) fn of(headers: &HeaderMap, include: &str) -> Self {
        let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        for part in accept.split(',') {
            let part = part.trim();
            if part.contains("as=Table") && part.contains("g=meta.k8s.io") {
                return Self::Table(Include::parse(include));
            }
            if part.contains("as=PartialObjectMetadata") {
                return Self::Partial;
            }
            if part.starts_with("application/json") || part.starts_with("*/*") {
                return Self::Plain;
            }
        }
        Self::Plain
    }
}

/// Whether the client asks for OpenAPI v2 in the only form that there is.
pub(super) fn wants_openapi_v2(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    accept.contains("com.github.proto-openapi.spec.v2")
}

/// Whether the client reads the aggregated form of discovery.
pub(super) fn wants_aggregated(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    accept.split(',').any(|part| part.contains("g=apidiscovery.k8s.io") && part.contains("v=v2;"))
}

/// Whether the client reads gzip.
pub(super) fn wants_gzip(headers: &HeaderMap) -> bool {
    headers.get(header::ACCEPT_ENCODING).and_then(|value| value.to_str().ok()).is_some_and(|text| text.contains("gzip"))
}

/// One object in the wished form.
pub(super) fn object(what: &ResourceRef, object: Value, form: Form) -> Value {
    match form {
        Form::Plain => object,
        Form::Table(include) => {
            let metadata = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
            table::table(&what.resource, &[object], metadata, include, true)
        }
        Form::Partial => partial(&object),
    }
}

/// The metadata of an object.
pub(super) fn partial(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

/// A list whose objects are copied as they are kept.
pub(super) fn raw_list(what: &ResourceRef, list: &List<Bytes>) -> Bytes {
    let metadata = list_metadata(list.revision, &list.continue_token);
    let head = json!({"kind": format!("{}List", what.resource.kind), "apiVersion": what.resource.api_version(), "metadata": metadata});
    let mut text = head.to_string();
    text.pop();
    let mut out = text.into_bytes();
    out.extend_from_slice(b",\"items\":[");
    for (at, item) in list.items.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        out.extend_from_slice(item);
    }
    out.extend_from_slice(b"]}");
    out.into()
}

/// A list of parsed objects in the wished form.
pub(super) fn list(what: &ResourceRef, list: &List, form: Form) -> Value {
    let metadata = list_metadata(list.revision, &list.continue_token);
    match form {
        Form::Table(include) => table::table(&what.resource, &list.items, metadata, include, true),
        Form::Partial => {
            let items: Vec<Value> = list.items.iter().map(partial).collect();
            json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "items": items})
        }
        Form::Plain => json!({
            "kind": format!("{}List", what.resource.kind),
            "apiVersion": what.resource.api_version(),
            "metadata": metadata,
            "items": list.items,
        }),
    }
}

fn list_metadata(revision: u64, continue_token: &str) -> Value {
    let mut metadata = json!({"resourceVersion": revision.to_string()});
    if !continue_token.is_empty() {
        metadata["continue"] = json!(continue_token);
    }
    metadata
}

/// A JSON answer.
pub(super) fn json(status: StatusCode, value: &Value, gzip: bool) -> Response<Body> {
    text(status, "application/json", value.to_string().into(), gzip)
}

/// An answer of any type.
pub(super) fn text(status: StatusCode, kind: &'static str, body: Bytes, gzip: bool) -> Response<Body> {
    let packed = if gzip && body.len() >= COMPRESS_FROM { compress(&body) } else { None };
    let is_packed = packed.is_some();
    let body = Full::new(packed.unwrap_or(body)).map_err(|never| match never {}).boxed();
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    if is_packed {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    }
    answer
}

/// A refusal.
pub(super) fn error(error: &ApiError) -> Response<Body> {
    let status = StatusCode::from_u16(error.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    json(status, &error.to_status(), false)
}

fn compress(body: &[u8]) -> Option<Bytes> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 4), Compression::fast());
    encoder.write_all(body).ok()?;
    encoder.finish().ok().map(Bytes::from)
}
