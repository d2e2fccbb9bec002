//! What earlier runs and other replicas have noted: the API's records, read once and then followed.

use std::collections::HashSet;

use serde::Deserialize;

use super::{API_VERSION, Key, Record, Records, State};
use crate::kubernetes::{Change, Kubernetes, definitions};

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

/// A record that the API has no more, and that nobody here removed.
pub(super) struct Lost {
    key: Key,
    namespace: String,
}

impl Records {
    /// Waits until the API knows the kind, and says at once if it does not.
    pub(super) async fn defined(&self, kubernetes: &Kubernetes, plural: &str) {
        let consequence = "until then what nodes have is forgotten when cloudcore ends: they get everything again, and keep what was deleted meanwhile";
        let missing = |missing: bool| {
            self.shared.reading.send_modify(|reading| reading.missing = missing);
            self.shared.changed.notify_one();
        };
        definitions::defined(kubernetes, API_VERSION, plural, consequence, missing).await;
    }

    /// Takes in a change; what is missing from the API without our doing comes back.
    pub(super) fn read(&self, at: usize, change: &Change) -> Vec<Lost> {
        let (text, gone) = match change {
            Change::Put(text) => (text, false),
            Change::Gone(text) => (text, true),
            // What was noted after the backup is noted here still, and is written again; in which version says nothing.
            Change::Restored => {
                self.state().is_stale[at] = true;
                self.write_again(at);
                return Vec::new();
            }
            Change::Begin => {
                self.state().seen[at] = Some(HashSet::new());
                return Vec::new();
            }
            Change::Listed => {
                let lost = self.missing(at);
                self.state().is_stale[at] = false;
                self.shared.reading.send_modify(|reading| reading.listed[at] = true);
                return lost;
            }
        };
        let Ok(sync) = serde_json::from_slice::<ObjectSync>(text) else { return Vec::new() };
        // The uid has no dot, a node's name may.
        let Some((node, uid)) = sync.metadata.name.rsplit_once('.') else { return Vec::new() };
        let key = (node.to_owned(), uid.to_owned());
        let mut state = self.state();
        if let Some(seen) = &mut state.seen[at] {
            seen.insert(key.clone());
        }
        if gone {
            let is_known = state.records.get(node).is_some_and(|of_node| of_node.contains_key(uid));
            let lost = is_known && state.is_lost(&key);
            return if lost { vec![Lost { key, namespace: sync.metadata.namespace }] } else { Vec::new() };
        }
        // Ours is newer until it is written.
        if state.dirty.contains_key(&key) {
            return Vec::new();
        }
        let is_nothing = state.is_stale[at] || state.doubts.of(node).is_some();
        let version = if is_nothing { 0 } else { sync.status.object_resource_version.parse().unwrap_or_default() };
        let of_node = state.records.entry(key.0).or_default();
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
        Vec::new()
    }

    /// All records of this list are to be written.
    fn write_again(&self, at: usize) {
        let mut state = self.state();
        let State { records, dirty, .. } = &mut *state;
        for (node, of_node) in records {
            for (uid, record) in of_node.iter_mut().filter(|(_, record)| list_of(record) == at) {
                record.version = 0;
                dirty.insert((node.clone(), uid.clone()), (record.clone(), false));
            }
        }
        drop(state);
        self.shared.changed.notify_one();
    }

    /// What was missing from a complete list and is not just being written.
    fn missing(&self, at: usize) -> Vec<Lost> {
        let mut state = self.state();
        let Some(seen) = state.seen[at].take() else { return Vec::new() };
        let mut lost = Vec::new();
        for (node, of_node) in &state.records {
            for (uid, record) in of_node.iter().filter(|(_, record)| list_of(record) == at) {
                let key = (node.clone(), uid.clone());
                if !seen.contains(&key) && state.is_lost(&key) {
                    lost.push(Lost { key, namespace: record.namespace.clone() });
                }
            }
        }
        lost
    }

    /// A record that another replica removed is forgotten here too. One that went with its namespace is not: the node was not asked.
    pub(super) async fn settle(&self, kubernetes: &Kubernetes, lost: Lost) {
        let went_with_namespace = !lost.namespace.is_empty()
            && match kubernetes.get_value(&format!("/api/v1/namespaces/{}", lost.namespace)).await {
                Ok(namespace) => namespace["metadata"]["deletionTimestamp"].is_string(),
                // When in doubt it is kept: that costs the deletion of what is gone already.
                Err(_) => true,
            };
        let mut state = self.state();
        if !state.is_lost(&lost.key) {
            return;
        }
        match went_with_namespace {
            true => drop(state.orphans.insert(lost.key)),
            false => state.remove(&lost.key.0, &lost.key.1),
        }
    }
}

/// Which list a record stands in.
fn list_of(record: &Record) -> usize {
    usize::from(record.namespace.is_empty())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use serde_json::json;
    use tokio_util::sync::CancellationToken;
    use tokio_util::task::TaskTracker;

    use super::*;

    fn records() -> Records {
        let (tasks, stopping) = (TaskTracker::new(), CancellationToken::new());
        stopping.cancel();
        crate::objectsync::start(Kubernetes::at("http://127.0.0.1:1"), &tasks, &stopping)
    }

    fn noted(node: &str, version: u64) -> Change {
        let sync = json!({
            "metadata": {"name": format!("{node}.uid"), "namespace": "default"},
            "spec": {"objectKind": "Pod", "objectName": "web"},
            "status": {"objectResourceVersion": version.to_string()},
        });
        Change::Put(Bytes::from(sync.to_string()))
    }

    #[tokio::test]
    async fn versions_noted_before_a_restore_count_as_nothing() {
        let records = records();
        // Nothing is known of this node when everyone is distrusted.
        records.distrust_all();
        records.read(0, &noted("n1", 40));
        assert_eq!(records.version("n1", "uid"), Some(0));
        let doubt = records.doubt("n1").expect("distrusted");
        records.trust("n1", doubt);
        assert_eq!(records.doubt("n1"), None);
        records.read(0, &noted("n1", 41));
        assert_eq!(records.version("n1", "uid"), Some(41));

        // The list that shows the restore is read while the node is trusted again.
        let doubt = records.doubt("n2").expect("distrusted");
        records.trust("n2", doubt);
        records.read(0, &Change::Restored);
        records.read(0, &Change::Begin);
        records.read(0, &noted("n2", 40));
        assert_eq!(records.version("n2", "uid"), Some(0));
        records.read(0, &noted("n2", 40));
        records.read(0, &Change::Listed);
        records.read(0, &noted("n2", 42));
        assert_eq!(records.version("n2", "uid"), Some(42));
    }

    #[tokio::test]
    async fn a_doubt_is_over_only_when_a_comparison_since_then_was_acknowledged() {
        let records = records();
        assert_eq!(records.doubt("n1"), None);
        records.distrust_all();
        let early = records.doubt("n1").expect("distrusted");
        records.distrust("n1");
        records.trust("n1", early);
        let late = records.doubt("n1").expect("distrusted anew");
        assert!(records.doubt("n2") == Some(early) && early != late);
        records.trust("n1", late);
        assert_eq!(records.doubt("n1"), None);
    }
}
