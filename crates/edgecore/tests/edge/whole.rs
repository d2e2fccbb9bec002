//! The whole edgecore, with the real edged on a container runtime in memory, under a Go cloud.

use std::time::Duration;

use api::edgecore::Config;
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::containerd::Containerd;
use testkit::fake_cri::FakeCri;
use testkit::go_cloud::{Answer, GoCloud, Received};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::support::{NODE, eventually, id, push};

const IMAGE: &str = "docker.io/library/busybox:1";

/// A node, its runtime and its cloud.
pub(crate) struct Whole {
    pub(crate) cloud: GoCloud,
    pub(crate) runtime: FakeCri,
    config: Config,
    running: Option<(CancellationToken, JoinSet<()>)>,
    pub(crate) dir: TempDir,
}

impl Drop for Whole {
    /// Volumes in memory are below the folder of the test.
    fn drop(&mut self) {
        if let Err(error) = Containerd::unmount_below(self.dir.path()) {
            eprintln!("unmounting below {}: {error:#}", self.dir.path().display());
        }
    }
}

impl Whole {
    pub(crate) async fn start() -> Self {
        let cloud = GoCloud::start().await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let runtime = FakeCri::start(&dir.path().join("cri")).await.unwrap();
        runtime.add_image(IMAGE);
        let config = configure(dir.path(), &cloud, &runtime);
        let mut whole = Self { cloud, runtime, config, running: None, dir };
        whole.run();
        whole
    }

    pub(crate) fn run(&mut self) {
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let (config, stopping) = (self.config.clone(), stop.clone());
        tasks.spawn(async move { edgecore::run(&config, stopping).await.unwrap() });
        self.running = Some((stop, tasks));
    }

    async fn stop(&mut self) {
        let (stop, mut tasks) = self.running.take().unwrap();
        stop.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(15), tasks.join_next()).await.unwrap();
        ended.unwrap().unwrap();
    }

    pub(crate) async fn kill(&mut self) {
        let (_, mut tasks) = self.running.take().unwrap();
        tasks.shutdown().await;
    }

    pub(crate) async fn send(&self, message: &Value) {
        self.cloud.send(message).await.unwrap();
        self.cloud.reply_to(id(message)).await.unwrap();
    }

    /// Brings a pod to run.
    async fn with_pod(&self) {
        self.cloud.connection(0).await.unwrap();
        self.send(&push("update", "default/pod/p", pod())).await;
        self.status("phase Running", |status| status["phase"] == "Running").await;
    }

    /// Waits for a status patch of the pod for which this holds.
    async fn status(&self, what: &str, matches: impl Fn(&Value) -> bool) -> Value {
        let patch = |m: &Received| {
            let text = m.message["content"].as_str().unwrap_or("{}");
            serde_json::from_str::<Value>(text).unwrap()
        };
        let found = |m: &Received| m.is("patch", "default/podpatch/p") && matches(&patch(m)["status"]);
        patch(&self.cloud.wait_for(what, found).await.unwrap())
    }

    fn containers(&self) -> Vec<String> {
        let runs = self.runtime.containers().into_iter().filter(|container| container.runs("p", "c"));
        runs.map(|container| container.id).collect()
    }
}

pub(crate) fn pod() -> Value {
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {"name": "p", "namespace": "default", "uid": "7b8f8f8e-1111-4222-8333-444455556666",
            "resourceVersion": "7200", "creationTimestamp": "2026-11-23T02:52:22Z"},
        "spec": {"nodeName": NODE, "restartPolicy": "Always", "terminationGracePeriodSeconds": 1, "enableServiceLinks": false,
            "automountServiceAccountToken": false, "dnsPolicy": "Default", "schedulerName": "default-scheduler",
            "containers": [{"name": "c", "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["sleep", "1d"],
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File", "resources": {}}]},
        "status": {"phase": "Pending", "qosClass": "BestEffort"},
    })
}

#[tokio::test]
async fn a_node_registers_and_runs_a_pod_of_a_go_cloud() {
    let mut whole = Whole::start().await;
    let cloud = &whole.cloud;
    let node = format!("null/node/{NODE}");
    let created = cloud.wait_for("the Node", |m| m.is("insert", &node)).await.unwrap();
    assert_eq!(created.message["content"]["metadata"]["name"], NODE);
    cloud.wait_for("status", |m| m.is("patch", &format!("null/nodepatch/{NODE}"))).await.unwrap();
    let lease = format!("kube-node-lease/lease/{NODE}");
    cloud.wait_for("lease", |m| m.route("resource") == lease && m.route("operation") != "query").await.unwrap();

    whole.send(&push("update", "default/pod/p", pod())).await;
    let patch = whole.status("phase Running", |status| status["phase"] == "Running").await;
    assert_eq!(patch["metadata"]["uid"], pod()["metadata"]["uid"]);
    assert_eq!(whole.containers().len(), 1);

    // The user deletes it: the edge stops it, then asks for the removal of the object.
    let mut dying = pod();
    dying["metadata"]["resourceVersion"] = json!("7300");
    dying["metadata"]["deletionTimestamp"] = json!("2026-11-23T02:53:22Z");
    dying["metadata"]["deletionGracePeriodSeconds"] = json!(1);
    whole.send(&push("update", "default/pod/p", dying.clone())).await;
    let deletion = whole.cloud.wait_for("deletion", |m| m.is("delete", "default/pod/p")).await.unwrap();
    assert_eq!(deletion.message["content"]["preconditions"]["uid"], pod()["metadata"]["uid"]);
    whole.send(&push("delete", "default/pod/p", dying)).await;
    assert_eq!(whole.containers(), Vec::<String>::new());
    assert_eq!(whole.cloud.complaints(), Vec::<String>::new());
    whole.stop().await;
}

#[tokio::test]
async fn a_node_that_the_cloud_knows_already_goes_on_with_it() {
    let cloud_knows = json!({"Object": {"metadata": {"creationTimestamp": null}}, "Err": {"ErrStatus": {
        "metadata": {}, "status": "Failure", "message": format!("nodes \"{NODE}\" already exists"), "reason": "AlreadyExists",
        "details": {"name": NODE, "kind": "nodes"}, "code": 409,
    }}});
    let mut whole = Whole::start().await;
    let node = format!("null/node/{NODE}");
    whole.cloud.answer(&node, Answer::Content(cloud_knows));
    whole.cloud.connection(0).await.unwrap();
    let text = whole.cloud.recorded().push("update", "node").unwrap().to_string().replace("go-edge", NODE);
    whole.send(&serde_json::from_str(&text).unwrap()).await;
    whole.cloud.wait_for("status", |m| m.is("patch", &format!("null/nodepatch/{NODE}"))).await.unwrap();
    whole.with_pod().await;
    assert_eq!(whole.cloud.complaints(), Vec::<String>::new());
    whole.stop().await;
}

#[tokio::test]
async fn pods_outlive_edgecore_and_the_cloud() {
    let mut whole = Whole::start().await;
    whole.with_pod().await;
    let before = whole.containers();
    whole.cloud.kill().await;
    whole.kill().await;
    whole.run();
    // What it has to do it does from its database: the container ends by itself, and is started again.
    whole.runtime.exit_named("p", "c", 1).unwrap();
    let after = eventually("another container", || Some(whole.containers()).filter(|now| !now.is_empty())).await;
    assert_ne!(before, after);
    whole.cloud.serve().await.unwrap();
    whole.status("the restart", |status| status["containerStatuses"][0]["restartCount"] == 1).await;
    assert_eq!(whole.containers(), after, "the cloud's return starts nothing anew");
    whole.stop().await;
    assert_eq!(whole.containers(), after, "nor does the end of edgecore stop anything");
}

fn configure(dir: &std::path::Path, cloud: &GoCloud, runtime: &FakeCri) -> Config {
    let at = |name: &str| dir.join(name).display().to_string();
    let document = json!({
        "database": {"dataSource": at("edgecore.db")},
        "modules": {
            "edged": {
                "enable": true, "hostnameOverride": NODE, "rootDirectory": at("kubelet"), "nodeIP": "127.0.0.1",
                "tailoredKubeletConfig": {
                    "containerRuntimeEndpoint": runtime.endpoint(), "imageServiceEndpoint": runtime.endpoint(),
                    "podLogsDir": at("logs"), "staticPodPath": at("manifests"), "cgroupsPerQOS": false, "readOnlyPort": 0,
                    // How full this machine is must not matter.
                    "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%",
                        "imagefs.available": "0%", "imagefs.inodesFree": "0%"},
                    "imageGCHighThresholdPercent": 100,
                },
            },
            "eventBus": {"mqttServerInternal": "tcp://127.0.0.1:0"},
            "edgeHub": {
                "heartbeat": 1, "httpServer": cloud.http_server(), "token": cloud.token(),
                "tlsCaFile": at("ca.crt"), "tlsCertFile": at("node.crt"), "tlsPrivateKeyFile": at("node.key"),
                "websocket": {"enable": true, "server": cloud.server()},
            },
        },
    });
    let path = dir.join("config/edgecore.yaml");
    std::fs::create_dir_all(dir.join("config")).unwrap();
    std::fs::write(&path, document.to_string()).unwrap();
    Config::load(&path).unwrap()
}
