//! A real control plane in a directory of its own, and a stand-in for the kubelet of a node.

// Each test program uses a part of this.
#![allow(dead_code)]
// A world that is not as expected ends the test.
#![allow(clippy::panic, clippy::expect_used)]

pub mod client;
pub mod kubectl;
pub mod kubelet;

use std::path::Path;
use std::time::{Duration, Instant};

use controlplane::{ControlPlane, Options};
use kubeapi::api::{DeleteOptions, WatchKind};
use kubeapi::{Api, ApiError, ListOptions, PatchType, ResourceRef, User, WriteOptions};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The longest that anything here may take.
const DEADLINE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);
/// How often a kubelet shows that it lives.
const HEARTBEAT: Duration = Duration::from_millis(300);

pub struct World {
    pub plane: Option<ControlPlane>,
    pub dir: TempDir,
    token: CancellationToken,
    kubelets: JoinSet<()>,
}

impl World {
    pub async fn start() -> Self {
        Self::start_with(Duration::from_secs(40)).await
    }

    pub async fn start_with(node_grace: Duration) -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let token = CancellationToken::new();
        let plane = start_in(dir.path(), node_grace, &token).await;
        Self { plane: Some(plane), dir, token, kubelets: JoinSet::new() }
    }

    /// Stops everything and starts again on the same state.
    pub async fn restart(&mut self) {
        self.kubelets.shutdown().await;
        self.token.cancel();
        self.plane.take().expect("running").stopped().await;
        self.token = CancellationToken::new();
        self.plane = Some(start_in(self.dir.path(), Duration::from_secs(40), &self.token).await);
    }

    pub fn api(&self) -> &Api {
        self.plane.as_ref().expect("running").api()
    }

    pub fn at(&self, plural: &str, namespace: &str, name: &str) -> ResourceRef {
        let group = match plural {
            "deployments" | "replicasets" | "daemonsets" | "statefulsets" | "controllerrevisions" => "apps",
            "jobs" => "batch",
            "storageclasses" => "storage.k8s.io",
            "runtimeclasses" => "node.k8s.io",
            "leases" => "coordination.k8s.io",
            "objectsyncs" => "reliablesyncs.kubeedge.io",
            "endpointslices" => "discovery.k8s.io",
            "customresourcedefinitions" => "apiextensions.k8s.io",
            "gadgets" => "example.org",
            _ => "",
        };
        self.api().reference(group, plural, namespace, name).expect("served")
    }

    pub async fn create(&self, plural: &str, namespace: &str, object: Value) -> Value {
        let what = self.at(plural, namespace, "");
        self.api().create(&User::system("test"), &what, object, &WriteOptions::default()).await.expect("created")
    }

    pub async fn patch(&self, plural: &str, namespace: &str, name: &str, patch: Value) -> Value {
        let what = self.at(plural, namespace, name);
        self.api().patch(&what, &patch, PatchType::Merge, &WriteOptions::default()).await.expect("patched")
    }

    pub async fn delete(&self, plural: &str, namespace: &str, name: &str, propagation: &str) {
        let options = DeleteOptions { propagation_policy: propagation.to_owned(), ..DeleteOptions::default() };
        self.api().delete(&self.at(plural, namespace, name), &options).await.expect("deleted");
    }

    pub fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        match self.api().get(&self.at(plural, namespace, name)) {
            Ok(object) => Some(object),
            Err(error) if error.is_not_found() => None,
            Err(error) => panic!("{plural}/{name}: {error}"),
        }
    }

    pub fn list(&self, plural: &str, namespace: &str) -> Vec<Value> {
        self.api().list(&self.at(plural, namespace, ""), &ListOptions::default()).expect("listed").items
    }

    /// Pods of a namespace that run on a node and are not being deleted.
    pub fn running(&self, namespace: &str) -> Vec<Value> {
        let mut pods = self.list("pods", namespace);
        pods.retain(|p| p["status"]["phase"] == "Running" && p["metadata"]["deletionTimestamp"].is_null());
        pods
    }

    /// The reasons of all events about an object.
    pub fn reasons(&self, namespace: &str, name: &str) -> Vec<String> {
        let mut events = self.list("events", namespace);
        events.retain(|e| e["involvedObject"]["name"] == name);
        events
            .iter()
            .map(|e| format!("{}: {}", e["reason"].as_str().unwrap_or(""), e["message"].as_str().unwrap_or("")))
            .collect()
    }

    /// Waits until this is so.
    pub async fn eventually(&self, what: &str, mut is: impl FnMut(&Self) -> bool) {
        let start = Instant::now();
        while !is(self) {
            if start.elapsed() > DEADLINE {
                let short = |plural: &str| -> Vec<String> {
                    self.list(plural, "")
                        .iter()
                        .map(|o| format!("{} {} {}", o["metadata"], o["spec"]["nodeName"], o["status"]))
                        .collect()
                };
                panic!(
                    "not so: {what}\npods: {:#?}\nsets: {:#?}\ndeployments: {:#?}",
                    short("pods"),
                    short("replicasets"),
                    short("deployments")
                );
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// A node that is ready, with a kubelet that runs its pods at once and ends them when asked. Those with the command `true`
    /// or `false` end by themselves.
    pub async fn node(&mut self, name: &str, labels: Value) {
        self.create("nodes", "", node(name, labels)).await;
        self.kubelet(name);
        let name = name.to_owned();
        self.eventually("the node has no taints", |w| {
            w.get("nodes", "", &name).is_some_and(|n| n["spec"]["taints"].as_array().is_none_or(Vec::is_empty))
        })
        .await;
    }

    /// Starts (again) the kubelet of a node.
    pub fn kubelet(&mut self, name: &str) {
        let (api, name) = (self.api().clone(), name.to_owned());
        let pods = self.at("pods", "", "");
        let lease = self.at("leases", "kube-node-lease", &name);
        self.kubelets.spawn(async move {
            let mut watch = api.watch(&pods, &ListOptions::default(), None).expect("watch");
            let mut heartbeat = tokio::time::interval(HEARTBEAT);
            for beat in 0_u64.. {
                let event = tokio::select! {
                    event = watch.next() => event,
                    _ = heartbeat.tick() => {
                        renew(&api, &lease, beat).await;
                        continue;
                    }
                };
                let Ok(event) = event else { return };
                let pod = event.object().expect("object");
                if event.kind != WatchKind::Deleted && pod["spec"]["nodeName"] == name.as_str() {
                    run(&api, &pods, &pod).await;
                }
            }
        });
    }

    /// All kubelets fall silent; what ran goes on.
    pub async fn cut_the_wire(&mut self) {
        self.kubelets.shutdown().await;
    }
}

/// A sign of life; what it says does not matter, only that it differs from the last one.
async fn renew(api: &Api, lease: &ResourceRef, beat: u64) {
    let time = format!("2026-11-24T12:00:00.{:06}Z", beat % 1_000_000);
    let patch = json!({"spec": {"renewTime": time}});
    let options = WriteOptions::default();
    if api.patch(lease, &patch, PatchType::Merge, &options).await.is_err() {
        let new = json!({"metadata": {"name": lease.name}, "spec": {"holderIdentity": lease.name, "renewTime": time}});
        let what = lease.named(&lease.namespace, "");
        let _ = api.create(&User::system("test"), &what, new, &options).await;
    }
}

async fn start_in(dir: &Path, node_grace: Duration, token: &CancellationToken) -> ControlPlane {
    let options = Options { node_grace, ..Options::new(dir, "127.0.0.1:0".parse().expect("address")) };
    controlplane::start(options, token.clone()).await.expect("the control plane starts")
}

fn node(name: &str, labels: Value) -> Value {
    let mut all = json!({"kubernetes.io/hostname": name});
    for (key, value) in labels.as_object().into_iter().flatten() {
        all[key] = value.clone();
    }
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": all},
        "status": {
            "allocatable": {"cpu": "4", "memory": "4Gi", "pods": "110"}, "capacity": {"cpu": "4", "memory": "4Gi", "pods": "110"},
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "ready",
                "lastHeartbeatTime": "2026-11-24T12:00:00Z", "lastTransitionTime": "2026-11-24T12:00:00Z"}],
        },
    })
}

async fn run(api: &Api, pods: &ResourceRef, pod: &Value) {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let what = pods.named(&text(&pod["metadata"]["namespace"]), &text(&pod["metadata"]["name"]));
    let result: Result<(), ApiError> = if !pod["metadata"]["deletionTimestamp"].is_null() {
        let now = DeleteOptions {
            grace_period_seconds: Some(0),
            uid: text(&pod["metadata"]["uid"]),
            ..DeleteOptions::default()
        };
        api.delete(&what, &now).await.map(drop)
    } else if matches!(pod["status"]["phase"].as_str(), None | Some("Pending")) {
        let time = "2026-11-24T12:00:00Z";
        let command = pod["spec"]["containers"][0]["command"][0].as_str();
        if let Some(phase) = [("true", "Succeeded"), ("false", "Failed")].iter().find(|(c, _)| command == Some(*c)) {
            let ended = json!([{"state": {"terminated": {"finishedAt": time}}}]);
            let status = json!({"status": {"phase": phase.1, "startTime": time, "containerStatuses": ended}});
            return written(
                api.patch(&what.sub("status"), &status, PatchType::Merge, &WriteOptions::default()).await.map(drop),
            );
        }
        let mut conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.push(json!({"type": "Ready", "status": "True", "lastTransitionTime": time}));
        let status =
            json!({"status": {"phase": "Running", "podIP": "10.0.0.1", "startTime": time, "conditions": conditions}});
        api.patch(&what.sub("status"), &status, PatchType::Merge, &WriteOptions::default()).await.map(drop)
    } else {
        Ok(())
    };
    written(result);
}

fn written(result: Result<(), ApiError>) {
    if let Err(error) = result {
        assert!(error.is_not_found() || error.is_conflict(), "{error}");
    }
}

/// A Deployment of so many pods of an image.
pub fn deployment(name: &str, replicas: i64, image: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": image}]}},
        },
    })
}
