//! Probes of all four kinds against real containers, and against servers in the test's process where they must misbehave.

use std::time::Duration;

use jiff::Timestamp;
use link::ca::CertificateAuthority;
use link::tls::{self, Certificate, ClientAuth};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use crate::{Site, pod_with, site::is_ready};

/// A pod whose container runs this script and has this probe.
fn probed(name: &str, script: &str, kind: &str, probe: Value) -> Value {
    pod_with(name, |pod| {
        pod["spec"]["containers"][0]["command"] = json!(["sh", "-c", script]);
        pod["spec"]["containers"][0][kind] = probe;
    })
}

const IDLE: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
/// The first process of a container does not hear SIGTERM unless it asks for it.
const DEAF: &str = "exec sleep 100000";

fn texts(site: &Site, pod: &str, reason: &str) -> Vec<String> {
    let events = site.cloud.event_objects(pod).into_iter().filter(|event| event["reason"] == reason);
    events.map(|event| event["message"].as_str().unwrap_or_default().to_owned()).collect()
}

fn main_of(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}

fn restarts(pod: &Value) -> i64 {
    main_of(pod)["restartCount"].as_i64().unwrap_or_default()
}

fn time(value: &Value) -> Timestamp {
    value.as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn t38_readiness_follows_http() {
    let site = Site::start().await;
    let script = "mkdir /www; httpd -p 8080 -h /www; trap 'exit 0' TERM; while :; do sleep 0.1; done";
    let probe = json!({"httpGet": {"port": "web", "path": "/ok"}, "periodSeconds": 1, "failureThreshold": 1});
    let mut pod = probed("web", script, "readinessProbe", probe);
    pod["spec"]["containers"][0]["ports"] = json!([{"name": "web", "containerPort": 8080}]);
    site.cloud.create(pod).await;
    site.eventually("told", async || {
        texts(&site, "web", "Unhealthy")
            .contains(&"Readiness probe failed: HTTP probe failed with statuscode: 404".into())
    })
    .await;
    let pod = site.until("web", "running", |pod| pod["status"]["phase"] == "Running").await;
    assert!(!is_ready(&pod));
    assert_eq!(main_of(&pod)["started"], true);
    let begin = Instant::now();
    site.sh("web", "main", "echo ok > /www/ok").await;
    let pod = site.until("web", "ready", is_ready).await;
    assert!(begin.elapsed() < Duration::from_secs(8), "{:?}", begin.elapsed());
    site.sh("web", "main", "rm /www/ok").await;
    site.until("web", "not ready", |pod| !is_ready(pod)).await;
    assert_eq!(restarts(&pod), 0);
    site.cloud.delete("web", 1).await;
    site.until_gone("web").await;
}

#[tokio::test]
async fn t39_failed_liveness_restarts_unless_never() {
    let site = Site::start().await;
    let probe = json!({"exec": {"command": ["sh", "-c", "echo dead; exit 1"]}, "initialDelaySeconds": 2,
        "periodSeconds": 1, "failureThreshold": 3});
    site.cloud.create(probed("web", DEAF, "livenessProbe", probe.clone())).await;
    let mut never = probed("never", DEAF, "livenessProbe", probe);
    never["spec"]["restartPolicy"] = json!("Never");
    site.cloud.create(never).await;
    let pod = site.until("web", "restarted", |pod| restarts(pod) >= 1).await;
    assert_eq!(restarts(&pod), 1);
    let last = &main_of(&pod)["lastState"]["terminated"];
    assert!([137, 143].contains(&last["exitCode"].as_i64().unwrap()), "{last}");
    // Probes at 2, 3 and 4 s, then the grace period of 2 s; the machine may be loaded.
    let lived = time(&last["finishedAt"]).duration_since(time(&last["startedAt"])).as_secs();
    assert!((4..=15).contains(&lived), "{lived}");
    assert_eq!(texts(&site, "web", "Killing"), ["Container main failed liveness probe, will be restarted"]);
    assert!(texts(&site, "web", "Unhealthy")[0].starts_with("Liveness probe failed: dead"));

    let never = site.until("never", "failed", |pod| pod["status"]["phase"] == "Failed").await;
    assert_eq!(restarts(&never), 0);
    assert_eq!(texts(&site, "never", "Killing")[0], "Stopping container main");
    assert_eq!(site.containers("never").await.len(), 1, "not restarted");
}

#[tokio::test]
async fn t40_startup_gates_the_others() {
    let site = Site::start().await;
    let startup = |failures| json!({"exec": {"command": ["test", "-f", "/tmp/up"]}, "periodSeconds": 1, "failureThreshold": failures});
    let mut pod = probed("web", IDLE, "startupProbe", startup(30));
    pod["spec"]["containers"][0]["livenessProbe"] =
        json!({"exec": {"command": ["touch", "/tmp/live"]}, "periodSeconds": 1});
    site.cloud.create(pod).await;
    site.cloud.create(probed("slow", DEAF, "startupProbe", startup(2))).await;
    site.eventually("three failures", async || {
        let events = site.cloud.event_objects("web");
        let unhealthy = events.iter().filter(|event| event["reason"] == "Unhealthy");
        unhealthy.filter_map(|event| event["count"].as_i64()).max() >= Some(3)
    })
    .await;
    assert_eq!(site.sh("web", "main", "ls /tmp").await.1, "", "no liveness probe yet");
    let pod = site.until("web", "running", |pod| pod["status"]["phase"] == "Running").await;
    assert_eq!(main_of(&pod)["started"], false);
    site.sh("web", "main", "touch /tmp/up").await;
    let pod = site.until("web", "ready", is_ready).await;
    assert_eq!((restarts(&pod), &main_of(&pod)["started"]), (0, &json!(true)));
    site.eventually("liveness probe", async || site.sh("web", "main", "ls /tmp").await.1.contains("live")).await;

    site.until("slow", "restarted on exhaustion", |pod| restarts(pod) >= 1).await;
    assert_eq!(texts(&site, "slow", "Killing")[0], "Container main failed startup probe, will be restarted");
}

/// Answers every request on its own connection with this text; the request's head is handed to the closure.
async fn respond<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, answer: impl Fn(&str) -> String) {
    let mut head = vec![0; 4096];
    let read = stream.read(&mut head).await.unwrap_or(0);
    let text = answer(&String::from_utf8_lossy(&head[..read]));
    let _ = stream.write_all(text.as_bytes()).await;
    let _ = stream.shutdown().await;
}

async fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// A server of HTTPS with a certificate that nobody knows.
async fn https(servers: &mut JoinSet<()>) -> u16 {
    let issued =
        CertificateAuthority::generate().unwrap().issue_server("x", "x", &["elsewhere.example".into()]).unwrap();
    let own = Certificate { certificate: issued.certificate, key: issued.key };
    let acceptor = TlsAcceptor::from(tls::server(&own, ClientAuth::Requested, &[]).unwrap());
    let (listener, port) = listen().await;
    servers.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(stream) = acceptor.accept(stream).await {
                respond(stream, |_| "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".into()).await;
            }
        }
    });
    port
}

/// `/away` redirects to another host, `/home` to `/end` of the same, `/round` to itself; `/end` fails unless it is asked
/// politely.
async fn redirects(servers: &mut JoinSet<()>) -> u16 {
    let (listener, port) = listen().await;
    servers.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            respond(stream, |head| {
                let to =
                    |place: &str| format!("HTTP/1.1 302 Found\r\nLocation: {place}\r\nContent-Length: 4\r\n\r\nbody");
                if head.starts_with("GET /away") {
                    to("http://other.example/")
                } else if head.starts_with("GET /home") {
                    to("/end")
                } else if head.starts_with("GET /round") {
                    to("/round")
                } else if head.contains("X-Polite: yes\r\n") && head.contains("Host: shop.example\r\n") {
                    "HTTP/1.1 204 No Content\r\n\r\n".into()
                } else {
                    "HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n".into()
                }
            })
            .await;
        }
    });
    port
}

/// A server of `grpc.health.v1.Health` that knows the service `shop`, serving, and `old`, not serving.
async fn grpc(servers: &mut JoinSet<()>) -> u16 {
    use http_body_util::BodyExt;
    use hyper::{Response, body::Bytes};
    let (listener, port) = listen().await;
    servers.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let service = hyper::service::service_fn(|request: hyper::Request<hyper::body::Incoming>| async move {
                let path = request.uri().path().to_owned();
                let body = request.into_body().collect().await.unwrap().to_bytes();
                // A frame of five bytes, then the field 1 with its length.
                let service = body.get(7..).map(|name| String::from_utf8_lossy(name).into_owned()).unwrap_or_default();
                let status: u8 = match service.as_str() {
                    "shop" | "" => 1,
                    _ => 2,
                };
                let known = path == "/grpc.health.v1.Health/Check";
                let frame = if known { vec![0, 0, 0, 0, 2, 8, status] } else { Vec::new() };
                let mut trailers = hyper::HeaderMap::new();
                trailers.insert("grpc-status", if known { "0" } else { "12" }.parse().unwrap());
                let body = http_body_util::Full::new(Bytes::from(frame))
                    .with_trailers(async move { Some(Ok::<_, std::convert::Infallible>(trailers)) });
                let response =
                    Response::builder().header("content-type", "application/grpc").body(body.boxed()).unwrap();
                Ok::<_, std::convert::Infallible>(response)
            });
            let connection = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new())
                .serve_connection(hyper_util::rt::TokioIo::new(stream), service);
            connections.spawn(async move { drop(connection.await) });
        }
    });
    port
}

#[tokio::test]
async fn t41_outcomes_of_every_kind() {
    let mut servers = JoinSet::new();
    let (https, redirects, grpc) = (https(&mut servers).await, redirects(&mut servers).await, grpc(&mut servers).await);
    // Probes over gRPC go to the pod's address: that of the node for pods in its network.
    let site = Site::start_with(|settings| settings.node_ip = Some("127.0.0.1".parse().unwrap())).await;
    let http = |path: &str| json!({"httpGet": {"host": "127.0.0.1", "port": redirects, "path": path}});
    let polite = json!([{"name": "X-Polite", "value": "yes"}, {"name": "Host", "value": "shop.example"}]);
    let mut home = http("/home");
    home["httpGet"]["httpHeaders"] = polite;
    let named = json!({"tcpSocket": {"port": "web"}});
    let secure = json!({"httpGet": {"host": "127.0.0.1", "port": https, "scheme": "HTTPS"}});
    let insecure = json!({"httpGet": {"host": "127.0.0.1", "port": redirects, "scheme": "HTTPS"}});
    let check = |port: u16, service: &str| json!({"grpc": {"port": port, "service": service}});
    for (name, mut probe) in [
        ("named", named),
        ("unnamed", json!({"tcpSocket": {"port": "none"}})),
        ("closed", json!({"tcpSocket": {"host": "127.0.0.1", "port": 1}})),
        ("secure", secure),
        ("insecure", insecure),
        ("away", http("/away")),
        ("home", home),
        ("rude", http("/home")),
        ("round", http("/round")),
        ("shop", check(grpc, "shop")),
        ("whole", check(grpc, "")),
        ("old", check(grpc, "old")),
        ("nobody", check(1, "")),
    ] {
        probe["periodSeconds"] = json!(1);
        probe["timeoutSeconds"] = json!(5);
        let script = "httpd -p 8080; trap 'exit 0' TERM; while :; do sleep 0.1; done";
        let mut pod = probed(name, if name == "named" { script } else { IDLE }, "readinessProbe", probe);
        pod["spec"]["containers"][0]["ports"] = json!([{"name": "web", "containerPort": 8080}]);
        pod["spec"]["hostNetwork"] = json!(name != "named");
        if name != "named" {
            pod["spec"]["containers"][0]["ports"] = json!([]);
        }
        site.cloud.create(pod).await;
    }
    for name in ["named", "secure", "away", "home", "shop", "whole"] {
        site.until(name, "ready", is_ready).await;
    }
    let warning = "Readiness probe warning: Probe terminated redirects, Response body: body";
    assert!(texts(&site, "away", "ProbeWarning").contains(&warning.to_owned()));
    assert!(texts(&site, "home", "Unhealthy").is_empty());
    let url = format!("http://127.0.0.1:{redirects}");
    for (name, expected) in [
        (
            "unnamed",
            "Readiness probe errored and resulted in unknown state: strconv.Atoi: parsing \"none\": invalid syntax"
                .into(),
        ),
        ("closed", "Readiness probe failed: dial tcp 127.0.0.1:1: connect: connection refused".into()),
        (
            "insecure",
            format!(
                "Readiness probe failed: Get \"https://127.0.0.1:{redirects}/\": http: server gave HTTP response to HTTPS client"
            ),
        ),
        ("rude", "Readiness probe failed: HTTP probe failed with statuscode: 500".into()),
        ("round", format!("Readiness probe failed: Get \"{url}/round\": stopped after 10 redirects")),
        ("old", "Readiness probe failed: service unhealthy (responded with \"NOT_SERVING\")".into()),
    ] {
        let expected: String = expected;
        site.eventually(&expected, async || texts(&site, name, "Unhealthy").contains(&expected)).await;
        assert!(!is_ready(&site.cloud.pod(name).unwrap()), "{name}");
    }
    site.eventually("nobody listens", async || {
        texts(&site, "nobody", "Unhealthy")
            .iter()
            .any(|text| text.starts_with("Readiness probe failed: error: failed to connect service at \"127.0.0.1:1\""))
    })
    .await;
    drop(servers);
}

#[tokio::test]
async fn t42_a_command_that_takes_too_long_has_failed() {
    let site = Site::start().await;
    let probe =
        json!({"exec": {"command": ["sleep", "5"]}, "periodSeconds": 1, "timeoutSeconds": 1, "failureThreshold": 2});
    site.cloud.create(probed("web", DEAF, "livenessProbe", probe)).await;
    site.until("web", "restarted", |pod| restarts(pod) >= 1).await;
    let expected = "Liveness probe failed: command timed out: \"sleep 5\" timed out after 1s";
    assert_eq!(texts(&site, "web", "Unhealthy"), [expected]);
}

#[tokio::test]
async fn t43_a_probe_has_its_own_grace() {
    let site = Site::start().await;
    let probe = json!({"exec": {"command": ["false"]}, "periodSeconds": 1, "failureThreshold": 1,
        "terminationGracePeriodSeconds": 5});
    let mut pod = probed("web", DEAF, "livenessProbe", probe);
    pod["spec"]["terminationGracePeriodSeconds"] = json!(60);
    site.cloud.create(pod).await;
    let mut asked = None;
    site.eventually("killing", async || {
        if !texts(&site, "web", "Killing").is_empty() {
            asked.get_or_insert_with(Instant::now);
        }
        asked.is_some()
    })
    .await;
    let pod = site.until("web", "restarted", |pod| restarts(pod) >= 1).await;
    let took = asked.unwrap().elapsed();
    assert!(took >= Duration::from_secs(4) && took < Duration::from_secs(20), "{took:?}");
    assert_eq!(main_of(&pod)["lastState"]["terminated"]["exitCode"], 137);
    site.cloud.force_delete("web").await;
}
