//! The gRPC half of the fake runtime: sandboxes and containers.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, async_trait};

use super::Shared;
use super::world::{CrashPoint, State, World, not_found};
use crate::cri::{self as proto, runtime_service_server::RuntimeService};

#[derive(Clone)]
pub(super) struct Service {
    pub shared: Arc<Shared>,
    stop: CancellationToken,
}

/// Calls that say nothing about what the agent does.
const QUIET: [&str; 11] = [
    "Version",
    "Status",
    "RuntimeConfig",
    "ListPodSandbox",
    "ListContainers",
    "PodSandboxStatus",
    "ContainerStatus",
    "GetContainerEvents",
    "ListContainerStats",
    "ListImages",
    "ImageFsInfo",
];

/// Calls that a trap counts.
const TRAPPED: [&str; 13] = [
    "RunPodSandbox",
    "StopPodSandbox",
    "RemovePodSandbox",
    "CreateContainer",
    "StartContainer",
    "StopContainer",
    "RemoveContainer",
    "ListPodSandbox",
    "ListContainers",
    "PodSandboxStatus",
    "ContainerStatus",
    "ImageStatus",
    "PullImage",
];

/// How much later.
const LATE: Duration = Duration::from_millis(100);

impl Service {
    pub fn new(shared: Arc<Shared>, stop: CancellationToken) -> Self {
        Self { shared, stop }
    }

    /// Records the call, waits while it hangs, fails if it is to fail.
    pub async fn enter(&self, call: &'static str) -> Result<(), Status> {
        {
            let mut world = self.shared.world();
            *world.counts.entry(call.to_owned()).or_default() += 1;
            if !QUIET.contains(&call) {
                world.calls.push(call.to_owned());
            }
        }
        let trapped = if TRAPPED.contains(&call) { self.shared.world().trap(call) } else { None };
        self.shared.changed.notify_waiters();
        if trapped == Some(CrashPoint::Before) {
            return self.never().await;
        }
        if self.shared.world().hanging_once.remove(call) {
            return self.never().await;
        }
        loop {
            let mut changed = std::pin::pin!(self.shared.changed.notified());
            changed.as_mut().enable();
            if !self.shared.world().hanging.contains(call) {
                break;
            }
            tokio::select! {
                () = changed => {}
                () = self.stop.cancelled() => return Err(Status::unavailable("stopping")),
            }
        }
        let fault = self.shared.world().faults.get_mut(call).and_then(std::collections::VecDeque::pop_front);
        fault.map_or(Ok(()), |fault| Err(Status::new(fault.code, fault.message)))
    }

    /// Hangs if this call is trapped behind its effect.
    pub async fn leave(&self, call: &'static str) -> Result<(), Status> {
        {
            let mut world = self.shared.world();
            if world.caught != Some((call, CrashPoint::After)) {
                return Ok(());
            }
            (world.caught, world.sprung) = (None, true);
        }
        self.shared.changed.notify_waiters();
        self.never().await
    }

    /// Lets the call take effect by itself if it is trapped so; it then has no answer.
    async fn later(&self, call: &'static str, effect: impl FnOnce(&mut World) + Send + 'static) -> Result<(), Status> {
        {
            let mut world = self.shared.world();
            if world.caught != Some((call, CrashPoint::Late)) {
                return Ok(());
            }
            (world.caught, world.sprung) = (None, true);
        }
        self.shared.changed.notify_waiters();
        let shared = self.shared.clone();
        #[expect(clippy::disallowed_methods, reason = "outlives its caller on purpose, and ends by itself")]
        tokio::spawn(async move {
            tokio::time::sleep(LATE).await;
            effect(&mut shared.world());
            shared.publish(None);
        });
        self.never().await
    }

    async fn never<T>(&self) -> Result<T, Status> {
        self.stop.cancelled().await;
        Err(Status::unavailable("stopping"))
    }

    async fn stop(&self, id: &str, timeout: i64) {
        let (running, ignores) = {
            let world = self.shared.world();
            let Some(container) = world.containers.get(id) else { return };
            (container.state == State::Running, world.ignore_term.contains(container.name()))
        };
        if !running {
            return;
        }
        let code = if ignores || timeout == 0 { 137 } else { 143 };
        if ignores {
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(timeout.unsigned_abs())) => {}
                () = self.stop.cancelled() => return,
            }
        }
        let event = self.shared.world().stop(id, code);
        self.shared.publish(event);
    }
}

fn matches(labels: &BTreeMap<String, String>, selector: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[async_trait]
impl RuntimeService for Service {
    type GetContainerEventsStream = Pin<Box<dyn Stream<Item = Result<proto::ContainerEventResponse, Status>> + Send>>;

    async fn version(&self, _: Request<proto::VersionRequest>) -> Result<Response<proto::VersionResponse>, Status> {
        self.enter("Version").await?;
        Ok(Response::new(proto::VersionResponse {
            version: "0.1.0".into(),
            runtime_name: "fake".into(),
            runtime_version: "1.0.0".into(),
            runtime_api_version: "v1".into(),
        }))
    }

    async fn status(&self, _: Request<proto::StatusRequest>) -> Result<Response<proto::StatusResponse>, Status> {
        self.enter("Status").await?;
        let world = self.shared.world();
        let condition = |kind: &str, reason: &str, error: &Option<String>| proto::RuntimeCondition {
            r#type: kind.into(),
            status: error.is_none(),
            reason: if error.is_some() { reason.into() } else { String::new() },
            message: error.clone().unwrap_or_default(),
        };
        let conditions = vec![
            condition("RuntimeReady", "RuntimeNotReady", &world.runtime_error),
            condition("NetworkReady", "NetworkPluginNotReady", &world.network_error),
        ];
        Ok(Response::new(proto::StatusResponse {
            status: Some(proto::RuntimeStatus { conditions }),
            runtime_handlers: world.handlers.clone(),
            ..Default::default()
        }))
    }

    async fn runtime_config(
        &self,
        _: Request<proto::RuntimeConfigRequest>,
    ) -> Result<Response<proto::RuntimeConfigResponse>, Status> {
        self.enter("RuntimeConfig").await?;
        Err(Status::unimplemented("unknown method RuntimeConfig"))
    }

    async fn run_pod_sandbox(
        &self,
        request: Request<proto::RunPodSandboxRequest>,
    ) -> Result<Response<proto::RunPodSandboxResponse>, Status> {
        self.enter("RunPodSandbox").await?;
        let config = request.into_inner().config.unwrap_or_default();
        let late = config.clone();
        self.later("RunPodSandbox", |world| drop(world.run_sandbox(late))).await?;
        let pod_sandbox_id = self.shared.world().run_sandbox(config)?;
        self.shared.publish(None);
        self.leave("RunPodSandbox").await?;
        Ok(Response::new(proto::RunPodSandboxResponse { pod_sandbox_id }))
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<proto::StopPodSandboxRequest>,
    ) -> Result<Response<proto::StopPodSandboxResponse>, Status> {
        self.enter("StopPodSandbox").await?;
        self.shared.world().stop_sandbox(&request.into_inner().pod_sandbox_id);
        self.shared.publish(None);
        self.leave("StopPodSandbox").await?;
        Ok(Response::new(proto::StopPodSandboxResponse {}))
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<proto::RemovePodSandboxRequest>,
    ) -> Result<Response<proto::RemovePodSandboxResponse>, Status> {
        self.enter("RemovePodSandbox").await?;
        self.shared.world().remove_sandbox(&request.into_inner().pod_sandbox_id);
        self.shared.publish(None);
        self.leave("RemovePodSandbox").await?;
        Ok(Response::new(proto::RemovePodSandboxResponse {}))
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<proto::PodSandboxStatusRequest>,
    ) -> Result<Response<proto::PodSandboxStatusResponse>, Status> {
        self.enter("PodSandboxStatus").await?;
        let id = request.into_inner().pod_sandbox_id;
        let world = self.shared.world();
        let sandbox = world.sandboxes.get(&id).ok_or_else(|| not_found("sandbox", &id))?;
        Ok(Response::new(proto::PodSandboxStatusResponse { status: Some(sandbox.status()) }))
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<proto::ListPodSandboxRequest>,
    ) -> Result<Response<proto::ListPodSandboxResponse>, Status> {
        self.enter("ListPodSandbox").await?;
        let filter = request.into_inner().filter.unwrap_or_default();
        let mut world = self.shared.world();
        if world.is_list_empty() {
            return Ok(Response::new(proto::ListPodSandboxResponse::default()));
        }
        let found = world.sandboxes.values().filter(|s| filter.id.is_empty() || s.id == filter.id);
        let found = found.filter(|s| matches(&s.config.labels, &filter.label_selector));
        let mut items: Vec<_> = found.map(|s| s.item()).collect();
        if let Some(ghost) = items.first().cloned().filter(|_| world.ghosts) {
            items.push(proto::PodSandbox { id: "ghost".into(), ..ghost });
            items.push(proto::PodSandbox::default());
        }
        Ok(Response::new(proto::ListPodSandboxResponse { items }))
    }

    async fn create_container(
        &self,
        request: Request<proto::CreateContainerRequest>,
    ) -> Result<Response<proto::CreateContainerResponse>, Status> {
        self.enter("CreateContainer").await?;
        let request = request.into_inner();
        let late = request.clone();
        self.later("CreateContainer", |world| drop(world.create_container(late))).await?;
        let container_id = self.shared.world().create_container(request)?;
        self.shared.publish(None);
        self.leave("CreateContainer").await?;
        Ok(Response::new(proto::CreateContainerResponse { container_id }))
    }

    async fn start_container(
        &self,
        request: Request<proto::StartContainerRequest>,
    ) -> Result<Response<proto::StartContainerResponse>, Status> {
        self.enter("StartContainer").await?;
        let id = request.into_inner().container_id;
        let late = id.clone();
        self.later("StartContainer", move |world| drop(world.start_container(&late))).await?;
        let event = self.shared.world().start_container(&id)?;
        self.shared.publish(Some(event));
        self.leave("StartContainer").await?;
        Ok(Response::new(proto::StartContainerResponse {}))
    }

    async fn stop_container(
        &self,
        request: Request<proto::StopContainerRequest>,
    ) -> Result<Response<proto::StopContainerResponse>, Status> {
        self.enter("StopContainer").await?;
        let request = request.into_inner();
        if !self.shared.world().containers.contains_key(&request.container_id) {
            return Err(not_found("container", &request.container_id));
        }
        self.stop(&request.container_id, request.timeout).await;
        self.leave("StopContainer").await?;
        Ok(Response::new(proto::StopContainerResponse {}))
    }

    async fn remove_container(
        &self,
        request: Request<proto::RemoveContainerRequest>,
    ) -> Result<Response<proto::RemoveContainerResponse>, Status> {
        self.enter("RemoveContainer").await?;
        self.shared.world().containers.remove(&request.into_inner().container_id);
        self.shared.publish(None);
        self.leave("RemoveContainer").await?;
        Ok(Response::new(proto::RemoveContainerResponse {}))
    }

    async fn list_containers(
        &self,
        request: Request<proto::ListContainersRequest>,
    ) -> Result<Response<proto::ListContainersResponse>, Status> {
        self.enter("ListContainers").await?;
        let filter = request.into_inner().filter.unwrap_or_default();
        let mut world = self.shared.world();
        if world.is_list_empty() {
            return Ok(Response::new(proto::ListContainersResponse::default()));
        }
        let found = world.containers.values().filter(|c| filter.id.is_empty() || c.id == filter.id);
        let found = found.filter(|c| filter.pod_sandbox_id.is_empty() || c.sandbox_id == filter.pod_sandbox_id);
        let found = found.filter(|c| matches(&c.config.labels, &filter.label_selector));
        let mut containers: Vec<_> = found.map(|c| c.item()).collect();
        if let Some(ghost) = containers.first().cloned().filter(|_| world.ghosts) {
            containers.push(proto::Container { id: "ghost".into(), created_at: -1, ..ghost });
            containers.push(proto::Container::default());
        }
        Ok(Response::new(proto::ListContainersResponse { containers }))
    }

    async fn container_status(
        &self,
        request: Request<proto::ContainerStatusRequest>,
    ) -> Result<Response<proto::ContainerStatusResponse>, Status> {
        self.enter("ContainerStatus").await?;
        let id = request.into_inner().container_id;
        let world = self.shared.world();
        let container = world.containers.get(&id).ok_or_else(|| not_found("container", &id))?;
        Ok(Response::new(proto::ContainerStatusResponse { status: Some(container.status()) }))
    }

    async fn update_container_resources(
        &self,
        request: Request<proto::UpdateContainerResourcesRequest>,
    ) -> Result<Response<proto::UpdateContainerResourcesResponse>, Status> {
        self.enter("UpdateContainerResources").await?;
        let request = request.into_inner();
        {
            let mut world = self.shared.world();
            let container = world.containers.get_mut(&request.container_id);
            let container = container.ok_or_else(|| not_found("container", &request.container_id))?;
            container.config.linux.get_or_insert_default().resources = request.linux;
        }
        self.leave("UpdateContainerResources").await?;
        Ok(Response::new(proto::UpdateContainerResourcesResponse {}))
    }

    async fn reopen_container_log(
        &self,
        _: Request<proto::ReopenContainerLogRequest>,
    ) -> Result<Response<proto::ReopenContainerLogResponse>, Status> {
        self.enter("ReopenContainerLog").await?;
        Ok(Response::new(proto::ReopenContainerLogResponse {}))
    }

    async fn exec_sync(
        &self,
        request: Request<proto::ExecSyncRequest>,
    ) -> Result<Response<proto::ExecSyncResponse>, Status> {
        self.enter("ExecSync").await?;
        let id = request.into_inner().container_id;
        let world = self.shared.world();
        let container = world.containers.get(&id).ok_or_else(|| not_found("container", &id))?;
        let (exit_code, stdout) = world.exec.get(container.name()).cloned().unwrap_or_default();
        Ok(Response::new(proto::ExecSyncResponse { stdout: stdout.into_bytes(), stderr: Vec::new(), exit_code }))
    }

    async fn list_container_stats(
        &self,
        _: Request<proto::ListContainerStatsRequest>,
    ) -> Result<Response<proto::ListContainerStatsResponse>, Status> {
        self.enter("ListContainerStats").await?;
        Ok(Response::new(proto::ListContainerStatsResponse::default()))
    }

    async fn list_pod_sandbox_stats(
        &self,
        _: Request<proto::ListPodSandboxStatsRequest>,
    ) -> Result<Response<proto::ListPodSandboxStatsResponse>, Status> {
        Err(Status::unimplemented("unknown method ListPodSandboxStats"))
    }

    async fn exec(&self, _: Request<proto::ExecRequest>) -> Result<Response<proto::ExecResponse>, Status> {
        Err(Status::unimplemented("no streams in memory"))
    }

    async fn attach(&self, _: Request<proto::AttachRequest>) -> Result<Response<proto::AttachResponse>, Status> {
        Err(Status::unimplemented("no streams in memory"))
    }

    async fn port_forward(
        &self,
        _: Request<proto::PortForwardRequest>,
    ) -> Result<Response<proto::PortForwardResponse>, Status> {
        Err(Status::unimplemented("no streams in memory"))
    }

    async fn get_container_events(
        &self,
        _: Request<proto::GetEventsRequest>,
    ) -> Result<Response<Self::GetContainerEventsStream>, Status> {
        self.enter("GetContainerEvents").await?;
        if !self.shared.world().events_enabled {
            return Err(Status::unimplemented("unknown method GetContainerEvents"));
        }
        let mut events = self.shared.events.subscribe();
        let stop = self.stop.clone();
        let lost = |_| Status::data_loss("events were lost");
        // Servers written in Go send nothing at all before the first event.
        let first = tokio::select! {
            event = events.recv() => event.map_err(lost)?,
            () = stop.cancelled() => return Err(Status::unavailable("the runtime stops")),
        };
        let later = futures_util::stream::unfold((events, stop), move |(mut events, stop)| async move {
            tokio::select! {
                event = events.recv() => Some((event.map_err(lost), (events, stop))),
                () = stop.cancelled() => None,
            }
        });
        let stream = futures_util::StreamExt::chain(futures_util::stream::iter([Ok(first)]), later);
        Ok(Response::new(Box::pin(stream)))
    }
}
