//! An edge in a folder of its own: EdgeHub and MetaManager, with a module in edged's place that keeps what it is told.

use std::cell::RefCell;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, Instant};

use api::edgecore::Config;
use beehive::{BoxFuture, Context, Inbox, Module, ModuleError, ModuleManager, compose};
use edgecore::edgehub::EdgeHub;
use edgecore::metamanager::{MetaManager, SCHEMA};
use serde_json::{Value, json};
use store::{Database, Durability};
use tempfile::TempDir;
use testkit::go_cloud::GoCloud;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use wire::{Content, Message, group, kind, operation, source};

pub const NODE: &str = "edge-1";
pub const DEADLINE: Duration = Duration::from_secs(20);

/// What the configuration says; the rest is the default.
pub struct Settings {
    pub http_server: String,
    pub server: String,
    pub token: String,
    pub query_timeout: u64,
    pub heartbeat: u64,
}

pub struct Edge {
    pub dir: TempDir,
    pub config: Config,
    running: Option<Running>,
}

struct Running {
    stop: CancellationToken,
    tasks: JoinSet<()>,
    bus: Context,
    told: Arc<Mutex<Vec<Message>>>,
    database: Database,
}

impl Edge {
    /// An edge of this cloud that has neither certificate nor token yet.
    pub fn new(cloud: &GoCloud) -> Self {
        Self::with(cloud, |_| {})
    }

    pub fn with(cloud: &GoCloud, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = Settings {
            http_server: cloud.http_server(),
            server: cloud.server(),
            token: String::new(),
            query_timeout: 10,
            heartbeat: 1,
        };
        change(&mut settings);
        let dir = tempfile::tempdir().unwrap();
        let config = configure(dir.path(), &settings);
        Self { dir, config, running: None }
    }

    /// An edge that has joined and is connected.
    pub async fn joined(cloud: &GoCloud) -> Self {
        let mut edge = Self::new(cloud);
        edge.put_token(&cloud.token());
        edge.start().await;
        cloud.connection(0).await.unwrap();
        edge.connected().await;
        edge
    }

    /// Points the same folder at another cloud.
    pub fn move_to(&mut self, cloud: &GoCloud) {
        let settings = Settings {
            http_server: cloud.http_server(),
            server: cloud.server(),
            token: String::new(),
            query_timeout: 10,
            heartbeat: 1,
        };
        self.config = configure(self.dir.path(), &settings);
    }

    pub async fn start(&mut self) {
        let database = Database::open(&self.config.database(), SCHEMA, Durability::Full).unwrap();
        let told = Arc::new(Mutex::new(Vec::new()));
        let (send_bus, bus) = oneshot::channel();
        let mut modules = ModuleManager::new();
        modules.register(MetaManager::new(database.clone(), self.config.remote_query_timeout()));
        modules.register(EdgeHub::new(&self.config));
        modules.register(Listener { bus: Some(send_bus), told: told.clone() });
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(modules.run(stop.clone()));
        let bus = bus.await.unwrap();
        self.running = Some(Running { stop, tasks, bus, told, database });
    }

    /// Ends as by SIGTERM.
    pub async fn stop(&mut self) {
        let mut running = self.running.take().unwrap();
        running.stop.cancel();
        running.tasks.join_next().await.unwrap().unwrap();
    }

    /// Ends as by SIGKILL: nothing of it runs any more.
    pub async fn kill(&mut self) {
        let mut running = self.running.take().unwrap();
        running.tasks.shutdown().await;
    }

    pub fn database(&self) -> &Database {
        &self.running.as_ref().unwrap().database
    }

    pub fn bootstrap(&self) -> PathBuf {
        self.dir.path().join("bootstrap-edgecore.conf")
    }

    pub fn put_token(&self, token: &str) {
        std::fs::write(self.bootstrap(), format!("{token}\n")).unwrap();
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Puts these certificate files in place.
    pub fn put_certificate(&self, ca: &[u8], certificate: &[u8], key: &[u8]) {
        use link::files::{to_pem, write_private};
        write_private(&self.file("ca.crt"), to_pem("CERTIFICATE", ca).as_bytes()).unwrap();
        write_private(&self.file("node.crt"), to_pem("CERTIFICATE", certificate).as_bytes()).unwrap();
        write_private(&self.file("node.key"), to_pem("EC PRIVATE KEY", key).as_bytes()).unwrap();
    }

    /// Sends a request to MetaManager as edged does.
    pub async fn ask(&self, operation: &str, resource: &str, content: &Value) -> Message {
        let content = Content::json(content).unwrap();
        let request = compose::message(source::EDGED, group::META, operation, resource, content);
        let bus = &self.running.as_ref().unwrap().bus;
        bus.send_sync("metamanager", request, DEADLINE).await.unwrap_or_else(|error| panic!("{resource}: {error}"))
    }

    /// As [`Edge::ask`], for a query; the content of the answer.
    pub async fn query(&self, resource: &str) -> Value {
        let answer = self.ask(operation::QUERY, resource, &Value::Null).await;
        assert_eq!(answer.route.operation, operation::RESPONSE, "{resource}: {}", text(&answer));
        value(&answer)
    }

    /// Names of the objects of a type in the database.
    pub async fn stored(&self, kind: &str) -> Vec<String> {
        let rows = |c: &store::rusqlite::Connection| {
            let mut statement = c.prepare("SELECT key FROM meta WHERE kind = ?1 ORDER BY key")?;
            let rows = statement.query_map([kind], |row| row.get::<_, String>(0))?;
            rows.collect()
        };
        self.database().read(rows).unwrap()
    }

    /// Sends a message without answer, as edged does.
    pub async fn post(&self, operation: &str, resource: &str, content: &Value) {
        let content = Content::json(content).unwrap();
        let message = compose::message(source::EDGED, group::META, operation, resource, content);
        self.running.as_ref().unwrap().bus.send("metamanager", message).await.unwrap();
    }

    /// Messages that edged was given, without news of the connection.
    pub fn told(&self) -> Vec<Message> {
        let told = self.running.as_ref().unwrap().told.lock().unwrap();
        told.iter().filter(|message| message.route.resource != kind::NODE_CONNECTION).cloned().collect()
    }

    pub async fn wait_told(&self, operation: &str, resource: &str) -> Message {
        let found = || self.told().into_iter().find(|m| m.route.operation == operation && m.route.resource == resource);
        eventually(&format!("{operation} {resource} at edged"), found).await
    }

    /// Waits until the newest news of the connection say so.
    pub async fn connected(&self) {
        self.wait_connection("cloud_connected").await;
    }

    pub async fn disconnected(&self) {
        self.wait_connection("cloud_disconnected").await;
    }

    async fn wait_connection(&self, state: &str) {
        let is_so = || {
            let told = self.running.as_ref().unwrap().told.lock().unwrap();
            let news = told.iter().rev().find(|message| message.route.resource == kind::NODE_CONNECTION);
            news.filter(|message| text(message) == state).map(drop)
        };
        eventually(state, is_so).await;
    }
}

fn configure(dir: &Path, settings: &Settings) -> Config {
    let path = dir.join("config/edgecore.yaml");
    let at = |name: &str| dir.join(name).display().to_string();
    let document = json!({
        "database": {"dataSource": at("edgecore.db")},
        "modules": {
            "edged": {"enable": false, "hostnameOverride": NODE},
            "edgeHub": {
                "heartbeat": settings.heartbeat,
                "httpServer": settings.http_server,
                "token": settings.token,
                "tlsCaFile": at("ca.crt"), "tlsCertFile": at("node.crt"), "tlsPrivateKeyFile": at("node.key"),
                "websocket": {"enable": true, "server": settings.server, "handshakeTimeout": 5, "readDeadline": 5, "writeDeadline": 5},
            },
            "metaManager": {"remoteQueryTimeout": settings.query_timeout},
        },
    });
    std::fs::create_dir_all(dir.join("config")).unwrap();
    // JSON is YAML.
    std::fs::write(&path, document.to_string()).unwrap();
    Config::load(&path).unwrap()
}

/// Stands where edged is.
struct Listener {
    bus: Option<oneshot::Sender<Context>>,
    told: Arc<Mutex<Vec<Message>>>,
}

impl Module for Listener {
    fn name(&self) -> &'static str {
        "edged"
    }

    fn group(&self) -> &'static str {
        "edged"
    }

    fn run<'a>(&'a mut self, context: Context, inbox: &'a mut Inbox) -> BoxFuture<'a, Result<(), ModuleError>> {
        Box::pin(async move {
            if let Some(bus) = self.bus.take() {
                drop(bus.send(context.clone()));
            }
            loop {
                let message = tokio::select! {
                    () = context.stopping() => return Ok(()),
                    Some(message) = inbox.recv() => message,
                };
                // The real one has no CSI driver either.
                if operation::VOLUME.contains(&message.route.operation.as_str()) {
                    context.respond(compose::error(&message, "not supported"));
                }
                self.told.lock().unwrap().push(message);
            }
        })
    }
}

/// The content of a message as text.
pub fn text(message: &Message) -> String {
    String::from_utf8_lossy(&message.content.payload()).into_owned()
}

pub fn value(message: &Message) -> Value {
    serde_json::from_slice(message.content.raw()).unwrap()
}

/// Polls until there is something.
pub async fn eventually<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < end, "no {what} within {DEADLINE:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

thread_local! {
    static LINES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The log of this thread; a test and everything in it run on one. One subscriber serves all threads, for the interest in a line
/// is remembered for the whole process.
pub struct Log;

impl Log {
    pub fn start() -> Self {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| tracing_subscriber::fmt().with_writer(|| ThisThread).with_ansi(false).init());
        LINES.with_borrow_mut(Vec::clear);
        Self
    }

    #[allow(clippy::unused_self, reason = "whoever reads has started it")]
    pub fn text(&self) -> String {
        LINES.with_borrow(|lines| String::from_utf8_lossy(lines).into_owned())
    }

    /// Waits for a line that has all these words.
    pub async fn line_with(&self, words: &[&str]) -> String {
        let end = Instant::now() + DEADLINE;
        loop {
            let text = self.text();
            if let Some(line) = text.lines().find(|line| words.iter().all(|word| line.contains(word))) {
                return line.to_owned();
            }
            assert!(Instant::now() < end, "no line with {words:?} in\n{text}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

struct ThisThread;

impl Write for ThisThread {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LINES.with_borrow_mut(|lines| lines.extend_from_slice(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A message of the cloud without an answer's parent.
pub fn push(operation: &str, resource: &str, content: Value) -> Value {
    json!({
        "header": {
            "msg_id": compose::id(), "timestamp": compose::now(),
            "resourceversion": content["metadata"]["resourceVersion"].as_str().unwrap_or_default(),
        },
        "route": {"source": "edgecontroller", "group": "resource", "operation": operation, "resource": resource},
        "content": content,
    })
}

/// A pod with this version.
pub fn pod(name: &str, version: u64) -> Value {
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-of-{name}"), "resourceVersion": version.to_string()},
        "spec": {"nodeName": NODE, "containers": [{"name": "c", "image": "busybox"}]},
        "status": {},
    })
}

pub fn id(message: &Value) -> &str {
    message["header"]["msg_id"].as_str().unwrap()
}
