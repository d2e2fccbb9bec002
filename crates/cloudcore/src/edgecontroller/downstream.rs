//! From the cluster to the nodes: one task follows pods, nodes, ConfigMaps and Secrets, and offers each node what is its own.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use beehive::compose;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};
use wire::{Content, Message, group, kind, operation, source};

use super::references::{self, Reference};
use super::view::{NamespacedName, PodEntry, View};
use crate::cloudhub::session::SessionHandle;
use crate::kubernetes::{Change, Kubernetes, KubernetesError, Reflector};
use crate::objectsync::{Record, Records};

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
    /// A node has a new session.
    Connected(SessionHandle),
    /// A session has ended.
    Disconnected(SessionHandle),
}

/// An object of the API, as far as this task reads it.
#[derive(Deserialize)]
struct Object<'a> {
    #[serde(default, borrow)]
    kind: Option<&'a str>,
    metadata: Map<String, Value>,
    #[serde(default, borrow)]
    spec: Option<&'a RawValue>,
}

/// Starts the task and what feeds it.
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
    let controller = Downstream {
        kubernetes: kubernetes.clone(),
        view: view.clone(),
        records,
        sessions: HashMap::new(),
        nodes: HashMap::new(),
        seen_pods: None,
        seen_nodes: None,
        pods_listed: false,
        tasks: tasks.clone(),
        stopping: stopping.clone(),
    };
    let stopping = stopping.clone();
    tasks.spawn(async move {
        tokio::select! {
            () = stopping.cancelled() => {}
            () = controller.run(incoming) => {}
        }
    });
}

struct Downstream {
    kubernetes: Kubernetes,
    view: Arc<View>,
    records: Records,
    sessions: HashMap<String, SessionHandle>,
    /// What the nodes last heard of themselves: a digest of labels, annotations and spec.
    nodes: HashMap<String, u64>,
    seen_pods: Option<HashSet<NamespacedName>>,
    seen_nodes: Option<HashSet<String>>,
    pods_listed: bool,
    tasks: TaskTracker,
    stopping: CancellationToken,
}

impl Downstream {
    async fn run(mut self, mut incoming: mpsc::Receiver<Event>) {
        while let Some(event) = incoming.recv().await {
            match event {
                Event::Pod(change) => self.pod(change),
                Event::Node(change) => self.node(change),
                Event::ConfigMap(change) => self.referenced(references::Kind::ConfigMap, change),
                Event::Secret(change) => self.referenced(references::Kind::Secret, change),
                Event::Connected(session) => self.connected(session),
                Event::Disconnected(session) => {
                    if self.sessions.get(session.node()).is_some_and(|current| current.is(&session)) {
                        self.sessions.remove(session.node());
                    }
                }
            }
        }
    }

    fn connected(&mut self, session: SessionHandle) {
        if self.pods_listed {
            self.catch_up(session.clone());
        }
        self.sessions.insert(session.node().to_owned(), session);
    }

    /// Finds in the background what the node lacks; what changes meanwhile is newer and wins.
    fn catch_up(&self, session: SessionHandle) {
        let catch_up = CatchUp { kubernetes: self.kubernetes.clone(), records: self.records.clone(), session };
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
            Change::Begin => self.seen_pods = Some(HashSet::new()),
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
                if !std::mem::replace(&mut self.pods_listed, true) {
                    self.sessions
                        .values()
                        .cloned()
                        .collect::<Vec<_>>()
                        .into_iter()
                        .for_each(|session| self.catch_up(session));
                }
            }
        }
    }

    fn put_pod(&self, name: NamespacedName, mut entry: PodEntry, is_terminating: bool, text: Bytes) {
        let path = format!("{}/{}/{}", name.0, kind::POD, name.1);
        let old = self.view.read().get(&name.0, &name.1).cloned();
        let version = entry.version;
        let unchanged = old.as_ref().is_some_and(|old| old.uid == entry.uid && old.digest == entry.digest);
        if let Some(old) = &old {
            if unchanged {
                // Only the status changed, which the node reported itself.
                entry.version = old.version;
            } else if old.uid != entry.uid {
                self.offer(&old.node, &old.uid, u64::MAX, operation::DELETE, &path, tombstone(&name, &old.uid));
            }
        }
        let (node, uid) = (entry.node.clone(), entry.uid.clone());
        self.view.write().put(name, entry);
        if !unchanged && self.pods_listed {
            let verb = if old.is_none() && !is_terminating { operation::INSERT } else { operation::UPDATE };
            self.offer(&node, &uid, version, verb, &path, with_kind(text, "Pod"));
        }
    }

    fn node(&mut self, change: Change) {
        match change {
            Change::Begin => self.seen_nodes = Some(HashSet::new()),
            Change::Put(text) => {
                let Some(object) = read(&text) else { return };
                let name = object.name().to_owned();
                if let Some(seen) = &mut self.seen_nodes {
                    seen.insert(name.clone());
                }
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
                    let name = object.name().to_owned();
                    self.node_is_gone(&name);
                }
            }
            Change::Listed => {
                let seen = self.seen_nodes.take().unwrap_or_default();
                let lost: Vec<String> = self.nodes.keys().filter(|name| !seen.contains(*name)).cloned().collect();
                lost.iter().for_each(|name| self.node_is_gone(name));
            }
        }
    }

    /// The node must learn it; when it connects again it registers anew.
    fn node_is_gone(&mut self, name: &str) {
        self.nodes.remove(name);
        self.records.forget_node(name);
        if let Some(session) = self.sessions.get(name) {
            info!(node = name, "the Node was deleted; its connection is closed");
            session.close("the Node object was deleted: the node registers again when it connects again");
        }
    }

    /// A ConfigMap or Secret: its changes go to the nodes whose pods refer to it.
    fn referenced(&self, what: references::Kind, change: Change) {
        let (verb, text) = match change {
            Change::Put(text) => (operation::UPDATE, text),
            Change::Gone(text) => (operation::DELETE, text),
            Change::Begin | Change::Listed => return,
        };
        if self.sessions.is_empty() {
            return;
        }
        let Some(object) = read(&text) else { return };
        let reference = Reference { kind: what, name: object.name().to_owned() };
        let nodes: BTreeSet<String> = self.view.read().nodes_of(object.namespace(), &reference);
        if nodes.is_empty() {
            return;
        }
        let (segment, kind_name) = match what {
            references::Kind::Secret => (kind::SECRET, "Secret"),
            _ => (kind::CONFIG_MAP, "ConfigMap"),
        };
        let path = format!("{}/{segment}/{}", object.namespace(), object.name());
        let (uid, version) = (object.uid().to_owned(), object.version());
        let content = with_kind(text.clone(), kind_name);
        for node in nodes {
            let has = self.records.version(&node, &uid);
            if verb == operation::DELETE || has.is_none_or(|has| has < version) {
                self.offer(&node, &uid, version, verb, &path, content.clone());
            }
        }
    }

    fn offer(&self, node: &str, uid: &str, version: u64, verb: &str, path: &str, content: Content) {
        if let Some(session) = self.sessions.get(node) {
            session.offer(uid, version, push(verb, path, version, content));
        }
    }
}

/// Brings a node that has just connected up to date.
struct CatchUp {
    kubernetes: Kubernetes,
    records: Records,
    session: SessionHandle,
}

impl CatchUp {
    async fn run(self) {
        let mut backoff =
            link::backoff::Backoff::new(std::time::Duration::from_millis(500), std::time::Duration::from_secs(30));
        while !self.session.has_ended() {
            match self.try_once().await {
                Ok(()) => return,
                Err(error) => {
                    warn!(node = self.session.node(), %error, "what the node lacks could not be found out; tried again")
                }
            }
            tokio::time::sleep(backoff.next_wait()).await;
        }
    }

    async fn try_once(&self) -> Result<(), KubernetesError> {
        let node = self.session.node();
        match self.kubernetes.get(&format!("/api/v1/nodes/{node}")).await {
            Ok(text) => {
                if let Some(object) = read(&text) {
                    let (uid, version) = (object.uid().to_owned(), object.version());
                    let path = format!("null/node/{node}");
                    self.session.offer(&uid, version, push(operation::UPDATE, &path, version, with_kind(text, "Node")));
                }
            }
            Err(error) if error.code() == 404 => {}
            Err(error) => return Err(error),
        }
        let mut records: HashMap<String, Record> =
            self.records.of_node(node).into_iter().map(|r| (r.uid.clone(), r)).collect();
        self.pods(node, &mut records).await?;
        for record in records.into_values() {
            self.record(&record).await?;
        }
        Ok(())
    }

    /// Pods in one list; those that the node acknowledged in this version are not sent again.
    async fn pods(&self, node: &str, records: &mut HashMap<String, Record>) -> Result<(), KubernetesError> {
        #[derive(Deserialize)]
        struct List {
            items: Vec<Box<RawValue>>,
        }
        let text = self.kubernetes.get(&format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{node}")).await?;
        let list: List = serde_json::from_slice(&text).map_err(|e| KubernetesError::Request(e.into()))?;
        for item in list.items {
            let text = Bytes::from(String::from(Box::<str>::from(item)));
            let Some((name, entry, _)) = read_pod(&text) else { continue };
            let acknowledged = records.remove(&entry.uid).map(|record| record.version);
            if acknowledged.is_none_or(|version| version < entry.version) {
                let path = format!("{}/{}/{}", name.0, kind::POD, name.1);
                let message = push(operation::UPDATE, &path, entry.version, with_kind(text, "Pod"));
                self.session.offer(&entry.uid, entry.version, message);
            }
        }
        Ok(())
    }

    /// Something that the node has: is it still there, and in this version?
    async fn record(&self, record: &Record) -> Result<(), KubernetesError> {
        let (segment, plural) = match record.kind.as_str() {
            "Pod" => (kind::POD, ""),
            "ConfigMap" => (kind::CONFIG_MAP, "configmaps"),
            "Secret" => (kind::SECRET, "secrets"),
            _ => return Ok(()),
        };
        let name = (record.namespace.clone(), record.name.clone());
        let path = format!("{}/{segment}/{}", name.0, name.1);
        if !plural.is_empty() {
            let found = self.kubernetes.get(&format!("/api/v1/namespaces/{}/{plural}/{}", name.0, name.1)).await;
            match found {
                Ok(text) => {
                    let object = read(&text).map(|object| (object.uid().to_owned(), object.version()));
                    if let Some((uid, version)) = object.filter(|(uid, _)| *uid == record.uid) {
                        if version > record.version {
                            let message = push(operation::UPDATE, &path, version, with_kind(text, &record.kind));
                            self.session.offer(&uid, version, message);
                        }
                        return Ok(());
                    }
                }
                Err(error) if error.code() == 404 => {}
                Err(error) => return Err(error),
            }
        }
        let message = push(operation::DELETE, &path, u64::MAX, tombstone(&name, &record.uid));
        self.session.offer(&record.uid, u64::MAX, message);
        Ok(())
    }
}

/// A message that the node must acknowledge. A deletion without a version has none in its header.
fn push(verb: &str, path: &str, version: u64, content: Content) -> Message {
    let mut message = compose::message(source::EDGE_CONTROLLER, group::RESOURCE, verb, path, content);
    if version != u64::MAX {
        message.header.resource_version = version.to_string();
    }
    message
}

/// What is left of an object whose last state nobody knows.
fn tombstone((namespace, name): &NamespacedName, uid: &str) -> Content {
    let object = serde_json::json!({"metadata": {"name": name, "namespace": namespace, "uid": uid}});
    Content::json(&object).unwrap_or_else(|_| Content::null())
}

/// Objects in lists have no kind; an edge needs it.
fn with_kind(text: Bytes, kind: &str) -> Content {
    let has_kind = serde_json::from_slice::<Object<'_>>(&text)
        .is_ok_and(|object| object.kind.is_some_and(|kind| !kind.is_empty()));
    let text = match text.strip_prefix(b"{") {
        Some(rest) if !has_kind => {
            let mut full = format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"v1\",").into_bytes();
            full.extend_from_slice(rest);
            full.into()
        }
        _ => text,
    };
    Content::from_raw(text).unwrap_or_else(|_| Content::null())
}

fn read(text: &Bytes) -> Option<Object<'_>> {
    serde_json::from_slice(text).inspect_err(|error| warn!(%error, "an object of the API cannot be read")).ok()
}

/// Name, entry, and whether the pod is being deleted; `None` for one that is on no node.
fn read_pod(text: &Bytes) -> Option<(NamespacedName, PodEntry, bool)> {
    let object = read(text)?;
    let spec: Value = serde_json::from_str(object.spec?.get()).ok()?;
    let node = spec["nodeName"].as_str().filter(|node| !node.is_empty())?.to_owned();
    let entry = PodEntry {
        uid: object.uid().to_owned(),
        node,
        service_account: spec["serviceAccountName"].as_str().unwrap_or_default().to_owned(),
        references: references::of_pod(&spec),
        version: object.version(),
        digest: object.digest(),
    };
    let name = (object.namespace().to_owned(), object.name().to_owned());
    Some((name, entry, object.metadata.contains_key("deletionTimestamp")))
}

impl Object<'_> {
    fn text(&self, field: &str) -> &str {
        self.metadata.get(field).and_then(Value::as_str).unwrap_or_default()
    }

    fn name(&self) -> &str {
        self.text("name")
    }

    fn namespace(&self) -> &str {
        self.text("namespace")
    }

    fn uid(&self) -> &str {
        self.text("uid")
    }

    fn version(&self) -> u64 {
        self.text("resourceVersion").parse().unwrap_or_default()
    }

    /// A hash of everything but the status and what changes with every write.
    fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for (field, value) in &self.metadata {
            if !matches!(field.as_str(), "resourceVersion" | "generation" | "managedFields") {
                field.hash(&mut hasher);
                value.to_string().hash(&mut hasher);
            }
        }
        self.spec.map(RawValue::get).hash(&mut hasher);
        hasher.finish()
    }
}
