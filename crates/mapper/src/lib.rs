//! Mappers: programs that drive devices of one protocol for edgecore, over the device management interface of KubeEdge v1.23 (crate `dmi`).
//!
//! One writes a [`Driver`], which opens, reads and writes a device, and hands it to [`run`]; docs/mapper.md shows how. Read `registry` first,
//! which has the devices, then `worker`, the task of one device, and `edgecore`, which registers and tells what devices report. [`modbus`] and
//! [`simulated`] are drivers.

mod device;
mod driver;
mod edgecore;
mod lookup;
pub mod modbus;
mod outbox;
mod push;
mod readings;
mod registry;
mod service;
pub mod simulated;
mod slot;
mod value;
mod worker;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use api::mapper::Config;
use dmi::v1beta1::device_mapper_service_server::DeviceMapperServiceServer;
use futures_util::stream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tracing::{info, warn};

pub use device::{Device, Id, Property};
pub use driver::{Driver, Fault};
pub use value::{Kind, Value, ValueError};
pub use worker::CALL_LIMIT;

/// The longest request.
const MAX_REQUEST: usize = 4 << 20;
/// Calls of one connection at once.
const MAX_CALLS: usize = 32;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long edgecore's calls and devices may take to end.
const GRACE: Duration = Duration::from_secs(5);

/// A mapper cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It cannot listen.
    #[error("cannot listen on {}: give grpc_server.socket_path a folder that the mapper may write to, and a name that is free", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The socket broke.
    #[error("the socket of the mapper is closed")]
    Serve(#[source] tonic::transport::Error),
}

/// Drives devices until told to stop. Edgecore need not be there: it is registered with whenever it is.
///
/// # Errors
/// The mapper cannot listen for edgecore.
pub async fn run<D: Driver>(config: Config, driver: D, stopping: CancellationToken) -> Result<(), RunError> {
    config.warnings.iter().for_each(|warning| warn!("{warning}"));
    let path = config.socket.clone();
    let listener = dmi::socket::listen(&path).map_err(|source| RunError::Listen { path: path.clone(), source })?;
    info!(mapper = %config.name, protocol = %config.protocol, socket = %path.display(), "the mapper listens");
    // Whatever ends ends all.
    let stopping = stopping.child_token();
    let _stop = stopping.clone().drop_guard();
    let outbox = Arc::new(outbox::Outbox::default());
    let pusher = Arc::new(push::Pusher::new(stopping.clone()));
    let registry = Arc::new(registry::Registry::new(driver, outbox.clone(), pusher.clone(), stopping.clone()));
    let service = DeviceMapperServiceServer::new(service::Service(registry.clone()));
    let connections = stream::unfold(listener, |listener| async {
        let accepted = listener.accept().await.map(|(connection, _)| connection);
        if accepted.is_err() {
            // There may be no file descriptor left: not at once again.
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
        Some((accepted, listener))
    });
    let server = Server::builder()
        .concurrency_limit_per_connection(MAX_CALLS)
        .max_concurrent_streams(MAX_CALLS as u32)
        .add_service(service.max_decoding_message_size(MAX_REQUEST))
        .serve_with_incoming_shutdown(connections, stopping.clone().cancelled_owned());
    let edgecore = edgecore::Edgecore { config, registry: registry.clone(), outbox };
    let all = async {
        let served = async {
            let served = server.await.map_err(RunError::Serve);
            stopping.cancel();
            served
        };
        let (served, ()) = tokio::join!(served, edgecore.run(&stopping));
        registry.ended().await;
        pusher.ended().await;
        served
    };
    let late = async {
        stopping.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        served = all => served,
        () = late => {
            warn!("not everything has ended in time");
            Ok(())
        }
    }
}

#[cfg(test)]
#[path = "examples_tests.rs"]
mod examples;
