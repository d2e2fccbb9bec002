//! Watches as chunked lines of JSON.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream;
use http::{HeaderValue, Response, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use link::http_server::Body;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::answer::{Form, partial};
use crate::ApiError;
use crate::api::{Api, ResourceRef, Watch, WatchEvent};
use crate::table;

/// A watch without a deadline of its own ends after this time; clients open it again.
const LONGEST: Duration = Duration::from_secs(3600);
/// How often a quiet watch tells its client the current version.
const BOOKMARK: Duration = Duration::from_secs(60);
/// Events that are written together when several are waiting.
const BATCH_BYTES: usize = 64 << 10;

struct State {
    api: Api,
    watch: Watch,
    what: ResourceRef,
    form: Form,
    bookmarks: bool,
    end: Instant,
    first: bool,
    over: bool,
}

/// The answer to a watch. A client that does not read is not waited for by anybody else: the events stay in the log, and when
/// they are gone from it the watch ends with 410.
pub(super) fn watch(
    api: &Api,
    what: ResourceRef,
    watch: Watch,
    form: Form,
    bookmarks: bool,
    limit: Option<u64>,
) -> Response<Body> {
    let limit = limit.filter(|seconds| *seconds > 0).map_or(LONGEST, Duration::from_secs).min(LONGEST);
    let end = Instant::now() + limit;
    let state = State { api: api.clone(), watch, what, form, bookmarks, end, first: true, over: false };
    let frames = stream::unfold(state, |mut state| async move {
        if state.over {
            return None;
        }
        let chunk = state.next_chunk().await?;
        Some((Ok::<_, Box<dyn std::error::Error + Send + Sync>>(Frame::data(chunk)), state))
    });
    let mut answer = Response::new(BodyExt::boxed(StreamBody::new(SyncStream::new(frames))));
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    answer
}

impl State {
    async fn next_chunk(&mut self) -> Option<Bytes> {
        let bookmark_at = (Instant::now() + BOOKMARK).min(self.end);
        match tokio::time::timeout_at(bookmark_at, self.watch.next()).await {
            Ok(Ok(event)) => Some(self.batch(event).await),
            Ok(Err(error)) => Some(self.failed(&error)),
            Err(_) => self.quiet().await,
        }
    }

    /// Nothing came for a while.
    async fn quiet(&mut self) -> Option<Bytes> {
        // First the version, then what was committed up to it: a client continues from a bookmark and never gets what it skips.
        let version = self.api.revision();
        match self.watch.try_next() {
            Ok(Some(event)) => return Some(self.batch(event).await),
            Ok(None) => {}
            Err(error) => return Some(self.failed(&error)),
        }
        self.over = Instant::now() >= self.end;
        match self.bookmarks {
            true => Some(self.bookmark(version)),
            false => (!self.over).then(Bytes::new),
        }
    }

    fn failed(&mut self, error: &ApiError) -> Bytes {
        self.over = true;
        line(&json!({"type": "ERROR", "object": error.to_status()}))
    }

    /// This event, and those behind it that are there already.
    async fn batch(&mut self, first: WatchEvent) -> Bytes {
        let mut size = first.json.len();
        let mut events = vec![first];
        while size < BATCH_BYTES {
            match self.watch.try_next() {
                Ok(Some(event)) => {
                    size += event.json.len();
                    events.push(event);
                }
                // An error is told by the next chunk.
                _ => break,
            }
        }
        let is_as_is = self.form == Form::Plain && self.what.resource.custom.is_none();
        if is_as_is {
            let mut out = BytesMut::with_capacity(size + events.len() * 40);
            events.iter().for_each(|event| write_as_is(event, &mut out));
            return out.freeze();
        }
        match self.shaped(&events).await {
            Ok(lines) => lines,
            Err(error) => self.failed(&error),
        }
    }

    /// The events in the version and form that were asked for.
    async fn shaped(&mut self, events: &[WatchEvent]) -> Result<Bytes, ApiError> {
        let objects = events.iter().map(WatchEvent::object).collect::<Result<Vec<_>, _>>()?;
        let objects = self.api.convert(&self.what, objects).await?;
        let mut out = BytesMut::new();
        for (event, object) in events.iter().zip(objects) {
            let object = self.shape(object);
            out.put_slice(&line(&json!({"type": event.kind.text(), "object": object})));
        }
        Ok(out.freeze())
    }

    fn shape(&mut self, object: Value) -> Value {
        match self.form {
            Form::Plain => object,
            Form::Partial => partial(&object),
            Form::Table(include) => {
                let metadata = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
                let with_columns = std::mem::take(&mut self.first);
                table::table(&self.what.resource, &[object], metadata, include, with_columns)
            }
        }
    }

    fn bookmark(&mut self, version: u64) -> Bytes {
        let version = json!({"resourceVersion": version.to_string(), "creationTimestamp": null});
        let object = json!({"kind": self.what.resource.kind, "apiVersion": self.what.resource.api_version(), "metadata": version});
        let object = match self.form {
            Form::Table(include) => table::table(&self.what.resource, &[], version, include, false),
            _ => object,
        };
        line(&json!({"type": "BOOKMARK", "object": object}))
    }
}

fn write_as_is(event: &WatchEvent, out: &mut BytesMut) {
    out.put_slice(b"{\"type\":\"");
    out.put_slice(event.kind.text().as_bytes());
    out.put_slice(b"\",\"object\":");
    out.put_slice(&event.json);
    out.put_slice(b"}\n");
}

fn line(value: &Value) -> Bytes {
    let mut text = value.to_string();
    text.push('\n');
    text.into()
}

/// Whether a list's resource version can be continued from: `Some(0)` and absence mean that any state will do.
pub(super) fn since(text: &str) -> Result<Option<u64>, ApiError> {
    match text {
        "" | "0" => Ok(None),
        text => {
            text.parse().map(Some).map_err(|_| ApiError::bad_request(format!("invalid resource version: {text:?}")))
        }
    }
}

/// Makes a stream shareable between threads: it is only ever polled by one, through `&mut`.
struct SyncStream<S>(std::sync::Mutex<std::pin::Pin<Box<S>>>);

impl<S: stream::Stream> SyncStream<S> {
    fn new(stream: S) -> Self {
        Self(std::sync::Mutex::new(Box::pin(stream)))
    }
}

impl<S: stream::Stream> stream::Stream for SyncStream<S> {
    type Item = S::Item;
    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<S::Item>> {
        let inner = self.get_mut().0.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        inner.as_mut().poll_next(context)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::BoxFuture;

    use super::*;
    use crate::api::{Action, Authority, ListOptions, User};
    use crate::storage::{self, Event, EventLog, Expect, Key, Page, Storage, Stored, WriteError};

    /// Something is committed just before anybody asks for the version.
    struct Busy(EventLog);

    impl Storage for Busy {
        fn get(&self, _: &Key) -> Result<Option<Stored>, ApiError> {
            Ok(None)
        }

        fn list(&self, _: &str, _: Option<&str>, _: Option<(&str, &str)>, _: usize) -> Result<Page, ApiError> {
            Ok(Page { items: Vec::new(), revision: 1, more: false })
        }

        fn write(&self, _: Key, _: Expect, _: storage::Change) -> BoxFuture<'_, Result<u64, WriteError>> {
            Box::pin(async { Err(WriteError::Unexpected) })
        }

        fn revision(&self) -> u64 {
            let json = Bytes::from_static(b"{\"metadata\":{\"name\":\"new\"}}");
            let (namespace, name) = ("default".to_owned(), "new".to_owned());
            self.0.push("pods", Event { revision: 2, json, previous: None, deleted: false, namespace, name });
            2
        }

        fn events(&self) -> &EventLog {
            &self.0
        }
    }

    struct Nobody;

    impl Authority for Nobody {
        fn issue_token(&self, _: &Value, request: Value) -> Result<Value, ApiError> {
            Ok(request)
        }

        fn authenticate(&self, _: &Api, _: &str, _: &[&str]) -> Option<(User, Vec<String>)> {
            None
        }

        fn authorize(&self, _: &Api, _: &User, _: &Action<'_>) -> bool {
            false
        }
    }

    #[tokio::test]
    async fn a_bookmark_skips_no_event() {
        let api = Api::new(Busy(EventLog::new(1)), Nobody).expect("an API");
        let resource = api.catalog().find("", "v1", "pods").expect("pods");
        let what = ResourceRef { resource, namespace: String::new(), name: String::new(), subresource: String::new() };
        let watch = api.watch(&what, &ListOptions::default(), Some(1)).expect("a watch");
        let end = Instant::now() + LONGEST;
        let mut state = State { api, watch, what, form: Form::Plain, bookmarks: true, end, first: true, over: false };
        let told = state.quiet().await.expect("something");
        let told = String::from_utf8_lossy(&told);
        assert!(told.contains("ADDED") && told.contains("new"), "{told}");
    }
}
