//! CloudHub: certificates for nodes (`https`, `certificates`, `register`), their sessions (`sessions`, [`session`],
//! `reading`, `lane`, `progress`, `turns`, `places`), what asks nodes from beside (`unix_socket`), the net below (`comparison`), and what can be seen of them (`feed`, `lag`, [`monitor`]).

mod certificates;
mod comparison;
mod feed;
mod https;
mod lag;
mod lane;
pub mod monitor;
mod places;
mod progress;
mod reading;
mod register;
pub mod session;
mod sessions;
#[cfg(test)]
mod simulation;
mod turns;
mod unix_socket;

use std::net::SocketAddr;
use std::sync::Arc;

use api::cloudcore::CloudHub as Settings;
use link::http_server::{HttpServer, MAX_STREAMS};
use link::tls::{ClientAuth, TlsError, server};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::cloudstream::tunnels::Tunnels;
use crate::conversion::install::{self, Endpoint};
use crate::conversion::webhook::Webhook;
use crate::devicecontroller::DeviceController;
use crate::edgecontroller::downstream::Event;
use crate::edgecontroller::upstream::Upstream;
use crate::kubernetes::{Kubernetes, KubernetesError};
use crate::objectsync::Records;

pub use certificates::Material;
use https::Https;
use monitor::Monitor;
pub(crate) use sessions::{Presence, Sessions};

/// Connections to the certificate endpoint at once; more wait.
const MAX_JOINING: usize = 512;

/// The hub cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// No address to put into the certificate.
    #[error(
        "modules.cloudHub.advertiseAddress is empty: name the addresses under which edge nodes reach this cloudcore"
    )]
    NoAddress,
    /// The certificates cannot be read or made.
    #[error("the hub's certificates cannot be used")]
    Certificates(#[source] certificates::MaterialError),
    /// The certificates cannot be used for TLS.
    #[error("the hub's certificates cannot be used for TLS")]
    Tls(#[from] TlsError),
    /// An address is taken or not ours.
    #[error("cannot listen on {0}: is another cloudcore running, or the address not of this machine?")]
    Listen(SocketAddr, #[source] std::io::Error),
    /// The API refused.
    #[error("the Kubernetes API cannot be used")]
    Kubernetes(#[from] KubernetesError),
}

/// Whom the hub works for.
pub struct Controllers {
    /// Hears of sessions.
    pub events: mpsc::Sender<Event>,
    /// Answers requests of nodes.
    pub upstream: Upstream,
    /// Takes what nodes say of devices.
    pub devices: DeviceController,
    /// Notes what nodes have.
    pub records: Records,
}

/// Finds or makes what cloudcore's servers prove themselves with.
///
/// # Errors
/// Certificates cannot be used, or there is no address to put into them.
pub async fn material(kubernetes: &Kubernetes, settings: &Settings) -> Result<Arc<Material>, HubError> {
    if settings.hosts.is_empty() {
        return Err(HubError::NoAddress);
    }
    Material::load(kubernetes, settings).await.map(Arc::new).map_err(HubError::Certificates)
}

/// The hub.
pub struct CloudHub;

impl CloudHub {
    /// Starts both servers, of the message channel and of certificates; they run until `stopping`. Nodes are asked for `tunnels` then.
    /// Returns where they listen.
    ///
    /// # Errors
    /// Certificates or addresses cannot be used.
    pub async fn start(
        settings: Settings,
        (kubernetes, material): (Kubernetes, Arc<Material>),
        controllers: Controllers,
        (monitor, tunnels): (&Monitor, Option<&Tunnels>),
        tasks: &TaskTracker,
        stopping: &CancellationToken,
    ) -> Result<(SocketAddr, SocketAddr), HubError> {
        let (upstream, events) = (controllers.upstream.clone(), controllers.events.clone());
        let listen =
            async |address: SocketAddr| TcpListener::bind(address).await.map_err(|e| HubError::Listen(address, e));
        let (joining, channel) = (listen(settings.https).await?, listen(settings.websocket).await?);
        let address = |listener: &TcpListener, asked: SocketAddr| listener.local_addr().unwrap_or(asked);
        let (websocket, https) = (address(&channel, settings.websocket), address(&joining, settings.https));

        tasks.spawn(certificates::keep_fresh(
            kubernetes.clone(),
            material.clone(),
            settings.token_refresh,
            stopping.clone(),
        ));
        let alpn: &[&[u8]] = &[b"http/1.1"];
        let tls = server(&material.own, ClientAuth::Requested, alpn)?;
        // The configuration never changes; the sender lives as long as the receiver's copies are asked for.
        let (keep, tls) = watch::channel(tls);
        let conversion = Webhook::new(material.ca.key());
        let endpoint = Endpoint::new(&settings.hosts[0], https.port(), conversion.path(), material.ca.certificate())?;
        tasks.spawn(install::keep(kubernetes.clone(), endpoint, stopping.clone()));
        let validity = settings.certificate_validity;
        let answers = Https { kubernetes, material: material.clone(), validity, conversion };
        let http =
            HttpServer { listener: joining, tls: Some(tls), max_connections: MAX_JOINING, max_streams: MAX_STREAMS };
        let stop = stopping.clone();
        tasks.spawn(async move {
            http.serve(move |request, peer| answers.clone().handle(request, peer), stop).await;
            drop(keep);
        });

        let tls = server(&material.own, ClientAuth::Required(material.ca.certificate().clone()), alpn)?;
        let socket = settings.unix_socket.clone();
        let sessions = Sessions::new(settings, controllers, tasks);
        tasks.spawn(lag::watch(sessions.clone(), upstream, sessions.feed().clone(), stopping.clone()));
        if let Some(socket) = socket {
            tasks.spawn(unix_socket::serve(socket, sessions.clone(), tasks.clone(), stopping.clone()));
        }
        tasks.spawn(comparison::run(sessions.clone(), events, stopping.clone()));
        monitor.serves(sessions.clone());
        if let Some(tunnels) = tunnels {
            tunnels.ask_through(sessions.clone());
        }
        tasks.spawn(sessions.serve(channel, tls, tasks.clone(), stopping.clone()));
        Ok((websocket, https))
    }
}
