//! The program itself: what it says when it cannot start, and how it ends.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

const DEADLINE: Duration = Duration::from_secs(20);

struct Node {
    dir: TempDir,
    config: PathBuf,
}

impl Node {
    fn new(change: impl FnOnce(&mut Value)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let mut document = json!({
            "database": {"dataSource": at("edgecore.db")},
            "modules": {
                "edged": {"enable": false, "hostnameOverride": "edge-1"},
                "edgeHub": {
                    "httpServer": "https://127.0.0.1:1", "token": "",
                    "tlsCaFile": at("ca.crt"), "tlsCertFile": at("node.crt"), "tlsPrivateKeyFile": at("node.key"),
                    "websocket": {"enable": true, "server": "127.0.0.1:1"},
                },
            },
        });
        change(&mut document);
        let config = dir.path().join("config/edgecore.yaml");
        std::fs::create_dir_all(dir.path().join("config")).unwrap();
        std::fs::write(&config, document.to_string()).unwrap();
        Self { dir, config }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn start(&self) -> Child {
        command(&self.config).spawn().unwrap()
    }

    /// Starts it and waits until it runs.
    async fn running(&self) -> Child {
        let mut child = self.start();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let started = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if line.contains("module started") {
                    return;
                }
            }
            panic!("it ended before its modules started");
        };
        tokio::time::timeout(DEADLINE, started).await.unwrap();
        child.stderr = None;
        // Keeps the pipe open, so that later lines do not fail.
        std::mem::forget(lines);
        child
    }

    /// What it says on standard error when it refuses to start.
    async fn refuses(&self) -> String {
        let output = tokio::time::timeout(DEADLINE, self.start().wait_with_output()).await.unwrap().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "it started: {text}");
        let last = text.lines().last().unwrap_or_default().to_owned();
        assert!(text.contains("edgecore: "), "{text}");
        assert!(!text.contains("panicked"), "{text}");
        assert!(!last.is_empty());
        text
    }
}

fn command(config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edgecore"));
    command.arg("--config").arg(config).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.kill_on_drop(true);
    command
}

fn signal(child: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

async fn ended(mut child: Child) -> std::process::ExitStatus {
    tokio::time::timeout(DEADLINE, child.wait()).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_damaged_database_is_named_with_a_cure_and_left_as_it_is() {
    let node = Node::new(|_| {});
    let garbage = b"not a database at all, but perhaps somebody wants it back".repeat(100);
    std::fs::write(node.file("edgecore.db"), &garbage).unwrap();
    let text = node.refuses().await;
    assert!(text.contains(&node.file("edgecore.db").display().to_string()), "{text}");
    assert!(text.contains("damaged") && text.contains("move it away"), "{text}");
    assert_eq!(std::fs::read(node.file("edgecore.db")).unwrap(), garbage);
    // The cure works.
    std::fs::rename(node.file("edgecore.db"), node.file("old.db")).unwrap();
    let child = node.running().await;
    signal(&child, rustix::process::Signal::TERM);
    assert!(ended(child).await.success());
}

#[tokio::test]
async fn a_database_cut_in_half_is_named_with_a_cure() {
    let node = Node::new(|_| {});
    let child = node.running().await;
    signal(&child, rustix::process::Signal::TERM);
    assert!(ended(child).await.success());
    let whole = std::fs::read(node.file("edgecore.db")).unwrap();
    std::fs::write(node.file("edgecore.db"), &whole[..whole.len() / 2]).unwrap();
    let text = node.refuses().await;
    assert!(text.contains("edgecore.db") && text.contains("move it away"), "{text}");
}

#[tokio::test]
async fn a_second_edgecore_on_the_same_database_is_refused() {
    let node = Node::new(|_| {});
    let first = node.running().await;
    let text = node.refuses().await;
    assert!(text.contains(&node.file("edgecore.db").display().to_string()), "{text}");
    assert!(text.contains("runs already") && text.contains(&first.id().unwrap().to_string()), "{text}");
    // The claim goes with the process, however that ends.
    signal(&first, rustix::process::Signal::KILL);
    assert!(!ended(first).await.success());
    let again = node.running().await;
    signal(&again, rustix::process::Signal::INT);
    assert!(ended(again).await.success());
}

#[tokio::test]
async fn contradictions_in_the_configuration_are_all_told() {
    let node = Node::new(|document| {
        document["modules"]["edgeHub"]["quic"] = json!({"enable": true});
        document["modules"]["edgeHub"]["httpServer"] = json!("127.0.0.1:10002");
        document["modules"]["edged"]["hostnameOverride"] = json!("Not A Name");
    });
    let text = node.refuses().await;
    assert!(text.contains(&node.config.display().to_string()), "{text}");
    for part in ["websocket and quic are both enabled", "modules.edgeHub.httpServer", "modules.edged.hostnameOverride"]
    {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let node = Node::new(|document| document["modules"]["edgeHub"]["websocket"]["enable"] = json!(false));
    assert!(node.refuses().await.contains("enable websocket"));
    assert!(!node.file("edgecore.db").exists(), "nothing is begun");
}

#[tokio::test]
async fn a_configuration_that_is_none_is_named() {
    let node = Node::new(|_| {});
    std::fs::write(&node.config, "modules: [unfinished").unwrap();
    assert!(node.refuses().await.contains("edgecore.yaml"));
    std::fs::remove_file(&node.config).unwrap();
    let text = node.refuses().await;
    assert!(text.contains("edgecore.yaml") && text.contains("keadm join"), "{text}");
}

#[tokio::test]
async fn an_unusable_folder_is_named() {
    let node = Node::new(|document| document["database"]["dataSource"] = json!("/dev/null/edgecore.db"));
    let text = node.refuses().await;
    assert!(text.contains("/dev/null/edgecore.db"), "{text}");
}
