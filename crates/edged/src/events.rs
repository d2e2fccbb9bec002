//! Kubernetes Events of pods, of the node and of devices: recorded here, sent to the cloud through MetaManager.
//!
//! [`Recorder`] is the handle that everybody has; it never waits. [`EventSender`] is the one task behind it: it counts
//! repetitions of the same event into one object and holds back an object that emits too many (both as client-go does),
//! so that a crash loop costs neither the link nor the API server.

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use wire::{Content, operation};

use crate::meta::{MetaClient, MetaError};
use crate::settings::Settings;

/// `type` of an Event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    /// Information.
    Normal,
    /// Someone may have to act.
    Warning,
}

/// Events that wait to be sent; more are dropped, since a recorder must not hold up a pod.
const QUEUE: usize = 256;
/// Different events that are remembered to count their repetitions.
const REMEMBERED: usize = 512;
/// How long an event is counted into an existing object.
const REMEMBER_FOR: Duration = Duration::from_secs(600);
/// Events that one object may emit at once.
const BURST: f64 = 25.0;
/// One more event for each of these periods.
const REFILL: Duration = Duration::from_secs(300);
/// Longest message; the API server refuses longer ones.
const MAX_MESSAGE: usize = 1024;
/// Letters of the object's name in the event's: with the rest it stays below 253.
const MAX_NAME: usize = 230;
/// Who reports the events of edged.
const KUBELET: &str = "kubelet";
/// The API group and version of devices.
const DEVICES: &str = "devices.kubeedge.io/v1beta1";

/// Records events. Cheap to clone; never waits.
#[derive(Clone)]
pub struct Recorder {
    node_name: Arc<str>,
    /// Absent when events do not leave the node (`reportEvent: false`).
    queue: Option<mpsc::Sender<Occurrence>>,
}

/// Sends what [`Recorder`]s recorded.
pub struct EventSender {
    node_name: Arc<str>,
    component: &'static str,
    queue: Option<mpsc::Receiver<Occurrence>>,
    /// By the hash of what makes two occurrences the same event.
    seen: HashMap<u64, Seen>,
    hasher: RandomState,
    budgets: HashMap<String, Budget>,
}

/// Something happened once.
#[derive(Clone, Debug)]
struct Occurrence {
    object: ObjectReference,
    kind: EventType,
    reason: Cow<'static, str>,
    message: String,
    at: Timestamp,
}

/// What an event was before. The rest of it comes with each occurrence.
struct Seen {
    first: Timestamp,
    count: i32,
    at: Instant,
}

/// Token bucket of one object.
struct Budget {
    left: f64,
    at: Instant,
}

impl EventType {
    fn as_str(self) -> &'static str {
        match self {
            EventType::Normal => "Normal",
            EventType::Warning => "Warning",
        }
    }
}

impl Recorder {
    /// The recorder of edged and the task behind it, which sends only while [`EventSender::run`] runs.
    pub fn new(settings: &Settings) -> (Self, EventSender) {
        Self::of(KUBELET, &settings.node_name, settings.report_event)
    }

    /// The same for another component of the node; whether its events leave the node (`reportEvent`).
    pub fn of(component: &'static str, node_name: &str, report_event: bool) -> (Self, EventSender) {
        let node_name: Arc<str> = node_name.into();
        let (sender, receiver) = mpsc::channel(QUEUE);
        let (sender, receiver) = if report_event { (Some(sender), Some(receiver)) } else { (None, None) };
        let sending = EventSender {
            node_name: node_name.clone(),
            component,
            queue: receiver,
            seen: HashMap::new(),
            hasher: RandomState::new(),
            budgets: HashMap::new(),
        };
        (Self { node_name, queue: sender }, sending)
    }

    /// A recorder whose events only reach the log.
    pub fn silent(node_name: &str) -> Self {
        Self { node_name: node_name.into(), queue: None }
    }

    /// An event of a pod.
    pub fn pod(&self, pod: &Pod, kind: EventType, reason: impl Into<Cow<'static, str>>, message: impl Into<String>) {
        self.record(pod_reference(pod, None), kind, reason.into(), message.into());
    }

    /// An event of one of its containers (`involvedObject.fieldPath` is `spec.containers{name}`).
    pub fn container(
        &self,
        pod: &Pod,
        container: &str,
        kind: EventType,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        self.record(pod_reference(pod, Some(container)), kind, reason.into(), message.into());
    }

    /// An event of this node.
    pub fn node(&self, kind: EventType, reason: &'static str, message: impl Into<String>) {
        let name = self.node_name.to_string();
        // The kubelet puts the name where the UID belongs; `kubectl describe node` looks for that.
        let object = ObjectReference {
            kind: Some("Node".into()),
            uid: Some(name.clone()),
            name: Some(name),
            ..Default::default()
        };
        self.record(object, kind, reason.into(), message.into());
    }

    /// An event of a Device, by its names and its uid.
    pub fn device(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
        kind: EventType,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        let object = ObjectReference {
            api_version: Some(DEVICES.into()),
            kind: Some("Device".into()),
            namespace: Some(namespace.into()),
            name: Some(name.into()),
            uid: Some(uid.into()),
            ..Default::default()
        };
        self.record(object, kind, reason.into(), message.into());
    }

    fn record(&self, object: ObjectReference, kind: EventType, reason: Cow<'static, str>, mut message: String) {
        let about = object.name.as_deref().unwrap_or_default();
        tracing::debug!(object = about, event = kind.as_str(), %reason, message, "event");
        if message.len() > MAX_MESSAGE {
            let end = (0..=MAX_MESSAGE - 3).rev().find(|end| message.is_char_boundary(*end)).unwrap_or_default();
            message.truncate(end);
            message.push_str("...");
        }
        let told = reason.clone();
        let occurrence = Occurrence { object, kind, reason, message, at: Timestamp::now() };
        if let Some(queue) = &self.queue
            && queue.try_send(occurrence).is_err()
        {
            tracing::debug!(reason = %told, "event dropped, too many wait");
        }
    }
}

fn pod_reference(pod: &Pod, container: Option<&str>) -> ObjectReference {
    let field_path = container.map(|name| {
        let ephemeral = pod.spec.as_ref().and_then(|s| s.ephemeral_containers.as_deref()).unwrap_or_default();
        let list = if podlife::spec::init_containers(pod).iter().any(|c| c.name == name) {
            "initContainers"
        } else if ephemeral.iter().any(|c| c.name == name) {
            "ephemeralContainers"
        } else {
            "containers"
        };
        format!("spec.{list}{{{name}}}")
    });
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        resource_version: pod.metadata.resource_version.clone(),
        field_path,
    }
}

impl EventSender {
    /// Sends until cancelled. What was counted before is known still when it runs again.
    pub async fn run(&mut self, meta: &MetaClient, stop: &CancellationToken) {
        let sending = async {
            while let Some(occurrence) = self.next().await {
                if let Err(error) = self.send(meta, occurrence, Instant::now()).await {
                    tracing::debug!(error = &error as &dyn std::error::Error, "event not sent");
                }
            }
            std::future::pending().await
        };
        // Also while MetaManager has no room: it may wait for whoever waits for this.
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = sending => {}
        }
    }

    /// `None` when nothing will come.
    async fn next(&mut self) -> Option<Occurrence> {
        self.queue.as_mut()?.recv().await
    }

    async fn send(&mut self, meta: &MetaClient, occurrence: Occurrence, now: Instant) -> Result<(), MetaError> {
        let Some((operation, event, content)) = self.prepare(occurrence, now) else { return Ok(()) };
        let namespace = event.metadata.namespace.as_deref().unwrap_or("default");
        let name = event.metadata.name.as_deref().unwrap_or_default();
        meta.post(operation, &format!("{namespace}/{}/{name}", wire::kind::EVENT), content).await
    }

    /// The message for an occurrence; none when its object has used up its budget.
    fn prepare(&mut self, occurrence: Occurrence, now: Instant) -> Option<(&'static str, Event, Content)> {
        self.forget_old(now);
        let mut uid = occurrence.object.uid.clone().unwrap_or_default();
        if self.budgets.len() >= REMEMBERED - 1 && !self.budgets.contains_key(&uid) {
            // Of very many that emit too much the rest shares one budget.
            uid.clear();
        }
        let budget = self.budgets.entry(uid).or_insert(Budget { left: BURST, at: now });
        if !budget.take(now) {
            return None;
        }
        let Occurrence { object, reason, message, at, .. } = &occurrence;
        let key = self.hasher.hash_one((&object.uid, &object.field_path, reason, message));
        let seen = self.seen.entry(key).or_insert(Seen { first: *at, count: 0, at: now });
        (seen.at, seen.count) = (now, seen.count.saturating_add(1));
        let (first, count) = (seen.first, seen.count);
        let event = self.event(&occurrence, first, count);
        if count == 1 {
            let content = Content::json(&event).ok()?;
            return Some((operation::INSERT, event, content));
        }
        let patch = serde_json::json!({"count": count, "lastTimestamp": event.last_timestamp}).to_string();
        let content = Content::json(&serde_json::json!({"event": event, "patchData": patch})).ok()?;
        Some((operation::PATCH, event, content))
    }

    /// An event that occurred first at that time, and so many times until now.
    fn event(&self, occurrence: &Occurrence, first: Timestamp, count: i32) -> Event {
        let about: String = occurrence.object.name.iter().flat_map(|name| name.chars()).take(MAX_NAME).collect();
        let about = about.trim_end_matches(['-', '.']);
        let namespace = occurrence.object.namespace.clone().unwrap_or_else(|| "default".into());
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{about}.{:x}", first.as_nanosecond())),
                namespace: Some(namespace),
                ..Default::default()
            },
            involved_object: occurrence.object.clone(),
            reason: Some(occurrence.reason.clone().into_owned()),
            message: Some(occurrence.message.clone()),
            type_: Some(occurrence.kind.as_str().into()),
            first_timestamp: Some(Time(seconds(first))),
            last_timestamp: Some(Time(seconds(occurrence.at))),
            count: Some(count),
            source: Some(EventSource {
                component: Some(self.component.into()),
                host: Some(self.node_name.to_string()),
            }),
            reporting_component: Some(self.component.into()),
            reporting_instance: Some(self.node_name.to_string()),
            ..Default::default()
        }
    }

    /// Keeps both maps within [`REMEMBERED`] entries.
    fn forget_old(&mut self, now: Instant) {
        if self.seen.len() >= REMEMBERED {
            self.seen.retain(|_, seen| now.duration_since(seen.at) < REMEMBER_FOR);
        }
        if self.seen.len() >= REMEMBERED {
            self.seen.clear();
        }
        if self.budgets.len() >= REMEMBERED - 1 {
            self.budgets.retain(|_, budget| budget.now(now) < BURST);
        }
    }
}

impl Budget {
    fn now(&self, now: Instant) -> f64 {
        let refilled = now.duration_since(self.at).as_secs_f64() / REFILL.as_secs_f64();
        (self.left + refilled).min(BURST)
    }

    fn take(&mut self, now: Instant) -> bool {
        self.left = self.now(now);
        self.at = now;
        let enough = self.left >= 1.0;
        if enough {
            self.left -= 1.0;
        }
        enough
    }
}

/// Kubernetes times have no fractions.
fn seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sender() -> EventSender {
        Recorder::new(&Settings::new("n1")).1
    }

    fn occurrence(message: &str) -> Occurrence {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "u1"}, "spec": {"containers": [{"name": "c"}]},
        }))
        .unwrap();
        Occurrence {
            object: pod_reference(&pod, Some("c")),
            kind: EventType::Warning,
            reason: "BackOff".into(),
            message: message.into(),
            at: Timestamp::from_nanosecond(1_795_402_342_542_000_001).unwrap(),
        }
    }

    #[test]
    fn repetitions_become_one_event_with_a_count() {
        let mut sender = sender();
        let now = Instant::now();
        let (first, event, content) = sender.prepare(occurrence("again"), now).unwrap();
        assert_eq!(first, "insert");
        let json: serde_json::Value = content.parse().unwrap();
        assert_eq!(json["involvedObject"]["fieldPath"], "spec.containers{c}");
        assert_eq!((json["type"].as_str(), json["count"].as_i64()), (Some("Warning"), Some(1)));
        let (second, same, content) = sender.prepare(occurrence("again"), now).unwrap();
        assert_eq!((second, &same.metadata.name), ("patch", &event.metadata.name));
        let json: serde_json::Value = content.parse().unwrap();
        let patch: serde_json::Value = serde_json::from_str(json["patchData"].as_str().unwrap()).unwrap();
        assert_eq!(patch["count"], 2);
        assert_eq!(json["event"]["metadata"]["namespace"], "shop");
        assert_eq!(sender.prepare(occurrence("other"), now).unwrap().0, "insert");
    }

    #[test]
    fn an_object_that_emits_too_many_is_held_back() {
        let mut sender = sender();
        let start = Instant::now();
        let sent = (0..100).filter(|_| sender.prepare(occurrence("flood"), start).is_some()).count();
        assert_eq!(sent, 25);
        assert!(sender.prepare(occurrence("flood"), start + REFILL).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_while_metamanager_has_no_room() {
        let (recorder, mut sender) = Recorder::new(&Settings::new("n1"));
        let modules = [(wire::module::META_MANAGER, wire::group::META)];
        let (context, _inboxes) = beehive::Context::new(&modules, CancellationToken::new());
        let (meta, stop) = (MetaClient::new(context), CancellationToken::new());
        // More than its inbox takes, of objects with a budget each.
        for number in 0..beehive::INBOX + 2 {
            recorder.device("shop", "d", &number.to_string(), EventType::Warning, "Test", "x");
        }
        // Time passes when all there is to do waits.
        let stopping = async {
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            stop.cancel();
        };
        let ended = async { tokio::join!(sender.run(&meta, &stop), stopping) };
        tokio::time::timeout(std::time::Duration::from_secs(60), ended).await.expect("it ends");
    }

    #[test]
    fn an_object_with_a_long_name_has_events() {
        let mut one = occurrence("x");
        one.object.name = Some(format!("{}-{}", "a".repeat(229), "b".repeat(23)));
        let (_, event, _) = sender().prepare(one, Instant::now()).unwrap();
        let name = event.metadata.name.unwrap_or_default();
        assert!(name.starts_with("aaa") && name.contains("a.18") && name.len() <= 253, "{name}");
    }

    #[test]
    fn both_maps_stay_bounded() {
        let mut sender = sender();
        let now = Instant::now();
        for number in 0..3 * REMEMBERED {
            let mut one = occurrence("x");
            one.object.uid = Some(number.to_string());
            sender.prepare(one, now);
        }
        assert!(sender.seen.len() <= REMEMBERED && sender.budgets.len() <= REMEMBERED);
    }

    #[test]
    fn very_many_objects_that_emit_too_much_are_held_back_together() {
        let mut sender = sender();
        let start = Instant::now();
        let mut emit = |number: usize, now| {
            let mut one = occurrence("x");
            one.object.uid = Some(number.to_string());
            sender.prepare(one, now).is_some()
        };
        let sent = (0..3 * REMEMBERED).filter(|number| emit(*number, start)).count();
        assert!(sent < REMEMBERED + 25, "{sent}");
        // Those that have been quiet since make room.
        assert!(emit(3 * REMEMBERED, start + REFILL * 30) && emit(3 * REMEMBERED + 1, start + REFILL * 30));
    }
}
