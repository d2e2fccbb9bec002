//! From the cluster to the nodes: one task follows pods, nodes, ConfigMaps, Secrets and devices, and offers each node what is its own.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};
use wire::{Content, kind, operation};

use super::catch_up::CatchUp;
use super::object::{push, read, read_pod, tombstone, with_kind};
use super::references::{self, Reference};
use super::view::{NamespacedName, PodEntry, View};
use crate::cloudhub::session::SessionHandle;
use crate::devicecontroller::downstream::{DEVICE, Follower, MODEL};
use crate::kubernetes::{Change, Kubernetes, Reflector};
use crate::objectsync::Records;

/// How long a node whose Node object was deleted may take to come back and be told what to remove.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);
/// How often nodes that left are looked for.
const SWEEP: Duration = Duration::from_secs(3600);

/// Nodes that are compared with the cluster at the same time: that may take requests to the API for each object.
const COMPARISONS: usize = 64;

/// What nodes are told when versions say nothing any more.
pub(super) const RESTORED: &str = "the cluster was restored from a backup; connect again";

/// What the controller reacts to.
pub enum Event {
    /// A pod that is on a node.
    Pod(Change),
    /// A Node.
    Node(Change),
    /// A ConfigMap.
    ConfigMap(Change),
    /// A Secret.
    Secret(Change),
    /// A Device.
    Device(Change),
    /// A DeviceModel.
    DeviceModel(Change),
    /// A node has a new session.
    Connected(SessionHandle),
    /// A session has ended.
    Disconnected(SessionHandle),
    /// A node did not get everything, for want of room; what it lacks is to be found out anew.
    Lacking(SessionHandle),
    /// A node has what the cluster cannot have had yet: the cluster was restored from a backup while no cloudcore looked.
    FromTheFuture,
}

/// Starts the task and what feeds it, but for devices.
pub fn start(
    kubernetes: &Kubernetes,
    view: &Arc<View>,
    records: Records,
    events: mpsc::Sender<Event>,
    incoming: mpsc::Receiver<Event>,
    tasks: &TaskTracker,
    stopping: &CancellationToken,
) {
    let follow = |path: &str, query: &str, wrap: fn(Change) -> Event| {
        let reflector = Reflector { kubernetes: kubernetes.clone(), path: path.to_owned(), query: query.to_owned() };
        let (events, stopping) = (events.clone(), stopping.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = stopping.cancelled() => {}
                () = reflector.run(events, wrap) => {}
            }
        });
    };
    follow("/api/v1/nodes", "", Event::Node);
    follow("/api/v1/pods", "fieldSelector=spec.nodeName%21%3D", Event::Pod);
    follow("/api/v1/configmaps", "", Event::ConfigMap);
    follow("/api/v1/secrets", "", Event::Secret);
    let controller = Downstream::new(kubernetes, view, records, &events, tasks, stopping);
    let stopping = stopping.clone();
    tasks.spawn(async move {
        tokio::select! {
            () = stopping.cancelled() => {}
            () = controller.run(incoming) => {}
        }
    });
}

pub(super) struct Downstream {
    kubernetes: Kubernetes,
    pub(super) view: Arc<View>,
    pub(super) records: Records,
    pub(super) sessions: HashMap<String, SessionHandle>,
    /// What the nodes last heard of themselves: a digest.
    nodes: HashMap<String, u64>,
    seen_pods: Option<HashSet<NamespacedName>>,
    seen_nodes: Option<HashSet<String>>,
    pub(super) devices: Follower,
    /// What was listed once.
    listed: HashSet<references::Kind>,
    /// Nodes without a Node object, and since when that is known.
    departed: HashMap<String, Instant>,
    /// Places for comparisons.
    at_once: Arc<Semaphore>,
    events: mpsc::Sender<Event>,
    /// No node is believed any more that versions mean what they meant.
    believes_none: bool,
    tasks: TaskTracker,
    stopping: CancellationToken,
}

impl Downstream {
    fn new(
        kubernetes: &Kubernetes,
        view: &Arc<View>,
        records: Records,
        events: &mpsc::Sender<Event>,
        tasks: &TaskTracker,
        stopping: &CancellationToken,
    ) -> Self {
        Self {
            kubernetes: kubernetes.clone(),
            view: view.clone(),
            records,
            sessions: HashMap::new(),
            nodes: HashMap::new(),
            seen_pods: None,
            seen_nodes: None,
            devices: Follower::new(view.clone()),
            listed: HashSet::new(),
            departed: HashMap::new(),
            at_once: Arc::new(Semaphore::new(COMPARISONS)),
            events: events.clone(),
            believes_none: false,
            tasks: tasks.clone(),
            stopping: stopping.clone(),
        }
    }

    async fn run(mut self, mut incoming: mpsc::Receiver<Event>) {
        let mut sweep = tokio::time::interval(SWEEP);
        sweep.tick().await;
        loop {
            let event = tokio::select! {
                event = incoming.recv() => event,
                _ = sweep.tick() => {
                    self.forget_departed();
                    continue;
                }
            };
            let Some(event) = event else { return };
            match event {
                Event::Pod(change) => self.pod(change),
                Event::Node(change) => self.node(change),
                Event::ConfigMap(change) => self.referenced(references::Kind::ConfigMap, change),
                Event::Secret(change) => self.referenced(references::Kind::Secret, change),
                Event::Device(change) => self.device(DEVICE, change),
                Event::DeviceModel(change) => self.device(MODEL, change),
                Event::Connected(session) => self.connected(session),
                Event::Disconnected(session) => self.disconnected(&session),
                Event::Lacking(session) => self.catch_up(session, true),
                Event::FromTheFuture => self.doubt_once(),
            }
        }
    }

    fn connected(&mut self, session: SessionHandle) {
        // The news of two connections may come in either order; the older one has been closed by then.
        if session.has_ended() {
            return;
        }
        if self.view.are_listed() {
            self.catch_up(session.clone(), false);
        }
        self.sessions.insert(session.node().to_owned(), session);
    }

    fn disconnected(&mut self, session: &SessionHandle) {
        if self.sessions.get(session.node()).is_some_and(|current| current.is(session)) {
            self.sessions.remove(session.node());
        }
    }

    /// Finds in the background what the node lacks; what changes meanwhile is newer and wins.
    pub(super) fn catch_up(&self, session: SessionHandle, is_thorough: bool) {
        // Without the pods nobody can tell what the node has to have; all are compared when they are listed.
        if !self.view.are_listed() || !session.want_comparison(is_thorough) {
            return;
        }
        let (kubernetes, view, records) = (self.kubernetes.clone(), self.view.clone(), self.records.clone());
        let catch_up = CatchUp {
            kubernetes,
            view,
            records,
            session,
            at_once: self.at_once.clone(),
            place: None,
            events: self.events.clone(),
        };
        let stopping = self.stopping.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = stopping.cancelled() => {}
                () = catch_up.run() => {}
            }
        });
    }

    fn pod(&mut self, change: Change) {
        match change {
            Change::Restored => {
                self.view.forget();
                self.restored("Pod");
            }
            Change::Begin => {
                self.view.versions.begin("Pod");
                self.seen_pods = Some(HashSet::new());
            }
            Change::Put(text) => match read_pod(&text) {
                Some((name, entry, is_terminating)) => {
                    if let Some(seen) = &mut self.seen_pods {
                        seen.insert(name.clone());
                    }
                    self.put_pod(name, entry, is_terminating, text);
                }
                None => debug!("a pod cannot be read or is on no node"),
            },
            Change::Gone(text) => {
                if let Some((name, entry, _)) = read_pod(&text) {
                    self.view.write().remove(&name);
                    self.view.versions.remove("Pod", &entry.uid);
                    let path = format!("{}/{}/{}", name.0, kind::POD, name.1);
                    self.offer(
                        &entry.node,
                        &entry.uid,
                        entry.version,
                        operation::DELETE,
                        &path,
                        with_kind(text, "Pod"),
                    );
                }
            }
            Change::Listed => {
                self.view.versions.listed("Pod");
                let seen = self.seen_pods.take().unwrap_or_default();
                let lost: Vec<NamespacedName> =
                    self.view.read().names().into_iter().filter(|name| !seen.contains(name)).collect();
                for name in lost {
                    let removed = self.view.write().remove(&name);
                    if let Some(entry) = removed {
                        let path = format!("{}/{}/{}", name.0, kind::POD, name.1);
                        self.offer(
                            &entry.node,
                            &entry.uid,
                            u64::MAX,
                            operation::DELETE,
                            &path,
                            tombstone(&name, &entry.uid),
                        );
                    }
                }
                if !self.view.are_listed() {
                    self.view.set_listed();
                    self.sessions
                        .values()
                        .cloned()
                        .collect::<Vec<_>>()
                        .into_iter()
                        .for_each(|session| self.catch_up(session, false));
                }
            }
        }
    }

    /// The cluster was restored from a backup, as the list of this kind shows. Versions count from an earlier number again and say nothing:
    /// all nodes connect again, for their sessions have seen versions that are still to come, and get everything.
    pub(super) fn restored(&mut self, kind: &'static str) {
        warn!(kind, "the cluster was restored from a backup: all nodes get everything again");
        self.view.versions.forget(kind);
        self.doubt_all();
    }

    fn doubt_all(&mut self) {
        self.believes_none = true;
        // First: what an ended session acknowledges does not count.
        self.sessions.values().for_each(|session| session.close(RESTORED));
        self.records.distrust_all();
    }

    /// Other nodes, too, may have versions that mean something else now, and cannot know. They get everything again, once: a node may say
    /// what it likes.
    fn doubt_once(&mut self) {
        if !self.believes_none {
            self.doubt_all();
        }
    }

    /// Also a change of the status alone is sent: an edge computes its next patch of the status from what it has.
    fn put_pod(&self, name: NamespacedName, entry: PodEntry, is_terminating: bool, text: Bytes) {
        let path = format!("{}/{}/{}", name.0, kind::POD, name.1);
        self.view.versions.put("Pod", &entry.uid, entry.version);
        let old = self.view.read().get(&name.0, &name.1).map(|old| (old.uid.clone(), old.node.clone(), old.version));
        if let Some((uid, node, version)) = &old {
            if *uid != entry.uid {
                self.offer(node, uid, u64::MAX, operation::DELETE, &path, tombstone(&name, uid));
            } else if *version >= entry.version {
                return;
            }
        }
        let (node, uid, version) = (entry.node.clone(), entry.uid.clone(), entry.version);
        self.view.write().put(name, entry);
        if self.view.are_listed() {
            let verb = if old.is_none() && !is_terminating { operation::INSERT } else { operation::UPDATE };
            self.offer(&node, &uid, version, verb, &path, with_kind(text, "Pod"));
        }
    }

    fn node(&mut self, change: Change) {
        match change {
            Change::Restored => {
                self.nodes.clear();
                self.restored("Node");
            }
            Change::Begin => {
                self.view.versions.begin("Node");
                self.seen_nodes = Some(HashSet::new());
            }
            Change::Put(text) => {
                let Some(object) = read(&text) else { return };
                let name = object.name().to_owned();
                if let Some(seen) = &mut self.seen_nodes {
                    seen.insert(name.clone());
                }
                self.view.versions.put("Node", object.uid(), object.version());
                let digest = object.digest();
                if self.nodes.insert(name.clone(), digest) == Some(digest) {
                    return;
                }
                let (uid, version) = (object.uid().to_owned(), object.version());
                self.offer(
                    &name,
                    &uid,
                    version,
                    operation::UPDATE,
                    &format!("null/node/{name}"),
                    with_kind(text, "Node"),
                );
            }
            Change::Gone(text) => {
                if let Some(object) = read(&text) {
                    self.view.versions.remove("Node", object.uid());
                    let name = object.name().to_owned();
                    self.node_is_gone(&name);
                }
            }
            Change::Listed => {
                self.view.versions.listed("Node");
                let seen = self.seen_nodes.take().unwrap_or_default();
                let lost: Vec<String> = self.nodes.keys().filter(|name| !seen.contains(*name)).cloned().collect();
                lost.iter().for_each(|name| self.node_is_gone(name));
            }
        }
    }

    /// The node must learn it; when it connects again it registers anew. What it has stays written down, so that it is then
    /// told to remove it.
    fn node_is_gone(&mut self, name: &str) {
        self.nodes.remove(name);
        self.departed.insert(name.to_owned(), Instant::now());
        self.records.forget_itself(name);
        if let Some(session) = self.sessions.get(name) {
            info!(node = name, "the Node was deleted; its connection is closed");
            session.close("the Node object was deleted: the node registers again when it connects again");
        }
    }

    /// A ConfigMap or Secret: its changes go to the nodes whose pods refer to it.
    fn referenced(&mut self, what: references::Kind, change: Change) {
        let (verb, text) = match change {
            Change::Put(text) => (operation::UPDATE, text),
            Change::Gone(text) => (operation::DELETE, text),
            Change::Begin => return self.view.versions.begin(what.name()),
            Change::Restored => return self.restored(what.name()),
            Change::Listed => {
                self.view.versions.listed(what.name());
                if !self.listed.insert(what) {
                    self.look_again(what);
                }
                return;
            }
        };
        let Some(object) = read(&text) else { return };
        match verb {
            operation::DELETE => self.view.versions.remove(what.name(), object.uid()),
            _ => self.view.versions.put(what.name(), object.uid(), object.version()),
        }
        if self.sessions.is_empty() {
            return;
        }
        let reference = Reference { kind: what, name: object.name().to_owned() };
        let nodes: BTreeSet<String> = self.view.read().nodes_of(object.namespace(), &reference);
        if nodes.is_empty() {
            return;
        }
        let segment = if what == references::Kind::Secret { kind::SECRET } else { kind::CONFIG_MAP };
        let path = format!("{}/{segment}/{}", object.namespace(), object.name());
        let (uid, version) = (object.uid().to_owned(), object.version());
        let content = with_kind(text.clone(), what.name());
        for node in nodes {
            let has = self.records.version(&node, &uid);
            if verb == operation::DELETE || has.is_none_or(|has| has < version) {
                self.offer(&node, &uid, version, verb, &path, content.clone());
            }
        }
    }

    /// A second list: what was deleted since the first watch broke off is only missing from it.
    fn look_again(&self, what: references::Kind) {
        let name = what.name();
        let has_some = |node: &str| self.records.of_node(node).iter().any(|record| record.kind == name);
        let sessions = self.sessions.values().filter(|session| has_some(session.node())).cloned();
        sessions.for_each(|session| self.catch_up(session, false));
    }

    /// What nodes had that left long ago is forgotten.
    fn forget_departed(&mut self) {
        for node in self.records.nodes() {
            if !self.nodes.contains_key(&node) {
                self.departed.entry(node).or_insert_with(Instant::now);
            }
        }
        let (nodes, sessions) = (&self.nodes, &self.sessions);
        self.departed.retain(|node, since| {
            let is_back = nodes.contains_key(node) || sessions.contains_key(node);
            let is_long_gone = since.elapsed() > REMEMBERED;
            if is_long_gone && !is_back {
                self.records.forget_node(node);
            }
            !is_back && !is_long_gone
        });
    }

    pub(super) fn offer(&self, node: &str, uid: &str, version: u64, verb: &str, path: &str, content: Content) {
        let Some(session) = self.sessions.get(node) else { return };
        if verb != operation::DELETE {
            if !session.peer().features.inventory {
                self.records.expect(node, uid, path);
            }
            // Another cloudcore, which was quicker, may have brought the node further.
            if self.records.version(node, uid).is_some_and(|has| has >= version) {
                return;
            }
        }
        session.offer(uid, version, push(verb, path, version, content));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloudhub::session::Peer;

    #[tokio::test]
    async fn news_of_an_older_connection_do_not_replace_a_newer_one() {
        let (tasks, stopping) = (TaskTracker::new(), CancellationToken::new());
        stopping.cancel();
        let kubernetes = Kubernetes::at("http://127.0.0.1:1");
        let records = crate::objectsync::start(kubernetes.clone(), &tasks, &stopping);
        let (events, _incoming) = mpsc::channel(1);
        let mut controller = Downstream::new(&kubernetes, &Arc::default(), records, &events, &tasks, &stopping);
        let (first, second) = (SessionHandle::new("n1", Peer::default()), SessionHandle::new("n1", Peer::default()));
        // The second took over and was quicker to tell.
        first.close("another connection of this node took over");
        controller.connected(second.clone());
        controller.connected(first.clone());
        controller.disconnected(&first);
        assert!(controller.sessions.get("n1").is_some_and(|current| current.is(&second)));
        controller.disconnected(&second);
        assert!(controller.sessions.is_empty());
    }
}
