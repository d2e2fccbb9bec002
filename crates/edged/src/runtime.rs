//! The runtime side as the pod worker sees it: one method per step, no CRI types in the signatures.
//!
//! Every method is safe to repeat. Identity lives in labels and annotations, so that a restarted
//! edged finds everything again with [`Runtime::list_pods`].

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{Container, Pod};

use tokio_util::sync::CancellationToken;

use crate::settings::Settings;

/// A call to the runtime that failed.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The socket does not answer; the text names it and says what to check.
    #[error("container runtime at {endpoint} is not reachable; check that it runs and serves CRI v1")]
    Unreachable {
        /// Endpoint as configured.
        endpoint: String,
        /// Cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The runtime answered a call with an error.
    #[error("{call} failed: {message}")]
    Call {
        /// CRI method, `RunPodSandbox`.
        call: &'static str,
        /// The runtime's own words.
        message: String,
    },
    /// A call took longer than its limit.
    #[error("{call} did not answer within {limit:?}")]
    Timeout {
        /// CRI method.
        call: &'static str,
        /// Its limit.
        limit: Duration,
    },
}

/// Why a sandbox or a container was not started: what `kubectl describe pod` shows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct StartError {
    /// Waiting reason (`ErrImagePull`, `CreateContainerConfigError`, …).
    pub reason: &'static str,
    /// Free text.
    pub message: String,
}

/// A request to create and start one container.
pub struct ContainerStart<'a> {
    /// Pod as the API has it.
    pub pod: &'a Pod,
    /// The container, init container or ephemeral container of it.
    pub container: &'a Container,
    /// Sandbox to put it in.
    pub sandbox_id: &'a str,
    /// `metadata.attempt` of that sandbox.
    pub sandbox_attempt: u32,
    /// `metadata.attempt` and the restart count annotation.
    pub restart_count: u32,
    /// IPs of the pod; for the hosts file and `status.podIP`.
    pub pod_ips: &'a [String],
    /// Ends waits that may be long (an image pull); calls that create something are never cut off in the middle.
    pub cancel: &'a CancellationToken,
}

/// Something changed in the runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuntimeEvent {
    /// A sandbox or container of this pod changed its state.
    Pod {
        /// UID label of the pod.
        uid: String,
    },
    /// Events were lost (stream broke, runtime restarted): look at every pod again.
    Resync,
}

/// Whether the runtime can run pods now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeReadiness {
    /// Why the runtime itself is not ready.
    pub runtime_error: Option<String>,
    /// Why pods with their own network cannot start.
    pub network_error: Option<String>,
}

/// Events waiting for the pod side; a burst beyond it becomes one [`RuntimeEvent::Resync`].
pub const RUNTIME_EVENT_QUEUE: usize = 256;

/// The container runtime, images, volumes and logs of this node.
///
/// Methods that the pod worker calls (to be kept in this shape):
/// - `connect(Arc<Settings>, MetaClient, Recorder) -> Runtime` (cheap: connects lazily, reconnects by itself)
/// - `name(&self) -> &str`: runtime name for container ids, `containerd`
/// - `readiness(&self) -> RuntimeReadiness`
/// - `list_pods(&self) -> Result<Vec<ObservedPod>, RuntimeError>`: all sandboxes and containers with identity labels, sorted
/// - `observe(&self, &PodIdentity) -> Result<ObservedPod, RuntimeError>`: of one uid, fresh
/// - `host_ips(&self) -> Vec<String>`: addresses of the node, for `status.hostIP` (detected once, or the settings')
/// - `prepare_pod(&self, &Pod, &CancellationToken) -> Result<(), StartError>`: directories and volumes
/// - `run_sandbox(&self, &Pod, attempt) -> Result<String, StartError>`
/// - `start_container(&self, ContainerStart) -> Result<String, StartError>`: image, config, create, start; emits
///   Pulling, Pulled, Created, Started, Failed
/// - `stop_container(&self, id, grace)`, `remove_container(&self, id)`, `stop_sandbox(&self, id)`, `remove_sandbox(&self, id)
///   -> Result<(), RuntimeError>`; not found is success
/// - `exec(&self, container_id: &str, command: &[String], timeout: Duration) -> Result<(i32, String), RuntimeError>`: exit code
///   and output, for probes; too long is [`RuntimeError::Timeout`]
/// - `clean_up_pod(&self, &PodIdentity) -> Result<(), RuntimeError>`: volumes, directories, logs, image back-off
/// - `events(&self, mpsc::Sender<RuntimeEvent>, CancellationToken)`: runs until cancelled; CRI container events where the
///   runtime has them, else a relist every second while `set_busy(true)`, every ten otherwise
pub struct Runtime {
    #[expect(dead_code, reason = "filled by the runtime side")]
    settings: Arc<Settings>,
}
