//! The program `edgesim`: puts simulated nodes on a cloudcore and tells every few seconds how many are connected.
#![allow(clippy::print_stdout, reason = "a command-line tool answers on standard output")]

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use edgesim::{Behaviour, Cloud, Fleet};

/// How often it tells.
const TELL: Duration = Duration::from_secs(5);

#[derive(Parser)]
#[command(name = "edgesim", version, about = "Simulated edge nodes for a cloudcore")]
struct Arguments {
    /// The message channel, IP:port
    #[arg(long)]
    websocket: SocketAddr,
    /// The certificate endpoint, IP:port
    #[arg(long)]
    https: SocketAddr,
    /// The join token, as `keadm gettoken` prints it
    #[arg(long, env = "EDGESIM_TOKEN", hide_env_values = true)]
    token: String,
    /// How many nodes: sim-0, sim-1, …
    #[arg(long, default_value_t = 100)]
    nodes: usize,
    /// Seconds between renewals of each node's lease; without it nodes renew none
    #[arg(long)]
    lease: Option<u64>,
    /// Seconds between two values of each device that is bound to a node; without it devices say nothing
    #[arg(long)]
    report: Option<u64>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    link::tls::install_provider();
    let cloud = Cloud { websocket: arguments.websocket, https: arguments.https };
    let names = (0..arguments.nodes).map(|number| format!("sim-{number}"));
    let mut fleet = Fleet::join(cloud, &arguments.token, names).await?;
    println!("{} nodes have certificates", fleet.len());
    fleet.start(Behaviour { lease: arguments.lease.map(Duration::from_secs), ..Behaviour::default() }, None);
    fleet.measure_every(arguments.report.map(Duration::from_secs));
    loop {
        tokio::time::sleep(TELL).await;
        println!("{} connected, {} with everything", fleet.connected(), fleet.synced());
        if arguments.report.is_some() {
            println!("{} devices, of {} the latest value is not confirmed", fleet.devices(), fleet.untold());
        }
    }
}
