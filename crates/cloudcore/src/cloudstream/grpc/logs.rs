//! `Logs`: several logs in one call.

use std::collections::HashMap;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::stream::{SelectAll, unfold};
use futures_util::{Stream, StreamExt};
use http::HeaderMap;
use http_body_util::BodyExt;
use jiff::Timestamp;
use link::http_server::Body;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::v1::logs_request::Action;
use super::v1::logs_response::Content;
use super::v1::{LogEnd, LogsRequest, LogsResponse, OpenLog};
use super::{Asker, check_names, request, status};
use crate::cloudstream::tunnels::Answer;

/// Logs of a call at once.
const MAX_LOGS: usize = 64;
/// Those and the ends that the client has not read yet.
const MAX_WAITING: usize = 2 * MAX_LOGS;
/// Requests that are taken before others get their turn.
const MAX_TAKEN: usize = 64;
/// The longest id.
const MAX_ID: usize = 64;

/// Answers, and whether it is the last of its id.
type Log = Pin<Box<dyn Stream<Item = (bool, LogsResponse)> + Send>>;

/// A call.
pub(super) struct Logs {
    asker: Asker,
    /// Until the client has ended its half.
    requests: Option<Streaming<LogsRequest>>,
    running: SelectAll<Log>,
    /// By id; cancelled to close one.
    open: HashMap<String, CancellationToken>,
    failed: bool,
}

impl Logs {
    pub(super) fn new(asker: Asker, requests: Streaming<LogsRequest>) -> Self {
        Self { asker, requests: Some(requests), running: SelectAll::new(), open: HashMap::new(), failed: false }
    }

    /// An error ends the call.
    fn take(&mut self, request: LogsRequest) -> Result<(), Status> {
        match request.action {
            None => Err(Status::invalid_argument("a LogsRequest needs open or close")),
            Some(Action::Close(id)) => {
                if let Some(closing) = self.open.get(&id) {
                    closing.cancel();
                }
                Ok(())
            }
            Some(Action::Open(log)) => {
                if log.id.is_empty() || log.id.len() > MAX_ID {
                    return Err(Status::invalid_argument(format!("open.id must have 1 to {MAX_ID} bytes")));
                }
                if self.open.contains_key(&log.id) {
                    return Err(Status::invalid_argument(format!(
                        "open.id {:?} is in use: choose another, or close it and wait for its end",
                        log.id
                    )));
                }
                if self.open.len() >= MAX_LOGS {
                    let text = format!("{MAX_LOGS} logs are open in this call: close some, or begin another call");
                    let refused = end(&log.id, Some(&Status::resource_exhausted(text)));
                    self.running.push(Box::pin(futures_util::stream::iter([(false, refused)])));
                    return Ok(());
                }
                let closing = CancellationToken::new();
                self.open.insert(log.id.clone(), closing.clone());
                self.running.push(follow(self.asker.clone(), log, closing));
                Ok(())
            }
        }
    }

    fn fail(&mut self, status: Status) -> Poll<Option<Result<LogsResponse, Status>>> {
        self.failed = true;
        self.requests = None;
        self.running.clear();
        Poll::Ready(Some(Err(status)))
    }
}

impl Stream for Logs {
    type Item = Result<LogsResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.failed {
            return Poll::Ready(None);
        }
        for _ in 0..MAX_TAKEN {
            let mut taken = false;
            if this.running.len() < MAX_WAITING
                && let Some(requests) = &mut this.requests
            {
                match requests.poll_next_unpin(cx) {
                    Poll::Ready(Some(request)) => {
                        if let Err(status) = request.and_then(|request| this.take(request)) {
                            return this.fail(status);
                        }
                        taken = true;
                    }
                    Poll::Ready(None) => this.requests = None,
                    Poll::Pending => {}
                }
            }
            match this.running.poll_next_unpin(cx) {
                Poll::Ready(Some((is_last, answer))) => {
                    if is_last {
                        this.open.remove(&answer.id);
                    }
                    return Poll::Ready(Some(Ok(answer)));
                }
                Poll::Ready(None) if this.requests.is_none() => return Poll::Ready(None),
                _ if !taken => return Poll::Pending,
                _ => {}
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// How far a log is read.
enum Reading {
    Opening(Box<(Asker, OpenLog)>),
    Open(Body),
    Ended,
}

fn follow(asker: Asker, log: OpenLog, closing: CancellationToken) -> Log {
    let id = log.id.clone();
    let state = (Reading::Opening(Box::new((asker, log))), id, closing);
    Box::pin(unfold(state, |(reading, id, closing)| async move {
        // Closed by the client: dropped where it stands, which ends it on the node.
        let next = closing.run_until_cancelled(next(reading)).await.unwrap_or(Some(Err(None)));
        let (answer, reading) = match next? {
            Ok((data, reading)) => {
                ((false, LogsResponse { id: id.clone(), content: Some(Content::Data(data)) }), reading)
            }
            Err(why) => ((true, end(&id, why.as_ref())), Reading::Ended),
        };
        // Its end is said once, even when it is closed then.
        let closing = if answer.0 { CancellationToken::new() } else { closing };
        Some((answer, (reading, id, closing)))
    }))
}

/// The next bytes, or the end and what is wrong.
async fn next(reading: Reading) -> Option<Result<(Vec<u8>, Reading), Option<Status>>> {
    let mut body = match reading {
        Reading::Opening(what) => match open(&what.0, &what.1).await {
            Ok(body) => body,
            Err(status) => return Some(Err(Some(status))),
        },
        Reading::Open(body) => body,
        Reading::Ended => return None,
    };
    loop {
        match body.frame().await {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) if !data.is_empty() => return Some(Ok((Bytes::into(data), Reading::Open(body)))),
                _ => {}
            },
            Some(Err(error)) => {
                return Some(Err(Some(Status::unavailable(format!("the log broke off: {error}; open it again")))));
            }
            None => return Some(Err(None)),
        }
    }
}

async fn open(asker: &Asker, log: &OpenLog) -> Result<Body, Status> {
    let target = target(log)?;
    let node = asker.node_of_pod("get", "log", (&log.namespace, &log.pod)).await?;
    let tunnel = asker.server.tunnels.open(&node).await.map_err(status::of_tunnel)?;
    match tunnel.ask(request(&target, HeaderMap::new())?).await.map_err(status::of_tunnel)? {
        Answer::Plain(answer) => status::content(&node, answer).await,
        Answer::Upgraded(..) => Err(Status::internal(format!("node {node} answers a log with another stream"))),
    }
}

/// The kubelet's path of a log.
fn target(log: &OpenLog) -> Result<String, Status> {
    let OpenLog { namespace, pod, container, .. } = log;
    check_names([("namespace", namespace), ("pod", pod), ("container", container)])?;
    let mut query = Vec::new();
    for (name, wanted) in [("follow", log.follow), ("timestamps", log.timestamps), ("previous", log.previous)] {
        query.extend(wanted.then(|| format!("{name}=true")));
    }
    for (name, number, least) in [("tailLines", log.tail_lines, 0), ("limitBytes", log.limit_bytes, 1)] {
        if number.is_some_and(|number| number < least) {
            return Err(Status::invalid_argument(format!("open: {name} must be {least} or more")));
        }
        query.extend(number.map(|number| format!("{name}={number}")));
    }
    if let Some(since) = &log.since_time {
        let since = Timestamp::new(since.seconds, since.nanos);
        let since = since.map_err(|error| Status::invalid_argument(format!("open.since_time: {error}")))?;
        query.push(format!("sinceTime={}", since.strftime("%Y-%m-%dT%H:%M:%SZ")));
    }
    let path = format!("/containerLogs/{namespace}/{pod}/{container}");
    Ok(if query.is_empty() { path } else { format!("{path}?{}", query.join("&")) })
}

fn end(id: &str, why: Option<&Status>) -> LogsResponse {
    LogsResponse { id: id.to_owned(), content: Some(Content::End(LogEnd { error: why.map(status::error) })) }
}
