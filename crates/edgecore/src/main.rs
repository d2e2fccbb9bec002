//! The program `edgecore`.

use std::path::PathBuf;
use std::process::ExitCode;

use api::document::to_yaml;
use api::edgecore::{Config, DEFAULT_PATH};
use beehive::program::{ConfigOptions, Options, until_told};
use clap::Parser;
use tokio_util::sync::CancellationToken;

const NAME: &str = "edgecore";

#[derive(Parser)]
#[command(name = NAME, version, about = "The agent of an edge node", disable_version_flag = true)]
struct Arguments {
    /// The configuration file
    #[arg(long, default_value = DEFAULT_PATH)]
    config: PathBuf,
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
    let config = Config::load(&arguments.config)?;
    if arguments.of_config.checked(&config.document.warnings) {
        return Ok(());
    }
    beehive::sys::limit_arenas();
    link::tls::install_provider();
    // One thread for everything that waits; files and SQLite have theirs.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(8).build()?;
    let stopping = CancellationToken::new();
    runtime.block_on(until_told(stopping.clone(), async { Ok(edgecore::run(&config, stopping).await?) }))
}
