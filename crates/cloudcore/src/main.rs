//! The program `cloudcore`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use api::cloudcore::{Config, DEFAULT_PATH};
use api::document::to_yaml;
use beehive::program::{ConfigOptions, Options, until_told};
use clap::Parser;
use cloudcore::cloudstream::address::{Published, StreamServer};
use cloudcore::kubernetes::Kubernetes;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

const NAME: &str = "cloudcore";

#[derive(Parser)]
#[command(name = NAME, about = "The hub between a Kubernetes API and edge nodes")]
struct Arguments {
    /// The configuration file [default: /etc/kubeedge/config/cloudcore.yaml, or none with --standalone]
    #[arg(long)]
    config: Option<PathBuf>,
    /// Run with the embedded Kubernetes, whose state is in this folder
    #[arg(long, value_name = "DIR")]
    standalone: Option<PathBuf>,
    /// Where the embedded Kubernetes listens
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:6443", requires = "standalone")]
    kubernetes_listen: SocketAddr,
    #[command(flatten)]
    of_config: ConfigOptions,
    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    arguments.options.main(NAME, || run(&arguments))
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let (complete, minimal) = (|| Config::default_document().to_yaml(), || to_yaml(&Config::minimal_document()));
    if arguments.of_config.print(NAME, DEFAULT_PATH, complete, minimal) {
        return Ok(());
    }
    let config = match (&arguments.config, &arguments.standalone) {
        (Some(path), _) => Config::load(path)?,
        (None, None) => Config::load(DEFAULT_PATH.as_ref())?,
        // Loopback unless a file says otherwise.
        (None, Some(dir)) => {
            let text = "modules: {cloudHub: {advertiseAddress: [127.0.0.1], dnsNames: [localhost], websocket: {address: 127.0.0.1}, https: {address: 127.0.0.1}}}";
            Config::parse(text, &dir.join("cloudcore.yaml"))?
        }
    };
    if arguments.of_config.checked(&config.document.warnings) {
        return Ok(());
    }
    beehive::sys::limit_arenas();
    link::tls::install_provider();
    allow_many_files();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let stopping = CancellationToken::new();
    runtime.block_on(until_told(stopping.clone(), serve(arguments, &config, stopping)))
}

/// A node takes an open file, and the usual limit is for programs with a few.
fn allow_many_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, limit = limit.current, "the limit of open files could not be raised");
    }
}

async fn serve(arguments: &Arguments, config: &Config, stopping: CancellationToken) -> anyhow::Result<()> {
    // The API outlives those who use it.
    let api_stopping = CancellationToken::new();
    let (control_plane, kubeconfig) = match &arguments.standalone {
        Some(dir) => {
            let options = controlplane::Options::new(dir.clone(), arguments.kubernetes_listen);
            let plane = controlplane::start(options, api_stopping.clone()).await.context("the embedded Kubernetes")?;
            let kubeconfig = plane.cloudcore_kubeconfig_path().to_path_buf();
            (Some(plane), Some(kubeconfig))
        }
        None => (None, config.kubeconfig()),
    };
    let kubernetes = Kubernetes::connect(kubeconfig.as_deref()).await?;
    let (listening, _) = oneshot::channel();
    let (published, stream_server) = match control_plane {
        Some(_) => Published::embedded(),
        None => (Published::default(), watch::channel(None).1),
    };
    let hub = cloudcore::run(config, kubernetes.clone(), published, listening, stopping);
    tokio::pin!(hub);
    let followed = async {
        tokio::join!(
            follow_renewals(control_plane.as_ref(), &kubernetes),
            tell_gateway(control_plane.as_ref(), stream_server)
        )
    };
    let result = tokio::select! {
        ended = &mut hub => ended,
        _ = followed => hub.await,
    };
    api_stopping.cancel();
    if let Some(plane) = control_plane {
        plane.stopped().await;
    }
    result.map_err(Into::into)
}

/// Tells the embedded Kubernetes where nodes are reached, once that is known.
async fn tell_gateway(
    control_plane: Option<&controlplane::ControlPlane>,
    mut stream_server: watch::Receiver<Option<StreamServer>>,
) {
    let Some(plane) = control_plane else { return };
    while stream_server.changed().await.is_ok() {
        if let Some(StreamServer { host, port, ca }) = stream_server.borrow_and_update().clone() {
            plane.reach_nodes_by(controlplane::Gateway { host, port, ca });
        }
    }
}

/// Uses each client certificate that the embedded Kubernetes issues while both run; without it nothing ends here.
async fn follow_renewals(control_plane: Option<&controlplane::ControlPlane>, kubernetes: &Kubernetes) {
    if let Some(plane) = control_plane {
        let mut renewed = plane.renewed();
        while renewed.changed().await.is_ok() {
            match kubernetes.reconnect(plane.cloudcore_kubeconfig_path()).await {
                Ok(()) => tracing::info!("the renewed client certificate is in use"),
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, "the renewed client certificate cannot be used: start cloudcore anew");
                }
            }
        }
    }
    std::future::pending().await
}
