//! The manifests of `examples/` as a user applies them: with kubectl, on the embedded Kubernetes, on a real edge node.
//!
//! It needs root, the packages that `cargo xtask test` installs, and the programs that it builds.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use testkit::deployment::condition;
use testkit::site::{PODS, Site};

/// Where the manifests keep data on a node.
const DATA: &str = "/var/lib/edge-data";
const HTTP_LIMIT: Duration = Duration::from_secs(2);
/// The longest answer that is read.
const MAX_ANSWER: u64 = 64 << 10;

/// A site, a folder of the node for the example's data, and the example applied.
struct Example {
    site: Site,
    data: tempfile::TempDir,
}

impl Example {
    /// Applies a manifest; `changes` are made to its text before.
    fn apply(number: u8, file: &str, folders: &[&str], changes: &[(&str, &str)]) -> Self {
        let site = Site::start(number);
        let data = tempfile::Builder::new().prefix("fe-data").tempdir().expect("dir");
        for folder in folders {
            std::fs::create_dir(data.path().join(folder)).expect("folder");
        }
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(file);
        let mut text = std::fs::read_to_string(&manifest).expect("manifest");
        text = text.replace(DATA, &data.path().display().to_string());
        for (old, new) in changes {
            assert!(text.contains(old), "{file} has no {old}");
            text = text.replace(old, new);
        }
        let own = data.path().join(file);
        std::fs::write(&own, text).expect("written");
        let applied = site.ask(&["apply", "-f", &own.display().to_string()]);
        assert!(applied.contains("created"), "{applied}");
        Self { site, data }
    }

    /// A file in the example's folder on the node.
    fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.data.path().join(name)).unwrap_or_default()
    }

    fn pod(&self, name: &str) -> Value {
        serde_json::from_str(&self.site.ask(&["get", "pod", name, "-o", "json"])).expect("JSON")
    }

    fn pods(&self, label: &str) -> Vec<Value> {
        let list: Value =
            serde_json::from_str(&self.site.ask(&["get", "pods", "-l", label, "-o", "json"])).expect("JSON");
        list["items"].as_array().cloned().unwrap_or_default()
    }
}

/// What a web server answers, or nothing if it does not.
fn get(host: &str, port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&format!("{host}:{port}").parse().ok()?, HTTP_LIMIT).ok()?;
    stream.set_read_timeout(Some(HTTP_LIMIT)).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.take(MAX_ANSWER).read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.lines().next()?.contains(" 200 ").then(|| body.to_owned())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[test]
fn a_web_server_shows_its_config_map_and_follows_it() {
    let example = Example::apply(20, "web.yaml", &[], &[]);
    let site = &example.site;
    site.ask(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let pods = example.pods("app=web");
    assert_eq!(pods.len(), 2);
    let hosts: Vec<&str> = pods.iter().map(|pod| text(&pod["status"]["podIP"])).collect();
    for host in &hosts {
        assert_eq!(get(host, 8080, "/").as_deref(), Some("Hello from the edge\n"));
    }
    site.until("the Service to know both pods", || {
        let addresses = site.ask(&["get", "endpoints", "web", "-o", "jsonpath={.subsets[*].addresses[*].ip}"]);
        hosts.iter().all(|host| addresses.contains(host))
    });
    site.ask(&["patch", "configmap", "web-pages", "-p", r#"{"data":{"index.html":"changed\n"}}"#]);
    for host in hosts {
        site.until("the new page to be served", || get(host, 8080, "/").as_deref() == Some("changed\n"));
    }
    for (before, after) in pods.iter().zip(example.pods("app=web")) {
        let state = |pod: &Value| {
            (pod["metadata"]["uid"].clone(), pod["status"]["containerStatuses"][0]["restartCount"].clone())
        };
        assert_eq!(state(before), state(&after), "nothing was restarted for it");
    }
}

#[test]
fn the_data_of_a_stateful_set_outlives_its_pod() {
    let example = Example::apply(21, "statefulset.yaml", &["counter"], &[]);
    let site = &example.site;
    site.ask(&["rollout", "status", "statefulset/counter", "--timeout=60s"]);
    let claim = site.ask(&["get", "pvc", "data-counter-0"]);
    assert!(claim.contains("Bound") && claim.contains("counter-edge-1") && claim.contains("100Mi"), "{claim}");
    let before = example.pod("counter-0");
    let starts = |pod: &Value| get(text(&pod["status"]["podIP"]), 8080, "/starts");
    assert_eq!(starts(&before).as_deref(), Some("counter-0 started\n"));

    site.ask(&["delete", "pod", "counter-0"]);
    let path = format!("{PODS}/counter-0");
    let again =
        |pod: &Value| pod["metadata"]["uid"] != before["metadata"]["uid"] && condition(pod, "Ready") == Some("True");
    let after = site.wait("the pod to be there again", again, &path);
    assert_eq!(starts(&after).as_deref(), Some("counter-0 started\ncounter-0 started\n"));
    assert_eq!(example.file("counter/starts").lines().count(), 2, "it is in the folder of the node");

    // The claim and the data stay when the set goes.
    site.ask(&["delete", "statefulset", "counter", "--cascade=foreground"]);
    assert!(site.ask(&["get", "pvc"]).contains("Bound"));
    site.ask(&["delete", "pvc", "data-counter-0"]);
    site.until("the volume to be released", || site.ask(&["get", "pv", "counter-edge-1"]).contains("Released"));
    assert_eq!(example.file("counter/starts").lines().count(), 2);
}

#[test]
fn a_daemon_set_on_the_host_network_has_the_address_of_the_node() {
    let listener = TcpListener::bind(("0.0.0.0", 0)).expect("port");
    let port = listener.local_addr().expect("address").port();
    drop(listener);
    let example = Example::apply(22, "daemonset.yaml", &[], &[("9101", &port.to_string())]);
    let site = &example.site;
    site.ask(&["rollout", "status", "daemonset/load", "--timeout=60s"]);
    let pods = example.pods("app=load");
    let address = r#"jsonpath={.status.addresses[?(@.type=="InternalIP")].address}"#;
    let addresses = site.ask(&["get", "node", "edge-1", "-o", address]);
    // The first is where its API is found, cloudcore's.
    let node = addresses.split_whitespace().last().expect("an address").to_owned();
    assert_eq!(pods.len(), 1);
    assert_eq!((text(&pods[0]["status"]["podIP"]), text(&pods[0]["status"]["hostIP"])), (node.as_str(), node.as_str()));
    let load = get(&node, port, "/loadavg").expect("an answer on a port of the node");
    assert_eq!(load.split_whitespace().count(), 5, "{load}");
}

#[test]
fn a_job_tries_again_until_it_succeeds() {
    let example = Example::apply(23, "job.yaml", &[], &[]);
    let site = &example.site;
    site.ask(&["wait", "--for=condition=complete", "job/third-time", "--timeout=120s"]);
    assert_eq!(example.file("job/tries"), "3\n");
    let counted = site.ask(&["get", "job", "third-time", "-o", "jsonpath={.status.succeeded} {.status.failed}"]);
    assert_eq!(counted, "1 2");
    let mut phases: Vec<String> =
        example.pods("job-name=third-time").iter().map(|pod| text(&pod["status"]["phase"]).to_owned()).collect();
    phases.sort();
    assert_eq!(phases, ["Failed", "Failed", "Succeeded"]);
    let described = site.ask(&["describe", "job", "third-time"]);
    assert!(described.contains("Job completed") && described.contains("1 Succeeded / 2 Failed"), "{described}");
    site.ask(&["delete", "job", "third-time", "--cascade=foreground"]);
    assert!(example.pods("job-name=third-time").is_empty(), "its pods are not kept");
}

#[test]
fn a_pod_lives_through_init_sidecar_and_pre_stop() {
    let example = Example::apply(24, "pod.yaml", &[], &[]);
    let site = &example.site;
    site.ask(&["wait", "--for=condition=Ready", "pod/story", "--timeout=60s"]);
    let pod = example.pod("story");
    let served = get(text(&pod["status"]["podIP"]), 8080, "/");
    assert_eq!(served.as_deref(), Some("once upon a time\n"), "the sidecar serves what the init container made");
    let mut lines = vec!["init", "main reads: once upon a time"];
    assert_eq!(example.file("story/lines").lines().collect::<Vec<_>>(), lines);
    site.ask(&["delete", "pod", "story"]);
    lines.extend(["preStop sees: once upon a time", "main ends"]);
    assert_eq!(example.file("story/lines").lines().collect::<Vec<_>>(), lines);
}
