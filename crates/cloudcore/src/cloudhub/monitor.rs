//! `/metrics`, `/metrics/fleet`, `/healthz` and `/readyz` on `commonConfig.monitorServer.bindAddress` (KubeEdge v1.23: 127.0.0.1:9091, `/metrics` alone).

use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use link::http_server::{Body, HttpServer, MAX_STREAMS};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use super::lag::LAGS;
use super::sessions::Sessions;
use crate::cloudstream::collect;
use crate::cloudstream::fleet::Fleet;
use crate::cloudstream::tunnels::Tunnels;

/// Connections at once; a probe and a scraper need two.
const MAX_CONNECTIONS: usize = 32;
/// Of lagging nodes so many have a line of their own, the longest first.
const MAX_NODES: usize = 100;

/// What has been counted since the start.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Sessions that began.
    pub(super) connected: AtomicU64,
    /// Connections that were refused.
    pub(super) refused: AtomicU64,
    /// Messages written to nodes.
    pub(super) sent: AtomicU64,
    /// Objects that nodes acknowledged.
    pub(super) acknowledged: AtomicU64,
    /// Objects that nodes could not store.
    pub(super) not_stored: AtomicU64,
}

pub(super) fn count(counter: &AtomicU64, by: usize) {
    counter.fetch_add(by as u64, Ordering::Relaxed);
}

/// The monitor; before the hub serves it is healthy and not ready.
#[derive(Clone, Default)]
pub struct Monitor {
    sessions: Arc<OnceLock<Sessions>>,
    fleet: Arc<OnceLock<Fleet>>,
    tunnels: Arc<OnceLock<Tunnels>>,
    collected: Arc<OnceLock<Vec<Arc<collect::Counters>>>>,
}

impl Monitor {
    /// Listens, until `stopping`. An address that is taken is no reason not to serve nodes.
    pub async fn start(
        &self,
        address: SocketAddr,
        tasks: &TaskTracker,
        stopping: &CancellationToken,
    ) -> Option<SocketAddr> {
        let listener = match TcpListener::bind(address).await {
            Ok(listener) => listener,
            Err(error) => {
                warn!(%address, %error, "no metrics and health: this address (commonConfig.monitorServer.bindAddress) cannot be used");
                return None;
            }
        };
        let bound = listener.local_addr().ok();
        let server = HttpServer { listener, tls: None, max_connections: MAX_CONNECTIONS, max_streams: MAX_STREAMS };
        let (monitor, stop) = (self.clone(), stopping.clone());
        let answer = move |request, _| {
            let monitor = monitor.clone();
            async move { monitor.answer(&request).await }
        };
        tasks.spawn(server.serve(answer, stop));
        bound
    }

    /// From now on it is ready.
    pub(super) fn serves(&self, sessions: Sessions) {
        // It happens once.
        let _ = self.sessions.set(sessions);
    }

    /// From now on it tells what the outputs of collected logs do.
    pub(crate) fn collects(&self, counters: Vec<Arc<collect::Counters>>) {
        // It happens once.
        let _ = self.collected.set(counters);
    }

    /// From now on nodes can be asked, through these tunnels.
    pub(crate) fn has_fleet(&self, tunnels: Tunnels) {
        // It happens once.
        let _ = self.fleet.set(Fleet::new(tunnels.clone()));
        let _ = self.tunnels.set(tunnels);
    }

    async fn answer(&self, request: &Request<Incoming>) -> Response<Body> {
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        match (request.uri().path(), self.sessions.get()) {
            _ if !is_read => text(StatusCode::METHOD_NOT_ALLOWED, "405: only GET is served here\n".to_owned()),
            ("/healthz" | "/livez", _) | ("/readyz", Some(_)) => text(StatusCode::OK, "ok".to_owned()),
            ("/readyz", None) => text(
                StatusCode::SERVICE_UNAVAILABLE,
                "not ready: cloudcore reads from the Kubernetes API and does not serve nodes yet\n".to_owned(),
            ),
            ("/metrics", sessions) => {
                let collected = self.collected.get().map(|counters| collect::metrics(counters));
                let streams = self.tunnels.get().map(stream_metrics).unwrap_or_default();
                let hub = sessions.map(metrics).unwrap_or_default();
                text(StatusCode::OK, hub + &streams + &collected.unwrap_or_default())
            }
            ("/metrics/fleet", _) => match self.fleet.get() {
                Some(fleet) => text(StatusCode::OK, fleet.page().await),
                None => text(
                    StatusCode::NOT_FOUND,
                    "404: nodes' metrics come through stream tunnels: enable modules.cloudStream\n".to_owned(),
                ),
            },
            _ => {
                text(StatusCode::NOT_FOUND, "404: here are /metrics, /metrics/fleet, /healthz and /readyz\n".to_owned())
            }
        }
    }
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    let mut answer = Response::new(Full::new(text.into()).map_err(|never| match never {}).boxed());
    *answer.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    answer
}

fn add(page: &mut String, name: &str, kind: &str, help: &str, value: u64) {
    // Writing to a String does not fail.
    let _ = write!(page, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
}

/// What runs for streams; where it grows while nobody asks nodes, something is left behind.
fn stream_metrics(tunnels: &Tunnels) -> String {
    let mut page = String::new();
    let streams = tunnels.open_streams() as u64;
    add(&mut page, "ferroedge_cloudstream_tunnels", "gauge", "Nodes with a stream tunnel.", tunnels.count() as u64);
    add(&mut page, "ferroedge_cloudstream_open_streams", "gauge", "Requests to nodes that are under way.", streams);
    let tasks = Handle::current().metrics().num_alive_tasks() as u64;
    add(&mut page, "ferroedge_tasks", "gauge", "Tasks that run in this program.", tasks);
    page
}

/// Prometheus' text format. The first name is upstream's.
fn metrics(sessions: &Sessions) -> String {
    let now = Instant::now();
    let handles = sessions.handles();
    let lags = handles.iter().filter_map(|handle| Some((handle.node(), handle.lag_at(now)?)));
    let mut lags: Vec<_> = lags.collect();
    lags.sort_by_key(|(_, lag)| std::cmp::Reverse(lag.time));
    let pending: usize = lags.iter().map(|(_, lag)| lag.pending).sum();
    lags.retain(|(_, lag)| lag.time >= LAGS);
    let counters = sessions.counters();
    let total = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let mut out = String::new();
    let mut one = |name: &str, kind: &str, help: &str, value: u64| add(&mut out, name, kind, help, value);
    one("KubeEdge_CloudHub_connected_nodes", "gauge", "Nodes with a session.", handles.len() as u64);
    one(
        "ferroedge_cloudhub_pending_objects",
        "gauge",
        "Objects that connected nodes have not acknowledged.",
        pending as u64,
    );
    one(
        "ferroedge_cloudhub_lagging_nodes",
        "gauge",
        "Connected nodes that have been behind for 30 s or more.",
        lags.len() as u64,
    );
    one("ferroedge_cloudhub_connections_total", "counter", "Sessions that began.", total(&counters.connected));
    one(
        "ferroedge_cloudhub_refused_connections_total",
        "counter",
        "Connections that were refused.",
        total(&counters.refused),
    );
    one("ferroedge_cloudhub_sent_messages_total", "counter", "Messages written to nodes.", total(&counters.sent));
    one(
        "ferroedge_cloudhub_acknowledged_objects_total",
        "counter",
        "Objects that nodes have stored.",
        total(&counters.acknowledged),
    );
    one(
        "ferroedge_cloudhub_not_stored_objects_total",
        "counter",
        "Times that a node could not store an object.",
        total(&counters.not_stored),
    );
    let name = "ferroedge_cloudhub_node_lag_seconds";
    let _ = write!(out, "# HELP {name} Since a lagging node last had everything.\n# TYPE {name} gauge\n");
    for (node, lag) in lags.iter().take(MAX_NODES) {
        let _ = writeln!(out, "{name}{{node=\"{node}\"}} {:.1}", lag.time.as_secs_f64());
    }
    out
}
