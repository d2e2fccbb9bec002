//! `cargo xtask up` and `down`: the whole of Ferroedge on this machine.
//!
//! Flow: packages → release binaries → embedded Kubernetes and cloudcore → per edge node a private containerd, `keadm join`,
//! edgecore → node Ready → example Deployment → what the user can do next. The programs' side of it is in
//! `testkit::deployment`; `example` deploys and shows the two web servers.

mod example;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use testkit::deployment::{Binaries, Children, Deployment, node_name};
use tokio::signal::unix::{SignalKind, signal};

use crate::packages;
use crate::workspace::{cargo, root, run, target_dir};

/// How often the running programs are looked at while `up` stays in the foreground.
const WATCH: Duration = Duration::from_secs(1);

/// Options of `up`.
#[derive(Args)]
pub struct UpOptions {
    /// Leave everything running and return; `down` stops it
    #[arg(long)]
    pub detach: bool,
    /// How many edge nodes to run, each with its own edgecore and containerd
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=20))]
    pub nodes: u8,
    /// Start the embedded Kubernetes and cloudcore only
    #[arg(long)]
    pub cloud_only: bool,
    /// Where the state lives [default: .ferroedge in the project]
    #[arg(long)]
    pub dir: Option<PathBuf>,
}

/// Options of `down`.
#[derive(Args)]
pub struct DownOptions {
    /// Where the state lives [default: .ferroedge in the project]
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Delete the state too: the cluster's objects, certificates, images and logs
    #[arg(long)]
    pub purge: bool,
}

/// Starts everything, shows the example, and waits for Ctrl-C unless detached.
pub async fn up(options: UpOptions) -> Result<()> {
    if !options.cloud_only {
        if !rustix::process::geteuid().is_root() {
            bail!("an edge node runs containers, which needs root: run as root, or use --cloud-only");
        }
        packages::ensure()?;
    }
    let mut deployment = open(options.dir.clone())?;
    if let Some(child) = deployment.children.list().first() {
        bail!("{} of an earlier `up` still runs: stop it with `cargo xtask down` first", child.name);
    }
    build()?;

    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let result = tokio::select! {
        result = start(&options, &mut deployment) => result,
        _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted while starting")),
        _ = terminate.recv() => Err(anyhow::anyhow!("terminated while starting")),
    };
    if result.is_ok() && options.detach {
        println!("\nEverything goes on in the background; `cargo xtask down` stops it.");
        return Ok(());
    }
    let result = match result {
        Ok(()) => {
            println!("\nCtrl-C stops everything that was started here.");
            tokio::select! {
                ended = any_ended(&deployment.children) => Err(ended),
                _ = interrupt.recv() => Ok(()),
                _ = terminate.recv() => Ok(()),
            }
        }
        error => error,
    };
    println!("\nstopping …");
    deployment.stop().await?;
    result
}

/// Stops what a detached or crashed `up` left.
pub async fn down(options: DownOptions) -> Result<()> {
    let mut deployment = open(options.dir)?;
    deployment.stop().await?;
    let dir = deployment.layout.dir();
    if options.purge {
        std::fs::remove_dir_all(dir).with_context(|| dir.display().to_string())?;
        println!("stopped, and {} deleted", dir.display());
    } else {
        println!("stopped; the state stays in {}", dir.display());
    }
    Ok(())
}

/// The deployment in this folder (default: `.ferroedge` in the project), of release programs.
pub fn open(dir: Option<PathBuf>) -> Result<Deployment> {
    let binaries = Binaries::new(target_dir().join("release"));
    Deployment::open(dir.unwrap_or_else(|| root().join(".ferroedge")), binaries)
}

/// Builds the release programs; cargo shows its own progress.
pub fn build() -> Result<()> {
    step("building cloudcore, edgecore and keadm (some minutes the first time)");
    run(cargo().args(["build", "--release", "--package", "cloudcore", "--package", "edgecore", "--package", "keadm"]))
}

async fn start(options: &UpOptions, deployment: &mut Deployment) -> Result<()> {
    step("starting the embedded Kubernetes and cloudcore");
    let cluster = deployment.start_cloud().await?;
    if options.cloud_only {
        println!("\nThe cloud side runs.");
        example::show_files(&deployment.layout, &cluster);
        return Ok(());
    }
    for index in 1..=options.nodes {
        step(&format!("starting containerd and edgecore of {}", node_name(index)));
        deployment.start_edge(index).await?;
    }
    for index in 1..=options.nodes {
        let node = node_name(index);
        let took = deployment.wait_ready(&cluster, index).await?;
        step(&format!("{node} is Ready ({:.1} s)", took.as_secs_f32()));
    }
    example::deploy(&cluster).await?;
    example::show(&cluster).await?;
    example::show_files(&deployment.layout, &cluster);
    Ok(())
}

async fn any_ended(children: &Children) -> anyhow::Error {
    loop {
        if let Some(child) = children.ended() {
            return anyhow::anyhow!("{} ended by itself; its last words are in {}", child.name, child.log.display());
        }
        tokio::time::sleep(WATCH).await;
    }
}

/// One line of progress.
fn step(text: &str) {
    println!("• {text}");
}
