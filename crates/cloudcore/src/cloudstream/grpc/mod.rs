//! The gRPC service `CloudStream` for users' programs: [`logs`], [`exec`], [`metrics`] of nodes.
//!
//! It shares the port, the access rules and the tunnels with the kubelet's API ([`super::server`]). No call has a task or a queue of its
//! own: each is a stream that does its work while its client reads, so a slow client holds up itself, and one that goes away drops all
//! that it has begun.

mod exec;
mod logs;
mod metrics;
mod status;

use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use http::{HeaderMap, Request, Response, StatusCode, Version, header};
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming, SizeHint};
use link::http_server::{Body, Peer};
use tonic::codegen::Service;
use tonic::service::Routes;
use tonic::{Code, Status, Streaming};

use self::v1::cloud_stream_server::{CloudStream, CloudStreamServer};
use self::v1::{ExecRequest, ExecResponse, LogsRequest, LogsResponse, MetricsRequest, MetricsResponse};
use super::access::{Action, User};
use super::server::{Server, text};

/// What both sides say, by `proto/cloudstream.proto`.
#[allow(missing_docs, reason = "generated; proto/cloudstream.proto says what they mean")]
#[allow(clippy::doc_markdown, clippy::large_enum_variant, reason = "generated")]
pub mod v1 {
    tonic::include_proto!("ferroedge.cloudstream.v1");
}

/// The description of the service, for gRPC reflection (an encoded `FileDescriptorSet`).
pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/cloudstream.bin"));
/// The longest message of a client.
const MAX_MESSAGE: usize = 1 << 20;

/// What a call answers with.
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Whether a request is gRPC.
pub(super) fn is_meant(request: &Request<Incoming>) -> bool {
    let kind = request.headers().get(header::CONTENT_TYPE).map(|value| value.as_bytes()).unwrap_or_default();
    kind.strip_prefix(b"application/grpc").is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

/// Answers calls. Cloning is cheap.
#[derive(Clone)]
pub(super) struct Grpc {
    server: Server,
    routes: Routes,
}

impl Grpc {
    pub(super) fn new(server: Server) -> Self {
        let service = CloudStreamServer::new(Calls { server: server.clone() }).max_decoding_message_size(MAX_MESSAGE);
        let mut routes = Routes::new(service);
        // The descriptor was made by the build.
        let reflection =
            tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(DESCRIPTOR).build_v1();
        if let Ok(reflection) = reflection {
            routes = routes.add_service(reflection);
        }
        Self { server, routes }
    }

    /// Answers one call, reflection too, of somebody who is known.
    pub(super) async fn handle(mut self, mut request: Request<Incoming>, peer: Peer) -> Response<Body> {
        if request.version() != Version::HTTP_2 {
            return text(StatusCode::BAD_REQUEST, "gRPC needs HTTP/2");
        }
        let answer = match self.server.access.identify(request.headers(), &peer).await {
            Ok(user) => {
                request.extensions_mut().insert(user);
                let answered = self.routes.call(request.map(tonic::body::Body::new)).await;
                answered.unwrap_or_else(|never| match never {})
            }
            Err(denied) => status::of(denied.into()).into_http(),
        };
        answer.map(|body| Sync(Mutex::new(body)).boxed())
    }
}

/// The service.
#[derive(Clone)]
struct Calls {
    server: Server,
}

#[tonic::async_trait]
impl CloudStream for Calls {
    type LogsStream = Answers<LogsResponse>;
    type ExecStream = Answers<ExecResponse>;
    type MetricsStream = Answers<MetricsResponse>;

    async fn logs(
        &self,
        request: tonic::Request<Streaming<LogsRequest>>,
    ) -> Result<tonic::Response<Self::LogsStream>, Status> {
        let asker = self.asker(&request)?;
        Ok(tonic::Response::new(Box::pin(logs::Logs::new(asker, request.into_inner()))))
    }

    async fn exec(
        &self,
        request: tonic::Request<Streaming<ExecRequest>>,
    ) -> Result<tonic::Response<Self::ExecStream>, Status> {
        let asker = self.asker(&request)?;
        Ok(tonic::Response::new(exec::run(asker, request.into_inner())))
    }

    async fn metrics(
        &self,
        request: tonic::Request<MetricsRequest>,
    ) -> Result<tonic::Response<Self::MetricsStream>, Status> {
        let asker = self.asker(&request)?;
        Ok(tonic::Response::new(metrics::read(asker, request.into_inner()).await?))
    }
}

impl Calls {
    fn asker<T>(&self, request: &tonic::Request<T>) -> Result<Asker, Status> {
        let user = request.extensions().get::<User>().cloned();
        let user = user.ok_or_else(|| Status::new(Code::Unauthenticated, "nobody is known to ask"))?;
        Ok(Asker { server: self.server.clone(), user })
    }
}

/// Somebody who asks, and where.
#[derive(Clone)]
struct Asker {
    server: Server,
    user: User,
}

impl Asker {
    /// The node of a pod with which he may do this.
    async fn node_of_pod(
        &self,
        verb: &'static str,
        subresource: &'static str,
        (namespace, pod): (&str, &str),
    ) -> Result<String, Status> {
        self.allowed(Action::on_pod(verb, subresource, namespace, pod)).await?;
        self.server.node_of_pod(namespace, pod).await.map_err(status::of)
    }

    async fn allowed(&self, action: Action) -> Result<(), Status> {
        self.server.access.authorize(&self.user, action).await.map_err(|denied| status::of(denied.into()))
    }
}

/// Checks what becomes part of a path.
fn check_names(names: [(&str, &str); 3]) -> Result<(), Status> {
    for (field, name) in names {
        let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
        if name.is_empty() || name.len() > 253 || name.starts_with('.') || !name.bytes().all(known) {
            return Err(Status::invalid_argument(format!("{field}: {name:?} is no name; it must be given")));
        }
    }
    Ok(())
}

/// A body that can be shared between threads, which nobody does.
struct Sync(Mutex<tonic::body::Body>);

impl hyper::body::Body for Sync {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + std::marker::Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let body = self.0.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        Pin::new(body).poll_frame(cx).map_err(Into::into)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// Where a request to a node begins.
fn request(target: &str, headers: HeaderMap) -> Result<Request<http_body_util::Full<Bytes>>, Status> {
    let request = Request::get(target).body(http_body_util::Full::default());
    let mut request = request.map_err(|_| Status::invalid_argument("the request cannot be passed on"))?;
    *request.headers_mut() = headers;
    Ok(request)
}
