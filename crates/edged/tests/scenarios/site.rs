//! A node for one scenario, and what can be asked of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use beehive::ModuleManager;
use edged::access::Access;
use edged::{Edged, Settings};
use serde_json::{Value, json};
use testkit::containerd::{BUSYBOX_IMAGE, Containerd, ContainerdOptions};
use testkit::cri;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cloud::Cloud;

/// For starting and stopping real containers on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Tells the nodes of one process apart: tests may run as its threads.
static NUMBER: AtomicU8 = AtomicU8::new(1);

/// Filter of a CRI list: a pod by its name.
fn of_pod(pod: &str) -> BTreeMap<String, String> {
    BTreeMap::from([("io.kubernetes.pod.name".to_owned(), pod.to_owned())])
}

/// A private containerd, a cloud in memory, and edged while it runs.
pub struct Site {
    pub containerd: Containerd,
    pub cloud: Cloud,
    pub settings: Settings,
    directory: tempfile::TempDir,
    options: ContainerdOptions,
    running: JoinSet<()>,
    /// What edged gives to other modules of the program.
    pub access: Option<watch::Receiver<Option<Arc<Access>>>>,
    /// Goes after everything that runs in it.
    _cgroups: CgroupRoot,
}

impl Site {
    /// A node `n1` with edged running on it.
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// The same with other settings.
    pub async fn start_with(change: impl FnOnce(&mut Settings)) -> Self {
        let mut site = Self::prepare(change).await;
        site.start_edged();
        site
    }

    /// A node with containerd and no edged yet.
    pub async fn prepare(change: impl FnOnce(&mut Settings)) -> Self {
        Self::prepare_on(|_| {}, change).await
    }

    /// The same after something was done with the folder that containerd will keep its images in.
    pub async fn prepare_on(images: impl FnOnce(&Path), change: impl FnOnce(&mut Settings)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = ContainerdOptions::for_test(directory.path(), NUMBER.fetch_add(1, Ordering::Relaxed));
        images(&options.dir.join("root"));
        let containerd = Containerd::start(options.clone()).await.unwrap();
        containerd.import_busybox().await.unwrap();
        let mut settings = Settings::new("n1");
        settings.root_dir = directory.path().join("kubelet");
        settings.pod_logs_dir = directory.path().join("logs");
        settings.runtime_endpoint = containerd.endpoint();
        settings.node_ip = Some("192.0.2.2".parse().unwrap());
        settings.read_only_port = 0;
        // Pods of tests that run side by side are not each other's orphans.
        settings.cgroup_root = options.cgroup_root();
        // How full this machine is must not matter.
        settings.eviction.thresholds.clear();
        settings.image_gc.high_percent = 100;
        change(&mut settings);
        let cgroups = CgroupRoot(settings.cgroup_root.clone());
        Self {
            containerd,
            cloud: Cloud::new(),
            settings,
            directory,
            options,
            running: JoinSet::new(),
            access: None,
            _cgroups: cgroups,
        }
    }

    /// Starts edged.
    pub fn start_edged(&mut self) {
        let mut modules = ModuleManager::new();
        let edged = Edged::new(self.settings.clone());
        self.access = Some(edged.access());
        modules.register(edged);
        modules.register(self.cloud.module());
        self.running.spawn(modules.run(CancellationToken::new()));
    }

    /// Ends edged as `kill -9` does: every task is dropped where it stands.
    pub async fn kill_edged(&mut self) {
        self.running.shutdown().await;
    }

    /// Ends containerd and everything in it, and starts containerd again: a power cut, for edged too.
    pub async fn power_cut(&mut self) {
        self.kill_edged().await;
        self.containerd.power_off().await.unwrap();
        // What was in memory is gone.
        Containerd::unmount_below(&self.settings.root_dir).unwrap();
        self.containerd.start_again().await.unwrap();
    }

    /// Ends containerd, removes all that it knows, and starts it again with the test's images only.
    pub async fn wipe_containerd(&mut self) {
        Containerd::clean_up(&self.options).await.unwrap();
        std::fs::remove_dir_all(&self.options.dir).unwrap();
        self.containerd.start_again().await.unwrap();
        self.containerd.import_busybox().await.unwrap();
    }

    /// Status of a condition of the node, as it was told last.
    pub fn node_condition(&self, kind: &str) -> Option<String> {
        let of_node = |resource: &str| resource.contains("/nodepatch/") || resource.contains("/node/");
        self.cloud.log().into_iter().rev().filter(|(_, resource, _)| of_node(resource)).find_map(|(_, _, content)| {
            let patch: Value = content.as_str().map_or(content.clone(), |text| serde_json::from_str(text).unwrap());
            let conditions = patch["status"]["conditions"].as_array()?;
            let status = conditions.iter().find(|c| c["type"] == kind)?["status"].as_str()?;
            Some(status.to_owned())
        })
    }

    /// The folder of this test.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The folder of a pod below edged's root.
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.settings.root_dir.join("pods").join(uid)
    }

    /// The folder of a pod's logs.
    pub fn log_dir(&self, pod: &str) -> PathBuf {
        self.settings.pod_logs_dir.join(format!("default_{pod}_uid-{pod}"))
    }

    /// Creates a pod and waits until it is Ready.
    pub async fn run(&self, pod: Value) -> Value {
        let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
        self.cloud.create(pod).await;
        self.until(&name, "ready", is_ready).await
    }

    /// Polls the pod, as the API has it, until it holds; `Value::Null` when it is gone.
    pub async fn until(&self, pod: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        self.until_within(PATIENCE, pod, what, holds).await
    }

    /// The same with another limit.
    pub async fn until_within(&self, limit: Duration, pod: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + limit;
        loop {
            let object = self.cloud.pod(pod).unwrap_or(Value::Null);
            if holds(&object) {
                return object;
            }
            let events = self.cloud.events(pod);
            assert!(Instant::now() < deadline, "not in time: {what}: {object:#}\nevents {events:#?}");
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    /// Polls something else until it holds.
    pub async fn eventually(&self, what: &str, mut holds: impl AsyncFnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds().await {
            assert!(Instant::now() < deadline, "not in time: {what}");
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    /// Waits until the pod's object is gone and containerd has nothing of it.
    pub async fn until_gone(&self, pod: &str) {
        self.until(pod, "deleted", Value::is_null).await;
        self.eventually("nothing left in containerd", async || {
            self.sandboxes(pod).await.is_empty() && self.containers(pod).await.is_empty()
        })
        .await;
    }

    /// Sandboxes of a pod, newest first.
    pub async fn sandboxes(&self, pod: &str) -> Vec<cri::PodSandbox> {
        let filter = cri::PodSandboxFilter { label_selector: of_pod(pod), ..Default::default() };
        let request = cri::ListPodSandboxRequest { filter: Some(filter) };
        let mut found =
            self.containerd.client().await.unwrap().list_pod_sandbox(request).await.unwrap().into_inner().items;
        found.sort_by_key(|sandbox| std::cmp::Reverse(sandbox.created_at));
        found
    }

    /// All containers of a pod, dead ones included, newest first.
    pub async fn containers(&self, pod: &str) -> Vec<cri::Container> {
        let filter = cri::ContainerFilter { label_selector: of_pod(pod), ..Default::default() };
        let request = cri::ListContainersRequest { filter: Some(filter) };
        let mut found =
            self.containerd.client().await.unwrap().list_containers(request).await.unwrap().into_inner().containers;
        found.sort_by_key(|container| std::cmp::Reverse(container.created_at));
        found
    }

    /// Id of the newest container with this name.
    pub async fn container_id(&self, pod: &str, container: &str) -> String {
        let named = |c: &cri::Container| c.metadata.as_ref().is_some_and(|m| m.name == container);
        self.containers(pod).await.into_iter().find(named).expect("a container of that name").id
    }

    /// What CRI says of a container.
    pub async fn container(&self, pod: &str, container: &str) -> cri::ContainerStatus {
        let container_id = self.container_id(pod, container).await;
        let request = cri::ContainerStatusRequest { container_id, verbose: false };
        self.containerd.client().await.unwrap().container_status(request).await.unwrap().into_inner().status.unwrap()
    }

    /// The OCI configuration of a running container.
    pub async fn oci(&self, pod: &str, container: &str) -> Value {
        self.containerd.oci_config(&self.container_id(pod, container).await).unwrap()
    }

    /// Runs a shell command in a container; what it wrote, both streams, and its exit code.
    pub async fn sh(&self, pod: &str, container: &str, command: &str) -> (i32, String) {
        let container_id = self.container_id(pod, container).await;
        let cmd = vec!["sh".to_owned(), "-c".to_owned(), command.to_owned()];
        let request = cri::ExecSyncRequest { container_id, cmd, timeout: 20 };
        let answer = self.containerd.client().await.unwrap().exec_sync(request).await.unwrap().into_inner();
        let output = [answer.stdout, answer.stderr].concat();
        (answer.exit_code, String::from_utf8(output).unwrap())
    }

    /// Directories of a pod's cgroup, in all hierarchies.
    pub fn cgroups_of(&self, uid: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let root = PathBuf::from("/sys/fs/cgroup");
        let hierarchies = std::fs::read_dir(&root).unwrap().flatten().map(|entry| entry.path());
        for hierarchy in hierarchies.chain([root]) {
            for class in ["", "burstable", "besteffort"] {
                let top = hierarchy.join(self.settings.cgroup_root.trim_start_matches('/')).join("kubepods");
                found.push(top.join(class).join(format!("pod{uid}")));
            }
        }
        found.retain(|path| path.is_dir());
        found
    }

    /// A container's log on disk, whole.
    pub fn log(&self, pod: &str, container: &str, restart: u32) -> String {
        std::fs::read_to_string(self.log_dir(pod).join(container).join(format!("{restart}.log"))).unwrap_or_default()
    }
}

/// The cgroups of one site, in all hierarchies.
struct CgroupRoot(String);

impl Drop for CgroupRoot {
    fn drop(&mut self) {
        Containerd::remove_cgroups(&self.0);
    }
}

impl Drop for Site {
    /// Volumes in memory are below edged's folder: they go with it, also after a failed test.
    fn drop(&mut self) {
        self.running.abort_all();
        if let Err(error) = Containerd::unmount_below(self.directory.path()) {
            eprintln!("unmounting below {}: {error:#}", self.directory.path().display());
        }
    }
}

/// Whether a pod has a condition that is True.
pub fn has(pod: &Value, condition: &str) -> bool {
    let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.iter().any(|c| c["type"] == condition && c["status"] == "True")
}

pub fn is_ready(pod: &Value) -> bool {
    has(pod, "Ready")
}

/// A pod with one busybox container `main` that sleeps, with UID `uid-NAME`.
pub fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "default", "name": name, "uid": format!("uid-{name}"), "labels": {"app": name}},
        "spec": {
            "nodeName": "n1", "restartPolicy": "Always", "terminationGracePeriodSeconds": 2, "securityContext": {},
            "containers": [{
                "name": "main", "image": BUSYBOX_IMAGE, "imagePullPolicy": "IfNotPresent",
                "command": ["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done"],
            }],
        },
        "status": {"phase": "Pending", "qosClass": "BestEffort"},
    })
}

/// The same, changed: the closure gets the whole object.
pub fn pod_with(name: &str, change: impl FnOnce(&mut Value)) -> Value {
    let mut pod = pod(name);
    change(&mut pod);
    pod
}
