//! The tunnel to a cloudcore of ours: it asks over HTTP/2, and the node's API answers.

use std::convert::Infallible;
use std::time::Duration;

use edged::api::NodeApi;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body_util::{BodyExt, Full};
use hyper::ext::Protocol;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use link::http_server::Body;
use link::resume::Resumable;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use super::Ended;

/// Where streams begin.
const STREAMS: [&str; 3] = ["/exec/", "/attach/", "/portForward/"];
/// How long running requests may go on when the node is to stop.
const GRACE: Duration = Duration::from_secs(3);

/// Serves until the tunnel ends.
pub(super) async fn serve<S>(bytes: Resumable<S>, api: &NodeApi, stopping: &CancellationToken) -> Ended
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let api = api.clone();
    let service = service_fn(move |request| {
        let api = api.clone();
        async move { Ok::<_, Infallible>(answer(&api, request).await) }
    });
    let connection = link::tunnel::server().serve_connection(TokioIo::new(bytes), service);
    tokio::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended.map_or_else(Ended::Http2, |()| Ended::Closed(String::new())),
        () = stopping.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    // Who wants to go on for longer is cut off.
    let _ = tokio::time::timeout(GRACE, connection).await;
    Ended::Stopping
}

/// Answers; an extended CONNECT (RFC 8441) as the upgrade that it stands for.
async fn answer<B>(api: &NodeApi, request: Request<B>) -> Response<Body> {
    let protocol = request.extensions().get::<Protocol>().filter(|_| request.method() == Method::CONNECT);
    let Some(protocol) = protocol.and_then(|protocol| HeaderValue::from_str(protocol.as_str()).ok()) else {
        return api.answer(request).await;
    };
    let mut request = request;
    if !STREAMS.iter().any(|root| request.uri().path().starts_with(root)) {
        return refused("no stream begins at this path");
    }
    *request.method_mut() = Method::POST;
    *request.version_mut() = Version::HTTP_11;
    let headers = request.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, protocol);
    let mut answer = api.answer(request).await;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        *answer.status_mut() = StatusCode::OK;
        answer.headers_mut().remove(header::CONNECTION);
        answer.headers_mut().remove(header::UPGRADE);
    } else if answer.status().is_success() {
        // It would be taken for the beginning of a stream.
        return refused("the node's API answered without a stream");
    }
    answer
}

fn refused(why: &'static str) -> Response<Body> {
    let mut answer = Response::new(Full::from(why).map_err(|never| match never {}).boxed());
    *answer.status_mut() = StatusCode::BAD_REQUEST;
    answer
}
