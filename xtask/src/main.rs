//! The project's own commands: `cargo xtask up | down | test | tidy | bench | gen-kube`.
#![allow(clippy::print_stdout, reason = "a command-line tool answers on standard output")]

mod packages;
mod test;
mod tidy;
mod workspace;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Build, run, test and measure Ferroedge")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run every test, with all that they need
    Test {
        /// Passed on to the test runner, for example a test's name
        filter: Vec<String>,
    },
    /// Check formatting, lints, file lengths and dependencies
    Tidy,
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Test { filter } => test::all(&filter),
        Command::Tidy => tidy::all(),
    }
}
