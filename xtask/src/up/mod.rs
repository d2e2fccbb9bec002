//! `cargo xtask up` and `down`: the whole of Ferroedge on this machine.
//!
//! Flow: packages → release binaries → embedded Kubernetes and cloudcore → per edge node a private containerd, `keadm join`,
//! edgecore → node Ready → example Deployment → what the user can do next. The programs' side of it is in
//! `testkit::deployment`; `example` shows the two web servers.

mod device;
mod example;
mod lock;

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};
use clap::Args;
use testkit::deployment::{Binaries, Deployment, Layout, node_name};

use self::lock::Lock;
use crate::packages;
use crate::stop_signals::StopSignals;
use crate::terminal::{complain, say, step};
use crate::workspace::{cargo, root, run, target_dir};

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
    let dir = folder(options.dir.clone());
    let _lock = Lock::take(&Layout::new(&dir)?.lock_file())?;
    let mut deployment = open(&dir)?;
    if let Some(child) = deployment.children.list().first() {
        bail!("{} of an earlier `up` still runs: stop it with {} first", child.name, down_command(&dir));
    }
    build()?;

    let mut signals = StopSignals::catch()?;
    let result = tokio::select! {
        result = start(&options, &mut deployment) => result,
        signal = signals.next() => Err(anyhow!("{signal} while starting")),
    };
    if let (Ok(example), true) = (&result, options.detach) {
        say(format_args!(
            "\nEverything goes on in the background, without anybody who starts again what ends; {} stops it.",
            down_command(&dir)
        ));
        return example.as_ref().map_err(|error| anyhow!("{error:#}")).copied();
    }
    let result = match result {
        Ok(_) => {
            say("\nCtrl-C stops everything that was started here; so does the end of one of the programs.");
            tokio::select! {
                ended = deployment.children.until_ended() => Err(ended),
                _ = signals.next() => Ok(()),
            }
        }
        Err(error) => Err(error),
    };
    say("\nstopping …");
    deployment.stop().await?;
    result
}

/// Ends an `up` that still runs, stops what a detached or crashed one left, and what was started by hand in its folder.
pub async fn down(options: DownOptions) -> Result<()> {
    let dir = folder(options.dir);
    let Some(layout) = Layout::find(&dir)? else {
        say(format_args!("nothing to stop: there is no {}", dir.display()));
        return Ok(());
    };
    let (_lock, was_running) = Lock::take_over(&layout.lock_file())?;
    let mut deployment = open(&dir)?;
    let done = match was_running || !deployment.children.list().is_empty() {
        true => "stopped",
        false => "nothing was running",
    };
    deployment.stop().await?;
    if !options.purge {
        say(format_args!("{done}; the state stays in {}", dir.display()));
    } else if deployment.layout.purge()? {
        say(format_args!("{done}; {} is deleted", dir.display()));
    } else {
        say(format_args!("{done}; the state is deleted, and {} stays for other files in it", dir.display()));
    }
    Ok(())
}

/// The command that stops the deployment in this folder.
pub fn down_command(dir: &Path) -> String {
    match dir == folder(None) {
        true => "`cargo xtask down`".to_owned(),
        false => format!("`cargo xtask down --dir {}`", dir.display()),
    }
}

fn folder(dir: Option<PathBuf>) -> PathBuf {
    dir.unwrap_or_else(|| root().join(".ferroedge"))
}

fn binaries() -> Binaries {
    Binaries::new(target_dir().join("release"))
}

/// The deployment in this folder, of release programs.
pub fn open(dir: &Path) -> Result<Deployment> {
    Deployment::open(dir, binaries())
}

/// Builds the release programs; cargo shows its own progress.
pub fn build() -> Result<()> {
    step("building cloudcore, edgecore and keadm (some minutes the first time)");
    run(cargo().args(["build", "--release", "--package", "cloudcore", "--package", "edgecore", "--package", "keadm"]))
}

/// Starts the programs, then the example. That may fail (the user may have changed it) without an end to all the rest: its
/// result is returned.
async fn start(options: &UpOptions, deployment: &mut Deployment) -> Result<Result<()>> {
    step("starting the embedded Kubernetes and cloudcore");
    let cluster = deployment.start_cloud().await?;
    if options.cloud_only {
        say("\nThe cloud side runs.");
        example::show_files(&deployment.layout, &cluster, false);
        return Ok(Ok(()));
    }
    for index in 1..=options.nodes {
        step(format_args!("starting containerd and edgecore of {}", node_name(index)));
        deployment.start_edge(index).await?;
    }
    for index in 1..=options.nodes {
        let node = node_name(index);
        let took = deployment.wait_ready(&cluster, index).await?;
        step(format_args!("{node} is Ready ({:.1} s)", took.as_secs_f32()));
    }
    let example = example::deploy(deployment, &cluster, options.nodes).await;
    if let Err(error) = &example {
        complain(format_args!("warning: the example does not answer: {error:#}\nAll the rest goes on."));
    }
    if let Err(error) = device::show(deployment, &cluster).await {
        complain(format_args!("warning: the thermometer is not seen: {error:#}\nAll the rest goes on."));
    }
    example::show_files(&deployment.layout, &cluster, true);
    Ok(example)
}
