//! What each node has acknowledged, kept in the Kubernetes API as `ObjectSync` and `ClusterObjectSync` (KubeEdge v1.23,
//! `reliablesyncs.kubeedge.io/v1alpha1`), written behind and coalesced. A record that is lost costs a resend, nothing else.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};
use wire::{EdgeResource, Message, operation};

use crate::kubernetes::{Change, Kubernetes, KubernetesError, Reflector};

const GROUP: &str = "/apis/reliablesyncs.kubeedge.io/v1alpha1";
/// Changes are gathered for so long before they are written.
const GATHER: Duration = Duration::from_millis(500);
/// The wait after a failed round.
const RETRY: Duration = Duration::from_secs(5);
/// Changes of the API's records that wait to be read.
const CHANGES: usize = 256;

/// What a node has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The object's uid.
    pub uid: String,
    /// Its kind, for example `Pod`.
    pub kind: String,
    /// Empty for cluster scope.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The version that the node acknowledged.
    pub version: u64,
}

/// The records of all nodes. Cloning is cheap.
#[derive(Clone)]
pub struct Records {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Notify,
    /// Whether both lists were read once.
    listed: watch::Sender<[bool; 2]>,
}

#[derive(Default)]
struct State {
    /// Node, uid.
    records: HashMap<String, HashMap<String, Record>>,
    /// What is not written yet: the record, or that it is gone.
    dirty: HashMap<(String, String), (Record, bool)>,
    /// Node and uid of what stands in a list that is being read, by list.
    seen: [Option<HashSet<(String, String)>>; 2],
}

/// An `ObjectSync` as the API has it.
#[derive(Deserialize)]
struct ObjectSync {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: SyncStatus,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
    #[serde(default)]
    namespace: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    object_kind: String,
    object_name: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SyncStatus {
    object_resource_version: String,
}

/// Reads the API's records and writes ours behind, until `stopping`.
pub fn start(kubernetes: Kubernetes, tasks: &TaskTracker, stopping: &CancellationToken) -> Records {
    let records = Records {
        shared: Arc::new(Shared { state: Mutex::default(), changed: Notify::new(), listed: watch::Sender::default() }),
    };
    let (changes, mut incoming) = mpsc::channel(CHANGES);
    for (at, plural) in ["objectsyncs", "clusterobjectsyncs"].into_iter().enumerate() {
        let reflector =
            Reflector { kubernetes: kubernetes.clone(), path: format!("{GROUP}/{plural}"), query: String::new() };
        let (changes, stopping) = (changes.clone(), stopping.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = stopping.cancelled() => {}
                () = reflector.run(changes, move |change| (at, change)) => {}
            }
        });
    }
    let reading = records.clone();
    let stop = stopping.clone();
    tasks.spawn(async move {
        while let Some(Some((at, change))) = stop.run_until_cancelled(incoming.recv()).await {
            reading.read(at, &change);
        }
    });
    let writing = records.clone();
    let stop = stopping.clone();
    tasks.spawn(async move {
        while stop.run_until_cancelled(writing.shared.changed.notified()).await.is_some() {
            tokio::time::sleep(GATHER).await;
            writing.write_all(&kubernetes).await;
        }
        // What was acknowledged in the last moment.
        writing.write_all(&kubernetes).await;
    });
    records
}

impl State {
    fn remove(&mut self, node: &str, uid: &str) {
        if let Some(of_node) = self.records.get_mut(node) {
            of_node.remove(uid);
            if of_node.is_empty() {
                self.records.remove(node);
            }
        }
    }
}

impl Records {
    /// What this node has.
    pub fn of_node(&self, node: &str) -> Vec<Record> {
        self.state().records.get(node).into_iter().flat_map(HashMap::values).cloned().collect()
    }

    /// The version of an object that this node has.
    pub fn version(&self, node: &str, uid: &str) -> Option<u64> {
        self.state().records.get(node)?.get(uid).map(|record| record.version)
    }

    /// A node acknowledged a message.
    pub fn acknowledged(&self, node: &str, uid: &str, message: &Message) {
        let Ok(resource) = EdgeResource::parse(&message.route.resource) else { return };
        let Some(kind) = kind_of(&resource.kind) else { return };
        let cluster = resource.namespace == "null";
        let record = Record {
            uid: uid.to_owned(),
            kind: kind.to_owned(),
            namespace: if cluster { String::new() } else { resource.namespace.clone() },
            name: resource.name().to_owned(),
            version: message.header.resource_version.parse().unwrap_or_default(),
        };
        let gone = message.route.operation == operation::DELETE;
        let mut state = self.state();
        if gone {
            state.remove(node, uid);
        } else {
            let of_node = state.records.entry(node.to_owned()).or_default();
            if of_node.get(uid).is_some_and(|old| old.version >= record.version) {
                return;
            }
            of_node.insert(uid.to_owned(), record.clone());
        }
        state.dirty.insert((node.to_owned(), uid.to_owned()), (record, gone));
        drop(state);
        self.shared.changed.notify_one();
    }

    /// Waits until what other replicas and earlier runs wrote was read.
    pub async fn listed(&self) {
        // The sender lives in `shared`.
        let _ = self.shared.listed.subscribe().wait_for(|listed| *listed == [true, true]).await;
    }

    /// Whether that has been read already.
    pub fn are_listed(&self) -> bool {
        *self.shared.listed.borrow() == [true, true]
    }

    /// Nodes that have something.
    pub fn nodes(&self) -> Vec<String> {
        self.state().records.keys().cloned().collect()
    }

    /// The Node object is gone, and the node need not be told so.
    pub fn forget_itself(&self, node: &str) {
        self.forget(node, |record| record.kind == "Node");
    }

    /// The node is gone for good: so is what it had.
    pub fn forget_node(&self, node: &str) {
        self.forget(node, |_| true);
    }

    fn forget(&self, node: &str, which: impl Fn(&Record) -> bool) {
        let mut state = self.state();
        let State { records, dirty, .. } = &mut *state;
        let Some(of_node) = records.get_mut(node) else { return };
        for (uid, record) in of_node.extract_if(|_, record| which(record)) {
            dirty.insert((node.to_owned(), uid), (record, true));
        }
        if of_node.is_empty() {
            records.remove(node);
        }
        drop(state);
        self.shared.changed.notify_one();
    }

    fn read(&self, at: usize, change: &Change) {
        let (text, gone) = match change {
            Change::Put(text) => (text, false),
            Change::Gone(text) => (text, true),
            Change::Begin => {
                self.state().seen[at] = Some(HashSet::new());
                return;
            }
            Change::Listed => {
                self.prune(at);
                self.shared.listed.send_modify(|listed| listed[at] = true);
                return;
            }
        };
        let Ok(sync) = serde_json::from_slice::<ObjectSync>(text) else { return };
        // The uid has no dot, a node's name may.
        let Some((node, uid)) = sync.metadata.name.rsplit_once('.') else { return };
        let key = (node.to_owned(), uid.to_owned());
        let mut state = self.state();
        if let Some(seen) = &mut state.seen[at] {
            seen.insert(key.clone());
        }
        // Ours is newer until it is written.
        if state.dirty.contains_key(&key) {
            return;
        }
        if gone {
            state.remove(node, uid);
            return;
        }
        let of_node = state.records.entry(key.0).or_default();
        let version = sync.status.object_resource_version.parse().unwrap_or_default();
        if of_node.get(uid).is_none_or(|old| old.version < version) {
            let record = Record {
                uid: key.1.clone(),
                kind: sync.spec.object_kind,
                namespace: sync.metadata.namespace,
                name: sync.spec.object_name,
                version,
            };
            of_node.insert(key.1, record);
        }
    }

    /// Takes out what was missing from a complete list and is not just being written.
    fn prune(&self, at: usize) {
        let mut state = self.state();
        let Some(seen) = state.seen[at].take() else { return };
        let State { records, dirty, .. } = &mut *state;
        for (node, of_node) in records.iter_mut() {
            of_node.retain(|uid, record| {
                let key = (node.clone(), uid.clone());
                usize::from(record.namespace.is_empty()) != at || seen.contains(&key) || dirty.contains_key(&key)
            });
        }
        records.retain(|_, of_node| !of_node.is_empty());
    }

    async fn write_all(&self, kubernetes: &Kubernetes) {
        let dirty = std::mem::take(&mut self.state().dirty);
        let mut failed = false;
        for ((node, uid), (record, gone)) in dirty {
            let written =
                if gone { remove(kubernetes, &node, &record).await } else { write(kubernetes, &node, &record).await };
            if let Err(error) = written {
                debug!(node, object = record.name, %error, "a record could not be written; tried again");
                failed = true;
                // A newer change of the same record wins.
                self.state().dirty.entry((node, uid)).or_insert((record, gone));
            }
        }
        if failed {
            warn!("records of what nodes have could not be written; tried again");
            tokio::time::sleep(RETRY).await;
            self.shared.changed.notify_one();
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn kind_of(segment: &str) -> Option<&'static str> {
    Some(match segment {
        "pod" => "Pod",
        "configmap" => "ConfigMap",
        "secret" => "Secret",
        "node" => "Node",
        _ => return None,
    })
}

fn path(record: &Record) -> (String, &'static str) {
    match record.namespace.as_str() {
        "" => (format!("{GROUP}/clusterobjectsyncs"), "ClusterObjectSync"),
        namespace => (format!("{GROUP}/namespaces/{namespace}/objectsyncs"), "ObjectSync"),
    }
}

async fn write(kubernetes: &Kubernetes, node: &str, record: &Record) -> Result<(), KubernetesError> {
    let (list, kind) = path(record);
    let name = format!("{node}.{}", record.uid);
    let status = json!({"status": {"objectResourceVersion": record.version.to_string()}}).to_string();
    let status_path = format!("{list}/{name}/status");
    let patch = || kubernetes.patch(&status_path, "merge-patch", status.clone());
    match patch().await {
        Err(error) if error.code() == 404 => {}
        result => return result.map(drop),
    }
    let object = json!({
        "apiVersion": "reliablesyncs.kubeedge.io/v1alpha1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": {"objectAPIVersion": "v1", "objectKind": record.kind, "objectName": record.name},
    });
    match kubernetes.create(&list, object.to_string()).await {
        Ok(_) => patch().await.map(drop),
        Err(error) if error.code() == 409 => patch().await.map(drop),
        // The namespace is gone, and with it what the record is about.
        Err(error) if error.code() == 404 || error.code() == 403 => Ok(()),
        Err(error) => Err(error),
    }
}

async fn remove(kubernetes: &Kubernetes, node: &str, record: &Record) -> Result<(), KubernetesError> {
    let (list, _) = path(record);
    match kubernetes.delete(&format!("{list}/{node}.{}", record.uid), "{}").await {
        Err(error) if error.code() != 404 => Err(error),
        _ => Ok(()),
    }
}
