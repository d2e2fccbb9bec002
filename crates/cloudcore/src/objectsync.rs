//! What each node has acknowledged, kept in the Kubernetes API as `ObjectSync` and `ClusterObjectSync` (KubeEdge v1.23,
//! `reliablesyncs.kubeedge.io/v1alpha1`), written behind and coalesced. A record that is lost costs a resend, nothing else.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tokio::sync::{Notify, mpsc};
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
}

#[derive(Default)]
struct State {
    /// Node, uid.
    records: HashMap<String, HashMap<String, Record>>,
    /// What is not written yet: the record, or that it is gone.
    dirty: HashMap<(String, String), (Record, bool)>,
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
    let records = Records { shared: Arc::default() };
    let (changes, mut incoming) = mpsc::channel(CHANGES);
    for plural in ["objectsyncs", "clusterobjectsyncs"] {
        let reflector =
            Reflector { kubernetes: kubernetes.clone(), path: format!("{GROUP}/{plural}"), query: String::new() };
        let (changes, stopping) = (changes.clone(), stopping.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = stopping.cancelled() => {}
                () = reflector.run(changes, |change| change) => {}
            }
        });
    }
    let reading = records.clone();
    let stop = stopping.clone();
    tasks.spawn(async move {
        while let Some(Some(change)) = stop.run_until_cancelled(incoming.recv()).await {
            reading.read(&change);
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
        let of_node = state.records.entry(node.to_owned()).or_default();
        if gone {
            of_node.remove(uid);
        } else if of_node.get(uid).is_some_and(|old| old.version >= record.version) {
            return;
        } else {
            of_node.insert(uid.to_owned(), record.clone());
        }
        state.dirty.insert((node.to_owned(), uid.to_owned()), (record, gone));
        drop(state);
        self.shared.changed.notify_one();
    }

    /// The Node is gone: so is what it had.
    pub fn forget_node(&self, node: &str) {
        let mut state = self.state();
        for (uid, record) in state.records.remove(node).into_iter().flatten() {
            state.dirty.insert((node.to_owned(), uid), (record, true));
        }
        drop(state);
        self.shared.changed.notify_one();
    }

    fn read(&self, change: &Change) {
        let (text, gone) = match change {
            Change::Put(text) => (text, false),
            Change::Gone(text) => (text, true),
            Change::Begin | Change::Listed => return,
        };
        let Ok(sync) = serde_json::from_slice::<ObjectSync>(text) else { return };
        // The uid has no dot, a node's name may.
        let Some((node, uid)) = sync.metadata.name.rsplit_once('.') else { return };
        let mut state = self.state();
        // Ours is newer until it is written.
        if state.dirty.contains_key(&(node.to_owned(), uid.to_owned())) {
            return;
        }
        let of_node = state.records.entry(node.to_owned()).or_default();
        let version = sync.status.object_resource_version.parse().unwrap_or_default();
        if gone {
            of_node.remove(uid);
        } else if of_node.get(uid).is_none_or(|old| old.version < version) {
            let record = Record {
                uid: uid.to_owned(),
                kind: sync.spec.object_kind,
                namespace: sync.metadata.namespace,
                name: sync.spec.object_name,
                version,
            };
            of_node.insert(uid.to_owned(), record);
        }
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
