//! Hands news to the workers and watches over them.
//!
//! Nothing that runs is ended before the list of the local store has been read once: until then an unknown
//! pod may be one that is wanted.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use podlife::{
    observed::{ObservedPod, PodIdentity},
    spec,
    stage::End,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use wire::Content;

use super::{
    PodChange, Tools,
    evict::Eviction,
    mailbox::Mailbox,
    reporter::{self, Report, Reporter},
    source::{PodVersion, read_list},
    worker::PodWorker,
};
use crate::{
    events::Recorder,
    meta::MetaError,
    runtime::{RuntimeError, RuntimeEvent},
};

/// News waiting for the desk; a full queue holds the sender back.
const NEWS_QUEUE: usize = 256;
/// Time between two attempts to read the stored pods.
const LIST_RETRY: Duration = Duration::from_secs(1);
/// How often the runtime is searched for pods that nobody wants.
const ORPHAN_SCAN: Duration = Duration::from_secs(120);
/// Pause between an unknown pod's event and the search: its message may be on the way.
const ORPHAN_DELAY: Duration = Duration::from_secs(5);

/// Something the desk has to hear.
#[derive(Debug)]
pub enum News {
    /// A message about pods.
    Change(PodChange),
    /// An event of the runtime.
    Runtime(RuntimeEvent),
    /// The link to the cloud is back.
    Online,
    /// The node ends a pod: see [`Desk::evict`].
    Evict(Eviction),
    /// Somebody asks for the configured pods: all, or the one with this namespace and name.
    List(Option<(String, String)>, oneshot::Sender<Vec<PodRecord>>),
}

/// A configured pod.
#[derive(Clone, Debug)]
pub struct PodRecord {
    /// Namespace, name, UID.
    pub identity: PodIdentity,
    /// Spec and metadata.
    pub pod: Arc<Pod>,
    /// The newest status that this node knows.
    pub status: Box<PodStatus>,
}

/// Handle of the desk.
#[derive(Clone)]
pub struct Desk {
    news: mpsc::Sender<News>,
    pub(super) recorder: Recorder,
    came_round: watch::Receiver<Instant>,
}

impl Desk {
    /// Hands over news; waits while the queue is full.
    pub async fn tell(&self, news: News) {
        // The desk ends only with the agent.
        let _ = self.news.send(news).await;
    }

    /// The configured pods, or the one with this namespace and name. Empty also when the agent is stopping.
    pub async fn pods(&self, wanted: Option<(&str, &str)>) -> Vec<PodRecord> {
        let (answer, pods) = oneshot::channel();
        let wanted = wanted.map(|(namespace, name)| (namespace.to_owned(), name.to_owned()));
        self.tell(News::List(wanted, answer)).await;
        pods.await.unwrap_or_default()
    }

    /// When the main loop last came round.
    pub fn came_round(&self) -> Instant {
        *self.came_round.borrow()
    }
}

/// A desk and the task that owns all workers.
pub fn desk(tools: Tools) -> (Desk, DeskTask) {
    let (sender, receiver) = mpsc::channel(NEWS_QUEUE);
    let recorder = tools.recorder.clone();
    let (reporter, reporter_task) = reporter::reporter(tools.meta.clone());
    let (round, came_round) = watch::channel(Instant::now());
    let task = DeskTask {
        tools,
        news: receiver,
        reporter,
        reporter_task: Some(reporter_task),
        pods: BTreeMap::new(),
        workers: JoinSet::new(),
        listed: false,
        list_at: Some(Instant::now()),
        scan_at: None,
        lists: JoinSet::new(),
        touched: BTreeSet::new(),
        round,
    };
    (Desk { news: sender, recorder, came_round }, task)
}

/// The owner of all workers.
pub struct DeskTask {
    tools: Tools,
    news: mpsc::Receiver<News>,
    reporter: Reporter,
    reporter_task: Option<reporter::ReporterTask>,
    pods: BTreeMap<String, Entry>,
    /// Each ends with the UID of its pod.
    workers: JoinSet<String>,
    /// The stored list has been read: unknown pods may be ended.
    listed: bool,
    list_at: Option<Instant>,
    scan_at: Option<Instant>,
    /// At most one list of each kind on its way; the desk never waits for it.
    lists: JoinSet<List>,
    /// Pods that messages spoke of since the stored list was asked for: the messages are newer than the list.
    touched: BTreeSet<String>,
    /// Told at each round of the main loop.
    round: watch::Sender<Instant>,
}

enum List {
    Stored(Result<Vec<Content>, MetaError>),
    Observed(Result<Vec<ObservedPod>, RuntimeError>),
}

struct Entry {
    identity: PodIdentity,
    /// The newest version.
    pod: Arc<Pod>,
    mailbox: Arc<Mailbox>,
    /// The source dropped it.
    removed: bool,
    /// The same UID came back while it was being removed: start anew afterwards.
    successor: Option<Box<PodVersion>>,
}

impl DeskTask {
    /// Runs until cancelled. Workers are stopped, containers are not.
    pub async fn run(mut self, stopping: CancellationToken) {
        let mut reporter = JoinSet::new();
        if let Some(task) = self.reporter_task.take() {
            reporter.spawn(task.run(stopping.clone()));
        }
        loop {
            let (list_at, scan_at) = (self.list_at, self.scan_at);
            self.round.send_replace(Instant::now());
            tokio::select! {
                () = stopping.cancelled() => break,
                news = self.news.recv() => match news {
                    Some(news) => self.hear(news, &stopping).await,
                    None => break,
                },
                Some(ended) = self.workers.join_next() => self.worker_ended(ended.ok(), &stopping).await,
                Some(Ok(list)) = self.lists.join_next() => match list {
                    List::Stored(list) => self.take_stored(list, &stopping).await,
                    List::Observed(list) => self.end_orphans(list, &stopping),
                },
                () = sleep_until(list_at) => self.ask_stored(),
                () = sleep_until(scan_at) => self.ask_observed(),
            }
        }
        while self.workers.join_next().await.is_some() {}
        while reporter.join_next().await.is_some() {}
    }

    async fn hear(&mut self, news: News, stopping: &CancellationToken) {
        match news {
            News::Change(PodChange::Upsert(version)) => {
                self.touched.insert(version.identity.uid.clone());
                self.upsert(version, stopping).await;
                // Who hears of the cloud can reach it.
                self.reporter.send(Report::Online).await;
            }
            News::Change(PodChange::Remove { uid }) => {
                self.remove(&uid);
                self.touched.insert(uid);
            }
            News::Change(PodChange::Relist) => self.list_at = Some(Instant::now()),
            News::Change(PodChange::Set(versions)) => self.replace_all(versions, stopping).await,
            News::Change(PodChange::Configuration { namespace }) => {
                for entry in self.pods.values().filter(|e| e.identity.namespace == namespace) {
                    entry.mailbox.configuration_changed();
                }
            }
            News::Change(PodChange::None) => {}
            News::Runtime(RuntimeEvent::Pod { uid }) => match self.pods.get(&uid) {
                Some(entry) => entry.mailbox.runtime_changed(),
                None => self.scan_soon(ORPHAN_DELAY),
            },
            News::Runtime(RuntimeEvent::Resync) => {
                for entry in self.pods.values() {
                    entry.mailbox.runtime_changed();
                }
                self.scan_soon(ORPHAN_DELAY);
            }
            News::Online => self.reporter.send(Report::Online).await,
            News::Evict(eviction) => {
                if let Some(entry) = self.pods.get(&eviction.uid) {
                    eviction.begin(&entry.pod, &entry.mailbox);
                }
            }
            News::List(wanted, answer) => {
                let is_wanted = |identity: &PodIdentity| {
                    wanted.as_ref().is_none_or(|(ns, name)| *ns == identity.namespace && *name == identity.name)
                };
                let entries = self.pods.values().filter(|e| !e.removed && is_wanted(&e.identity));
                let pods = entries.map(|e| (e.identity.clone(), Arc::clone(&e.pod))).collect();
                self.reporter.send(Report::List { pods, answer }).await;
            }
        }
    }

    async fn upsert(&mut self, version: Box<PodVersion>, stopping: &CancellationToken) {
        let node = version.pod.spec.as_ref().and_then(|s| s.node_name.as_deref());
        if node != Some(self.tools.settings.node_name.as_str()) {
            tracing::debug!(pod = version.identity.name, node, "pod of another node ignored");
            return;
        }
        let uid = version.identity.uid.clone();
        if let Some(entry) = self.pods.get_mut(&uid) {
            if entry.removed {
                entry.successor = Some(version);
                return;
            }
            let (reporter, mailbox) = (self.reporter.clone(), Arc::clone(&entry.mailbox));
            entry.pod = Arc::clone(&version.pod);
            reporter.send(api_report(&version, &mailbox)).await;
            mailbox.version(version);
            return;
        }
        let mailbox = Arc::new(Mailbox::default());
        self.reporter.send(api_report(&version, &mailbox)).await;
        let identity = version.identity.clone();
        tracing::info!(pod = identity.name, namespace = identity.namespace, uid, "pod taken over");
        let pod = Arc::clone(&version.pod);
        let worker = PodWorker::new(*version, Arc::clone(&mailbox), self.reporter.clone(), self.tools.clone());
        self.spawn(Entry { identity, pod, mailbox, removed: false, successor: None }, worker, stopping);
    }

    fn spawn(&mut self, entry: Entry, worker: PodWorker, stopping: &CancellationToken) {
        let uid = entry.identity.uid.clone();
        self.pods.insert(uid.clone(), entry);
        let stopping = stopping.clone();
        self.workers.spawn(async move {
            worker.run(stopping).await;
            uid
        });
    }

    fn remove(&mut self, uid: &str) {
        if let Some(entry) = self.pods.get_mut(uid) {
            entry.removed = true;
            entry.successor = None;
            entry.mailbox.end(End::Removed);
        }
    }

    async fn worker_ended(&mut self, uid: Option<String>, stopping: &CancellationToken) {
        let Some(uid) = uid else { return };
        let Some(entry) = self.pods.remove(&uid) else { return };
        self.reporter.send(Report::Forget { uid }).await;
        if let Some(successor) = entry.successor {
            self.upsert(successor, stopping).await;
        }
    }

    fn ask_stored(&mut self) {
        self.list_at = None;
        self.touched.clear();
        let (meta, settings) = (self.tools.meta.clone(), Arc::clone(&self.tools.settings));
        self.lists.spawn(async move { List::Stored(meta.list_pods(&settings.register_node_namespace).await) });
    }

    fn ask_observed(&mut self) {
        self.scan_at = None;
        let runtime = Arc::clone(&self.tools.runtime);
        self.lists.spawn(async move { List::Observed(runtime.list_pods().await) });
    }

    /// Takes the pods of the local store; until that has worked once, nothing unknown is ended.
    async fn take_stored(&mut self, list: Result<Vec<Content>, MetaError>, stopping: &CancellationToken) {
        match list {
            Ok(items) => self.replace_all(read_list(&items), stopping).await,
            Err(error) => {
                tracing::warn!(error = %error, "stored pods cannot be read yet; pods that run are left alone");
                self.list_at = Some(Instant::now() + LIST_RETRY);
            }
        }
    }

    async fn replace_all(&mut self, versions: Vec<PodVersion>, stopping: &CancellationToken) {
        let wanted: BTreeSet<&String> = versions.iter().map(|v| &v.identity.uid).collect();
        let keep = |uid: &String| wanted.contains(uid) || self.touched.contains(uid);
        let gone: Vec<String> = self.pods.keys().filter(|uid| !keep(uid)).cloned().collect();
        for uid in gone {
            self.remove(&uid);
        }
        for version in versions {
            if !self.touched.contains(&version.identity.uid) {
                self.upsert(Box::new(version), stopping).await;
            }
        }
        self.listed = true;
        self.scan_soon(Duration::ZERO);
    }

    fn scan_soon(&mut self, delay: Duration) {
        if self.listed {
            let at = Instant::now() + delay;
            self.scan_at = Some(self.scan_at.map_or(at, |scan| scan.min(at)));
        }
    }

    /// Ends pods that the runtime has and nobody wants.
    fn end_orphans(&mut self, list: Result<Vec<ObservedPod>, RuntimeError>, stopping: &CancellationToken) {
        self.scan_at = Some(Instant::now() + ORPHAN_SCAN);
        let observed = match list {
            Ok(observed) => observed,
            Err(error) => {
                tracing::warn!(error = %error, "the runtime's pods cannot be listed");
                self.scan_at = Some(Instant::now() + ORPHAN_DELAY);
                return;
            }
        };
        let mut unwanted = observed;
        // What an agent killed in the middle of a clean-up left on disk has no container any more.
        unwanted.extend(
            self.tools
                .runtime
                .pods_on_disk()
                .into_iter()
                .map(|uid| ObservedPod::absent(PodIdentity { namespace: String::new(), name: String::new(), uid })),
        );
        for orphan in &unwanted {
            if self.pods.contains_key(&orphan.identity.uid) {
                continue;
            }
            let identity = orphan.identity.clone();
            tracing::info!(
                pod = identity.name,
                namespace = identity.namespace,
                uid = identity.uid,
                "ending a pod that nobody wants"
            );
            let mailbox = Arc::new(Mailbox::default());
            let worker = PodWorker::orphan(orphan, Arc::clone(&mailbox), self.reporter.clone(), self.tools.clone());
            let pod = Arc::clone(&worker.pod);
            self.spawn(Entry { identity, pod, mailbox, removed: true, successor: None }, worker, stopping);
        }
        let pods = &self.pods;
        self.tools.runtime.remove_orphan_cgroups(|uid| pods.contains_key(uid));
    }
}

fn api_report(version: &PodVersion, mailbox: &Arc<Mailbox>) -> Report {
    Report::Api {
        identity: version.identity.clone(),
        version: reporter::resource_version(&version.pod),
        deleted: spec::is_deleted(&version.pod),
        is_static: spec::is_static(&version.pod),
        status: Box::new(version.api.clone()),
        mailbox: Arc::clone(mailbox),
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
