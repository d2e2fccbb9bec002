//! The real kubectl against a node: a small front turns the API server's paths into the node's, as the API server does.
//! Where there is no kubectl the test says so and passes.

use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::node_api::NodeApi;
use crate::site::PATIENCE;
use crate::{Site, pod_with};

const KUBECTL: &str = "/usr/bin/kubectl";

/// What stands in for the API server.
struct Front {
    address: String,
    _tasks: JoinSet<()>,
}

impl Front {
    async fn start(api: NodeApi, pod: Value) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let mut tasks = JoinSet::new();
        let pod = Arc::new(pod);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let (api, pod) = (api.clone(), Arc::clone(&pod));
                connections.spawn(async move { drop(serve(client, &api, &pod).await) });
            }
        });
        Self { address, _tasks: tasks }
    }
}

/// One request a connection.
async fn serve(mut client: TcpStream, api: &NodeApi, pod: &Value) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await?);
    }
    let head = String::from_utf8(head).unwrap();
    let (first, headers) = head.split_once("\r\n").unwrap();
    let mut words = first.split(' ');
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let Some(target) = node_target(path, query) else {
        let (status, body) = own_answer(path, pod);
        let length = body.len();
        let answer = format!(
            "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        );
        return client.write_all(answer.as_bytes()).await;
    };
    let close = if headers.to_lowercase().contains("upgrade:") { "" } else { "Connection: close\r\n" };
    let head = format!("{method} {target} HTTP/1.1\r\nAuthorization: Bearer {}\r\n{close}{headers}", api.token);
    let mut node = TcpStream::connect(api.address).await?;
    node.write_all(head.as_bytes()).await?;
    tokio::io::copy_bidirectional(&mut client, &mut node).await.map(drop)
}

/// `/api/v1/namespaces/default/pods/box/exec?…` as the node has it.
fn node_target(path: &str, query: &str) -> Option<String> {
    let (pod, verb) = path.strip_prefix("/api/v1/namespaces/default/pods/")?.split_once('/')?;
    let pairs = query.split('&').filter(|pair| !pair.starts_with("container="));
    let renamed = pairs.map(|pair| match pair {
        "stdin=true" => "input=1",
        "stdout=true" => "output=1",
        "stderr=true" => "error=1",
        "tty=true" => "tty=1",
        other => other,
    });
    let query = renamed.collect::<Vec<_>>().join("&");
    match verb {
        "log" => Some(format!("/containerLogs/default/{pod}/main?{query}")),
        "exec" | "attach" => Some(format!("/{verb}/default/{pod}/main?{query}")),
        "portforward" => Some(format!("/portForward/default/{pod}")),
        _ => None,
    }
}

/// Enough of discovery for kubectl to find pods.
fn own_answer(path: &str, pod: &Value) -> (u16, String) {
    let answer = match path {
        "/api" => json!({"kind": "APIVersions", "versions": ["v1"]}),
        "/apis" => json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": []}),
        "/api/v1" => json!({"kind": "APIResourceList", "groupVersion": "v1", "resources": [
            {"name": "pods", "singularName": "pod", "namespaced": true, "kind": "Pod", "verbs": ["get", "list"]}]}),
        "/api/v1/namespaces/default/pods/box" => pod.clone(),
        _ => return (404, json!({"kind": "Status", "status": "Failure", "code": 404, "message": path}).to_string()),
    };
    (200, answer.to_string())
}

struct Kubectl<'a> {
    front: &'a Front,
    home: &'a Path,
    websockets: bool,
}

impl Kubectl<'_> {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(KUBECTL);
        let websockets = self.websockets.to_string();
        command
            .args(["--server", &self.front.address, "--namespace", "default", "--cache-dir"])
            .arg(self.home)
            .args(arguments)
            .env_clear()
            .env("HOME", self.home)
            .env("PATH", "/usr/bin:/bin")
            .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", &websockets)
            .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", &websockets)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    async fn run(&self, arguments: &[&str], input: &[u8]) -> Output {
        let mut child = self.command(arguments).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let write = async move { drop(stdin.write_all(input).await) };
        let (output, ()) = tokio::join!(timeout(PATIENCE, child.wait_with_output()), write);
        output.expect("kubectl ends").unwrap()
    }

    /// What it prints, when all goes well.
    async fn works(&self, arguments: &[&str], input: &[u8]) -> String {
        let output = self.run(arguments, input).await;
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {arguments:?} ({}): {errors}", self.websockets);
        String::from_utf8(output.stdout).unwrap()
    }
}

#[tokio::test]
async fn t79_the_real_kubectl() {
    if !Path::new(KUBECTL).exists() {
        eprintln!("not tested: there is no {KUBECTL}");
        return;
    }
    let site = Site::start().await;
    let api = NodeApi::find(&site.cloud, &site.settings.root_dir).await;
    let pod = site
        .run(pod_with("box", |pod| {
            pod["spec"]["containers"][0]["stdin"] = json!(true);
            let serve = "mkdir /www; echo page >/www/index.html; httpd -p 8080 -h /www; echo ready; while read line; do echo got $line; done";
            pod["spec"]["containers"][0]["command"] = json!(["sh", "-c", serve]);
        }))
        .await;
    let front = Front::start(api, pod).await;
    let home = site.directory().join("home");
    std::fs::create_dir_all(&home).unwrap();
    for websockets in [true, false] {
        let kubectl = Kubectl { front: &front, home: &home, websockets };
        let failed = kubectl.run(&["exec", "box", "--", "sh", "-c", "echo out; echo err >&2; exit 3"], b"").await;
        assert_eq!(failed.status.code(), Some(3), "{failed:?}");
        assert_eq!(failed.stdout, b"out\n");
        assert!(String::from_utf8_lossy(&failed.stderr).starts_with("err\n"), "{failed:?}");
        let long = vec![b'x'; 2_000_000];
        let count = kubectl.works(&["exec", "-i", "box", "--", "sh", "-c", "wc -c; echo end"], &long).await;
        assert_eq!(count, "2000000\nend\n", "{websockets}");
        let none = kubectl.run(&["exec", "box", "-c", "main", "--", "no-such-command"], b"").await;
        assert!(!none.status.success(), "{none:?}");
        let file = home.join("file");
        std::fs::write(&file, &long).unwrap();
        let target = format!("box:/tmp/file-{websockets}");
        kubectl.works(&["cp", file.to_str().unwrap(), &target, "-c", "main"], b"").await;
        let back = home.join("back");
        kubectl.works(&["cp", &target, back.to_str().unwrap(), "-c", "main"], b"").await;
        assert_eq!(std::fs::read(&back).unwrap(), long);
        assert!(kubectl.works(&["logs", "box", "--tail=1"], b"").await.ends_with('\n'));
        attach(&kubectl).await;
        forward(&kubectl).await;
    }
}

async fn attach(kubectl: &Kubectl<'_>) {
    let mut child = kubectl.command(&["attach", "-i", "box", "-c", "main"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"hello\n").await.unwrap();
    let found = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line == "got hello" {
                return true;
            }
        }
        false
    };
    assert!(timeout(PATIENCE, found).await.expect("an answer"));
    child.kill().await.unwrap();
}

async fn forward(kubectl: &Kubectl<'_>) {
    let mut child = kubectl.command(&["port-forward", "box", ":8080"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = timeout(PATIENCE, lines.next_line()).await.expect("a line").unwrap().expect("a line");
    let port = line.strip_prefix("Forwarding from 127.0.0.1:").and_then(|rest| rest.split(' ').next()).unwrap();
    for _ in 0..3 {
        let mut tcp = TcpStream::connect(format!("127.0.0.1:{port}")).await.unwrap();
        tcp.write_all(b"GET /index.html HTTP/1.0\r\n\r\n").await.unwrap();
        let mut page = String::new();
        timeout(PATIENCE, tcp.read_to_string(&mut page)).await.expect("a page").unwrap();
        assert!(page.ends_with("page\n"), "{page}");
    }
    child.kill().await.unwrap();
}
