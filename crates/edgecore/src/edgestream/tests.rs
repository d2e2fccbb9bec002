//! The tunnel's end against clouds on the other side of a pipe; the node's API is a stand-in.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use edged::api::{Answerer, NodeApi};
use futures_util::{SinkExt, StreamExt};
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::Frame as BodyFrame;
use hyper_util::rt::TokioIo;
use link::frames::{Frames, Side, message};
use link::http_server::Body;
use link::resume::Resumable;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wire::tunnel::{Connect, Frame, Kind, MAX_DATA};

use super::{Ended, http2, upstream};

mod resumed;

const DEADLINE: Duration = Duration::from_secs(20);

/// A node whose API is made up: `/logs` ends, `/follow` does not, `/echo` upgrades, `/deaf` upgrades and reads nothing.
struct Node {
    answerer: Answerer,
    /// Upgraded streams.
    streams: TaskTracker,
    asked: Arc<Mutex<Vec<String>>>,
    stopping: CancellationToken,
    tunnel: JoinSet<Ended>,
    _present: watch::Sender<Option<Answerer>>,
}

fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never| match never {}).boxed()
}

fn answer(request: Request<()>, streams: &TaskTracker) -> Response<Body> {
    match request.uri().path() {
        "/logs" | "/exec/plain" => Response::new(full("one\ntwo\n")),
        "/big" => Response::new(full(vec![b'x'; 300_000])),
        "/panic" => panic!("as told"),
        "/follow" => {
            let first = futures_util::stream::iter([Ok(BodyFrame::data(Bytes::from_static(b"line\n")))]);
            let rest = futures_util::stream::pending();
            Response::new(BodyExt::boxed(StreamBody::new(first.chain(rest))))
        }
        path @ ("/exec/echo" | "/exec/deaf") => {
            let headers = request.headers();
            let wanted = headers.get(header::UPGRADE).map(|value| value.to_str().unwrap().to_ascii_lowercase());
            assert_eq!(request.version(), http::Version::HTTP_11);
            assert_eq!((request.method().as_str(), wanted.as_deref()), ("POST", Some("spdy/3.1")));
            let echoes = path == "/exec/echo";
            streams.spawn(async move {
                let mut stream = TokioIo::new(hyper::upgrade::on(request).await.unwrap());
                if !echoes {
                    return std::future::pending().await;
                }
                let mut buffer = [0; 100];
                while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                    if stream.write_all(&buffer[..read]).await.is_err() || stream.flush().await.is_err() {
                        break;
                    }
                }
                let _ = stream.shutdown().await;
            });
            let answer = Response::builder().status(StatusCode::SWITCHING_PROTOCOLS);
            let answer = answer.header("connection", "Upgrade").header("upgrade", "SPDY/3.1");
            answer.header("x-stream-protocol-version", "v4.channel.k8s.io").body(full("")).unwrap()
        }
        path => Response::builder().status(404).body(full(format!("no {path}\n"))).unwrap(),
    }
}

impl Node {
    /// A node, and the cloud's end of its tunnel.
    fn start(ours: bool) -> (Self, Frames<DuplexStream>) {
        Self::start_with(move |frames, api, token| async move {
            match ours {
                true => http2::serve(Resumable::new(frames).0, &api, &token).await,
                false => upstream::serve(frames, &api, &token).await,
            }
        })
    }

    fn start_with<F>(
        serve: impl FnOnce(Frames<DuplexStream>, NodeApi, CancellationToken) -> F,
    ) -> (Self, Frames<DuplexStream>)
    where
        F: Future<Output = Ended> + Send + 'static,
    {
        let streams = TaskTracker::new();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let (tracker, log) = (streams.clone(), asked.clone());
        let answerer: Answerer = Arc::new(move |request| {
            log.lock().unwrap().push(format!("{} {}", request.method(), request.uri()));
            let tracker = tracker.clone();
            Box::pin(async move { answer(request, &tracker) })
        });
        let (present, receiver) = watch::channel(Some(answerer.clone()));
        let (node, cloud) = tokio::io::duplex(1 << 10);
        let stopping = CancellationToken::new();
        let (token, api) = (stopping.clone(), NodeApi::new(receiver));
        let mut tunnel = JoinSet::new();
        let frames = Frames::new(node, Side::Client);
        tunnel.spawn(serve(frames, api, token));
        let node = Self { answerer, streams, asked, stopping, tunnel, _present: present };
        (node, Frames::new(cloud, Side::Server))
    }

    /// Waits until the tunnel has ended and nothing of it is left: no stream, nobody who could still ask.
    async fn ended(&mut self) -> Ended {
        let ended = within(self.tunnel.join_next()).await.unwrap().unwrap();
        self.streams.close();
        within(self.streams.wait()).await;
        within(async {
            // The test's own, and the one in the watch.
            while Arc::strong_count(&self.answerer) > 2 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        ended
    }
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, what).await.expect("in time")
}

async fn put(cloud: &mut Frames<DuplexStream>, frame: &Frame) {
    within(cloud.send(link::frames::Frame::text(frame.encode().unwrap()))).await.unwrap();
}

async fn get(cloud: &mut Frames<DuplexStream>) -> Frame {
    let (_, bytes) = within(message(cloud)).await.unwrap().expect("a frame");
    Frame::decode(&bytes).unwrap()
}

/// All data of a connection until its end.
async fn all(cloud: &mut Frames<DuplexStream>, id: u64) -> Vec<u8> {
    let mut data = Vec::new();
    loop {
        let frame = get(cloud).await;
        assert_eq!(frame.id, id, "{frame:?}");
        match frame.kind {
            Kind::Data => {
                assert!(frame.data.len() <= 4 << 10);
                data.extend_from_slice(&frame.data);
            }
            kind => {
                assert_eq!(kind, Kind::Remove);
                return data;
            }
        }
    }
}

fn connect(id: u64, kind: Kind, path: &str) -> Frame {
    let mut connect = Connect { id, path: path.to_owned(), ..Connect::default() };
    if matches!(kind, Kind::Exec | Kind::Attach) {
        connect.method = Some("POST".to_owned());
        connect.add_header("connection", b"Upgrade");
        connect.add_header("upgrade", b"SPDY/3.1");
    }
    Frame { id, kind, data: connect.to_json() }
}

/// Opens a stream that echoes, and reads the answer's head.
async fn open(cloud: &mut Frames<DuplexStream>, id: u64, path: &str) {
    put(cloud, &connect(id, Kind::Exec, path)).await;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let frame = get(cloud).await;
        assert_eq!((frame.id, frame.kind), (id, Kind::Data));
        head.extend_from_slice(&frame.data);
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
}

#[tokio::test]
async fn a_go_cloud_reads_logs_and_pages_whatever_their_status() {
    let (node, mut cloud) = Node::start(false);
    put(&mut cloud, &connect(1, Kind::Logs, "/logs")).await;
    assert_eq!(all(&mut cloud, 1).await, b"one\ntwo\n");
    put(&mut cloud, &connect(300, Kind::Metrics, "/nothing")).await;
    assert_eq!(all(&mut cloud, 300).await, b"no /nothing\n");
    put(&mut cloud, &connect(2, Kind::Metrics, "/big")).await;
    assert_eq!(all(&mut cloud, 2).await.len(), 300_000);
    assert_eq!(*node.asked.lock().unwrap(), ["GET /logs", "GET /nothing", "GET /big"]);
}

#[tokio::test]
async fn recorded_requests_are_understood() {
    let (node, mut cloud) = Node::start(false);
    let mut asked = Vec::new();
    for line in include_str!("../../../wire/tests/tunnel.txt").lines() {
        let Some(digits) = line.strip_prefix("cloud ") else { continue };
        let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
        let frame = Frame::decode(&(0..digits.len()).step_by(2).map(byte).collect()).unwrap();
        if !frame.kind.connects() {
            continue;
        }
        put(&mut cloud, &frame).await;
        let is_http = matches!(frame.kind, Kind::Exec | Kind::Attach);
        let text = String::from_utf8(all(&mut cloud, frame.id).await).unwrap();
        assert_eq!(text.starts_with("HTTP/1.1 404 "), is_http, "{text}");
        let connect = Connect::parse(&frame.data).unwrap();
        asked.push(format!("{} {}", connect.method.as_deref().unwrap_or("GET"), connect.target()));
    }
    assert!(asked.len() >= 20);
    assert_eq!(*node.asked.lock().unwrap(), asked);
}

#[tokio::test]
async fn a_go_cloud_has_streams_both_ways_and_ends_them_as_often_as_it_likes() {
    let (mut node, mut cloud) = Node::start(false);
    open(&mut cloud, 1, "/exec/echo").await;
    open(&mut cloud, 2, "/exec/echo").await;
    for (id, text) in [(2, &b"\x80\x03\xff two"[..]), (1, b"one")] {
        // As a Go cloud does: in pieces.
        for piece in text.chunks(2) {
            put(&mut cloud, &Frame::data(id, piece.to_vec())).await;
        }
        let mut echo = Vec::new();
        while echo.len() < text.len() {
            let frame = get(&mut cloud).await;
            assert_eq!((frame.id, frame.kind), (id, Kind::Data));
            echo.extend_from_slice(&frame.data);
        }
        assert_eq!(echo, text);
    }
    for _ in 0..1_000 {
        put(&mut cloud, &Frame::remove(1)).await;
        put(&mut cloud, &Frame::remove(77)).await;
        put(&mut cloud, &Frame::data(78, "nobody's")).await;
        put(&mut cloud, &Frame { id: 2, kind: Kind::Logs, data: Bytes::from_static(b"twice") }).await;
    }
    let data = [2, 0x87, 0x01, 1, 2, 3];
    within(cloud.send(link::frames::Frame::text(data.to_vec()))).await.unwrap();
    assert_eq!(get(&mut cloud).await, Frame::remove(1), "once");
    put(&mut cloud, &Frame::data(2, "on")).await;
    assert_eq!(get(&mut cloud).await, Frame::data(2, "on"));
    put(&mut cloud, &connect(1, Kind::Logs, "/logs")).await;
    assert_eq!(all(&mut cloud, 1).await, b"one\ntwo\n", "the id is free again");
    put(&mut cloud, &Frame { id: 0, kind: Kind::Close, data: Bytes::from_static(b"go away") }).await;
    let ended = node.ended().await;
    assert!(matches!(&ended, Ended::Closed(text) if text == "go away"), "{ended:?}");
}

#[tokio::test]
async fn one_who_does_not_read_is_ended_and_holds_nobody_up() {
    let (_node, mut cloud) = Node::start(false);
    open(&mut cloud, 1, "/exec/deaf").await;
    put(&mut cloud, &connect(3, Kind::Logs, "/follow")).await;
    assert_eq!(get(&mut cloud).await, Frame::data(3, "line\n"));
    let piece = Bytes::from(vec![0; 64 << 10]);
    for _ in 0..MAX_DATA / piece.len() + 2 {
        put(&mut cloud, &Frame::data(1, piece.clone())).await;
        // For one that reads nothing anyhow.
        put(&mut cloud, &Frame::data(3, piece.clone())).await;
    }
    assert_eq!(get(&mut cloud).await, Frame::remove(1));
    put(&mut cloud, &connect(2, Kind::Logs, "/logs")).await;
    assert_eq!(all(&mut cloud, 2).await, b"one\ntwo\n");
    put(&mut cloud, &Frame::remove(3)).await;
    assert_eq!(get(&mut cloud).await, Frame::remove(3));
}

#[tokio::test]
async fn what_cannot_be_asked_is_refused_and_a_failure_is_told() {
    let (_node, mut cloud) = Node::start(false);
    let mut split = connect(4, Kind::Exec, "/exec/echo");
    split.data = String::from_utf8(split.data.to_vec()).unwrap().replace("SPDY", "a\\r\\nb: c").into();
    for (frame, text) in [
        (Frame { id: 1, kind: Kind::Logs, data: Bytes::from_static(b"{") }, "no JSON"),
        (connect(2, Kind::Metrics, "no/slash"), "no path of the node's API"),
        (Frame { id: 3, kind: Kind::Attach, data: Bytes::from_static(b"[]") }, "HTTP/1.1 400 Bad Request\r\n"),
        (split, "\"Upgrade\" is no header"),
    ] {
        put(&mut cloud, &frame).await;
        let told = String::from_utf8(all(&mut cloud, frame.id).await).unwrap();
        assert!(told.contains(text), "{told}");
    }
    put(&mut cloud, &connect(5, Kind::Metrics, "/panic")).await;
    assert_eq!(all(&mut cloud, 5).await, b"");
}

#[tokio::test]
async fn connections_have_a_bound() {
    let (_node, mut cloud) = Node::start(false);
    for id in 0..upstream::MAX_CONNECTIONS as u64 {
        put(&mut cloud, &connect(id, Kind::Logs, "/follow")).await;
        assert_eq!(get(&mut cloud).await, Frame::data(id, "line\n"));
    }
    put(&mut cloud, &connect(9_000, Kind::Logs, "/logs")).await;
    assert!(all(&mut cloud, 9_000).await.starts_with(b"too many open streams"));
    put(&mut cloud, &Frame::remove(7)).await;
    assert_eq!(all(&mut cloud, 7).await, b"");
    put(&mut cloud, &connect(9_001, Kind::Logs, "/logs")).await;
    assert_eq!(all(&mut cloud, 9_001).await, b"one\ntwo\n");
}

#[tokio::test]
async fn a_cut_in_the_middle_or_nonsense_leaves_nothing() {
    for nonsense in [None, Some(&b""[..]), Some(&[0x80])] {
        let (mut node, mut cloud) = Node::start(false);
        open(&mut cloud, 1, "/exec/echo").await;
        put(&mut cloud, &connect(2, Kind::Logs, "/follow")).await;
        assert_eq!(get(&mut cloud).await, Frame::data(2, "line\n"));
        match nonsense {
            None => drop(cloud),
            Some(bytes) => within(cloud.send(link::frames::Frame::text(bytes))).await.unwrap(),
        }
        let ended = node.ended().await;
        assert_eq!(matches!(ended, Ended::Frame(_)), nonsense.is_some(), "{ended:?}");
    }
}

#[tokio::test]
async fn a_node_that_stops_ends_its_tunnel() {
    let (mut node, mut cloud) = Node::start(false);
    open(&mut cloud, 1, "/exec/echo").await;
    node.stopping.cancel();
    // A close frame; who answers that may find nobody.
    while let Ok(Some(_)) = within(message(&mut cloud)).await {}
    assert!(matches!(node.ended().await, Ended::Stopping));
}

type Sender = hyper::client::conn::http2::SendRequest<Empty<Bytes>>;

async fn our_cloud(cloud: Resumable<DuplexStream>, tasks: &mut JoinSet<()>) -> Sender {
    let (sender, connection) = within(link::tunnel::client().handshake(TokioIo::new(cloud))).await.unwrap();
    tasks.spawn(async move { drop(connection.await) });
    sender
}

fn upgrade(path: &str) -> Request<Empty<Bytes>> {
    let mut request = Request::connect(format!("https://node{path}")).body(Empty::new()).unwrap();
    request.extensions_mut().insert(hyper::ext::Protocol::from_static("spdy/3.1"));
    request
}

#[tokio::test]
async fn our_cloud_asks_over_http2() {
    let (mut node, cloud) = Node::start(true);
    let mut tasks = JoinSet::new();
    let mut sender = our_cloud(Resumable::new(cloud).0, &mut tasks).await;
    let get = |path: &str| Request::get(format!("https://node{path}")).body(Empty::new()).unwrap();
    let logs = within(sender.send_request(get("/logs"))).await.unwrap();
    assert_eq!(within(logs.into_body().collect()).await.unwrap().to_bytes(), "one\ntwo\n");
    let follow = within(sender.send_request(get("/follow"))).await.unwrap();
    let refused = within(sender.send_request(upgrade("/exec/nothing"))).await.unwrap();
    assert_eq!(refused.status(), 404);
    assert_eq!(within(refused.into_body().collect()).await.unwrap().to_bytes(), "no /exec/nothing\n");
    // What is no stream is not asked by one, and an answer without a stream is none.
    for path in ["/logs", "/exec/plain"] {
        let refused = within(sender.send_request(upgrade(path))).await.unwrap();
        assert_eq!(refused.status(), 400, "{path}");
    }
    let granted = within(sender.send_request(upgrade("/exec/echo"))).await.unwrap();
    assert_eq!(granted.status(), 200);
    assert_eq!(granted.headers()["x-stream-protocol-version"], "v4.channel.k8s.io");
    assert!(!granted.headers().contains_key("upgrade") && !granted.headers().contains_key("connection"));
    let mut stream = TokioIo::new(within(hyper::upgrade::on(granted)).await.unwrap());
    within(stream.write_all(b"\x80\x03 hello")).await.unwrap();
    let mut echo = [0; 8];
    within(stream.read_exact(&mut echo)).await.unwrap();
    assert_eq!(&echo, b"\x80\x03 hello");
    within(stream.shutdown()).await.unwrap();
    assert_eq!(within(stream.read(&mut echo)).await.unwrap(), 0, "the end is told");
    // Hyper keeps a connection as long as anybody uses it.
    drop((follow, stream, sender));
    tasks.shutdown().await;
    let ended = node.ended().await;
    assert!(!matches!(ended, Ended::Stopping), "{ended:?}");
}

#[tokio::test]
async fn a_node_that_stops_does_not_wait_for_our_cloud() {
    let (mut node, cloud) = Node::start(true);
    let mut tasks = JoinSet::new();
    let mut sender = our_cloud(Resumable::new(cloud).0, &mut tasks).await;
    let request = Request::get("https://node/follow").body(Empty::new()).unwrap();
    let _follow = within(sender.send_request(request)).await.unwrap();
    let _granted = within(sender.send_request(upgrade("/exec/echo"))).await.unwrap();
    let began = tokio::time::Instant::now();
    node.stopping.cancel();
    assert!(matches!(node.ended().await, Ended::Stopping));
    assert!(began.elapsed() < Duration::from_secs(6));
}
