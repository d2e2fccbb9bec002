//! The program `mapper`: Modbus TCP, or devices that are not there.
#![allow(clippy::print_stdout, reason = "a command-line tool answers on standard output")]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use api::mapper::{Config, DEFAULT_PATH};
use clap::Parser;
use mapper::modbus::Modbus;
use mapper::simulated::Virtual;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::level_filters::LevelFilter;

#[derive(Parser)]
#[command(name = "mapper", about = "Drives devices for edgecore", disable_version_flag = true)]
struct Arguments {
    /// The configuration file
    #[arg(long, alias = "config-file", default_value = DEFAULT_PATH)]
    config: PathBuf,
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
        println!("mapper {}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    log_to_stderr(arguments.v);
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mapper: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = Config::load(&arguments.config)?;
    // One thread for everything that waits. Others only find the addresses of names, and end again: some, for a name server may hang.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(64).build()?;
    runtime.block_on(async {
        let stopping = CancellationToken::new();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mapper = drive(config, stopping.clone());
        tokio::pin!(mapper);
        tokio::select! {
            ended = &mut mapper => return ended,
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stopping.cancel();
        mapper.await
    })
}

async fn drive(config: Config, stopping: CancellationToken) -> anyhow::Result<()> {
    match config.protocol.as_str() {
        "modbus" => mapper::run(config, Modbus, stopping).await?,
        "virtual" => mapper::run(config, Virtual, stopping).await?,
        other => bail!("common.protocol is {other:?}: this mapper speaks \"modbus\" and \"virtual\""),
    }
    Ok(())
}

fn log_to_stderr(verbosity: u8) {
    let level = match verbosity {
        0..=1 => LevelFilter::INFO,
        2..=3 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(level).with_ansi(false).init();
}
