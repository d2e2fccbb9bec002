//! The way for streams between cloud and edge (KubeEdge v1.23: `wss://…:10004/v1/kubeedge/connect`): how both ends of it begin, and the
//! HTTP/2 that our own ends run in it.
//!
//! The edge asks for a WebSocket. A Go peer then sends its frames ([`wire`'s tunnel][1]); two ends of ours, which know each other by
//! [`HTTP2`] in [`FEATURES`], make one stream of bytes of it that outlives its connections ([`crate::resume`]), in which the cloud is the
//! client of HTTP/2 and the edge its server: streams with their own flow control, heads with a status, and ends that are told.
//! HTTP/2 itself does not ask whether the other end lives: it would not wait for the next connection.
//!
//! [1]: https://github.com/kubeedge/kubeedge/tree/v1.23.1/pkg/stream

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::frames::{Frames, Side};
use crate::resume::{Id, Resume};
use crate::ws::{self, LinkError, Refusal, Target};

/// The path of the tunnel.
pub const PATH: &str = "/v1/kubeedge/connect";
/// The header of the request and of its answer in which our own ends agree on more.
pub const FEATURES: &str = "x-ferroedge-features";
/// The feature: HTTP/2 runs in a stream that is resumed.
pub const HTTP2: &str = "http2-2";
/// The header of the answer to a new tunnel with its name, an [`Id`].
pub const NAME: &str = "x-ferroedge-tunnel";
/// The header of the request to go on with a tunnel and of its answer, a [`Resume`]. What cannot go on is refused with 410.
pub const RESUME: &str = "x-ferroedge-resume";

/// Streams of a node at once; edged allows fewer that are long.
pub const MAX_STREAMS: u32 = 640;
/// Bytes of a stream that may be on their way to a reader who does not take them.
const STREAM_WINDOW: u32 = 128 << 10;
/// The same for all streams of a node: so much that no stream can take another's room.
const CONNECTION_WINDOW: u32 = MAX_STREAMS * STREAM_WINDOW;
/// Bytes of a stream that wait to be sent.
const SEND_BUFFER: usize = 64 << 10;
/// The heads of a request or answer.
const MAX_HEAD: u32 = 64 << 10;
/// The text of a refusal.
const MAX_REFUSAL: usize = 4 << 10;

/// A connection after its upgrade.
pub type Io = TokioIo<Upgraded>;

/// Connects as the edge does; also returns the headers of the answer.
///
/// # Errors
/// Any step failed or took too long, or the cloud refuses.
pub async fn connect(target: &Target) -> Result<(Frames<Io>, HeaderMap), LinkError> {
    tokio::time::timeout(target.connect_deadline, connect_unbounded(target))
        .await
        .unwrap_or_else(|_| Err(LinkError::Timeout("connecting", target.connect_deadline)))
}

async fn connect_unbounded(target: &Target) -> Result<(Frames<Io>, HeaderMap), LinkError> {
    let (request, server, stream) = ws::dial(target).await?;
    let key = request.headers().get(header::SEC_WEBSOCKET_KEY).map(|key| derive_accept_key(key.as_bytes()));
    let path = request.uri().path_and_query().map_or(PATH, |path| path.as_str()).to_owned();
    let (mut head, ()) = request.into_parts();
    head.uri = path.parse().map_err(|_| LinkError::Address(target.url.clone()))?;
    let broken = |error: hyper::Error| LinkError::Exchange(server.clone(), error);
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let exchange = async {
        // The connection ends with the upgrade, or with its only sender.
        let mut sender = sender;
        let request = Request::from_parts(head, Empty::<Bytes>::new());
        let answer = sender.send_request(request).await.map_err(broken)?;
        let status = answer.status();
        let accepted = answer.headers().get(header::SEC_WEBSOCKET_ACCEPT).and_then(|value| value.to_str().ok());
        if status != StatusCode::SWITCHING_PROTOCOLS || accepted.map(str::to_owned) != key {
            let text = Limited::new(answer.into_body(), MAX_REFUSAL).collect().await;
            let text = text.map(|text| String::from_utf8_lossy(&text.to_bytes()).trim().to_owned());
            let (server, status) = (server.clone(), status.as_u16());
            return Err(LinkError::Refused { server, status, reason: text.unwrap_or_default() });
        }
        let headers = answer.headers().clone();
        Ok((hyper::upgrade::on(answer).await.map_err(broken)?, headers))
    };
    let (answer, _) = tokio::join!(exchange, connection.with_upgrades());
    let (upgraded, headers) = answer?;
    Ok((Frames::new(TokioIo::new(upgraded), Side::Client), headers))
}

/// The answer that grants a WebSocket.
///
/// # Errors
/// The request asks for none.
pub fn accept<B>(request: &Request<B>) -> Result<Response<Empty<Bytes>>, Refusal> {
    let refuse = |reason: &str| Refusal { status: StatusCode::BAD_REQUEST, reason: reason.to_owned() };
    let headers = request.headers();
    let upgrade = headers.get(header::UPGRADE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if request.version() != Version::HTTP_11 || !upgrade.eq_ignore_ascii_case("websocket") {
        return Err(refuse("this is the tunnel of edge nodes: connect with a WebSocket over HTTP/1.1"));
    }
    let key = headers.get(header::SEC_WEBSOCKET_KEY).map(|key| derive_accept_key(key.as_bytes()));
    let key =
        key.and_then(|key| HeaderValue::from_str(&key).ok()).ok_or_else(|| refuse("Sec-WebSocket-Key is missing"))?;
    let mut answer = Response::new(Empty::new());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = answer.headers_mut();
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, key);
    Ok(answer)
}

/// The frames of a request that was granted.
pub fn frames(upgraded: Upgraded) -> Frames<Io> {
    Frames::new(TokioIo::new(upgraded), Side::Server)
}

/// Whether headers name [`HTTP2`].
pub fn has_http2(headers: &HeaderMap) -> bool {
    let values = headers.get_all(FEATURES).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|name| name.trim() == HTTP2)
}

/// The name of a new tunnel.
pub fn name(headers: &HeaderMap) -> Option<Id> {
    headers.get(NAME)?.to_str().ok()?.parse().ok()
}

/// Which tunnel goes on, and from where.
pub fn resume(headers: &HeaderMap) -> Option<Resume> {
    headers.get(RESUME)?.to_str().ok()?.parse().ok()
}

/// HTTP/2 for the cloud's end.
pub fn client() -> hyper::client::conn::http2::Builder<TokioExecutor> {
    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(STREAM_WINDOW).initial_connection_window_size(CONNECTION_WINDOW);
    builder.max_send_buf_size(SEND_BUFFER).max_header_list_size(MAX_HEAD);
    builder
}

/// HTTP/2 for the edge's end.
pub fn server() -> hyper::server::conn::http2::Builder<TokioExecutor> {
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder.enable_connect_protocol();
    builder.initial_stream_window_size(STREAM_WINDOW).initial_connection_window_size(CONNECTION_WINDOW);
    builder.max_send_buf_size(SEND_BUFFER).max_header_list_size(MAX_HEAD).max_concurrent_streams(MAX_STREAMS);
    builder
}
