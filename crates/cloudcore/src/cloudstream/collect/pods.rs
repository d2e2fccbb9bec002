//! Which containers there are: a watch of its own on the pods that are selected.

use api::cloudcore::Collect;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::kubernetes::{Change, Kubernetes, Reflector};

/// Changes that wait.
const CHANGES: usize = 256;

/// What of a pod matters here.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Pod {
    pub(super) metadata: Metadata,
    #[serde(default)]
    pub(super) spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Debug, Deserialize)]
pub(super) struct Metadata {
    #[serde(default)]
    pub(super) uid: String,
    #[serde(default)]
    pub(super) namespace: String,
    #[serde(default)]
    pub(super) name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Spec {
    pub(super) node_name: String,
    containers: Vec<Container>,
    init_containers: Vec<Container>,
}

#[derive(Debug, Deserialize)]
struct Container {
    name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    container_statuses: Vec<ContainerStatus>,
    init_container_statuses: Vec<ContainerStatus>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ContainerStatus {
    name: String,
    #[serde(rename = "containerID")]
    id: Option<String>,
    restart_count: u32,
    state: State,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct State {
    terminated: Option<serde::de::IgnoredAny>,
}

/// What runs in a container, as far as its status tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Instance {
    pub(super) id: String,
    pub(super) restarts: u32,
    /// It has ended: its log grows no more.
    pub(super) ended: bool,
}

impl Pod {
    /// `None` when it is no pod, or one with names that Kubernetes does not allow.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let pod: Self = serde_json::from_slice(text).ok()?;
        let names = [&pod.metadata.namespace, &pod.metadata.name];
        let containers = pod.containers().map(|(name, _)| name).all(is_name);
        (names.into_iter().all(|name| is_name(name)) && !pod.metadata.uid.is_empty() && containers).then_some(pod)
    }

    /// Its containers; those that begin first come first. Without an instance nothing is known of it yet.
    pub(super) fn containers(&self) -> impl Iterator<Item = (&str, Option<Instance>)> {
        let statuses = || self.status.init_container_statuses.iter().chain(&self.status.container_statuses);
        self.spec.init_containers.iter().chain(&self.spec.containers).map(move |container| {
            let status = statuses().find(|status| status.name == container.name);
            let instance = status.map(|status| Instance {
                id: status.id.clone().unwrap_or_default(),
                restarts: status.restart_count,
                ended: status.state.terminated.is_some(),
            });
            (container.name.as_str(), instance)
        })
    }
}

/// As Kubernetes names objects: such a name is a safe part of paths.
fn is_name(text: &str) -> bool {
    let is_edge = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    !text.is_empty()
        && text.len() <= 253
        && text.bytes().all(|byte| is_edge(byte) || b"-.".contains(&byte))
        && text.bytes().next().is_some_and(is_edge)
        && text.bytes().next_back().is_some_and(is_edge)
}

/// Follows the pods on nodes that have the labels.
pub(super) fn follow(
    kubernetes: Kubernetes,
    settings: &Collect,
    tasks: &TaskTracker,
    stopping: &CancellationToken,
) -> mpsc::Receiver<Change> {
    let (changes, incoming) = mpsc::channel(CHANGES);
    let mut query = "fieldSelector=spec.nodeName!=".to_owned();
    if !settings.label_selector.is_empty() {
        query.push_str("&labelSelector=");
        query.extend(utf8_percent_encode(&settings.label_selector, NON_ALPHANUMERIC));
    }
    let reflector = Reflector { kubernetes, path: "/api/v1/pods".to_owned(), query };
    tasks.spawn(stopping.clone().run_until_cancelled_owned(reflector.run(changes, |change| change)));
    incoming
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_no_names_are_refused() {
        for (name, valid) in [("web-1", true), ("a.b", true), ("", false), ("..", false), ("a/b", false), ("A", false)]
        {
            let text = serde_json::json!({"metadata": {"uid": "u", "namespace": "n", "name": "p"}, "spec": {"containers": [{"name": name}]}});
            assert_eq!(Pod::parse(text.to_string().as_bytes()).is_some(), valid, "{name}");
        }
    }
}
