//! Pushing to an HTTP server: a bounded queue, and a task that posts what is in it, in order.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use link::backoff::Backoff;
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

/// What may wait; the oldest is dropped for one more.
const MAX_WAITING: usize = 1000;
const MAX_BYTES: usize = 1 << 20;
/// What is read of an answer, which nobody looks at.
const MAX_ANSWER: usize = 64 << 10;
/// Waits before a server that is away is tried again.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// A server. Dropped, its queue ends.
pub(super) struct Server {
    queue: Arc<Queue>,
    _stop: DropGuard,
}

/// One value on its way.
#[derive(Clone)]
pub(super) struct Post {
    pub url: Uri,
    pub body: Bytes,
    pub timeout: Duration,
}

struct Queue {
    name: String,
    waiting: Mutex<Waiting>,
    wake: Notify,
}

#[derive(Default)]
struct Waiting {
    posts: VecDeque<Post>,
    bytes: usize,
    /// Since the server was there last.
    dropped: u64,
}

enum Failure {
    /// It is of no use to try again.
    Refused(StatusCode),
    /// The server is away, or in trouble.
    Away(String),
}

impl Server {
    pub fn start(name: &str, tasks: &TaskTracker, stop: CancellationToken) -> Self {
        let queue = Arc::new(Queue { name: name.to_owned(), waiting: Mutex::default(), wake: Notify::new() });
        let (running, stopped) = (queue.clone(), stop.clone());
        tasks.spawn(async move {
            let _ = stopped.run_until_cancelled(running.run()).await;
        });
        Self { queue, _stop: stop.drop_guard() }
    }

    pub fn put(&self, post: Post) {
        let mut waiting = self.queue.lock();
        waiting.bytes += post.body.len();
        waiting.posts.push_back(post);
        while waiting.posts.len() > MAX_WAITING || waiting.bytes > MAX_BYTES {
            let Some(oldest) = waiting.posts.pop_front() else { break };
            waiting.bytes -= oldest.body.len();
            if waiting.dropped == 0 {
                warn!(server = self.queue.name, "too many values wait for the server: the oldest are dropped");
            }
            waiting.dropped += 1;
        }
        drop(waiting);
        self.queue.wake.notify_one();
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<Post> {
        let mut waiting = self.lock();
        let post = waiting.posts.pop_front()?;
        waiting.bytes -= post.body.len();
        Some(post)
    }

    async fn run(&self) {
        let client = Client::builder(TokioExecutor::new()).build_http();
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        let (mut away, mut refused) = (false, false);
        loop {
            let Some(post) = self.take() else {
                self.wake.notified().await;
                continue;
            };
            match send(&client, &post).await {
                Ok(()) => {
                    backoff.reset();
                    let dropped = std::mem::take(&mut self.lock().dropped);
                    if away || dropped > 0 {
                        info!(server = self.name, dropped, "values are pushed again");
                    }
                    (away, refused) = (false, false);
                }
                Err(Failure::Refused(status)) => {
                    if !refused {
                        warn!(server = self.name, %status, "the server refuses a value; it is dropped");
                    }
                    refused = true;
                }
                Err(Failure::Away(error)) => {
                    match away {
                        false => warn!(server = self.name, error, "values cannot be pushed; they wait"),
                        true => debug!(server = self.name, error, "values still cannot be pushed"),
                    }
                    away = true;
                    self.put_back(post);
                    tokio::time::sleep(backoff.next_wait()).await;
                }
            }
        }
    }

    /// Unless there is no room any more: then it is the oldest.
    fn put_back(&self, post: Post) {
        let mut waiting = self.lock();
        if waiting.posts.len() < MAX_WAITING && waiting.bytes + post.body.len() <= MAX_BYTES {
            waiting.bytes += post.body.len();
            waiting.posts.push_front(post);
        } else {
            waiting.dropped += 1;
        }
    }
}

async fn send(client: &Client<HttpConnector, Full<Bytes>>, post: &Post) -> Result<(), Failure> {
    let away = |error: &dyn std::error::Error| Failure::Away(error.to_string());
    let request = Request::post(post.url.clone()).header(CONTENT_TYPE, "application/x-www-form-urlencoded");
    let request = request.body(Full::new(post.body.clone())).map_err(|error| away(&error))?;
    let exchange = async {
        let answer = client.request(request).await.map_err(|error| away(&error))?;
        let status = answer.status();
        // To the end, so that the connection can be used again; one that does not end is closed.
        let _ = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        match status {
            _ if status.is_success() => Ok(()),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => Err(Failure::Away(status.to_string())),
            _ if status.is_server_error() => Err(Failure::Away(status.to_string())),
            _ => Err(Failure::Refused(status)),
        }
    };
    let late = || Failure::Away(format!("no answer within {} s", post.timeout.as_secs()));
    tokio::time::timeout(post.timeout, exchange).await.unwrap_or_else(|_| Err(late()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn post(bytes: usize) -> Post {
        Post { url: Uri::from_static("http://127.0.0.1:1/"), body: vec![b'x'; bytes].into(), timeout: FIRST_WAIT }
    }

    /// The task does not run while a test does not wait.
    #[tokio::test]
    async fn a_queue_is_bounded_and_the_oldest_goes_first() {
        let server = Server::start("http://127.0.0.1:1", &TaskTracker::new(), CancellationToken::new());
        let state = || {
            let waiting = server.queue.lock();
            (waiting.posts.len(), waiting.bytes, waiting.dropped)
        };
        (0..MAX_WAITING + 5).for_each(|_| server.put(post(1)));
        assert_eq!(state(), (MAX_WAITING, MAX_WAITING, 5));
        server.put(post(MAX_BYTES));
        assert_eq!(state(), (1, MAX_BYTES, 5 + MAX_WAITING as u64));
        server.queue.put_back(post(1));
        assert_eq!(state(), (1, MAX_BYTES, 6 + MAX_WAITING as u64), "there is no room any more");
        assert_eq!(server.queue.take().map(|post| post.body.len()), Some(MAX_BYTES));
        server.queue.put_back(post(7));
        assert_eq!(state().1, 7);
    }
}
