//! The embedded Kubernetes on its own: `controlplane --data-dir DIR [--listen ADDRESS]`.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use controlplane::Options;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// A small Kubernetes for evaluation, tests and single sites.
#[derive(Parser)]
#[command(name = "controlplane", version)]
struct Args {
    /// Where keys, kubeconfigs and the database are; made if missing.
    #[arg(long)]
    data_dir: PathBuf,
    /// Where the API is served.
    #[arg(long, default_value = "127.0.0.1:6443")]
    listen: SocketAddr,
    /// A further name or address in the serving certificate; may be repeated.
    #[arg(long)]
    name: Vec<String>,
    /// More in the log: 1 decisions, 2 everything.
    #[arg(long, short, default_value_t = 0)]
    v: u8,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let level = match args.v {
        0 => LevelFilter::INFO,
        1 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    // The libraries below speak only when something is wrong.
    let targets = ["controlplane", "kubeapi", "link", "store"].map(|name| (name, level));
    let filter = Targets::new().with_default(LevelFilter::WARN).with_targets(targets);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    tracing_subscriber::registry().with(filter).with(lines).init();
    let token = CancellationToken::new();
    let options = Options { names: args.name, ..Options::new(args.data_dir, args.listen) };
    let plane = controlplane::start(options, token.clone()).await?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    token.cancel();
    plane.stopped().await;
    Ok(())
}
