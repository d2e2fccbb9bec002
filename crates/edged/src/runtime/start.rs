//! Starting: volumes, the sandbox, and containers in the order image, configuration, creation, start.

use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use podlife::{observed::PodIdentity, qos::qos_class, spec};
use tokio_util::sync::CancellationToken;

use super::{ContainerStart, Runtime, StartError};
use crate::{
    container::{
        self, ContainerInput,
        env::{EnvObjects, environment},
        fields::FieldSource,
        hosts::HostsFile,
        mounts::{MountInput, mounts},
        resources,
        security::{self, SecurityInput},
    },
    cri::proto,
    dns,
    events::EventType,
    images::{ImageRequest, ImageTools},
    logs,
    paths::{check_identity, check_pod},
    sandbox::{self, SandboxInput},
};

/// A runtime may notice a little later than its containers that a sandbox has ended.
const SANDBOX_SETTLES: Duration = Duration::from_millis(500);

impl StartError {
    fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// Identity of a pod whose names may be used for directories.
fn identity(pod: &Pod) -> Result<PodIdentity, StartError> {
    let identity =
        spec::identity(pod).ok_or_else(|| StartError::new("InvalidPod", "the pod has no namespace, name or uid"))?;
    let checked = check_identity(&identity).and_then(|()| check_pod(pod));
    checked.map_err(|error| StartError::new("InvalidPod", error.to_string()))?;
    Ok(identity)
}

/// A pod's directory, which holds its Secrets: for root alone, and its group to look into.
fn make_private_dir(path: &Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o750).create(path)
}

impl Runtime {
    /// Makes directories and volumes; repeated calls bring changed ConfigMaps and Secrets into mounted volumes.
    ///
    /// # Errors
    /// Reason `FailedMount`: a volume is not there (yet). The events are recorded already.
    pub async fn prepare_pod(&self, pod: &Pod, cancel: &CancellationToken) -> Result<(), StartError> {
        let identity = identity(pod).inspect_err(|error| {
            self.recorder.pod(pod, EventType::Warning, error.reason, error.message.clone());
        })?;
        let failed = |what: &str, error: std::io::Error| {
            let text = format!("error making pod data directories: {what}: {error}");
            self.recorder.pod(pod, EventType::Warning, "FailedToMakePodDataDirectories", text.clone());
            StartError::new("FailedMount", text)
        };
        let dir = self.paths.pod(&identity.uid);
        make_private_dir(&dir).map_err(|error| failed(&dir.display().to_string(), error))?;
        let log_dir = self.paths.pod_logs(&identity);
        logs::make_dir(&log_dir).map_err(|error| failed(&log_dir.display().to_string(), error))?;
        let host_ips = self.host_ips();
        let fields = FieldSource { pod, pod_ips: &[], host_ips: &host_ips, node: self.resources() };
        tokio::select! {
            result = self.volumes.set_up(&fields) => result.map_err(|failed| {
                for text in failed.events {
                    self.recorder.pod(pod, EventType::Warning, "FailedMount", text);
                }
                StartError::new("FailedMount", failed.message)
            }),
            () = cancel.cancelled() => Err(StartError::new("FailedMount", "cut short: the pod has changed")),
        }
    }

    /// Creates and starts a sandbox. Returns its id.
    ///
    /// # Errors
    /// Reason `CreatePodSandboxError`; the text follows `Failed to create pod sandbox: `.
    pub async fn run_sandbox(&self, pod: &Pod, attempt: u32) -> Result<String, StartError> {
        let identity = identity(pod)?;
        let log_dir = self.paths.pod_logs(&identity);
        logs::make_dir(&log_dir)
            .map_err(|error| StartError::new("CreatePodSandboxError", format!("{}: {error}", log_dir.display())))?;
        self.tell_dns_problems(pod, attempt);
        if let Err(error) = self.set_pod_cgroup(pod, &identity.uid).await {
            tracing::debug!(pod = identity.name, error, "pod cgroup without all of its limits");
        }
        let config = self.sandbox_config(pod, &identity, attempt).await?;
        let handler = self.handler(pod).await?;
        let created = self.cri.run_sandbox(config, &handler).await;
        created.map_err(|error| StartError::new("CreatePodSandboxError", error.message()))
    }

    async fn sandbox_config(
        &self,
        pod: &Pod,
        identity: &PodIdentity,
        attempt: u32,
    ) -> Result<proto::PodSandboxConfig, StartError> {
        let input = SandboxInput {
            pod,
            identity,
            attempt,
            log_directory: self.paths.pod_logs(identity).display().to_string(),
            dns: dns::pod(&self.settings, pod, self.host_dns()).config,
            cgroup_parent: self.cgroup_parent(pod, &identity.uid).await,
            cluster_domain: &self.settings.cluster_domain,
            node: self.resources(),
            volume_groups: &self.volume_groups(pod),
        };
        sandbox::config(input).map_err(|error| StartError::new("CreatePodSandboxError", error.to_string()))
    }

    /// Empty for the runtime's own default.
    async fn cgroup_parent(&self, pod: &Pod, uid: &str) -> String {
        if !self.settings.cgroups_per_qos {
            return String::new();
        }
        self.cgroups().await.pod(uid, qos_class(pod))
    }

    /// Groups that the pod's volumes ask for.
    fn volume_groups(&self, pod: &Pod) -> Vec<i64> {
        self.volumes.locations(pod).into_values().filter_map(|volume| volume.group).collect()
    }

    /// A node without cluster DNS is told once a pod, and is no fault: many edge nodes have none.
    fn tell_dns_problems(&self, pod: &Pod, attempt: u32) {
        let dns = dns::pod(&self.settings, pod, self.host_dns());
        if let Some(text) = dns.cut {
            self.recorder.pod(pod, EventType::Warning, "DNSConfigForming", text);
        }
        if dns.missing_cluster_dns && attempt == 0 {
            let text = "no clusterDNS is configured on this node (modules.edged.tailoredKubeletConfig.clusterDNS); the pod \
                        gets the node's own DNS configuration";
            self.recorder.pod(pod, EventType::Normal, "MissingClusterDNS", text);
        }
    }

    /// Starts one container: makes its image present, creates it, starts it. Returns its id.
    ///
    /// # Errors
    /// The waiting reason of the container and its text; events are recorded already.
    pub async fn start_container(&self, start: ContainerStart<'_>) -> Result<String, StartError> {
        let identity = identity(start.pod)?;
        let sandbox_config = self.sandbox_config(start.pod, &identity, start.sandbox_attempt).await?;
        let tools = ImageTools { cri: &self.cri, meta: &self.meta, recorder: &self.recorder };
        let request = ImageRequest {
            pod: start.pod,
            container: start.container,
            sandbox_config: sandbox_config.clone(),
            ran_before: start.restart_count > 0,
            cancel: start.cancel,
        };
        let image = self.images.ensure(&tools, &request).await?;
        let config = self.container_config(&start, &identity, &image).await;
        let config = config.map_err(|text| self.failed(&start, "CreateContainerConfigError", text))?;
        let id = match self.cri.create_container(start.sandbox_id, config, sandbox_config).await {
            Ok(id) => id,
            Err(error) => return Err(self.failed(&start, "CreateContainerError", error.message())),
        };
        let name = &start.container.name;
        let event = |reason, text| self.recorder.container(start.pod, name, EventType::Normal, reason, text);
        event("Created", format!("Created container: {name}"));
        if let Err(error) = self.cri.start_container(&id).await {
            self.forget_stillborn(&start, &id).await;
            return Err(self.failed(&start, "RunContainerError", error.message()));
        }
        event("Started", format!("Started container {name}"));
        logs::link(&self.paths, &identity, name, start.restart_count, &id);
        Ok(id)
    }

    /// A container whose sandbox was ending while it was started has not failed: it leaves no trace, and the next one in a new
    /// sandbox has its number.
    async fn forget_stillborn(&self, start: &ContainerStart<'_>, id: &str) {
        tokio::time::sleep(SANDBOX_SETTLES).await;
        let ready = self
            .cri
            .sandbox_status(start.sandbox_id)
            .await
            .map(|status| status.is_some_and(|status| status.state() == proto::PodSandboxState::SandboxReady));
        if matches!(ready, Ok(false))
            && let Err(error) = self.remove_container(id).await
        {
            tracing::debug!(id, error = %error, "container that could not be started is left");
        }
    }

    fn failed(&self, start: &ContainerStart<'_>, reason: &'static str, message: String) -> StartError {
        let text = format!("Error: {message}");
        self.recorder.container(start.pod, &start.container.name, EventType::Warning, "Failed", text);
        StartError { reason, message }
    }

    async fn container_config(
        &self,
        start: &ContainerStart<'_>,
        identity: &PodIdentity,
        image: &crate::images::ResolvedImage,
    ) -> Result<proto::ContainerConfig, String> {
        let (pod, container) = (start.pod, start.container);
        let node = self.resources();
        let host_ips = self.host_ips();
        let fields = FieldSource { pod, pod_ips: start.pod_ips, host_ips: &host_ips, node };
        let objects = EnvObjects::load(&self.meta, &identity.namespace, container).await.map_err(|e| e.to_string())?;
        let services = self.kubernetes.variables(&self.settings, &self.meta).await;
        self.devices.before_start(&identity.uid, &container.name).await.map_err(|error| error.to_string())?;
        let grants = self.devices.granted(&identity.uid, &container.name);
        let env = environment(container, &fields, &objects, &services)?;
        let input = MountInput {
            volumes: &self.volumes.locations(pod),
            env: &env,
            hosts_file: self.hosts_file(pod, identity, start.pod_ips)?,
            container_dir: self.paths.container(&identity.uid, &container.name),
            subpaths: self.paths.subpaths(&identity.uid),
            recursive_read_only: self.recursive_read_only().await,
        };
        let mounts = mounts(container, &input)?;
        let log_dir = self.paths.pod_logs(identity).join(&container.name);
        logs::make_dir(&log_dir).map_err(|error| format!("{}: {error}", log_dir.display()))?;
        let seccomp_root = self.settings.root_dir.join("seccomp").display().to_string();
        let input = SecurityInput {
            image: &image.user,
            seccomp_root: &seccomp_root,
            seccomp_default: self.settings.seccomp_default,
            volume_groups: &self.volume_groups(pod),
        };
        let mut security = security::container(pod, container, &input)?;
        if let (Some(target), Some(options)) = (start.target_id, security.namespace_options.as_mut()) {
            options.pid = proto::NamespaceMode::Target as i32;
            options.target_id = target.to_owned();
        }
        Ok(container::config(ContainerInput {
            pod,
            identity,
            container,
            restart_count: start.restart_count,
            image_ref: image.reference.clone(),
            mounts,
            resources: resources::container(pod, container, node),
            security,
            env,
            grants: &grants,
        }))
    }

    /// Writes the hosts file anew; `None` for a pod without address.
    fn hosts_file(
        &self,
        pod: &Pod,
        identity: &PodIdentity,
        ips: &[String],
    ) -> Result<Option<std::path::PathBuf>, String> {
        let host_network = spec::host_network(pod);
        if ips.is_empty() && !host_network {
            return Ok(None);
        }
        let (hostname, domain) =
            sandbox::hostname(pod, identity, &self.settings.cluster_domain).map_err(|error| error.to_string())?;
        let aliases = pod.spec.as_ref().and_then(|s| s.host_aliases.as_deref()).unwrap_or_default();
        let file = HostsFile { host_network, ips, hostname: &hostname, domain: domain.as_deref(), aliases };
        let path = self.paths.hosts_file(&identity.uid);
        let written = make_private_dir(&self.paths.pod(&identity.uid)).and_then(|()| file.write(&path));
        written.map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Some(path))
    }
}
