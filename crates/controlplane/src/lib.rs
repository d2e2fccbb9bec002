//! The embedded Kubernetes: the API of `kubeapi` over SQLite, the scheduler, and the controllers that the workloads of an edge
//! site need: Deployments, ReplicaSets, DaemonSets, StatefulSets with volumes made by hand, and Jobs.
//!
//! It is for evaluation, tests and single sites; whoever talks to it cannot tell it from a larger one. `storage` keeps the
//! objects, `auth` says who may do what, `bootstrap` makes what a new cluster begins with, `kubelet` is the way to the nodes,
//! `controllers` lists who is at work.
//! Every controller has the same shape: a pure part that decides (`plan`, `decide`, `health`, `graph`) with tables as tests,
//! and a `mod.rs` that carries out.

mod auth;
mod bootstrap;
mod claim;
mod client;
mod controllers;
mod customresources;
mod daemonset;
mod deployment;
mod endpoints;
mod events;
#[cfg(test)]
mod fixtures;
mod garbage;
mod informer;
mod job;
mod kubelet;
mod namespace;
mod nodelifecycle;
mod object;
mod podgc;
mod pods;
mod queue;
mod reconcile;
mod replicaset;
mod revisions;
mod scheduler;
mod selector;
mod serviceaccount;
mod statefulset;
mod storage;
mod volumes;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kubeapi::http::Server;
use kubeapi::{Api, ApiError};
use link::http_server::{HttpServer, MAX_STREAMS};
use link::tls::{Certificate, ClientAuth, TlsError};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;

use auth::{Auth, TokenKey};
use bootstrap::pki::{Kubeconfigs, Pki, PkiError};
use bootstrap::rbac::CLOUDCORE_GROUP;
use client::Client;
pub use kubelet::Gateway;
use kubelet::Kubelets;
use storage::SqliteStorage;

/// Connections that are served at once; each watch is one request, clients with HTTP/2 need one connection for all.
const MAX_CONNECTIONS: usize = 4096;
const DATABASE: &str = "kubernetes.db";
const ADMIN_KUBECONFIG: &str = "admin.kubeconfig";
const CLOUDCORE_KUBECONFIG: &str = "cloudcore.kubeconfig";

/// How to start.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where keys, kubeconfigs and the database are; made if missing.
    pub data_dir: PathBuf,
    /// Where the API is served; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Further names and addresses in the serving certificate.
    pub names: Vec<String>,
    /// How long a node may be silent before it counts as unreachable.
    pub node_grace: Duration,
}

impl Options {
    /// The usual settings (a silent node counts as unreachable after 40 s, as upstream).
    pub fn new(data_dir: impl Into<PathBuf>, listen: SocketAddr) -> Self {
        Self { data_dir: data_dir.into(), listen, names: Vec::new(), node_grace: nodelifecycle::health::GRACE }
    }
}

/// The control plane did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The keys or kubeconfigs.
    #[error("the keys of the embedded Kubernetes in {} cannot be used", .0.display())]
    Keys(PathBuf, #[source] PkiError),
    /// The stored key for tokens.
    #[error("the key for ServiceAccount tokens in {} cannot be used", .0.display())]
    TokenKey(PathBuf, #[source] auth::TokenKeyError),
    /// The database.
    #[error("the database of the embedded Kubernetes cannot be opened")]
    Database(#[source] store::OpenError),
    /// The address.
    #[error("cannot listen on {0}: choose another address, or stop what is using it")]
    Listen(SocketAddr, #[source] io::Error),
    /// The TLS configuration.
    #[error("the API server's TLS configuration cannot be made")]
    Tls(#[source] TlsError),
    /// The first objects.
    #[error("the objects that every cluster has could not be made")]
    Bootstrap(#[source] ApiError),
}

/// A running control plane. It ends when the token it was started with is cancelled.
pub struct ControlPlane {
    api: Api,
    address: SocketAddr,
    data_dir: PathBuf,
    admin: PathBuf,
    cloudcore: PathBuf,
    renewed: watch::Receiver<()>,
    gateway: watch::Sender<Option<Gateway>>,
    tasks: TaskTracker,
}

/// Starts the API server and all controllers. The state of an earlier run in the same directory is taken up.
///
/// # Errors
/// The directory, the database or the address cannot be used.
pub async fn start(options: Options, token: CancellationToken) -> Result<ControlPlane, StartError> {
    link::tls::install_provider();
    let dir = options.data_dir.clone();
    let keys = |error| StartError::Keys(dir.clone(), error);
    let pki = Pki::open(&dir).map_err(keys)?;
    let storage = SqliteStorage::open(&dir.join(DATABASE)).map_err(StartError::Database)?;
    let auth = Auth::new(TokenKey::from_der(&pki.token_key).map_err(|e| StartError::TokenKey(dir.clone(), e))?);
    let tasks = TaskTracker::new();
    let kubelet_client = watch::Sender::new(pki.kubelet_client().map_err(keys)?);
    let gateway = watch::Sender::new(None);
    let kubelets = Kubelets::new(kubelet_client.subscribe(), gateway.subscribe(), tasks.clone(), token.clone());
    let api = Api::with_kubelets(storage, auth.clone(), kubelets).map_err(StartError::Bootstrap)?;

    let listener = TcpListener::bind(options.listen).await.map_err(|e| StartError::Listen(options.listen, e))?;
    let address = listener.local_addr().map_err(|e| StartError::Listen(options.listen, e))?;
    let bootstrap = Client::new(api.clone(), "bootstrap");
    bootstrap::ensure(&bootstrap, address, &pki.ca_pem()).await.map_err(StartError::Bootstrap)?;
    let serving = pki.server(address.ip(), &options.names).map_err(keys)?;
    let own = Certificate { certificate: serving.certificate, key: serving.key };
    let clients = ClientAuth::Optional(vec![pki.ca_der().to_vec().into()]);
    let tls = link::tls::server(&own, clients, &[b"h2", b"http/1.1"]).map_err(StartError::Tls)?;

    let server = HttpServer {
        listener,
        tls: Some(watch::Sender::new(tls).subscribe()),
        max_connections: MAX_CONNECTIONS,
        max_streams: MAX_STREAMS,
    };
    let handler = Server { api: api.clone(), identity: auth, address: address.to_string() };
    tasks.spawn(server.serve(move |request, peer| handler.clone().handle(request, peer), token.clone()));
    controllers::start(&api, pki.ca_pem(), options.node_grace, &tasks, &token);

    let (admin, cloudcore) = (dir.join(ADMIN_KUBECONFIG), dir.join(CLOUDCORE_KUBECONFIG));
    let files =
        vec![(admin.clone(), "kubernetes-admin", "system:masters"), (cloudcore.clone(), "cloudcore", CLOUDCORE_GROUP)];
    let kubeconfigs = Kubeconfigs { pki, server: address, files, kubelet_client };
    kubeconfigs.write().map_err(keys)?;
    let (sender, renewed) = watch::channel(());
    tasks.spawn(kubeconfigs.renew(sender, token));
    tasks.close();
    info!(%address, directory = %dir.display(), "the embedded Kubernetes is up");
    Ok(ControlPlane { api, address, data_dir: dir.clone(), admin, cloudcore, renewed, gateway, tasks })
}

impl ControlPlane {
    /// Where the API is served.
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// The API, for callers in the process.
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// The directory of its state.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// The kubeconfig of the administrator (group `system:masters`), mode 0600.
    pub fn kubeconfig_path(&self) -> &Path {
        &self.admin
    }

    /// The kubeconfig that cloudcore uses, mode 0600.
    pub fn cloudcore_kubeconfig_path(&self) -> &Path {
        &self.cloudcore
    }

    /// From now on this server is asked for what is on nodes, wherever they say that they are.
    pub fn reach_nodes_by(&self, gateway: Gateway) {
        self.gateway.send_replace(Some(gateway));
    }

    /// Tells whenever the kubeconfigs were written anew because their client certificates would end.
    pub fn renewed(&self) -> watch::Receiver<()> {
        self.renewed.clone()
    }

    /// Waits until everything has ended after the token was cancelled; everything acknowledged is on disk then.
    pub async fn stopped(self) {
        self.tasks.wait().await;
    }
}
