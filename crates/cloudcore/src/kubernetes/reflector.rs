//! Following a resource: a list in pages, then a watch, and the list again when the watch has lost its place. Objects are
//! handed on as JSON text.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{AsyncBufReadExt, StreamExt};
use http::Request;
use link::backoff::Backoff;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tracing::{debug, error, warn};

use super::{ANSWER, Kubernetes, KubernetesError, in_time};

/// Objects in one page of a list.
const PAGE: usize = 500;
/// How long one watch lasts; the server may end it earlier.
const WATCH_SECONDS: u32 = 290;
/// A watch is opened again when nothing came for so long. Servers send a bookmark each minute: the connection is likely dead.
const QUIET: Duration = Duration::from_secs(90);
/// A watch that ended sooner is opened again after a pause.
const BRIEF: Duration = Duration::from_secs(1);
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(15);

/// What happened to a resource.
#[derive(Debug)]
pub enum Change {
    /// A list is older than what was seen before: the cluster was restored from a backup. A new list follows.
    Restored,
    /// A new list begins: what is not in it is gone.
    Begin,
    /// An object is there, or is different.
    Put(Bytes),
    /// An object is gone; its last state.
    Gone(Bytes),
    /// The list is complete.
    Listed,
}

/// Follows one resource.
pub struct Reflector {
    /// The API.
    pub kubernetes: Kubernetes,
    /// For example `/api/v1/pods`.
    pub path: String,
    /// For example `fieldSelector=spec.nodeName!=`; may be empty.
    pub query: String,
}

#[derive(Deserialize)]
struct List {
    metadata: ListMetadata,
    #[serde(default)]
    items: Vec<Box<RawValue>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMetadata {
    #[serde(default)]
    resource_version: String,
    #[serde(default, rename = "continue")]
    next: String,
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct Versioned {
    metadata: ListMetadata,
}

impl Reflector {
    /// Reports changes until nobody listens any more.
    pub async fn run<T: Send>(self, changes: mpsc::Sender<T>, wrap: impl Fn(Change) -> T + Send) {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        let mut newest = 0;
        while !changes.is_closed() {
            match self.list_and_watch(&changes, &wrap, &mut backoff, &mut newest).await {
                Ok(()) => debug!(path = self.path, "listing again"),
                Err(error) if error.code() == 403 => {
                    error!(path = self.path, %error, "cloudcore may not read what it needs: give its user the rights in deploy/rbac.yaml; tried again");
                }
                Err(error) => {
                    warn!(path = self.path, %error, cause = ?std::error::Error::source(&error), "following a resource failed; tried again")
                }
            }
            tokio::time::sleep(backoff.next_wait()).await;
        }
    }

    async fn list_and_watch<T: Send>(
        &self,
        changes: &mpsc::Sender<T>,
        wrap: &(impl Fn(Change) -> T + Send),
        backoff: &mut Backoff,
        newest: &mut u64,
    ) -> Result<(), KubernetesError> {
        let mut version = self.list(changes, wrap, newest).await?;
        backoff.reset();
        while !changes.is_closed() {
            let began = Instant::now();
            let watched = self.watch(&mut version, changes, wrap).await;
            *newest = (*newest).max(version.parse().unwrap_or_default());
            if self.is_now_before(*newest).await {
                // The list will say so, however far the API has come by then.
                *newest = u64::MAX;
                return Ok(());
            }
            match watched {
                Ok(true) if began.elapsed() < BRIEF => tokio::time::sleep(backoff.next_wait()).await,
                Ok(true) => backoff.reset(),
                Ok(false) => return Ok(()),
                Err(error) if error.code() == 410 => return Ok(()),
                Err(error) => {
                    debug!(path = self.path, %error, "a watch ended; opened again");
                    tokio::time::sleep(backoff.next_wait()).await;
                }
            }
        }
        Ok(())
    }

    /// Whether the API is at an older version than this: it was restored from a backup. Asked when a watch has ended, for a new one from
    /// a version of the future would be silent until the API gets there.
    async fn is_now_before(&self, version: u64) -> bool {
        let path = format!("{}?limit=1&{}", self.path, self.query);
        let Ok(text) = self.kubernetes.get(&path).await else { return false };
        let list = serde_json::from_slice::<List>(&text).ok();
        list.and_then(|list| list.metadata.resource_version.parse::<u64>().ok()).is_some_and(|now| now < version)
    }

    async fn list<T: Send>(
        &self,
        changes: &mpsc::Sender<T>,
        wrap: &(impl Fn(Change) -> T + Send),
        newest: &mut u64,
    ) -> Result<String, KubernetesError> {
        let mut next = String::new();
        let mut first = true;
        loop {
            let path = format!("{}?limit={PAGE}&{}&continue={next}", self.path, self.query);
            let text = self.kubernetes.get(&path).await?;
            let list: List = serde_json::from_slice(&text).map_err(|e| KubernetesError::Request(e.into()))?;
            if std::mem::take(&mut first) {
                let version: u64 = list.metadata.resource_version.parse().unwrap_or(*newest);
                if version < std::mem::replace(newest, version) {
                    let _ = changes.send(wrap(Change::Restored)).await;
                }
                let _ = changes.send(wrap(Change::Begin)).await;
            }
            for item in list.items {
                let text = Bytes::from(String::from(Box::<str>::from(item)));
                let _ = changes.send(wrap(Change::Put(text))).await;
            }
            if list.metadata.next.is_empty() {
                let _ = changes.send(wrap(Change::Listed)).await;
                return Ok(list.metadata.resource_version);
            }
            next = list.metadata.next;
        }
    }

    /// `false` when the place is lost and a new list is needed.
    pub(super) async fn watch<T: Send>(
        &self,
        version: &mut String,
        changes: &mpsc::Sender<T>,
        wrap: &(impl Fn(Change) -> T + Send),
    ) -> Result<bool, KubernetesError> {
        let path = format!(
            "{}?watch=true&allowWatchBookmarks=true&timeoutSeconds={WATCH_SECONDS}&resourceVersion={version}&{}",
            self.path, self.query
        );
        let request = Request::get(path).body(Vec::new()).map_err(|e| KubernetesError::Request(e.into()))?;
        let opening = async {
            self.kubernetes.client().request_stream(request).await.map_err(|error| match error {
                kube::Error::Api(status) if status.code == 410 => {
                    KubernetesError::Refused(Box::new(wire::Status::failure(410, "Expired", status.message.clone())))
                }
                error => KubernetesError::Request(error.into()),
            })
        };
        let mut lines = Box::pin(in_time(ANSWER, opening).await?).lines();
        loop {
            let Ok(next) = tokio::time::timeout(QUIET, lines.next()).await else { return Ok(true) };
            let Some(line) = next.transpose().map_err(|e| KubernetesError::Request(e.into()))? else { break };
            if line.is_empty() {
                continue;
            }
            let event: Line<'_> = serde_json::from_str(&line).map_err(|e| KubernetesError::Request(e.into()))?;
            let text = event.object.get();
            if event.kind == "ERROR" {
                return Ok(false);
            }
            let head: Versioned = serde_json::from_str(text).map_err(|e| KubernetesError::Request(e.into()))?;
            let change = match event.kind {
                "ADDED" | "MODIFIED" => Some(Change::Put(Bytes::copy_from_slice(text.as_bytes()))),
                "DELETED" => Some(Change::Gone(Bytes::copy_from_slice(text.as_bytes()))),
                _ => None,
            };
            if let Some(change) = change
                && changes.send(wrap(change)).await.is_err()
            {
                return Ok(true);
            }
            *version = head.metadata.resource_version;
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// An API server that is restored from a backup after the first watch, and soon has newer versions than before; unlike the embedded one
    /// it refuses no version of the future.
    #[tokio::test]
    async fn a_watch_that_ends_shows_that_the_cluster_was_restored() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
        let kubernetes = Kubernetes::at(&format!("http://{}", listener.local_addr().expect("address")));
        let asked = Mutex::new(Vec::new());
        let serving = async {
            let mut now = 100;
            loop {
                let (mut tcp, _) = listener.accept().await.expect("connection");
                let mut head = [0; 4096];
                let length = tcp.read(&mut head).await.expect("request");
                let line = String::from_utf8_lossy(&head[..length]).lines().next().unwrap_or_default().to_owned();
                let mut body = format!(r#"{{"metadata":{{"resourceVersion":"{now}"}},"items":[]}}"#);
                if line.contains("watch=true") {
                    now = 50;
                    body.clear();
                } else if line.contains("limit=1&") {
                    now = 150;
                }
                asked.lock().expect("lock").push(line);
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                    body.len()
                );
                tcp.write_all(answer.as_bytes()).await.expect("answered");
            }
        };
        let reflector = Reflector { kubernetes, path: "/api/v1/nodes".to_owned(), query: String::new() };
        let (changes, mut incoming) = mpsc::channel(1);
        let seeing = async {
            let mut seen = Vec::new();
            while !matches!(seen.last(), Some(Change::Restored)) {
                seen.push(incoming.recv().await.expect("a change"));
            }
            seen.len()
        };
        let seen = tokio::select! {
            () = reflector.run(changes, |change| change) => panic!("it goes on"),
            () = serving => panic!("it goes on"),
            seen = tokio::time::timeout(Duration::from_secs(20), seeing) => seen.expect("in time"),
        };
        assert_eq!(seen, 3, "the first list, and that it was restored");
        let asked = asked.into_inner().expect("lock");
        assert_eq!(asked.iter().filter(|line| line.contains("watch=true")).count(), 1, "{asked:?}");
    }
}
