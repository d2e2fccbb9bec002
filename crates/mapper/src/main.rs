//! The program `mapper`: Modbus TCP, or devices that are not there.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use api::mapper::{Config, DEFAULT_PATH};
use beehive::program::{Options, until_told};
use clap::Parser;
use mapper::modbus::Modbus;
use mapper::simulated::Virtual;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

/// How long a lookup of a name may take when everything else has ended.
const LAST_WAIT: Duration = Duration::from_millis(100);

#[derive(Parser)]
#[command(name = "mapper", about = "Drives devices for edgecore", disable_version_flag = true)]
struct Arguments {
    /// The configuration file
    #[arg(long, alias = "config-file", default_value = DEFAULT_PATH)]
    config: PathBuf,
    #[command(flatten)]
    options: Options,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    arguments.options.main("mapper", || run(&arguments))
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = Config::load(&arguments.config)?;
    // One thread for everything that waits. Others only find the addresses of names, and end again: some, for a name server may hang.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(64).build()?;
    let stopping = CancellationToken::new();
    to_the_end(runtime, until_told(stopping.clone(), drive(config, stopping)))
}

/// Does not wait for what hangs on other threads: name servers may.
fn to_the_end<T>(runtime: Runtime, work: impl Future<Output = T>) -> T {
    let result = runtime.block_on(work);
    runtime.shutdown_timeout(LAST_WAIT);
    result
}

async fn drive(config: Config, stopping: CancellationToken) -> anyhow::Result<()> {
    match config.protocol.as_str() {
        "modbus" => mapper::run(config, Modbus, stopping).await?,
        "virtual" => mapper::run(config, Virtual, stopping).await?,
        other => bail!("common.protocol is {other:?}: this mapper speaks \"modbus\" and \"virtual\""),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_lookup_that_hangs_is_not_waited_for() {
        let (end, ended) = mpsc::channel::<()>();
        let (started, has_started) = mpsc::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let (all_ended, has_all_ended) = mpsc::channel();
        let program = std::thread::spawn(move || {
            to_the_end(runtime, async move {
                drop(tokio::task::spawn_blocking(move || {
                    started.send(()).expect("heard");
                    ended.recv()
                }));
                has_started.recv().expect("started");
            });
            all_ended.send(()).expect("heard");
        });
        let in_time = has_all_ended.recv_timeout(Duration::from_secs(30));
        drop(end);
        program.join().expect("no panic");
        in_time.expect("it waits for the lookup");
    }
}
