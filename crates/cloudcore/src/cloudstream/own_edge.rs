//! A tunnel to an edge of ours: HTTP/2, in which an upgrade is an extended CONNECT (RFC 8441).

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper::ext::Protocol;
use hyper_util::rt::TokioIo;
use link::http_server::Body;
use link::resume::{Handle, Id, Offer, Resume};
use link::tunnel::Io;

use super::tunnels::{Answer, TunnelError};

/// How long a node may take for the head of an answer. A command that runs to its end takes at most as long.
const ANSWER: Duration = Duration::from_secs(130);
/// A node that has not answered after this is asked whether it lives, and has as long to say so: what a request is about may take its
/// time, a link that is down should not.
const DOUBT: Duration = Duration::from_secs(5);
/// What HTTP/2 does not know, and what is not for the node.
const NOT_PASSED: [header::HeaderName; 8] = [
    header::CONNECTION,
    header::UPGRADE,
    header::TRANSFER_ENCODING,
    header::TE,
    header::HOST,
    header::AUTHORIZATION,
    header::COOKIE,
    header::CONTENT_LENGTH,
];

/// Our own edge.
#[derive(Clone)]
pub struct OwnEdge {
    sender: SendRequest<Full<Bytes>>,
    id: Id,
    handle: Handle<Io>,
}

impl OwnEdge {
    /// At the end of this connection, in the stream of this name and handle.
    pub fn new(sender: SendRequest<Full<Bytes>>, id: Id, handle: Handle<Io>) -> Self {
        Self { sender, id, handle }
    }

    /// To go on on another connection, if this tunnel is meant and the node can be where it says.
    pub fn offer(&self, theirs: Resume) -> Option<Offer<Io>> {
        (self.id == theirs.id).then(|| self.handle.offer_at(theirs.read)).flatten()
    }

    /// The tunnel's name, when it waits for its node to connect again.
    pub fn cut(&self) -> Option<Id> {
        self.handle.is_cut().then_some(self.id)
    }

    /// The node has a newer tunnel: this one ends with its connection.
    pub fn is_replaced(&self) {
        self.handle.no_more("the node opened another tunnel");
    }

    /// Asks, and gives the answer as it comes.
    pub async fn ask(&self, node: &str, request: Request<Full<Bytes>>) -> Result<Response<Body>, TunnelError> {
        let answer = self.send(node, prepared(request)).await?;
        Ok(answer.map(boxed))
    }

    /// Asks for a stream.
    pub async fn upgrade(&self, node: &str, request: Request<Full<Bytes>>) -> Result<Answer, TunnelError> {
        let protocol = request.headers().get(header::UPGRADE).and_then(|value| value.to_str().ok());
        let protocol = protocol.unwrap_or_default().to_ascii_lowercase();
        let mut request = prepared(request);
        *request.method_mut() = Method::CONNECT;
        request.extensions_mut().insert(Protocol::from(protocol.as_str()));
        let answer = self.send(node, request).await?;
        if answer.status() != StatusCode::OK {
            return Ok(Answer::Plain(answer.map(boxed)));
        }
        let mut head = Response::new(());
        *head.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *head.headers_mut() = answer.headers().clone();
        head.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        if let Ok(protocol) = HeaderValue::from_str(if protocol == "spdy/3.1" { "SPDY/3.1" } else { &protocol }) {
            head.headers_mut().insert(header::UPGRADE, protocol);
        }
        let io =
            hyper::upgrade::on(answer).await.map_err(|error| TunnelError::Broken(node.to_owned(), error.into()))?;
        Ok(Answer::Upgraded(head, Box::new(TokioIo::new(io))))
    }

    async fn send(&self, node: &str, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, TunnelError> {
        let mut sender = self.sender.clone();
        let exchange = async move {
            sender.ready().await?;
            sender.send_request(request).await
        };
        let silent = |limit: Duration| Err(TunnelError::Silent { node: node.to_owned(), seconds: limit.as_secs() });
        tokio::select! {
            answer = exchange => answer.map_err(|error| TunnelError::Broken(node.to_owned(), error.into())),
            () = self.silence() => silent(2 * DOUBT),
            () = tokio::time::sleep(ANSWER) => silent(ANSWER),
        }
    }

    /// Resolves when a node that was given some time does not even answer a short question.
    async fn silence(&self) {
        loop {
            tokio::time::sleep(DOUBT).await;
            if self.lives(DOUBT).await == Some(false) {
                return;
            }
        }
    }

    /// Whether it answers within this time; `None` when there is no connection any more.
    pub async fn lives(&self, within: Duration) -> Option<bool> {
        let mut sender = self.sender.clone();
        let question = Request::get("http://edged/healthz/ping").body(Full::default()).ok()?;
        match tokio::time::timeout(within, sender.send_request(question)).await {
            Ok(answer) => answer.ok().map(|_| true),
            Err(_) => Some(false),
        }
    }
}

/// The request without what belongs to the connection it came by.
fn prepared(request: Request<Full<Bytes>>) -> Request<Full<Bytes>> {
    let (mut head, body) = request.into_parts();
    NOT_PASSED.iter().for_each(|name| drop(head.headers.remove(name)));
    let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
    head.uri = Uri::builder().scheme("http").authority("edged").path_and_query(target).build().unwrap_or_default();
    head.version = http::Version::HTTP_2;
    Request::from_parts(head, body)
}

fn boxed(body: Incoming) -> Body {
    body.map_err(|error| -> Box<dyn std::error::Error + Send + Sync> { Box::new(error) }).boxed()
}
