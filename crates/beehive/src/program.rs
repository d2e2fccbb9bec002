//! What the programs have in common from their first line to their last: options, the log, how a failure is told, and what ends them.
#![allow(clippy::print_stdout, reason = "a command-line tool answers on standard output")]

use std::fmt::Display;
use std::io;
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::level_filters::LevelFilter;

use crate::sys;

/// Options that each program has.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Print the version
    #[arg(long)]
    version: bool,
    /// How much to log: 0 information, 2 decisions, 4 everything
    #[arg(short, long, default_value_t = 0)]
    v: u8,
}

/// Options of programs with one of KubeEdge's configuration files.
#[derive(Debug, clap::Args)]
pub struct ConfigOptions {
    /// Print the complete default configuration
    #[arg(long)]
    defaultconfig: bool,
    /// Print the part of the configuration that one has to look at
    #[arg(long)]
    minconfig: bool,
    /// Read the configuration, say what is wrong with it, and end
    #[arg(long)]
    check_config: bool,
}

impl Options {
    /// The program of this name: logs to standard error, does its `work`, and says why that failed.
    pub fn main<E: Display>(&self, name: &str, work: impl FnOnce() -> Result<(), E>) -> ExitCode {
        if self.version {
            println!("{name} {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        let level = match self.v {
            0..=1 => LevelFilter::INFO,
            2..=3 => LevelFilter::DEBUG,
            _ => LevelFilter::TRACE,
        };
        tracing_subscriber::fmt().with_writer(io::stderr).with_max_level(level).with_ansi(false).init();
        match work() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{name}: {error:#}");
                ExitCode::FAILURE
            }
        }
    }
}

impl ConfigOptions {
    /// Prints the `complete` or the `minimal` configuration of the program of this name, if that was asked for. It is used as `path`.
    pub fn print(
        &self,
        name: &str,
        path: &str,
        complete: impl FnOnce() -> String,
        minimal: impl FnOnce() -> String,
    ) -> bool {
        let (flag, text) = match self {
            Self { minconfig: true, .. } => ("minconfig", minimal()),
            Self { defaultconfig: true, .. } => ("defaultconfig", complete()),
            _ => return false,
        };
        print!(
            "# With --{flag} {name} prints its configuration\n# of apiVersion {name}.config.kubeedge.io/v1alpha2.\n# Use it as {path}.\n{text}"
        );
        true
    }

    /// Says that a configuration can be used, and with which `warnings`, if that was asked for.
    pub fn checked(&self, warnings: &[String]) -> bool {
        if self.check_config {
            warnings.iter().for_each(|warning| println!("{warning}"));
            println!("the configuration can be used");
        }
        self.check_config
    }
}

/// Works until the work ends by itself, or SIGTERM or SIGINT come: then `stopping` tells it to end, and it ends in its own time.
/// Freed memory goes back to the system meanwhile.
///
/// # Errors
/// Those of the work, or that signals cannot be heard.
pub async fn until_told<T, E: From<io::Error>>(
    stopping: CancellationToken,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::pin!(work);
    tokio::select! {
        ended = &mut work => return ended,
        _ = sys::keep_small() => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    stopping.cancel();
    work.await
}
