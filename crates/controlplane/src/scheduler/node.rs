//! A node with what is already on it.

use super::resources::{Amounts, host_ports, requests};
use crate::object::Object;
use crate::pods;

/// A node, its pods and what they use.
#[derive(Debug, Clone)]
pub struct NodeInfo {
    /// The node.
    pub node: Object,
    /// The pods on it that have not ended.
    pub pods: Vec<Object>,
    /// What they asked for.
    pub used: Amounts,
    /// What the node offers.
    pub allocatable: Amounts,
    /// Host ports taken.
    pub ports: Vec<(String, String, i64)>,
}

impl NodeInfo {
    /// An empty node.
    pub fn new(node: Object) -> Self {
        let allocatable = Amounts::of(node.at("/status/allocatable"));
        Self { node, pods: Vec::new(), used: Amounts::default(), allocatable, ports: Vec::new() }
    }

    /// Puts a pod on it.
    pub fn place(&mut self, pod: Object) {
        self.used.add(&requests(pod.at("/spec")));
        self.ports.extend(host_ports(pod.at("/spec")));
        self.pods.push(pod);
    }
}

/// All nodes with the pods that `where_is` puts on them, sorted by name.
pub fn snapshot<'a>(
    nodes: impl IntoIterator<Item = Object>,
    pods: impl IntoIterator<Item = Object>,
    where_is: impl Fn(&Object) -> Option<&'a str>,
) -> Vec<NodeInfo> {
    let mut infos: Vec<NodeInfo> = nodes.into_iter().map(NodeInfo::new).collect();
    infos.sort_by(|a, b| a.node.name().cmp(b.node.name()));
    for pod in pods {
        if pods::is_finished(&pod) {
            continue;
        }
        let name = match pod.text("/spec/nodeName") {
            "" => where_is(&pod).unwrap_or_default().to_owned(),
            name => name.to_owned(),
        };
        if let Ok(i) = infos.binary_search_by(|n| n.node.name().cmp(&name)) {
            infos[i].place(pod);
        }
    }
    infos
}
