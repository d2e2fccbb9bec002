//! The runtime side as the pod worker sees it: one method per step, no CRI types in the signatures.
//!
//! Every method is safe to repeat. Identity lives in labels and annotations, so that a restarted
//! edged finds everything again with [`Runtime::list_pods`].

mod access;
mod allocatable;
mod cgroups;
mod class;
mod hooks;
mod host;
mod resize;
mod rotation;
mod service;
mod start;
mod watch;

pub use allocatable::has_apparmor;

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::{Container, NodeRuntimeHandler, NodeRuntimeHandlerFeatures, Pod};
use podlife::observed::{ObservedPod, PodIdentity};
use tokio::sync::watch as channel;
use tokio_util::sync::CancellationToken;

use crate::{
    cgroups::{CgroupDriver, Cgroups, detect},
    container::resources::NodeResources,
    cri::{CriClient, proto},
    devices::Devices,
    events::Recorder,
    images::Images,
    logs,
    measures::Measures,
    meta::MetaClient,
    node::facts,
    observe,
    paths::{Paths, check_uid},
    settings::Settings,
    volumes::{self, Volumes},
};

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
    /// A command in a container ran longer than it was given.
    #[error("the command did not end in time")]
    ExecTimeout,
    /// A call took longer than its limit.
    #[error("{call} did not answer within {limit:?}")]
    Timeout {
        /// CRI method.
        call: &'static str,
        /// Its limit.
        limit: Duration,
    },
}

impl RuntimeError {
    fn files(call: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |error| RuntimeError::Call { call, message: error.to_string() }
    }
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
    /// Container whose processes it sees, for an ephemeral one.
    pub target_id: Option<&'a str>,
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

/// Whether the runtime can run pods now, and in which ways.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RuntimeReadiness {
    /// Why the runtime itself is not ready.
    pub runtime_error: Option<String>,
    /// Why pods with their own network cannot start.
    pub network_error: Option<String>,
    /// Its handlers with their features; none before containerd 2.0, absent when it does not answer.
    pub handlers: Option<Vec<NodeRuntimeHandler>>,
}

/// Events waiting for the pod side; a burst beyond it becomes one [`RuntimeEvent::Resync`].
pub const RUNTIME_EVENT_QUEUE: usize = 256;

/// The container runtime, images, volumes and logs of this node.
pub struct Runtime {
    settings: Arc<Settings>,
    cri: CriClient,
    meta: MetaClient,
    recorder: Recorder,
    paths: Paths,
    volumes: Volumes,
    images: Images,
    devices: Devices,
    /// Name and version, once the runtime has answered.
    version: OnceLock<proto::VersionResponse>,
    /// Cgroups with the driver that the runtime reports, or the configured one.
    cgroups: tokio::sync::OnceCell<Cgroups>,
    /// Thousandths of processors that Burstable pods request, by UID.
    burstable: Mutex<HashMap<String, i64>>,
    /// The runtime can make mounts read-only with all below them.
    recursive_read_only: tokio::sync::OnceCell<bool>,
    kubernetes: service::KubernetesService,
    resources: OnceLock<NodeResources>,
    /// Whether pods are being started or stopped, which calls for a closer watch.
    busy: channel::Sender<bool>,
    /// How long things take.
    pub(crate) measures: Measures,
}

impl Runtime {
    /// A runtime at the endpoint of the settings. Nothing is connected yet; it connects at the first call and reconnects by
    /// itself.
    pub fn connect(settings: Arc<Settings>, meta: MetaClient, recorder: Recorder) -> Self {
        let paths = Paths::new(&settings);
        Self {
            cri: CriClient::new(&settings.runtime_endpoint, &settings.image_endpoint)
                .with_limit(settings.runtime_request_timeout),
            volumes: Volumes::new(meta.clone(), paths.clone(), Arc::clone(&settings)),
            images: Images::new(&settings),
            devices: Devices::new(&settings.root_dir),
            version: OnceLock::new(),
            cgroups: tokio::sync::OnceCell::new(),
            burstable: Mutex::default(),
            recursive_read_only: tokio::sync::OnceCell::new(),
            kubernetes: service::KubernetesService::default(),
            resources: OnceLock::new(),
            busy: channel::Sender::new(false),
            measures: Measures::default(),
            settings,
            meta,
            recorder,
            paths,
        }
    }

    /// The runtime's name for container ids, `containerd`; that is also assumed until it has answered once.
    pub fn name(&self) -> &str {
        self.version.get().map_or("containerd", |version| &version.runtime_name)
    }

    /// Name and version as `nodeInfo` has them: `containerd://1.6.20`. Asks once.
    pub async fn version(&self) -> String {
        if self.version.get().is_none()
            && let Ok(mut version) = self.cri.version().await
        {
            // Debian writes `1.6.20~ds1`, Kubernetes shows what comes before.
            version
                .runtime_version
                .truncate(version.runtime_version.find('~').unwrap_or(version.runtime_version.len()));
            drop(self.version.set(version));
        }
        self.version.get().map(|v| format!("{}://{}", v.runtime_name, v.runtime_version)).unwrap_or_default()
    }

    /// Whether pods can be run now, in the words of the kubelet.
    pub async fn readiness(&self) -> RuntimeReadiness {
        let answer = match self.cri.status().await {
            Ok(answer) => answer,
            Err(error) => {
                let cause = error.message();
                let mut text = RuntimeError::from(error).to_string();
                if let Some(hint) = detect::endpoint_hint(&self.settings.runtime_endpoint, &cause) {
                    text = format!("{text}: {hint}");
                }
                return RuntimeReadiness {
                    runtime_error: Some(format!("container runtime is down: {text}")),
                    network_error: None,
                    handlers: None,
                };
            }
        };
        let conditions = answer.status.unwrap_or_default().conditions;
        let failed = |kind: &str, what: &str| {
            let found = conditions.iter().find(|condition| condition.r#type == kind);
            match found {
                Some(condition) if condition.status => None,
                Some(condition) => Some(format!(
                    "{what} not ready: {kind}=false reason:{} message:{}",
                    condition.reason, condition.message
                )),
                None => Some(format!("{what} does not report {kind}")),
            }
        };
        RuntimeReadiness {
            runtime_error: match failed("RuntimeReady", "container runtime") {
                None if self.settings.cgroups_per_qos => detect::problem(self.cgroups().await.driver),
                other => other,
            },
            network_error: failed("NetworkReady", "container runtime network"),
            handlers: Some(answer.runtime_handlers.into_iter().map(handler).collect()),
        }
    }

    /// All pods of which the runtime holds something, with sandboxes and containers newest first.
    ///
    /// # Errors
    /// The runtime did not answer.
    pub async fn list_pods(&self) -> Result<Vec<ObservedPod>, RuntimeError> {
        // The name of the runtime is needed for the first status that is reported.
        self.version().await;
        // And where their cgroups are, for those that nobody owns.
        if self.settings.cgroups_per_qos {
            self.cgroups().await;
        }
        Ok(observe::list_pods(&self.cri).await?)
    }

    /// What the runtime holds of one pod, fresh.
    ///
    /// # Errors
    /// The runtime did not answer.
    pub async fn observe(&self, identity: &PodIdentity) -> Result<ObservedPod, RuntimeError> {
        Ok(observe::observe(&self.cri, identity).await?)
    }

    /// Addresses of the node for `status.hostIP`: the configured one, or that of the default route.
    pub fn host_ips(&self) -> Vec<String> {
        facts::addresses(&self.settings).iter().map(ToString::to_string).collect()
    }

    /// Stops a container: SIGTERM, after the grace period SIGKILL. One that is gone is stopped.
    ///
    /// # Errors
    /// The runtime failed; the container may live.
    pub async fn stop_container(&self, id: &str, grace: Duration) -> Result<(), RuntimeError> {
        Ok(self.cri.stop_container(id, grace).await?)
    }

    /// Removes a container and its log. One that is gone is removed.
    ///
    /// # Errors
    /// The runtime failed, or the container still runs.
    pub async fn remove_container(&self, id: &str) -> Result<(), RuntimeError> {
        let status = self.cri.container_status(id).await?;
        let remove_log = || {
            let Some((status, pod)) = status.as_ref().and_then(|s| Some((s, observe::identity(&s.labels)?))) else {
                return;
            };
            let container = status.labels.get(crate::labels::CONTAINER_NAME).map_or("", String::as_str);
            logs::remove_container_log(&self.paths, status, &pod, container);
        };
        // First, for a log without its container counts as a restart when this agent is killed in between; and again, for a start that
        // a killed agent had asked for may have made one since.
        remove_log();
        let removed = self.cri.remove_container(id).await;
        match status.as_ref().filter(|s| s.state() == proto::ContainerState::ContainerExited) {
            Some(status) if removed.is_err() && self.end_forgotten(status).await => {
                self.cri.remove_container(id).await?
            }
            _ => removed?,
        }
        remove_log();
        Ok(())
    }

    /// containerd 1.6 loses count of a container whose start was asked for by an agent that was killed meanwhile: it takes it for ended,
    /// has a task of it still, and can then neither stop nor remove it.
    async fn end_forgotten(&self, status: &proto::ContainerStatus) -> bool {
        let ended = self.cri.end_containerd_task(&status.id).await;
        if ended {
            tracing::info!(id = status.id, "ended what the runtime still had of a container that it took for ended");
        }
        ended
    }

    /// Stops a sandbox and what runs in it, and releases its network. One that is gone is stopped.
    ///
    /// # Errors
    /// The runtime failed.
    pub async fn stop_sandbox(&self, id: &str) -> Result<(), RuntimeError> {
        Ok(self.cri.stop_sandbox(id).await?)
    }

    /// Removes a sandbox and its containers. One that is gone is removed.
    ///
    /// # Errors
    /// The runtime failed.
    pub async fn remove_sandbox(&self, id: &str) -> Result<(), RuntimeError> {
        Ok(self.cri.remove_sandbox(id).await?)
    }

    /// Runs a command in a container; returns its exit code and what it wrote: all of it, as far as the runtime's answer, of
    /// limited size, holds it.
    ///
    /// # Errors
    /// The runtime failed, or the command took longer than the limit.
    pub async fn exec(&self, id: &str, command: Vec<String>, limit: Duration) -> Result<(i32, String), RuntimeError> {
        let answer = self.cri.exec(id, command, limit).await;
        let answer = answer.map_err(|error| {
            if error.is_deadline_exceeded() { RuntimeError::ExecTimeout } else { RuntimeError::from(error) }
        })?;
        let mut output = answer.stdout;
        output.extend(answer.stderr);
        Ok((answer.exit_code, String::from_utf8_lossy(&output).into_owned()))
    }

    /// Removes what a pod has on this node besides sandboxes and containers: volumes, directories, logs, its cgroup, the
    /// memory of failed pulls. Its containers must be gone. Only the UID need be known.
    ///
    /// # Errors
    /// Something is in use or cannot be removed.
    pub async fn clean_up_pod(&self, identity: &PodIdentity) -> Result<(), RuntimeError> {
        let refused = |message: String| RuntimeError::Call { call: "cleaning up the pod", message };
        check_uid(&identity.uid).map_err(|error| refused(error.to_string()))?;
        self.images.forget_pod(&identity.uid);
        self.volumes.forget(&identity.uid);
        let (paths, uid) = (self.paths.clone(), identity.uid.clone());
        // A volume may hold a great many files.
        let removed = tokio::task::spawn_blocking(move || {
            volumes::tear_down(&paths.pod(&uid)).map_err(RuntimeError::files("removing the pod's directory"))?;
            logs::remove_pod_logs(&paths, &uid).map_err(RuntimeError::files("removing the pod's logs"))?;
            Ok(())
        });
        removed.await.unwrap_or_else(|error| Err(refused(error.to_string())))?;
        self.remove_cgroup(&identity.uid).await;
        self.devices.release(&identity.uid);
        Ok(())
    }

    /// Releases what a pod that has ended for good needs no more: its volumes and its cgroup. Its containers are stopped; their
    /// logs and last words stay.
    ///
    /// # Errors
    /// Something is in use or cannot be removed.
    pub async fn release_pod(&self, identity: &PodIdentity) -> Result<(), RuntimeError> {
        let refused = |message: String| RuntimeError::Call { call: "releasing the pod's volumes", message };
        check_uid(&identity.uid).map_err(|error| refused(error.to_string()))?;
        self.volumes.forget(&identity.uid);
        let (paths, uid) = (self.paths.clone(), identity.uid.clone());
        let removed = tokio::task::spawn_blocking(move || {
            let gone = |dir: &Path| volumes::tear_down(dir).map_err(RuntimeError::files("removing the pod's volumes"));
            gone(&paths.subpaths(&uid))?;
            gone(&paths.volumes(&uid))
        });
        removed.await.unwrap_or_else(|error| Err(refused(error.to_string())))?;
        self.remove_cgroup(&identity.uid).await;
        self.devices.release(&identity.uid);
        Ok(())
    }

    /// How long to wait before a pod's volumes, which are not there, are tried again.
    pub fn volumes_retry(&self, identity: &PodIdentity) -> Duration {
        self.volumes.retry_after(&identity.uid)
    }

    /// The highest restart count of which a log of this container is left.
    pub fn last_log(&self, pod: &PodIdentity, container: &str) -> Option<u32> {
        logs::last_restart(&self.paths.pod_logs(pod).join(container))
    }

    /// UIDs of pods that have a directory or logs here.
    pub fn pods_on_disk(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.paths.pods()).into_iter().flatten().flatten();
        let mut uids: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        uids.extend(self.paths.logged_pods());
        uids.sort_unstable();
        uids.dedup();
        uids
    }

    /// Removes links to container logs that are gone.
    pub fn remove_dangling_links(&self) {
        logs::remove_dangling_links(&self.paths);
    }

    /// Tells that pods are being started or stopped: where the runtime has no events, it is then looked at every second.
    pub fn set_busy(&self, busy: bool) {
        self.busy.send_if_modified(|old| std::mem::replace(old, busy) != busy);
    }

    /// When containers were made from images, since it was asked last.
    pub(crate) fn image_uses(&self) -> HashMap<String, Instant> {
        self.images.take_uses()
    }

    /// The devices of plugins.
    pub(crate) fn devices(&self) -> &Devices {
        &self.devices
    }

    /// The client behind this runtime, for who only looks.
    pub(crate) fn cri(&self) -> &CriClient {
        &self.cri
    }

    /// Where the files of pods are.
    pub(crate) fn paths(&self) -> &Paths {
        &self.paths
    }

    fn resources(&self) -> &NodeResources {
        self.resources.get_or_init(|| {
            let mut resources = facts::Machine::read(&self.settings.root_dir).reserving(&self.settings).resources();
            resources.no_cpu_quota = !self.settings.cpu_cfs_quota;
            resources.pids_limit = self.settings.pod_pids_limit;
            resources.single_process_oom_kill = self.settings.single_process_oom_kill;
            resources.least_oom_score = host::least_oom_score(&self.settings.runtime_endpoint);
            resources
        })
    }

    fn host_dns(&self) -> proto::DnsConfig {
        crate::dns::host(&self.settings.resolv_conf)
    }

    /// Whether mounts can be made read-only with all below them; asked once.
    async fn recursive_read_only(&self) -> bool {
        let ask = async { self.cri.recursive_read_only_mounts().await.map_err(drop) };
        self.recursive_read_only.get_or_try_init(|| ask).await.copied().unwrap_or(false)
    }
}

fn handler(handler: proto::RuntimeHandler) -> NodeRuntimeHandler {
    let features = handler.features.unwrap_or_default();
    NodeRuntimeHandler {
        name: Some(handler.name),
        features: Some(NodeRuntimeHandlerFeatures {
            recursive_read_only_mounts: Some(features.recursive_read_only_mounts),
            user_namespaces: Some(features.user_namespaces),
        }),
    }
}
