//! The whole of it with real programs: embedded Kubernetes, cloudcore, containerd, edgecore, kubectl.
//!
//! It needs root, the packages that `cargo xtask test` installs, and the programs that it builds.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::{Value, json};
use testkit::deployment::{Binaries, Cluster, Deployment, condition, edgecore_name};

const PODS: &str = "/api/v1/namespaces/default/pods";
const LONG: Duration = Duration::from_secs(60);

/// A deployment with one edge node that is Ready; everything is stopped when it goes, also after a failure.
struct Site {
    deployment: Option<Deployment>,
    cluster: Cluster,
    runtime: tokio::runtime::Runtime,
    _dir: tempfile::TempDir,
}

impl Site {
    fn start(number: u8) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime");
        let dir = tempfile::Builder::new().prefix("fe").tempdir().expect("dir");
        let mut deployment = Deployment::open(dir.path().join("site"), Binaries::new(programs())).expect("deployment");
        deployment.layout.stand_aside(100 + number);
        let started = runtime.block_on(async {
            let cluster = deployment.start_cloud().await?;
            deployment.start_edge(1).await?;
            deployment.wait_ready(&cluster, 1).await?;
            anyhow::Ok(cluster)
        });
        let cluster = match started {
            Ok(cluster) => cluster,
            Err(error) => {
                let logs = logs(&deployment);
                runtime.block_on(deployment.stop()).expect("stopped");
                panic!("{error:#}\n{logs}");
            }
        };
        Self { deployment: Some(deployment), cluster, runtime, _dir: dir }
    }

    fn deployment(&mut self) -> &mut Deployment {
        self.deployment.as_mut().expect("running")
    }

    fn kubectl(&self, arguments: &[&str]) -> Output {
        Command::new("kubectl")
            .arg("--kubeconfig")
            .arg(self.cluster.kubeconfig())
            .arg("--cache-dir")
            .arg(self.cluster.kubeconfig().with_file_name("cache"))
            .args(arguments)
            .output()
            .expect("kubectl is installed")
    }

    /// Runs kubectl and returns what it printed; it must succeed.
    fn ask(&self, arguments: &[&str]) -> String {
        let output = self.kubectl(arguments);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "kubectl {arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        text
    }

    fn wait(&self, what: &str, holds: impl Fn(&Value) -> bool, path: &str) -> Value {
        let found = std::cell::RefCell::new(Value::Null);
        let waited = self.runtime.block_on(self.cluster.wait(what, LONG, || async {
            let value = self.cluster.get(path).await?;
            let done = holds(&value);
            *found.borrow_mut() = value;
            Ok(done)
        }));
        if let Err(error) = waited {
            let state = serde_json::to_string_pretty(&found.borrow()["status"]).unwrap_or_default();
            panic!("{error:#}\n{state}\n{}", self.deployment.as_ref().map(logs).unwrap_or_default());
        }
        found.into_inner()
    }

    fn create_pod(&self, name: &str, command: &[&str]) -> Value {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"terminationGracePeriodSeconds": 1, "containers": [
                {"name": "main", "image": "docker.io/library/busybox:1", "imagePullPolicy": "IfNotPresent", "command": command}]},
        });
        let (status, answer) = self.runtime.block_on(self.cluster.post(PODS, &pod)).expect("created");
        assert_eq!(status, 201, "{answer}");
        self.wait_ready(name)
    }

    fn wait_ready(&self, name: &str) -> Value {
        self.wait(
            &format!("pod {name} to be Ready"),
            |pod| condition(pod, "Ready") == Some("True"),
            &format!("{PODS}/{name}"),
        )
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

fn programs() -> PathBuf {
    let own = std::env::current_exe().expect("path");
    let dir = own.parent().and_then(std::path::Path::parent).expect("target folder").to_path_buf();
    assert!(dir.join("edgecore").is_file(), "build cloudcore, edgecore and keadm first, or run `cargo xtask test`");
    dir
}

fn logs(deployment: &Deployment) -> String {
    let mut text = String::new();
    for program in ["cloudcore".to_owned(), edgecore_name(1)] {
        let log = std::fs::read_to_string(deployment.layout.log(&program)).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(60).collect();
        text.push_str(&format!("--- {program}\n{}\n", tail.into_iter().rev().collect::<Vec<_>>().join("\n")));
    }
    text
}

/// What tells a container from its successors.
fn container(pod: &Value) -> (String, i64) {
    let status = &pod["status"]["containerStatuses"][0];
    (status["containerID"].as_str().unwrap_or_default().to_owned(), status["restartCount"].as_i64().unwrap_or(-1))
}

#[test]
fn a_deployment_created_with_kubectl_runs_on_the_edge_node() {
    let site = Site::start(1);
    let nodes = site.ask(&["get", "nodes", "-o", "wide"]);
    assert!(nodes.contains("edge-1") && nodes.contains("Ready") && nodes.contains("agent,edge"), "{nodes}");
    let csr = site.ask(&["get", "csr"]);
    assert!(csr.contains("Approved,Issued") && csr.contains("ferroedge.io/edge-client"), "{csr}");

    site.ask(&["create", "deployment", "web", "--image=docker.io/library/busybox:1", "--", "sleep", "3600"]);
    site.ask(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    site.ask(&["scale", "deployment", "web", "--replicas=3"]);
    site.ask(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let pods = site.ask(&["get", "pods", "-o", "wide"]);
    assert_eq!(pods.matches("Running").count(), 3, "{pods}");
    assert_eq!(pods.matches("edge-1").count(), 3, "{pods}");

    site.ask(&["set", "env", "deployment/web", "COLOUR=green"]);
    site.ask(&["rollout", "status", "deployment/web", "--timeout=90s"]);
    site.ask(&["label", "deployment", "web", "tier=front"]);
    assert!(site.ask(&["get", "deployments", "-l", "tier=front"]).contains("web"));
    site.ask(&["cordon", "edge-1"]);
    assert!(site.ask(&["get", "nodes"]).contains("SchedulingDisabled"));
    site.ask(&["uncordon", "edge-1"]);
    let described = site.ask(&["describe", "deployment", "web"]);
    assert!(described.contains("ScalingReplicaSet"), "{described}");
    let events = site.ask(&["get", "events"]);
    for reason in ["Scheduled", "Pulled", "Created", "Started"] {
        assert!(events.contains(reason), "no event {reason}:\n{events}");
    }
    assert!(site.ask(&["api-resources"]).contains("deployments"));
    site.ask(&["delete", "deployment", "web"]);
    site.wait("all pods to be gone", |list| list["items"].as_array().is_some_and(Vec::is_empty), PODS);
}

#[test]
fn a_node_goes_on_without_the_cloud() {
    let mut site = Site::start(2);
    let before = container(&site.create_pod("lonely", &["sleep", "3600"]));

    // cloudcore is killed and comes back: no pod is touched.
    site.deployment().children.kill("cloudcore").expect("killed");
    site.deployment().children.kill(&edgecore_name(1)).expect("killed");
    // edgecore starts without the cloud: it must adopt what runs.
    site.deployment().start_edgecore(1).expect("started");
    let log = site.deployment().layout.log(&edgecore_name(1));
    let deadline = std::time::Instant::now() + LONG;
    while !std::fs::read_to_string(&log).unwrap_or_default().contains("no connection to the cloud") {
        assert!(std::time::Instant::now() < deadline, "edgecore did not start offline");
        std::thread::yield_now();
    }
    let deployment = site.deployment.as_mut().expect("running");
    site.runtime.block_on(deployment.start_cloud()).expect("cloud again");
    let deployment = site.deployment.as_ref().expect("running");
    site.runtime.block_on(deployment.wait_ready(&site.cluster, 1)).expect("ready again");
    // A change after the return shows that the link works both ways.
    site.create_pod("second", &["sleep", "3600"]);
    let after = container(&site.wait_ready("lonely"));
    assert_eq!(after, before, "the container was restarted or replaced");
    assert_eq!(after.1, 0);
}

#[test]
fn a_node_without_link_comes_back_after_a_power_cut() {
    let mut site = Site::start(3);
    site.create_pod("phoenix", &["sleep", "3600"]);
    site.deployment().children.kill("cloudcore").expect("killed");
    site.deployment().children.kill(&edgecore_name(1)).expect("killed");
    let deployment = site.deployment.as_mut().expect("running");
    site.runtime.block_on(deployment.power_cut(1)).expect("power cut");
    // The machine boots: containerd and edgecore start, the cloud does not answer.
    site.runtime.block_on(deployment.start_edge(1)).expect("boot");
    let running = || -> bool {
        let ctr = Command::new("ctr")
            .args(["--address", &deployment.containerd_socket(1), "--namespace", "k8s.io", "tasks", "list"])
            .output()
            .expect("ctr");
        // The pod's sandbox and its container.
        String::from_utf8_lossy(&ctr.stdout).matches("RUNNING").count() >= 2
    };
    let deadline = std::time::Instant::now() + LONG;
    while !running() {
        assert!(std::time::Instant::now() < deadline, "the pod did not come back:\n{}", logs(deployment));
        std::thread::yield_now();
    }
}
