//! A deployment for one end-to-end test: real programs, stopped when the test ends, also by a failure.
//!
//! It needs root, the packages that `cargo xtask test` installs, and the programs that it builds.
#![allow(clippy::panic, reason = "a test's fixture fails by panicking")]

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::{Value, json};

use crate::containerd::{RuntimeClient, runtime_client};
use crate::cri;
use crate::deployment::{Binaries, Cluster, Deployment, Layout, condition, edgecore_name, node_name};

/// The API's path of the pods that a site creates.
pub const PODS: &str = "/api/v1/namespaces/default/pods";
/// The image that every edge node has.
pub const IMAGE: &str = "docker.io/library/busybox:1";
/// How long anything may take.
pub const LONG: Duration = Duration::from_secs(60);
/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(50);

/// A cloud and at most one edge node.
pub struct Site {
    /// The programs; present until the site goes.
    pub deployment: Option<Deployment>,
    /// The embedded Kubernetes.
    pub cluster: Cluster,
    /// Runs what is asynchronous.
    pub runtime: tokio::runtime::Runtime,
    _dir: tempfile::TempDir,
}

impl Site {
    /// A site with one edge node that is Ready. Sites with different numbers (below 150) stand side by side.
    pub fn start(number: u8) -> Self {
        let mut site = Self::cloud(number);
        site.start_edge();
        site
    }

    /// A site without an edge node.
    pub fn cloud(number: u8) -> Self {
        Self::cloud_with(number, |_| {})
    }

    /// The same, with a layout that differs.
    pub fn cloud_with(number: u8, differ: impl FnOnce(&mut Layout)) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime");
        let dir = tempfile::Builder::new().prefix("fe").tempdir().expect("dir");
        let mut deployment = Deployment::open(&dir.path().join("site"), Binaries::new(programs())).expect("deployment");
        deployment.layout.stand_aside(100 + number);
        differ(&mut deployment.layout);
        match runtime.block_on(deployment.start_cloud()) {
            Ok(cluster) => Self { deployment: Some(deployment), cluster, runtime, _dir: dir },
            Err(error) => {
                let logs = logs(&deployment);
                runtime.block_on(deployment.stop()).expect("stopped");
                panic!("{error:#}\n{logs}");
            }
        }
    }

    /// Starts the edge node and waits until it is Ready.
    pub fn start_edge(&mut self) {
        let deployment = self.deployment.as_mut().expect("running");
        let started = self.runtime.block_on(async {
            deployment.start_edge(1).await?;
            deployment.wait_ready(&self.cluster, 1).await
        });
        if let Err(error) = started {
            panic!("{error:#}");
        }
    }

    /// The programs.
    pub fn deployment(&mut self) -> &mut Deployment {
        self.deployment.as_mut().expect("running")
    }

    fn running(&self) -> &Deployment {
        self.deployment.as_ref().expect("running")
    }

    /// Kills cloudcore as a crash does.
    pub fn kill_cloud(&mut self) {
        self.deployment().children.kill("cloudcore").expect("killed");
    }

    /// Starts cloudcore again and waits until its API answers.
    pub fn restart_cloud(&mut self) {
        let deployment = self.deployment.as_mut().expect("running");
        self.runtime.block_on(deployment.start_cloud()).expect("cloud again");
    }

    /// Kills edgecore as a crash does.
    pub fn kill_edge(&mut self) {
        self.deployment().children.kill(&edgecore_name(1)).expect("killed");
    }

    /// The folder of the edge node.
    pub fn edge_dir(&self) -> PathBuf {
        self.running().layout.edge(&node_name(1))
    }

    /// The configuration of the edge node.
    pub fn edge_config(&self) -> PathBuf {
        self.edge_dir().join("config/edgecore.yaml")
    }

    /// What edgecore has logged so far.
    pub fn edge_log(&self) -> String {
        std::fs::read_to_string(self.running().layout.log(&edgecore_name(1))).unwrap_or_default()
    }

    /// A command that runs one of the programs.
    pub fn program(&self, program: &str) -> Command {
        self.running().binaries.command(program)
    }

    /// Runs kubectl.
    pub fn kubectl(&self, arguments: &[&str]) -> Output {
        self.kubectl_command("kubectl", arguments).output().expect("kubectl is installed")
    }

    /// The command that runs this kubectl; who runs it decides about its input and output.
    pub fn kubectl_command(&self, program: impl AsRef<OsStr>, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        let kubeconfig = self.cluster.kubeconfig();
        command.arg("--kubeconfig").arg(kubeconfig).arg("--cache-dir").arg(kubeconfig.with_file_name("cache"));
        command.args(arguments);
        command
    }

    /// Runs kubectl and returns what it printed; it must succeed.
    pub fn ask(&self, arguments: &[&str]) -> String {
        let output = self.kubectl(arguments);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "kubectl {arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        text
    }

    /// Waits until the object at this path is as it should be, and returns it.
    pub fn wait(&self, what: &str, holds: impl Fn(&Value) -> bool, path: &str) -> Value {
        let found = RefCell::new(Value::Null);
        let waited = self.runtime.block_on(self.cluster.wait(what, LONG, || async {
            let value = self.cluster.get(path).await?;
            let done = holds(&value);
            *found.borrow_mut() = value;
            Ok(done)
        }));
        if let Err(error) = waited {
            let state = serde_json::to_string_pretty(&found.borrow()["status"]).unwrap_or_default();
            panic!("{error:#}\n{state}");
        }
        found.into_inner()
    }

    /// Waits until something holds.
    pub fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = std::time::Instant::now() + LONG;
        while !holds() {
            assert!(std::time::Instant::now() < deadline, "waited {} s for {what}", LONG.as_secs());
            self.pass(POLL);
        }
    }

    /// Lets time pass in which something must not happen.
    pub fn pass(&self, time: Duration) {
        self.runtime.block_on(async { tokio::time::sleep(time).await });
    }

    /// Creates an object; it must succeed.
    pub fn post(&self, path: &str, object: &Value) -> Value {
        let (status, answer) = self.runtime.block_on(self.cluster.post(path, object)).expect("answer");
        assert_eq!(status, 201, "{answer}");
        answer
    }

    /// Creates a pod of one container and waits until it is Ready.
    pub fn create_pod(&self, name: &str, command: &[&str]) -> Value {
        self.post(PODS, &pod(name, command));
        self.wait_ready(name)
    }

    /// Waits until a pod is Ready.
    pub fn wait_ready(&self, name: &str) -> Value {
        self.wait(
            &format!("pod {name} to be Ready"),
            |pod| condition(pod, "Ready") == Some("True"),
            &format!("{PODS}/{name}"),
        )
    }

    /// What runs on the edge node: sandboxes and containers, each with its process.
    pub fn tasks(&self) -> BTreeSet<String> {
        let ctr = Command::new("ctr")
            .args(["--address", &self.running().containerd_socket(1), "--namespace", "k8s.io", "tasks", "list"])
            .output()
            .expect("ctr");
        let text = String::from_utf8_lossy(&ctr.stdout).into_owned();
        // The width of a column is that of its longest entry: without it, a process id of one digit more changes every line.
        let lines = text.lines().filter(|line| line.contains("RUNNING"));
        lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    }

    /// Sandboxes that the runtime has, whatever their state.
    pub fn sandboxes(&self) -> Vec<InRuntime> {
        let found = self.ask_runtime(async |mut client| {
            Ok(client.list_pod_sandbox(cri::ListPodSandboxRequest::default()).await?.into_inner().items)
        });
        let ready = i32::from(cri::PodSandboxState::SandboxReady);
        found.into_iter().map(|sandbox| InRuntime::new(&sandbox.labels, sandbox.id, sandbox.state == ready)).collect()
    }

    /// Containers that the runtime has, whatever their state.
    pub fn containers(&self) -> Vec<InRuntime> {
        let found = self.ask_runtime(async |mut client| {
            Ok(client.list_containers(cri::ListContainersRequest::default()).await?.into_inner().containers)
        });
        let running = i32::from(cri::ContainerState::ContainerRunning);
        let item = |mut item: cri::Container| InRuntime {
            hash: item.annotations.remove("io.kubernetes.container.hash").unwrap_or_default(),
            ..InRuntime::new(&item.labels, item.id, item.state == running)
        };
        found.into_iter().map(item).collect()
    }

    fn ask_runtime<T>(&self, ask: impl AsyncFnOnce(RuntimeClient) -> anyhow::Result<T>) -> T {
        let socket = self.running().containerd_socket(1);
        let answer = self.runtime.block_on(async { ask(runtime_client(Path::new(&socket)).await?).await });
        answer.expect("containerd answers")
    }

    /// Gives an image of the edge node another name besides.
    pub fn tag_image(&self, image: &str, name: &str) {
        let tag = Command::new("ctr")
            .args(["--address", &self.running().containerd_socket(1), "--namespace", "k8s.io"])
            .args(["images", "tag", image, name])
            .output()
            .expect("ctr");
        assert!(tag.status.success(), "{tag:?}");
    }

    /// Ids of a pod's running containers.
    pub fn containers_of(&self, pod: &str) -> Vec<String> {
        let label = ("io.kubernetes.pod.name".to_owned(), pod.to_owned());
        let filter = cri::ContainerFilter { label_selector: [label].into(), ..Default::default() };
        let socket = self.running().containerd_socket(1);
        let answer = self.runtime.block_on(async {
            let mut client = runtime_client(Path::new(&socket)).await?;
            anyhow::Ok(client.list_containers(cri::ListContainersRequest { filter: Some(filter) }).await?)
        });
        let running = i32::from(cri::ContainerState::ContainerRunning);
        let found = answer.expect("containerd answers").into_inner().containers.into_iter();
        found.filter(|container| container.state == running).map(|container| container.id).collect()
    }

    /// Kills a container's process and waits until the runtime knows.
    pub fn kill_container(&self, id: &str) {
        let kill = Command::new("ctr")
            .args(["--address", &self.running().containerd_socket(1), "--namespace", "k8s.io"])
            .args(["tasks", "kill", "--signal", "SIGKILL", id])
            .output()
            .expect("ctr");
        assert!(kill.status.success(), "{kill:?}");
        self.until("the container to end", || self.tasks().iter().all(|task| !task.contains(id)));
    }
}

/// A sandbox or container as the runtime has it.
#[derive(Clone, Debug)]
pub struct InRuntime {
    /// UID of its pod.
    pub uid: String,
    /// Name of the container; empty for a sandbox.
    pub name: String,
    /// Its id.
    pub id: String,
    /// It runs, or is ready.
    pub is_running: bool,
    /// What a container was made from, name and image, as a hash; empty for a sandbox.
    pub hash: String,
}

impl InRuntime {
    fn new(labels: &BTreeMap<String, String>, id: String, is_running: bool) -> Self {
        let label = |name: &str| labels.get(&format!("io.kubernetes.{name}")).cloned().unwrap_or_default();
        Self { uid: label("pod.uid"), name: label("container.name"), id, is_running, hash: String::new() }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(mut deployment) = self.deployment.take() {
            if std::thread::panicking() {
                eprintln!("{}", logs(&deployment));
            }
            if let Err(error) = self.runtime.block_on(deployment.stop()) {
                eprintln!("stopping: {error:#}");
            }
        }
    }
}

/// A pod of one container, of the image that every edge node has.
pub fn pod(name: &str, command: &[&str]) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [
            {"name": "main", "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": command}]},
    })
}

/// What tells a container from its successors.
pub fn container(pod: &Value) -> (String, i64) {
    let status = &pod["status"]["containerStatuses"][0];
    (status["containerID"].as_str().unwrap_or_default().to_owned(), status["restartCount"].as_i64().unwrap_or(-1))
}

/// The end of each program's log.
pub fn logs(deployment: &Deployment) -> String {
    let mut text = String::new();
    for program in ["cloudcore".to_owned(), edgecore_name(1)] {
        let log = std::fs::read_to_string(deployment.layout.log(&program)).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(60).collect();
        text.push_str(&format!("--- {program}\n{}\n", tail.into_iter().rev().collect::<Vec<_>>().join("\n")));
    }
    text
}

fn programs() -> PathBuf {
    let own = std::env::current_exe().expect("path");
    let dir = own.parent().and_then(Path::parent).expect("target folder").to_path_buf();
    assert!(dir.join("edgecore").is_file(), "build cloudcore, edgecore and keadm first, or run `cargo xtask test`");
    dir
}
