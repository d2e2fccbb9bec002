//! The whole edgecore, with the real edged on a container runtime in memory, under a Go cloud.

use std::time::Duration;

use api::edgecore::Config;
use serde_json::{Value, json};
use testkit::fake_cri::FakeCri;
use testkit::go_cloud::GoCloud;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::support::{NODE, id, push};

#[tokio::test]
async fn a_node_registers_and_runs_a_pod_of_a_go_cloud() {
    let cloud = GoCloud::start().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let runtime = FakeCri::start(&dir.path().join("cri")).await.unwrap();
    runtime.add_image("docker.io/library/busybox:1");
    let config = configure(dir.path(), &cloud, &runtime);
    let stop = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let stopping = stop.clone();
    tasks.spawn(async move { edgecore::run(&config, stopping).await.unwrap() });

    let node = format!("null/node/{NODE}");
    let created = cloud.wait_for("the Node", |m| m.is("insert", &node)).await.unwrap();
    assert_eq!(created.message["content"]["metadata"]["name"], NODE);
    cloud.wait_for("status", |m| m.is("patch", &format!("null/nodepatch/{NODE}"))).await.unwrap();
    let lease = format!("kube-node-lease/lease/{NODE}");
    cloud.wait_for("lease", |m| m.route("resource") == lease && m.route("operation") != "query").await.unwrap();

    let pod = json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {"name": "p", "namespace": "default", "uid": "7b8f8f8e-1111-4222-8333-444455556666", "resourceVersion": "7200",
            "creationTimestamp": "2026-11-23T02:52:22Z"},
        "spec": {"nodeName": NODE, "restartPolicy": "Always", "terminationGracePeriodSeconds": 1, "enableServiceLinks": false,
            "automountServiceAccountToken": false, "dnsPolicy": "Default", "schedulerName": "default-scheduler",
            "containers": [{"name": "c", "image": "docker.io/library/busybox:1", "imagePullPolicy": "IfNotPresent", "command": ["sleep", "1d"],
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File", "resources": {}}]},
        "status": {"phase": "Pending", "qosClass": "BestEffort"},
    });
    let message = push("update", "default/pod/p", pod.clone());
    cloud.send(&message).await.unwrap();
    cloud.reply_to(id(&message)).await.unwrap();
    let runs = |m: &testkit::go_cloud::Received| {
        m.is("patch", "default/podpatch/p") && {
            let patch: Value = serde_json::from_str(m.message["content"].as_str().unwrap_or("{}")).unwrap();
            patch["status"]["phase"] == "Running"
        }
    };
    let running = cloud.wait_for("phase Running", runs).await.unwrap();
    let patch: Value = serde_json::from_str(running.message["content"].as_str().unwrap()).unwrap();
    assert_eq!(patch["metadata"]["uid"], pod["metadata"]["uid"]);
    assert!(runtime.containers().iter().any(|container| container.runs("p", "c")));

    // The user deletes it: the edge stops it, then asks for the removal of the object.
    let mut dying = pod.clone();
    dying["metadata"]["resourceVersion"] = json!("7300");
    dying["metadata"]["deletionTimestamp"] = json!("2026-11-23T02:53:22Z");
    dying["metadata"]["deletionGracePeriodSeconds"] = json!(1);
    let message = push("update", "default/pod/p", dying.clone());
    cloud.send(&message).await.unwrap();
    cloud.reply_to(id(&message)).await.unwrap();
    let deletion = cloud.wait_for("deletion", |m| m.is("delete", "default/pod/p")).await.unwrap();
    assert_eq!(deletion.message["content"]["preconditions"]["uid"], pod["metadata"]["uid"]);
    let message = push("delete", "default/pod/p", dying);
    cloud.send(&message).await.unwrap();
    cloud.reply_to(id(&message)).await.unwrap();
    assert!(!runtime.containers().iter().any(|container| container.runs("p", "c")));
    assert_eq!(cloud.complaints(), Vec::<String>::new());

    stop.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(15), tasks.join_next()).await.unwrap();
    ended.unwrap().unwrap();
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
                },
            },
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
