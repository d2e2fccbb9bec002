//! One request to a kubelet, on a connection of its own.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use http::{Request, Response, StatusCode, response};
use hyper::client::conn::http1;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use link::http_server::Body;
use link::rustls::ClientConfig;
use link::rustls::pki_types::{InvalidDnsNameError, ServerName};
use link::tls::TlsError;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::address::Address;
use super::answer::{Connection, with_connection};

/// For TCP and TLS together.
const CONNECT: Duration = Duration::from_secs(5);
/// The longest head of an answer; also what is read ahead of a slow reader.
pub(super) const MAX_HEAD: usize = 64 << 10;

/// No answer came.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error("the certificate of the API server or the CA of the hub cannot be used")]
    Certificate(#[source] TlsError),
    #[error("{0:?} is no name that a certificate could be for")]
    Name(String, #[source] InvalidDnsNameError),
    #[error("cannot be reached")]
    Connect(#[source] io::Error),
    #[error("TLS failed")]
    Tls(#[source] io::Error),
    #[error("no connection within {CONNECT:?}")]
    Slow,
    #[error("no answer within {0:?}")]
    Silent(Duration),
    #[error("the body of the request is too long or broke off")]
    TooLarge,
    #[error("the exchange broke off")]
    Exchange(#[source] hyper::Error),
}

/// What a node answered.
pub(super) enum Answer {
    Plain(Response<Body>),
    /// The head of its 101, and the stream.
    Upgraded(response::Parts, Upgraded),
}

/// Sends the request to this address.
///
/// # Errors
/// Nobody answers there, or somebody else, or not in time.
pub(super) async fn ask(
    address: &Address,
    tls: Arc<ClientConfig>,
    request: Request<Body>,
    patience: Option<Duration>,
) -> Result<Answer, DialError> {
    let io = connect(address, tls).await?;
    let exchange = exchange(io, request);
    match patience {
        Some(patience) => tokio::time::timeout(patience, exchange).await.map_err(|_| DialError::Silent(patience))?,
        None => exchange.await,
    }
}

/// TCP and TLS.
///
/// # Errors
/// Nobody is there, or somebody else, or not in time.
pub(super) async fn connect(address: &Address, tls: Arc<ClientConfig>) -> Result<TlsStream<TcpStream>, DialError> {
    tokio::time::timeout(CONNECT, connect_unbounded(address, tls)).await.map_err(|_| DialError::Slow)?
}

async fn connect_unbounded(address: &Address, tls: Arc<ClientConfig>) -> Result<TlsStream<TcpStream>, DialError> {
    let name = ServerName::try_from(address.host.clone()).map_err(|e| DialError::Name(address.host.clone(), e))?;
    let tcp = TcpStream::connect((address.host.as_str(), address.port)).await.map_err(DialError::Connect)?;
    // A delay costs more than a packet.
    let _ = tcp.set_nodelay(true);
    TlsConnector::from(tls).connect(name, tcp).await.map_err(DialError::Tls)
}

/// Sends the request by this connection, which has nothing else to do.
///
/// # Errors
/// The exchange broke off.
pub(super) async fn exchange(io: TlsStream<TcpStream>, request: Request<Body>) -> Result<Answer, DialError> {
    let mut builder = http1::Builder::new();
    let handshake = builder.max_buf_size(MAX_HEAD).handshake(TokioIo::new(io)).await;
    let (mut sender, connection) = handshake.map_err(DialError::Exchange)?;
    // Fused: an answer may outlive it.
    let mut connection: Connection = Box::pin(connection.with_upgrades().map(drop).fuse());
    let sending = sender.send_request(request);
    tokio::pin!(sending);
    let answer = tokio::select! {
        answer = &mut sending => answer,
        // It ends with the answer, or with an error that the sender tells too.
        () = &mut connection => sending.await,
    };
    let mut answer = answer.map_err(|e| if e.is_user() { DialError::TooLarge } else { DialError::Exchange(e) })?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(Answer::Plain(answer.map(|body| with_connection(body, connection))));
    }
    let upgrading = hyper::upgrade::on(&mut answer);
    tokio::pin!(upgrading);
    let upgraded = tokio::select! {
        upgraded = &mut upgrading => upgraded,
        () = &mut connection => upgrading.await,
    };
    let (head, _) = answer.into_parts();
    Ok(Answer::Upgraded(head, upgraded.map_err(DialError::Exchange)?))
}
