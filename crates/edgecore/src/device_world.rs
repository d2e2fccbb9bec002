//! For tests: DeviceTwin and DMI on a database, between a bus, MetaManager and a cloud that the tests play.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use beehive::{Context, Inbox, Module, compose};
use bytes::Bytes;
use edged::api::{DeviceName, DeviceQuestion, Page};
use edged::events::Recorder;
use serde_json::{Value, json};
use store::{Database, Durability};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use wire::{Content, Message, group, kind, module, operation, source};

use crate::devicetwin::{DeviceTwin, pages};
use crate::dmi::{self, Changed, Dmi};
use crate::eventbus::{Arrived, Bus, Published};
use crate::metamanager::SCHEMA;

pub(crate) const NODE: &str = "go-edge";
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// The node.
pub(crate) struct World {
    dir: tempfile::TempDir,
    running: Option<Running>,
}

pub(crate) struct Running {
    tasks: JoinSet<()>,
    stop: CancellationToken,
    context: Context,
    hub: Inbox,
    meta: Inbox,
    pub(crate) say: mpsc::Sender<Arrived>,
    pub(crate) heard: mpsc::Receiver<Published>,
    /// Told when DeviceTwin has failed and is started again.
    pub(crate) failures: Arc<Notify>,
}

/// In the time that a test has.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}

impl World {
    pub(crate) fn start() -> Self {
        let mut world = Self { dir: tempfile::tempdir().expect("folder"), running: None };
        world.run();
        world
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn database(&self) -> Database {
        Database::open(&self.dir().join("edge.db"), SCHEMA, Durability::Full).expect("database")
    }

    pub(crate) fn run(&mut self) {
        let stop = CancellationToken::new();
        let modules = [
            (module::EDGE_HUB, group::HUB),
            (module::META_MANAGER, group::META),
            (module::TWIN, group::TWIN),
            (dmi::NAME, dmi::NAME),
        ];
        let (context, mut inboxes) = Context::new(&modules, stop.clone());
        let (mut of_dmi, mut of_twin) = (inboxes.remove(3), inboxes.remove(2));
        let (meta, hub) = (inboxes.remove(1), inboxes.remove(0));
        let (say, arrived) = mpsc::channel(16);
        let (bus, heard) = Bus::of_test(4096);
        let (database, changed) = (self.database(), Changed::new());
        let events = Recorder::of("devicetwin", NODE, true);
        let socket = self.dir().join("dmi.sock");
        let mut dmi = Dmi::new(socket, database.clone(), say.clone(), changed.clone(), events.0.clone());
        let mut twin = DeviceTwin::new(NODE, database, (arrived, bus), changed, events);
        let mut tasks = JoinSet::new();
        let on = context.clone();
        tasks.spawn(async move { dmi.run(on, &mut of_dmi).await.expect("DMI") });
        let (on, failures) = (context.clone(), Arc::new(Notify::new()));
        let failed = failures.clone();
        tasks.spawn(async move {
            while twin.run(on.clone(), &mut of_twin).await.is_err() {
                failed.notify_one();
                tokio::task::yield_now().await;
            }
        });
        self.running = Some(Running { tasks, stop, context, hub, meta, say, heard, failures });
    }

    /// Ends as by SIGKILL.
    pub(crate) async fn kill(&mut self) {
        let mut running = self.running.take().expect("runs");
        running.tasks.shutdown().await;
        running.stop.cancel();
    }

    /// Ends as by SIGKILL, and starts again.
    pub(crate) async fn restart(&mut self) {
        self.kill().await;
        self.run();
    }

    pub(crate) fn running(&mut self) -> &mut Running {
        self.running.as_mut().expect("runs")
    }

    /// A message to DeviceTwin, if it runs.
    pub(crate) async fn from(&self, message: Message) {
        if let Some(running) = &self.running {
            running.context.send(module::TWIN, message).await.expect("taken");
        }
    }

    /// MetaManager has stored an object of this kind, or removed it.
    pub(crate) async fn store(&self, verb: &str, kind: &'static str, object: &Value) {
        let path = format!("default/{kind}/{}", object["metadata"]["name"].as_str().expect("name"));
        let (key, text, is_there) = (path.clone(), object.to_string(), verb != operation::DELETE);
        let database = self.database();
        let stored = database.write(move |c| {
            c.execute("DELETE FROM meta WHERE key = ?1", [&key])?;
            let sql = "INSERT INTO meta SELECT ?1, ?2, '', 1, ?3 WHERE ?4";
            c.execute(sql, store::rusqlite::params![key, kind, text.into_bytes(), is_there]).map(drop)
        });
        stored.await.expect("stored");
        let content = Content::json(object).expect("JSON");
        self.from(compose::message(source::EDGE_CONTROLLER, group::RESOURCE, verb, &path, content)).await;
    }

    /// MetaManager has stored a Device with these desired values, or removed it.
    pub(crate) async fn object(&self, verb: &str, name: &str, uid: &str, desired: &[(&str, &str)]) {
        let properties: Vec<Value> = desired
            .iter()
            .map(|(name, value)| json!({"name": name, "desired": {"value": value, "metadata": {"type": "int"}}}))
            .collect();
        let object =
            json!({"metadata": {"name": name, "namespace": "default", "uid": uid}, "spec": {"properties": properties}});
        self.store(verb, kind::DEVICE, &object).await;
    }

    /// Waits until the messages so far are carried out: a device comes and goes after them.
    pub(crate) async fn settle(&mut self) {
        for verb in [operation::INSERT, operation::DELETE] {
            self.object(verb, "marker", "marker", &[]).await;
            let is_there = |told: &Value, field: &str| told[field][0]["name"] == "marker";
            loop {
                let (_, told) = self.hear().await;
                if is_there(&told, "added_devices") || is_there(&told, "removed_devices") {
                    break;
                }
            }
        }
    }

    /// The values that are kept of a device's property, the oldest first.
    pub(crate) fn history(&self, device: &str, property: &str) -> Vec<String> {
        let device = DeviceName { namespace: "default".to_owned(), name: device.to_owned() };
        let page = Page { limit: 1000, from: None };
        let question = DeviceQuestion::History { device, property: property.to_owned(), since: None, page };
        let answer = pages(self.database())(&question).expect("a page");
        let values = answer["items"].as_array().expect("items").iter();
        values.map(|item| item["value"].as_str().expect("a text").to_owned()).collect()
    }

    /// A device says something.
    pub(crate) async fn say(&mut self, topic: &str, payload: &str) {
        let arrived = Arrived::of_test(topic, Bytes::copy_from_slice(payload.as_bytes()));
        self.running().say.send(arrived).await.expect("taken");
    }

    /// The next that subscribers hear: its topic and what it says.
    pub(crate) async fn hear(&mut self) -> (String, Value) {
        let told = soon("something said to devices", self.running().heard.recv()).await.expect("told");
        (told.topic, serde_json::from_slice(&told.payload).expect("JSON"))
    }

    /// The next event on its way to the cloud: its verb, and itself.
    pub(crate) async fn event(&mut self) -> (String, Value) {
        let told = soon("an event", self.running().meta.recv()).await.expect("told");
        assert!(told.route.resource.starts_with("default/event/"), "{}", told.route.resource);
        (told.route.operation.clone(), told.content.parse().expect("JSON"))
    }

    /// The next that the cloud hears.
    pub(crate) async fn report(&mut self) -> Message {
        soon("a report to the cloud", self.running().hub.recv()).await.expect("told")
    }

    /// The link stands from now on, or does not.
    pub(crate) async fn link(&self, stands: bool) {
        let content = Content::text(if stands { "cloud_connected" } else { "cloud_disconnected" });
        let (source, resource) = (source::EDGE_HUB_EVENTS, kind::NODE_CONNECTION);
        self.from(compose::message(source, group::META, operation::CONNECT, resource, content)).await;
    }

    /// The cloud confirms a report.
    pub(crate) async fn confirm(&self, report: &Message) {
        let mut answer = compose::response(report, Content::ok());
        answer.route.group = group::TWIN.to_owned();
        self.from(answer).await;
    }
}
