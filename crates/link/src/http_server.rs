//! An HTTP server with limits: TLS or plain, HTTP/1.1 and, where announced, HTTP/2.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use http_body_util::combinators::BoxBody;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::server::Acceptor;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::{LazyConfigAcceptor, StartHandshake};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::newcomers::Newcomers;

/// How long a peer may take for TLS, and for the head of a request.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a connection may have a place before its first request.
const FIRST_REQUEST: Duration = Duration::from_secs(5);
/// A connection that is quiet for so long between requests is closed: it has a place that others wait for.
const IDLE: Duration = Duration::from_secs(90);
/// How often the other end of an HTTP/2 connection is asked whether it lives, and how long it may take to answer.
const PING: Duration = Duration::from_secs(30);
/// The kernel's probes of a quiet connection (Go's values): how long before and between them, and how many.
const QUIET: Duration = Duration::from_secs(15);
const PROBES: u32 = 5;
/// How long running requests may go on after the server was told to stop.
const GRACE: Duration = Duration::from_secs(3);
/// The wait after a failed accept, which mostly means too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Requests of an HTTP/2 connection at once, where nothing speaks for more.
pub const MAX_STREAMS: u32 = 250;
/// Bytes of a request that wait for a handler that does not take them, and the same for a whole HTTP/2 connection.
const STREAM_WINDOW: u32 = 128 << 10;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Bytes of an answer that wait for a client that does not take them (HTTP/2).
const SEND_BUFFER: usize = 64 << 10;
/// The longest head of a request.
const MAX_HEAD: usize = 64 << 10;
/// The first byte of every TLS connection.
const TLS_RECORD: u8 = 0x16;
/// What a peer of another machine is told that does not speak TLS.
const PLAIN_REFUSED: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 66\r\nConnection: close\r\n\r\nplain HTTP is served to this machine only: use https:// from here\n";

/// The body of an answer.
pub type Body = BoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// Who asks.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The peer's address.
    pub address: SocketAddr,
    /// The certificate it showed, if any; whether it was verified depends on the TLS configuration.
    pub certificate: Option<CertificateDer<'static>>,
}

/// A listening server. Who connects and says nothing takes no place.
pub struct HttpServer {
    /// Where it listens.
    pub listener: TcpListener,
    /// Its TLS configuration, which may change while it runs; `None` is plain HTTP.
    pub tls: Option<watch::Receiver<Arc<ServerConfig>>>,
    /// More connections than this, of those that have spoken, wait.
    pub max_connections: usize,
    /// Requests of an HTTP/2 connection at once; mostly [`MAX_STREAMS`].
    pub max_streams: u32,
}

impl HttpServer {
    /// Serves until `stop` is cancelled, then lets running requests end within a grace period.
    pub async fn serve<H, F>(self, handler: H, stop: CancellationToken)
    where
        H: Fn(Request<Incoming>, Peer) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        self.serve_as(handler, stop, false).await;
    }

    /// The same; peers of this machine may also speak plain HTTP on the same port. Only HTTP/1.1.
    pub async fn serve_with_local_plain<H, F>(self, handler: H, stop: CancellationToken)
    where
        H: Fn(Request<Incoming>, Peer) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        self.serve_as(handler, stop, true).await;
    }

    async fn serve_as<H, F>(self, handler: H, stop: CancellationToken, local_plain: bool)
    where
        H: Fn(Request<Incoming>, Peer) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let connections = TaskTracker::new();
        let places = Arc::new(Semaphore::new(self.max_connections));
        let limits = Limits { http1_only: local_plain, max_streams: self.max_streams };
        let newcomers = Newcomers::default();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.listener.accept() => accepted,
            };
            let (tcp, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let tls = self.tls.as_ref().map(|tls| tls.borrow().clone());
            let (handler, stop) = (handler.clone(), stop.clone());
            let (newcomers, places) = (newcomers.clone(), places.clone());
            connections.spawn(async move {
                let _ = tcp.set_nodelay(true);
                keep_alive(&tcp);
                let first_word = first_word(tcp, address, tls, local_plain);
                let admitted = stop.run_until_cancelled(newcomers.admit(first_word, HANDSHAKE, places)).await;
                let Some((first, place)) = admitted.flatten() else { return };
                connection(first, address, handler, stop, limits).await;
                drop(place);
            });
        }
        connections.close();
        let _ = tokio::time::timeout(GRACE, connections.wait()).await;
    }
}

/// Of a connection.
#[derive(Clone, Copy)]
struct Limits {
    http1_only: bool,
    max_streams: u32,
}

/// A peer that is gone without a word is found out after a minute and a half, also while nothing is sent to it.
pub fn keep_alive(tcp: &TcpStream) {
    use rustix::net::sockopt;
    let set = sockopt::set_socket_keepalive(tcp, true)
        .and_then(|()| sockopt::set_tcp_keepidle(tcp, QUIET))
        .and_then(|()| sockopt::set_tcp_keepintvl(tcp, QUIET))
        .and_then(|()| sockopt::set_tcp_keepcnt(tcp, PROBES));
    if let Err(error) = set {
        debug!(%error, "a connection is not looked after by the kernel");
    }
}

/// How a peer begins.
enum First {
    /// With plain HTTP, which is still to be read.
    Plain(TcpStream),
    /// With a handshake.
    Tls(Box<StartHandshake<TcpStream>>, Arc<ServerConfig>),
}

/// Reads how the peer begins.
async fn first_word(
    mut tcp: TcpStream,
    address: SocketAddr,
    tls: Option<Arc<ServerConfig>>,
    local_plain: bool,
) -> io::Result<First> {
    let mut first = [0];
    if tcp.peek(&mut first).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    match tls {
        Some(tls) if first[0] == TLS_RECORD || !local_plain => {
            let handshake = LazyConfigAcceptor::new(Acceptor::default(), tcp).await?;
            Ok(First::Tls(Box::new(handshake), tls))
        }
        _ if !local_plain || address.ip().to_canonical().is_loopback() => Ok(First::Plain(tcp)),
        _ => {
            tcp.write_all(PLAIN_REFUSED).await?;
            Err(io::Error::other("plain HTTP from another machine"))
        }
    }
}

async fn connection<H, F>(first: First, address: SocketAddr, handler: H, stop: CancellationToken, limits: Limits)
where
    H: Fn(Request<Incoming>, Peer) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let (handshake, tls) = match first {
        First::Plain(tcp) => return talk(tcp, Peer { address, certificate: None }, handler, stop, limits).await,
        First::Tls(handshake, tls) => (handshake, tls),
    };
    match tokio::time::timeout(HANDSHAKE, handshake.into_stream(tls)).await {
        Ok(Ok(stream)) => {
            let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).cloned();
            let certificate = certificate.map(CertificateDer::into_owned);
            talk(stream, Peer { address, certificate }, handler, stop, limits).await;
        }
        Ok(Err(error)) => debug!(%address, %error, "a TLS handshake failed"),
        Err(_) => debug!(%address, "a TLS handshake took too long"),
    }
}

async fn talk<S, H, F>(stream: S, peer: Peer, handler: H, stop: CancellationToken, limits: Limits)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    H: Fn(Request<Incoming>, Peer) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let address = peer.address;
    let (busy, running) = watch::channel(0_usize);
    let busy = Arc::new(busy);
    let service = service_fn(move |request| {
        let running = Running::begin(&busy);
        let answer = handler(request, peer.clone());
        async move { Ok::<_, Infallible>(running.until_sent(answer.await)) }
    });
    let io = TokioIo::new(stream);
    let ended = if limits.http1_only {
        // The builder for both would wait without a limit for bytes that tell which one it is.
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(HANDSHAKE).max_buf_size(MAX_HEAD);
        let connection = builder.serve_connection(io, service).with_upgrades();
        let ended = drive(connection, |connection| connection.graceful_shutdown(), &stop, running).await;
        ended.map_err(Box::<dyn std::error::Error + Send + Sync>::from)
    } else {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HANDSHAKE).max_buf_size(MAX_HEAD);
        builder.http2().timer(TokioTimer::new()).max_concurrent_streams(limits.max_streams);
        builder.http2().initial_stream_window_size(STREAM_WINDOW).initial_connection_window_size(CONNECTION_WINDOW);
        builder.http2().max_send_buf_size(SEND_BUFFER);
        builder.http2().keep_alive_interval(PING).keep_alive_timeout(PING);
        let connection = builder.serve_connection_with_upgrades(io, service);
        drive(connection, |connection| connection.graceful_shutdown(), &stop, running).await
    };
    if let Err(error) = ended {
        debug!(%address, %error, "a connection ended with an error");
    }
}

/// Runs a connection to its end; after `stop`, and when it is idle, only as long as its requests need, within the grace period.
async fn drive<C, E>(
    connection: C,
    shut_down: impl FnOnce(Pin<&mut C>),
    stop: &CancellationToken,
    running: watch::Receiver<usize>,
) -> Result<(), E>
where
    C: Future<Output = Result<(), E>>,
{
    tokio::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = stop.cancelled() => {}
        () = idle(running) => {}
    }
    shut_down(connection.as_mut());
    tokio::time::timeout(GRACE, connection).await.unwrap_or(Ok(()))
}

/// A request that is being answered, until the last byte of the answer is taken or given up.
struct Running(Arc<watch::Sender<usize>>);

impl Running {
    fn begin(busy: &Arc<watch::Sender<usize>>) -> Self {
        busy.send_modify(|running| *running += 1);
        Self(busy.clone())
    }

    fn until_sent(self, answer: Response<Body>) -> Response<Body> {
        answer.map(|body| Sending { body, _running: self }.boxed())
    }
}

/// A body, and that it is being sent.
struct Sending {
    body: Body,
    _running: Running,
}

impl hyper::body::Body for Sending {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    /// Answers keep their Content-Length.
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.send_modify(|running| *running -= 1);
    }
}

/// Resolves when no request came in time, or none followed the last one.
async fn idle(mut running: watch::Receiver<usize>) {
    let mut limit = FIRST_REQUEST;
    loop {
        let none = *running.borrow_and_update() == 0;
        let news = match none {
            true => tokio::time::timeout(limit, running.changed()).await,
            false => Ok(running.changed().await),
        };
        match news {
            Ok(Ok(())) => limit = IDLE,
            // Too quiet, or the connection has ended.
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::Full;
    use hyper::body::Body as _;

    #[tokio::test(start_paused = true)]
    async fn a_connection_may_be_quiet_for_a_while_and_answer_for_ever() {
        let (busy, running) = watch::channel(0);
        let busy = Arc::new(busy);
        let began = tokio::time::Instant::now();
        idle(running.clone()).await;
        assert_eq!(began.elapsed(), FIRST_REQUEST, "no request came");

        let began = tokio::time::Instant::now();
        let watching = idle(running.clone());
        let answering = async {
            tokio::time::sleep(FIRST_REQUEST / 2).await;
            let first = Running::begin(&busy);
            let body = Full::new(Bytes::new()).map_err(|never| match never {}).boxed();
            let answer = first.until_sent(Response::new(body));
            assert_eq!(answer.body().size_hint().exact(), Some(0), "its length is known still");
            tokio::time::sleep(IDLE * 3).await;
            let second = Running::begin(&busy);
            drop(answer);
            tokio::time::sleep(IDLE * 3).await;
            drop(second);
        };
        tokio::join!(watching, answering);
        assert_eq!(began.elapsed(), FIRST_REQUEST / 2 + IDLE * 7);
    }
}
