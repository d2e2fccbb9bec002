//! One method per call in use.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Response, Status, Streaming};

use super::error::ignore_missing;
use super::proto::{self, ContainerConfig, ImageSpec, PodSandboxConfig};
use super::{CriClient, CriError, STATUS_LIMIT};

impl CriClient {
    pub(super) async fn call<T>(
        &self,
        call: &'static str,
        limit: Duration,
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, CriError> {
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(CriError::new(self.endpoint(), call, status)),
            Err(_) => Err(CriError::Timeout { call, limit }),
        }
    }

    /// Name and version of the runtime.
    pub async fn version(&self) -> Result<proto::VersionResponse, CriError> {
        let mut client = self.runtime.clone();
        self.call("Version", STATUS_LIMIT, client.version(proto::VersionRequest::default())).await
    }

    /// Conditions `RuntimeReady` and `NetworkReady`, and the handlers with what they can do.
    pub async fn status(&self) -> Result<proto::StatusResponse, CriError> {
        let mut client = self.runtime.clone();
        self.call("Status", STATUS_LIMIT, client.status(proto::StatusRequest::default())).await
    }

    /// Whether the default handler can make mounts read-only with all below them.
    pub async fn recursive_read_only_mounts(&self) -> Result<bool, CriError> {
        let default = self.status().await?.runtime_handlers.into_iter().find(|handler| handler.name.is_empty());
        Ok(default.and_then(|handler| handler.features).is_some_and(|features| features.recursive_read_only_mounts))
    }

    /// Whether containerd's default runtime uses systemd's cgroups, as its configuration says; `None` for other runtimes.
    pub async fn uses_systemd_cgroups(&self) -> Result<Option<bool>, CriError> {
        let mut client = self.runtime.clone();
        let request = proto::StatusRequest { verbose: true };
        let answer = self.call("Status", STATUS_LIMIT, client.status(request)).await?;
        Ok(answer.info.get("config").and_then(|config| systemd_cgroups(config)))
    }

    /// The cgroup driver; `None` when the runtime does not tell (containerd before 2.0).
    pub async fn cgroup_driver(&self) -> Result<Option<proto::CgroupDriver>, CriError> {
        let mut client = self.runtime.clone();
        let request = proto::RuntimeConfigRequest::default();
        match self.call("RuntimeConfig", STATUS_LIMIT, client.runtime_config(request)).await {
            Ok(answer) => Ok(answer.linux.map(|linux| linux.cgroup_driver())),
            Err(error) if error.is_unimplemented() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Creates and starts a sandbox, network included, with a handler of the runtime's configuration (empty for its
    /// default). Returns its id.
    pub async fn run_sandbox(&self, config: PodSandboxConfig, runtime_handler: &str) -> Result<String, CriError> {
        let mut client = self.runtime.clone();
        let request = proto::RunPodSandboxRequest { config: Some(config), runtime_handler: runtime_handler.to_owned() };
        Ok(self.call("RunPodSandbox", 2 * self.limit, client.run_pod_sandbox(request)).await?.pod_sandbox_id)
    }

    /// Stops a sandbox with all its containers by force and releases its network. One that is gone is fine.
    pub async fn stop_sandbox(&self, id: &str) -> Result<(), CriError> {
        let mut client = self.runtime.clone();
        let request = proto::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        ignore_missing(self.call("StopPodSandbox", self.limit, client.stop_pod_sandbox(request)).await)
    }

    /// Removes a sandbox with all its containers. One that is gone is fine.
    pub async fn remove_sandbox(&self, id: &str) -> Result<(), CriError> {
        let mut client = self.runtime.clone();
        let request = proto::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        ignore_missing(self.call("RemovePodSandbox", self.limit, client.remove_pod_sandbox(request)).await)
    }

    /// Status of a sandbox; `None` when it is gone.
    pub async fn sandbox_status(&self, id: &str) -> Result<Option<proto::PodSandboxStatus>, CriError> {
        let mut client = self.runtime.clone();
        let request = proto::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        match self.call("PodSandboxStatus", self.limit, client.pod_sandbox_status(request)).await {
            Ok(answer) => Ok(answer.status),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sandboxes that carry all these labels.
    pub async fn list_sandboxes(&self, labels: BTreeMap<String, String>) -> Result<Vec<proto::PodSandbox>, CriError> {
        let mut client = self.runtime.clone();
        let filter = proto::PodSandboxFilter { id: String::new(), label_selector: labels };
        let request = proto::ListPodSandboxRequest { filter: Some(filter) };
        Ok(self.call("ListPodSandbox", self.limit, client.list_pod_sandbox(request)).await?.items)
    }

    /// Creates a container. Returns its id.
    pub async fn create_container(
        &self,
        sandbox_id: &str,
        config: ContainerConfig,
        sandbox_config: PodSandboxConfig,
    ) -> Result<String, CriError> {
        let mut client = self.runtime.clone();
        let request = proto::CreateContainerRequest {
            pod_sandbox_id: sandbox_id.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        Ok(self.call("CreateContainer", self.limit, client.create_container(request)).await?.container_id)
    }

    /// Starts a created container.
    pub async fn start_container(&self, id: &str) -> Result<(), CriError> {
        let mut client = self.runtime.clone();
        let request = proto::StartContainerRequest { container_id: id.to_owned() };
        self.call("StartContainer", self.limit, client.start_container(request)).await.map(drop)
    }

    /// Stops a container: SIGTERM, after the grace period SIGKILL. One that is gone is fine.
    pub async fn stop_container(&self, id: &str, grace: Duration) -> Result<(), CriError> {
        let mut client = self.runtime.clone();
        let timeout = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
        let request = proto::StopContainerRequest { container_id: id.to_owned(), timeout };
        let limit = self.limit.saturating_add(grace);
        ignore_missing(self.call("StopContainer", limit, client.stop_container(request)).await)
    }

    /// Removes a container. One that is gone is fine.
    pub async fn remove_container(&self, id: &str) -> Result<(), CriError> {
        let mut client = self.runtime.clone();
        let request = proto::RemoveContainerRequest { container_id: id.to_owned() };
        ignore_missing(self.call("RemoveContainer", self.limit, client.remove_container(request)).await)
    }

    /// Containers that carry all these labels.
    pub async fn list_containers(&self, labels: BTreeMap<String, String>) -> Result<Vec<proto::Container>, CriError> {
        let mut client = self.runtime.clone();
        let filter = proto::ContainerFilter { label_selector: labels, ..Default::default() };
        let request = proto::ListContainersRequest { filter: Some(filter) };
        Ok(self.call("ListContainers", self.limit, client.list_containers(request)).await?.containers)
    }

    /// Status of a container; `None` when it is gone.
    pub async fn container_status(&self, id: &str) -> Result<Option<proto::ContainerStatus>, CriError> {
        let mut client = self.runtime.clone();
        let request = proto::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        match self.call("ContainerStatus", self.limit, client.container_status(request)).await {
            Ok(answer) => Ok(answer.status),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Gives a container other limits.
    pub async fn update_resources(&self, id: &str, values: proto::LinuxContainerResources) -> Result<(), CriError> {
        let mut client = self.runtime.clone();
        let request = proto::UpdateContainerResourcesRequest { container_id: id.to_owned(), linux: Some(values) };
        let answer = client.update_container_resources(request);
        self.call("UpdateContainerResources", self.limit, answer).await.map(drop)
    }

    /// Makes the runtime open a container's log file anew, after it was renamed.
    pub async fn reopen_log(&self, id: &str) -> Result<(), CriError> {
        let mut client = self.runtime.clone();
        let request = proto::ReopenContainerLogRequest { container_id: id.to_owned() };
        self.call("ReopenContainerLog", self.limit, client.reopen_container_log(request)).await.map(drop)
    }

    /// Runs a command in a container and waits for its end.
    pub async fn exec(
        &self,
        id: &str,
        command: Vec<String>,
        limit: Duration,
    ) -> Result<proto::ExecSyncResponse, CriError> {
        let mut client = self.runtime.clone();
        let timeout = i64::try_from(limit.as_secs()).unwrap_or(i64::MAX);
        let request = proto::ExecSyncRequest { container_id: id.to_owned(), cmd: command, timeout };
        self.call("ExecSync", self.limit.saturating_add(limit), client.exec_sync(request)).await
    }

    /// Address of a stream to a new process in a container.
    pub async fn exec_url(&self, request: proto::ExecRequest) -> Result<String, CriError> {
        let mut client = self.runtime.clone();
        Ok(self.call("Exec", self.limit, client.exec(request)).await?.url)
    }

    /// Address of a stream to a container's own process.
    pub async fn attach_url(&self, request: proto::AttachRequest) -> Result<String, CriError> {
        let mut client = self.runtime.clone();
        Ok(self.call("Attach", self.limit, client.attach(request)).await?.url)
    }

    /// Address of a stream to ports of a sandbox.
    pub async fn port_forward_url(&self, request: proto::PortForwardRequest) -> Result<String, CriError> {
        let mut client = self.runtime.clone();
        Ok(self.call("PortForward", self.limit, client.port_forward(request)).await?.url)
    }

    /// Events of containers; unimplemented in containerd before 1.7. There may be no answer before the first event.
    pub async fn container_events(&self) -> Result<Streaming<proto::ContainerEventResponse>, CriError> {
        let mut client = self.runtime.clone();
        let answer = client.get_container_events(proto::GetEventsRequest::default()).await;
        answer.map(Response::into_inner).map_err(|status| CriError::new(self.endpoint(), "GetContainerEvents", status))
    }

    /// Ends of processes in the containers of Kubernetes, from containerd's own event service; unimplemented in every other
    /// runtime. There may be no answer before the first event.
    pub async fn containerd_events(&self) -> Result<Streaming<super::containerd::Envelope>, CriError> {
        let mut client = self.containerd.clone();
        let filters = vec![r#"namespace==k8s.io,topic=="/tasks/exit""#.to_owned()];
        let answer = client.subscribe(super::containerd::SubscribeRequest { filters }).await;
        answer.map(Response::into_inner).map_err(|status| CriError::new(self.endpoint(), "Subscribe", status))
    }

    /// Ends what containerd itself has of a container, apart from its CRI service, which may have lost count of it. False when that
    /// has nothing (any more), or the runtime is another one.
    pub async fn end_containerd_task(&self, id: &str) -> bool {
        const PAUSE: Duration = Duration::from_millis(100);
        const TRIES: usize = 20;
        fn of_kubernetes<T>(message: T) -> Request<T> {
            let mut request = Request::new(message);
            request.metadata_mut().insert("containerd-namespace", MetadataValue::from_static("k8s.io"));
            request.set_timeout(STATUS_LIMIT);
            request
        }
        let mut client = self.tasks.clone();
        let kill = super::tasks::KillRequest { container_id: id.to_owned(), signal: 9, all: true };
        // One that has ended already cannot be killed, but deleted.
        let _ = client.kill(of_kubernetes(kill)).await;
        for _ in 0..TRIES {
            let delete = super::tasks::DeleteTaskRequest { container_id: id.to_owned() };
            match client.delete(of_kubernetes(delete)).await {
                Ok(_) => return true,
                // It has not ended yet.
                Err(status) if status.code() == Code::FailedPrecondition => tokio::time::sleep(PAUSE).await,
                Err(_) => return false,
            }
        }
        false
    }

    /// An image on this node; `None` when it is not here.
    pub async fn image(&self, image: &str) -> Result<Option<proto::Image>, CriError> {
        let mut client = self.images.clone();
        let request = proto::ImageStatusRequest { image: Some(spec(image)), verbose: false };
        Ok(self.call("ImageStatus", self.limit, client.image_status(request)).await?.image)
    }

    /// Pulls an image; takes as long as it takes. Returns the reference to run it by.
    pub async fn pull_image(
        &self,
        image: &str,
        annotations: BTreeMap<String, String>,
        auth: Option<proto::AuthConfig>,
        sandbox_config: PodSandboxConfig,
    ) -> Result<String, CriError> {
        let mut client = self.images.clone();
        let image = ImageSpec { annotations, ..spec(image) };
        let request = proto::PullImageRequest { image: Some(image), auth, sandbox_config: Some(sandbox_config) };
        let answer = client.pull_image(request).await;
        answer
            .map(|answer| answer.into_inner().image_ref)
            .map_err(|status| CriError::new(self.endpoint(), "PullImage", status))
    }
}

fn spec(image: &str) -> ImageSpec {
    ImageSpec { image: image.to_owned(), ..Default::default() }
}

/// Reads containerd's configuration, as it shows it in JSON.
fn systemd_cgroups(config: &str) -> Option<bool> {
    let config: serde_json::Value = serde_json::from_str(config).ok()?;
    let containerd = &config["containerd"];
    let name = containerd["defaultRuntimeName"].as_str()?;
    let options = containerd["runtimes"][name].get("options")?;
    Some(options["SystemdCgroup"].as_bool().unwrap_or(false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drivers_of_containerd_1() {
        let config = |options: &str| {
            format!(
                r#"{{"containerd": {{"defaultRuntimeName": "runc", "runtimes": {{"runc": {{"options": {options}}}}}}}}}"#
            )
        };
        assert_eq!(systemd_cgroups(&config(r#"{"SystemdCgroup": true}"#)), Some(true));
        assert_eq!(systemd_cgroups(&config("{}")), Some(false));
        assert_eq!(systemd_cgroups(&config("null")), Some(false));
        for odd in ["", "{}", "[]", r#"{"containerd": 7}"#] {
            assert_eq!(systemd_cgroups(odd), None, "{odd}");
        }
    }
}
