//! cloudcore and the embedded Kubernetes in this process, on ports of their own; cloudcore alone can be restarted.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use api::cloudcore::Config;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cloudcore::Addresses;
use cloudcore::cloudstream::address::Published;
use cloudcore::kubernetes::Kubernetes;
use controlplane::{ControlPlane, Options};
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::deployment::Cluster;
use testkit::go_edge::{Behaviour, Credentials, GoEdge, register};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How long anything may take here.
pub const SOON: Duration = Duration::from_secs(20);

const NOWHERE: Addresses = {
    let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
    Addresses { websocket: address, https: address, streams: None, monitor: None }
};

/// The cloud side.
pub struct Cloud {
    /// A client with all rights.
    pub cluster: Cluster,
    plane: Option<ControlPlane>,
    plane_stops: CancellationToken,
    /// What cloudcore shows the API.
    kubeconfig: PathBuf,
    dir: TempDir,
    /// `advertiseAddress` of those that start from now on.
    pub advertised: &'static str,
    /// `modules.cloudStream.collect` of those that start from now on; empty is none.
    pub collect: String,
    running: Option<Running>,
}

/// A running cloudcore; dropping it is a crash.
pub struct Running {
    /// Where it listens.
    pub addresses: Addresses,
    /// Its way to the API.
    pub kubernetes: Kubernetes,
    stopping: CancellationToken,
    task: JoinHandle<Result<()>>,
    /// Its own, so that it can die as a process does.
    runtime: Option<Runtime>,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Cloud {
    /// Both, with default settings.
    pub async fn start() -> Result<Self> {
        Self::start_with("").await
    }

    /// Both; `hub` is added below `modules.cloudHub`.
    pub async fn start_with(hub: &str) -> Result<Self> {
        let mut cloud = Self::start_without_hub().await?;
        cloud.start_hub(hub).await?;
        Ok(cloud)
    }

    /// The embedded Kubernetes alone.
    pub async fn start_without_hub() -> Result<Self> {
        log();
        link::tls::install_provider();
        let dir = tempfile::tempdir()?;
        let listen = "127.0.0.1:0".parse()?;
        let plane_stops = CancellationToken::new();
        let options = Options::new(dir.path().join("kubernetes"), listen);
        let plane = controlplane::start(options, plane_stops.clone()).await?;
        let cluster = Cluster::open(plane.kubeconfig_path())?;
        let kubeconfig = plane.cloudcore_kubeconfig_path().to_owned();
        Ok(Self {
            cluster,
            plane: Some(plane),
            plane_stops,
            kubeconfig,
            dir,
            running: None,
            advertised: "127.0.0.1",
            collect: String::new(),
        })
    }

    /// Stops the embedded Kubernetes, does this to the folder of its state, and starts it again where it was.
    pub async fn restart_kubernetes(&mut self, meanwhile: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let plane = self.plane.take().context("it does not run")?;
        let options = Options::new(plane.data_dir(), plane.addr());
        self.plane_stops.cancel();
        plane.stopped().await;
        meanwhile(&options.data_dir)?;
        self.plane_stops = CancellationToken::new();
        self.plane = Some(controlplane::start(options, self.plane_stops.clone()).await?);
        Ok(())
    }

    /// From now on cloudcore is a ServiceAccount of namespace `kubeedge`.
    pub async fn be_service_account(&mut self, name: &str) -> Result<()> {
        let path = format!("/api/v1/namespaces/kubeedge/serviceaccounts/{name}/token");
        let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}});
        let answer = self.create(&path, &request).await?;
        let mut config: Value = serde_saphyr::from_str(&std::fs::read_to_string(self.cluster.kubeconfig())?)?;
        config["users"][0]["user"] = json!({"token": answer["status"]["token"]});
        self.kubeconfig = self.dir.path().join("kubeconfig");
        std::fs::write(&self.kubeconfig, config.to_string())?;
        Ok(())
    }

    /// cloudcore alone; returns when it listens and its token is published.
    pub async fn start_hub(&mut self, hub: &str) -> Result<()> {
        self.running = Some(self.start_replica(hub).await?);
        let cluster = self.cluster.clone();
        self.cluster.wait("a join token", SOON, || cluster.has_token()).await
    }

    /// One more cloudcore; returns when it listens.
    pub async fn start_replica(&self, hub: &str) -> Result<Running> {
        let config =
            Config::parse(&config(self.dir.path(), self.advertised, hub, &self.collect), Path::new("cloudcore.yaml"))?;
        let kubernetes = Kubernetes::connect(Some(&self.kubeconfig)).await?;
        let stopping = CancellationToken::new();
        let (listening, addresses) = oneshot::channel();
        let stop = stopping.clone();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let api = kubernetes.clone();
        let task = runtime
            .spawn(async move { Ok(cloudcore::run(&config, api, Published::default(), listening, stop).await?) });
        let mut running = Running { addresses: NOWHERE, kubernetes, stopping, task, runtime: Some(runtime) };
        running.addresses = match addresses.await {
            Ok(addresses) => addresses,
            Err(_) => return (&mut running.task).await?.and(Err(anyhow!("cloudcore ended"))),
        };
        Ok(running)
    }

    /// Stops cloudcore in order; the embedded Kubernetes goes on.
    pub async fn stop_hub(&mut self) -> Result<()> {
        let mut running = self.running.take().context("cloudcore does not run")?;
        running.stopping.cancel();
        (&mut running.task).await?
    }

    /// Ends cloudcore without giving it time, as a crash does.
    pub fn kill_hub(&mut self) {
        self.running = None;
    }

    /// The socket for programs beside cloudcore.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("cloudcore.sock")
    }

    /// Where cloudcore listens.
    pub fn addresses(&self) -> Addresses {
        self.running.as_ref().expect("cloudcore runs").addresses
    }

    /// Requests that the running cloudcore has sent to the API.
    pub fn requests(&self) -> u64 {
        self.running.as_ref().expect("cloudcore runs").kubernetes.requests()
    }

    /// The published join token.
    pub async fn token(&self) -> Result<String> {
        let data = self.secret("tokensecret", "tokendata").await?;
        Ok(String::from_utf8(data)?)
    }

    /// One value of a Secret in namespace `kubeedge`.
    pub async fn secret(&self, name: &str, key: &str) -> Result<Vec<u8>> {
        let secret = self.get(&format!("/api/v1/namespaces/kubeedge/secrets/{name}")).await?;
        Ok(STANDARD.decode(secret["data"][key].as_str().context("no such key")?)?)
    }

    /// Registers a node's edge with the published token.
    pub async fn register(&self, node: &str) -> Result<Credentials> {
        register(self.addresses().https, &self.token().await?, node).await
    }

    /// A Go edge that is registered and connected, and whose Node object exists and is Ready.
    pub async fn edge(&self, node: &str) -> Result<(GoEdge, Credentials)> {
        let credentials = self.register(node).await?;
        let edge = self.connect(&credentials, node).await?;
        let answer =
            edge.request(testkit::go_edge::request("insert", &format!("null/node/{node}"), node_object(node))).await?;
        anyhow::ensure!(answer["content"]["Err"].is_null(), "{answer}");
        Ok((edge, credentials))
    }

    /// Connects again.
    pub async fn connect(&self, credentials: &Credentials, node: &str) -> Result<GoEdge> {
        GoEdge::connect(self.addresses().websocket, credentials, node).await
    }

    /// Connects again with the database of an earlier connection.
    pub async fn reconnect(
        &self,
        credentials: &Credentials,
        before: testkit::go_edge::Seen,
        node: &str,
    ) -> Result<GoEdge> {
        GoEdge::connect_with(self.addresses().websocket, credentials, node, Behaviour::default(), before.rows).await
    }

    /// An object that must exist.
    pub async fn get(&self, path: &str) -> Result<Value> {
        self.cluster.get(path).await
    }

    /// Creates an object.
    pub async fn create(&self, path: &str, object: &Value) -> Result<Value> {
        match self.cluster.post(path, object).await? {
            (201, object) => Ok(object),
            (status, answer) => Err(anyhow!("creating at {path}: {status} {answer}")),
        }
    }

    /// Merges a patch into an object.
    pub async fn patch(&self, path: &str, patch: &Value) -> Result<Value> {
        match self.cluster.patch(path, patch).await? {
            (200, object) => Ok(object),
            (status, answer) => Err(anyhow!("patching {path}: {status} {answer}")),
        }
    }

    /// Deletes an object.
    pub async fn delete(&self, path: &str) -> Result<()> {
        match self.cluster.delete(path).await? {
            (200 | 202, _) => Ok(()),
            (status, answer) => Err(anyhow!("deleting {path}: {status} {answer}")),
        }
    }

    /// Deletes a pod with this grace period.
    pub async fn delete_pod(&self, name: &str, seconds: u32) -> Result<()> {
        self.delete(&format!("/api/v1/namespaces/default/pods/{name}?gracePeriodSeconds={seconds}")).await
    }

    /// Waits until an object is as wanted; one that does not exist is null.
    pub async fn wait_for(&self, path: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Result<Value> {
        let last = std::sync::Mutex::new(Value::Null);
        let look = || async {
            let object = self.cluster.get(path).await.unwrap_or(Value::Null);
            let found = holds(&object);
            *last.lock().expect("not poisoned") = object;
            Ok(found)
        };
        let waited = self.cluster.wait(what, SOON, look).await;
        let last = last.into_inner().expect("not poisoned");
        waited.with_context(|| format!("{path} is {last}")).map(|()| last)
    }
}

/// A node as an edge registers it, without what no test looks at.
pub fn node_object(node: &str) -> Value {
    json!({
        "metadata": {"name": node, "creationTimestamp": null, "labels": {"kubernetes.io/hostname": node, "node-role.kubernetes.io/edge": ""}},
        "spec": {},
        "status": {
            "capacity": {"cpu": "2", "memory": "2Gi", "pods": "110"},
            "allocatable": {"cpu": "2", "memory": "2Gi", "pods": "110"},
            "conditions": [{"type": "Ready", "status": "True", "reason": "EdgeReady", "message": "edge is posting ready status",
                "lastHeartbeatTime": "2026-11-23T02:52:22Z", "lastTransitionTime": "2026-11-23T02:52:22Z"}],
        },
    })
}

/// A pod bound to a node.
pub fn pod(name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"nodeName": node, "containers": [{"name": "main", "image": "busybox"}]},
    })
}

/// A ConfigMap.
pub fn config_map(name: &str, value: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"key": value}})
}

fn config(dir: &Path, advertised: &str, hub: &str, collect: &str) -> String {
    let collect = if collect.is_empty() { String::new() } else { format!(", collect: {collect}") };
    let files: String = [
        ("tlsCAFile", "ca.crt"),
        ("tlsCAKeyFile", "ca.key"),
        ("tlsCertFile", "server.crt"),
        ("tlsPrivateKeyFile", "server.key"),
    ]
    .iter()
    .map(|(key, file)| format!("    {key}: {}\n", dir.join(file).display()))
    .collect();
    format!(
        "apiVersion: cloudcore.config.kubeedge.io/v1alpha2\nkind: CloudCore\ncommonConfig: {{monitorServer: {{bindAddress: \"127.0.0.1:0\"}}}}\nmodules:\n  cloudHub:\n    advertiseAddress: [{advertised}]\n\
         \x20   websocket: {{enable: true, address: 127.0.0.1, port: 0}}\n    https: {{enable: true, address: 127.0.0.1, port: 0}}\n    unixsocket: {{enable: true, address: \"unix://{}\"}}\n{files}{hub}\n\
         \x20 cloudStream: {{enable: true, streamPort: 0, tunnelPort: 0{collect}}}\n",
        dir.join("cloudcore.sock").display()
    )
}

/// What cloudcore logged until now in this process, tests beside this one included.
pub fn logged() -> String {
    String::from_utf8_lossy(&LOG.lock().expect("not poisoned")).into_owned()
}

/// Waits until a line of the log has all these texts.
pub async fn wait_logged(texts: &[&str]) -> Result<()> {
    let deadline = tokio::time::Instant::now() + SOON;
    loop {
        if logged().lines().any(|line| texts.iter().all(|text| line.contains(text))) {
            return Ok(());
        }
        anyhow::ensure!(tokio::time::Instant::now() < deadline, "no line of the log has {texts:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Log;

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        LOG.lock().expect("not poisoned").extend_from_slice(line);
        if std::env::var_os("FERROEDGE_TEST_LOG").is_some() {
            std::io::stderr().write_all(line)?;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn log() {
    // An error says that another test of this process was first.
    let _ = tracing_subscriber::fmt().with_ansi(false).with_writer(|| Log).try_init();
}
