//! Logs, streams into pods, the proxy of nodes and metrics, by the real kubectl and byte for byte, against a stand-in for a kubelet.

#![allow(clippy::panic, clippy::expect_used)]

mod support;

use std::process::Stdio;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use link::ca::CertificateAuthority;
use serde_json::{Value, json};
use support::World;
use support::client::Client;
use support::kubectl::{Kubectl, installed};
use support::kubelet::Kubelet;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const PATIENCE: Duration = Duration::from_secs(20);
const POD: &str = "/api/v1/namespaces/default/pods/p";

/// A node with this kubelet, and pod `p` on it with the containers `a`, `b`, `refused`.
async fn site() -> (World, Kubelet) {
    let mut world = World::start().await;
    let kubelet = Kubelet::start(&world).await;
    world.node("edge-1", json!({"site": "north"})).await;
    point(&world, "edge-1", kubelet.status()).await;
    world.eventually("the account is there", |w| w.get("serviceaccounts", "default", "default").is_some()).await;
    let containers =
        json!([{"name": "a", "image": "a:1"}, {"name": "b", "image": "b:1"}, {"name": "refused", "image": "c:1"}]);
    world
        .create(
            "pods",
            "default",
            json!({"metadata": {"name": "p", "labels": {"app": "p"}}, "spec": {"containers": containers}}),
        )
        .await;
    world.eventually("the pod runs", |w| w.running("default").len() == 1).await;
    (world, kubelet)
}

/// Writes where a node's API is.
async fn point(world: &World, node: &str, status: Value) {
    let what = world.at("nodes", "", node).sub("status");
    let options = kubeapi::WriteOptions::default();
    world.api().patch(&what, &status, kubeapi::PatchType::Merge, &options).await.expect("written");
}

/// A connection to the API on which every byte is the test's own.
struct Raw(TlsStream<TcpStream>);

impl Raw {
    async fn connect(world: &World, client: &Client) -> Self {
        let tcp = TcpStream::connect(world.plane.as_ref().expect("running").addr()).await.expect("TCP");
        let name = "127.0.0.1".try_into().expect("a name");
        Self(TlsConnector::from(client.tls.clone()).connect(name, tcp).await.expect("TLS"))
    }

    /// Sends a head, and reads one.
    async fn ask(&mut self, line: &str, headers: &str) -> String {
        self.0.write_all(format!("{line} HTTP/1.1\r\nHost: api\r\n{headers}\r\n").as_bytes()).await.expect("written");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(tokio::time::timeout(PATIENCE, self.0.read_u8()).await.expect("in time").expect("an answer"));
        }
        String::from_utf8(head).expect("text").to_lowercase()
    }

    async fn says(&mut self, text: &str, answer: &str) {
        self.0.write_all(text.as_bytes()).await.expect("written");
        let mut read = vec![0; answer.len()];
        tokio::time::timeout(PATIENCE, self.0.read_exact(&mut read)).await.expect("in time").expect("bytes");
        assert_eq!(String::from_utf8_lossy(&read), answer);
    }
}

const SPDY: &str =
    "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\nContent-Length: 0\r\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_reads_logs_and_runs_commands() {
    let (world, kubelet) = site().await;
    let kubectl = Kubectl { world: &world, program: installed() };
    assert_eq!(kubectl.works("logs p -c a --tail=2 --timestamps --limit-bytes=100 --since=5s", "").await, "one\ntwo\n");
    let asked = kubelet.seen.asked();
    assert_eq!(asked, ["GET /containerLogs/default/p/a?timestamps=true&tailLines=2&limitBytes=100&sinceSeconds=5"]);
    kubectl.works("logs p -c b --previous", "").await;
    assert!(kubelet.seen.asked()[1].ends_with("/b?previous=true"));
    let refused =
        "Error from server (BadRequest): container \"refused\" in pod \"p\" is waiting to start: ContainerCreating";
    kubectl.fails("logs p -c refused", "", refused).await;
    kubectl.fails("logs p --all-containers", "", refused).await;
    kubectl.fails("exec p -c refused -- true", "", "is waiting to start").await;
    let over_http2 = "get --raw /api/v1/namespaces/default/pods/p/exec?container=a&command=x";
    kubectl
        .fails(over_http2, "", "pods/exec needs an upgrade of the connection, which HTTP/2.0 has not: use HTTP/1.1")
        .await;
    kubectl.fails("logs p -c none", "", "container none is not valid for pod p").await;

    // What is written is read at once, and who stops reading ends it at the node.
    let mut follow = kubectl.command("logs -f p -c a").stdin(Stdio::null()).spawn().expect("kubectl");
    let mut lines = BufReader::new(follow.stdout.take().expect("stdout")).lines();
    world
        .eventually("it is followed", |_| kubelet.seen.asked().iter().any(|asked| asked.contains("follow=true")))
        .await;
    for text in ["first", "second"] {
        kubelet.seen.line(&format!("{text}\n")).await;
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.expect("in time").expect("a line");
        assert_eq!(line.as_deref(), Some(text));
    }
    follow.kill().await.expect("ended");
    kubelet.seen.ended(1).await;

    let (worked, said) = kubectl.run("exec -i p -c a -- cat x", "to and fro").await;
    assert!(!worked && said.contains("to and fro") && said.contains("exit code 3"), "{said}");
    let asked = "GET /exec/default/p/a?input=1&output=1&error=1&command=cat&command=x websocket";
    assert!(kubelet.seen.asked().iter().any(|seen| seen == asked), "{:?}", kubelet.seen.asked());
    let (_, said) = kubectl.run("attach -i p -c b", "attached").await;
    assert!(said.contains("attached"), "{said}");
    kubelet.seen.ended(3).await;

    // A container to debug with is attached to when it runs.
    kubectl.works("debug p --image=d:1 -c dbg --attach=false", "").await;
    let (_, said) = kubectl.run("attach -i p -c dbg", "debugged").await;
    assert!(said.contains("debugged"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upgrades_byte_for_byte() {
    let (world, kubelet) = site().await;
    let admin = Client::admin(&world);
    let mut raw = Raw::connect(&world, &admin).await;
    let head = raw
        .ask(
            &format!("POST {POD}/exec?container=a&stdin=true&command=sh"),
            &format!("{SPDY}Authorization: Bearer x\r\n"),
        )
        .await;
    assert!(
        head.starts_with("http/1.1 101 ") && head.contains("x-stream-protocol-version: v4.channel.k8s.io"),
        "{head}"
    );
    assert_eq!(kubelet.seen.asked(), ["POST /exec/default/p/a?input=1&command=sh SPDY/3.1 v4.channel.k8s.io"]);
    raw.says("\u{0}\u{1}frames", "\u{0}\u{1}frames").await;
    drop(raw);
    kubelet.seen.ended(1).await;

    // The node ends it: all it said comes first.
    let mut raw = Raw::connect(&world, &admin).await;
    raw.ask(&format!("POST {POD}/portforward"), SPDY).await;
    raw.says("bye", "bye").await;
    let end = tokio::time::timeout(PATIENCE, raw.0.read(&mut [0])).await.expect("in time");
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");

    let socket = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
        Sec-WebSocket-Protocol: SPDY/3.1+portforward.k8s.io\r\n";
    let mut raw = Raw::connect(&world, &admin).await;
    let head = raw.ask(&format!("GET {POD}/portforward?ports=80"), socket).await;
    assert!(
        head.starts_with("http/1.1 101 ") && head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="),
        "{head}"
    );
    assert!(head.contains("sec-websocket-protocol: spdy/3.1+portforward.k8s.io"), "{head}");
    assert_eq!(kubelet.seen.asked()[2], "GET /portForward/default/p?port=80 websocket");

    for (path, code, why) in [
        ("exec?container=a&command=x", 400, "Upgrade request required"),
        ("exec", 400, "a container name must be specified for pod p, choose one of: [a b refused]"),
        ("log", 400, "a container name must be specified for pod p, choose one of: [a b refused]"),
        ("log?container=a&tailLines=-1", 422, "PodLogOptions \"p\" is invalid: tailLines: Invalid value: -1"),
    ] {
        let mut raw = Raw::connect(&world, &admin).await;
        let upgrade = if path == "exec" { SPDY } else { "" };
        let head = raw.ask(&format!("GET {POD}/{path}"), &format!("{upgrade}Connection: close\r\n")).await;
        let mut body = Vec::new();
        let _ = raw.0.read_to_end(&mut body).await;
        let status: Value = serde_json::from_slice(&body).unwrap_or_else(|_| panic!("{head}"));
        assert!(status["code"] == code && status["message"].as_str().is_some_and(|m| m.starts_with(why)), "{status}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_reach_into_a_pod() {
    let (world, kubelet) = site().await;
    let admin = Client::admin(&world);
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let rules = json!([{"apiGroups": [""], "resources": ["pods/exec", "nodes/proxy"], "verbs": ["get"]}]);
    assert_eq!(
        admin.post(&format!("{rbac}/clusterroles"), json!({"metadata": {"name": "look"}, "rules": rules})).await.0,
        201
    );
    let binding = json!({"metadata": {"name": "look"}, "roleRef": {"kind": "ClusterRole", "name": "look"}, "subjects": [{"kind": "User", "name": "bob"}]});
    assert_eq!(admin.post(&format!("{rbac}/clusterrolebindings"), binding).await.0, 201);
    let as_bob = "Impersonate-User: bob\r\n";
    for (line, headers, why) in [
        (format!("GET {POD}/log?container=a"), "", "cannot get resource \"pods/log\" in API group \"\""),
        (format!("POST {POD}/exec?container=a&command=x"), SPDY, "cannot create resource \"pods/exec\""),
        (format!("GET {POD}/exec?container=a&command=x"), SPDY, "cannot create resource \"pods/exec\""),
        (format!("GET {POD}/portforward"), SPDY, "cannot get resource \"pods/portforward\""),
        (
            "GET /api/v1/nodes/edge-1/proxy/exec/default/p/a?command=x".to_owned(),
            SPDY,
            "cannot create resource \"nodes/proxy\"",
        ),
        ("DELETE /api/v1/nodes/edge-1/proxy/echo".to_owned(), "", "cannot delete resource \"nodes/proxy\""),
    ] {
        let mut raw = Raw::connect(&world, &admin).await;
        let head = raw.ask(&line, &format!("{headers}{as_bob}Connection: close\r\n")).await;
        assert!(head.starts_with("http/1.1 403 "), "{line}: {head}");
        let mut body = Vec::new();
        let _ = raw.0.read_to_end(&mut body).await;
        let body = String::from_utf8_lossy(&body);
        assert!(body.contains(&why.replace('"', "\\\"")), "{line}: {body}");
    }
    assert_eq!(kubelet.seen.asked(), [""; 0], "nothing of that came to the node");
    let bob = Client::admin(&world).with("impersonate-user", "bob");
    assert_eq!(bob.get("/api/v1/nodes/edge-1/proxy/stats/summary").await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_proxy_of_a_node() {
    let (world, kubelet) = site().await;
    let kubectl = Kubectl { world: &world, program: installed() };
    let text = kubectl.works("get --raw /api/v1/nodes/edge-1/proxy/stats/summary", "").await;
    assert!(text.contains("\"nodeName\": \"edge-1\""), "{text}");
    let admin = Client::admin(&world);
    let port = kubelet.address.port();
    let answer = admin
        .send("PUT", &format!("/api/v1/nodes/edge-1:{port}/proxy/echo/a%2Fb?c=d+e"), "text/plain", b"body".to_vec())
        .await;
    assert_eq!(answer, (418, b"body".to_vec()), "whatever the node answers");
    assert_eq!(kubelet.seen.asked()[1], "PUT /echo/a%2Fb?c=d+e /api/v1/nodes/edge-1/proxy/echo/a%2Fb");
    assert_eq!(admin.get("/api/v1/nodes/edge-1/proxy").await, (404, json!("404 page not found\n")));
    let mut raw = Raw::connect(&world, &admin).await;
    let head = raw.ask("POST /api/v1/nodes/edge-1/proxy/echo", &format!("Content-Length: {}\r\n", (3 << 20) + 1)).await;
    assert!(head.starts_with("http/1.1 413 "), "{head}");
    for (path, code, why) in [
        ("nodes/edge-1:22/proxy/", 400, "only its kubelet can be reached"),
        ("nodes/none/proxy/", 404, "nodes \"none\" not found"),
    ] {
        let (status, said) = admin.get(&format!("/api/v1/{path}")).await;
        assert!(status == code && said["message"].as_str().is_some_and(|m| m.contains(why)), "{path}: {said}");
    }
    let (_, list) = admin.get("/api/v1").await;
    let found = |name: &str| list["resources"].as_array().expect("list").iter().find(|r| r["name"] == name).cloned();
    assert_eq!(found("pods/exec").expect("listed")["verbs"], json!(["create", "get"]));
    assert_eq!(found("pods/log").expect("listed")["kind"], "Pod");
    assert!(found("nodes/proxy").is_some() && found("pods/proxy").is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_cannot_be_reached() {
    let (world, kubelet) = site().await;
    let admin = Client::admin(&world);
    let log = format!("{POD}/log?container=a");
    let told = async |why: &str, code: u16| {
        let (status, said) = admin.get(&log).await;
        assert!(status == code && said["message"].as_str().is_some_and(|m| m.contains(why)), "{said}");
    };
    let port = |port: Value| json!({"status": {"daemonEndpoints": {"kubeletEndpoint": {"Port": port}}}});
    point(&world, "edge-1", port(json!(0))).await;
    told("node edge-1 does not tell the port", 503).await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("port").local_addr().expect("address").port();
    point(&world, "edge-1", port(json!(free))).await;
    told(&format!("error dialing backend: node edge-1 at 127.0.0.1:{free}: cannot be reached: "), 503).await;
    // Somebody else's certificate is not believed.
    let other = link::ca::CertificateAuthority::generate().expect("a CA");
    let imposter = Kubelet::start_with(&world, &other).await;
    point(&world, "edge-1", imposter.status()).await;
    told("TLS failed: invalid peer certificate", 503).await;
    point(&world, "edge-1", kubelet.status()).await;
    assert_eq!(admin.get(&log).await.0, 200);
    world.delete("secrets", "kubeedge", "casecret", "").await;
    told("there is no CA certificate in cadata of Secret kubeedge/casecret", 503).await;
    world.create("pods", "default", json!({"metadata": {"name": "q"}, "spec": {"containers": [{"name": "c", "image": "c:1"}], "nodeSelector": {"no": "where"}}})).await;
    let (status, said) = admin.get("/api/v1/namespaces/default/pods/q/log").await;
    assert_eq!((status, &said["message"]), (400, &json!("pod q does not have a host assigned")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn questions_share_a_connection_where_they_can() {
    let (world, _) = site().await;
    let (admin, hub) = (Client::admin(&world), CertificateAuthority::generate().expect("a CA"));
    let cadata = json!({"data": {"cadata": STANDARD.encode(hub.certificate())}});
    let secret = world.at("secrets", "kubeedge", "casecret");
    let options = kubeapi::WriteOptions::default();
    world.api().patch(&secret, &cadata, kubeapi::PatchType::Merge, &options).await.expect("written");
    let follow = format!("GET {POD}/log?container=a&follow=true");
    let mut at = "127.0.0.1:0".parse().expect("an address");
    let both: &[&[u8]] = &[b"h2", b"http/1.1"];
    for (alpn, connections) in [(both, 1), (&both[1..], 4), (both, 1)] {
        let kubelet = Kubelet::start_at(at, &world, &hub, alpn).await;
        // What was kept of the one before does not stand in the way of its successor.
        at = kubelet.address;
        point(&world, "edge-1", kubelet.status()).await;
        assert_eq!(admin.get(&format!("{POD}/log?container=a")).await.0, 200);
        let mut followers = Vec::new();
        for _ in 0..3 {
            let mut raw = Raw::connect(&world, &admin).await;
            assert!(raw.ask(&follow, "").await.starts_with("http/1.1 200 "));
            followers.push(raw);
        }
        assert_eq!(kubelet.seen.connections(), connections);
        // One that goes away takes none with it.
        followers.remove(0);
        kubelet.seen.ended(1).await;
        kubelet.seen.line("still there\n").await;
        let mut read = Vec::new();
        while !read.ends_with(b"still there\n\r\n") {
            let byte = tokio::time::timeout(PATIENCE, followers[1].0.read_u8()).await;
            read.push(byte.expect("in time").expect("a byte"));
        }
        drop(followers);
        kubelet.seen.ended(3).await;
        // What changes the protocol, or has a body, goes by a connection of its own.
        let mut raw = Raw::connect(&world, &admin).await;
        raw.ask(&format!("POST {POD}/exec?container=a&stdin=true&command=sh"), SPDY).await;
        let path = "/api/v1/nodes/edge-1/proxy/echo";
        assert_eq!(admin.send("PUT", path, "text/plain", b"body".to_vec()).await, (418, b"body".to_vec()));
        assert_eq!(kubelet.seen.connections(), connections + 2);
        drop(raw);
        kubelet.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nodes_and_pods_use() {
    let (mut world, kubelet) = site().await;
    world.node("edge-2", json!({})).await;
    let kubectl = Kubectl { world: &world, program: installed() };
    let top = kubectl.works("top node", "").await;
    assert!(
        top.contains("edge-1   250m")
            && top.contains("1024Mi")
            && !top.lines().any(|l| l.contains("edge-2") && !l.contains("unknown")),
        "{top}"
    );
    let top = kubectl.works("top pod -A --containers", "").await;
    let rows: Vec<Vec<&str>> = top.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows, [["default", "p", "a", "20m", "10Mi"], ["default", "p", "b", "2m", "0Mi"]]);
    let asked = "GET /stats/summary?only_cpu_and_memory=true /api/v1/nodes/edge-1/proxy/stats/summary";
    assert_eq!(kubelet.seen.asked(), [asked], "once for both");
    let table = kubectl.works("get nodes.metrics.k8s.io", "").await;
    assert!(table.contains("NAME     CPU          MEMORY      WINDOW"), "{table}");

    let admin = Client::admin(&world);
    let metrics = "/apis/metrics.k8s.io/v1beta1";
    let (_, node) = admin.get(&format!("{metrics}/nodes/edge-1")).await;
    assert_eq!(node["usage"], json!({"cpu": "250000000n", "memory": "1048576Ki"}));
    assert_eq!((&node["timestamp"], &node["window"]), (&json!("2026-11-24T12:00:00Z"), &json!("10s")));
    let names = |list: &Value| {
        list["items"].as_array().expect("items").iter().map(|i| i["metadata"]["name"].clone()).collect::<Vec<_>>()
    };
    for (query, found) in [
        ("nodes?labelSelector=site=north", vec![json!("edge-1")]),
        ("nodes?labelSelector=site=south", vec![]),
        ("pods?fieldSelector=metadata.namespace=default", vec![json!("p")]),
        ("namespaces/default/pods?labelSelector=app=p", vec![json!("p")]),
        ("namespaces/kube-system/pods", vec![]),
    ] {
        let (_, list) = admin.get(&format!("{metrics}/{query}")).await;
        assert_eq!(names(&list), found, "{query}");
    }
    let refused = async |path: &str| {
        let (code, said) = admin.get(&format!("{metrics}/{path}")).await;
        (code, said["message"].as_str().unwrap_or_default().to_owned())
    };
    let (code, why) = refused("nodes/edge-2").await;
    assert!(
        code == 404
            && why.starts_with("nodemetrics.metrics.k8s.io \"edge-2\" not found: node edge-2 does not tell an address"),
        "{why}"
    );
    assert_eq!(refused("nodes?fieldSelector=spec.x=y").await.0, 400);
    assert_eq!(refused("nodes?watch=true").await.0, 405);
    assert_eq!(admin.post(&format!("{metrics}/nodes"), json!({})).await.0, 405);
}
