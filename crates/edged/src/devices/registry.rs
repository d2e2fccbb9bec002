//! The socket where plugins register.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt};
use std::path::Path;
use std::time::Duration;

use futures_util::stream;
use podlife::devices::is_extended;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use super::plugin::{Client, serve};
use super::proto::registration_server::{Registration, RegistrationServer};
use super::{Devices, proto};

/// Name of the agent's socket.
const SOCKET: &str = "kubelet.sock";
/// The version that is spoken.
const VERSION: &str = "v1beta1";
/// Registrations that wait to be served.
const WAITING: usize = 16;
/// A registration takes one call.
const CALL_LIMIT: Duration = Duration::from_secs(10);
/// Calls of one connection at the same time.
const MAX_CALLS: usize = 8;

struct Registered {
    resource: String,
    registration: u64,
    client: Client,
}

struct Service {
    devices: Devices,
    registered: mpsc::Sender<Registered>,
}

impl Devices {
    /// Takes registrations until cancelled. Sockets of before are removed, by which plugins see that they must register again.
    pub async fn run(self, stopping: CancellationToken) {
        let socket = self.shared.dir.join(SOCKET);
        let listener = match prepare(&self.shared.dir).and_then(|()| UnixListener::bind(&socket)) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::warn!(socket = %socket.display(), %error, "device plugins cannot register; pods run without devices of theirs");
                return stopping.cancelled().await;
            }
        };
        let (registered, mut waiting) = mpsc::channel(WAITING);
        let service = RegistrationServer::new(Service { devices: self.clone(), registered });
        let connections = stream::try_unfold(listener, |listener| async {
            let (connection, _) = listener.accept().await?;
            Ok::<_, io::Error>(Some((connection, listener)))
        });
        let server = Server::builder().timeout(CALL_LIMIT).concurrency_limit_per_connection(MAX_CALLS);
        let server = { server }.add_service(service).serve_with_incoming_shutdown(connections, stopping.cancelled());
        tokio::pin!(server);
        let mut plugins = JoinSet::new();
        loop {
            tokio::select! {
                ended = &mut server => {
                    if let Err(error) = ended {
                        tracing::warn!(%error, "the socket of device plugins is closed");
                    }
                    // Plugins that are there go on.
                    stopping.cancelled().await;
                    break;
                }
                Some(Registered { resource, registration, client }) = waiting.recv() => {
                    plugins.spawn(serve(self.clone(), resource, registration, client));
                }
                Some(_) = plugins.join_next() => {}
                () = stopping.cancelled() => break,
            }
        }
    }
}

#[tonic::async_trait]
impl Registration for Service {
    async fn register(&self, request: Request<proto::RegisterRequest>) -> Result<Response<proto::Empty>, Status> {
        let request = request.into_inner();
        let resource = request.resource_name;
        let refuse = |why: String| {
            tracing::warn!(resource, endpoint = request.endpoint, why, "a device plugin was refused");
            Err(Status::invalid_argument(why))
        };
        if request.version != VERSION {
            return refuse(format!("version {:?} is not supported, the agent speaks {VERSION}", request.version));
        }
        if !is_extended(&resource) {
            return refuse(format!("resource name {resource:?} is not of the form example.com/name, or of Kubernetes"));
        }
        let endpoint = request.endpoint.as_str();
        if endpoint.is_empty() || endpoint == SOCKET || endpoint.starts_with('.') || endpoint.contains(['/', '\0']) {
            return refuse(format!("endpoint {endpoint:?} is not the name of a socket beside {SOCKET}"));
        }
        let client = Client::new(&self.devices.shared.dir.join(endpoint), request.options.unwrap_or_default());
        let Some(registration) = self.devices.state().register(&resource, client.clone()) else {
            return refuse("too many resources are registered on this node".to_owned());
        };
        tracing::info!(resource, endpoint, "a device plugin registered");
        self.devices.save();
        let registered = Registered { resource, registration, client };
        self.registered.send(registered).await.map_err(|_| Status::unavailable("the agent stops"))?;
        Ok(Response::new(proto::Empty {}))
    }
}

fn prepare(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o750).create(dir)?;
    for entry in fs::read_dir(dir)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_socket()) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
