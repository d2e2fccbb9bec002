//! What is known of the cluster: which pod, and which device, is on which node and what it refers to. Written by `downstream` alone, read by the
//! authorization of requests.

use std::collections::{BTreeSet, HashMap};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use tokio::sync::watch;

use super::references::Reference;
use super::versions::Versions;
use crate::devicecontroller::devices::KnownDevices;
use crate::devicecontroller::downstream::DEVICE;

/// Namespace and name.
pub type NamespacedName = (String, String);

/// A pod on a node.
#[derive(Clone, Debug)]
pub struct PodEntry {
    /// Its uid.
    pub uid: String,
    /// Its node.
    pub node: String,
    /// Its ServiceAccount.
    pub service_account: String,
    /// What it refers to.
    pub references: Vec<Reference>,
    /// Its version.
    pub version: u64,
}

/// Pods by name, and names of pods by node.
#[derive(Default)]
pub struct View {
    inner: RwLock<Pods>,
    listed: watch::Sender<bool>,
    /// In which version the cluster has each object that nodes may have.
    pub versions: Versions,
    /// The devices.
    pub devices: KnownDevices,
}

/// The pods of the cluster that are on nodes.
#[derive(Default)]
pub struct Pods {
    pods: HashMap<NamespacedName, PodEntry>,
    nodes: HashMap<String, BTreeSet<NamespacedName>>,
    /// The nodes whose pods refer to something of a namespace, and how many pods of each do.
    readers: HashMap<(String, Reference), HashMap<String, usize>>,
}

impl View {
    /// For reading.
    pub fn read(&self) -> RwLockReadGuard<'_, Pods> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the pods were read once. Before that nobody can tell what a node has.
    pub async fn listed(&self) {
        // The sender lives in `self`.
        let _ = self.listed.subscribe().wait_for(|listed| *listed).await;
    }

    /// Whether the devices were read, or the API knows none, within this time. Nothing is waited for where there are no devices.
    pub async fn knows_devices(&self, within: Duration) -> bool {
        let is_known = || self.devices.are_listed() || self.versions.is_absent(DEVICE);
        if !is_known() {
            let _ = tokio::time::timeout(within, self.versions.all_listed()).await;
        }
        is_known()
    }

    pub(super) fn are_listed(&self) -> bool {
        *self.listed.borrow()
    }

    pub(super) fn set_listed(&self) {
        self.listed.send_replace(true);
    }

    /// Nothing is known any more until pods are listed again.
    pub(super) fn forget(&self) {
        self.listed.send_replace(false);
        *self.write() = Pods::default();
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, Pods> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pods {
    /// A pod by name.
    pub fn get(&self, namespace: &str, name: &str) -> Option<&PodEntry> {
        self.pods.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// The pods of a node, if all of them are in the versions that `acknowledged` has by uid.
    pub fn acknowledged_of(&self, node: &str, acknowledged: impl Fn(&str) -> Option<u64>) -> Option<Vec<&str>> {
        let of_node = self.of_node(node).map(|(_, pod)| pod);
        of_node.map(|pod| (acknowledged(&pod.uid) == Some(pod.version)).then_some(pod.uid.as_str())).collect()
    }

    /// The pods of a node.
    pub fn of_node(&self, node: &str) -> impl Iterator<Item = (&NamespacedName, &PodEntry)> {
        let names = self.nodes.get(node).into_iter().flatten();
        names.filter_map(|name| Some((name, self.pods.get(name)?)))
    }

    /// Whether a pod of the node refers to this.
    pub fn refers(&self, node: &str, namespace: &str, reference: &Reference) -> bool {
        self.of_node(node)
            .any(|((pod_namespace, _), pod)| pod_namespace == namespace && pod.references.contains(reference))
    }

    /// The nodes with pods that refer to this.
    pub fn nodes_of(&self, namespace: &str, reference: &Reference) -> BTreeSet<String> {
        let readers = self.readers.get(&(namespace.to_owned(), reference.clone()));
        readers.into_iter().flat_map(HashMap::keys).cloned().collect()
    }

    /// All names.
    pub(super) fn names(&self) -> Vec<NamespacedName> {
        self.pods.keys().cloned().collect()
    }

    pub(super) fn put(&mut self, name: NamespacedName, pod: PodEntry) -> Option<PodEntry> {
        let old = self.remove(&name);
        self.nodes.entry(pod.node.clone()).or_default().insert(name.clone());
        for reference in &pod.references {
            let readers = self.readers.entry((name.0.clone(), reference.clone())).or_default();
            *readers.entry(pod.node.clone()).or_default() += 1;
        }
        self.pods.insert(name, pod);
        old
    }

    pub(super) fn remove(&mut self, name: &NamespacedName) -> Option<PodEntry> {
        let old = self.pods.remove(name)?;
        if let Some(names) = self.nodes.get_mut(&old.node) {
            names.remove(name);
            if names.is_empty() {
                self.nodes.remove(&old.node);
            }
        }
        for reference in &old.references {
            let what = (name.0.clone(), reference.clone());
            let Some(readers) = self.readers.get_mut(&what) else { continue };
            if let Some(count) = readers.get_mut(&old.node) {
                *count -= 1;
                if *count == 0 {
                    readers.remove(&old.node);
                }
            }
            if readers.is_empty() {
                self.readers.remove(&what);
            }
        }
        Some(old)
    }
}

#[cfg(test)]
mod tests {
    use super::super::references::Kind;
    use super::*;

    #[test]
    fn those_who_refer_to_something_are_known_until_the_last_goes() {
        let map = |name: &str| Reference { kind: Kind::ConfigMap, name: name.to_owned() };
        let pod = |node: &str, maps: &[&str]| PodEntry {
            uid: String::new(),
            node: node.to_owned(),
            service_account: String::new(),
            references: maps.iter().map(|name| map(name)).collect(),
            version: 1,
        };
        let name = |name: &str| ("default".to_owned(), name.to_owned());
        let mut pods = Pods::default();
        pods.put(name("a"), pod("n1", &["x", "x", "y"]));
        pods.put(name("b"), pod("n1", &["x"]));
        pods.put(name("c"), pod("n2", &["x"]));
        let nodes_of = |pods: &Pods, what: &str| pods.nodes_of("default", &map(what)).into_iter().collect::<Vec<_>>();
        assert_eq!((nodes_of(&pods, "x"), nodes_of(&pods, "y")), (vec!["n1".into(), "n2".into()], vec!["n1".into()]));
        assert!(pods.nodes_of("other", &map("x")).is_empty());
        // It moves, and refers to something else.
        pods.put(name("c"), pod("n3", &["z"]));
        pods.remove(&name("a"));
        assert_eq!((nodes_of(&pods, "x"), nodes_of(&pods, "z")), (vec!["n1".into()], vec!["n3".into()]));
        pods.remove(&name("b"));
        pods.remove(&name("c"));
        assert!(pods.readers.is_empty() && pods.nodes.is_empty());
    }
}
