//! One plugin: the list of its devices as long as it is there, and the calls of its service.

use std::path::Path;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

use super::proto::device_plugin_client::DevicePluginClient;
use super::{Devices, proto};

/// How long a plugin may take to answer (Kubernetes: for PreStartContainer).
const LIMIT: Duration = Duration::from_secs(30);
/// How long connecting may take; a unix socket answers at once or never.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// After this time without its plugin a resource is gone from the node (Kubernetes).
const GRACE: Duration = Duration::from_secs(300);

/// A call of a plugin failed.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum PluginError {
    #[error("{call} of the device plugin failed: {message}")]
    Refused { call: &'static str, message: String },
    #[error("{0} of the device plugin did not answer within {limit} s", limit = LIMIT.as_secs())]
    Timeout(&'static str),
    #[error("Allocate of the device plugin answered for {0} containers instead of one")]
    Answers(usize),
}

/// The client of a plugin. Cloning is cheap.
#[derive(Clone)]
pub(super) struct Client {
    inner: DevicePluginClient<Channel>,
    options: proto::DevicePluginOptions,
}

impl Client {
    /// Of the plugin at this socket; nothing is connected yet.
    pub(super) fn new(socket: &Path, options: proto::DevicePluginOptions) -> Self {
        let uri = format!("unix://{}", socket.display());
        let endpoint = Endpoint::from_shared(uri).unwrap_or_else(|_| Endpoint::from_static("unix:///invalid-endpoint"));
        Self { inner: DevicePluginClient::new(endpoint.connect_timeout(CONNECT_LIMIT).connect_lazy()), options }
    }

    #[cfg(test)]
    pub(super) fn unreachable() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
        let _entered = runtime.enter();
        Self::new(Path::new("/nowhere"), proto::DevicePluginOptions::default())
    }

    async fn call<T>(
        call: &'static str,
        answer: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, PluginError> {
        match tokio::time::timeout(LIMIT, answer).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(PluginError::Refused { call, message: status.message().to_owned() }),
            Err(_) => Err(PluginError::Timeout(call)),
        }
    }

    /// What a container needs to use these devices.
    pub(super) async fn allocate(&self, devices: &[String]) -> Result<proto::ContainerAllocateResponse, PluginError> {
        let mut client = self.inner.clone();
        let container = proto::ContainerAllocateRequest { devices_ids: devices.to_vec() };
        let request = proto::AllocateRequest { container_requests: vec![container] };
        let mut answers = Self::call("Allocate", client.allocate(request)).await?.container_responses;
        match (answers.len(), answers.pop()) {
            (1, Some(answer)) => Ok(answer),
            (count, _) => Err(PluginError::Answers(count)),
        }
    }

    /// Which devices the plugin would rather give; none when it has no wishes or says nothing of use.
    pub(super) async fn preferred(&self, may: &[String], must: &[String], count: usize) -> Vec<String> {
        if !self.options.get_preferred_allocation_available {
            return Vec::new();
        }
        let mut client = self.inner.clone();
        let container = proto::ContainerPreferredAllocationRequest {
            available_device_i_ds: may.to_vec(),
            must_include_device_i_ds: must.to_vec(),
            allocation_size: i32::try_from(count).unwrap_or(i32::MAX),
        };
        let request = proto::PreferredAllocationRequest { container_requests: vec![container] };
        match Self::call("GetPreferredAllocation", client.get_preferred_allocation(request)).await {
            Ok(mut answer) => answer.container_responses.pop().map(|answer| answer.device_i_ds).unwrap_or_default(),
            Err(error) => {
                tracing::debug!(%error, "a device plugin has no wishes");
                Vec::new()
            }
        }
    }

    /// Tells the plugin that a container with these devices starts, if it wants to know.
    pub(super) async fn pre_start(&self, devices: &[String]) -> Result<(), PluginError> {
        if !self.options.pre_start_required {
            return Ok(());
        }
        let mut client = self.inner.clone();
        let request = proto::PreStartContainerRequest { devices_ids: devices.to_vec() };
        Self::call("PreStartContainer", client.pre_start_container(request)).await.map(drop)
    }

    /// Follows the list of devices until the plugin ends; why it did.
    async fn follow(&self, mut listed: impl FnMut(Vec<proto::Device>) -> bool) -> String {
        let mut client = self.inner.clone();
        let opened = Self::call("ListAndWatch", client.list_and_watch(proto::Empty {})).await;
        let mut lists = match opened {
            Ok(lists) => lists,
            Err(error) => return error.to_string(),
        };
        loop {
            match lists.message().await {
                Ok(Some(list)) => {
                    if !listed(list.devices) {
                        return "another one has registered".to_owned();
                    }
                }
                Ok(None) => return "it ended its list".to_owned(),
                Err(status) => return status.message().to_owned(),
            }
        }
    }
}

/// Serves one registration to its end.
pub(super) async fn serve(devices: Devices, resource: String, registration: u64, client: Client) {
    let why = client
        .follow(|list| {
            let count = list.len();
            let counts = devices.state().list(&resource, registration, list);
            if counts {
                tracing::info!(resource, devices = count, "a device plugin told its devices");
                devices.tell();
            }
            counts
        })
        .await;
    if !devices.state().lost(&resource, registration) {
        return;
    }
    tracing::warn!(resource, why, "a device plugin is gone; its devices are given to no further pod");
    devices.tell();
    tokio::time::sleep(GRACE).await;
    if devices.state().forget(&resource, registration) {
        tracing::info!(resource, "the device plugin did not come back; the node has no such devices any more");
        devices.tell();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_resource_without_its_plugin_is_gone_after_five_minutes() {
        let dir = tempfile::tempdir().expect("dir");
        let devices = Devices::new(dir.path());
        let client = Client::new(&dir.path().join("gone.sock"), proto::DevicePluginOptions::default());
        let registration = devices.state().register("e.com/d", client.clone()).expect("room");
        let healthy = proto::Device { id: "a".into(), health: "Healthy".into() };
        assert!(devices.state().list("e.com/d", registration, vec![healthy]));
        let mut changes = devices.changes();
        let mut serving = tokio::task::JoinSet::new();
        serving.spawn(serve(devices.clone(), "e.com/d".to_owned(), registration, client));
        changes.changed().await.expect("told");
        let supply = |capacity| super::super::Supply { capacity, allocatable: 0 };
        assert_eq!(devices.supply()["e.com/d"], supply(1), "at once");
        let began = tokio::time::Instant::now();
        serving.join_next().await.expect("one").expect("ends");
        assert_eq!(devices.supply()["e.com/d"], supply(0));
        assert!(began.elapsed() >= GRACE, "{:?}", began.elapsed());
    }
}
