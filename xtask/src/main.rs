//! The project's own commands: `cargo xtask up | down | test | e2e | tidy | bench | gen-kube`.
#![allow(clippy::print_stdout, reason = "a command-line tool answers on standard output")]

mod bench;
mod gen_kube;
mod packages;
mod stop_signals;
mod terminal;
mod test;
mod thermometer;
mod tidy;
mod up;
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
    /// Run all of Ferroedge on this machine and deploy an example
    Up(up::UpOptions),
    /// Stop what a detached `up` left
    Down(up::DownOptions),
    /// Measure sizes, memory and latencies
    Bench(bench::BenchOptions),
    /// Make the embedded tables of the Kubernetes API from dumps of an API server
    GenKube(gen_kube::GenOptions),
    /// Run every test, with all that they need
    Test {
        /// Passed on to the test runner, for example a test's name
        filter: Vec<String>,
    },
    /// Run the tests against real programs and containers alone
    E2e {
        /// Instead those that take over a minute each, which `test` leaves out
        #[arg(long)]
        slow: bool,
        /// Passed on to the test runner, for example a test's name
        filter: Vec<String>,
    },
    /// Play a thermometer that speaks MQTT; `up` starts one
    Thermometer(thermometer::ThermometerOptions),
    /// Check formatting, lints, file lengths and dependencies
    Tidy,
}

fn main() -> std::process::ExitCode {
    match run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            terminal::complain(format_args!("error: {error:#}"));
            std::process::ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    // Simulated nodes have threads of their own, beside the one that measures.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    match Arguments::parse().command {
        Command::Up(options) => runtime.block_on(up::up(options)),
        Command::Down(options) => runtime.block_on(up::down(options)),
        Command::Thermometer(options) => runtime.block_on(thermometer::run(options)),
        Command::Bench(options) => runtime.block_on(bench::run(options)),
        Command::Test { filter } => test::all(&filter),
        Command::E2e { slow, filter } => test::end_to_end(slow, &filter),
        Command::GenKube(options) => gen_kube::generate(&options),
        Command::Tidy => tidy::all(),
    }
}
