//! The connection to the runtime's streaming server.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, Uri, header, response};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// For connecting and for the answer: the server is on this machine.
const LIMIT: Duration = Duration::from_secs(30);
/// The longest text of a refusal.
const MAX_REFUSAL: usize = 16 << 10;
/// Headers that make an upgrade; no others of a client concern the runtime.
const PASSED: [&str; 8] = [
    "connection",
    "upgrade",
    "x-stream-protocol-version",
    "sec-websocket-key",
    "sec-websocket-version",
    "sec-websocket-protocol",
    "sec-websocket-extensions",
    "origin",
];

/// A byte stream after an upgrade.
pub type Io = TokioIo<hyper::upgrade::Upgraded>;

/// The streaming server did not upgrade.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The runtime gave an address of another kind.
    #[error("{0:?} is no http:// address (TLS between the agent and the runtime's streaming server is not supported)")]
    Address(String),
    /// Nobody answers there.
    #[error("{address} cannot be reached")]
    Connect {
        /// Host and port.
        address: String,
        /// Cause.
        #[source]
        source: std::io::Error,
    },
    /// It does not speak HTTP as it should.
    #[error("{0} broke off")]
    Http(String, #[source] hyper::Error),
    /// No answer in time.
    #[error("{0} did not answer within {LIMIT:?}")]
    Timeout(String),
    /// It said no.
    #[error("{status}: {text}")]
    Refused {
        /// HTTP status.
        status: StatusCode,
        /// Its words.
        text: String,
    },
}

/// The headers of a client's request that the runtime gets to see.
pub fn passed_on(headers: &HeaderMap) -> HeaderMap {
    let wanted = headers.iter().filter(|(name, _)| PASSED.contains(&name.as_str()));
    wanted.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Asks for an upgrade; gives the head of the answer and the stream.
///
/// # Errors
/// The server cannot be reached or refuses.
pub async fn dial(url: &str, headers: HeaderMap) -> Result<(response::Parts, Io), DialError> {
    let wrong = || DialError::Address(url.to_owned());
    let uri: Uri = url.parse().map_err(|_| wrong())?;
    let authority = uri.authority().filter(|_| uri.scheme_str() == Some("http")).ok_or_else(wrong)?;
    let address = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80));
    let asked = tokio::time::timeout(LIMIT, ask(&uri, &address, headers));
    asked.await.unwrap_or(Err(DialError::Timeout(address)))
}

async fn ask(uri: &Uri, address: &str, headers: HeaderMap) -> Result<(response::Parts, Io), DialError> {
    let connected = TcpStream::connect(address).await;
    let tcp = connected.map_err(|source| DialError::Connect { address: address.to_owned(), source })?;
    let _ = tcp.set_nodelay(true);
    let broken = |error| DialError::Http(address.to_owned(), error);
    let mut builder = http1::Builder::new();
    let (mut sender, connection) = builder.max_buf_size(64 << 10).handshake(TokioIo::new(tcp)).await.map_err(broken)?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.method_mut() = Method::POST;
    *request.uri_mut() = path.parse().map_err(|_| DialError::Address(uri.to_string()))?;
    *request.headers_mut() = headers;
    if let Ok(host) = address.parse() {
        request.headers_mut().insert(header::HOST, host);
    }
    // A WebSocket begins with GET.
    if request.headers().contains_key(header::SEC_WEBSOCKET_KEY) {
        *request.method_mut() = Method::GET;
    }
    let connection = connection.with_upgrades();
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(broken)?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            let status = answer.status();
            let body = Limited::new(answer.into_body(), MAX_REFUSAL).collect().await;
            let body = body.map(|body| body.to_bytes()).unwrap_or_default();
            return Err(DialError::Refused { status, text: String::from_utf8_lossy(&body).trim().to_owned() });
        }
        let (head, body) = answer.into_parts();
        let answer = response::Response::from_parts(head.clone(), body);
        let upgraded = hyper::upgrade::on(answer).await.map_err(broken)?;
        Ok((head, TokioIo::new(upgraded)))
    };
    tokio::pin!(exchange, connection);
    tokio::select! {
        done = &mut exchange => done,
        // Ends with the upgrade, or with an error that the exchange tells too.
        _ = &mut connection => exchange.await,
    }
}
