//! Answers.

use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt};
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::Frame;
use link::http_server::Body;
use serde::Serialize;

use crate::access::{AccessError, LogStream};

/// A text; one that says no ends its line.
pub fn text(status: StatusCode, text: impl Into<String>) -> Response<Body> {
    let mut text = text.into();
    if status != StatusCode::OK && !text.ends_with('\n') {
        text.push('\n');
    }
    with_type(status, "text/plain; charset=utf-8", text.into())
}

/// A JSON object.
pub fn json(object: &impl Serialize) -> Response<Body> {
    match serde_json::to_vec(object) {
        Ok(bytes) => json_bytes(bytes),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

/// JSON as it is.
pub fn json_bytes(bytes: Vec<u8>) -> Response<Body> {
    with_type(StatusCode::OK, "application/json", bytes)
}

/// A text that comes in pieces.
pub fn stream(stream: LogStream) -> Response<Body> {
    let frames = stream.map_ok(Frame::data).map_err(Into::into);
    let mut answer = Response::new(BodyExt::boxed(StreamBody::new(SyncStream(Mutex::new(Box::pin(frames))))));
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

/// Nothing but a head.
pub fn empty(status: StatusCode) -> Response<Body> {
    let mut answer = Response::new(Empty::new().map_err(|never| match never {}).boxed());
    *answer.status_mut() = status;
    answer
}

/// Why something is not given.
pub fn error(error: &AccessError) -> Response<Body> {
    let status = match error {
        AccessError::NotFound(_) => StatusCode::NOT_FOUND,
        AccessError::Refused(_) => StatusCode::BAD_REQUEST,
        AccessError::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
        AccessError::TooMany => StatusCode::TOO_MANY_REQUESTS,
        AccessError::Runtime(_) | AccessError::Log { .. } | AccessError::Streaming(_) => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
    };
    text(status, error.to_string())
}

/// Bodies must be shareable between threads, which a stream need not be: only its owner ever polls it.
struct SyncStream<S>(Mutex<Pin<Box<S>>>);

impl<S: Stream> Stream for SyncStream<S> {
    type Item = S::Item;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<S::Item>> {
        let inner = self.get_mut().0.get_mut().unwrap_or_else(PoisonError::into_inner);
        inner.as_mut().poll_next(context)
    }
}

fn with_type(status: StatusCode, kind: &'static str, content: Vec<u8>) -> Response<Body> {
    let mut answer = Response::new(Full::new(Bytes::from(content)).map_err(|never| match never {}).boxed());
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}
