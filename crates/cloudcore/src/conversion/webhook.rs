//! What the API server asks: `ConversionReview` of `apiextensions.k8s.io/v1`, on the certificate endpoint's port.
//!
//! The API server shows no certificate, and that port is open to those who want to join. So the path has a part that only those know who can
//! read the definitions: nobody else makes cloudcore read long requests. All replicas have the same, for they share the CA.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use link::http_server::Body;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use tracing::debug;

use super::convert;

/// What all paths of such webhooks begin with.
pub const PATH: &str = "/devices/convert/";
/// API servers ask for a list as a whole; a longer one is refused.
const MAX_REVIEW: usize = 32 << 20;
/// Reviews that are read and answered at once; more wait.
const MAX_REVIEWS: usize = 2;
/// How long a review may take to come in.
const READING: Duration = Duration::from_secs(20);
/// Objects that are converted before others have their turn.
const TURN: usize = 32;

/// Answers reviews. Cloning is cheap.
#[derive(Clone)]
pub struct Webhook {
    path: Arc<str>,
    turns: Arc<Semaphore>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Review<'a> {
    api_version: String,
    #[serde(borrow)]
    request: Asked<'a>,
}

#[derive(Deserialize)]
struct Asked<'a> {
    uid: String,
    #[serde(rename = "desiredAPIVersion")]
    wanted: String,
    #[serde(borrow, default)]
    objects: Vec<&'a RawValue>,
}

impl Webhook {
    /// One of the hub with this CA key.
    pub fn new(ca_key: &[u8]) -> Self {
        let digest = Sha256::new().chain_update("path of the conversion webhook\n").chain_update(ca_key).finalize();
        let part: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        Self { path: format!("{PATH}{part}").into(), turns: Arc::new(Semaphore::new(MAX_REVIEWS)) }
    }

    /// Where it is asked.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Answers a request to [`Webhook::path`].
    pub async fn handle(&self, request: Request<Incoming>) -> Response<Body> {
        if request.method() != Method::POST {
            return answer(StatusCode::METHOD_NOT_ALLOWED, "405: POST a ConversionReview".to_owned());
        }
        let Ok(_turn) = self.turns.acquire().await else {
            return answer(StatusCode::SERVICE_UNAVAILABLE, "503: cloudcore ends".to_owned());
        };
        let reading = Limited::new(request.into_body(), MAX_REVIEW).collect();
        let body = match tokio::time::timeout(READING, reading).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(_)) => {
                let why = format!("413: the review broke off, or is longer than {MAX_REVIEW} bytes: list in pages");
                return answer(StatusCode::PAYLOAD_TOO_LARGE, why);
            }
            Err(_) => return answer(StatusCode::REQUEST_TIMEOUT, "408: the review did not come in time".to_owned()),
        };
        match review(&body).await {
            Ok(text) => answer(StatusCode::OK, text),
            Err(error) => answer(StatusCode::BAD_REQUEST, format!("400: this is no ConversionReview: {error}")),
        }
    }
}

/// The answer to a review, as JSON text. All objects are converted, or the answer says which one cannot be, and why.
///
/// # Errors
/// It is no review.
pub async fn review(text: &[u8]) -> Result<String, serde_json::Error> {
    let review: Review<'_> = serde_json::from_slice(text)?;
    let Asked { uid, wanted, objects } = review.request;
    let mut converted = String::new();
    let mut result = json!({"status": "Success"});
    for (at, object) in objects.into_iter().enumerate() {
        if at % TURN == TURN - 1 {
            tokio::task::yield_now().await;
        }
        match one(object.get(), &wanted) {
            Ok(object) => {
                converted.push_str(if at == 0 { "" } else { "," });
                converted.push_str(&object);
            }
            Err(why) => {
                debug!(wanted, why, "an object cannot be converted");
                converted.clear();
                result = json!({"status": "Failure", "reason": "Invalid", "code": 422, "message": why});
                break;
            }
        }
    }
    let (uid, version) = (json!(uid), json!(review.api_version));
    Ok(format!(
        r#"{{"kind":"ConversionReview","apiVersion":{version},"response":{{"uid":{uid},"result":{result},"convertedObjects":[{converted}]}}}}"#
    ))
}

fn one(text: &str, wanted: &str) -> Result<String, String> {
    let object: Value = serde_json::from_str(text).map_err(|error| format!("an object cannot be read: {error}"))?;
    let field = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (kind, namespace, name) = (field("/kind"), field("/metadata/namespace"), field("/metadata/name"));
    match convert(object, wanted) {
        Ok(object) => Ok(object.to_string()),
        Err(error) => Err(format!("{kind} {namespace}/{name} cannot be had as {wanted}: {error}")),
    }
}

fn answer(status: StatusCode, text: String) -> Response<Body> {
    let kind = if status == StatusCode::OK { "application/json" } else { "text/plain; charset=utf-8" };
    let mut answer = Response::new(Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed());
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}
