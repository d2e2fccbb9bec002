//! The client of the container runtime: CRI v1 over a unix socket.
//!
//! It connects at the first call and reconnects by itself. Each call has a deadline of its own (`runtimeRequestTimeout`
//! unless the call may take longer); an error tells an unreachable runtime from one that refuses. Generated code is in [`proto`].

mod calls;
mod error;
mod usage;

/// Messages and clients made from `proto/cri.proto`.
#[allow(missing_docs, clippy::all)]
pub mod proto {
    tonic::include_proto!("runtime.v1");
}

#[allow(missing_docs, clippy::all)]
mod containerd {
    tonic::include_proto!("containerd.services.events.v1");
}

#[allow(missing_docs, clippy::all)]
mod tasks {
    tonic::include_proto!("containerd.services.tasks.v1");
}

use std::sync::Arc;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

pub use containerd::Envelope as ContainerdEvent;
use containerd::events_client::EventsClient;
pub use error::CriError;
use proto::image_service_client::ImageServiceClient;
use proto::runtime_service_client::RuntimeServiceClient;
use tasks::tasks_client::TasksClient;

/// Deadline of a usual call, unless another one is configured.
const CALL_LIMIT: Duration = Duration::from_secs(120);
/// Deadline of calls that only ask how the runtime is: a runtime that hangs must be noticed before the node's lease ends.
pub const STATUS_LIMIT: Duration = Duration::from_secs(10);
/// How long connecting may take; a unix socket answers at once or never.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Largest answer; the list of all containers of a full node has less.
const MAX_ANSWER: usize = 16 << 20;

/// Handle to the runtime. Cloning is cheap.
#[derive(Clone)]
pub struct CriClient {
    endpoint: Arc<str>,
    /// Deadline of a usual call.
    limit: Duration,
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    containerd: EventsClient<Channel>,
    tasks: TasksClient<Channel>,
}

impl CriClient {
    /// A client of these endpoints (`unix:///run/containerd/containerd.sock`); the image endpoint may be empty. Nothing is
    /// connected yet; an endpoint that makes no sense fails at each call.
    pub fn new(runtime_endpoint: &str, image_endpoint: &str) -> Self {
        let runtime = channel(runtime_endpoint);
        let images = if image_endpoint.is_empty() || image_endpoint == runtime_endpoint {
            runtime.clone()
        } else {
            channel(image_endpoint)
        };
        Self {
            endpoint: runtime_endpoint.into(),
            limit: CALL_LIMIT,
            containerd: EventsClient::new(runtime.clone()),
            tasks: TasksClient::new(runtime.clone()),
            runtime: RuntimeServiceClient::new(runtime).max_decoding_message_size(MAX_ANSWER),
            images: ImageServiceClient::new(images).max_decoding_message_size(MAX_ANSWER),
        }
    }

    /// The same with another deadline for usual calls.
    pub fn with_limit(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// The runtime endpoint as configured.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }
}

impl ContainerdEvent {
    /// A container's own process has ended, not a command that was run in it. True also for what cannot be read.
    pub fn is_container_exit(&self) -> bool {
        let value = self.event.as_ref().map(|event| event.value.as_slice()).unwrap_or_default();
        let exit: containerd::TaskExit = prost::Message::decode(value).unwrap_or_default();
        exit.id.is_empty() || exit.id == exit.container_id
    }
}

/// A path without scheme is taken for a unix socket, as the kubelet does.
fn channel(endpoint: &str) -> Channel {
    let uri = if endpoint.starts_with('/') { format!("unix://{endpoint}") } else { endpoint.to_owned() };
    let endpoint = Endpoint::from_shared(uri).unwrap_or_else(|_| Endpoint::from_static("unix:///invalid-endpoint"));
    endpoint.connect_timeout(CONNECT_LIMIT).connect_lazy()
}
