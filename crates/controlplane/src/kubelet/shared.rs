//! HTTP/2 connections to kubelets, as a kube-apiserver has them: requests to one address that are no more than a question share a few. A
//! thousand logs that are followed need no thousand handshakes, keys and buffers at both ends.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::uri::{PathAndQuery, Scheme};
use http::{Request, Uri, Version, header, request};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use link::http_server::Body;
use link::rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::address::Address;
use super::dial::{Answer, DialError, MAX_HEAD, connect, exchange};

/// The name of HTTP/2 in a handshake.
const HTTP2: &[u8] = b"h2";
/// Answers that come by one connection at the same time. Servers allow 100 at least, and would let more wait.
const MAX_ANSWERS: usize = 100;
/// Bytes of an answer that wait for a client who does not take them; of all answers, so many that none can take another's room.
const STREAM_WINDOW: u32 = 128 << 10;
const CONNECTION_WINDOW: u32 = MAX_ANSWERS as u32 * STREAM_WINDOW;
/// How often the other end is asked whether it lives, and how long it may take to answer (Kubernetes' values).
const PING: Duration = Duration::from_secs(30);
const PONG: Duration = Duration::from_secs(15);

/// The connections. They end when the other end has enough of them, with the TLS configuration, and with `stop`.
pub(super) struct Shared {
    open: Mutex<HashMap<String, Vec<Connection>>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

#[derive(Clone)]
struct Connection {
    /// With what it was made: another CA or certificate needs another connection.
    tls: Arc<ClientConfig>,
    sender: SendRequest<Body>,
    /// Each answer that comes by it has one more.
    answers: Arc<()>,
}

/// What an address speaks.
enum Spoken {
    Http2(Connection),
    Http1(Box<TlsStream<TcpStream>>),
}

/// Whether a request can go by a connection that others use too: it asks for nothing but an answer, and may be sent twice.
pub(super) fn is_plain(request: &Request<Body>) -> bool {
    request.method().is_safe() && hyper::body::Body::is_end_stream(request.body())
}

impl Shared {
    /// None yet.
    pub(super) fn new(tasks: TaskTracker, stop: CancellationToken) -> Self {
        Self { open: Mutex::default(), tasks, stop }
    }

    /// Sends a plain request to this address. A server that does not speak HTTP/2 gets it by a connection of its own.
    ///
    /// # Errors
    /// Nobody answers there, or somebody else, or not in time.
    pub(super) async fn ask(
        &self,
        address: &Address,
        tls: Arc<ClientConfig>,
        request: Request<Body>,
        patience: Option<Duration>,
    ) -> Result<Answer, DialError> {
        let (head, _) = request.into_parts();
        let exchange = self.exchange(address, tls, head);
        match patience {
            Some(patience) => {
                tokio::time::timeout(patience, exchange).await.map_err(|_| DialError::Silent(patience))?
            }
            None => exchange.await,
        }
    }

    async fn exchange(
        &self,
        address: &Address,
        tls: Arc<ClientConfig>,
        head: request::Parts,
    ) -> Result<Answer, DialError> {
        let authority = address.authority();
        if let Some(known) = self.find(&authority, &tls) {
            match send(known, in_http2(&head, &authority)).await {
                Ok(answer) => return Ok(answer),
                // It may have been closed for its age, or with the server: only a fresh one tells.
                Err(error) => debug!(authority, %error, "a connection that was kept did not answer"),
            }
        }
        match self.dial(address, &authority, tls).await? {
            Spoken::Http2(connection) => send(connection, in_http2(&head, &authority)).await,
            Spoken::Http1(io) => exchange(*io, Request::from_parts(head, empty())).await,
        }
    }

    /// One with room for an answer.
    fn find(&self, authority: &str, tls: &Arc<ClientConfig>) -> Option<Connection> {
        let mut open = self.lock();
        let connections = open.get_mut(authority)?;
        connections.retain(|connection| connection.is_good(tls));
        if connections.is_empty() {
            open.remove(authority);
            return None;
        }
        connections.iter().find(|connection| connection.has_room()).cloned()
    }

    /// Makes one. Who came first while others dialled too is used by them all.
    async fn dial(&self, address: &Address, authority: &str, tls: Arc<ClientConfig>) -> Result<Spoken, DialError> {
        let mut config = (*tls).clone();
        config.alpn_protocols = vec![HTTP2.to_vec(), b"http/1.1".to_vec()];
        let io = connect(address, Arc::new(config)).await?;
        if io.get_ref().1.alpn_protocol() != Some(HTTP2) {
            return Ok(Spoken::Http1(Box::new(io)));
        }
        if let Some(other) = self.find(authority, &tls) {
            return Ok(Spoken::Http2(other));
        }
        let (sender, driver) = client().handshake(TokioIo::new(io)).await.map_err(DialError::Exchange)?;
        self.tasks.spawn(self.stop.clone().run_until_cancelled_owned(async move {
            if let Err(error) = driver.await {
                debug!(%error, "a connection to a kubelet ended");
            }
        }));
        let connection = Connection { tls, sender, answers: Arc::default() };
        let mut open = self.lock();
        open.retain(|_, connections| connections.iter().any(|connection| !connection.sender.is_closed()));
        open.entry(authority.to_owned()).or_default().push(connection.clone());
        Ok(Spoken::Http2(connection))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Vec<Connection>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    fn is_good(&self, tls: &Arc<ClientConfig>) -> bool {
        !self.sender.is_closed() && Arc::ptr_eq(&self.tls, tls)
    }

    fn has_room(&self) -> bool {
        Arc::strong_count(&self.answers) <= MAX_ANSWERS
    }
}

fn client() -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder.timer(TokioTimer::new()).keep_alive_interval(PING).keep_alive_timeout(PONG).keep_alive_while_idle(true);
    builder.initial_stream_window_size(STREAM_WINDOW).initial_connection_window_size(CONNECTION_WINDOW);
    builder.max_header_list_size(MAX_HEAD as u32);
    builder
}

async fn send(mut connection: Connection, request: Request<Body>) -> Result<Answer, DialError> {
    let answer = connection.sender.send_request(request).await.map_err(DialError::Exchange)?;
    let taken = connection.answers;
    Ok(Answer::Plain(answer.map(|body| Counted { body, _taken: taken }.boxed())))
}

/// The same question in the words of HTTP/2.
fn in_http2(head: &request::Parts, authority: &str) -> Request<Body> {
    let target = head.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    let mut request = Request::from_parts(head.clone(), empty());
    request.headers_mut().remove(header::HOST);
    let uri = Uri::builder().scheme(Scheme::HTTPS).authority(authority).path_and_query(target).build();
    *request.uri_mut() = uri.unwrap_or_default();
    *request.version_mut() = Version::HTTP_2;
    request
}

fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed()
}

/// An answer, as long as it comes.
struct Counted {
    body: Incoming,
    _taken: Arc<()>,
}

impl hyper::body::Body for Counted {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context).map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
