//! Taking pods over: admission against those that are here, pods that wait for it, and upgrades that are held.
//!
//! The desk never waits: a pod whose fate hangs on something slow (labels of the node, pods that have to end for it, a
//! static namesake) is put aside and looked at again when that is there.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use podlife::{
    admission::{self, NodeView, Outcome, Rejection},
    spec,
    stage::End,
    status::EndVerdict,
};
use tokio_util::sync::CancellationToken;
use wire::{Content, kind, operation};

use super::{
    desk::{DeskTask, Entry, Slow, api_report},
    evict::Dying,
    mailbox::Mailbox,
    source::PodVersion,
    worker::PodWorker,
};
use crate::{events::EventType, meta::MetaError, node, settings::Settings, static_pods::MirrorNews};

/// What the victims' event and status say.
const PREEMPTED: &str = "Preempted in order to admit critical pod";

/// A pod that is put aside.
pub(super) struct Waiting {
    version: Box<PodVersion>,
    reason: Reason,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Reason {
    /// The labels and taints of the node are being read again.
    Node,
    /// Other pods are being ended for it.
    Room,
    /// A static pod of the same name has to end first.
    Turn,
}

/// Labels and taints of the node, as far as known.
pub(super) struct NodeFacts(Option<(BTreeMap<String, String>, Vec<Taint>)>);

impl NodeFacts {
    /// What the agent itself gives its node.
    pub fn own(settings: &Settings) -> Self {
        Self(Some((node::status::labels(settings).into_iter().collect(), Vec::new())))
    }

    /// What the store has; what cannot be read refuses nobody.
    pub fn read(settings: &Settings, answer: Result<Option<Node>, MetaError>) -> Self {
        match answer {
            Ok(Some(node)) => Self(Some((
                node.metadata.labels.unwrap_or_default(),
                node.spec.and_then(|s| s.taints).unwrap_or_default(),
            ))),
            Ok(None) => Self::own(settings),
            Err(error) => {
                tracing::debug!(error = %error, "the node's labels cannot be read; selectors are taken as met");
                Self(None)
            }
        }
    }
}

/// An update of a pod that waits until somebody on the node releases it.
pub(super) struct Held {
    version: Box<PodVersion>,
    /// The API has the condition.
    told: bool,
}

impl DeskTask {
    /// Takes a pod that is not here yet.
    pub(super) async fn take_new(&mut self, mut version: Box<PodVersion>, stopping: &CancellationToken) {
        self.take_recorded(&mut version);
        if let Some(waiting) = self.waiting.iter_mut().find(|w| w.version.identity.uid == version.identity.uid) {
            waiting.version = version;
            return;
        }
        self.decide(version, None, stopping).await;
    }

    /// Forgets what waits under this UID.
    pub(super) fn forget_waiting(&mut self, uid: &str) {
        self.waiting.retain(|waiting| waiting.version.identity.uid != uid);
        self.held.retain(|_, held| held.version.identity.uid != uid);
    }

    /// Forgets what waits and is not wanted any more by the API.
    pub(super) fn keep_waiting(&mut self, keep: impl Fn(&String) -> bool) {
        let from_here = |waiting: &Waiting| spec::is_static(&waiting.version.pod);
        self.waiting.retain(|waiting| from_here(waiting) || keep(&waiting.version.identity.uid));
        self.held.retain(|_, held| keep(&held.version.identity.uid));
    }

    /// UIDs of the static pods that wait.
    pub(super) fn waiting_statics(&self) -> Vec<String> {
        let statics = self.waiting.iter().filter(|waiting| spec::is_static(&waiting.version.pod));
        statics.map(|waiting| waiting.version.identity.uid.clone()).collect()
    }

    /// Whether a pod waits under this UID.
    pub(super) fn is_waiting(&self, uid: &str) -> bool {
        let mut held = self.held.values().map(|held| &held.version);
        self.waiting.iter().any(|waiting| waiting.version.identity.uid == uid) || held.any(|v| v.identity.uid == uid)
    }

    /// Looks again at a pod that was put aside.
    pub(super) async fn decide_again(&mut self, uid: &str, stopping: &CancellationToken) {
        let Some(index) = self.waiting.iter().position(|waiting| waiting.version.identity.uid == uid) else { return };
        let waiting = self.waiting.remove(index);
        self.decide(waiting.version, Some(waiting.reason), stopping).await;
    }

    /// A worker has ended: the next static pod of its name may have its turn.
    pub(super) async fn next_in_turn(&mut self, stopping: &CancellationToken) {
        let free = self.waiting.iter().find(|w| w.reason == Reason::Turn && !self.has_namesake(&w.version));
        if let Some(uid) = free.map(|waiting| waiting.version.identity.uid.clone()) {
            self.decide_again(&uid, stopping).await;
        }
    }

    /// Takes the answer about the node.
    pub(super) fn know_node(&mut self, answer: Result<Option<Node>, MetaError>) {
        self.node = NodeFacts::read(&self.tools.settings, answer);
    }

    async fn decide(&mut self, version: Box<PodVersion>, tried: Option<Reason>, stopping: &CancellationToken) {
        if spec::is_deleted(&version.pod) || spec::is_terminal_phase(version.api.phase.as_deref()) {
            return self.start(version, None, stopping).await;
        }
        if spec::is_static(&version.pod) && self.has_namesake(&version) {
            tracing::info!(pod = version.identity.name, "a static pod waits until the one before it has ended");
            self.waiting.push(Waiting { version, reason: Reason::Turn });
            return;
        }
        match self.admission(&version) {
            Outcome::Admit => self.start(version, None, stopping).await,
            Outcome::Preempt(victims) if tried != Some(Reason::Room) => self.make_room(version, &victims),
            Outcome::Preempt(_) => self.start(version, None, stopping).await,
            Outcome::Reject(rejection) if rejection.is_of_node() && tried.is_none() => self.ask_node(version),
            Outcome::Reject(rejection) => self.start(version, Some(rejection), stopping).await,
        }
    }

    /// The pods that take room. One whose containers have stopped needs none; one that only the runtime knows has no spec.
    pub(super) fn admitted(&self) -> impl Iterator<Item = &Entry> {
        self.pods.values().filter(|entry| {
            let planned = entry.pod.spec.as_ref().is_some_and(|s| s.node_name.is_some());
            planned && !entry.refused && !entry.ended && !entry.mailbox.is_stopped()
        })
    }

    fn admission(&self, version: &PodVersion) -> Outcome {
        let others: Vec<&Pod> = self.admitted().map(|entry| &*entry.pod).collect();
        let facts = self.node.0.as_ref();
        let view = NodeView {
            name: &self.tools.settings.node_name,
            labels: facts.map(|(labels, _)| labels),
            taints: facts.map_or(&[], |(_, taints)| taints),
            allocatable: self.tools.runtime.allocatable(),
            pressure: *self.tools.pressure.borrow(),
            allowed_sysctls: &self.tools.settings.allowed_unsafe_sysctls,
            apparmor: crate::runtime::has_apparmor(),
        };
        let pending = version.api.phase.as_deref().is_none_or(|phase| phase == "Pending");
        admission::admit(&version.pod, &others, &view, pending)
    }

    /// Starts the worker of a pod; one that is refused begins with its end.
    async fn start(&mut self, version: Box<PodVersion>, refused: Option<Rejection>, stopping: &CancellationToken) {
        let mailbox = Arc::new(Mailbox::default());
        self.reporter.send(api_report(&version, &mailbox)).await;
        let (identity, pod) = (version.identity.clone(), Arc::clone(&version.pod));
        let ended = spec::is_terminal_phase(version.api.phase.as_deref());
        tracing::info!(pod = identity.name, namespace = identity.namespace, uid = identity.uid, "pod taken over");
        if spec::is_static(&pod) {
            self.mirrors.tell(MirrorNews::Runs(Arc::clone(&pod))).await;
        }
        if let Some(rejection) = &refused {
            tracing::warn!(pod = identity.name, reason = rejection.reason, message = rejection.message, "pod rejected");
            self.tools.recorder.pod(&pod, EventType::Warning, rejection.reason.clone(), rejection.message.clone());
            let verdict = EndVerdict::rejected(rejection.reason.clone(), &rejection.message);
            mailbox.end(End::Killed { verdict, grace: None });
        }
        let worker = PodWorker::new(*version, Arc::clone(&mailbox), self.reporter.clone(), self.tools.clone());
        let refused = refused.is_some();
        let entry = Entry { identity, pod, mailbox, removed: false, successor: None, refused, ended };
        self.spawn(entry, worker, stopping);
    }

    fn has_namesake(&self, version: &PodVersion) -> bool {
        let identity = &version.identity;
        let same = |other: &podlife::observed::PodIdentity| {
            other.name == identity.name && other.namespace == identity.namespace && other.uid != identity.uid
        };
        self.pods.values().any(|entry| spec::is_static(&entry.pod) && same(&entry.identity))
    }

    fn ask_node(&mut self, version: Box<PodVersion>) {
        let (meta, name) = (self.tools.meta.clone(), self.tools.settings.node_name.clone());
        let uid = version.identity.uid.clone();
        self.waiting.push(Waiting { version, reason: Reason::Node });
        self.slow.spawn(async move {
            Slow::Node { uid, node: Box::new(meta.get(node::NO_NAMESPACE, kind::NODE, &name).await) }
        });
    }

    /// Ends other pods for a critical one, and looks at it again when they have stopped.
    fn make_room(&mut self, version: Box<PodVersion>, victims: &[String]) {
        let mut dying = Vec::with_capacity(victims.len());
        for entry in victims.iter().filter_map(|uid| self.pods.get(uid)) {
            tracing::warn!(pod = entry.identity.name, for_pod = version.identity.name, "pod preempted");
            self.tools.recorder.pod(&entry.pod, EventType::Warning, "Preempting", PREEMPTED);
            let condition = "Pod was preempted by Kubelet to accommodate a critical pod.";
            let verdict = EndVerdict::disruption("Preempting", PREEMPTED, condition);
            dying.push(Dying::begin(&entry.pod, &entry.mailbox, verdict, None));
        }
        let (uid, recorder) = (version.identity.uid.clone(), self.tools.recorder.clone());
        self.waiting.push(Waiting { version, reason: Reason::Room });
        self.slow.spawn(async move {
            join_all(dying.into_iter().map(|dying| dying.stopped(&recorder))).await;
            Slow::Room { uid }
        });
    }

    /// Keeps an update back, and tells the API that it is.
    pub(super) fn hold(&mut self, version: Box<PodVersion>) {
        let key = (version.identity.namespace.clone(), version.identity.name.clone());
        let told = version.api.conditions.iter().flatten().any(|c| c.type_ == HELD && c.status == "True");
        tracing::info!(namespace = key.0, pod = key.1, "an upgrade of the pod is held until it is released");
        self.held.insert(key, Held { version, told });
        self.tell_held();
    }

    /// Delivers what was held of a pod, or of all pods.
    pub(super) async fn release_held(&mut self, pod: Option<(String, String)>, stopping: &CancellationToken) {
        let keys = pod.map_or_else(|| self.held.keys().cloned().collect(), |key| vec![key]);
        for key in keys {
            if let Some(held) = self.held.remove(&key) {
                tracing::info!(namespace = key.0, pod = key.1, "the held upgrade is released");
                self.upsert(held.version, stopping).await;
            }
        }
    }

    /// Sends the condition for held pods of which the API does not know it yet.
    pub(super) fn tell_held(&mut self) {
        for (key, held) in self.held.iter_mut().filter(|(_, held)| !held.told) {
            held.told = true;
            let (key, meta) = (key.clone(), self.tools.meta.clone());
            let patch = held_patch(&held.version.identity.uid, Timestamp::now());
            self.slow.spawn(async move {
                let resource = format!("{}/{}/{}", key.0, kind::POD_PATCH, key.1);
                let told = meta.write(operation::PATCH, &resource, Content::text(&patch)).await.is_ok();
                Slow::Held { key, told }
            });
        }
    }

    /// The condition was told, or could not be.
    pub(super) fn held_told(&mut self, key: &(String, String), told: bool) {
        if let Some(held) = self.held.get_mut(key) {
            held.told = told;
        }
    }
}

const HELD: &str = "HeldUpgrade";

fn held_patch(uid: &str, now: Timestamp) -> String {
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    serde_json::json!({"metadata": {"uid": uid}, "status": {"conditions": [{
        "type": HELD,
        "status": "True",
        "reason": "HoldUpgradeEnabled",
        "message": "Upgrade is currently held due to edge-hold-upgrade annotation",
        "lastTransitionTime": now.to_string(),
    }]}})
    .to_string()
}
