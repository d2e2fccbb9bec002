//! The program `edgecore`.
#![allow(clippy::print_stdout, reason = "a command-line tool answers on standard output")]

use std::path::PathBuf;
use std::process::ExitCode;

use api::document::to_yaml;
use api::edgecore::{Config, DEFAULT_PATH};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::level_filters::LevelFilter;

#[derive(Parser)]
#[command(name = "edgecore", version, about = "The agent of an edge node", disable_version_flag = true)]
struct Arguments {
    /// The configuration file
    #[arg(long, default_value = DEFAULT_PATH)]
    config: PathBuf,
    /// Print the complete default configuration
    #[arg(long)]
    defaultconfig: bool,
    /// Print the part of the configuration that one has to look at
    #[arg(long)]
    minconfig: bool,
    /// Read the configuration, say what is wrong with it, and end
    #[arg(long)]
    check_config: bool,
    /// Print the version
    #[arg(long)]
    version: bool,
    /// How much to log: 0 information, 2 decisions, 4 everything
    #[arg(short, long, default_value_t = 0)]
    v: u8,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.version {
        println!("edgecore {}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    if arguments.defaultconfig || arguments.minconfig {
        let text = if arguments.minconfig {
            to_yaml(&Config::minimal_document())
        } else {
            Config::default_document().to_yaml()
        };
        print!(
            "# With --{} edgecore prints its configuration\n# of apiVersion edgecore.config.kubeedge.io/v1alpha2.\n# Use it as {DEFAULT_PATH}.\n{text}",
            if arguments.minconfig { "minconfig" } else { "defaultconfig" }
        );
        return ExitCode::SUCCESS;
    }
    log_to_stderr(arguments.v);
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("edgecore: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = Config::load(&arguments.config)?;
    if arguments.check_config {
        config.document.warnings.iter().for_each(|warning| println!("{warning}"));
        println!("the configuration can be used");
        return Ok(());
    }
    beehive::sys::limit_arenas();
    link::tls::install_provider();
    // One thread for everything that waits; files and SQLite have theirs.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(8).build()?;
    runtime.block_on(async {
        let stopping = CancellationToken::new();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let node = edgecore::run(&config, stopping.clone());
        tokio::pin!(node);
        tokio::select! {
            ended = &mut node => return Ok(ended?),
            _ = beehive::sys::keep_small() => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stopping.cancel();
        Ok(node.await?)
    })
}

fn log_to_stderr(verbosity: u8) {
    let level = match verbosity {
        0..=1 => LevelFilter::INFO,
        2..=3 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(level).with_ansi(false).init();
}
