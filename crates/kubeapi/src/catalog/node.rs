//! What is served only when the nodes can be reached: subresources that lead to kubelets, and `metrics.k8s.io`.

use super::{Column, Resource, Subresource};
use crate::node::metrics::GROUP;

/// Resource, subresource, kind and verbs, as Kubernetes 1.36 lists them.
const SUBRESOURCES: [(&str, &str, &str, &[&str]); 5] = [
    ("pods", "attach", "PodAttachOptions", &["create", "get"]),
    ("pods", "exec", "PodExecOptions", &["create", "get"]),
    ("pods", "log", "Pod", &["get"]),
    ("pods", "portforward", "PodPortForwardOptions", &["create", "get"]),
    ("nodes", "proxy", "NodeProxyOptions", &["create", "delete", "get", "patch", "update"]),
];

/// Adds the subresources that a resource has.
pub(super) fn add_subresources(resource: &mut Resource) {
    for (plural, name, kind, verbs) in SUBRESOURCES {
        if resource.group.is_empty() && resource.plural == plural {
            resource.subresources.push(Subresource {
                name: name.to_owned(),
                group: String::new(),
                version: String::new(),
                kind: kind.to_owned(),
                verbs: verbs.iter().map(|verb| (*verb).to_owned()).collect(),
            });
        }
    }
    resource.subresources.sort_by(|a, b| a.name.cmp(&b.name));
}

/// The resources of `metrics.k8s.io`.
pub(super) fn metrics() -> [Resource; 2] {
    let column = |name: &str, path: &str| Column {
        name: name.to_owned(),
        kind: "string".to_owned(),
        json_path: path.to_owned(),
        ..Column::default()
    };
    let resource = |plural: &str, kind: &str, namespaced: bool, more: Vec<Column>| {
        let name = Column {
            name: "Name".to_owned(),
            kind: "string".to_owned(),
            format: "name".to_owned(),
            json_path: ".metadata.name".to_owned(),
            ..Column::default()
        };
        Resource {
            group: GROUP.to_owned(),
            version: "v1beta1".to_owned(),
            plural: plural.to_owned(),
            singular: String::new(),
            kind: kind.to_owned(),
            namespaced,
            short_names: Vec::new(),
            categories: Vec::new(),
            verbs: vec!["get".to_owned(), "list".to_owned()],
            subresources: Vec::new(),
            columns: [vec![name], more].concat(),
            custom: None,
        }
    };
    let cells = [column("CPU", ".usage.cpu"), column("Memory", ".usage.memory")];
    let window = column("Window", ".window");
    [
        resource("nodes", "NodeMetrics", false, [cells.to_vec(), vec![window.clone()]].concat()),
        resource("pods", "PodMetrics", true, vec![window]),
    ]
}
