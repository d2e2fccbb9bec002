//! The administrator's tool: `gettoken`, `join`, `reset edge` and `version` of KubeEdge's keadm v1.23, and `debug tunnel`.
//!
//! Results go to stdout as plain text, log lines and errors to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 something must
//! be put right first and nothing was changed. Nothing is ever fetched from the Internet. Commands and flags of upstream that this
//! version does not have are refused with a reason ([`refused`]). Read [`cli`] first, then one module per command.

pub mod cli;
pub mod cloud;
pub mod debug;
pub mod gettoken;
pub mod join;
pub mod layout;
pub mod process;
pub mod receipt;
pub mod refused;
pub mod reset;
pub mod runtime;
pub mod script;
pub mod service;
pub mod terminal;
pub mod version;

use std::error::Error as StdError;
use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use cli::{Cli, Command, Debug, Reset};

/// A command did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line makes no sense.
    #[error("{0}")]
    Usage(String),
    /// No token could be had.
    #[error(transparent)]
    GetToken(#[from] gettoken::GetTokenError),
    /// The node did not join.
    #[error(transparent)]
    Join(#[from] join::JoinError),
    /// The way to a node ends somewhere.
    #[error(transparent)]
    Debug(#[from] debug::tunnel::DebugError),
    /// The node was not reset.
    #[error(transparent)]
    Reset(#[from] reset::ResetError),
}

impl Error {
    /// What the process ends with.
    fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Join(error) => error.exit_code(),
            Self::Reset(error) => error.exit_code(),
            Self::GetToken(_) | Self::Debug(_) => 1,
        }
    }
}

/// Runs one command line, program name first.
pub async fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help goes to stdout and is no failure; clap knows which is which.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let level = match cli.v {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        _ => LevelFilter::DEBUG,
    };
    // The libraries are silent: what matters of their troubles is in the error.
    let own = ["keadm", "link", "edged"].map(|name| (name, level));
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    tracing_subscriber::registry().with(lines.with_filter(Targets::new().with_targets(own))).init();
    link::tls::install_provider();
    match execute(cli.command).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            terminal::complain(&format!("error: {}", with_causes(&error)));
            ExitCode::from(error.exit_code())
        }
    }
}

async fn execute(command: Command) -> Result<(), Error> {
    match command {
        Command::Gettoken(args) => gettoken::run(&args).await?,
        Command::Join(args) => join::run(&args).await?,
        Command::Debug(Debug { command: cli::DebugWhat::Tunnel(args) }) => debug::tunnel::run(&args).await?,
        Command::Debug(Debug { command: cli::DebugWhat::Other(words) }) => {
            return Err(Error::Usage(refused::command(&["debug".into()], &words)));
        }
        Command::Reset(Reset { command: None, .. }) => {
            return Err(Error::Usage("say what to reset: `keadm reset edge`".to_owned()));
        }
        Command::Reset(Reset { command: Some(cli::ResetWhat::Edge(args)) }) => reset::run(&args).await?,
        Command::Reset(Reset { command: Some(cli::ResetWhat::Other(words)) }) => {
            return Err(Error::Usage(refused::command(&["reset".into()], &words)));
        }
        Command::Version(args) => terminal::say(&version::text(args.output)),
        Command::Other(words) => return Err(Error::Usage(refused::command(&[], &words))),
    }
    Ok(())
}

/// An error with what caused it, on one line.
fn with_causes(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Some libraries repeat their source in their own words.
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}
