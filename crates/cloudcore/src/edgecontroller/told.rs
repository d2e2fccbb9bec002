//! What a node could not take is told where the user looks: as an Event, which `kubectl describe` shows.

use std::hash::{DefaultHasher, Hash, Hasher};

use jiff::Timestamp;
use serde_json::{Value, json};
use tracing::warn;
use wire::{EdgeResource, kind};

use super::upstream::Upstream;
use crate::kubernetes::KubernetesError;
use crate::kubernetes::kinds::Kind;

/// The reason of such events.
const REASON: &str = "NotStored";
/// Who reports them.
const COMPONENT: &str = "cloudcore";
/// Letters of the object's name in the event's: with the rest it stays below 253.
const NAME: usize = 230;

/// A message that a node could not take.
#[derive(Debug)]
pub struct NotTaken {
    /// The uid of the object in it.
    pub uid: String,
    /// The object's path.
    pub resource: String,
    /// What the node says.
    pub why: String,
}

impl Upstream {
    /// Tells it on the pod, device or model; of other objects on the Node, for nobody describes a Secret.
    pub async fn tell(&self, node: &str, not_taken: &NotTaken) {
        let Ok(resource) = EdgeResource::parse(&not_taken.resource) else { return };
        let event = event(node, &resource, not_taken, Timestamp::now());
        if let Err(error) = self.count(&event).await {
            warn!(node, %error, "an event could not be written");
        }
    }

    /// Tells something about a node's connection on its Node.
    pub async fn tell_on_node(&self, node: &str, kind: &str, reason: &str, text: &str) {
        let mut hasher = DefaultHasher::new();
        (node, reason).hash(&mut hasher);
        let told = Told { namespace: "default", about: of_node(node), key: hasher.finish(), kind, reason, text };
        if let Err(error) = self.count(&told.event(node, Timestamp::now())).await {
            warn!(node, %error, "an event could not be written");
        }
    }

    /// Writes the event, or counts it once more.
    async fn count(&self, event: &Value) -> Result<(), KubernetesError> {
        let text = |field: &str| event["metadata"][field].as_str().unwrap_or_default();
        let events = format!("/api/v1/namespaces/{}/events", text("namespace"));
        match self.kubernetes.create(&events, event.to_string()).await {
            Err(error) if error.code() == 409 => {}
            result => return result.map(drop),
        }
        let path = format!("{events}/{}", text("name"));
        let before = self.kubernetes.get_value(&path).await?;
        let count = before["count"].as_u64().unwrap_or(1).saturating_add(1);
        let patch = json!({"count": count, "lastTimestamp": event["lastTimestamp"], "message": event["message"]});
        self.kubernetes.patch(&path, "merge-patch", patch.to_string()).await.map(drop)
    }
}

/// The same failure of the same object has the same name.
fn event(node: &str, resource: &EdgeResource, not_taken: &NotTaken, now: Timestamp) -> Value {
    let told_of_itself = [kind::POD, kind::DEVICE, kind::DEVICE_MODEL];
    let own = Kind::of_segment(&resource.kind).filter(|kind| told_of_itself.contains(&kind.segment));
    let (namespace, about) = match own {
        Some(Kind { name: kind, api_version, .. }) => {
            let (namespace, name) = (resource.namespace.as_str(), resource.name());
            let uid = &not_taken.uid;
            (
                namespace,
                json!({"kind": kind, "apiVersion": api_version, "namespace": namespace, "name": name, "uid": uid}),
            )
        }
        None => ("default", of_node(node)),
    };
    let mut hasher = DefaultHasher::new();
    (node, &not_taken.uid, &not_taken.why).hash(&mut hasher);
    let text = format!("node {node}: {}", not_taken.why);
    Told { namespace, about, key: hasher.finish(), kind: "Warning", reason: REASON, text: &text }.event(node, now)
}

/// kubectl looks for events of a node by its name in place of the uid.
fn of_node(node: &str) -> Value {
    json!({"kind": "Node", "apiVersion": "v1", "name": node, "uid": node})
}

/// What an event says.
struct Told<'a> {
    namespace: &'a str,
    about: Value,
    /// Events with the same key are one that is counted.
    key: u64,
    kind: &'a str,
    reason: &'a str,
    text: &'a str,
}

impl Told<'_> {
    fn event(&self, node: &str, now: Timestamp) -> Value {
        let name: String = self.about["name"].as_str().unwrap_or_default().chars().take(NAME).collect();
        let now = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"namespace": self.namespace, "name": format!("{name}.{:016x}", self.key)},
            "involvedObject": self.about,
            "type": self.kind,
            "reason": self.reason,
            "message": self.text,
            "source": {"component": COMPONENT, "host": node},
            "reportingComponent": COMPONENT,
            "reportingInstance": node,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_pod_on_the_pod_and_of_the_rest_on_the_node() {
        let told = |path: &str, why: &str| {
            let not_taken = NotTaken { uid: "u".to_owned(), resource: path.to_owned(), why: why.to_owned() };
            event("n1", &EdgeResource::parse(path).expect("path"), &not_taken, Timestamp::UNIX_EPOCH)
        };
        let pod = told("web/pod/a", "the disk is full");
        assert_eq!(
            (&pod["metadata"]["namespace"], &pod["involvedObject"]["kind"], &pod["involvedObject"]["uid"]),
            (&json!("web"), &json!("Pod"), &json!("u"))
        );
        assert_eq!((&pod["type"], &pod["message"]), (&json!("Warning"), &json!("node n1: the disk is full")));
        let device = told("web/device/d", "the disk is full");
        assert_eq!(
            (&device["involvedObject"]["kind"], &device["involvedObject"]["apiVersion"]),
            (&json!("Device"), &json!("devices.kubeedge.io/v1beta1"))
        );
        let secret = told("web/secret/s", "web/secret/s could not be stored");
        assert_eq!(
            (&secret["metadata"]["namespace"], &secret["involvedObject"]["name"], &secret["involvedObject"]["uid"]),
            (&json!("default"), &json!("n1"), &json!("n1"))
        );
        let name = |event: &Value| event["metadata"]["name"].clone();
        assert_eq!(name(&pod), name(&told("web/pod/a", "the disk is full")));
        assert_ne!(name(&pod), name(&told("web/pod/a", "the disk is broken")));
        assert!(name(&told(&format!("web/pod/{}", "a".repeat(253)), "x")).as_str().expect("text").len() <= 253);
    }
}
