//! Log collection: the logs of chosen containers on nodes, brought through the stream tunnels to files, Loki or an OpenTelemetry
//! collector.
//!
//! [`pods`] knows which containers there are, [`supervisor`] follows each once for every output ([`reader`]), [`delivery`] hands the lines
//! to an output and remembers how far it has come ([`positions`]). Outputs share nothing: one that is down holds back its own
//! readers. Read `supervisor` first.

mod delivery;
mod files;
mod loki;
mod otlp;
mod pods;
mod positions;
mod push;
mod reader;
mod supervisor;

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use api::cloudcore::Collect;
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;

use super::tunnels::Tunnels;
use crate::kubernetes::Kubernetes;

use supervisor::{Feed, Supervisor};

/// A container whose log is read.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Source {
    /// The pod's UID.
    pub(super) uid: String,
    pub(super) namespace: String,
    pub(super) pod: String,
    pub(super) container: String,
    pub(super) node: String,
}

impl Source {
    /// What positions are kept by: a pod of the same name is another one.
    fn key(&self) -> String {
        format!("{}/{}", self.uid, self.container)
    }
}

/// A line of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    time: Timestamp,
    /// Without its end.
    text: Bytes,
}

/// How far a log was read: the time of the last line, and how many lines of that very time there were.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Position {
    time: Timestamp,
    count: u32,
}

/// Lines of one container that follow each other.
#[derive(Clone, Debug)]
struct Chunk {
    source: Arc<Source>,
    lines: Arc<[Line]>,
    /// After these lines; `None` forgets the container: it is gone.
    position: Option<Position>,
    /// Bytes of the lines.
    bytes: usize,
}

/// Where lines go.
trait Output: Send + 'static {
    /// Its name in logs, metrics and the file of positions.
    const NAME: &'static str;

    /// Takes chunks in their order; how many it took, and why not all. What was not taken is offered again after a pause. What it
    /// can never take is counted and dropped: that is taken too.
    fn take(&mut self, chunks: &[Chunk]) -> impl Future<Output = (usize, Result<(), OutputError>)> + Send;

    /// Makes durable what was taken; positions are written after it.
    fn settle(&mut self) -> impl Future<Output = Result<(), OutputError>> + Send;
}

/// An output does not take lines now.
#[derive(Debug, thiserror::Error)]
enum OutputError {
    /// A file cannot be written.
    #[error("{} cannot be written: is there room, and may cloudcore write there?", .0.display())]
    File(std::path::PathBuf, #[source] std::io::Error),
    /// A receiver cannot be reached.
    #[error("{0} does not answer: does it run, and can cloudcore reach it?")]
    Unreachable(String, #[source] Box<dyn std::error::Error + Send + Sync>),
    /// A receiver takes nothing now, or not from us.
    #[error("{0} answers {1}: {2}")]
    Refused(String, http::StatusCode, String),
    /// The process ends.
    #[error("cloudcore stops")]
    Stopping,
}

/// What an output has done.
#[derive(Debug)]
pub(crate) struct Counters {
    name: &'static str,
    lines: AtomicU64,
    dropped: AtomicU64,
    cut: AtomicU64,
    failures: AtomicU64,
}

impl Counters {
    fn new(name: &'static str) -> Arc<Self> {
        let zero = AtomicU64::default;
        Arc::new(Self { name, lines: zero(), dropped: zero(), cut: zero(), failures: zero() })
    }
}

/// In Prometheus' text format.
pub(crate) fn metrics(counters: &[Arc<Counters>]) -> String {
    type Of = fn(&Counters) -> &AtomicU64;
    let all: [(&str, &str, Of); 4] = [
        ("lines_total", "Lines that are done with: an output has taken or refused them.", |counters| &counters.lines),
        ("dropped_lines_total", "Lines that an output has refused for good.", |counters| &counters.dropped),
        ("cut_lines_total", "Lines that were cut at 256 KiB.", |counters| &counters.cut),
        ("failures_total", "Times that an output did not take lines; they are offered again.", |counters| {
            &counters.failures
        }),
    ];
    let mut out = String::new();
    for (name, help, of) in all {
        let name = format!("ferroedge_collect_{name}");
        // Writing to a String does not fail.
        let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} counter\n");
        for counters in counters {
            let _ = writeln!(out, "{name}{{output=\"{}\"}} {}", counters.name, of(counters).load(Ordering::Relaxed));
        }
    }
    out
}

/// Collects until `stopping`; what outputs do is told in the counters.
pub(crate) fn start(
    settings: &Collect,
    kubernetes: Kubernetes,
    tunnels: Tunnels,
    tasks: &TaskTracker,
    stopping: &CancellationToken,
) -> Vec<Arc<Counters>> {
    let mut feeds: Vec<Feed> = Vec::new();
    if let Some(files) = &settings.files {
        feeds.push(delivery::start(files::Files::new(files), &settings.positions, tasks, stopping));
    }
    if let Some(loki) = &settings.loki {
        feeds.push(delivery::start(loki::Loki::new(loki), &settings.positions, tasks, stopping));
    }
    if let Some(url) = &settings.otlp {
        feeds.push(delivery::start(otlp::Otlp::new(url), &settings.positions, tasks, stopping));
    }
    let counters: Vec<_> = feeds.iter().map(|feed| feed.counters.clone()).collect();
    let outputs = counters.iter().map(|counters| counters.name).collect::<Vec<_>>().join(", ");
    info!(outputs, selector = settings.label_selector, "logs of nodes are collected");
    let changes = pods::follow(kubernetes, settings, tasks, stopping);
    let supervisor = Supervisor::new(tunnels, feeds, settings.namespaces.clone());
    tasks.spawn(stopping.clone().run_until_cancelled_owned(supervisor.run(changes)));
    counters
}
