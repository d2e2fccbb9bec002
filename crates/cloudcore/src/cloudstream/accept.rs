//! The tunnel server (KubeEdge v1.23: `/v1/kubeedge/connect` on port 10004): a node shows its certificate, which says who it is.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use link::http_server::{Body, Peer};
use link::identity::Identity;
use link::resume::{Handle, Id, Resumable, Resume};
use link::tunnel;
use serde_json::json;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};
use wire::on_demand;

use super::address::Published;
use super::go_edge::GoEdge;
use super::own_edge::OwnEdge;
use super::replicas;
use super::server;
use super::tunnels::{End, Tunnel, Tunnels};
use crate::kubernetes::Kubernetes;

/// A tunnel that nobody has used for so long is closed: its node opens another when it is asked.
const UNUSED: Duration = Duration::from_secs(300);
/// Answers that other cloudcores have passed on to them at once: nodes are to get in beside them.
pub(super) const MAX_PASSED_ON: usize = 384;
/// How often it is looked who is at the other end of a node's session while its tunnel is cut.
const LOOK: Duration = Duration::from_secs(1);
/// How long HTTP/2 may take to begin.
const BEGIN: Duration = Duration::from_secs(30);
/// What a certificate is good for that very old edges have: for any node.
const LEGACY: &str = "kubeedge.io";

/// Takes tunnels.
#[derive(Clone)]
pub(super) struct Accept {
    pub(super) tunnels: Tunnels,
    pub(super) kubernetes: Kubernetes,
    pub(super) published: Published,
    pub(super) tasks: TaskTracker,
    pub(super) stopping: CancellationToken,
    /// Of requests that other cloudcores pass on.
    pub(super) passed_on: Arc<Semaphore>,
}

impl Accept {
    /// Answers one request; an upgrade goes on as a tunnel.
    pub(super) async fn handle(self, request: Request<Incoming>, peer: Peer) -> Response<Body> {
        if request.uri().path().starts_with(replicas::ROOT) {
            return self.for_replica(request, &peer).await;
        }
        if request.uri().path().trim_end_matches('/') != tunnel::PATH {
            return refusal(StatusCode::NOT_FOUND, "this port is for the stream tunnels of edge nodes");
        }
        let node = match node_of(request.headers(), &peer) {
            Ok(node) => node,
            Err(why) => {
                warn!(peer = %peer.address, why, "a stream tunnel was refused");
                return refusal(StatusCode::FORBIDDEN, &why);
            }
        };
        let mut answer = match tunnel::accept(&request) {
            Ok(answer) => answer,
            Err(refused) => return refusal(refused.status, &refused.reason),
        };
        let is_ours = tunnel::has_http2(request.headers());
        let id = Id::random();
        if is_ours {
            answer.headers_mut().insert(tunnel::FEATURES, HeaderValue::from_static(tunnel::HTTP2));
            if request.headers().contains_key(tunnel::RESUME) {
                return self.go_on(node, request, answer);
            }
            insert(&mut answer, tunnel::NAME, &id);
        }
        let named = text(request.headers(), "sessioninternalip").and_then(|address| address.parse().ok());
        let process = text(request.headers(), on_demand::PROCESS).and_then(|process| process.parse().ok());
        let address = named.unwrap_or(peer.address.ip());
        let tasks = self.tasks.clone();
        let stopping = self.stopping.clone();
        tasks.spawn(stopping.run_until_cancelled_owned(async move {
            match hyper::upgrade::on(request).await {
                Ok(upgraded) if is_ours => self.own((&node, id, process), address, upgraded).await,
                Ok(upgraded) => self.go(&node, address, upgraded).await,
                Err(error) => debug!(node, %error, "a stream tunnel was not begun"),
            }
        }));
        answer.map(|body| body.map_err(|never| match never {}).boxed())
    }

    /// Another cloudcore asks what is known of a node, or wants something of it.
    async fn for_replica(self, mut request: Request<Incoming>, peer: &Peer) -> Response<Body> {
        let identity = peer.certificate.as_ref().and_then(|certificate| Identity::read(certificate).ok());
        if !identity.is_some_and(|identity| identity.organisations.iter().any(|group| group == replicas::GROUP)) {
            return refusal(StatusCode::FORBIDDEN, "this path is for other cloudcores");
        }
        let target = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
        let (node, rest) = replicas::split(target.strip_prefix(replicas::ROOT).unwrap_or_default());
        if !api::edgecore::is_node_name(node) {
            return refusal(StatusCode::BAD_REQUEST, "this is no name of a node");
        }
        if rest.is_empty() {
            return refusal(StatusCode::OK, &json!(self.tunnels.known_of(node)).to_string());
        }
        let Ok(uri) = rest.parse() else { return refusal(StatusCode::BAD_REQUEST, "this is no path") };
        *request.uri_mut() = uri;
        let Ok(place) = self.passed_on.clone().try_acquire_owned() else {
            let why = "too many requests of other cloudcores are under way here: try again later";
            return refusal(StatusCode::TOO_MANY_REQUESTS, why);
        };
        let asked = async {
            let tunnel = self.tunnels.open_here(node).await?;
            server::pass(&tunnel, request, (&self.tasks, &self.stopping)).await
        };
        let answer = asked.await.unwrap_or_else(|refused| refusal(refused.status(), &refused.to_string()));
        // As long as the answer lasts; a stream takes no place in this server.
        let same = move |error| {
            let _ = &place;
            error
        };
        answer.map(|body| body.map_err(same).boxed())
    }

    /// A tunnel of ours, whose connection was cut, goes on on that of this request.
    fn go_on(self, node: String, request: Request<Incoming>, mut answer: Response<Empty<Bytes>>) -> Response<Body> {
        let theirs = tunnel::resume(request.headers());
        let offered = theirs.and_then(|theirs| Some((theirs, self.tunnels.offer(&node, theirs)?)));
        let Some((theirs, offer)) = offered else {
            info!(node, "a stream tunnel is not resumed: it is not known here any more");
            return refusal(StatusCode::GONE, "this cloudcore does not know the tunnel, or not where it is to go on");
        };
        insert(&mut answer, tunnel::RESUME, &Resume { id: theirs.id, read: offer.read() });
        self.tasks.spawn(self.stopping.run_until_cancelled_owned(async move {
            match hyper::upgrade::on(request).await {
                Ok(upgraded) => match offer.go_on(theirs.read, tunnel::frames(upgraded)) {
                    Ok(()) => info!(node, "a stream tunnel goes on on another connection"),
                    Err(error) => debug!(node, %error, "a stream tunnel does not go on"),
                },
                Err(error) => debug!(node, %error, "a stream tunnel does not go on"),
            }
        }));
        answer.map(|body| body.map_err(|never| match never {}).boxed())
    }

    /// An edge of ours; ends with the stream that outlives its connections.
    async fn own(
        self,
        (node, id, process): (&str, Id, Option<Id>),
        address: IpAddr,
        upgraded: hyper::upgrade::Upgraded,
    ) {
        let (bytes, handle) = Resumable::new(tunnel::frames(upgraded));
        let begun = tokio::time::timeout(BEGIN, tunnel::client().handshake(TokioIo::new(bytes))).await;
        let (sender, connection) = match begun {
            Ok(Ok(begun)) => begun,
            Ok(Err(error)) => return warn!(node, %error, "a stream tunnel was not begun"),
            Err(_) => return warn!(node, "a stream tunnel was not begun: the node says nothing"),
        };
        let edge = OwnEdge::new(sender, id, handle.clone());
        let tunnel = Tunnel::new(node, End::Own(edge.clone()));
        let serving = async {
            // Only with its first answer it is known that it takes streams.
            if edge.lives(BEGIN).await != Some(true) {
                warn!(node, "a stream tunnel does not answer");
                return false;
            }
            drop(edge);
            let used = tunnel.clone();
            self.registered(tunnel, address, self.unused(node, used)).await
        };
        let mut connection = std::pin::pin!(connection);
        let is_unused = tokio::select! {
            ended = connection.as_mut() => return if let Err(error) = ended { info!(node, %error, "a stream tunnel broke") },
            unused = serving => unused,
            never = self.end_if_forgotten((node, process), handle) => match never {},
        };
        if is_unused {
            // Nobody finds it any more, and who has it in hand uses it to his end.
            let _ = connection.await;
        }
    }

    /// Ends the tunnel when it is cut and its node's edgecore is another process by now, which will not go on with it.
    async fn end_if_forgotten(&self, (node, process): (&str, Option<Id>), handle: Handle<tunnel::Io>) -> Infallible {
        while let Some(process) = process {
            handle.cut().await;
            if self.tunnels.process_of(node).is_some_and(|now| now != process) {
                handle.no_more("edgecore was started anew");
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
        std::future::pending().await
    }

    /// Resolves when nobody uses the tunnel, and the node would open another.
    async fn unused(&self, node: &str, tunnel: Tunnel) {
        loop {
            tunnel.unused(UNUSED).await;
            if self.tunnels.opens(node) {
                return;
            }
            tokio::time::sleep(UNUSED).await;
        }
    }

    /// A Go edge; ends with the connection.
    async fn go(self, node: &str, address: IpAddr, upgraded: hyper::upgrade::Upgraded) {
        let (edge, running) = GoEdge::start(node, tunnel::frames(upgraded));
        let tunnel = Tunnel::new(node, End::Go(edge));
        // What our own edges say of themselves is given cloudcore's address on its way to the API.
        let publishing = async {
            self.published.publish(&self.kubernetes, node).await;
            std::future::pending().await
        };
        let running = async {
            tokio::select! {
                () = running => {}
                () = publishing => {}
            }
        };
        self.registered(tunnel, address, running).await;
    }

    /// The tunnel is the node's while `running`; `false` when the node has too many newer ones before.
    async fn registered(&self, tunnel: Tunnel, address: IpAddr, running: impl Future<Output = ()>) -> bool {
        let registration = self.tunnels.add(tunnel, address);
        let running = std::pin::pin!(running);
        tokio::select! {
            () = running => true,
            () = registration.replaced.cancelled() => false,
        }
    }
}

/// The node that the certificate is for. The header names it too; a certificate for all nodes needs that.
fn node_of(headers: &HeaderMap, peer: &Peer) -> Result<String, String> {
    let certificate = peer.certificate.as_ref().ok_or("there is no client certificate")?;
    let identity = Identity::read(certificate).map_err(|error| error.to_string())?;
    let named = text(headers, "sessionhostnameoverride").filter(|name| api::edgecore::is_node_name(name));
    match (identity.node().filter(|node| api::edgecore::is_node_name(node)), named) {
        (Some(node), None) => Ok(node.to_owned()),
        (Some(node), Some(named)) if node == named => Ok(named),
        (Some(node), Some(named)) => Err(format!("the certificate is for node {node}, not for {named}")),
        (None, Some(named)) if identity.common_name == LEGACY => Ok(named),
        (None, _) => Err(format!("the certificate of {:?} is for no node", identity.common_name)),
    }
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

fn insert<B>(answer: &mut Response<B>, name: &'static str, value: &impl ToString) {
    if let Ok(value) = HeaderValue::from_str(&value.to_string()) {
        answer.headers_mut().insert(name, value);
    }
}

fn refusal(status: StatusCode, text: &str) -> Response<Body> {
    let mut answer = Response::new(Full::new(Bytes::from(format!("{text}\n"))).map_err(|never| match never {}).boxed());
    *answer.status_mut() = status;
    answer
}
