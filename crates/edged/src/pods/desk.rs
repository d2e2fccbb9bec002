//! Hands news to the workers and watches over them.
//!
//! Nothing that runs is ended before the list of the local store has been read once: until then an unknown
//! pod may be one that is wanted.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::{Node, Pod, PodStatus};
use podlife::{
    observed::{ObservedPod, PodIdentity},
    spec,
    stage::End,
    static_pod,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use wire::{Content, kind};

use super::{
    PodChange, Tools,
    admit::{Held, NodeFacts, Waiting},
    evict::Eviction,
    mailbox::Mailbox,
    orphans::ORPHAN_DELAY,
    reporter::{self, Report, Reporter},
    resize::Resize,
    source::{PodVersion, is_held, read_list},
    worker::PodWorker,
};
use crate::{
    events::Recorder,
    meta::MetaError,
    node,
    runtime::{RuntimeError, RuntimeEvent},
    static_pods::{MirrorNews, Mirrors, MirrorsTask, mirrors},
};

/// News waiting for the desk; a full queue holds the sender back.
const NEWS_QUEUE: usize = 256;
/// Time between two attempts to read the stored pods.
const LIST_RETRY: Duration = Duration::from_secs(1);
/// Something the desk has to hear.
#[derive(Debug)]
pub enum News {
    /// A message about pods.
    Change(PodChange),
    /// An event of the runtime.
    Runtime(RuntimeEvent),
    /// The link to the cloud is back.
    Online,
    /// All static pods of this node.
    Static(Vec<PodVersion>),
    /// The node ends a pod: see [`Desk::evict`].
    Evict(Eviction),
    /// The disk is short of room: pods that have ended keep nothing of their containers. Each drops this when it is done.
    MakeRoom(mpsc::Sender<()>),
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

    /// A handle to nobody.
    #[cfg(test)]
    pub(crate) fn unheard() -> Self {
        Self {
            news: mpsc::channel(1).0,
            recorder: Recorder::silent("n1"),
            came_round: watch::channel(Instant::now()).1,
        }
    }

    /// The configured pods, or the one with this namespace and name. Empty also when the agent is stopping.
    pub async fn pods(&self, wanted: Option<(&str, &str)>) -> Vec<PodRecord> {
        let (answer, pods) = oneshot::channel();
        let wanted = wanted.map(|(namespace, name)| (namespace.to_owned(), name.to_owned()));
        self.tell(News::List(wanted, answer)).await;
        pods.await.unwrap_or_default()
    }

    /// Removes the containers, with their logs, of all pods that have ended, and waits for that, but not for longer than this.
    pub async fn make_room(&self, limit: Duration) {
        let (done, mut all_done) = mpsc::channel(1);
        self.tell(News::MakeRoom(done)).await;
        // Nobody sends: it ends when everyone has let go.
        if tokio::time::timeout(limit, all_done.recv()).await.is_err() {
            tracing::warn!("containers that have ended are not all removed yet");
        }
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
    let node = NodeFacts::own(&tools.settings);
    let (reporter, reporter_task) = reporter::reporter(tools.meta.clone());
    let (round, came_round) = watch::channel(Instant::now());
    let (mirrors, mirrors_task) = mirrors(Arc::clone(&tools.settings), tools.meta.clone(), reporter.clone());
    let task = DeskTask {
        tools,
        news: receiver,
        reporter,
        reporter_task: Some(reporter_task),
        mirrors,
        mirrors_task: Some(mirrors_task),
        statics_listed: false,
        pods: BTreeMap::new(),
        workers: JoinSet::new(),
        listed: false,
        list_at: Some(Instant::now()),
        scan_at: None,
        slow: JoinSet::new(),
        waiting: Vec::new(),
        held: BTreeMap::new(),
        resizes: BTreeMap::new(),
        node,
        touched: BTreeSet::new(),
        round,
    };
    (Desk { news: sender, recorder, came_round }, task)
}

/// The owner of all workers.
pub struct DeskTask {
    pub(super) tools: Tools,
    news: mpsc::Receiver<News>,
    pub(super) reporter: Reporter,
    reporter_task: Option<reporter::ReporterTask>,
    pub(super) pods: BTreeMap<String, Entry>,
    /// Pods that are not admitted yet, in the order of their arrival.
    pub(super) waiting: Vec<Waiting>,
    /// Updates that are held, by namespace and name.
    pub(super) held: BTreeMap<(String, String), Held>,
    /// Labels and taints of the node.
    pub(super) node: NodeFacts,
    /// Changes of resources that have no room yet, by UID.
    pub(super) resizes: BTreeMap<String, Resize>,
    pub(super) mirrors: Mirrors,
    mirrors_task: Option<MirrorsTask>,
    /// The manifests of this node have been read.
    pub(super) statics_listed: bool,
    /// Each ends with the UID of its pod.
    workers: JoinSet<String>,
    /// The stored list has been read: unknown pods may be ended.
    pub(super) listed: bool,
    list_at: Option<Instant>,
    pub(super) scan_at: Option<Instant>,
    /// What takes its time; the desk never waits for it. At most one list of each kind, and one for each pod put aside.
    pub(super) slow: JoinSet<Slow>,
    /// Pods that messages spoke of since the stored list was asked for: the messages are newer than the list.
    touched: BTreeSet<String>,
    /// Told at each round of the main loop.
    round: watch::Sender<Instant>,
}

/// The end of something slow.
pub(super) enum Slow {
    /// The stored pods, and the node.
    Stored(Result<Vec<Content>, MetaError>, Box<Result<Option<Node>, MetaError>>),
    /// The runtime's pods.
    Observed(Result<Vec<ObservedPod>, RuntimeError>),
    /// The node was read again for this pod.
    Node { uid: String, node: Box<Result<Option<Node>, MetaError>> },
    /// Others have ended for this pod.
    Room { uid: String },
    /// The API was told of a held update, or could not be.
    Held { key: (String, String), told: bool },
}

/// A pod that is here.
pub(super) struct Entry {
    pub identity: PodIdentity,
    /// The newest version.
    pub pod: Arc<Pod>,
    pub mailbox: Arc<Mailbox>,
    /// The source dropped it.
    pub removed: bool,
    /// The same UID came back while it was being removed: start anew afterwards.
    pub successor: Option<Box<PodVersion>>,
    /// Admission refused it.
    pub refused: bool,
    /// The API calls it Succeeded or Failed.
    pub ended: bool,
}

impl DeskTask {
    /// Runs until cancelled. Workers are stopped, containers are not.
    pub async fn run(mut self, stopping: CancellationToken) {
        let mut reporter = JoinSet::new();
        if let Some(task) = self.reporter_task.take() {
            reporter.spawn(task.run(stopping.clone()));
        }
        if let Some(task) = self.mirrors_task.take() {
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
                Some(Ok(slow)) = self.slow.join_next() => self.go_on(slow, &stopping).await,
                () = sleep_until(list_at) => self.ask_stored(),
                () = sleep_until(scan_at) => self.ask_observed(),
            }
            self.retry_resizes(&stopping).await;
        }
        while self.workers.join_next().await.is_some() {}
        while reporter.join_next().await.is_some() {}
    }

    async fn go_on(&mut self, slow: Slow, stopping: &CancellationToken) {
        match slow {
            Slow::Stored(list, node) => {
                self.know_node(*node);
                self.take_stored(list, stopping).await;
            }
            Slow::Observed(list) => self.end_orphans(list, stopping),
            Slow::Node { uid, node } => {
                self.know_node(*node);
                self.decide_again(&uid, stopping).await;
            }
            Slow::Room { uid } => self.decide_again(&uid, stopping).await,
            Slow::Held { key, told } => self.held_told(&key, told),
        }
    }

    async fn hear(&mut self, news: News, stopping: &CancellationToken) {
        match news {
            News::Change(PodChange::Upsert(version)) => {
                self.touched.insert(version.identity.uid.clone());
                if static_pod::mirrored_hash(&version.pod).is_some() {
                    self.mirrors.tell(MirrorNews::Seen(version)).await;
                    return;
                }
                self.upsert(version, stopping).await;
                // Who hears of the cloud can reach it.
                self.reporter.send(Report::Online).await;
            }
            News::Change(PodChange::Hold(version)) => {
                self.touched.insert(version.identity.uid.clone());
                // A status that comes back from the API is no upgrade.
                let uid = &version.identity.uid;
                let wanted = self.resizes.get(uid).map(|resize| &resize.version.pod);
                let known = wanted.or_else(|| self.pods.get(uid).map(|entry| &entry.pod));
                if known.is_some_and(|pod| pod.spec == version.pod.spec) {
                    self.upsert(version, stopping).await;
                } else {
                    self.hold(version);
                }
            }
            News::Change(PodChange::Release { pod }) => self.release_held(pod, stopping).await,
            News::Change(PodChange::Remove { uid }) => {
                if !self.pods.contains_key(&uid) {
                    self.mirrors.tell(MirrorNews::Gone(uid.clone())).await;
                }
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
            News::Online => {
                self.reporter.send(Report::Online).await;
                self.mirrors.tell(MirrorNews::Online).await;
                self.tell_held();
            }
            News::Static(versions) => self.replace_statics(versions, stopping).await,
            News::Evict(eviction) => {
                if let Some(entry) = self.pods.get(&eviction.uid) {
                    eviction.begin(&entry.pod, &entry.mailbox);
                }
            }
            News::MakeRoom(done) => {
                for entry in self.pods.values().filter(|entry| entry.mailbox.is_stopped()) {
                    entry.mailbox.make_room(done.clone());
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

    pub(super) async fn upsert(&mut self, version: Box<PodVersion>, stopping: &CancellationToken) {
        let node = version.pod.spec.as_ref().and_then(|s| s.node_name.as_deref());
        if node != Some(self.tools.settings.node_name.as_str()) {
            tracing::debug!(pod = version.identity.name, node, "pod of another node ignored");
            return;
        }
        let uid = version.identity.uid.clone();
        self.held.remove(&(version.identity.namespace.clone(), version.identity.name.clone()));
        let version = self.allocate(version);
        if let Some(entry) = self.pods.get_mut(&uid) {
            if entry.removed {
                entry.successor = Some(version);
                return;
            }
            let (reporter, mailbox) = (self.reporter.clone(), Arc::clone(&entry.mailbox));
            entry.pod = Arc::clone(&version.pod);
            entry.ended = spec::is_terminal_phase(version.api.phase.as_deref());
            if spec::is_static(&version.pod) {
                self.mirrors.tell(MirrorNews::Runs(Arc::clone(&version.pod))).await;
            }
            reporter.send(api_report(&version, &mailbox)).await;
            mailbox.version(version);
            return;
        }
        self.take_new(version, stopping).await;
    }

    pub(super) fn spawn(&mut self, entry: Entry, worker: PodWorker, stopping: &CancellationToken) {
        let uid = entry.identity.uid.clone();
        self.pods.insert(uid.clone(), entry);
        let stopping = stopping.clone();
        self.workers.spawn(async move {
            worker.run(stopping).await;
            uid
        });
    }

    fn remove(&mut self, uid: &str) {
        self.forget_waiting(uid);
        self.resizes.remove(uid);
        if let Some(entry) = self.pods.get_mut(uid) {
            entry.removed = true;
            entry.successor = None;
            entry.mailbox.end(End::Removed);
        }
    }

    async fn worker_ended(&mut self, uid: Option<String>, stopping: &CancellationToken) {
        let Some(uid) = uid else { return };
        let Some(entry) = self.pods.remove(&uid) else { return };
        self.resizes.remove(&uid);
        self.reporter.send(Report::Forget { uid }).await;
        if spec::is_static(&entry.pod) {
            self.mirrors.tell(MirrorNews::Ended(entry.identity)).await;
        }
        if let Some(successor) = entry.successor {
            self.upsert(successor, stopping).await;
        }
        self.next_in_turn(stopping).await;
    }

    fn ask_stored(&mut self) {
        self.list_at = None;
        self.touched.clear();
        let (meta, settings) = (self.tools.meta.clone(), Arc::clone(&self.tools.settings));
        self.slow.spawn(async move {
            let (pods, node) = tokio::join!(
                meta.list_pods(&settings.register_node_namespace),
                meta.get(node::NO_NAMESPACE, kind::NODE, &settings.node_name)
            );
            Slow::Stored(pods, Box::new(node))
        });
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
        let (mirrors, mut versions): (Vec<_>, Vec<_>) =
            versions.into_iter().partition(|version| static_pod::mirrored_hash(&version.pod).is_some());
        self.mirrors.tell(MirrorNews::All(mirrors)).await;
        let wanted: BTreeSet<&String> = versions.iter().map(|v| &v.identity.uid).collect();
        let keep = |uid: &String| wanted.contains(uid) || self.touched.contains(uid);
        let unwanted = self.pods.iter().filter(|(uid, entry)| !keep(uid) && !spec::is_static(&entry.pod));
        let gone: Vec<String> = unwanted.map(|(uid, _)| uid.clone()).collect();
        let wanted: BTreeSet<String> = wanted.into_iter().chain(&self.touched).cloned().collect();
        for uid in gone {
            self.remove(&uid);
        }
        self.keep_waiting(|uid| wanted.contains(uid));
        // Those that were here first have the first claim on the node.
        versions.sort_by_key(|version| version.pod.metadata.creation_timestamp.as_ref().map(|time| time.0));
        for version in versions.into_iter().map(Box::new) {
            if self.touched.contains(&version.identity.uid) {
                continue;
            }
            if is_held(&version) {
                self.hold(version);
            } else {
                self.upsert(version, stopping).await;
            }
        }
        self.listed = true;
        self.scan_soon(Duration::ZERO);
    }

    /// Takes the whole set of static pods. One that replaces another of its name is put aside until that has ended.
    async fn replace_statics(&mut self, versions: Vec<PodVersion>, stopping: &CancellationToken) {
        let wanted: BTreeSet<&String> = versions.iter().map(|v| &v.identity.uid).collect();
        let here = self.pods.iter().filter(|(_, entry)| spec::is_static(&entry.pod)).map(|(uid, _)| uid.clone());
        let gone: Vec<String> = here.chain(self.waiting_statics()).filter(|uid| !wanted.contains(uid)).collect();
        for uid in gone {
            self.remove(&uid);
        }
        for version in versions {
            self.upsert(Box::new(version), stopping).await;
        }
        self.statics_listed = true;
        self.scan_soon(Duration::ZERO);
    }
}

pub(super) fn api_report(version: &PodVersion, mailbox: &Arc<Mailbox>) -> Report {
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
