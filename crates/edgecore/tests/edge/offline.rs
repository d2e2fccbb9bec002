//! Losing the cloud, living without it, and finding it again.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::go_cloud::{Answer, GoCloud};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use crate::support::{Edge, Log, eventually, id, pod, push, text};

#[tokio::test]
async fn a_killed_cloud_is_noticed_and_found_again() {
    let log = Log::start();
    let mut cloud = GoCloud::start().await.unwrap();
    let edge = Edge::joined(&cloud).await;
    cloud.kill().await;
    edge.disconnected().await;
    // Several tries, farther and farther apart.
    let waits = || -> Vec<u64> {
        let wait = |line: &str| line.split("wait_ms=").nth(1)?.split_whitespace().next()?.parse().ok();
        log.text().lines().filter_map(wait).collect()
    };
    let waits = eventually("four tries", || Some(waits()).filter(|waits| waits.len() >= 4)).await;
    for (number, wait) in waits.iter().enumerate() {
        let step = 500 << number;
        assert!(*wait >= step / 2 && *wait <= step, "{waits:?}");
    }
    log.line_with(&["WARN", "cannot be reached"]).await;
    cloud.serve().await.unwrap();
    edge.connected().await;
    let update = push("update", "default/pod/p", pod("p", 1));
    cloud.send(&update).await.unwrap();
    cloud.reply_to(id(&update)).await.unwrap();
    assert_eq!(cloud.complaints(), Vec::<String>::new());
}

#[tokio::test]
async fn a_cloud_that_closes_at_once_is_not_hammered() {
    let cloud = GoCloud::start().await.unwrap();
    let _edge = Edge::joined(&cloud).await;
    let began = Instant::now();
    for number in 1..6 {
        cloud.hang_up();
        cloud.connection(number).await.unwrap();
    }
    // At least 250, 500, 1000, 2000 ms after the first.
    assert!(began.elapsed() >= Duration::from_millis(3500), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_killed_edge_starts_again_without_the_cloud() {
    let mut cloud = GoCloud::start().await.unwrap();
    let mut edge = Edge::joined(&cloud).await;
    for (number, name) in ["a", "b", "c"].into_iter().enumerate() {
        let message = push("update", &format!("default/pod/{name}"), pod(name, number as u64 + 1));
        cloud.send(&message).await.unwrap();
        cloud.reply_to(id(&message)).await.unwrap();
    }
    // What is acknowledged is durable: the edge may die right after.
    edge.kill().await;
    cloud.kill().await;
    edge.start().await;
    let pods = edge.query("default/pod").await;
    let names: Vec<Value> = pods
        .as_array()
        .unwrap()
        .iter()
        .map(|pod| serde_json::from_str::<Value>(pod.as_str().unwrap()).unwrap()["metadata"]["name"].clone())
        .collect();
    assert_eq!(names, ["a", "b", "c"]);
    cloud.serve().await.unwrap();
    edge.connected().await;
    assert_eq!(edge.query("any/pod").await.as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn an_edge_may_be_killed_at_any_moment_of_a_burst() {
    let cloud = GoCloud::start().await.unwrap();
    let mut edge = Edge::joined(&cloud).await;
    let mut sent = Vec::new();
    for round in 0..4 {
        for number in 0..50 {
            let name = format!("p{round}-{number}");
            let message = push("update", &format!("default/pod/{name}"), pod(&name, 1));
            if cloud.send(&message).await.is_ok() {
                sent.push(message);
            }
        }
        let first = &sent[sent.len() - 50 + 10 * round];
        cloud.reply_to(id(first)).await.unwrap();
        edge.kill().await;
        let connections = cloud.connections();
        edge.start().await;
        cloud.connection(connections).await.unwrap();
        edge.connected().await;
    }
    let kept = edge.stored("pod").await;
    let received = cloud.received();
    let mut acknowledged = 0;
    for message in &sent {
        if received.iter().any(|m| m.parent() == id(message) && m.route("operation") == "response") {
            acknowledged += 1;
            let resource = message["route"]["resource"].as_str().unwrap();
            assert!(kept.iter().any(|key| key == resource), "{resource} was acknowledged and is lost");
        }
    }
    assert!(acknowledged >= 4, "{acknowledged}");
}

#[tokio::test]
async fn heartbeats_come_at_their_time() {
    let cloud = GoCloud::start().await.unwrap();
    let _edge = Edge::joined(&cloud).await;
    let began = Instant::now();
    let beats = cloud.wait_for_all("heartbeats", 4, |m| m.is("keepalive", "node")).await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(2500), "{:?}", began.elapsed());
    for beat in &beats {
        assert_eq!(beat.message["content"], "ping");
        assert_eq!(beat.message["header"].get("parent_msg_id"), None);
    }
    assert_eq!(cloud.connections(), 1);
}

#[tokio::test]
async fn stopping_is_quick_and_clean() {
    let cloud = GoCloud::start().await.unwrap();
    let mut edge = Edge::joined(&cloud).await;
    let began = Instant::now();
    edge.stop().await;
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert_eq!(cloud.complaints(), Vec::<String>::new());
}

type Pair = Arc<(TcpStream, TcpStream)>;

/// A line between edge and cloud that can go silent without closing.
struct Line {
    address: SocketAddr,
    links: Arc<Mutex<JoinSet<()>>>,
    /// Kept open, also when nobody passes anything on any more.
    _pairs: Arc<Mutex<Vec<Pair>>>,
    _accepting: JoinSet<()>,
}

impl Line {
    async fn to(cloud: &GoCloud) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = cloud.server();
        let (links, pairs) = (Arc::new(Mutex::new(JoinSet::new())), Arc::new(Mutex::new(Vec::new())));
        let mut accepting = JoinSet::new();
        let (all, kept) = (links.clone(), pairs.clone());
        accepting.spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let Ok(far) = TcpStream::connect(&server).await else { continue };
                let pair = Arc::new((near, far));
                kept.lock().await.push(pair.clone());
                let mut all = all.lock().await;
                let back = pair.clone();
                all.spawn(async move { pump(&pair.0, &pair.1).await });
                all.spawn(async move { pump(&back.1, &back.0).await });
            }
        });
        Self { address, links, _pairs: pairs, _accepting: accepting }
    }

    /// Nothing passes any more on the connections that stand; new ones work.
    async fn go_silent(&self) {
        self.links.lock().await.shutdown().await;
    }
}

async fn pump(from: &TcpStream, to: &TcpStream) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        if from.readable().await.is_err() {
            return;
        }
        let count = match from.try_read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(_) => return,
        };
        let mut sent = 0;
        while sent < count {
            if to.writable().await.is_err() {
                return;
            }
            match to.try_write(&buffer[sent..count]) {
                Ok(more) => sent += more,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    }
}

#[tokio::test]
async fn a_link_that_is_silently_dead_is_given_up() {
    let log = Log::start();
    let cloud = GoCloud::start().await.unwrap();
    let line = Line::to(&cloud).await;
    let mut edge = Edge::with(&cloud, |settings| settings.server = line.address.to_string());
    edge.put_token(&cloud.token());
    edge.start().await;
    cloud.connection(0).await.unwrap();
    edge.connected().await;
    let began = Instant::now();
    line.go_silent().await;
    edge.disconnected().await;
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    log.line_with(&["WARN", "nothing was heard from the cloud"]).await;
    cloud.connection(1).await.unwrap();
    edge.connected().await;
    let update = push("update", "default/pod/p", pod("p", 1));
    cloud.send(&update).await.unwrap();
    cloud.reply_to(id(&update)).await.unwrap();
}

#[tokio::test]
async fn a_request_on_a_link_that_breaks_is_refused_at_once() {
    let cloud = GoCloud::start().await.unwrap();
    let edge = Edge::joined(&cloud).await;
    cloud.answer("default/secret/s", Answer::Silence);
    let began = Instant::now();
    let asked = edge.ask("query", "default/secret/s", &Value::Null);
    let breaking = async {
        cloud.wait_for("request", |m| m.is("query", "default/secret/s")).await.unwrap();
        cloud.hang_up();
    };
    let (answer, ()) = tokio::join!(asked, breaking);
    assert_eq!(answer.route.operation, "error");
    assert!(text(&answer).contains("out of reach"), "{}", text(&answer));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test]
async fn an_edge_says_with_each_connection_what_it_has() {
    let cloud = GoCloud::start().await.unwrap();
    let mut edge = Edge::joined(&cloud).await;
    let digest = async |number: usize| {
        let headers = cloud.connection(number).await.unwrap().headers;
        headers.into_iter().find(|(name, _)| name == wire::INVENTORY).map(|(_, value)| value).expect("the header")
    };
    let of = |objects: &[(&str, u64)]| {
        let mut digest = wire::inventory::Digest::default();
        objects.iter().for_each(|(uid, version)| digest.add(uid, *version));
        digest.to_text()
    };
    assert_eq!(digest(0).await, "", "it has not even its Node");
    let content = pod("p", 1);
    let uid = content["metadata"]["uid"].as_str().expect("uid").to_owned();
    let node = push("update", "null/node/n", json!({"metadata": {"name": "n", "uid": "its-own"}}));
    for message in [node, push("update", "default/pod/p", content)] {
        cloud.send(&message).await.unwrap();
        cloud.reply_to(id(&message)).await.unwrap();
    }
    edge.stop().await;
    edge.start().await;
    assert_eq!(digest(1).await, of(&[(&uid, 1)]), "the Node is not counted");
    edge.stop().await;
    // The cure for a damaged database.
    std::fs::rename(edge.file("edgecore.db"), edge.file("damaged.db")).unwrap();
    edge.start().await;
    assert_eq!(digest(2).await, "");
}

#[tokio::test]
async fn of_several_clouds_the_next_one_is_taken_when_one_is_gone() {
    let first = GoCloud::start().await.unwrap();
    // Nobody listens at the first address.
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let mut edge = Edge::with(&first, |settings| {
        settings.server = format!("{closed}, {}", first.server());
        settings.http_server = format!("https://{closed},{}", first.http_server());
    });
    edge.put_token(&first.token());
    edge.start().await;
    first.connection(0).await.unwrap();
    edge.connected().await;
    // One that hangs up is left for the next, which is gone, and then it is its turn again.
    let began = Instant::now();
    first.hang_up();
    first.connection(1).await.unwrap();
    edge.connected().await;
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}
