//! The node's API as a stranger, a user and a fool meet it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use link::ca::{CertificateAuthority, node_request};
use link::files::to_pem;
use link::rustls::ClientConfig;
use link::rustls::pki_types::pem::PemObject;
use link::rustls::pki_types::{CertificateDer, ServerName};
use link::tls::{self, Certificate};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::node_api::NodeApi;
use crate::{Node, PATIENCE, pod};

/// A node with one pod, and its API.
async fn node() -> (Node, NodeApi) {
    let node = Node::started().await;
    let api = NodeApi::find(&node.cloud, &node.settings().root_dir).await;
    (node, api)
}

/// The answer to these bytes, until the server closes.
async fn raw(api: &NodeApi, request: &[u8]) -> String {
    let mut tcp = TcpStream::connect(api.address).await.unwrap();
    // The server may close before it has read all.
    let _ = tcp.write_all(request).await;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(PATIENCE, tcp.read_to_end(&mut answer)).await.expect("closed in time");
    drop(read);
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn everything_but_health_wants_a_token() {
    let (node, api) = node().await;
    let token_file = node.settings().root_dir.join("pki/api-token").display().to_string();
    let get = async |path: &str, header: &str| {
        raw(&api, format!("GET {path} HTTP/1.1\r\nhost: n\r\nconnection: close\r\n{header}\r\n").as_bytes()).await
    };
    for path in ["/healthz", "/healthz/ping", "/healthz/log", "/healthz/syncloop"] {
        let answer = get(path, "").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nok"), "{answer}");
    }
    for path in [
        "/pods",
        "/devices",
        "/devices/a/b/history",
        "/configz",
        "/metrics",
        "/stats/summary",
        "/exec/a/b/c",
        "/containerLogs/a/b/c",
        "/none",
        "/",
    ] {
        let answer = get(path, "").await;
        assert!(answer.starts_with("HTTP/1.1 401 Unauthorized\r\n") && answer.contains(&token_file), "{answer}");
        assert!(answer.contains("www-authenticate: Bearer\r\n"));
        let answer = get(path, "authorization: Bearer 0\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 401 ") && answer.contains("the token is not the one in "), "{answer}");
    }
    let (status, text) = api.get("/none").await;
    assert_eq!((status, text.as_str()), (404, "404 page not found: the node's API has no such path\n"));
    let answer = api.ask("DELETE", "/pods").await;
    assert_eq!((answer.head.status.as_u16(), answer.head.headers["allow"].to_str().unwrap()), (405, "GET"));
    assert_eq!(api.request("PUT", "/exec/a/b/c").await, (405, "method not allowed: use GET or POST\n".into()));
}

#[tokio::test]
async fn pods_and_the_configuration_in_force() {
    let (node, api) = node().await;
    node.cloud.create(pod("web")).await;
    let phase = || node.cloud.pod("web").is_some_and(|pod| pod["status"]["phase"] == "Running");
    node.until("running", phase).await;
    let pods = api.json("/pods").await;
    assert_eq!((&pods["kind"], &pods["apiVersion"]), (&"PodList".into(), &"v1".into()));
    let items = pods["items"].as_array().unwrap();
    assert_eq!((items.len(), &items[0]["metadata"]["name"]), (1, &"web".into()));
    assert_eq!(items[0]["status"]["phase"], "Running");
    assert!(items[0]["spec"]["containers"][0]["image"].is_string());
    let running = api.json("/runningpods/").await;
    assert_eq!(running["items"][0]["metadata"]["name"], "web");
    assert!(running["items"][0]["spec"]["containers"][0]["name"].is_string());
    let config = &api.json("/configz").await["kubeletconfig"];
    assert_eq!((&config["address"], &config["readOnlyPort"]), (&"127.0.0.1".into(), &api.address.port().into()));
    assert_eq!(config["cgroupDriver"], "cgroupfs");
}

#[tokio::test]
async fn questions_about_devices_are_handed_on_and_refusals_are_statuses() {
    let (_node, api) = node().await;
    let history = api.json("/devices/shop/t1/history?property=a%2Fb&limit=7&continue=1.2").await;
    let question = history["question"].as_str().unwrap();
    for part in ["\"shop\"", "\"t1\"", "\"a/b\"", "limit: 7", "\"1.2\""] {
        assert!(question.contains(part), "{question}");
    }
    assert!(api.text("/devices").await.contains("List(Page { limit: 500, from: None })"));
    for (path, code, reason, why) in [
        ("/devices/shop/nobody/twin", 404, "NotFound", "no device nobody is on this node"),
        ("/devices/shop/t1/history", 400, "BadRequest", "property: say which, property=NAME"),
        ("/devices?limit=0", 400, "BadRequest", "limit: \"0\" is no number from 1 to 1000"),
    ] {
        let (status, text) = api.get(path).await;
        let object: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((status, &object["code"]), (code, &code.into()), "{text}");
        assert_eq!(
            (&object["kind"], &object["reason"], &object["message"]),
            (&"Status".into(), &reason.into(), &why.into())
        );
    }
    assert_eq!(api.request("POST", "/devices").await, (405, "method not allowed: use GET\n".into()));
}

/// What a caller over TLS gets: status and text.
async fn over_tls(api: &NodeApi, client: Arc<ClientConfig>) -> (u16, String) {
    let tcp = TcpStream::connect(api.address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TlsConnector::from(client).connect(name, tcp).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async { drop(connection.await) });
    let request = http::Request::builder().uri("/pods").header("host", "localhost");
    let answer = sender.send_request(request.body(Empty::<bytes::Bytes>::new()).unwrap()).await.unwrap();
    let status = answer.status().as_u16();
    let body = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn certificates_over_tls_on_the_same_port() {
    let (node, api) = node().await;
    let settings = node.settings();
    let hub = CertificateAuthority::generate().unwrap();
    std::fs::write(&settings.client_ca_file, to_pem("CERTIFICATE", hub.certificate())).unwrap();
    let own_ca: PathBuf = settings.root_dir.join("pki/api-ca.crt");
    let server_ca = CertificateDer::from_pem_file(&own_ca).unwrap();
    let hour = Duration::from_secs(3600);
    let client = |issued: Option<(CertificateDer<'static>, Vec<u8>)>| {
        let own = issued.map(|(certificate, key)| Certificate { certificate, key });
        tls::client(&server_ca, own.as_ref()).unwrap()
    };
    let person = |group: &str| {
        let issued = hub.issue_client("ada", group, hour).unwrap();
        Some((issued.certificate, issued.key))
    };
    let (status, text) = over_tls(&api, client(person("system:masters"))).await;
    assert!(status == 200 && text.starts_with("{\"kind\":\"PodList\""), "{text}");
    let (status, text) = over_tls(&api, client(person("dev"))).await;
    assert!(status == 403 && text.starts_with("Forbidden: ada (groups: dev) is not in system:masters"), "{text}");
    let request = node_request("n1").unwrap();
    let signed = hub.sign_node(&request.request, "n1", &[2], hour).unwrap();
    let (status, text) = over_tls(&api, client(Some((signed, request.key)))).await;
    assert!(status == 403 && text.starts_with("Forbidden: system:node:n1 is a node"), "{text}");
    let (status, text) = over_tls(&api, client(None)).await;
    assert!(status == 401 && text.contains("neither a token nor a client certificate"), "{text}");
    assert!(Path::new(&own_ca).with_file_name("api-ca.key").is_file());
}

#[tokio::test]
async fn fools_are_told_and_hold_nobody_up() {
    let (_node, api) = node().await;
    let head = |rest: &str| format!("GET /pods HTTP/1.1\r\nhost: n\r\nauthorization: Bearer {}\r\n{rest}", api.token);
    // The limit is looked at between reads: a head may be twice as long before it is refused.
    let long = "x".repeat(300_000);
    for (request, status) in [
        (format!("GET /pods?{long} HTTP/1.1\r\nhost: n\r\n\r\n"), &["414", "431"][..]),
        (head(&format!("x: {long}\r\n\r\n")), &["431"]),
        (head(&format!("{}\r\n", (0..200).map(|n| format!("x{n}: y\r\n")).collect::<String>())), &["431"]),
        ("nonsense\r\n\r\n".into(), &["400"]),
        ("GET /pods HTTP/9.9\r\n\r\n".into(), &["400"]),
    ] {
        let answer = raw(&api, request.as_bytes()).await;
        let told = answer.split(' ').nth(1).unwrap_or_default();
        assert!(status.contains(&told), "{}: {answer}", &request[..20]);
    }
    // HTTP/2 without TLS is not spoken, and answered at once.
    assert!(!raw(&api, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.contains("200"));
    // Odd paths and queries are questions like others.
    for path in ["/pods?&&=&%zz&a=%ff", "/containerLogs/%2e%2e/%2f/x?tailLines=%00", "//pods", "/pods%00"] {
        let (status, _) = api.get(path).await;
        assert!([200, 400, 404].contains(&status), "{path}: {status}");
    }
    // A hundred that begin and do not go on: others are served, and they are closed after a while.
    let mut slow = Vec::new();
    for begin in ["", "G", "P", "GET /pods HTTP/1.1\r\nhost", "\x16\x03\x01"].iter().cycle().take(100) {
        let mut tcp = TcpStream::connect(api.address).await.unwrap();
        tcp.write_all(begin.as_bytes()).await.unwrap();
        slow.push(tcp);
    }
    assert_eq!(api.text("/healthz").await, "ok");
    for mut tcp in slow {
        let mut rest = Vec::new();
        let closed = tokio::time::timeout(PATIENCE, tcp.read_to_end(&mut rest)).await;
        assert!(closed.is_ok(), "still open");
    }
}
