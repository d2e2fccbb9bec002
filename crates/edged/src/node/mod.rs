//! The Node object of this machine: registration, status, lease. All requests go through MetaManager; without the cloud they
//! fail and are repeated, and nothing else of the agent waits for them.
//!
//! [`NodeAgent::run`] is the one task. It registers as soon as the cloud can be reached, with the status of that moment in
//! the same request, so that the node is Ready with its first message.

pub mod facts;
mod lease;
pub(crate) mod oom;
pub mod status;
pub(crate) mod tunables;

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerImage, Node, NodeStatus};
use podlife::eviction::Pressure;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use wire::{Content, kind, operation};

use crate::events::{EventType, Recorder};
use crate::meta::{MetaClient, MetaError};
use crate::runtime::Runtime;
use crate::settings::Settings;
use facts::Machine;

/// Namespace segment of things that have none.
pub const NO_NAMESPACE: &str = "null";
/// First pause between attempts to register; each is half as long again as the one before.
const RETRY_FIRST: Duration = Duration::from_millis(50);
/// Longest pause.
const RETRY_LAST: Duration = Duration::from_secs(7);
/// How often the runtime is looked at while the node is not ready, so that it is reported at once when it is.
const NOT_READY_POLL: Duration = Duration::from_millis(200);
/// For how long after the start, or after a change, that is done.
const NOT_READY_SPELL: Duration = Duration::from_secs(120);

/// Keeps the Node object true.
pub struct NodeAgent {
    settings: Arc<Settings>,
    meta: MetaClient,
    runtime: Arc<Runtime>,
    recorder: Recorder,
    /// The UID of the registered node, for the lease.
    uid: watch::Sender<Option<String>>,
    /// Changes whenever the cloud is back.
    online: watch::Sender<()>,
    /// What runs short.
    pressure: watch::Receiver<Pressure>,
    /// The status that the API has, as far as known here.
    reported: Option<Reported>,
    /// The next report is sent as a whole, changed or not.
    whole: bool,
    /// Version of the stored node that was looked at last.
    seen: Option<String>,
    /// Labels were compared with those of the API once.
    labels_checked: bool,
}

/// Tells a [`NodeAgent`] that the cloud is back.
#[derive(Clone)]
pub struct NodeOnline(watch::Sender<()>);

impl NodeOnline {
    /// The connection to the cloud stands.
    pub fn tell(&self) {
        self.0.send_replace(());
    }
}

struct Reported {
    status: NodeStatus,
    at: Instant,
}

impl NodeAgent {
    /// An agent for the node of these settings.
    pub fn new(
        settings: Arc<Settings>,
        meta: MetaClient,
        runtime: Arc<Runtime>,
        recorder: Recorder,
        pressure: watch::Receiver<Pressure>,
    ) -> Self {
        Self {
            pressure,
            settings,
            meta,
            runtime,
            recorder,
            uid: watch::Sender::new(None),
            online: watch::Sender::new(()),
            reported: None,
            whole: true,
            seen: None,
            labels_checked: false,
        }
    }

    /// Tells the agent, also while it runs, that the cloud can be reached again: what waits is sent at once, and the status
    /// as a whole, since the cloud may have called the node Unknown meanwhile.
    pub fn online(&self) -> NodeOnline {
        NodeOnline(self.online.clone())
    }

    /// Registers, reports and renews until cancelled.
    pub async fn run(mut self, stop: CancellationToken) {
        let (settings, meta, uid) = (self.settings.clone(), self.meta.clone(), self.uid.subscribe());
        let online = self.online.subscribe();
        let work = async { tokio::join!(lease::keep(&settings, &meta, uid, online), self.report()) };
        tokio::select! {
            _ = work => {}
            () = stop.cancelled() => {}
        }
    }

    async fn report(&mut self) {
        self.recorder.node(EventType::Normal, "Starting", "Starting kubelet.");
        let machine = Machine::read(&self.settings.root_dir).reserving(&self.settings);
        let mut pressure = self.pressure.clone();
        let mut devices = self.runtime.devices().changes();
        let mut online = self.online.subscribe();
        if self.settings.register_node {
            self.register(&machine).await;
            // The connection that registration waited for is no news any more.
            online.borrow_and_update();
        }
        let mut unready_since = Instant::now();
        loop {
            let status = self.status(&machine).await;
            let ready = status::is_ready(&status);
            self.compare_with_store(ready).await;
            if ready {
                unready_since = Instant::now();
            }
            match self.report_status(status).await {
                Ok(()) => {}
                Err(error) if error.is_not_found() && self.settings.register_node => {
                    tracing::info!(node = self.settings.node_name, "the node is gone from the API and registers again");
                    self.register(&machine).await;
                    online.borrow_and_update();
                }
                Err(error) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "node status not reported");
                }
            }
            let often = !ready && unready_since.elapsed() < NOT_READY_SPELL;
            let pause = if often { NOT_READY_POLL } else { self.settings.node_status_update_frequency };
            let pause = pause.min(self.settings.node_status_update_frequency);
            tokio::select! {
                online = pause_unless_online(pause, &mut online) => self.whole |= online,
                // The cloud must hear of it before it sends the next pod.
                Ok(()) = pressure.changed() => {}
                // Pods that ask for devices wait for it.
                Ok(()) = devices.changed() => {}
            }
        }
    }

    async fn status(&self, machine: &Machine) -> NodeStatus {
        let (readiness, runtime_version, images) =
            tokio::join!(self.runtime.readiness(), self.runtime.version(), self.images());
        let input = status::StatusInput {
            machine,
            addresses: facts::addresses(&self.settings),
            pressure: *self.pressure.borrow(),
            readiness: &readiness,
            devices: self.runtime.devices().supply(),
            images,
            runtime_version,
            before: self.reported.as_ref().map(|reported| &reported.status),
            now: Timestamp::now(),
        };
        status::status(&self.settings, &input)
    }

    /// The largest images, as many as the settings want; mostly none.
    async fn images(&self) -> Vec<ContainerImage> {
        /// Names of one image (Kubernetes).
        const MAX_NAMES: usize = 5;
        let max = self.settings.node_status_max_images;
        if max == 0 {
            return Vec::new();
        }
        let mut images = self.runtime.cri().list_images().await.unwrap_or_default();
        images.sort_by_key(|image| std::cmp::Reverse(image.size));
        images.truncate(usize::try_from(max).unwrap_or(usize::MAX));
        let reported = images.into_iter().map(|image| ContainerImage {
            names: Some(image.repo_digests.into_iter().chain(image.repo_tags).take(MAX_NAMES).collect()),
            size_bytes: i64::try_from(image.size).ok(),
        });
        reported.collect()
    }

    /// Creates the node, or finds that it is there; returns when either has succeeded.
    async fn register(&mut self, machine: &Machine) {
        let mut pause = RETRY_FIRST;
        let mut online = self.online.subscribe();
        self.reported = None;
        loop {
            match self.try_register(machine).await {
                Ok(()) => return,
                Err(error) if error.is_final() => {
                    tracing::error!(
                        node = self.settings.node_name,
                        error = &error as &dyn std::error::Error,
                        "node not registered"
                    );
                    pause = RETRY_LAST;
                }
                Err(error) => tracing::debug!(error = &error as &dyn std::error::Error, "node not registered yet"),
            }
            if pause_unless_online(pause, &mut online).await {
                pause = RETRY_FIRST;
            } else {
                pause = pause.mul_f64(1.5).min(RETRY_LAST);
            }
        }
    }

    async fn try_register(&mut self, machine: &Machine) -> Result<(), MetaError> {
        let status = self.status(machine).await;
        let name = &self.settings.node_name;
        let resource = format!("{NO_NAMESPACE}/{}/{name}", kind::NODE);
        let node = status::node(&self.settings, status.clone());
        let content =
            Content::json(&node).map_err(|source| MetaError::Encode { resource: resource.clone(), source })?;
        match self.meta.write(operation::INSERT, &resource, content).await {
            Ok(answer) => {
                let made: Option<Node> = answer.and_then(|answer| answer.parse().ok());
                tracing::info!(node = name, "node registered");
                self.labels_checked = true;
                self.know(made.as_ref(), status);
                Ok(())
            }
            // It exists. The status of this moment is patched onto it.
            Err(MetaError::Refused(refusal)) if refusal.reason == "AlreadyExists" => {
                tracing::info!(node = name, "node is registered already");
                self.whole = true;
                let stored = self.meta.get::<Node>(NO_NAMESPACE, kind::NODE, name).await.ok().flatten();
                if let Some(before) = stored.and_then(|node| node.status) {
                    self.tell_reboot(&before, machine);
                    // Conditions that have not changed keep their times.
                    self.reported = Some(Reported { status: before, at: Instant::now() });
                }
                let status = self.status(machine).await;
                self.report_status(status).await
            }
            Err(error) => Err(error),
        }
    }

    fn tell_reboot(&self, before: &NodeStatus, machine: &Machine) {
        let boot_id = before.node_info.as_ref().map(|info| info.boot_id.as_str()).unwrap_or_default();
        if !boot_id.is_empty() && !machine.boot_id.is_empty() && boot_id != machine.boot_id {
            let text = format!("Node {} has been rebooted, boot id: {}", self.settings.node_name, machine.boot_id);
            self.recorder.node(EventType::Warning, "Rebooted", text);
        }
    }

    /// Sends what has changed; an unchanged status only once in a while.
    async fn report_status(&mut self, status: NodeStatus) -> Result<(), MetaError> {
        let old = self.reported.as_ref();
        let due = self.whole
            || old.is_none_or(|old| {
                status::differs(&old.status, &status) || old.at.elapsed() >= self.settings.node_status_report_frequency
            });
        if !due {
            return Ok(());
        }
        let was_ready = old.map(|old| status::is_ready(&old.status));
        let patch = status::patch(old.filter(|_| !self.whole).map(|old| &old.status), &status);
        let answer = self.meta.patch(NO_NAMESPACE, kind::NODE_PATCH, &self.settings.node_name, &patch).await?;
        let node: Option<Node> = answer.and_then(|answer| answer.parse().ok());
        let ready = status::is_ready(&status);
        if was_ready.is_some_and(|was| was != ready) {
            let (reason, text) = if ready { ("NodeReady", "NodeReady") } else { ("NodeNotReady", "NodeNotReady") };
            let text = format!("Node {} status is now: {text}", self.settings.node_name);
            self.recorder.node(EventType::Normal, reason, text);
        }
        self.know(node.as_ref(), status);
        if let Some(node) = node.filter(|_| !self.labels_checked) {
            self.check_labels(node).await;
        }
        Ok(())
    }

    /// While the node was cut off the cloud may have called it Unknown: its version of the node is in the store by then. If
    /// that says other than what was reported, it is what the next report starts from.
    async fn compare_with_store(&mut self, ready: bool) {
        let stored = self.meta.get::<Node>(NO_NAMESPACE, kind::NODE, &self.settings.node_name).await;
        let Ok(Some(node)) = stored else { return };
        if node.metadata.resource_version.is_none() || node.metadata.resource_version == self.seen {
            return;
        }
        self.seen.clone_from(&node.metadata.resource_version);
        let Some(status) = node.status else { return };
        let reported_ready = self.reported.as_ref().is_some_and(|reported| status::is_ready(&reported.status));
        if ready == reported_ready && status::is_ready(&status) != ready {
            tracing::info!(
                node = self.settings.node_name,
                ready,
                "the cloud has another view of the node; reporting again"
            );
            self.reported = Some(Reported { status, at: Instant::now() });
        }
    }

    /// Remembers what the API has now.
    fn know(&mut self, node: Option<&Node>, status: NodeStatus) {
        let uid = node.and_then(|node| node.metadata.uid.clone());
        if let Some(uid) = uid {
            self.uid.send_if_modified(|old| old.replace(uid.clone()).as_ref() != Some(&uid));
        } else if self.uid.borrow().is_none() {
            // Without an answer that carries the node, the lease at least gets going, if without an owner.
            self.uid.send_replace(Some(String::new()));
        }
        self.reported = Some(Reported { status, at: Instant::now() });
        self.whole = false;
    }

    /// Gives a node that was registered by someone else the labels that edge nodes carry.
    async fn check_labels(&mut self, node: Node) {
        self.labels_checked = true;
        let has = node.metadata.labels.clone().unwrap_or_default();
        let missing: Vec<(String, String)> =
            status::labels(&self.settings).into_iter().filter(|(key, value)| has.get(key) != Some(value)).collect();
        if missing.is_empty() {
            return;
        }
        let mut node = node;
        node.metadata.labels.get_or_insert_default().extend(missing);
        node.metadata.managed_fields = None;
        let resource = format!("{NO_NAMESPACE}/{}/{}", kind::NODE, self.settings.node_name);
        let Ok(content) = Content::json(&node) else { return };
        if let Err(error) = self.meta.write(operation::UPDATE, &resource, content).await {
            self.labels_checked = false;
            tracing::debug!(error = &error as &dyn std::error::Error, "labels of the node not updated");
        }
    }
}

/// Waits, but not longer than until the cloud is back, which it tells.
async fn pause_unless_online(pause: Duration, online: &mut watch::Receiver<()>) -> bool {
    tokio::select! {
        () = tokio::time::sleep(pause) => false,
        // The sender lives as long as the agent.
        Ok(()) = online.changed() => true,
    }
}
