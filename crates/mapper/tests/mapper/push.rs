//! Properties that go to an HTTP server or an MQTT broker besides.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use dmi::v1beta1 as proto;
use mapper::Value;
use mqtt::{Broker, BrokerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinSet;

use crate::script::Script;
use crate::stub::Stub;
use crate::support::{Running, device, model, property, until};

/// Runs a mapper whose device `a` pushes `n` so.
async fn start(method: proto::PushMethod) -> (tempfile::TempDir, Stub, Script, Running) {
    start_all(vec![method]).await
}

/// The same, with a device for each.
async fn start_all(methods: Vec<proto::PushMethod>) -> (tempfile::TempDir, Stub, Script, Running) {
    let folder = tempfile::tempdir().unwrap();
    let (mut edgecore, script) = (Stub::new(folder.path()), Script::default());
    let mut devices = Vec::new();
    for (method, name) in methods.into_iter().zip(["a", "b", "c"]) {
        script.of(name, |state| drop(state.values.insert("n".to_owned(), Value::Text("1 & 2".to_owned()))));
        let pushed = proto::DeviceProperty { push_method: Some(method), report_to_cloud: false, ..property("n", "") };
        devices.push(device(name, vec![pushed]));
    }
    edgecore.known().models = vec![model(&[("n", "STRING", "ReadOnly", "", "")])];
    edgecore.known().devices = devices;
    edgecore.start();
    let mapper = Running::start(folder.path(), script.clone());
    (folder, edgecore, script, mapper)
}

#[derive(Clone, Default)]
struct Posts(Arc<Mutex<Vec<String>>>);

impl Posts {
    /// Answers each request with this status.
    fn serve(&self, listener: TcpListener, status: &'static str) -> JoinSet<()> {
        let (posts, mut tasks) = (self.clone(), JoinSet::new());
        tasks.spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = Vec::new();
                while !is_whole(&request) {
                    if stream.read_buf(&mut request).await.unwrap() == 0 {
                        break;
                    }
                }
                posts.0.lock().unwrap().push(String::from_utf8(request).unwrap());
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        tasks
    }

    fn get(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request).to_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap_or("0");
    body.len() >= length.parse().unwrap()
}

#[tokio::test]
async fn http() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (posts, refusing) = (Posts::default(), Posts::default());
    let away = refusing.serve(listener, "503 Service Unavailable");
    let http = proto::PushMethodHttp {
        hostname: "http://127.0.0.1".to_owned(),
        port: address.port().into(),
        requestpath: "/c?x=1".to_owned(),
        timeout: 30,
    };
    // What is not supported takes nothing from what is.
    let method = proto::PushMethod { http: Some(http), otel: Some(Default::default()), ..Default::default() };
    let (_folder, edgecore, script, mapper) = start(method).await;
    until("a post is refused", || !refusing.get().is_empty()).await;
    script.of("a", |state| drop(state.values.insert("n".to_owned(), Value::Text("later".to_owned()))));
    drop(away);
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    until("the port is free again", || socket.bind(address).is_ok()).await;
    let _there = posts.serve(socket.listen(16).unwrap(), "204 No Content");
    until("what waited comes, in order", || posts.get().iter().any(|post| post.contains("n=later&time="))).await;
    let first = posts.get()[0].clone();
    let (head, body) = first.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("POST /c?x=1 HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("content-type: application/x-www-form-urlencoded"), "{head}");
    // 2026-11-28 00:30:00
    let time = body.strip_prefix("n=1%20%26%202&time=").expect(body);
    assert_eq!(time.len(), "2026-11-28%2000:30:00".len(), "{time}");
    assert!(edgecore.known().reports.is_empty(), "it is not for the cloud");
    mapper.stop().await;
}

#[tokio::test]
async fn a_path_that_fails_or_hangs_holds_up_no_other_path() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (posts, mut server) = (Posts::default(), JoinSet::new());
    let heard = posts.clone();
    server.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            connections.spawn(answer_by_path(stream, heard.clone()));
        }
    });
    let to = |path: &str| {
        let http = proto::PushMethodHttp {
            hostname: "http://127.0.0.1".to_owned(),
            port: port.into(),
            requestpath: path.to_owned(),
            timeout: 60,
        };
        proto::PushMethod { http: Some(http), ..Default::default() }
    };
    let (_folder, _edgecore, script, mapper) = start_all(vec![to("/broken"), to("/hangs"), to("/good")]).await;
    let of = |path: &str| posts.get().into_iter().filter(|post| post.starts_with(&format!("POST {path} "))).collect();
    until("the others go on", || {
        let (broken, hangs, good): (Vec<_>, Vec<_>, Vec<_>) = (of("/broken"), of("/hangs"), of("/good"));
        broken.len() > 2 && hangs.len() == 1 && good.len() > 20
    })
    .await;
    // Nor a value that is not taken the values after it.
    script.of("a", |state| drop(state.values.insert("n".to_owned(), Value::Text("last".to_owned()))));
    until("they come", || {
        let broken: Vec<String> = of("/broken");
        broken.iter().any(|post| post.contains("n=last&"))
    })
    .await;
    mapper.stop().await;
}

/// `/good` takes everything, `/hangs` never answers, anything else always fails.
async fn answer_by_path(mut stream: tokio::net::TcpStream, posts: Posts) {
    let mut request = Vec::new();
    while !is_whole(&request) {
        if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let request = String::from_utf8(request).unwrap();
    posts.0.lock().unwrap().push(request.clone());
    let status = if request.contains("/good ") { "204 No Content" } else { "500 Internal Server Error" };
    if request.contains("/hangs ") {
        std::future::pending::<()>().await;
    }
    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    let _ = stream.write_all(answer.as_bytes()).await;
}

#[tokio::test]
async fn mqtt() {
    let config = BrokerConfig::at(SocketAddr::from(([127, 0, 0, 1], 0)));
    let (broker, mut received) = Broker::start(config, &["machine/#"]).await.unwrap();
    let mqtt = proto::PushMethodMqtt {
        address: format!("tcp://{}", broker.addresses()[0]),
        topic: "machine/n".to_owned(),
        qos: 1,
        retained: true,
    };
    let (_folder, _edgecore, _script, mapper) =
        start(proto::PushMethod { mqtt: Some(mqtt), ..Default::default() }).await;
    let publish = received.recv().await.unwrap().take();
    let text = String::from_utf8(publish.payload.to_vec()).unwrap();
    assert!(text.starts_with("time is 20") && text.ends_with("  machine/n: 1 & 2"), "{text}");
    assert!(publish.retain && publish.topic == "machine/n");
    mapper.stop().await;
    broker.stop().await;
}
