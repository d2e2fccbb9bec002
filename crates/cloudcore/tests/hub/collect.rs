//! Logs of nodes brought to outputs, and metrics of all nodes: stand-ins for edges on one side, for receivers on the other.

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures_util::stream::unfold;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame as BodyFrame, Incoming};
use hyper_util::rt::TokioIo;
use link::http_server::Body;
use link::resume::Resumable;
use link::tunnel;
use link::ws::Target;
use serde_json::json;
use testkit::go_edge::Credentials;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::cloud::{Cloud, SOON};
use crate::receivers::{Receiver, loki_lines, otlp_lines};

/// What a node has: logs by the container's path, each line with its time, and pages.
#[derive(Clone, Default)]
struct Node {
    logs: Arc<watch::Sender<HashMap<String, Vec<String>>>>,
    pages: Arc<Mutex<HashMap<String, String>>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Node {
    /// Adds lines `TIME TEXT`; a log of the instance before is at `previous:PATH`.
    fn log(&self, path: &str, lines: &[&str]) {
        self.logs.send_modify(|logs| {
            logs.entry(path.to_owned()).or_default().extend(lines.iter().map(|line| line.to_string()));
        });
    }

    /// The container begins anew.
    fn restart(&self, path: &str, lines: &[&str]) {
        self.logs.send_modify(|logs| {
            let old = logs.insert(path.to_owned(), lines.iter().map(|line| line.to_string()).collect());
            logs.insert(format!("previous:{path}"), old.unwrap_or_default());
        });
    }

    /// The container is gone, and streams of its log end.
    fn remove(&self, path: &str) {
        self.logs.send_modify(|logs| drop(logs.remove(path)));
    }

    /// Its tunnel; dropping it cuts the connection.
    async fn connect(&self, cloud: &Cloud, credentials: &Credentials, node: &str) -> Result<JoinSet<()>> {
        let (_, address) = cloud.addresses().streams.context("no streams")?;
        let target = Target {
            url: format!("wss://{address}{}", tunnel::PATH),
            headers: vec![
                ("sessionhostnameoverride", node.to_owned()),
                ("sessioninternalip", "192.0.2.7".to_owned()),
                (tunnel::FEATURES, tunnel::HTTP2.to_owned()),
            ],
            tls: link::tls::client(&credentials.ca, Some(&credentials.own))?,
            connect_deadline: SOON,
            write_deadline: SOON,
        };
        let (frames, _) = tunnel::connect(&target).await?;
        let node = self.clone();
        let service = hyper::service::service_fn(move |request| std::future::ready(node.answer(&request)));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let _ = tunnel::server().serve_connection(TokioIo::new(Resumable::new(frames).0), service).await;
        });
        Ok(tasks)
    }

    fn answer(&self, request: &Request<Incoming>) -> Result<Response<Body>, Infallible> {
        let path = request.uri().path().to_owned();
        let query = request.uri().query().unwrap_or_default().to_owned();
        self.asked.lock().expect("lock").push(format!("{path}?{query}"));
        let page = self.pages.lock().expect("lock").get(&path).cloned();
        if let Some(page) = page {
            return Ok(Response::new(full(page)));
        }
        let since = query.split('&').find_map(|part| part.strip_prefix("sinceTime=")).unwrap_or_default().to_owned();
        let since = since.trim_end_matches('Z').to_owned();
        let key = if query.contains("previous=true") { format!("previous:{path}") } else { path };
        if !self.logs.borrow().contains_key(&key) {
            return Ok(Response::builder().status(404).body(full("no such log\n".into())).expect("an answer"));
        }
        let follow = query.contains("follow=true");
        let mut logs = self.logs.subscribe();
        let (to, pieces) = tokio::sync::mpsc::channel::<Bytes>(1);
        #[allow(clippy::disallowed_methods, reason = "a stand-in: it ends with its stream")]
        tokio::spawn(async move {
            let mut sent = 0;
            loop {
                let Some(all) = logs.borrow_and_update().get(&key).cloned() else { return };
                // Times of the same form compare as texts do.
                let new: Vec<String> =
                    all.iter().skip(sent).filter(|line| line.as_str() >= since.as_str()).cloned().collect();
                sent = all.len();
                if !new.is_empty() && to.send(Bytes::from(new.join("\n") + "\n")).await.is_err() || !follow {
                    return;
                }
                tokio::select! {
                    changed = logs.changed() => if changed.is_err() { return },
                    () = to.closed() => return,
                }
            }
        });
        let pieces = unfold(pieces, |mut pieces| async {
            pieces.recv().await.map(|piece| (Ok(BodyFrame::data(piece)), pieces))
        });
        Ok(Response::new(BodyExt::boxed(StreamBody::new(pieces))))
    }
}

fn full(text: String) -> Body {
    Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed()
}

/// A node with a pod of these labels on it; container `main`.
async fn node_with_pod(cloud: &Cloud, node: &str, pod: &str, app: &str) -> Result<Credentials> {
    let credentials = cloud.register(node).await?;
    cloud.create("/api/v1/nodes", &json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}})).await?;
    add_pod(cloud, node, pod, app).await?;
    Ok(credentials)
}

async fn add_pod(cloud: &Cloud, node: &str, pod: &str, app: &str) -> Result<()> {
    let object = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod, "namespace": "default", "labels": {"app": app}},
        "spec": {"nodeName": node, "containers": [{"name": "main", "image": "i"}]},
    });
    cloud.create("/api/v1/namespaces/default/pods", &object).await.map(drop)
}

/// Waits until the text is as wanted.
async fn until(what: &str, mut read: impl FnMut() -> String, wanted: &str) -> Result<()> {
    let deadline = tokio::time::Instant::now() + SOON;
    loop {
        let found = read();
        if found == wanted {
            return Ok(());
        }
        ensure!(tokio::time::Instant::now() < deadline, "{what} is\n{found}\nand not\n{wanted}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn file(path: PathBuf) -> impl FnMut() -> String {
    move || std::fs::read_to_string(&path).unwrap_or_default()
}

/// Waits until it is remembered that this output has this line.
async fn until_remembered(dir: &Path, output: &str, time: &str, count: u32) -> Result<()> {
    let path = dir.join(format!("positions/{output}.json"));
    let deadline = tokio::time::Instant::now() + SOON;
    let wanted = format!("{{\"time\":\"{time}\",\"count\":{count}}}");
    while !std::fs::read_to_string(&path).unwrap_or_default().contains(&wanted) {
        ensure!(tokio::time::Instant::now() < deadline, "{wanted} is not in {}", path.display());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn collecting(dir: &Path, selection: &str, outputs: &str) -> Result<Cloud> {
    let mut cloud = Cloud::start_without_hub().await?;
    let positions = dir.join("positions");
    cloud.collect = format!("{{{selection}positions: \"{}\", outputs: {{{outputs}}}}}", positions.display());
    cloud.start_hub("").await?;
    Ok(cloud)
}

const WEB: &str = "/containerLogs/default/web/main";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_line_comes_once_and_in_order_over_cuts_and_restarts() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let outputs = format!("files: {{directory: \"{}\"}}", dir.path().join("logs").display());
    let mut cloud = collecting(dir.path(), "labelSelector: \"app=web,tier!=x\", ", &outputs).await?;
    let credentials = node_with_pod(&cloud, "n1", "web", "web").await?;
    add_pod(&cloud, "n1", "other", "other").await?;
    let node = Node::default();
    let (a, b, c) = ("2026-01-02T03:04:05.000000001Z", "2026-01-02T03:04:05.000000002Z", "2026-01-02T03:04:06.5Z");
    let log = || file(dir.path().join("logs/default/web/main.log"));
    let mut wanted = String::new();
    let mut add = |lines: &[String]| {
        lines.iter().for_each(|line| wanted.push_str(&format!("{line}\n")));
        wanted.clone()
    };
    let begin = [format!("{a} one"), format!("{b} same"), format!("{b} same")];
    node.log(WEB, &begin.each_ref().map(String::as_str));
    node.log("/containerLogs/default/other/main", &[&format!("{a} not chosen")]);
    let tunnel = node.connect(&cloud, &credentials, "n1").await?;
    until("the beginning", log(), &add(&begin)).await?;

    // Cut in the middle of lines of the same nanosecond.
    drop(tunnel);
    let more = [format!("{b} same"), format!("{b} other"), format!("{c} after")];
    node.log(WEB, &more.each_ref().map(String::as_str));
    let tunnel = node.connect(&cloud, &credentials, "n1").await?;
    until("after a cut", log(), &add(&more)).await?;
    let live = [format!("{c} live")];
    node.log(WEB, &[&live[0]]);
    until("as it grows", log(), &add(&live)).await?;

    // cloudcore is killed, and the container restarts before it is back.
    until_remembered(dir.path(), "files", c, 2).await?;
    cloud.kill_hub();
    drop(tunnel);
    let last = [format!("{c} last words"), "2026-01-02T03:04:07Z new instance".to_owned()];
    node.log(WEB, &[&last[0]]);
    node.restart(WEB, &[&last[1]]);
    cloud.start_hub("").await?;
    let _tunnel = node.connect(&cloud, &credentials, "n1").await?;
    until("after a crash and a restart", log(), &add(&last)).await?;
    ensure!(!dir.path().join("logs/default/other").exists(), "a pod that was not chosen");

    // What is gone is forgotten.
    cloud.delete_pod("web", 0).await?;
    node.remove(WEB);
    until("the positions", file(dir.path().join("positions/files.json")), "{}").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_loki_that_is_down_holds_back_itself_alone() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let loki = Receiver::start().await?;
    let logs = dir.path().join("logs");
    let outputs =
        format!("files: {{directory: \"{}\"}}, loki: {{url: \"{}\", tenant: edge}}", logs.display(), loki.url);
    let cloud = collecting(dir.path(), "namespaces: [default], ", &outputs).await?;
    let credentials = node_with_pod(&cloud, "n1", "web", "web").await?;
    let node = Node::default();
    node.log(WEB, &["1970-01-01T00:00:01.000000001Z one \"1\""]);
    let _tunnel = node.connect(&cloud, &credentials, "n1").await?;
    let lines = || loki_lines(&loki.got.lock().expect("lock")).unwrap_or_else(|error| error.to_string());
    let first = "1000000001 one \"1\"\n";
    until("Loki", lines, first).await?;

    loki.answer(503);
    // More than waits anywhere between the node and Loki.
    let many: Vec<String> = (0..3000).map(|n| format!("1970-01-01T00:00:02.{n:09}Z {n:01000}")).collect();
    for part in many.chunks(10) {
        node.log(WEB, &part.iter().map(String::as_str).collect::<Vec<_>>());
    }
    let length = |lines: &str| lines.lines().count().to_string();
    let mut read = file(logs.join("default/web/main.log"));
    until("the file meanwhile", || length(&read()), "3001").await?;
    ensure!(lines() == first, "Loki was down");
    loki.answer(204);
    let wanted: String = (0..3000).map(|n| format!("{} {n:01000}\n", 2_000_000_000 + n)).collect();
    until("the number of lines in Loki", || length(&lines()), "3001").await?;
    ensure!(lines() == format!("{first}{wanted}"), "not in order");

    // What it will never take is dropped and counted, and the next goes on.
    loki.answer(400);
    node.log(WEB, &["1970-01-01T00:00:03Z bad"]);
    until("dropped", || dropped(&cloud), "1").await?;
    loki.answer(204);
    node.log(WEB, &["1970-01-01T00:00:04Z good"]);
    until("the last line", || lines().lines().last().unwrap_or_default().to_owned(), "4000000000 good").await
}

fn dropped(cloud: &Cloud) -> String {
    let page = page(cloud, "/metrics").unwrap_or_default();
    let line =
        page.lines().find_map(|line| line.strip_prefix("ferroedge_collect_dropped_lines_total{output=\"loki\"} "));
    line.unwrap_or_default().to_owned()
}

/// A page of the monitor.
fn page(cloud: &Cloud, path: &str) -> Result<String> {
    use std::io::{Read, Write};
    let address = cloud.addresses().monitor.context("no monitor")?;
    let mut tcp = std::net::TcpStream::connect(address)?;
    tcp.set_read_timeout(Some(SOON))?;
    write!(tcp, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
    let mut text = String::new();
    tcp.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("no answer")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
    Ok(body.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_of_all_nodes_are_one_page() -> Result<()> {
    let cloud = Cloud::start().await?;
    ensure!(page(&cloud, "/metrics/fleet")?.contains("ferroedge_fleet_scraped_nodes 0\n"));
    let mut tunnels = Vec::new();
    let nodes = [Node::default(), Node::default(), Node::default()];
    for (number, node) in nodes.iter().enumerate() {
        let name = format!("n{number}");
        let credentials = node_with_pod(&cloud, &name, &format!("p{number}"), "x").await?;
        // The last one has no metrics.
        if number < 2 {
            let text = format!(
                "# TYPE node_cpu_usage_seconds_total counter\nnode_cpu_usage_seconds_total {number} 1700000000000\n\
                pod_memory_working_set_bytes{{namespace=\"default\",pod=\"p{number}\"}} 1e6\nspoilt{{ 1\n"
            );
            node.pages.lock().expect("lock").insert("/metrics/resource".into(), text);
        }
        tunnels.push(node.connect(&cloud, &credentials, &name).await?);
    }
    // The first page serves for ten seconds.
    let deadline = tokio::time::Instant::now() + SOON;
    let found = loop {
        let found = page(&cloud, "/metrics/fleet")?;
        if found.contains("ferroedge_fleet_scraped_nodes 2\n") {
            break found;
        }
        ensure!(tokio::time::Instant::now() < deadline, "{found}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    ensure!(found.contains("ferroedge_fleet_scrape_failed 1\n"), "{found}");
    let type_line = "# TYPE node_cpu_usage_seconds_total counter\n";
    ensure!(found.matches(type_line).count() == 1 && !found.contains("spoilt"), "{found}");
    for number in 0..2 {
        let cpu = format!("\nnode_cpu_usage_seconds_total{{node=\"n{number}\"}} {number} 1700000000000\n");
        let memory = format!(
            "\npod_memory_working_set_bytes{{node=\"n{number}\",namespace=\"default\",pod=\"p{number}\"}} 1e6\n"
        );
        ensure!(found.contains(&cpu) && found.contains(&memory), "{found}");
    }
    let asked =
        |node: &Node| node.asked.lock().expect("lock").iter().filter(|path| path.starts_with("/metrics")).count();
    ensure!(
        page(&cloud, "/metrics/fleet")? == found && asked(&nodes[0]) == 1,
        "within ten seconds it is the same page"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_opentelemetry_collector_gets_lines_with_their_origin() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let collector = Receiver::start().await?;
    collector.answer(429);
    let mut cloud = collecting(dir.path(), "", &format!("otlp: {{url: \"{}/\"}}", collector.url)).await?;
    let credentials = node_with_pod(&cloud, "n1", "web", "web").await?;
    let node = Node::default();
    node.log(WEB, &["1970-01-01T00:00:01.000000001Z one", "1970-01-01T00:00:02Z two"]);
    let tunnel = node.connect(&cloud, &credentials, "n1").await?;
    let failed = "ferroedge_collect_failures_total{output=\"otlp\"} ";
    let has_failed = || {
        let page = page(&cloud, "/metrics").unwrap_or_default();
        page.lines().any(|line| line.strip_prefix(failed).is_some_and(|number| number != "0")).to_string()
    };
    until("a failure", has_failed, "true").await?;
    collector.answer(200);
    let lines = || otlp_lines(&collector.got.lock().expect("lock")).unwrap_or_else(|error| error.to_string());
    until("the collector", lines, "1000000001 one\n2000000000 two\n").await?;
    // Another cloudcore goes on where this one was.
    until_remembered(dir.path(), "otlp", "1970-01-01T00:00:02Z", 1).await?;
    cloud.stop_hub().await?;
    drop(tunnel);
    cloud.start_hub("").await?;
    node.log(WEB, &["1970-01-01T00:00:03Z three"]);
    let _tunnel = node.connect(&cloud, &credentials, "n1").await?;
    until("the collector", lines, "1000000001 one\n2000000000 two\n3000000000 three\n").await
}
