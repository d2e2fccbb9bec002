//! `cloudcore`: the hub between a Kubernetes API and the edge nodes.
//!
//! [`cloudhub`] issues certificates and holds a session per node, [`edgecontroller`] decides what each node must have and
//! carries out what nodes ask for, [`devicecontroller`] does so for devices, [`conversion`] serves old clients their version of them, [`kubernetes`] is the way to the API, [`objectsync`] remembers in it what each node has.
//! [`cloudstream`] reaches into nodes: logs, exec and the like. Nothing
//! else is kept: a restart loses nothing. Flow of a change: `kubernetes::reflector` → `edgecontroller::downstream` → session's queue →
//! node → acknowledgement → `objectsync`. Flow of a request: session → `edgecontroller::upstream` → API → answer.

pub mod cloudhub;
pub mod cloudstream;
pub mod conversion;
pub mod devicecontroller;
pub mod edgecontroller;
pub mod kubernetes;
pub mod objectsync;

use std::net::SocketAddr;
use std::sync::Arc;

use api::cloudcore::Config;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use cloudhub::monitor::Monitor;
use cloudhub::{CloudHub, Controllers, HubError};
use cloudstream::StreamError;
use cloudstream::address::Published;
use devicecontroller::DeviceController;
use devicecontroller::downstream::{DEVICE, MODEL};
use edgecontroller::downstream::{self, Event};
use edgecontroller::upstream::Upstream;
use kubernetes::{Kubernetes, KubernetesError};

/// Events that wait for the controller.
const EVENTS: usize = 1024;
/// How long tasks may take to end.
const GRACE: std::time::Duration = std::time::Duration::from_secs(5);

/// cloudcore cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The Kubernetes API cannot be used.
    #[error(transparent)]
    Kubernetes(#[from] KubernetesError),
    /// The hub cannot serve.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// CloudStream cannot serve.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

/// Where the servers listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The message channel.
    pub websocket: SocketAddr,
    /// The certificate endpoint.
    pub https: SocketAddr,
    /// The stream server, and the one of nodes' stream tunnels; `None` when they are switched off.
    pub streams: Option<(SocketAddr, SocketAddr)>,
    /// Metrics and health; `None` when its address cannot be used.
    pub monitor: Option<SocketAddr>,
}

/// Serves until `stopping` is cancelled; tells on `listening` where, once it does. The API server learns from `published` where nodes are
/// reached.
///
/// # Errors
/// The API cannot be reached, or the servers cannot be started.
pub async fn run(
    config: &Config,
    kubernetes: Kubernetes,
    published: Published,
    listening: oneshot::Sender<Addresses>,
    stopping: CancellationToken,
) -> Result<(), StartError> {
    for warning in &config.document.warnings {
        warn!(warning, "configuration");
    }
    for module in config.missing_modules() {
        warn!(module, "this module is enabled in the configuration, but not part of this version; it does not run");
    }
    let settings = config.cloud_hub();
    if !settings.authorization {
        warn!(
            "authorization is off or only debugged in the configuration: upstream's meaning of that is not offered, and it stays on"
        );
    }
    let tasks = TaskTracker::new();
    let monitor = Monitor::default();
    let monitor_address = match config.monitor() {
        Some(address) => monitor.start(address, &tasks, &stopping).await,
        None => None,
    };
    let (events, incoming) = mpsc::channel::<Event>(EVENTS);
    let records = objectsync::start(kubernetes.clone(), &tasks, &stopping);
    let view = Arc::new(edgecontroller::view::View::default());
    downstream::start(&kubernetes, &view, records.clone(), events.clone(), incoming, &tasks, &stopping);
    match config.has_device_controller() {
        true => edgecontroller::devices::follow(&kubernetes, &view, &events, &tasks, &stopping),
        false => [DEVICE, MODEL].into_iter().for_each(|kind| view.versions.set_absent(kind, true)),
    }
    let material = cloudhub::material(&kubernetes, &settings).await?;
    let mut tunnels = None;
    let streams = match config.cloud_stream() {
        Some(settings) => {
            let api = (kubernetes.clone(), view.clone());
            let streams = cloudstream::start(settings, api, &material, &published, &tasks, &stopping).await?;
            info!(stream = %streams.stream, tunnel = %streams.tunnel, "logs, exec and the like of nodes are served");
            monitor.has_fleet(streams.tunnels.clone());
            if let Some(collect) = config.collect() {
                let tunnels = streams.tunnels.clone();
                monitor.collects(cloudstream::collect::start(&collect, kubernetes.clone(), tunnels, &tasks, &stopping));
            }
            tunnels = Some(streams.tunnels);
            Some((streams.stream, streams.tunnel))
        }
        None => None,
    };
    let upstream = Upstream::new(kubernetes.clone(), view.clone(), published);
    let devices = DeviceController::start(kubernetes.clone(), view, &tasks, &stopping);
    let controllers = Controllers { events, upstream, devices, records };
    let (websocket, https) =
        CloudHub::start(settings, (kubernetes, material), controllers, (&monitor, tunnels.as_ref()), &tasks, &stopping)
            .await?;
    info!(%websocket, %https, "cloudcore serves");
    // A caller that does not wait is no fault.
    let _ = listening.send(Addresses { websocket, https, streams, monitor: monitor_address });
    stopping.cancelled().await;
    tasks.close();
    if tokio::time::timeout(GRACE, tasks.wait()).await.is_err() {
        warn!("tasks did not end in time and are dropped");
    }
    Ok(())
}
