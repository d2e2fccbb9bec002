//! The hub's sessions and simulated nodes in a simulated network with virtual time: partitions, directions that are cut, held and late
//! messages, crashes of both sides, all nodes coming back at once. In the end each node has what the cluster has, whatever the seed.
//!
//! What is real: sessions, their queues, the WebSocket, frames, and the nodes of `edgesim`. The cluster is a map.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use beehive::compose;
use edgesim::{Behaviour, Node};
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use link::ws::{self, LinkError, Target};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use turmoil::net::{TcpListener, TcpStream};
use wire::{Content, FEATURES, Message, group, operation, source};

use super::Controllers;
use super::session::{Peer, SessionHandle};
use super::sessions::{Sessions, agree};
use crate::devicecontroller::DeviceController;
use crate::edgecontroller::downstream::Event;
use crate::edgecontroller::upstream::Upstream;
use crate::kubernetes::Kubernetes;
use crate::objectsync::Records;

const NODES: usize = 6;
/// Seeds in one run.
const SEEDS: u64 = 50;
/// Changes of cluster and network in one simulation.
const STEPS: usize = 40;
const CLOUD: &str = "cloud";
const PORT: u16 = 10_000;
/// How long a node waits for a connection.
const CONNECT: Duration = Duration::from_secs(5);
const HEARTBEAT: Duration = Duration::from_secs(3);
/// When the network is well again, everything has arrived within this time.
const CALM: Duration = Duration::from_secs(120);

/// What the cluster has: uid and version by path, for each node.
#[derive(Default)]
struct Cluster {
    objects: Mutex<Vec<BTreeMap<String, (String, u64)>>>,
    version: watch::Sender<u64>,
}

impl Cluster {
    fn of(&self, node: usize) -> BTreeMap<String, (String, u64)> {
        self.objects.lock().expect("not poisoned").get(node).cloned().unwrap_or_default()
    }

    /// Changes an object of a node, makes it, or deletes it; a namesake that comes later has another uid.
    fn change(&self, node: usize, name: usize, is_deletion: bool) {
        let version = *self.version.borrow() + 1;
        {
            let mut objects = self.objects.lock().expect("not poisoned");
            objects.resize_with(NODES, BTreeMap::new);
            let path = format!("default/pod/p{name}");
            if is_deletion {
                objects[node].remove(&path);
            } else {
                objects[node].entry(path).or_insert_with(|| (format!("uid-{version}"), 0)).1 = version;
            }
        }
        self.version.send_replace(version);
    }
}

fn message(verb: &str, path: &str, uid: &str, version: u64) -> Message {
    let object = json!({"metadata": {"uid": uid, "resourceVersion": version.to_string()}});
    let content = Content::json(&object).expect("JSON");
    let mut message = compose::message(source::EDGE_CONTROLLER, group::RESOURCE, verb, path, content);
    message.header.resource_version = version.to_string();
    message
}

/// The controller's part: what the node lacks, then what changes.
async fn feed(cluster: Arc<Cluster>, records: Records, session: SessionHandle) {
    let name = session.node().to_owned();
    let number: usize = name.trim_start_matches("node-").parse().expect("a number");
    let mut versions = cluster.version.subscribe();
    while session.peer().digest != records.digest(&name) && !session.ask_inventory().await {
        if session.has_ended() {
            return;
        }
    }
    let mut known = cluster.of(number);
    for record in records.of_node(&name) {
        if !known.values().any(|(uid, _)| *uid == record.uid) {
            let path = format!("default/pod/{}", record.name);
            session.offer(&record.uid, u64::MAX, message(operation::DELETE, &path, &record.uid, record.version));
        }
    }
    for (path, (uid, version)) in &known {
        if records.version(&name, uid) != Some(*version) {
            session.offer(uid, *version, message(operation::UPDATE, path, uid, *version));
        }
    }
    session.compared(None);
    while versions.changed().await.is_ok() && !session.has_ended() {
        let now = cluster.of(number);
        for (path, (uid, version)) in &known {
            if now.get(path).is_none_or(|(other, _)| other != uid) {
                session.offer(uid, u64::MAX, message(operation::DELETE, path, uid, *version));
            }
        }
        for (path, (uid, version)) in &now {
            if known.get(path) != Some(&(uid.clone(), *version)) {
                session.offer(uid, *version, message(operation::UPDATE, path, uid, *version));
            }
        }
        known = now;
    }
}

/// A cloudcore from its start to its crash. It remembers nothing of an earlier one.
async fn cloud(cluster: Arc<Cluster>) -> turmoil::Result {
    let (tasks, stopping, ended) = (TaskTracker::new(), CancellationToken::new(), CancellationToken::new());
    ended.cancel();
    let text = "modules: {cloudHub: {advertiseAddress: [127.0.0.1], keepaliveInterval: 10}}";
    let settings = api::cloudcore::Config::parse(text, Path::new("cloudcore.yaml"))?.cloud_hub();
    let kubernetes = Kubernetes::at("http://127.0.0.1:1");
    let records = crate::objectsync::start(kubernetes.clone(), &tasks, &ended);
    let (events, mut incoming) = mpsc::channel(64);
    let upstream = Upstream::new(kubernetes.clone(), Arc::default(), Default::default());
    let devices = DeviceController::start(kubernetes, Arc::default(), &tasks, &ended);
    let controllers = Controllers { events, upstream, devices, records: records.clone() };
    let sessions = Sessions::new(settings, controllers, &tasks);
    let listener = TcpListener::bind(("0.0.0.0", PORT)).await?;
    let mut running = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                running.spawn(connection(accepted?.0, sessions.clone(), stopping.clone()));
            }
            Some(event) = incoming.recv() => {
                if let Event::Connected(session) | Event::Lacking(session) = event {
                    running.spawn(feed(cluster.clone(), records.clone(), session));
                }
            }
            Some(_) = running.join_next() => {}
        }
    }
}

async fn connection(tcp: TcpStream, sessions: Sessions, stopping: CancellationToken) {
    let (mut node, mut says) = (String::new(), Peer::default());
    let decide = |request: &Request<()>| {
        let headers = request.headers();
        let text = headers.get("node_id").and_then(|value| value.to_str().ok());
        text.unwrap_or_default().clone_into(&mut node);
        says = agree(headers);
        let features = HeaderValue::from_str(&says.features.to_string()).expect("a header");
        Ok(HeaderMap::from_iter([(HeaderName::from_static(FEATURES), features)]))
    };
    let Ok((reader, writer)) = ws::accept(tcp, CONNECT, CONNECT, decide).await else { return };
    sessions.session(SessionHandle::new(&node, says), "simulated", reader, writer, stopping).await;
}

async fn open(target: &Target) -> Result<(ws::Reader, ws::Writer, HeaderMap), LinkError> {
    let connecting = async {
        let tcp = TcpStream::connect((CLOUD, PORT)).await.map_err(|e| LinkError::Connect(CLOUD.to_owned(), e))?;
        ws::upgrade(tcp, target).await
    };
    tokio::time::timeout(CONNECT, connecting).await.unwrap_or(Err(LinkError::Timeout("connecting", CONNECT)))
}

#[tokio::test(start_paused = true)]
async fn a_node_that_talks_too_much_waits() {
    let (node, cloud) = tokio::io::duplex(64 << 10);
    let (tasks, ended) = (TaskTracker::new(), CancellationToken::new());
    ended.cancel();
    let text = "modules: {cloudHub: {advertiseAddress: [127.0.0.1]}}";
    let settings = api::cloudcore::Config::parse(text, Path::new("cloudcore.yaml")).expect("settings").cloud_hub();
    let kubernetes = Kubernetes::at("http://127.0.0.1:1");
    let records = crate::objectsync::start(kubernetes.clone(), &tasks, &ended);
    let (events, _incoming) = mpsc::channel(4);
    let upstream = Upstream::new(kubernetes.clone(), Arc::default(), Default::default());
    let devices = DeviceController::start(kubernetes, Arc::default(), &tasks, &ended);
    let sessions = Sessions::new(settings, Controllers { events, upstream, devices, records }, &tasks);
    let mut running = JoinSet::new();
    running.spawn(async move {
        let accepted = ws::accept(cloud, CONNECT, CONNECT, |_: &Request<()>| Ok(HeaderMap::new())).await;
        let (reader, writer) = accepted.expect("accepted");
        sessions
            .session(SessionHandle::new("n", Peer::default()), "test", reader, writer, CancellationToken::new())
            .await;
    });
    let tls = link::tls::client_without_verification().expect("TLS");
    let target = Target {
        url: "wss://cloud/".into(),
        headers: Vec::new(),
        tls,
        connect_deadline: CONNECT,
        write_deadline: 10 * CALM,
    };
    let (_reader, mut writer, _) = ws::upgrade(node, &target).await.expect("connected");
    let beat = compose::message(source::EDGE_HUB, group::RESOURCE, operation::KEEPALIVE, "node", Content::text("ping"));
    let began = tokio::time::Instant::now();
    for _ in 0..20_000 {
        writer.send(beat.to_json()).await.expect("sent");
    }
    let took = began.elapsed();
    assert!((Duration::from_secs(4)..Duration::from_secs(6)).contains(&took), "{took:?}");
}

struct Simulation {
    sim: turmoil::Sim<'static>,
    random: StdRng,
    cluster: Arc<Cluster>,
    nodes: Vec<Arc<Node>>,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut builder = turmoil::Builder::new();
        builder.rng_seed(seed).simulation_duration(Duration::from_secs(36_000)).tick_duration(Duration::from_millis(5));
        builder.min_message_latency(Duration::from_millis(1)).max_message_latency(Duration::from_millis(60));
        builder.tcp_capacity(4096);
        let mut sim = builder.build();
        let cluster = Arc::new(Cluster::default());
        let of_cloud = cluster.clone();
        sim.host(CLOUD, move || cloud(of_cloud.clone()));
        let tls = link::tls::client_without_verification().expect("TLS");
        let nodes: Vec<Arc<Node>> =
            (0..NODES).map(|number| Arc::new(Node::new(number, format!("node-{number}"), tls.clone()))).collect();
        for (number, node) in nodes.iter().enumerate() {
            let node = node.clone();
            sim.host(format!("node-{number}"), move || {
                let node = node.clone();
                let (_keep, address) = watch::channel(format!("{CLOUD}:{PORT}"));
                let behaviour = Behaviour { register: false, heartbeat: HEARTBEAT, ..Behaviour::default() };
                async move {
                    node.run(address, open, behaviour, None).await;
                    Ok(())
                }
            });
        }
        Self { sim, random: StdRng::seed_from_u64(seed), cluster, nodes }
    }

    fn pass(&mut self, time: Duration) {
        let end = self.sim.elapsed() + time;
        while self.sim.elapsed() < end {
            self.sim.step().expect("no host fails");
        }
    }

    fn change(&mut self) {
        let (node, name) = (self.random.random_range(0..NODES), self.random.random_range(0..5));
        self.cluster.change(node, name, self.random.random_range(0..4) == 0);
    }

    fn trouble(&mut self) {
        let node = format!("node-{}", self.random.random_range(0..NODES));
        let node = node.as_str();
        match self.random.random_range(0..10) {
            0 => self.sim.partition(node, CLOUD),
            1 => self.sim.partition_oneway(node, CLOUD),
            2 => self.sim.partition_oneway(CLOUD, node),
            3 => self.sim.hold(node, CLOUD),
            4 => self.sim.release(node, CLOUD),
            5 | 6 => self.sim.repair(node, CLOUD),
            7 => {
                self.sim.bounce(node);
            }
            // All nodes come back at once.
            8 => self.sim.bounce(CLOUD),
            _ => {}
        }
    }

    fn differences(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (number, node) in self.nodes.iter().enumerate() {
            let has: BTreeMap<_, _> =
                node.held().into_iter().map(|held| (held.resource, (held.uid, held.version))).collect();
            let wanted = self.cluster.of(number);
            if has != wanted {
                found.push(format!("node-{number} has {has:?} and not {wanted:?}"));
            }
        }
        found
    }

    fn run(mut self, seed: u64) {
        for _ in 0..STEPS {
            for _ in 0..self.random.random_range(1..4) {
                self.change();
            }
            self.trouble();
            let time = Duration::from_millis(self.random.random_range(20..3000));
            self.pass(time);
        }
        for number in 0..NODES {
            let node = format!("node-{number}");
            self.sim.release(node.as_str(), CLOUD);
            self.sim.repair(node.as_str(), CLOUD);
        }
        let end = self.sim.elapsed() + CALM;
        while !self.differences().is_empty() {
            assert!(self.sim.elapsed() < end, "seed {seed}: {:?}", self.differences());
            self.pass(Duration::from_millis(200));
        }
    }
}

#[test]
fn whatever_the_network_does_nodes_get_everything() {
    link::tls::install_provider();
    let given = std::env::var("SIMULATION_SEED").ok().and_then(|seed| seed.parse().ok());
    let first: u64 = given.unwrap_or_else(|| rand::rng().random());
    let seeds = if given.is_some() { 1 } else { SEEDS };
    for seed in (0..seeds).map(|number| first.wrapping_add(number)) {
        eprintln!("SIMULATION_SEED={seed}");
        Simulation::new(seed).run(seed);
    }
}
