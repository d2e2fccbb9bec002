//! An HTTP server with limits: TLS or plain, HTTP/1.1 and, where announced, HTTP/2.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

/// How long a peer may take for TLS, and for the head of a request.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long running requests may go on after the server was told to stop.
const GRACE: Duration = Duration::from_secs(3);
/// The wait after a failed accept, which mostly means too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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

/// A listening server.
pub struct HttpServer {
    /// Where it listens.
    pub listener: TcpListener,
    /// Its TLS configuration, which may change while it runs; `None` is plain HTTP.
    pub tls: Option<watch::Receiver<Arc<ServerConfig>>>,
    /// More connections than this wait.
    pub max_connections: usize,
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
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = accept(&self.listener, &places) => accepted,
            };
            let (tcp, address, place) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let tls = self.tls.as_ref().map(|tls| tls.borrow().clone());
            let (handler, stop) = (handler.clone(), stop.clone());
            connections.spawn(async move {
                if !local_plain {
                    connection(tcp, address, tls, handler, stop, false).await;
                } else if let Some((tcp, tls)) = first_byte(tcp, address, tls).await {
                    connection(tcp, address, tls, handler, stop, true).await;
                }
                drop(place);
            });
        }
        connections.close();
        let _ = tokio::time::timeout(GRACE, connections.wait()).await;
    }
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let place = places.clone().acquire_owned().await.map_err(std::io::Error::other)?;
    let (tcp, address) = listener.accept().await?;
    let _ = tcp.set_nodelay(true);
    Ok((tcp, address, place))
}

/// Looks whether the peer speaks TLS; `None` when it may not go on.
async fn first_byte(
    mut tcp: TcpStream,
    address: SocketAddr,
    tls: Option<Arc<ServerConfig>>,
) -> Option<(TcpStream, Option<Arc<ServerConfig>>)> {
    let mut first = [0];
    let seen = tokio::time::timeout(HANDSHAKE, tcp.peek(&mut first)).await;
    if !matches!(seen, Ok(Ok(1))) {
        return None;
    }
    if first[0] == TLS_RECORD && tls.is_some() {
        return Some((tcp, tls));
    }
    if address.ip().to_canonical().is_loopback() {
        return Some((tcp, None));
    }
    let _ = tokio::time::timeout(HANDSHAKE, tcp.write_all(PLAIN_REFUSED)).await;
    None
}

async fn connection<H, F>(
    tcp: TcpStream,
    address: SocketAddr,
    tls: Option<Arc<ServerConfig>>,
    handler: H,
    stop: CancellationToken,
    http1_only: bool,
) where
    H: Fn(Request<Incoming>, Peer) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let Some(tls) = tls else {
        return talk(tcp, Peer { address, certificate: None }, handler, stop, http1_only).await;
    };
    match tokio::time::timeout(HANDSHAKE, TlsAcceptor::from(tls).accept(tcp)).await {
        Ok(Ok(stream)) => {
            let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).cloned();
            let certificate = certificate.map(CertificateDer::into_owned);
            talk(stream, Peer { address, certificate }, handler, stop, http1_only).await;
        }
        Ok(Err(error)) => debug!(%address, %error, "a TLS handshake failed"),
        Err(_) => debug!(%address, "a TLS handshake took too long"),
    }
}

async fn talk<S, H, F>(stream: S, peer: Peer, handler: H, stop: CancellationToken, http1_only: bool)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    H: Fn(Request<Incoming>, Peer) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let address = peer.address;
    let service = service_fn(move |request| {
        let answer = handler(request, peer.clone());
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let io = TokioIo::new(stream);
    let ended = if http1_only {
        // The builder for both would wait without a limit for bytes that tell which one it is.
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(HANDSHAKE).max_buf_size(MAX_HEAD);
        let connection = builder.serve_connection(io, service).with_upgrades();
        let ended = drive(connection, |connection| connection.graceful_shutdown(), &stop).await;
        ended.map_err(Box::<dyn std::error::Error + Send + Sync>::from)
    } else {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HANDSHAKE).max_buf_size(MAX_HEAD);
        builder.http2().timer(TokioTimer::new()).max_concurrent_streams(250);
        let connection = builder.serve_connection_with_upgrades(io, service);
        drive(connection, |connection| connection.graceful_shutdown(), &stop).await
    };
    if let Err(error) = ended {
        debug!(%address, %error, "a connection ended with an error");
    }
}

/// Runs a connection to its end; after `stop` only as long as its requests need, within the grace period.
async fn drive<C, E>(connection: C, shut_down: impl FnOnce(Pin<&mut C>), stop: &CancellationToken) -> Result<(), E>
where
    C: Future<Output = Result<(), E>>,
{
    tokio::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            shut_down(connection.as_mut());
            tokio::time::timeout(GRACE, connection).await.unwrap_or(Ok(()))
        }
    }
}
