//! What the container runtime must be like before a node joins, and the end of its pods when a node is reset.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use edged::cri::{CriClient, CriError, proto::CgroupDriver};

/// Where containerd listens by default.
pub const DEFAULT_ENDPOINT: &str = "unix:///run/containerd/containerd.sock";
/// The label by which the runtime knows a pod.
const POD_UID: &str = "io.kubernetes.pod.uid";

/// The runtime is not ready for a node.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// Only unix sockets can be spoken to.
    #[error("the runtime endpoint {0:?} is not of the form unix:///path/of/socket")]
    Endpoint(String),
    /// There is no socket.
    #[error("there is no container runtime at {}: start it (`systemctl start containerd`), or name its socket with --remote-runtime-endpoint", .0.display())]
    NoSocket(PathBuf),
    /// The runtime has no CRI.
    #[error(
        "the runtime at {0} does not speak CRI v1: take \"cri\" out of disabled_plugins in /etc/containerd/config.toml and restart containerd"
    )]
    NoCri(String),
    /// It does not answer.
    #[error("the container runtime at {0} does not answer as it should: look at its log")]
    Call(String, #[source] CriError),
}

/// What a runtime says about itself.
#[derive(Debug)]
pub struct RuntimeFacts {
    /// Name and version.
    pub name: String,
    /// `cgroupfs` or `systemd`, when it tells.
    pub cgroup_driver: Option<&'static str>,
    /// What pods will miss, in its own words.
    pub not_ready: Vec<String>,
}

/// Asks the runtime whether it can run pods.
///
/// # Errors
/// It is not there, or does not speak CRI.
pub async fn check(endpoint: &str) -> Result<RuntimeFacts, RuntimeError> {
    let socket = socket_path(endpoint)?;
    if !socket.exists() {
        return Err(RuntimeError::NoSocket(socket.to_path_buf()));
    }
    let cri = CriClient::new(endpoint, "");
    let failed = |error: CriError| match error {
        error if error.is_unimplemented() => RuntimeError::NoCri(endpoint.to_owned()),
        error => RuntimeError::Call(endpoint.to_owned(), error),
    };
    let version = cri.version().await.map_err(failed)?;
    let conditions = cri.status().await.map_err(failed)?.status.unwrap_or_default().conditions;
    let driver = cri.cgroup_driver().await.map_err(failed)?;
    Ok(RuntimeFacts {
        name: format!("{} {}", version.runtime_name, version.runtime_version),
        cgroup_driver: driver.map(|driver| match driver {
            CgroupDriver::Systemd => "systemd",
            CgroupDriver::Cgroupfs => "cgroupfs",
        }),
        not_ready: conditions
            .into_iter()
            .filter(|condition| !condition.status)
            .map(|condition| format!("{} is false: {}", condition.r#type, condition.message))
            .collect(),
    })
}

/// Stops and removes the pods that have a folder in `pods`, and no others: the runtime may serve somebody else too.
///
/// # Errors
/// The runtime does not answer or cannot remove one of them.
pub async fn remove_pods(endpoint: &str, pods: &Path) -> Result<usize, RuntimeError> {
    let own: BTreeSet<String> = std::fs::read_dir(pods)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    if own.is_empty() || !socket_path(endpoint)?.exists() {
        return Ok(0);
    }
    let cri = CriClient::new(endpoint, "");
    let failed = |error| RuntimeError::Call(endpoint.to_owned(), error);
    let sandboxes = cri.list_sandboxes(BTreeMap::new()).await.map_err(failed)?;
    let mut removed = 0;
    for sandbox in sandboxes.iter().filter(|sandbox| sandbox.labels.get(POD_UID).is_some_and(|uid| own.contains(uid))) {
        cri.stop_sandbox(&sandbox.id).await.map_err(failed)?;
        cri.remove_sandbox(&sandbox.id).await.map_err(failed)?;
        removed += 1;
    }
    Ok(removed)
}

fn socket_path(endpoint: &str) -> Result<&Path, RuntimeError> {
    let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
    if path.starts_with('/') { Ok(Path::new(path)) } else { Err(RuntimeError::Endpoint(endpoint.to_owned())) }
}
