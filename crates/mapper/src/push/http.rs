//! Pushing to an HTTP server: a bounded queue, and a task that posts what is in it, to each URL in order.
//!
//! URLs of a server do not wait for each other, and what a URL takes does not wait for what it does not take.

use std::collections::{HashMap, VecDeque};
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
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use super::names::Names;

/// What may wait; the oldest is dropped for one more.
const MAX_WAITING: usize = 1000;
const MAX_BYTES: usize = 1 << 20;
/// What is read of an answer, which nobody looks at.
const MAX_ANSWER: usize = 64 << 10;
/// Waits before a server that is away is tried again.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Posts on their way at once, each to another URL.
const MAX_SENDING: usize = 16;
/// Of a value that the server fails to take.
const MAX_TRIES: u32 = 3;
/// How long a connection may take to come about, besides the time of the post.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

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
    posts: VecDeque<Entry>,
    bytes: usize,
    /// For want of room, since the server took something last.
    dropped: u64,
}

/// A post that waits or is on its way.
#[derive(Clone)]
struct Entry {
    post: Post,
    /// How often the server failed to take it.
    failed: u32,
    not_before: Option<Instant>,
}

/// What is known of a URL.
struct Lane {
    sending: bool,
    /// While the server is away.
    not_before: Option<Instant>,
    backoff: Backoff,
    /// Values that it did not take.
    given_up: u64,
}

type Lanes = HashMap<Uri, Lane>;

enum Failure {
    /// It is of no use to try again.
    Refused(StatusCode),
    /// It may be of use to try again, but not for ever: perhaps it is this value.
    Failed(String),
    /// The server is away, or asks for time.
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
        waiting.posts.push_back(Entry { post, failed: 0, not_before: None });
        while waiting.posts.len() > MAX_WAITING || waiting.bytes > MAX_BYTES {
            let Some(oldest) = waiting.posts.pop_front() else { break };
            waiting.bytes -= oldest.post.body.len();
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

    /// The first that may go now.
    fn take(&self, lanes: &Lanes) -> Option<Entry> {
        let now = Instant::now();
        let mut waiting = self.lock();
        let first = waiting.posts.iter().position(|entry| entry.due(lanes).is_some_and(|due| due <= Some(now)))?;
        let entry = waiting.posts.remove(first)?;
        waiting.bytes -= entry.post.body.len();
        Some(entry)
    }

    /// When one may go that may not go now.
    fn next_due(&self, lanes: &Lanes) -> Option<Instant> {
        self.lock().posts.iter().filter_map(|entry| entry.due(lanes)?).min()
    }

    async fn run(&self) {
        let mut connector = HttpConnector::new_with_resolver(Names(CONNECT_LIMIT / 2));
        connector.set_connect_timeout(Some(CONNECT_LIMIT / 2));
        let client = Client::builder(TokioExecutor::new()).build(connector);
        let (mut lanes, mut sending) = (Lanes::new(), JoinSet::new());
        loop {
            while sending.len() < MAX_SENDING
                && let Some(entry) = self.take(&lanes)
            {
                lanes.entry(entry.post.url.clone()).or_insert_with(Lane::new).sending = true;
                let client = client.clone();
                sending.spawn(async move {
                    let sent = send(&client, &entry.post).await;
                    (entry, sent)
                });
            }
            let due = if sending.len() < MAX_SENDING { self.next_due(&lanes) } else { None };
            tokio::select! {
                Some(Ok((entry, sent))) = sending.join_next() => self.sent(&mut lanes, entry, sent),
                () = self.wake.notified() => {}
                () = async { sleep_until(due.unwrap_or_else(Instant::now)).await }, if due.is_some() => {}
            }
        }
    }

    fn sent(&self, lanes: &mut Lanes, mut entry: Entry, sent: Result<(), Failure>) {
        let url = entry.post.url.clone();
        let lane = lanes.entry(url.clone()).or_insert_with(Lane::new);
        lane.sending = false;
        match sent {
            Ok(()) => {
                let dropped = std::mem::take(&mut self.lock().dropped);
                if lane.not_before.take().is_some() || dropped > 0 {
                    info!(server = self.name, path = url.path(), dropped, "values are pushed again");
                }
                lane.backoff.reset();
            }
            Err(Failure::Refused(status)) => lane.give_up(&self.name, &url, status.as_str()),
            Err(Failure::Failed(error)) => {
                lane.not_before = None;
                entry.failed += 1;
                if entry.failed >= MAX_TRIES {
                    lane.give_up(&self.name, &url, &error);
                } else {
                    debug!(
                        server = self.name,
                        path = url.path(),
                        error,
                        "a value could not be pushed; it is tried again"
                    );
                    let mut backoff = Backoff::new(FIRST_WAIT * entry.failed, LONGEST_WAIT);
                    entry.not_before = Some(Instant::now() + backoff.next_wait());
                    self.put_back(entry);
                }
            }
            Err(Failure::Away(error)) => {
                match lane.not_before {
                    None => warn!(server = self.name, path = url.path(), error, "values cannot be pushed; they wait"),
                    Some(_) => debug!(server = self.name, path = url.path(), error, "values still cannot be pushed"),
                }
                lane.not_before = Some(Instant::now() + lane.backoff.next_wait());
                self.put_back(entry);
            }
        }
        if lanes.len() > MAX_WAITING {
            lanes.retain(|_, lane| lane.sending || lane.not_before.is_some());
        }
    }

    /// Unless there is no room any more: then it is the oldest.
    fn put_back(&self, entry: Entry) {
        let mut waiting = self.lock();
        if waiting.posts.len() < MAX_WAITING && waiting.bytes + entry.post.body.len() <= MAX_BYTES {
            waiting.bytes += entry.post.body.len();
            waiting.posts.push_front(entry);
        } else {
            waiting.dropped += 1;
        }
    }
}

impl Entry {
    /// When it may go, some time ago if at once; none while another one is on its way to its URL.
    fn due(&self, lanes: &Lanes) -> Option<Option<Instant>> {
        match lanes.get(&self.post.url) {
            Some(lane) if lane.sending => None,
            lane => Some(self.not_before.max(lane.and_then(|lane| lane.not_before))),
        }
    }
}

impl Lane {
    fn new() -> Self {
        Self { sending: false, not_before: None, backoff: Backoff::new(FIRST_WAIT, LONGEST_WAIT), given_up: 0 }
    }

    fn give_up(&mut self, server: &str, url: &Uri, error: &str) {
        self.given_up += 1;
        self.not_before = None;
        // Seldom enough if it is so for ever.
        if self.given_up.is_power_of_two() {
            let dropped = self.given_up;
            warn!(server, path = url.path(), error, dropped, "the server does not take a value; it is dropped");
        }
    }
}

async fn send(client: &Client<HttpConnector<Names>, Full<Bytes>>, post: &Post) -> Result<(), Failure> {
    let request = Request::post(post.url.clone()).header(CONTENT_TYPE, "application/x-www-form-urlencoded");
    let request = request.body(Full::new(post.body.clone())).map_err(|error| Failure::Failed(error.to_string()))?;
    let exchange = async {
        let answer = client.request(request).await.map_err(|error| match error.is_connect() {
            true => Failure::Away(error.to_string()),
            false => Failure::Failed(error.to_string()),
        })?;
        let status = answer.status();
        // To the end, so that the connection can be used again; one that does not end is closed.
        let _ = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        match status {
            _ if status.is_success() => Ok(()),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => Err(Failure::Away(status.to_string())),
            StatusCode::REQUEST_TIMEOUT => Err(Failure::Failed(status.to_string())),
            _ if status.is_server_error() => Err(Failure::Failed(status.to_string())),
            _ => Err(Failure::Refused(status)),
        }
    };
    let late = || Failure::Failed(format!("no answer within {} s", post.timeout.as_secs()));
    timeout(CONNECT_LIMIT + post.timeout, exchange).await.unwrap_or_else(|_| Err(late()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn post(bytes: usize) -> Post {
        Post { url: Uri::from_static("http://127.0.0.1:1/"), body: vec![b'x'; bytes].into(), timeout: FIRST_WAIT }
    }

    fn entry(bytes: usize) -> Entry {
        Entry { post: post(bytes), failed: 0, not_before: None }
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
        server.queue.put_back(entry(1));
        assert_eq!(state(), (1, MAX_BYTES, 6 + MAX_WAITING as u64), "there is no room any more");
        assert_eq!(server.queue.take(&Lanes::new()).map(|entry| entry.post.body.len()), Some(MAX_BYTES));
        server.queue.put_back(entry(7));
        assert_eq!(state().1, 7);
    }
    #[tokio::test(start_paused = true)]
    async fn what_fails_is_tried_a_few_times_and_what_is_away_for_ever() {
        let queue = Queue { name: String::new(), waiting: Mutex::default(), wake: Notify::new() };
        let (mut lanes, url) = (Lanes::new(), post(1).url);
        queue.put_back(entry(1));
        for _ in 0..100 {
            let tried = queue.take(&lanes).expect("it is its time");
            queue.sent(&mut lanes, tried, Err(Failure::Away("503".to_owned())));
            assert!(queue.take(&lanes).is_none(), "not at once");
            tokio::time::advance(LONGEST_WAIT).await;
        }
        for number in 1..=MAX_TRIES {
            let tried = queue.take(&lanes).expect("it is its time");
            queue.sent(&mut lanes, tried, Err(Failure::Failed("500".to_owned())));
            if number < MAX_TRIES {
                queue.lock().posts.push_back(entry(0));
                assert_eq!(queue.take(&lanes).map(|entry| entry.post.body.len()), Some(0), "others do not wait");
                tokio::time::advance(LONGEST_WAIT).await;
            }
        }
        assert!(queue.take(&lanes).is_none());
        assert_eq!(lanes[&url].given_up, 1);
    }
}
