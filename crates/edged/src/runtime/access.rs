//! What is asked of the runtime for logs and streams.

use std::collections::BTreeMap;

use super::{Runtime, RuntimeError};
use crate::cri::proto::{self, ContainerState, PodSandboxState};

impl Runtime {
    /// Whether a container runs; false when it is gone.
    ///
    /// # Errors
    /// The runtime did not answer.
    pub async fn is_running(&self, id: &str) -> Result<bool, RuntimeError> {
        let status = self.cri.container_status(id).await?;
        Ok(status.is_some_and(|status| status.state() == ContainerState::ContainerRunning))
    }

    /// The cgroup driver in force, as the configuration writes it.
    pub async fn cgroup_driver(&self) -> &'static str {
        self.cgroups().await.driver.name()
    }

    /// Where the runtime writes a container's log; `None` when the container is gone.
    ///
    /// # Errors
    /// The runtime did not answer.
    pub async fn log_path(&self, id: &str) -> Result<Option<String>, RuntimeError> {
        let status = self.cri.container_status(id).await?;
        Ok(status.map(|status| status.log_path).filter(|path| !path.is_empty()))
    }

    /// The newest sandbox with these labels that is ready.
    ///
    /// # Errors
    /// The runtime did not answer.
    pub async fn ready_sandbox(&self, selector: BTreeMap<String, String>) -> Result<Option<String>, RuntimeError> {
        let sandboxes = self.cri.list_sandboxes(selector).await?.into_iter();
        let ready = sandboxes.filter(|sandbox| sandbox.state() == PodSandboxState::SandboxReady);
        Ok(ready.max_by_key(|sandbox| sandbox.created_at).map(|sandbox| sandbox.id))
    }

    /// Address of a stream to a new process.
    ///
    /// # Errors
    /// The runtime refused.
    pub async fn exec_url(&self, request: proto::ExecRequest) -> Result<String, RuntimeError> {
        Ok(self.cri.exec_url(request).await?)
    }

    /// Address of a stream to a container's own process.
    ///
    /// # Errors
    /// The runtime refused.
    pub async fn attach_url(&self, request: proto::AttachRequest) -> Result<String, RuntimeError> {
        Ok(self.cri.attach_url(request).await?)
    }

    /// Address of a stream to ports of a sandbox.
    ///
    /// # Errors
    /// The runtime refused.
    pub async fn port_forward_url(&self, request: proto::PortForwardRequest) -> Result<String, RuntimeError> {
        Ok(self.cri.port_forward_url(request).await?)
    }
}
