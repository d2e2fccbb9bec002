//! Device plugins: a sample plugin on the agent's socket, and pods with its devices.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use edged::devices::proto;
use edged::devices::proto::device_plugin_server::{DevicePlugin, DevicePluginServer};
use edged::devices::proto::registration_client::RegistrationClient;
use futures_util::stream::{self, BoxStream, StreamExt};
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status};

use crate::{Site, pod, pod_with};

const RESOURCE: &str = "example.com/dongle";

/// A plugin that runs, until it is dropped.
struct Plugin {
    devices: watch::Sender<Vec<proto::Device>>,
    calls: Arc<Mutex<Vec<String>>>,
    dir: PathBuf,
    running: JoinSet<()>,
}

#[derive(Clone)]
struct Service {
    devices: watch::Receiver<Vec<proto::Device>>,
    calls: Arc<Mutex<Vec<String>>>,
}

fn device(id: &str, healthy: bool) -> proto::Device {
    proto::Device { id: id.to_owned(), health: if healthy { "Healthy" } else { "Unhealthy" }.to_owned() }
}

async fn register(dir: &Path, request: proto::RegisterRequest) -> Result<(), Status> {
    let uri = format!("unix://{}", dir.join("kubelet.sock").display());
    let channel = Endpoint::from_shared(uri).unwrap().connect_lazy();
    RegistrationClient::new(channel).register(request).await.map(drop)
}

fn registration(resource: &str, endpoint: &str) -> proto::RegisterRequest {
    let options = proto::DevicePluginOptions { pre_start_required: true, get_preferred_allocation_available: true };
    proto::RegisterRequest {
        version: "v1beta1".into(),
        endpoint: endpoint.into(),
        resource_name: resource.into(),
        options: Some(options),
    }
}

impl Plugin {
    async fn start(site: &Site) -> Self {
        let dir = site.settings.root_dir.join("device-plugins");
        let (devices, watched) = watch::channel(vec![device("a", true), device("b", true), device("c", false)]);
        let calls = Arc::default();
        let mut plugin = Self { devices, calls: Arc::clone(&calls), dir, running: JoinSet::new() };
        plugin.serve(Service { devices: watched, calls });
        plugin.register(site).await;
        plugin
    }

    fn serve(&mut self, service: Service) {
        let socket = self.dir.join("dongle.sock");
        self.running.spawn(async move {
            let deadline = tokio::time::Instant::now() + crate::site::PATIENCE;
            while !socket.parent().unwrap().join("kubelet.sock").exists() && tokio::time::Instant::now() < deadline {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            let _ = std::fs::remove_file(&socket);
            let listener = UnixListener::bind(&socket).unwrap();
            let connections = stream::try_unfold(listener, |listener| async {
                let (connection, _) = listener.accept().await?;
                Ok::<_, std::io::Error>(Some((connection, listener)))
            });
            Server::builder()
                .add_service(DevicePluginServer::new(service))
                .serve_with_incoming(connections)
                .await
                .unwrap();
        });
    }

    async fn register(&self, site: &Site) {
        site.eventually("registered", async || {
            self.dir.join("dongle.sock").exists()
                && register(&self.dir, registration(RESOURCE, "dongle.sock")).await.is_ok()
        })
        .await;
    }

    fn calls(&self, name: &str) -> Vec<String> {
        let calls = self.calls.lock().unwrap();
        calls.iter().filter(|call| call.starts_with(name)).cloned().collect()
    }
}

#[tonic::async_trait]
impl DevicePlugin for Service {
    type ListAndWatchStream = BoxStream<'static, Result<proto::ListAndWatchResponse, Status>>;

    async fn get_device_plugin_options(
        &self,
        _: Request<proto::Empty>,
    ) -> Result<Response<proto::DevicePluginOptions>, Status> {
        Ok(Response::new(proto::DevicePluginOptions::default()))
    }

    async fn list_and_watch(&self, _: Request<proto::Empty>) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let lists = stream::unfold((self.devices.clone(), true), |(mut devices, first)| async move {
            if !first {
                devices.changed().await.ok()?;
            }
            let list = proto::ListAndWatchResponse { devices: devices.borrow_and_update().clone() };
            Some((Ok(list), (devices, false)))
        });
        Ok(Response::new(lists.boxed()))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<proto::PreferredAllocationRequest>,
    ) -> Result<Response<proto::PreferredAllocationResponse>, Status> {
        // The last of those that may be had, and one that may not.
        let mut wishes = request.into_inner().container_requests.remove(0).available_device_i_ds;
        wishes.push("z".into());
        wishes.reverse();
        let container_responses = vec![proto::ContainerPreferredAllocationResponse { device_i_ds: wishes }];
        Ok(Response::new(proto::PreferredAllocationResponse { container_responses }))
    }

    async fn allocate(
        &self,
        request: Request<proto::AllocateRequest>,
    ) -> Result<Response<proto::AllocateResponse>, Status> {
        let ids = request.into_inner().container_requests.remove(0).devices_ids.join(",");
        self.calls.lock().unwrap().push(format!("allocate {ids}"));
        let answer = proto::ContainerAllocateResponse {
            envs: [("DONGLES".to_owned(), ids)].into(),
            mounts: vec![proto::Mount {
                container_path: "/dongle-host".into(),
                host_path: "/etc/hostname".into(),
                read_only: true,
            }],
            devices: vec![proto::DeviceSpec {
                container_path: "/dev/dongle".into(),
                host_path: "/dev/zero".into(),
                permissions: "r".into(),
            }],
            ..Default::default()
        };
        Ok(Response::new(proto::AllocateResponse { container_responses: vec![answer] }))
    }

    async fn pre_start_container(
        &self,
        request: Request<proto::PreStartContainerRequest>,
    ) -> Result<Response<proto::PreStartContainerResponse>, Status> {
        let ids = request.into_inner().devices_ids.join(",");
        self.calls.lock().unwrap().push(format!("start {ids}"));
        Ok(Response::new(proto::PreStartContainerResponse {}))
    }
}

/// Capacity and allocatable of the resource as the API has them by now.
fn supply(site: &Site) -> (Value, Value) {
    let mut last = (Value::Null, Value::Null);
    for (_, resource, content) in site.cloud.log() {
        if !resource.ends_with("/n1") || !(resource.contains("/node/") || resource.contains("/nodepatch/")) {
            continue;
        }
        let node: Value = content.as_str().map_or(content.clone(), |text| serde_json::from_str(text).unwrap());
        for (field, value) in [("capacity", &mut last.0), ("allocatable", &mut last.1)] {
            if let Some(amount) = node["status"][field].get(RESOURCE) {
                *value = amount.clone();
            }
        }
    }
    last
}

async fn until_supply(site: &Site, capacity: &str, allocatable: &str) {
    site.eventually(&format!("{capacity} dongles, {allocatable} of use"), async || {
        supply(site) == (json!(capacity), json!(allocatable))
    })
    .await;
}

fn with_dongles(name: &str, count: &str) -> Value {
    let resources = json!({"limits": {RESOURCE: count}, "requests": {RESOURCE: count}});
    pod_with(name, |pod| {
        let container = &mut pod["spec"]["containers"][0];
        container["name"] = json!("main");
        let script = "echo got $DONGLES; head -c 2 /dev/dongle | od -c; cat /dongle-host; sleep 3600";
        container["command"] = json!(["sh", "-c", script]);
        container["resources"] = resources;
    })
}

fn said(site: &Site, pod: &str) -> String {
    std::fs::read_to_string(site.log_dir(pod).join("main/0.log")).unwrap_or_default()
}

#[tokio::test]
async fn t83_a_pod_gets_the_devices_of_a_plugin_and_keeps_them() {
    let mut site = Site::start().await;
    let plugin = Plugin::start(&site).await;
    until_supply(&site, "3", "2").await;
    site.run(with_dongles("first", "1")).await;
    assert_eq!(plugin.calls("allocate"), ["allocate b"], "what the plugin prefers");
    assert_eq!(plugin.calls("start"), ["start b"]);
    let host = std::fs::read_to_string("/etc/hostname").unwrap();
    site.eventually("what the container sees", async || {
        let text = said(&site, "first");
        text.contains("got b\n") && text.contains("\\0  \\0") && text.contains(host.trim())
    })
    .await;
    let first = site.container_id("first", "main").await;

    site.cloud.create(with_dongles("greedy", "2")).await;
    let refused = site.until("greedy", "refused", |pod| pod["status"]["phase"] == "Failed").await;
    assert_eq!(refused["status"]["reason"], format!("OutOf{RESOURCE}"), "{refused:#}");

    // The agent goes and comes back, its plugin does not: the pod keeps what it has.
    site.kill_edged().await;
    drop(plugin);
    site.start_edged();
    until_supply(&site, "0", "0").await;
    site.eventually("the pod is looked after", async || {
        site.cloud.pod("first").is_some_and(|pod| crate::site::is_ready(&pod))
    })
    .await;
    assert_eq!(site.container_id("first", "main").await, first, "not started again");

    // The plugin comes back and finds its device taken.
    let plugin = Plugin::start(&site).await;
    until_supply(&site, "3", "2").await;
    site.run(with_dongles("second", "1")).await;
    assert_eq!(plugin.calls("allocate"), ["allocate a"]);
    site.cloud.delete("first", 0).await;
    site.until_gone("first").await;
    site.run(with_dongles("third", "1")).await;
    assert_eq!(plugin.calls("allocate"), ["allocate a", "allocate b"], "the device is free again");

    plugin.devices.send_replace(vec![device("a", false), device("b", true), device("c", false)]);
    until_supply(&site, "3", "1").await;
    drop(plugin);
    until_supply(&site, "3", "0").await;
}

#[tokio::test]
async fn a_plugin_that_makes_no_sense_is_refused_with_a_reason() {
    let site = Site::start().await;
    let dir = site.settings.root_dir.join("device-plugins");
    site.eventually("the socket", async || dir.join("kubelet.sock").exists()).await;
    let good = registration(RESOURCE, "dongle.sock");
    for (wrong, why) in [
        (proto::RegisterRequest { version: "v1alpha1".into(), ..good.clone() }, "v1beta1"),
        (registration("cpu", "dongle.sock"), "example.com/name"),
        (registration("x.kubernetes.io/y", "dongle.sock"), "example.com/name"),
        (registration(RESOURCE, "../../run/evil.sock"), "beside kubelet.sock"),
        (registration(RESOURCE, ""), "beside kubelet.sock"),
    ] {
        let refusal = register(&dir, wrong).await.unwrap_err();
        assert!(refusal.message().contains(why), "{refusal:?}");
    }
    // One that registers and is not there does no harm.
    register(&dir, good).await.unwrap();
    site.cloud.create(with_dongles("hopeful", "1")).await;
    let refused = site.until("hopeful", "refused", |pod| pod["status"]["phase"] == "Failed").await;
    assert_eq!(refused["status"]["reason"], format!("OutOf{RESOURCE}"), "{refused:#}");
    site.run(pod("other")).await;
}
