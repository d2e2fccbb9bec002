//! The same with a real containerd: what the runtime in memory cannot show. Needs root, containerd, runc, CNI plugins and a
//! static busybox, as `cargo xtask test` installs them.

use std::path::Path;
use std::time::Duration;

use beehive::ModuleManager;
use edged::{Edged, Settings};
use serde_json::{Value, json};
use testkit::containerd::{BUSYBOX_IMAGE, Containerd, ContainerdOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{cloud::Cloud, pod_with};

/// Starting real containers on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Unmounts below the test's folder at its end.
struct Mounts(std::path::PathBuf);

impl Drop for Mounts {
    fn drop(&mut self) {
        if let Err(error) = Containerd::unmount_below(&self.0) {
            eprintln!("unmounting below {}: {error:#}", self.0.display());
        }
    }
}

fn start(directory: &Path, endpoint: String, cloud: &Cloud) -> JoinSet<()> {
    let mut settings = Settings::new("n1");
    settings.root_dir = directory.join("kubelet");
    settings.pod_logs_dir = directory.join("logs");
    settings.runtime_endpoint = endpoint;
    settings.read_only_port = 0;
    // How full this machine is must not matter.
    settings.eviction.thresholds.clear();
    settings.image_gc.high_percent = 100;
    settings.node_ip = Some("192.0.2.2".parse().unwrap());
    let mut modules = ModuleManager::new();
    modules.register(Edged::new(settings));
    modules.register(cloud.module());
    let mut running = JoinSet::new();
    running.spawn(modules.run(CancellationToken::new()));
    running
}

async fn until(what: &str, cloud: &Cloud, holds: impl Fn(&Value) -> bool) -> Value {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let pod = cloud.pod("web").unwrap_or(Value::Null);
        if holds(&pod) {
            return pod;
        }
        assert!(tokio::time::Instant::now() < deadline, "not in time: {what}: {pod:#}\n{:#?}", cloud.events("web"));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

async fn get(ip: &str) -> String {
    let mut stream = TcpStream::connect((ip, 8080)).await.unwrap();
    stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_web_server_survives_edged_containerd_and_a_power_cut() {
    let directory = tempfile::tempdir().unwrap();
    let _mounts = Mounts(directory.path().to_owned());
    let options = ContainerdOptions::for_test(directory.path(), 1);
    let mut containerd = Containerd::start(options.clone()).await.unwrap();
    containerd.import_busybox().await.unwrap();
    let cloud = Cloud::new();
    let mut edged = start(directory.path(), containerd.endpoint(), &cloud);
    cloud
        .create_other(
            "default/configmap/page",
            json!({"metadata": {"name": "page", "namespace": "default"}, "data": {"index.html": "hello"}}),
        )
        .await;
    cloud
        .create(pod_with("web", |pod| {
            pod["spec"]["containers"][0]["image"] = json!(BUSYBOX_IMAGE);
            pod["spec"]["containers"][0]["command"] = json!([
                "sh",
                "-c",
                "echo serving; trap 'exit 0' TERM; httpd -p 8080 -h /page; while :; do sleep 0.2; done"
            ]);
            pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "page", "mountPath": "/page"}]);
            pod["spec"]["containers"][0]["readinessProbe"] =
                json!({"httpGet": {"port": 8080, "path": "/index.html"}, "periodSeconds": 1});
            pod["spec"]["volumes"] = json!([{"name": "page", "configMap": {"name": "page"}}]);
        }))
        .await;
    let web = until("ready", &cloud, is_ready).await;
    let id = web["status"]["containerStatuses"][0]["containerID"].clone();
    let ip = web["status"]["podIP"].as_str().unwrap().to_owned();
    assert!(get(&ip).await.ends_with("hello"));
    let log = directory.path().join("logs/default_web_uid-web/main/0.log");
    assert!(std::fs::read_to_string(log).unwrap().contains("stdout F serving"));

    edged.shutdown().await;
    cloud.set_offline(true);
    let mut edged = start(directory.path(), containerd.endpoint(), &cloud);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(get(&ip).await.ends_with("hello"), "edged was killed, the container was not");
    cloud.set_offline(false);
    cloud.push_again("web").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let web = until("ready", &cloud, is_ready).await;
    assert_eq!(
        (&web["status"]["containerStatuses"][0]["containerID"], &web["status"]["containerStatuses"][0]["restartCount"]),
        (&id, &json!(0))
    );

    cloud.set_offline(true);
    edged.shutdown().await;
    containerd.power_off().await.unwrap();
    drop(containerd);
    let containerd = Containerd::start(options).await.unwrap();
    let mut edged = start(directory.path(), containerd.endpoint(), &cloud);
    tokio::time::sleep(Duration::from_secs(1)).await;
    cloud.set_offline(false);
    let restarted = |pod: &Value| pod["status"]["containerStatuses"][0]["restartCount"] == 1 && is_ready(pod);
    let web = until("back after the power cut", &cloud, restarted).await;
    assert!(get(web["status"]["podIP"].as_str().unwrap()).await.ends_with("hello"));

    cloud.delete("web", 5).await;
    until("deleted", &cloud, Value::is_null).await;
    assert!(!directory.path().join("kubelet/pods/uid-web").exists());
    edged.shutdown().await;
    containerd.stop().await.unwrap();
}
