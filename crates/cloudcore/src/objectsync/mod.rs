//! What each node has acknowledged, kept in the Kubernetes API as `ObjectSync` and `ClusterObjectSync` (KubeEdge v1.23,
//! `reliablesyncs.kubeedge.io/v1alpha1`), written behind and coalesced. A record that is lost costs a resend; but that of a pod which
//! went with its namespace is kept here, for it tells what the node has to be rid of.
//!
//! This file has the records and what is asked of them, `reading` follows the API's, `writing` writes ours.

mod reading;
mod writing;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wire::inventory::{Digest, Held};
use wire::{EdgeResource, Message, operation};

use crate::kubernetes::kinds::Kind;
use crate::kubernetes::{Kubernetes, Reflector};

const API_VERSION: &str = "reliablesyncs.kubeedge.io/v1alpha1";
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

/// An occasion on which a node was distrusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doubt(u64);

/// An acknowledgement, without the object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    /// The object's uid.
    pub uid: String,
    /// Its path.
    pub resource: String,
    /// Its version.
    pub version: u64,
    /// Whether the object is gone.
    pub gone: bool,
    /// When the message was made, Unix milliseconds.
    pub made: i64,
}

impl Record {
    /// Of an object with this path; `None` when no record is kept of such.
    fn of(uid: &str, resource: &str, version: u64) -> Option<Self> {
        let resource = EdgeResource::parse(resource).ok()?;
        let kind = Kind::of_segment(&resource.kind)?.name;
        let namespace = if resource.namespace == "null" { String::new() } else { resource.namespace.clone() };
        Some(Self { uid: uid.to_owned(), kind: kind.to_owned(), namespace, name: resource.name().to_owned(), version })
    }
}

impl Record {
    /// Whether uid, namespace and name may stand in a record's name and in paths: a node says them, and a dot in a uid would make the record
    /// another node's.
    fn can_be_named(&self) -> bool {
        let is_uid = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        let is_name = |text: &str| {
            text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.'))
        };
        let uid = (1..=64).contains(&self.uid.len()) && is_uid(&self.uid);
        let name = (1..=253).contains(&self.name.len()) && is_name(&self.name) && !self.name.starts_with('.');
        uid && name && is_uid(&self.namespace)
    }
}

impl Acknowledged {
    /// Of this message about the object with this uid.
    pub fn of(uid: &str, message: &Message) -> Self {
        Self {
            uid: uid.to_owned(),
            resource: message.route.resource.clone(),
            version: message.header.resource_version.parse().unwrap_or_default(),
            gone: message.route.operation == operation::DELETE,
            made: message.header.timestamp,
        }
    }
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
    reading: watch::Sender<Reading>,
}

/// How far the API's records are read.
#[derive(Clone, Copy, Default)]
struct Reading {
    /// Whether each list was read once.
    listed: [bool; 2],
    /// The API does not know the kinds.
    missing: bool,
}

/// Node and uid.
type Key = (String, String);

#[derive(Default)]
struct State {
    /// Node, uid.
    records: HashMap<String, HashMap<String, Record>>,
    /// What is not written yet: the record, or that it is gone.
    dirty: HashMap<Key, (Record, bool)>,
    /// What stands in a list that is being read, by list.
    seen: [Option<HashSet<Key>>; 2],
    /// What went with its namespace: no list has it, and the node does still.
    orphans: HashSet<Key>,
    /// The lists that are read again since the cluster was restored from a backup: the versions in them are of the time before.
    is_stale: [bool; 2],
    doubts: Doubts,
}

/// The versions that a node says to have, or to have had, mean nothing any more since the cluster was restored from a backup: they count
/// as 0 until it has acknowledged everything.
#[derive(Default)]
struct Doubts {
    /// How many there were, of whomever.
    count: u64,
    /// The last one about all nodes, also those of which nothing is known here yet.
    of_all: u64,
    of_node: HashMap<String, u64>,
    /// The last one that is over, of each node.
    over: HashMap<String, u64>,
}

impl Doubts {
    fn of(&self, node: &str) -> Option<Doubt> {
        let last = self.of_all.max(self.of_node.get(node).copied().unwrap_or_default());
        (last > self.over.get(node).copied().unwrap_or_default()).then_some(Doubt(last))
    }

    fn settle(&mut self, node: &str, doubt: Doubt) {
        if self.of(node) == Some(doubt) {
            self.of_node.remove(node);
            self.over.insert(node.to_owned(), doubt.0);
        }
    }
}

/// Reads the API's records and writes ours behind, until `stopping`.
pub fn start(kubernetes: Kubernetes, tasks: &TaskTracker, stopping: &CancellationToken) -> Records {
    let records = Records {
        shared: Arc::new(Shared { state: Mutex::default(), changed: Notify::new(), reading: watch::Sender::default() }),
    };
    let (changes, mut incoming) = mpsc::channel(CHANGES);
    for (at, plural) in ["objectsyncs", "clusterobjectsyncs"].into_iter().enumerate() {
        let reflector =
            Reflector { kubernetes: kubernetes.clone(), path: format!("{GROUP}/{plural}"), query: String::new() };
        let (changes, stopping, records) = (changes.clone(), stopping.clone(), records.clone());
        tasks.spawn(async move {
            let following = async {
                records.defined(&reflector.kubernetes, plural).await;
                reflector.run(changes, move |change| (at, change)).await;
            };
            let _ = stopping.run_until_cancelled(following).await;
        });
    }
    let (reading, api) = (records.clone(), kubernetes.clone());
    let stop = stopping.clone();
    tasks.spawn(async move {
        let reading = async {
            while let Some((at, change)) = incoming.recv().await {
                for lost in reading.read(at, &change) {
                    reading.settle(&api, lost).await;
                }
            }
        };
        let _ = stop.run_until_cancelled(reading).await;
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
    /// What is not in `dirty`: there, ours is newer than the API's.
    fn is_lost(&self, key: &Key) -> bool {
        !self.dirty.contains_key(key) && !self.orphans.contains(key)
    }

    fn remove(&mut self, node: &str, uid: &str) {
        self.orphans.remove(&(node.to_owned(), uid.to_owned()));
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
    pub fn acknowledged(&self, node: &str, acknowledged: &Acknowledged) {
        let Some(record) = Record::of(&acknowledged.uid, &acknowledged.resource, acknowledged.version) else { return };
        let key = (node.to_owned(), acknowledged.uid.clone());
        let mut state = self.state();
        if acknowledged.gone {
            state.remove(node, &key.1);
        } else {
            let of_node = state.records.entry(node.to_owned()).or_default();
            if of_node.get(&key.1).is_some_and(|old| old.version == record.version) {
                return;
            }
            of_node.insert(key.1.clone(), record.clone());
        }
        state.dirty.insert(key, (record, acknowledged.gone));
        drop(state);
        self.shared.changed.notify_one();
    }

    /// An object is about to be sent to a node that cannot say what it has: it may have it without a word, and must be rid of it
    /// then when it is deleted. (KubeEdge v1.23 writes such a record with the version 0, too.)
    pub fn expect(&self, node: &str, uid: &str, resource: &str) {
        let Some(record) = Record::of(uid, resource, 0) else { return };
        let mut state = self.state();
        let of_node = state.records.entry(node.to_owned()).or_default();
        if of_node.contains_key(uid) {
            return;
        }
        of_node.insert(uid.to_owned(), record.clone());
        state.dirty.insert((node.to_owned(), uid.to_owned()), (record, false));
        drop(state);
        self.shared.changed.notify_one();
    }

    /// An object that exists still is about to be taken from a node: until the node says so nobody knows whether it has it.
    pub fn withdraw(&self, node: &str, uid: &str) {
        let mut state = self.state();
        let Some(record) = state.records.get_mut(node).and_then(|of_node| of_node.get_mut(uid)) else { return };
        record.version = 0;
        let record = record.clone();
        state.dirty.insert((node.to_owned(), uid.to_owned()), (record, false));
        drop(state);
        self.shared.changed.notify_one();
    }

    /// A node said what it has: that is what counts.
    pub fn replace(&self, node: &str, held: Vec<Held>) {
        let held: HashMap<String, Record> = held
            .into_iter()
            .filter_map(|Held(uid, resource, version)| Some((uid.clone(), Record::of(&uid, &resource, version)?)))
            .filter(|(_, record)| record.can_be_named())
            .collect();
        let mut state = self.state();
        let State { records, dirty, orphans, doubts, .. } = &mut *state;
        let is_distrusted = doubts.of(node).is_some();
        let of_node = records.entry(node.to_owned()).or_default();
        // The Node itself is sent with each connection, and not in the list.
        for (uid, record) in of_node.extract_if(|uid, record| record.kind != "Node" && !held.contains_key(uid)) {
            orphans.remove(&(node.to_owned(), uid.clone()));
            dirty.insert((node.to_owned(), uid), (record, true));
        }
        for (uid, mut record) in held {
            if is_distrusted {
                record.version = 0;
            }
            if of_node.get(&uid) != Some(&record) {
                of_node.insert(uid.clone(), record.clone());
                dirty.insert((node.to_owned(), uid), (record, false));
            }
        }
        drop(state);
        self.shared.changed.notify_one();
    }

    /// The digest of what this node has, as the node computes it.
    pub fn digest(&self, node: &str) -> String {
        let mut digest = Digest::default();
        for (uid, record) in self.state().records.get(node).into_iter().flatten() {
            if record.kind != "Node" {
                digest.add(uid, record.version);
            }
        }
        digest.to_text()
    }

    /// The cluster was restored from a backup: versions that nodes have acknowledged say nothing about what is there now.
    pub fn distrust_all(&self) {
        let mut state = self.state();
        let State { records, dirty, doubts, .. } = &mut *state;
        doubts.count += 1;
        doubts.of_all = doubts.count;
        records.iter_mut().for_each(|(node, of_node)| count_as_nothing(node, of_node, dirty));
        drop(state);
        self.shared.changed.notify_one();
    }

    /// The same, as to one node.
    pub fn distrust(&self, node: &str) {
        let mut state = self.state();
        let State { records, dirty, doubts, .. } = &mut *state;
        doubts.count += 1;
        doubts.of_node.insert(node.to_owned(), doubts.count);
        if let Some(of_node) = records.get_mut(node) {
            count_as_nothing(node, of_node, dirty);
        }
        drop(state);
        self.shared.changed.notify_one();
    }

    /// Whether, and since which occasion, this node is distrusted.
    pub fn doubt(&self, node: &str) -> Option<Doubt> {
        self.state().doubts.of(node)
    }

    /// The node has acknowledged all that a comparison since this occasion found.
    pub fn trust(&self, node: &str, doubt: Doubt) {
        self.state().doubts.settle(node, doubt);
    }

    /// Waits until what other replicas and earlier runs wrote was read; `false` when the API cannot have any of it.
    pub async fn listed(&self) -> bool {
        let mut reading = self.shared.reading.subscribe();
        let known = reading.wait_for(|reading| reading.missing || reading.listed == [true, true]).await;
        // The sender lives in `shared`.
        known.is_ok_and(|reading| !reading.missing)
    }

    /// Whether that has been read already.
    pub fn are_listed(&self) -> bool {
        self.shared.reading.borrow().listed == [true, true]
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
        self.state().doubts.of_node.remove(node);
    }

    fn forget(&self, node: &str, which: impl Fn(&Record) -> bool) {
        let mut state = self.state();
        let State { records, dirty, orphans, .. } = &mut *state;
        let Some(of_node) = records.get_mut(node) else { return };
        for (uid, record) in of_node.extract_if(|_, record| which(record)) {
            orphans.remove(&(node.to_owned(), uid.clone()));
            dirty.insert((node.to_owned(), uid), (record, true));
        }
        if of_node.is_empty() {
            records.remove(node);
        }
        drop(state);
        self.shared.changed.notify_one();
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn count_as_nothing(node: &str, of_node: &mut HashMap<String, Record>, dirty: &mut HashMap<Key, (Record, bool)>) {
    for (uid, record) in of_node {
        record.version = 0;
        dirty.insert((node.to_owned(), uid.clone()), (record.clone(), false));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_notes_nothing_under_the_name_of_another() {
        let named = |uid: &str, path: &str| Record::of(uid, path, 1).is_some_and(|record| record.can_be_named());
        assert!(named("0b5c3c7e-1d0f-4d0e-8f6c-2a9d4c1b7e55", "default/configmap/kube-root-ca.crt"));
        for (uid, path) in [
            ("example.com.uid", "default/pod/a"),
            ("", "default/pod/a"),
            ("u", "a?b/pod/a"),
            ("u", "default/pod/a?watch=true"),
            ("u", "default/pod/.."),
        ] {
            assert!(!named(uid, path), "{uid} {path}");
        }
    }
}
