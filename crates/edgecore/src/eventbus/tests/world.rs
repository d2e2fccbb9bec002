//! EventBus that runs, mosquitto and its clients, certificates, and the log.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::edgecore::{EventBus as Settings, ExternalBroker, InternalBroker, TlsFiles};
use beehive::{Context, Inbox};
use link::ca::{CertificateAuthority, Issued};
use link::files::to_pem;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::subscriber::DefaultGuard;
use wire::{group, module};

use super::super::{Arrived, Bus, EventBus, WAITING};

pub const PASSWORD: &str = "geheim";

pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("it takes too long")
}

/// Asks until it is so.
pub async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let asking = async {
        while !so() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), asking).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

/// Nobody listens there; somebody shall.
pub fn port() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port")
}

/// EventBus, which ends with it.
pub struct Running {
    pub bus: Bus,
    pub arrived: mpsc::Receiver<Arrived>,
    stopping: CancellationToken,
    task: JoinSet<()>,
    _inboxes: Vec<Inbox>,
}

impl Running {
    pub fn start(settings: Settings, dir: &Path) -> Self {
        let (to_twin, arrived) = mpsc::channel(WAITING);
        let (mut event_bus, bus) = EventBus::new(settings, &dir.join("edge.db"), to_twin);
        let stopping = CancellationToken::new();
        let modules = [(module::EVENT_BUS, group::BUS), (module::TWIN, group::TWIN)];
        let (context, inboxes) = Context::new(&modules, stopping.clone());
        let mut task = JoinSet::new();
        task.spawn(async move { event_bus.serve(&context).await.expect("ends well") });
        Self { bus, arrived, stopping, task, _inboxes: inboxes }
    }

    /// What a device has said next.
    pub async fn next(&mut self) -> (Arrived, String) {
        let arrived = soon(self.arrived.recv()).await.expect("EventBus runs");
        let text = String::from_utf8_lossy(&arrived.payload).into_owned();
        (arrived, text)
    }

    pub async fn stop(mut self) {
        self.stopping.cancel();
        soon(self.task.join_next()).await.expect("it ran").expect("it ended well");
    }
}

pub fn settings(internal: Option<InternalBroker>, external: Option<ExternalBroker>) -> Settings {
    Settings { internal, external, qos: 1, retain: false, queue: 100 }
}

pub fn beside(address: SocketAddr) -> ExternalBroker {
    let (username, password) = (String::new(), String::new());
    let host = "localhost".to_owned();
    ExternalBroker { host, port: address.port(), tls: None, client_id: "edgecore-test".to_owned(), username, password }
}

/// A CA, and certificates of it, as files.
pub struct Certificates {
    pub dir: TempDir,
    ca: CertificateAuthority,
}

impl Certificates {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("folder");
        let ca = CertificateAuthority::generate_named("MQTT", None).expect("a CA");
        std::fs::write(dir.path().join("ca.crt"), to_pem("CERTIFICATE", ca.certificate())).expect("written");
        let all = Self { dir, ca };
        all.server("server");
        let client = all.ca.issue_client("edgecore", "test", Duration::from_secs(3600)).expect("a certificate");
        all.write("client", &client);
        all
    }

    pub fn server(&self, name: &str) {
        let server = self.ca.issue_server("broker", "test", &["localhost".to_owned()]).expect("a certificate");
        self.write(name, &server);
    }

    fn write(&self, name: &str, issued: &Issued) {
        std::fs::write(self.path(&format!("{name}.crt")), to_pem("CERTIFICATE", &issued.certificate)).expect("written");
        std::fs::write(self.path(&format!("{name}.key")), to_pem("EC PRIVATE KEY", &issued.key)).expect("written");
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn files(&self, name: &str) -> TlsFiles {
        let own = (self.path(&format!("{name}.crt")), self.path(&format!("{name}.key")));
        TlsFiles { ca: Some(self.path("ca.crt")), own: Some(own) }
    }
}

/// Debian's mosquitto; `None` when it is not installed.
pub struct Mosquitto {
    dir: TempDir,
    pub address: SocketAddr,
    process: Option<Child>,
}

impl Mosquitto {
    /// Not started yet. It keeps what it has when it is stopped. More lines of its configuration besides.
    pub fn new(lines: &str) -> Option<Self> {
        if !Path::new("/usr/sbin/mosquitto").is_file() {
            println!("mosquitto is not installed");
            return None;
        }
        let (dir, address) = (tempfile::tempdir().expect("folder"), port());
        let at = dir.path().display();
        let user = if rustix::process::geteuid().is_root() { "user root\n" } else { "" };
        let text = format!(
            "listener {} localhost\n{user}persistence true\npersistence_location {at}/\nlog_dest none\n{lines}",
            address.port()
        );
        std::fs::write(dir.path().join("mosquitto.conf"), text).expect("written");
        Some(Self { dir, address, process: None })
    }

    pub async fn start(&mut self) {
        let mut command = Command::new("/usr/sbin/mosquitto");
        command.arg("-c").arg(self.dir.path().join("mosquitto.conf"));
        command.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        self.process = Some(command.spawn().expect("mosquitto"));
        until("mosquitto listens", || std::net::TcpStream::connect(self.address).is_ok()).await;
    }

    /// Asks it to end.
    pub async fn stop(&mut self) {
        self.end(rustix::process::Signal::TERM).await;
    }

    /// Ends it as it is.
    pub async fn kill(&mut self) {
        self.end(rustix::process::Signal::KILL).await;
    }

    async fn end(&mut self, signal: rustix::process::Signal) {
        let mut process = self.process.take().expect("it runs");
        let id = process.id().and_then(|id| rustix::process::Pid::from_raw(id as i32)).expect("it runs");
        rustix::process::kill_process(id, signal).expect("it is ours");
        soon(process.wait()).await.expect("it has ended");
    }
}

/// A file of users as `mosquitto_passwd` writes it: `name:hash`; `None` when that is not installed.
pub fn hashed(name: &str, password: &str, dir: &Path) -> Option<PathBuf> {
    let path = dir.join("passwd");
    let _ = std::fs::remove_file(&path);
    let mut command = std::process::Command::new("mosquitto_passwd");
    command.args(["-b", "-c"]).arg(&path).args([name, password]).stderr(Stdio::null());
    command.status().ok().filter(std::process::ExitStatus::success).map(|_| path)
}

/// `mosquitto_pub` or `mosquitto_sub`.
pub fn client(program: &str, address: SocketAddr, more: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(["-h", "localhost", "-p", &address.port().to_string(), "-q", "1"]).args(more).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs it to its end: whether it says that all went well, and what it printed.
pub async fn run(mut command: Command) -> (bool, String) {
    let output = soon(command.output()).await.expect("mosquitto's clients");
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What this thread has logged.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub fn start() -> (Self, DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    /// The lines with this in them.
    pub fn lines(&self, with: &str) -> Vec<String> {
        let all = String::from_utf8_lossy(&self.0.lock().expect("nobody has failed")).into_owned();
        all.lines().filter(|line| line.contains(with)).map(str::to_owned).collect()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("nobody has failed").write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
