//! Follows each container once for every output, while its node has a tunnel, and goes on where it stopped.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use link::backoff::Backoff;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{debug, warn};

use super::pods::{Instance, Pod};
use super::reader::{End, Reader};
use super::{Chunk, Counters, Position, Source};
use crate::cloudstream::tunnels::Tunnels;
use crate::kubernetes::Change;

/// Streams of an output at once; more containers take turns.
pub(super) const MAX_STREAMS: usize = 2000;
/// How often it is looked whether a tunnel is back, or a wait over.
const TICK: Duration = Duration::from_secs(1);
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// How long the last lines of a pod that is gone may take.
const LAST_WORDS: Duration = Duration::from_secs(30);

/// The way to an output.
pub(super) struct Feed {
    pub(super) to: mpsc::Sender<Chunk>,
    pub(super) counters: Arc<Counters>,
    /// How far it had come when it was started.
    pub(super) known: HashMap<String, Position>,
    pub(super) turns: Arc<Semaphore>,
}

/// Owns what is known of containers.
pub(super) struct Supervisor {
    tunnels: Tunnels,
    feeds: Vec<Feed>,
    namespaces: Vec<String>,
    /// By UID and container.
    containers: HashMap<String, Entry>,
    /// Of the list that is coming in.
    listed: Option<HashSet<String>>,
    readers: JoinSet<Ended>,
}

struct Entry {
    source: Arc<Source>,
    instance: Option<Instance>,
    /// Since when its pod is gone.
    gone: Option<Instant>,
    /// For each output.
    followings: Vec<Following>,
}

struct Following {
    position: Option<Position>,
    state: State,
    backoff: Backoff,
}

enum State {
    /// Not before this time.
    Waiting(Instant),
    /// Of this instance, as far as was known when it began.
    Reading(AbortHandle, Option<Instance>),
    /// This instance has ended and its log is handed over.
    Done(Instance),
}

/// A task ended: a reader of this container and output, or what told an output that a container is gone.
type Ended = Option<(String, usize, Option<Position>, End)>;

impl Supervisor {
    pub(super) fn new(tunnels: Tunnels, feeds: Vec<Feed>, namespaces: Vec<String>) -> Self {
        let (containers, readers) = (HashMap::new(), JoinSet::new());
        Self { tunnels, feeds, namespaces, containers, listed: None, readers }
    }

    pub(super) async fn run(mut self, mut changes: mpsc::Receiver<Change>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                change = changes.recv() => match change {
                    Some(change) => self.changed(change),
                    None => return,
                },
                Some(ended) = self.readers.join_next() => if let Ok(Some(ended)) = ended { self.ended(ended) },
                _ = tick.tick() => self.look(Instant::now()),
            }
        }
    }

    fn changed(&mut self, change: Change) {
        match change {
            Change::Restored => {}
            Change::Begin => self.listed = Some(HashSet::new()),
            Change::Put(text) => match Pod::parse(&text) {
                Some(pod) if self.is_chosen(&pod) => self.put(&pod),
                _ => {}
            },
            Change::Gone(text) => {
                if let Some(pod) = Pod::parse(&text) {
                    let prefix = format!("{}/", pod.metadata.uid);
                    let mine = pod.containers().map(|(name, _)| format!("{prefix}{name}"));
                    mine.for_each(|key| self.gone(&key));
                }
            }
            Change::Listed => {
                let Some(listed) = self.listed.take() else { return };
                let missing: Vec<String> =
                    self.containers.keys().filter(|key| !listed.contains(*key)).cloned().collect();
                missing.iter().for_each(|key| self.gone(key));
                // What outputs remember of containers that went while cloudcore did not run.
                for index in 0..self.feeds.len() {
                    for (key, _) in std::mem::take(&mut self.feeds[index].known) {
                        if !listed.contains(&key) {
                            let (uid, container) = key.split_once('/').unwrap_or((&key, ""));
                            let source = Source {
                                uid: uid.to_owned(),
                                container: container.to_owned(),
                                namespace: String::new(),
                                pod: String::new(),
                                node: String::new(),
                            };
                            self.forget(index, source.into());
                        }
                    }
                }
            }
        }
    }

    fn is_chosen(&self, pod: &Pod) -> bool {
        let in_namespace = self.namespaces.is_empty() || self.namespaces.contains(&pod.metadata.namespace);
        in_namespace && !pod.spec.node_name.is_empty()
    }

    fn put(&mut self, pod: &Pod) {
        let now = Instant::now();
        for (container, instance) in pod.containers() {
            let source = Source {
                uid: pod.metadata.uid.clone(),
                namespace: pod.metadata.namespace.clone(),
                pod: pod.metadata.name.clone(),
                container: container.to_owned(),
                node: pod.spec.node_name.clone(),
            };
            let key = source.key();
            let feeds = &self.feeds;
            let entry = self.containers.entry(key.clone()).or_insert_with(|| Entry {
                source: Arc::new(source),
                instance: None,
                gone: None,
                followings: feeds.iter().map(|feed| Following::new(feed.known.get(&key).copied(), now)).collect(),
            });
            entry.gone = None;
            if entry.instance != instance {
                for following in &mut entry.followings {
                    following.is_news(instance.as_ref(), now);
                }
                entry.instance = instance;
            }
            if let Some(listed) = &mut self.listed {
                listed.insert(key);
            }
        }
    }

    fn gone(&mut self, key: &str) {
        if let Some(entry) = self.containers.get_mut(key) {
            entry.gone.get_or_insert_with(Instant::now);
        }
    }

    fn ended(&mut self, (key, index, position, end): (String, usize, Option<Position>, End)) {
        let Some(entry) = self.containers.get_mut(&key) else { return };
        let Some(following) = entry.followings.get_mut(index) else { return };
        if position != following.position {
            following.backoff.reset();
            following.position = position;
        }
        let asked = match std::mem::replace(&mut following.state, State::Waiting(Instant::now())) {
            State::Reading(_, asked) => asked,
            _ => None,
        };
        let wait = match end {
            End::Paused => Duration::ZERO,
            _ => following.backoff.next_wait(),
        };
        debug!(container = key, ?end, "reading a log ended");
        following.state = match (end, asked) {
            (End::Complete, Some(instance)) if instance.ended && entry.instance.as_ref() == Some(&instance) => {
                State::Done(instance)
            }
            _ => State::Waiting(Instant::now() + wait),
        };
    }

    /// Begins what can begin.
    fn look(&mut self, now: Instant) {
        let mut forgotten = Vec::new();
        for (key, entry) in &mut self.containers {
            if let Some(since) = entry.gone {
                let is_late = since + LAST_WORDS < now;
                let mut reading = false;
                for following in &entry.followings {
                    if let State::Reading(task, _) = &following.state {
                        reading = true;
                        if is_late {
                            task.abort();
                        }
                    }
                }
                if !reading || is_late {
                    forgotten.push(key.clone());
                }
                continue;
            }
            // What has not begun has no log.
            if entry.instance.as_ref().is_some_and(|instance| instance.id.is_empty()) {
                continue;
            }
            let is_due = |following: &Following| matches!(following.state, State::Waiting(at) if at <= now);
            if !entry.followings.iter().any(is_due) || !self.tunnels.is_reachable(&entry.source.node) {
                continue;
            }
            for (index, following) in entry.followings.iter_mut().enumerate().filter(|(_, following)| is_due(following))
            {
                let feed = &self.feeds[index];
                let reader = Reader {
                    source: entry.source.clone(),
                    tunnels: self.tunnels.clone(),
                    to: feed.to.clone(),
                    turns: feed.turns.clone(),
                    counters: feed.counters.clone(),
                    position: following.position,
                };
                let key = key.clone();
                let task = self.readers.spawn(async move {
                    let (position, end) = reader.run().await;
                    Some((key, index, position, end))
                });
                following.state = State::Reading(task, entry.instance.clone());
            }
        }
        for key in forgotten {
            if let Some(entry) = self.containers.remove(&key) {
                (0..self.feeds.len()).for_each(|index| self.forget(index, entry.source.clone()));
            }
        }
    }

    /// An output needs no position of it any more, after what it was handed before.
    fn forget(&mut self, index: usize, source: Arc<Source>) {
        let to = self.feeds[index].to.clone();
        self.readers.spawn(async move {
            let chunk = Chunk { source, lines: Arc::new([]), position: None, bytes: 0 };
            if to.send(chunk).await.is_err() {
                warn!("an output of collected logs has ended");
            }
            None
        });
    }
}

impl Following {
    fn new(position: Option<Position>, now: Instant) -> Self {
        Self { position, state: State::Waiting(now), backoff: Backoff::new(FIRST_WAIT, LONGEST_WAIT) }
    }

    /// The container has begun, ended, or begun again.
    fn is_news(&mut self, instance: Option<&Instance>, now: Instant) {
        let is_known = matches!(&self.state, State::Done(done) if Some(done) == instance);
        if !is_known && !matches!(self.state, State::Reading(..)) {
            self.state = State::Waiting(now);
            self.backoff.reset();
        }
    }
}
