//! An HTTP server with limits: TLS or plain, HTTP/1.1 and, where announced, HTTP/2.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
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
                connection(tcp, address, tls, handler, stop).await;
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

async fn connection<H, F>(
    tcp: TcpStream,
    address: SocketAddr,
    tls: Option<Arc<ServerConfig>>,
    handler: H,
    stop: CancellationToken,
) where
    H: Fn(Request<Incoming>, Peer) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let Some(tls) = tls else {
        return talk(tcp, Peer { address, certificate: None }, handler, stop).await;
    };
    match tokio::time::timeout(HANDSHAKE, TlsAcceptor::from(tls).accept(tcp)).await {
        Ok(Ok(stream)) => {
            let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).cloned();
            let certificate = certificate.map(CertificateDer::into_owned);
            talk(stream, Peer { address, certificate }, handler, stop).await;
        }
        Ok(Err(error)) => debug!(%address, %error, "a TLS handshake failed"),
        Err(_) => debug!(%address, "a TLS handshake took too long"),
    }
}

async fn talk<S, H, F>(stream: S, peer: Peer, handler: H, stop: CancellationToken)
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
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HANDSHAKE).max_buf_size(64 << 10);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(250);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(GRACE, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        debug!(%address, %error, "a connection ended with an error");
    }
}
