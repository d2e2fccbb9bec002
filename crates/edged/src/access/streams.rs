//! Streams into containers: exec, attach, port-forward.

use std::collections::BTreeMap;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, header, response};
use tokio::sync::OwnedSemaphorePermit;

use super::{Access, AccessError, ContainerName, container};
use crate::cri::proto;
use crate::labels;
use crate::streams::dial::{self, DialError, Io};
use crate::streams::remote::{self, RemoteInput, RemoteOutput, Streams, V4};

/// For a command that runs to its end without streams.
const RUN_LIMIT: Duration = Duration::from_secs(120);

/// How a process in a container is connected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecOptions {
    /// The command and its arguments; not used by attach.
    pub command: Vec<String>,
    /// Which streams.
    pub streams: Streams,
}

/// A connection to the runtime after its upgrade; counts as a stream while it lives.
pub struct Upgraded {
    /// The head of the runtime's answer.
    pub head: response::Parts,
    /// The bytes.
    pub io: Io,
    _place: OwnedSemaphorePermit,
}

/// A process in a container with its streams; counts as a stream while it lives.
pub struct Session {
    /// What goes to it.
    pub input: RemoteInput<Io>,
    /// What comes from it.
    pub output: RemoteOutput<Io>,
    _place: OwnedSemaphorePermit,
}

impl Access {
    /// Starts a command in a running container, with its streams.
    ///
    /// # Errors
    /// There is no such container, it does not run, or the runtime refuses.
    pub async fn exec(&self, name: &ContainerName, options: &ExecOptions) -> Result<Session, AccessError> {
        let url = self.exec_url(name, options).await?;
        self.session(&url, options.streams).await
    }

    /// Connects to the process of a running container.
    ///
    /// # Errors
    /// There is no such container, it does not run, or the runtime refuses.
    pub async fn attach(&self, name: &ContainerName, streams: Streams) -> Result<Session, AccessError> {
        let url = self.attach_url(name, streams).await?;
        self.session(&url, streams).await
    }

    /// Runs a command to its end: exit code and output, both streams together.
    ///
    /// # Errors
    /// There is no such container, it does not run, or the command takes too long.
    pub async fn run_command(&self, name: &ContainerName, command: Vec<String>) -> Result<(i32, String), AccessError> {
        let _place = self.place()?;
        let id = self.running(name).await?;
        Ok(self.runtime.exec(&id, command, RUN_LIMIT).await?)
    }

    /// Address of a stream to a new process.
    pub(crate) async fn exec_url(&self, name: &ContainerName, options: &ExecOptions) -> Result<String, AccessError> {
        let Streams { stdin, stdout, stderr, tty } = options.streams;
        let container_id = self.running(name).await?;
        let cmd = options.command.clone();
        let request = proto::ExecRequest { container_id, cmd, tty, stdin, stdout, stderr: stderr && !tty };
        Ok(self.runtime.exec_url(request).await?)
    }

    /// Address of a stream to a container's own process. Whether that has a terminal says its spec.
    pub(crate) async fn attach_url(&self, name: &ContainerName, streams: Streams) -> Result<String, AccessError> {
        let Streams { stdin, stdout, stderr, tty } = streams;
        let container_id = self.running(name).await?;
        let request = proto::AttachRequest { container_id, stdin, tty, stdout, stderr: stderr && !tty };
        Ok(self.runtime.attach_url(request).await?)
    }

    /// Address of a stream to ports of a pod.
    pub(crate) async fn port_forward_url(
        &self,
        namespace: &str,
        name: &str,
        uid: Option<&str>,
        port: Vec<i32>,
    ) -> Result<String, AccessError> {
        let pod = self.pod(namespace, name, uid).await?;
        let selector = BTreeMap::from([(labels::POD_UID.to_owned(), pod.identity.uid)]);
        let Some(pod_sandbox_id) = self.runtime.ready_sandbox(selector).await? else {
            return Err(AccessError::Refused(format!("pod {name:?} has no running sandbox")));
        };
        let request = proto::PortForwardRequest { pod_sandbox_id, port };
        Ok(self.runtime.port_forward_url(request).await?)
    }

    /// Connects to an address that the runtime gave.
    pub(crate) async fn upgrade(&self, url: &str, headers: HeaderMap) -> Result<Upgraded, AccessError> {
        let place = self.place()?;
        let (head, io) = dial::dial(url, headers).await.map_err(|error| {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            match error {
                DialError::Refused { text, .. } => AccessError::Streaming(text),
                error => AccessError::Streaming(format!("{error}{cause}")),
            }
        })?;
        Ok(Upgraded { head, io, _place: place })
    }

    /// Connects with the remote command protocol.
    pub(crate) async fn session(&self, url: &str, streams: Streams) -> Result<Session, AccessError> {
        let headers = HeaderMap::from_iter([
            (header::CONNECTION, HeaderValue::from_static("Upgrade")),
            (header::UPGRADE, HeaderValue::from_static("SPDY/3.1")),
            (header::HeaderName::from_static("x-stream-protocol-version"), HeaderValue::from_static(V4)),
        ]);
        let upgraded = self.upgrade(url, headers).await?;
        let opened = remote::open(upgraded.io, streams).await;
        let (input, output) = opened.map_err(|error| AccessError::Streaming(error.to_string()))?;
        Ok(Session { input, output, _place: upgraded._place })
    }

    async fn running(&self, name: &ContainerName) -> Result<String, AccessError> {
        let pod = self.pod(&name.namespace, &name.pod, name.uid.as_deref()).await?;
        let found = container::running(&pod.status, &name.container);
        // The kubelet's words, which users know.
        found.ok_or_else(|| AccessError::NotFound(format!("container not found ({:?})", name.container)))
    }
}
