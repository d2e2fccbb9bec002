//! Graceful shutdown of the node, told by a stand-in for systemd-logind on a bus of its own.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use edged::settings::{Places, ShutdownSettings};
use podlife::shutdown::Group;
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::site::{has, is_ready};
use crate::{Site, pod, pod_with};

const LIMIT: Duration = Duration::from_secs(20);
const CRITICAL: i32 = 2_000_000_000;

/// What both services know.
#[derive(Clone, Default)]
struct World {
    delay_seconds: Arc<Mutex<u64>>,
    /// The other ends of what was given to inhibitors.
    inhibitors: Arc<Mutex<Vec<std::io::PipeReader>>>,
}

struct Manager(World);

#[zbus::interface(name = "org.freedesktop.login1.Manager")]
impl Manager {
    fn inhibit(&self, what: &str, _who: &str, _why: &str, mode: &str) -> zbus::zvariant::OwnedFd {
        assert_eq!((what, mode), ("shutdown", "delay"));
        let (reader, writer) = std::io::pipe().unwrap();
        self.0.inhibitors.lock().unwrap().push(reader);
        OwnedFd::from(writer).into()
    }

    #[zbus(property(emits_changed_signal = "false"), name = "InhibitDelayMaxUSec")]
    fn longest_delay(&self) -> u64 {
        *self.0.delay_seconds.lock().unwrap() * 1_000_000
    }

    #[zbus(signal)]
    async fn prepare_for_shutdown(emitter: &zbus::object_server::SignalEmitter<'_>, begins: bool) -> zbus::Result<()>;
}

/// systemd, which makes logind read its configuration.
struct Systemd(World, PathBuf);

#[zbus::interface(name = "org.freedesktop.systemd1.Manager")]
impl Systemd {
    fn kill_unit(&self, unit: &str, _whom: &str, signal: i32) {
        assert_eq!((unit, signal), ("systemd-logind.service", 1));
        let text = std::fs::read_to_string(self.1.join("99-kubelet.conf")).unwrap();
        let seconds = text.lines().find_map(|line| line.strip_prefix("InhibitDelayMaxSec="));
        *self.0.delay_seconds.lock().unwrap() = seconds.unwrap().parse().unwrap();
    }
}

struct Logind {
    world: World,
    connection: zbus::Connection,
    places: Places,
    _bus: Child,
}

impl Logind {
    async fn start(dir: &Path) -> Self {
        let address = format!("unix:path={}", dir.join("bus").display());
        let config = dir.join("bus.conf");
        let text = format!(
            r#"<busconfig><type>session</type><listen>{address}</listen><policy context="default">
            <allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy></busconfig>"#
        );
        std::fs::write(&config, text).unwrap();
        let mut daemon = Command::new("dbus-daemon");
        daemon.arg("--nofork").arg("--nopidfile").arg("--config-file").arg(&config).kill_on_drop(true);
        let bus = daemon.spawn().expect("dbus-daemon of the package dbus");
        let world = World { delay_seconds: Arc::new(Mutex::new(5)), ..World::default() };
        let drop_ins = dir.join("logind.conf.d");
        let connect = async {
            loop {
                let builder = zbus::connection::Builder::address(address.as_str()).unwrap();
                let builder = builder.name("org.freedesktop.login1").unwrap().name("org.freedesktop.systemd1").unwrap();
                let builder = builder.serve_at("/org/freedesktop/login1", Manager(world.clone())).unwrap();
                let systemd = Systemd(world.clone(), drop_ins.clone());
                match builder.serve_at("/org/freedesktop/systemd1", systemd).unwrap().build().await {
                    Ok(connection) => return connection,
                    // It does not listen yet.
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        };
        let connection = tokio::time::timeout(LIMIT, connect).await.expect("the bus");
        Self { connection, places: Places { bus: Some(address), drop_ins }, world, _bus: bus }
    }

    async fn prepare_for_shutdown(&self, begins: bool) {
        let server = self.connection.object_server();
        let manager = server.interface::<_, Manager>("/org/freedesktop/login1").await.unwrap();
        Manager::prepare_for_shutdown(manager.signal_emitter(), begins).await.unwrap();
    }

    fn inhibitors(&self) -> usize {
        self.world.inhibitors.lock().unwrap().len()
    }

    /// Waits until the last inhibitor lets go.
    async fn let_go(&self) {
        let mut last = self.world.inhibitors.lock().unwrap().pop().unwrap();
        let closed = tokio::task::spawn_blocking(move || last.read(&mut [0; 1]).unwrap());
        assert_eq!(tokio::time::timeout(LIMIT, closed).await.expect("released").unwrap(), 0);
    }
}

/// What the node last told of its condition Ready.
fn node_ready(site: &Site) -> Option<(String, String)> {
    let told = site.cloud.log().into_iter().rev();
    told.filter(|(_, resource, _)| resource.contains("/node/") || resource.contains("/nodepatch/")).find_map(
        |(_, _, content)| {
            let node = content.as_str().map_or_else(|| content.clone(), |text| serde_json::from_str(text).unwrap());
            let ready = node["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == "Ready")?.clone();
            Some((ready["status"].as_str()?.to_owned(), ready["message"].as_str().unwrap_or_default().to_owned()))
        },
    )
}

fn is_terminated(pod: &Value) -> bool {
    pod["status"]["phase"] == "Failed" && pod["status"]["reason"] == "Terminated"
}

fn finished(pod: &Value) -> String {
    let state = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
    state["finishedAt"].as_str().unwrap_or_else(|| panic!("{pod:#}")).to_owned()
}

#[tokio::test]
async fn ns_pods_end_by_priority_before_the_machine_does() {
    let dir = tempfile::tempdir().unwrap();
    let logind = Logind::start(dir.path()).await;
    let places = logind.places.clone();
    let site = Site::start_with(|settings| {
        let group = |priority| Group { priority, period: Duration::from_secs(10) };
        settings.shutdown = Some(ShutdownSettings { groups: vec![group(0), group(CRITICAL)], places });
    })
    .await;
    site.eventually("the shutdown is inhibited", async || logind.inhibitors() == 1).await;
    assert_eq!(*logind.world.delay_seconds.lock().unwrap(), 20, "logind waits for both groups");
    site.run(pod_with("critical", |pod| pod["spec"]["priority"] = json!(CRITICAL))).await;
    // Deaf to signals: it takes all of its grace.
    site.run(pod_with("usual", |pod| {
        pod["spec"]["terminationGracePeriodSeconds"] = json!(3);
        pod["spec"]["containers"][0]["command"] = json!(["sleep", "1000"]);
    }))
    .await;

    logind.prepare_for_shutdown(true).await;
    let usual = site.until("usual", "terminated", is_terminated).await;
    assert_eq!(usual["status"]["message"], "Pod was terminated in response to imminent node shutdown.");
    assert!(has(&usual, "DisruptionTarget"), "{usual:#}");
    let critical = site.until("critical", "terminated", is_terminated).await;
    assert!(finished(&usual) <= finished(&critical), "{usual:#} {critical:#}");
    logind.let_go().await;
    let unready = || node_ready(&site) == Some(("False".into(), "node is shutting down".into()));
    site.eventually("the node is not ready", async || unready()).await;
    site.cloud.create(pod("late")).await;
    let late = site.until("late", "refused", |pod| pod["status"]["phase"] == "Failed").await;
    assert_eq!(late["status"]["reason"], "NodeShutdown");

    logind.prepare_for_shutdown(false).await;
    site.eventually("it is inhibited again", async || logind.inhibitors() == 1).await;
    site.eventually("the node is ready", async || node_ready(&site).is_some_and(|(ready, _)| ready == "True")).await;
    site.cloud.create(pod("next")).await;
    site.until("next", "ready", is_ready).await;
    assert!(site.cloud.events("n1").contains(&"Shutdown".to_owned()));
}
