//! What is known of the cluster: which pod is on which node and what it refers to. Written by `downstream` alone, read by the
//! authorization of requests.

use std::collections::{BTreeSet, HashMap};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::sync::watch;

use super::references::Reference;
use super::versions::Versions;

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
}

/// The pods of the cluster that are on nodes.
#[derive(Default)]
pub struct Pods {
    pods: HashMap<NamespacedName, PodEntry>,
    nodes: HashMap<String, BTreeSet<NamespacedName>>,
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

    pub(super) fn are_listed(&self) -> bool {
        *self.listed.borrow()
    }

    pub(super) fn set_listed(&self) {
        self.listed.send_replace(true);
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
        let pods = self
            .pods
            .iter()
            .filter(|((pod_namespace, _), pod)| pod_namespace == namespace && pod.references.contains(reference));
        pods.map(|(_, pod)| pod.node.clone()).collect()
    }

    /// All names.
    pub(super) fn names(&self) -> Vec<NamespacedName> {
        self.pods.keys().cloned().collect()
    }

    pub(super) fn put(&mut self, name: NamespacedName, pod: PodEntry) -> Option<PodEntry> {
        self.nodes.entry(pod.node.clone()).or_default().insert(name.clone());
        let old = self.pods.insert(name.clone(), pod.clone());
        if let Some(old) = old.as_ref().filter(|old| old.node != pod.node) {
            self.forget(&old.node.clone(), &name);
        }
        old
    }

    pub(super) fn clear(&mut self) {
        self.pods.clear();
        self.nodes.clear();
    }

    pub(super) fn remove(&mut self, name: &NamespacedName) -> Option<PodEntry> {
        let old = self.pods.remove(name)?;
        self.forget(&old.node, name);
        Some(old)
    }

    fn forget(&mut self, node: &str, name: &NamespacedName) {
        if let Some(names) = self.nodes.get_mut(node) {
            names.remove(name);
            if names.is_empty() {
                self.nodes.remove(node);
            }
        }
    }
}
