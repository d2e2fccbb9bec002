//! The stream server (KubeEdge v1.23: port 10003): a kubelet's API for all nodes. Which node is meant says the pod in the path, the header
//! that an API server sets for `nodes/NODE/proxy`, or the host.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use link::http_server::{Body, Peer};
use link::splice::splice;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info};

use super::access::{Access, Action, Denied};
use super::tunnels::{Answer, Io, Tunnel, TunnelError, Tunnels};
use crate::edgecontroller::view::View;
use crate::kubernetes::{Kubernetes, KubernetesError};

/// The longest body of a request.
const MAX_BODY: usize = 1 << 20;
/// Paths at which a stream begins: only there another protocol can be asked for.
const OF_STREAMS: [&str; 3] = ["/exec/", "/attach/", "/portForward/"];
/// Paths whose second and third part are a pod.
const OF_PODS: [&str; 5] = ["containerLogs", "exec", "attach", "portForward", "run"];

/// Answers requests.
#[derive(Clone)]
pub(super) struct Server {
    pub(super) kubernetes: Kubernetes,
    pub(super) view: Arc<View>,
    pub(super) tunnels: Tunnels,
    pub(super) access: Access,
    pub(super) tasks: TaskTracker,
    pub(super) stopping: CancellationToken,
}

/// Why a request is not answered by its node.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error(transparent)]
    Denied(#[from] Denied),
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
    #[error("{0}")]
    NotFound(String),
    #[error("pod {0} is on no node yet")]
    Unscheduled(String),
    #[error("{0}")]
    Bad(&'static str),
    #[error("pod {0} cannot be looked up")]
    Kubernetes(String, #[source] KubernetesError),
}

impl Refused {
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Denied(denied) => denied.status(),
            Self::Tunnel(error) => error.status(),
            Self::NotFound(_) | Self::Unscheduled(_) => StatusCode::NOT_FOUND,
            Self::Bad(_) => StatusCode::BAD_REQUEST,
            Self::Kubernetes(..) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl Server {
    /// Answers one request.
    pub(super) async fn handle(self, request: Request<Incoming>, peer: Peer) -> Response<Body> {
        let path = request.uri().path().to_owned();
        match self.try_handle(request, &peer).await {
            Ok(answer) => answer,
            Err(refused) => {
                let cause = std::error::Error::source(&refused).map(ToString::to_string);
                info!(peer = %peer.address, path, reason = %refused, cause, "a request for a node was refused");
                text(refused.status(), &refused.to_string())
            }
        }
    }

    async fn try_handle(&self, request: Request<Incoming>, peer: &Peer) -> Result<Response<Body>, Refused> {
        let path = request.uri().path();
        if path == "/healthz" {
            return Ok(text(StatusCode::OK, "ok"));
        }
        let is_stream = is_stream(path);
        if request.version() == Version::HTTP_2 && (is_stream || request.method() == Method::CONNECT) {
            return Err(Refused::Bad("streams need HTTP/1.1 with `Connection: Upgrade`; this connection is HTTP/2"));
        }
        let user = self.access.identify(request.headers(), peer).await?;
        // A stream does more than read, whatever its method.
        let method = if is_stream { &Method::POST } else { request.method() };
        let node = match self.node(request.uri(), request.headers()).await {
            Ok(node) => node,
            // Which pods there are is not told to everybody.
            Err(refused) => {
                self.access.authorize(&user, Action::on_node(method, path, "")).await?;
                return Err(refused);
            }
        };
        self.access.authorize(&user, Action::on_node(method, path, &node)).await?;
        let tunnel = self.tunnels.open(&node).await?;
        debug!(user = user.name, node, path, "a request goes to its node");
        pass(&tunnel, request, (&self.tasks, &self.stopping)).await
    }

    /// The node that is meant.
    async fn node(&self, uri: &Uri, headers: &HeaderMap) -> Result<String, Refused> {
        let path = uri.path();
        let forwarded = headers.get("x-forwarded-uri").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let proxied = forwarded.strip_prefix("/api/v1/nodes/").and_then(|rest| rest.split_once("/proxy"));
        // `NODE:port` and `https:NODE:port` name it too.
        let proxied = proxied.map(|(node, _)| {
            let node = node.trim_start_matches("https:").trim_start_matches("http:");
            node.split(':').next().unwrap_or(node)
        });
        let mut parts = path.split('/').skip(1);
        if parts.next().is_some_and(|first| OF_PODS.contains(&first)) {
            let (Some(namespace), Some(pod)) = (parts.next(), parts.next()) else {
                return Err(Refused::NotFound(format!("{path} names no pod")));
            };
            let node = self.node_of_pod(namespace, pod).await?;
            // Who may ask one node alone has no way by its name to the pods of another.
            return match proxied {
                Some(other) if other != node => {
                    Err(Refused::NotFound(format!("pod {namespace}/{pod} is not on node {other}")))
                }
                _ => Ok(node),
            };
        }
        if let Some(node) = proxied {
            let is_name = api::edgecore::is_node_name(node);
            return is_name
                .then(|| node.to_owned())
                .ok_or_else(|| Refused::NotFound(format!("{node:?} is no node's name")));
        }
        // HTTP/2 has it in the address.
        let host = headers.get(header::HOST).and_then(|value| value.to_str().ok());
        let host = host.or(uri.authority().map(|authority| authority.as_str())).unwrap_or_default();
        let host = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, _)) => address,
            None => host.split(':').next().unwrap_or_default(),
        };
        let named = || self.tunnels.is_reachable(host).then(|| host.to_owned());
        named().or_else(|| self.tunnels.at_address(host)).ok_or_else(|| {
            Refused::NotFound(format!("no node is meant by {path} at host {host:?}: ask by way of the API server (/api/v1/nodes/NODE/proxy{path}), or with the node's name or address as the host"))
        })
    }

    /// The node of a pod.
    pub(super) async fn node_of_pod(&self, namespace: &str, pod: &str) -> Result<String, Refused> {
        if let Some(entry) = self.view.read().get(namespace, pod) {
            return Ok(entry.node.clone());
        }
        let is_name = |text: &str| {
            !text.is_empty()
                && text.len() <= 253
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte))
        };
        let name = format!("{namespace}/{pod}");
        if !is_name(namespace) || !is_name(pod) {
            return Err(Refused::NotFound(format!("{name:?} is no pod's name")));
        }
        match self.kubernetes.get_value(&format!("/api/v1/namespaces/{namespace}/pods/{pod}")).await {
            Ok(object) => match object["spec"]["nodeName"].as_str() {
                Some(node) if !node.is_empty() => Ok(node.to_owned()),
                _ => Err(Refused::Unscheduled(name)),
            },
            Err(error) if error.code() == 404 => Err(Refused::NotFound(format!("pod {name} does not exist"))),
            Err(error) => Err(Refused::Kubernetes(name, error)),
        }
    }
}

fn is_stream(path: &str) -> bool {
    OF_STREAMS.iter().any(|root| path.starts_with(root))
}

/// Has the node answer.
pub(super) async fn pass(
    tunnel: &Tunnel,
    request: Request<Incoming>,
    (tasks, stopping): (&TaskTracker, &CancellationToken),
) -> Result<Response<Body>, Refused> {
    let is_stream = is_stream(request.uri().path());
    let (asked, client) = split(request, is_stream).await?;
    match tunnel.ask(asked).await? {
        Answer::Plain(answer) => Ok(answer),
        Answer::Upgraded(head, io) => {
            tasks.spawn(stopping.clone().run_until_cancelled_owned(join(client, io)));
            Ok(head.map(|()| empty()))
        }
    }
}

/// What the node is asked, and the client's connection for when it grants a stream.
async fn split(
    request: Request<Incoming>,
    is_stream: bool,
) -> Result<(Request<Full<Bytes>>, hyper::upgrade::OnUpgrade), Refused> {
    let (mut head, body) = request.into_parts();
    // Elsewhere it would make a question of what is more.
    if !is_stream {
        head.headers.remove(header::UPGRADE);
        head.headers.remove(header::CONNECTION);
    }
    let upgrades = head.headers.contains_key(header::UPGRADE);
    let mut asked = Request::builder().method(head.method.clone()).uri(head.uri.clone());
    if let Some(headers) = asked.headers_mut() {
        *headers = head.headers.clone();
    }
    let body = match head.method {
        _ if upgrades => Bytes::new(),
        Method::GET | Method::HEAD => Bytes::new(),
        _ => {
            let whole = Limited::new(body, MAX_BODY).collect().await;
            whole.map_err(|_| Refused::Bad("the request's body is longer than 1 MiB, or broke off"))?.to_bytes()
        }
    };
    let asked = asked.body(Full::new(body)).map_err(|_| Refused::Bad("the request cannot be passed on"))?;
    let mut client = Request::from_parts(head, ());
    Ok((asked, hyper::upgrade::on(&mut client)))
}

/// The bytes of a stream, until either side ends; how long it may be silent is the node's business.
async fn join(client: hyper::upgrade::OnUpgrade, node: Box<dyn Io>) {
    if let Ok(client) = client.await {
        splice(TokioIo::new(client), node, Duration::MAX).await;
    }
}

pub(super) fn text(status: StatusCode, text: &str) -> Response<Body> {
    let mut answer = Response::new(Full::new(Bytes::from(format!("{text}\n"))).map_err(|never| match never {}).boxed());
    *answer.status_mut() = status;
    answer
}

fn empty() -> Body {
    Full::new(Bytes::new()).map_err(|never| match never {}).boxed()
}
