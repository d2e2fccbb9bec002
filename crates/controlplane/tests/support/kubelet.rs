//! A stand-in for a kubelet's API: TLS with a certificate of the hub's CA, which it keeps where cloudcore does. It believes the client
//! certificates that the cluster announces, and tells what it was asked.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, stream};
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use link::ca::CertificateAuthority;
use link::http_server::{Body, HttpServer, MAX_STREAMS, Peer};
use link::identity::Identity;
use link::tls::{Certificate, ClientAuth};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::World;

const STATISTICS: &str = r#"{"node": {"nodeName": "edge-1", "cpu": {"time": "2026-11-24T12:00:00.5Z", "usageNanoCores": 250000000},
    "memory": {"workingSetBytes": 1073741824}}, "pods": [{"podRef": {"name": "p", "namespace": "default"}, "containers": [
    {"name": "a", "cpu": {"time": "2026-11-24T12:00:01Z", "usageNanoCores": 20000000}, "memory": {"workingSetBytes": 10485760}},
    {"name": "b", "cpu": {"usageNanoCores": 1000001}, "memory": {"workingSetBytes": 1024}}, {"name": "c", "cpu": {}, "memory": {}}]}]}"#;

/// What a test sees and does at the kubelet.
#[derive(Clone)]
pub struct Seen(Arc<Inner>);

struct Inner {
    /// `METHOD path?query`, with what concerns the test of the headers.
    asked: Mutex<Vec<String>>,
    /// The other ends of the connections by which it was asked.
    peers: Mutex<HashSet<SocketAddr>>,
    /// Lines of the followed log.
    lines: Mutex<Option<mpsc::Sender<Bytes>>>,
    /// Followed logs and streams that have ended at this side.
    ended: watch::Sender<usize>,
    streams: TaskTracker,
}

pub struct Kubelet {
    pub address: SocketAddr,
    pub seen: Seen,
    stop: DropGuard,
    tasks: JoinSet<()>,
}

impl Kubelet {
    /// Starts, and makes the CA known to the cluster.
    pub async fn start(world: &World) -> Self {
        let hub = CertificateAuthority::generate().expect("a CA");
        let secret = json!({"metadata": {"name": "casecret"}, "data": {"cadata": STANDARD.encode(hub.certificate())}});
        world.create("secrets", "kubeedge", secret).await;
        Self::start_with(world, &hub).await
    }

    /// Starts with a certificate of this CA.
    pub async fn start_with(world: &World, hub: &CertificateAuthority) -> Self {
        let any = "127.0.0.1:0".parse().expect("an address");
        Self::start_at(any, world, hub, &[b"h2", b"http/1.1"]).await
    }

    /// Starts there, and speaks these protocols.
    pub async fn start_at(at: SocketAddr, world: &World, hub: &CertificateAuthority, alpn: &[&[u8]]) -> Self {
        let issued = hub.issue_server("cloudcore", "test", &["127.0.0.1".to_owned()]).expect("a certificate");
        let own = Certificate { certificate: issued.certificate, key: issued.key };
        let believed = world.get("configmaps", "kube-system", "extension-apiserver-authentication").expect("announced");
        let pem = believed["data"]["client-ca-file"].as_str().expect("a CA");
        let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
        let cluster = STANDARD.decode(body).expect("DER").into();
        let tls = link::tls::server(&own, ClientAuth::Required(cluster), alpn).expect("TLS");
        let listener = TcpListener::bind(at).await.expect("port");
        let address = listener.local_addr().expect("address");
        let server = HttpServer {
            listener,
            tls: Some(watch::Sender::new(tls).subscribe()),
            max_connections: 64,
            max_streams: MAX_STREAMS,
        };
        let inner = Inner {
            asked: Mutex::default(),
            peers: Mutex::default(),
            lines: Mutex::default(),
            ended: watch::Sender::new(0),
            streams: TaskTracker::new(),
        };
        let seen = Seen(Arc::new(inner));
        let (stop, mut tasks, handler) = (CancellationToken::new(), JoinSet::new(), seen.clone());
        let handle = move |request, peer| {
            let handler = handler.clone();
            async move { handler.answer(request, &peer) }
        };
        tasks.spawn(server.serve(handle, stop.clone()));
        Self { address, seen, stop: stop.drop_guard(), tasks }
    }

    /// Ends, so that another may take its place.
    pub async fn stop(self) {
        drop(self.stop);
        self.tasks.join_all().await;
    }

    /// What a node's status says of it.
    pub fn status(&self) -> Value {
        json!({"status": {
            "addresses": [{"type": "Hostname", "address": "nowhere.invalid"}, {"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": self.address.port()}},
        }})
    }
}

impl Seen {
    /// All that was asked, in order.
    pub fn asked(&self) -> Vec<String> {
        self.0.asked.lock().expect("lock").clone()
    }

    /// By how many connections.
    pub fn connections(&self) -> usize {
        self.0.peers.lock().expect("lock").len()
    }

    /// Writes to the log that is followed.
    pub async fn line(&self, text: &str) {
        let lines = self.0.lines.lock().expect("lock").clone();
        lines.expect("somebody follows").send(Bytes::from(text.to_owned())).await.expect("he still does");
    }

    /// Waits until so many logs and streams have ended here.
    pub async fn ended(&self, count: usize) {
        let mut ended = self.0.ended.subscribe();
        let in_time = tokio::time::timeout(Duration::from_secs(10), ended.wait_for(|ended| *ended >= count));
        in_time.await.expect("the connection to the node ends").expect("here");
    }

    fn answer(&self, mut request: Request<Incoming>, peer: &Peer) -> Response<Body> {
        let client = Identity::read(peer.certificate.as_ref().expect("a certificate")).expect("readable");
        assert_eq!(
            (client.common_name.as_str(), client.organisations),
            ("kube-apiserver-kubelet-client", vec!["system:masters".to_owned()])
        );
        let headers = ["authorization", "x-forwarded-uri", "upgrade", "x-stream-protocol-version"];
        let told =
            headers.iter().flat_map(|name| request.headers().get_all(*name)).filter_map(|value| value.to_str().ok());
        let told: Vec<&str> = told.collect();
        let target = request.uri().path_and_query().expect("a target");
        let asked = format!("{} {target} {}", request.method(), told.join(" "));
        self.0.asked.lock().expect("lock").push(asked.trim().to_owned());
        self.0.peers.lock().expect("lock").insert(peer.address);
        let path = request.uri().path().to_owned();
        let query = request.uri().query().unwrap_or_default().to_owned();
        match path.split('/').nth(1).unwrap_or_default() {
            _ if path.ends_with("/refused") => text(
                StatusCode::BAD_REQUEST,
                "container \"refused\" in pod \"p\" is waiting to start: ContainerCreating\n",
            ),
            "containerLogs" if query.contains("follow=true") => self.follow(),
            "containerLogs" => text(StatusCode::OK, "one\ntwo\n"),
            "exec" | "attach" | "portForward" => self.upgrade(&mut request),
            "stats" => text(StatusCode::OK, STATISTICS),
            "echo" => {
                let mut answer = Response::new(request.into_body().map_err(Into::into).boxed());
                *answer.status_mut() = StatusCode::IM_A_TEAPOT;
                answer.headers_mut().insert("x-said", query.parse().expect("a header"));
                answer
            }
            _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
        }
    }

    fn follow(&self) -> Response<Body> {
        let (sender, lines) = mpsc::channel(1);
        *self.0.lines.lock().expect("lock") = Some(sender);
        let end = Ended(self.0.ended.clone());
        let frames = stream::unfold((lines, end), |(mut lines, end)| async move {
            let line = lines.recv().await?;
            Some((Ok(Frame::data(line)), (lines, end)))
        });
        Response::new(BodyExt::boxed(StreamBody::new(Shared(Mutex::new(Box::pin(frames))))))
    }

    /// A WebSocket speaks `v5.channel.k8s.io` and echoes its standard input; SPDY, which this does not know, is echoed byte for byte.
    fn upgrade(&self, request: &mut Request<Incoming>) -> Response<Body> {
        let mut answer = Response::new(Empty::new().map_err(|never| match never {}).boxed());
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = answer.headers_mut();
        headers.insert(header::CONNECTION, "Upgrade".parse().expect("value"));
        headers.insert(header::UPGRADE, request.headers()[header::UPGRADE].clone());
        let key = request.headers().get(header::SEC_WEBSOCKET_KEY).map(|key| derive_accept_key(key.as_bytes()));
        if let Some(key) = &key {
            headers.insert(header::SEC_WEBSOCKET_ACCEPT, key.parse().expect("value"));
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, request.headers()[header::SEC_WEBSOCKET_PROTOCOL].clone());
        } else {
            headers.insert("x-stream-protocol-version", request.headers()["x-stream-protocol-version"].clone());
        }
        let (upgrade, end) = (hyper::upgrade::on(request), Ended(self.0.ended.clone()));
        self.0.streams.spawn(async move {
            let _end = end;
            let mut io = TokioIo::new(upgrade.await.expect("upgraded"));
            if key.is_some() {
                return remote_command(io).await;
            }
            let mut buffer = vec![0; 4096];
            while let Ok(count @ 1..) = io.read(&mut buffer).await {
                io.write_all(&buffer[..count]).await.expect("echoed");
                if buffer[..count].ends_with(b"bye") {
                    return;
                }
            }
        });
        answer
    }
}

async fn remote_command(io: TokioIo<hyper::upgrade::Upgraded>) {
    let mut socket = tokio_tungstenite::WebSocketStream::from_raw_socket(io, Role::Server, None).await;
    while let Some(Ok(message)) = socket.next().await {
        match message.into_data().as_ref() {
            // The end of standard input.
            [255, 0] => break,
            [0, text @ ..] => socket.send(Message::binary([&[1], text].concat())).await.expect("echoed"),
            _ => {}
        }
    }
    let status = r#"{"metadata": {}, "status": "Failure", "reason": "NonZeroExitCode", "message": "command terminated with non-zero exit code",
        "details": {"causes": [{"reason": "ExitCode", "message": "3"}]}}"#;
    let _ = socket.send(Message::binary([&[3], status.as_bytes()].concat())).await;
    let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
    let _ = socket.close(Some(normal)).await;
}

/// Counts what has ended.
struct Ended(watch::Sender<usize>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.send_modify(|ended| *ended += 1);
    }
}

/// Bodies must be shareable between threads.
struct Shared<S>(Mutex<std::pin::Pin<Box<S>>>);

impl<S: stream::Stream> stream::Stream for Shared<S> {
    type Item = S::Item;

    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<S::Item>> {
        self.get_mut().0.get_mut().expect("lock").as_mut().poll_next(context)
    }
}

fn text(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut answer = Response::new(Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed());
    *answer.status_mut() = status;
    answer
}
