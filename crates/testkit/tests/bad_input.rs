//! What goes wrong on real nodes, with real programs: each gets an error that names the cause and the cure, where the user
//! looks, and nothing is lost.
//!
//! It needs root, the packages that `cargo xtask test` installs, and the programs that it builds.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use testkit::site::{LONG, PODS, Site, container, pod};

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
/// After connecting with an empty database a node waits so long before it ends pods that nobody named, and some more.
const SETTLED: Duration = Duration::from_secs(20);

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Every part must be in the text.
fn tells(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
}

/// The first line of a log that has all parts.
fn has_line(log: &str, parts: &[&str]) -> bool {
    log.lines().any(|line| parts.iter().all(|part| line.contains(part)))
}

/// Runs a second edgecore until it ends by itself; it must end with an error.
fn refuses(site: &Site, config: &Path) -> String {
    let mut child = site
        .program("edgecore")
        .arg("--config")
        .arg(config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + LONG;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("edgecore runs, though it must not: {}", stderr(&child.wait_with_output().unwrap()));
        }
        site.pass(Duration::from_millis(20));
    }
    let output = child.wait_with_output().unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(!text.contains("panicked"), "{text}");
    text
}

#[test]
fn a_missing_image_is_told_by_describe_and_disturbs_nobody() {
    let site = Site::start(11);
    let before = container(&site.create_pod("good", &["sleep", "3600"]));
    let mut missing = pod("missing", &["sleep", "3600"]);
    // Nobody listens there.
    missing["spec"]["containers"][0]["image"] = json!("127.0.0.1:1/none:1");
    site.post(PODS, &missing);
    let waiting = |pod: &Value| pod["status"]["containerStatuses"][0]["state"]["waiting"].clone();
    let path = format!("{PODS}/missing");
    site.wait(
        "the pull's failure to be told",
        |pod| ["ErrImagePull", "ImagePullBackOff"].contains(&waiting(pod)["reason"].as_str().unwrap_or_default()),
        &path,
    );
    let told = site.wait("the back-off to be told", |pod| waiting(pod)["reason"] == "ImagePullBackOff", &path);
    assert_eq!(told["status"]["phase"], "Pending");
    tells(waiting(&told)["message"].as_str().unwrap_or_default(), &["127.0.0.1:1/none:1"]);
    site.until("the events to arrive", || {
        let described = site.ask(&["describe", "pod", "missing"]);
        ["Failed to pull image", "connection refused", "ErrImagePull", "ImagePullBackOff", "BackOff"]
            .iter()
            .all(|part| described.contains(part))
    });
    assert!(site.ask(&["get", "pod", "missing"]).contains("ImagePull"));

    // Other pods go on and start.
    site.create_pod("other", &["sleep", "3600"]);
    assert_eq!(container(&site.wait_ready("good")), before);
    // The cure: an image that exists.
    site.ask(&["set", "image", "pod/missing", "main=docker.io/library/busybox:1"]);
    site.wait_ready("missing");
    // One that cannot be cured can be deleted.
    missing["metadata"]["name"] = json!("hopeless");
    site.post(PODS, &missing);
    site.wait("it to fail", |pod| !waiting(pod).is_null(), &format!("{PODS}/hopeless"));
    site.ask(&["delete", "pod", "hopeless", "--timeout=30s"]);
}

/// A second node that joins with the first one's container runtime, but runs no pods.
struct Joining<'a> {
    site: &'a Site,
    dir: PathBuf,
    edgecore: Option<std::process::Child>,
}

impl Joining<'_> {
    fn join(&self, token: &str) -> Output {
        let config: Value = serde_saphyr::from_str(&std::fs::read_to_string(self.site.edge_config()).unwrap()).unwrap();
        let hub = &config["modules"]["edgeHub"];
        let certport = hub["httpServer"].as_str().unwrap().rsplit(':').next().unwrap();
        let runtime = config["modules"]["edged"]["tailoredKubeletConfig"]["containerRuntimeEndpoint"].as_str().unwrap();
        let output = self
            .site
            .program("keadm")
            .args(["join", "--no-start", "--edgenode-name=edge-2", "--set", "modules.edged.enable=false"])
            .arg(format!("--cloudcore-ipport={}", hub["websocket"]["server"].as_str().unwrap()))
            .arg(format!("--certport={certport}"))
            .arg(format!("--remote-runtime-endpoint={runtime}"))
            .arg(format!("--token={token}"))
            .arg("--config-dir")
            .arg(&self.dir)
            .output()
            .unwrap();
        assert!(!stderr(&output).contains(token), "the token is in the error");
        output
    }

    fn is_refused(&self, token: &str, parts: &[&str]) {
        let output = self.join(token);
        assert_eq!(output.status.code(), Some(3), "{output:?}");
        tells(&stderr(&output), parts);
        assert!(!self.dir.exists(), "a refused join leaves nothing behind");
    }

    fn put_token(&self, token: &str) {
        std::fs::write(self.dir.join("bootstrap-edgecore.conf"), token).unwrap();
    }

    fn start(&mut self) {
        let log = std::fs::File::create(self.dir.join("log")).unwrap();
        let mut command = self.site.program("edgecore");
        command.arg("--config").arg(self.dir.join("config/edgecore.yaml")).stdin(Stdio::null()).stderr(log);
        self.edgecore = Some(command.spawn().unwrap());
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap()
    }

    fn says(&self, parts: &[&str]) {
        self.site.until(&format!("edgecore to say {parts:?}"), || has_line(&self.log(), parts));
    }
}

impl Drop for Joining<'_> {
    fn drop(&mut self) {
        if let Some(mut child) = self.edgecore.take() {
            if std::thread::panicking() {
                eprintln!("--- edge-2\n{}", self.log());
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn bad_tokens_are_told_with_a_cure() {
    let site = Site::start(12);
    let output = site.program("keadm").arg("gettoken").arg("--kube-config").arg(site.cluster.kubeconfig()).output();
    let good = String::from_utf8(output.unwrap().stdout).unwrap().trim().to_owned();
    let secret = site.wait("the CA", |_| true, "/api/v1/namespaces/kubeedge/secrets/casecret");
    let part = |key: &str| STANDARD.decode(secret["data"][key].as_str().unwrap()).unwrap();
    let expired = link::token::mint(&part("cadata"), &part("cakeydata"), 1_700_000_000);
    assert_eq!(expired.split('.').next(), good.split('.').next(), "of the same CA");
    let other_ca = format!("{}{}", "0".repeat(64), &good[64..]);
    let forged = format!("{}.AAAA", good.rsplit_once('.').unwrap().0);

    let mut node = Joining { site: &site, dir: site.edge_dir().with_file_name("second"), edgecore: None };
    node.is_refused("nonsense", &["malformed", "keadm gettoken"]);
    node.is_refused(&expired, &["expired", "keadm gettoken"]);
    node.is_refused(&other_ca, &["another cloud", "keadm gettoken"]);

    // Only the cloud can tell that this one is wrong.
    let output = node.join(&forged);
    assert!(output.status.success(), "{}", stderr(&output));
    let bootstrap = node.dir.join("bootstrap-edgecore.conf").display().to_string();
    node.start();
    node.says(&["ERROR", "cannot join", "keadm gettoken", &bootstrap]);
    assert!(site.kubectl(&["get", "csr"]).stdout.windows(6).all(|part| part != b"edge-2"), "nothing was issued");
    // A token that has expired between joining and starting, and one of another cloud.
    node.put_token(&expired);
    node.says(&["ERROR", "cannot join", "expired", "keadm gettoken", &bootstrap]);
    node.put_token(&other_ca);
    node.says(&["ERROR", "cannot join", "not the one that the token names", "keadm gettoken", &bootstrap]);
    for token in [&good, &expired, &forged] {
        assert!(!node.log().contains(token.rsplit('.').next().unwrap()), "a token is in the log");
    }
    // The cure, without a restart.
    node.put_token(&good);
    site.until("the node to join", || !Path::new(&bootstrap).exists());
    site.until("the certificate to be recorded", || site.ask(&["get", "csr"]).contains("edge-2"));
    assert!(node.edgecore.as_mut().unwrap().try_wait().unwrap().is_none());
}

#[test]
fn a_second_edgecore_is_refused_and_the_first_goes_on() {
    let site = Site::start(13);
    let before = container(&site.create_pod("steady", &["sleep", "3600"]));
    let tasks = site.tasks();
    let text = refuses(&site, &site.edge_config());
    tells(&text, &["runs already", "stop it first", &site.edge_dir().display().to_string()]);
    // Neither with a database of its own: it would fight over the pods.
    let config = std::fs::read_to_string(site.edge_config()).unwrap();
    let database = site.edge_dir().join("data/edgecore.db").display().to_string();
    assert!(config.contains(&database), "{config}");
    let other = site.edge_dir().join("config/other.yaml");
    std::fs::write(&other, config.replace(&database, &format!("{database}.other"))).unwrap();
    tells(&refuses(&site, &other), &["runs already", "rootDirectory"]);

    site.create_pod("later", &["sleep", "3600"]);
    assert_eq!(container(&site.wait_ready("steady")), before);
    assert!(site.tasks().is_superset(&tasks), "a container was restarted");
}

#[test]
fn mistakes_in_the_configuration_are_told_at_once() {
    let mut site = Site::start(14);
    let before = container(&site.create_pod("steady", &["sleep", "3600"]));
    site.deployment().stop_edgecore(1).unwrap();
    let good = std::fs::read_to_string(site.edge_config()).unwrap();
    let mut config: Value = serde_saphyr::from_str(&good).unwrap();

    // Contradictions: all at once, and nothing is begun.
    let mut broken = config.clone();
    broken["modules"]["edgeHub"]["quic"]["enable"] = json!(true);
    broken["modules"]["edgeHub"]["httpServer"] = json!("127.0.0.1:10002");
    broken["modules"]["edged"]["hostnameOverride"] = json!("Not A Name");
    std::fs::write(site.edge_config(), broken.to_string()).unwrap();
    let text = refuses(&site, &site.edge_config());
    tells(
        &text,
        &[
            &site.edge_config().display().to_string(),
            "websocket and quic are both enabled",
            "modules.edgeHub.httpServer",
            "modules.edged.hostnameOverride",
        ],
    );

    // Unknown keys: the node runs and says what it made of them.
    config["modules"]["edgeHub"]["hartbeat"] = json!(3);
    config["modules"]["edgeHub"]["server"] = json!("127.0.0.1:1");
    std::fs::write(site.edge_config(), config.to_string()).unwrap();
    site.deployment().start_edgecore(1).unwrap();
    for parts in [
        ["WARN", "modules.edgeHub.hartbeat", "no effect", "did you mean heartbeat"],
        ["WARN", "modules.edgeHub.server", "no effect", "modules.edgeHub.websocket.server"],
    ] {
        site.until(&format!("edgecore to warn {parts:?}"), || has_line(&site.edge_log(), &parts));
    }
    site.create_pod("later", &["sleep", "3600"]);
    assert_eq!(container(&site.wait_ready("steady")), before);
}

#[test]
fn a_broken_database_is_named_and_nothing_is_lost() {
    let mut site = Site::start(15);
    let names = ["one", "two", "three"];
    let before = names.map(|name| container(&site.create_pod(name, &["sleep", "3600"])));
    let tasks = site.tasks();
    assert_eq!(tasks.len(), 6, "{tasks:?}");
    site.deployment().stop_edgecore(1).unwrap();
    let database = site.edge_dir().join("data/edgecore.db");
    let garbage = b"what a failing memory card leaves of a file".repeat(500);
    for name in ["edgecore.db", "edgecore.db-wal"] {
        std::fs::write(database.with_file_name(name), &garbage).unwrap();
    }

    let text = refuses(&site, &site.edge_config());
    tells(&text, &[&database.display().to_string(), "damaged", "move it away"]);
    assert_eq!(std::fs::read(&database).unwrap(), garbage, "the file is left alone");
    assert_eq!(site.tasks(), tasks, "pods go on");

    // The cure that was told: this one file, whatever lies beside it.
    std::fs::rename(&database, database.with_extension("broken")).unwrap();
    let connected = Instant::now();
    site.deployment().start_edgecore(1).unwrap();
    site.create_pod("four", &["sleep", "3600"]);
    for (name, before) in names.iter().zip(&before) {
        assert_eq!(container(&site.wait_ready(name)), *before, "{name}");
    }
    site.pass(SETTLED.saturating_sub(connected.elapsed()));
    let all = site.tasks();
    assert!(all.is_superset(&tasks), "a container was restarted or ended");
    assert_eq!(all.len(), 8, "duplicates: {all:?}");
    // The node has them all again: it can go on without the cloud, and it obeys.
    site.kill_cloud();
    site.kill_edge();
    site.deployment().start_edgecore(1).unwrap();
    site.pass(Duration::from_secs(2));
    assert_eq!(site.tasks(), all, "a container was restarted, doubled or ended");
    site.restart_cloud();
    for name in names {
        site.ask(&["delete", "pod", name, "--timeout=30s"]);
    }
    site.until("the containers to be gone", || site.tasks().len() == 2);
    site.wait_ready("four");
}

/// A small disk of its own; it is taken away again in any case.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: PathBuf) -> Self {
        std::fs::create_dir_all(&path).unwrap();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs"]).arg(&path).status().unwrap();
        assert!(mounted.success());
        Self(path)
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }

    /// Writes until nothing more goes.
    fn fill(&self) {
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(self.ballast()).unwrap();
        while file.write_all(&[b'x'; 4096]).is_ok() {}
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Also while edgecore still has it open.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_is_told_and_nothing_is_lost() {
    let mut site = Site::cloud(16);
    let disk = SmallDisk::mount(site.edge_dir().join("data"));
    site.start_edge();
    let before = container(&site.create_pod("steady", &["sleep", "3600"]));
    let tasks = site.tasks();
    disk.fill();

    // More than what is left in SQLite's files.
    let names = ["big-0", "big-1", "big-2", "big-3"];
    for name in names {
        let mut big = pod(name, &["sleep", "3600"]);
        big["metadata"]["annotations"] = json!({"ballast": "x".repeat(150_000)});
        site.post(PODS, &big);
    }
    site.until("edgecore to say that the disk is full", || {
        has_line(&site.edge_log(), &["ERROR", "big-", "the disk that holds the database is full", "free some space"])
    });
    site.until("describe to say that the disk is full", || {
        names.iter().any(|name| {
            let described = site.ask(&["describe", "pod", name]);
            ["Warning", "NotStored", "edge-1", "the disk that holds the database is full", "free some space"]
                .iter()
                .all(|part| described.contains(part))
        })
    });
    // The node goes on with what it has, also after a crash.
    site.kill_edge();
    disk.fill();
    site.deployment().start_edgecore(1).unwrap();
    site.pass(Duration::from_secs(3));
    assert!(site.tasks().is_superset(&tasks), "a running pod was touched");
    assert!(site.deployment().children.ended().is_none(), "edgecore gave up");

    // With room again, everything that the cloud wanted is there.
    std::fs::remove_file(disk.ballast()).unwrap();
    for name in names {
        site.wait_ready(name);
    }
    assert_eq!(container(&site.wait_ready("steady")), before);
    assert!(site.tasks().is_superset(&tasks), "a running pod was restarted");
    let all = site.tasks();
    assert_eq!(all.len(), 10, "{all:?}");

    // Without the log files of a database, for example after restoring a copy, a start needs room: it tells that.
    site.deployment().stop_edgecore(1).unwrap();
    for name in ["edgecore.db-wal", "edgecore.db-shm"] {
        let file = disk.0.join(name);
        let bytes = std::fs::metadata(&file).map_or(0, |meta| meta.len());
        assert!(name.ends_with("shm") || bytes == 0, "a stop in order leaves the log empty: {bytes}");
        let _ = std::fs::remove_file(file);
    }
    disk.fill();
    let text = refuses(&site, &site.edge_config());
    tells(&text, &[&disk.0.join("edgecore.db").display().to_string(), "disk is full", "free some space"]);
    assert_eq!(site.tasks(), all, "a running pod was touched");
    std::fs::remove_file(disk.ballast()).unwrap();
    // Everything is on the disk: the node starts with it without the cloud.
    site.kill_cloud();
    site.deployment().start_edgecore(1).unwrap();
    site.pass(Duration::from_secs(3));
    assert_eq!(site.tasks(), all);
}

#[test]
fn a_killed_cloud_loses_no_message() {
    let mut site = Site::start(17);
    let words =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "words"}, "data": {"word": "old"}});
    site.post(CONFIG_MAPS, &words);
    let mut reader = pod("reader", &["sleep", "3600"]);
    reader["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "words", "mountPath": "/words"}]);
    reader["spec"]["volumes"] = json!([{"name": "words", "configMap": {"name": "words"}}]);
    site.post(PODS, &reader);
    let reader = site.wait_ready("reader");
    let uid = reader["metadata"]["uid"].as_str().unwrap().to_owned();
    let file = find(&site.edge_dir(), &format!("pods/{uid}/volumes/kubernetes.io~configmap/words/word"));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "old");
    let doomed = container(&site.create_pod("doomed", &["sleep", "3600"])).0;
    let doomed = doomed.rsplit('/').next().unwrap().to_owned();
    // Ends when the test says so, while nobody is there to hear it.
    let mut brief = pod("brief", &["sh", "-c", "while [ ! -e /signal/end ]; do sleep 0.1; done; exit 3"]);
    brief["spec"]["restartPolicy"] = json!("Never");
    brief["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "signal", "mountPath": "/signal"}]);
    brief["spec"]["volumes"] = json!([{"name": "signal", "hostPath": {"path": site.edge_dir()}}]);
    site.post(PODS, &brief);
    site.wait_ready("brief");

    // Said to the API; a moment later nobody is there to pass it on.
    for round in 0..3 {
        let change = json!({"data": {"word": format!("new-{round}")}});
        let path = format!("{CONFIG_MAPS}/words");
        let (status, answer) = site.runtime.block_on(site.cluster.patch(&path, &change)).unwrap();
        assert_eq!(status, 200, "{answer}");
        site.post(PODS, &pod(&format!("late-{round}"), &["sleep", "3600"]));
        if round == 1 {
            let (status, answer) = site.runtime.block_on(site.cluster.delete(&format!("{PODS}/doomed"))).unwrap();
            assert!(status < 300, "{answer}");
        }
        site.kill_cloud();
        if round == 2 {
            let before = site.tasks().len();
            std::fs::write(site.edge_dir().join("end"), "").unwrap();
            site.until("the pod to end", || site.tasks().len() < before);
        }
        site.restart_cloud();
    }
    for round in 0..3 {
        site.wait_ready(&format!("late-{round}"));
    }
    let ended = site.wait("the end to be told", |pod| pod["status"]["phase"] == "Failed", &format!("{PODS}/brief"));
    assert_eq!(ended["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], 3);
    site.until("the deletion to be completed", || !site.kubectl(&["get", "pod", "doomed"]).status.success());
    site.until("the container to be gone", || site.tasks().iter().all(|task| !task.contains(&doomed)));
    site.until("the change to arrive", || std::fs::read_to_string(&file).unwrap() == "new-2");
    assert_eq!(container(&site.wait_ready("reader")), container(&reader), "restarted, though only the cloud was away");
    let tasks = site.tasks();
    assert_eq!(tasks.len(), 8, "the reader and three late ones, each once: {tasks:?}");
}

/// The one file below a folder whose path ends so.
fn find(folder: &Path, end: &str) -> PathBuf {
    let found = Command::new("find").arg(folder).args(["-path", &format!("*/{end}")]).output().unwrap();
    let text = String::from_utf8(found.stdout).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    PathBuf::from(text.trim_end())
}
