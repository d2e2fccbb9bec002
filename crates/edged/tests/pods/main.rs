//! Edged against a container runtime and a MetaManager in memory: what a pod goes through, and what must survive.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests may panic and speak for themselves")]

mod api;
mod cloud;
mod containerd;
mod crash_points;
mod faults;
mod lifecycle;
mod mutations;
#[allow(dead_code, reason = "shared with the scenarios")]
mod node_api;
mod probes;
mod recovery;
mod resize;

use std::path::{Path, PathBuf};
use std::time::Duration;

use beehive::ModuleManager;
use cloud::Cloud;
use edged::{Edged, Settings};
use serde_json::{Value, json};
use testkit::fake_cri::{FakeCri, State};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Long enough for a retry of a failed step on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// A node: runtime, cloud, and edged while it runs.
pub struct Node {
    pub cri: FakeCri,
    pub cloud: Cloud,
    directory: tempfile::TempDir,
    running: JoinSet<()>,
    stopping: CancellationToken,
}

impl Node {
    /// A node with a runtime and no edged yet.
    pub async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let cri = FakeCri::start(&directory.path().join("r")).await.unwrap();
        cri.add_image("busybox:1");
        cri.enable_events();
        Self { cri, cloud: Cloud::new(), directory, running: JoinSet::new(), stopping: CancellationToken::new() }
    }

    /// A node with a running edged.
    pub async fn started() -> Self {
        let mut node = Self::new().await;
        node.start();
        node
    }

    fn settings(&self) -> Settings {
        let path = |name: &str| Path::new(self.directory.path()).join(name);
        let mut settings = Settings::new("n1");
        settings.root_dir = path("kubelet");
        settings.pod_logs_dir = path("logs");
        settings.runtime_endpoint = self.cri.endpoint();
        settings.register_node = false;
        settings.read_only_port = 0;
        settings.client_ca_file = path("rootCA.crt");
        settings.cgroups_per_qos = false;
        // How full this machine is must not matter.
        settings.eviction.thresholds.clear();
        settings.image_gc.high_percent = 100;
        settings.node_ip = Some("192.0.2.2".parse().unwrap());
        settings
    }

    /// Starts edged.
    pub fn start(&mut self) {
        self.start_with(|_| {});
    }

    /// The same with other settings.
    pub fn start_with(&mut self, change: impl FnOnce(&mut Settings)) {
        let mut settings = self.settings();
        change(&mut settings);
        let mut modules = ModuleManager::new();
        modules.register(Edged::new(settings).with_devices(Some(node_api::devices())));
        modules.register(self.cloud.module());
        self.stopping = CancellationToken::new();
        self.running.spawn(modules.run(self.stopping.clone()));
    }

    /// Ends edged as `kill -9` does: every task is dropped where it stands.
    pub async fn kill(&mut self) {
        self.running.shutdown().await;
    }

    /// Whether edged still runs.
    pub fn is_alive(&mut self) -> bool {
        self.running.try_join_next().is_none()
    }

    /// A path in the folder of this test.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Names of running containers of a pod.
    pub fn runs(&self, pod: &str) -> usize {
        self.cri.containers().iter().filter(|c| c.pod == pod && c.state == State::Running).count()
    }

    pub async fn until_runs(&self, pod: &str, count: usize) {
        self.until(&format!("{pod} runs {count} containers"), || self.runs(pod) == count).await;
    }

    /// Status of a pod in the API.
    pub fn status(&self, pod: &str) -> Value {
        self.cloud.pod(pod).map_or(Value::Null, |pod| pod["status"].clone())
    }

    pub fn phase(&self, pod: &str) -> String {
        self.status(pod)["phase"].as_str().unwrap_or_default().to_owned()
    }

    pub fn ready(&self, pod: &str) -> bool {
        let status = self.status(pod);
        let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
    }

    pub fn waiting_reason(&self, pod: &str) -> String {
        let status = self.status(pod);
        status["containerStatuses"][0]["state"]["waiting"]["reason"].as_str().unwrap_or_default().to_owned()
    }

    /// Why the first container waited, of all that was ever told: the next attempt may come before anybody looks.
    pub fn waited(&self, pod: &str) -> Vec<Value> {
        let states = self.cloud.patches(pod).into_iter();
        let states = states.map(|patch| patch["status"]["containerStatuses"][0]["state"]["waiting"].clone());
        states.filter(|waiting| waiting["reason"].is_string()).collect()
    }

    /// Polls until it holds.
    pub async fn until(&self, what: &str, holds: impl Fn() -> bool) {
        self.until_within(PATIENCE, what, holds).await;
    }

    /// The same with another limit.
    pub async fn until_within(&self, limit: Duration, what: &str, holds: impl Fn() -> bool) {
        let deadline = tokio::time::Instant::now() + limit;
        while !holds() {
            assert!(
                tokio::time::Instant::now() < deadline,
                "not in time: {what}; calls {:?}; requests {:#?}",
                self.cri.calls(),
                self.cloud.log()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Node {
    /// Mounts are below edged's folder: they go with it, also after a failed test.
    fn drop(&mut self) {
        self.stopping.cancel();
        if let Err(error) = testkit::containerd::Containerd::unmount_below(self.directory.path()) {
            eprintln!("unmounting below {}: {error:#}", self.directory.path().display());
        }
    }
}

/// A pod with one busybox container `main`.
pub fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "default", "name": name, "uid": format!("uid-{name}")},
        "spec": {
            "nodeName": "n1", "restartPolicy": "Always", "terminationGracePeriodSeconds": 5,
            "containers": [{"name": "main", "image": "busybox:1", "imagePullPolicy": "IfNotPresent"}],
        },
        "status": {"phase": "Pending", "qosClass": "BestEffort"},
    })
}

/// A pod with fields changed: `spec.` paths are not needed, the closure gets the whole object.
pub fn pod_with(name: &str, change: impl FnOnce(&mut Value)) -> Value {
    let mut pod = pod(name);
    change(&mut pod);
    pod
}
