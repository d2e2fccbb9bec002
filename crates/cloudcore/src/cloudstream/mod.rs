//! CloudStream: logs, exec, attach, port-forward and metrics of nodes that only dial out.
//!
//! The API server asks as it asks a kubelet ([`server`], port 10003, [`access`] for who may); the request goes through the tunnel that the
//! node keeps ([`accept`], port 10004; [`tunnels`] knows them all), to our own edges as HTTP/2, to Go edges in upstream's frames
//! ([`go_edge`]). [`address`] tells the API server to come here. Programs ask the same of nodes by gRPC on port 10003 ([`grpc`]). Read
//! `tunnels` first.

mod accept;
mod access;
pub mod address;
pub mod collect;
pub mod fleet;
mod go_edge;
pub mod grpc;
mod own_edge;
mod replicas;
mod server;
pub mod tunnels;
mod usage;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use api::cloudcore::CloudStream as Settings;
use http::Request;
use hyper::body::Incoming;
use link::files::read_bounded;
use link::http_server::{HttpServer, MAX_STREAMS};
use link::rustls::pki_types::pem::PemObject;
use link::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use link::tls::{Certificate, ClientAuth, TlsError, server as tls_server};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;

use crate::cloudhub::Material;
use crate::edgecontroller::view::View;
use crate::kubernetes::Kubernetes;

use accept::{Accept, MAX_PASSED_ON};
use access::Access;
use address::Published;
use grpc::Grpc;
use replicas::Replicas;
use server::Server;
use tunnels::Tunnels;

/// Handshakes and refusals of edges at once; a tunnel that is up takes no place.
const MAX_ARRIVING: usize = 512;
/// Connections of API servers at once: each stream of a client has one.
const MAX_CLIENTS: usize = 4096;

/// No certificate or key file is longer.
const MAX_FILE: u64 = 64 << 10;
/// Requests of one of their HTTP/2 connections at once: all followed logs of an API server may share one.
const MAX_CLIENT_STREAMS: u32 = 4096;

/// CloudStream cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// An address is taken or not ours.
    #[error(
        "modules.cloudStream: cannot listen on {0}: is another cloudcore running, or the address not of this machine?"
    )]
    Listen(SocketAddr, #[source] std::io::Error),
    /// One of two files is missing, or holds something else.
    #[error("modules.cloudStream: {0} and {1} are to hold a certificate and its key in PEM: put both there or none")]
    Files(String, String),
    /// The certificates cannot be used for TLS.
    #[error("modules.cloudStream: the certificates cannot be used for TLS")]
    Tls(#[from] TlsError),
}

/// Where it listens, and what of it others use.
pub struct CloudStream {
    /// For API servers.
    pub stream: SocketAddr,
    /// For nodes.
    pub tunnel: SocketAddr,
    /// The nodes' tunnels.
    pub tunnels: Tunnels,
}

/// Starts both servers; they run until `stopping`. `published` gets the address for nodes' status.
///
/// # Errors
/// Addresses or certificates cannot be used.
pub async fn start(
    settings: Settings,
    (kubernetes, view): (Kubernetes, Arc<View>),
    material: &Arc<Material>,
    published: &Published,
    tasks: &TaskTracker,
    stopping: &CancellationToken,
) -> Result<CloudStream, StreamError> {
    let listen = async |address| TcpListener::bind(address).await.map_err(|e| StreamError::Listen(address, e));
    let (streams, arriving) = (listen(settings.stream).await?, listen(settings.tunnel).await?);
    let address = |listener: &TcpListener, asked: SocketAddr| listener.local_addr().unwrap_or(asked);
    let (stream, tunnel) = (address(&streams, settings.stream), address(&arriving, settings.tunnel));
    let tunnels = Tunnels::default();
    let alpn: &[&[u8]] = &[b"http/1.1"];
    let tls = tls_server(&material.own, ClientAuth::Required(material.ca.certificate().clone()), alpn)?;
    let (keep, tls) = watch::channel(tls);
    let accept = Accept {
        tunnels: tunnels.clone(),
        kubernetes: kubernetes.clone(),
        published: published.clone(),
        tasks: tasks.clone(),
        stopping: stopping.clone(),
        passed_on: Arc::new(Semaphore::new(MAX_PASSED_ON)),
    };
    let http =
        HttpServer { listener: arriving, tls: Some(tls), max_connections: MAX_ARRIVING, max_streams: MAX_STREAMS };
    let stop = stopping.clone();
    tasks.spawn(async move {
        http.serve(move |request, peer| accept.clone().handle(request, peer), stop).await;
        drop(keep);
    });

    published.set(&settings.hosts, stream.port(), material.ca.certificate());
    let shared = (kubernetes.clone(), material.clone());
    match Replicas::start(shared, &settings.hosts, tunnel, tasks, stopping).await {
        Some(replicas) => tunnels.look_at(replicas),
        None => info!(
            "beside other cloudcores this one is not found: set modules.cloudStream's tunnel address to one that they reach, and name it first in modules.cloudHub.advertiseAddress"
        ),
    }
    // The embedded Kubernetes believes the hub's.
    let own = if published.is_embedded() { None } else { own_certificate(&settings.files)? };
    let own = own.as_ref().unwrap_or(&material.own);
    let (access, tls) = Access::start(kubernetes.clone(), own, tasks, stopping).await?;
    let answers =
        Server { kubernetes, view, tunnels: tunnels.clone(), access, tasks: tasks.clone(), stopping: stopping.clone() };
    let http =
        HttpServer { listener: streams, tls: Some(tls), max_connections: MAX_CLIENTS, max_streams: MAX_CLIENT_STREAMS };
    let grpc = Grpc::new(answers.clone());
    let stop = stopping.clone();
    let handler = move |request: Request<Incoming>, peer| {
        let (answers, grpc) = (answers.clone(), grpc.clone());
        async move {
            match grpc::is_meant(&request) {
                true => grpc.handle(request, peer).await,
                false => answers.handle(request, peer).await,
            }
        }
    };
    tasks.spawn(http.serve(handler, stop));
    Ok(CloudStream { stream, tunnel, tunnels })
}

/// What API servers that verify kubelets by a CA of their own are shown: an administrator puts it there.
fn own_certificate([certificate, key]: &[PathBuf; 2]) -> Result<Option<Certificate>, StreamError> {
    if !certificate.exists() && !key.exists() {
        return Ok(None);
    }
    let read = |path: &Path| read_bounded(path, MAX_FILE).ok();
    let pair = read(certificate).zip(read(key)).and_then(|(certificate, key)| {
        let certificate = CertificateDer::from_pem_slice(&certificate).ok()?.into_owned();
        Some(Certificate { certificate, key: PrivateKeyDer::from_pem_slice(&key).ok()?.secret_der().to_vec() })
    });
    let shown = |path: &Path| path.display().to_string();
    pair.map(Some).ok_or_else(|| StreamError::Files(shown(certificate), shown(key)))
}
