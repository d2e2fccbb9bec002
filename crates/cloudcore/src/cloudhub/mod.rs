//! CloudHub: certificates for nodes (`https`, `certificates`, `register`) and their sessions (`sessions`, [`session`],
//! `reading`, `lane`, `turns`).

mod certificates;
mod https;
mod lane;
mod reading;
mod register;
pub mod session;
mod sessions;
mod turns;

use std::net::SocketAddr;
use std::sync::Arc;

use api::cloudcore::CloudHub as Settings;
use link::http_server::HttpServer;
use link::tls::{ClientAuth, TlsError, server};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::Addresses;
use crate::edgecontroller::downstream::Event;
use crate::edgecontroller::upstream::Upstream;
use crate::kubernetes::{Kubernetes, KubernetesError};
use crate::objectsync::Records;

use certificates::Material;
use https::Https;
use sessions::Sessions;

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

/// The hub.
pub struct CloudHub;

impl CloudHub {
    /// Starts both servers; they run until `stopping`.
    ///
    /// # Errors
    /// Certificates or addresses cannot be used.
    pub async fn start(
        settings: Settings,
        kubernetes: Kubernetes,
        events: mpsc::Sender<Event>,
        upstream: Upstream,
        records: Records,
        tasks: &TaskTracker,
        stopping: &CancellationToken,
    ) -> Result<Addresses, HubError> {
        if settings.hosts.is_empty() {
            return Err(HubError::NoAddress);
        }
        let material = Material::load(&kubernetes, &settings).await.map_err(HubError::Certificates)?;
        let material = Arc::new(material);
        let listen =
            async |address: SocketAddr| TcpListener::bind(address).await.map_err(|e| HubError::Listen(address, e));
        let (joining, channel) = (listen(settings.https).await?, listen(settings.websocket).await?);
        let address = |listener: &TcpListener, asked: SocketAddr| listener.local_addr().unwrap_or(asked);
        let addresses =
            Addresses { websocket: address(&channel, settings.websocket), https: address(&joining, settings.https) };

        tasks.spawn(certificates::keep_token_fresh(
            kubernetes.clone(),
            material.clone(),
            settings.token_refresh,
            stopping.clone(),
        ));
        let alpn: &[&[u8]] = &[b"http/1.1"];
        let tls = server(&material.own, ClientAuth::Requested, alpn)?;
        // The configuration never changes; the sender lives as long as the receiver's copies are asked for.
        let (keep, tls) = watch::channel(tls);
        let https = Https { kubernetes, material: material.clone(), validity: settings.certificate_validity };
        let http = HttpServer { listener: joining, tls: Some(tls), max_connections: MAX_JOINING };
        let stop = stopping.clone();
        tasks.spawn(async move {
            http.serve(move |request, peer| https.clone().handle(request, peer), stop).await;
            drop(keep);
        });

        let tls = server(&material.own, ClientAuth::Required(material.ca.certificate().clone()), alpn)?;
        let sessions = Sessions::new(settings, events, upstream, records, tasks);
        tasks.spawn(sessions.serve(channel, tls, tasks.clone(), stopping.clone()));
        Ok(addresses)
    }
}
