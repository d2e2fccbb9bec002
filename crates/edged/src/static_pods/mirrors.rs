//! Keeps the API's copies of static pods in step: makes them, makes them again when somebody deletes them, deletes them when the
//! pod is gone. Their status is told by the reporter of pods, to which each mirror's UID is handed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use podlife::observed::PodIdentity;
use podlife::spec;
use podlife::static_pod::{self, MirrorFacts, MirrorStep};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use wire::{Content, kind, operation};

use crate::meta::{MetaClient, MetaError};
use crate::pods::{MirrorOf, PodVersion, Reporter};
use crate::settings::Settings;

/// News that wait: a few for each static pod.
const QUEUE: usize = 256;
/// First and longest pause after a failure.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// Pause after the API has refused for good: only an edit helps.
const REFUSED: Duration = Duration::from_secs(300);

/// What the desk tells.
pub(crate) enum MirrorNews {
    /// A static pod runs.
    Runs(Arc<Pod>),
    /// A static pod has ended, and nothing is left of it.
    Ended(PodIdentity),
    /// The API has a mirror.
    Seen(Box<PodVersion>),
    /// The API has no pod of this UID any more.
    Gone(String),
    /// All mirrors that the API has; from now on those that show nothing can be told.
    All(Vec<PodVersion>),
    /// The cloud can be reached again.
    Online,
}

/// Handle of the task.
#[derive(Clone)]
pub(crate) struct Mirrors(mpsc::Sender<MirrorNews>);

impl Mirrors {
    /// Hands over news; waits while the queue is full.
    pub async fn tell(&self, news: MirrorNews) {
        // The task ends only with the agent.
        let _ = self.0.send(news).await;
    }
}

/// The owner of what is known of mirrors.
pub(crate) struct MirrorsTask {
    settings: Arc<Settings>,
    meta: MetaClient,
    reporter: Reporter,
    news: mpsc::Receiver<MirrorNews>,
    /// By namespace and name.
    slots: BTreeMap<(String, String), Slot>,
    /// All mirrors of the API are known.
    listed: bool,
}

#[derive(Default)]
struct Slot {
    pod: Option<Arc<Pod>>,
    mirror: Option<(MirrorFacts, Box<PodVersion>)>,
    retry: Option<(Instant, Duration)>,
}

/// A task and its handle.
pub(crate) fn mirrors(settings: Arc<Settings>, meta: MetaClient, reporter: Reporter) -> (Mirrors, MirrorsTask) {
    let (sender, news) = mpsc::channel(QUEUE);
    (Mirrors(sender), MirrorsTask { settings, meta, reporter, news, slots: BTreeMap::new(), listed: false })
}

impl MirrorsTask {
    /// Works until cancelled.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            let next = self.slots.values().filter_map(|slot| slot.retry).map(|(at, _)| at).min();
            tokio::select! {
                () = stop.cancelled() => return,
                news = self.news.recv() => match news {
                    Some(news) => self.hear(news),
                    None => return,
                },
                () = sleep_until(next) => {}
            }
            // What waits is taken in first: requests take their time.
            while let Ok(news) = self.news.try_recv() {
                self.hear(news);
            }
            if self.listed {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = self.work() => {}
                }
            }
        }
    }

    fn hear(&mut self, news: MirrorNews) {
        match news {
            MirrorNews::Runs(pod) => {
                let Some(identity) = spec::identity(&pod) else { return };
                let slot = self.slots.entry((identity.namespace, identity.name)).or_default();
                (slot.pod, slot.retry) = (Some(pod), None);
            }
            MirrorNews::Ended(identity) => {
                if let Some(slot) = self.slots.get_mut(&(identity.namespace, identity.name))
                    && slot.pod.as_ref().is_some_and(|pod| pod.metadata.uid.as_ref() == Some(&identity.uid))
                {
                    (slot.pod, slot.retry) = (None, None);
                }
            }
            MirrorNews::Seen(version) => self.see(version),
            MirrorNews::Gone(uid) => {
                for slot in self.slots.values_mut() {
                    if slot.mirror.as_ref().is_some_and(|(mirror, _)| mirror.uid == uid) {
                        (slot.mirror, slot.retry) = (None, None);
                    }
                }
            }
            MirrorNews::All(versions) => {
                for slot in self.slots.values_mut() {
                    slot.mirror = None;
                }
                for version in versions {
                    self.see(Box::new(version));
                }
                self.listed = true;
            }
            MirrorNews::Online => self.slots.values_mut().for_each(|slot| slot.retry = None),
        }
    }

    fn see(&mut self, version: Box<PodVersion>) {
        let Some(hash) = static_pod::mirrored_hash(&version.pod) else { return };
        let facts = MirrorFacts {
            uid: version.identity.uid.clone(),
            hash: hash.to_owned(),
            deleted: spec::is_deleted(&version.pod),
        };
        let key = (version.identity.namespace.clone(), version.identity.name.clone());
        let slot = self.slots.entry(key).or_default();
        (slot.mirror, slot.retry) = (Some((facts, version)), None);
    }

    /// One step for each slot that needs one; those that failed wait. A step tells whether another one may follow.
    async fn work(&mut self) {
        let now = Instant::now();
        let keys: Vec<_> = self.slots.keys().cloned().collect();
        for key in keys {
            // A deletion is followed by a creation at once.
            for _ in 0..2 {
                let Some(slot) = self.slots.get(&key) else { break };
                if slot.retry.is_some_and(|(at, _)| at > now) {
                    break;
                }
                let (pod, version) = (slot.pod.clone(), slot.mirror.as_ref().map(|(_, version)| version.clone()));
                let step = static_pod::mirror_step(pod.as_deref(), slot.mirror.as_ref().map(|(facts, _)| facts));
                let done = match (step, pod) {
                    (MirrorStep::Create, Some(pod)) => self.create(&key, &pod).await,
                    (MirrorStep::Delete { uid }, _) => self.delete(&key, Some(&uid)).await,
                    (MirrorStep::DeleteAny, _) => self.delete(&key, None).await,
                    (_, Some(pod)) => {
                        self.hand_over(&pod, version).await;
                        Ok(false)
                    }
                    (_, None) => Ok(false),
                };
                let goes_on = matches!(done, Ok(true));
                self.note(&key, done.map(drop));
                if !goes_on {
                    break;
                }
            }
        }
        self.slots.retain(|_, slot| slot.pod.is_some() || slot.mirror.is_some());
    }

    /// The reporter writes the pod's status to its mirror.
    async fn hand_over(&mut self, pod: &Pod, version: Option<Box<PodVersion>>) {
        let (Some(uid), Some(version)) = (pod.metadata.uid.clone(), version) else { return };
        self.reporter.mirror(MirrorOf { uid, version }).await;
    }

    async fn create(&mut self, key: &(String, String), pod: &Pod) -> Result<bool, MetaError> {
        let name = &self.settings.node_name;
        let node = self.meta.get::<Node>("null", kind::NODE, name).await?;
        let Some(node_uid) = node.and_then(|node| node.metadata.uid) else {
            return Err(MetaError::Failed(format!("node {name} is not registered yet")));
        };
        let resource = format!("{}/{}/{}", key.0, kind::POD, key.1);
        let mirror = static_pod::mirror(pod, name, &node_uid);
        let content =
            Content::json(&mirror).map_err(|source| MetaError::Encode { resource: resource.clone(), source })?;
        let answer = self.meta.write(operation::INSERT, &resource, content).await?;
        if let Some(answer) = answer
            && let Ok(version) = crate::pods::read_pod(&resource, &answer)
        {
            self.see(Box::new(version));
        }
        tracing::info!(pod = key.1, namespace = key.0, "mirror pod made");
        Ok(true)
    }

    async fn delete(&mut self, key: &(String, String), uid: Option<&str>) -> Result<bool, MetaError> {
        match self.meta.delete_pod(&key.0, &key.1, uid).await {
            Err(error) if !error.is_not_found() && !error.is_other_object() => return Err(error),
            _ => {}
        }
        tracing::info!(pod = key.1, namespace = key.0, "mirror pod deleted");
        if let Some(slot) = self.slots.get_mut(key) {
            slot.mirror = None;
        }
        Ok(true)
    }

    fn note(&mut self, key: &(String, String), done: Result<(), MetaError>) {
        let Some(slot) = self.slots.get_mut(key) else { return };
        let Err(error) = done else {
            slot.retry = None;
            return;
        };
        let last = slot.retry.map_or(Duration::ZERO, |(_, pause)| pause);
        let pause = if error.is_final() {
            tracing::warn!(
                pod = key.1,
                namespace = key.0,
                error = &error as &dyn std::error::Error,
                "mirror pod refused"
            );
            REFUSED
        } else {
            // An old one of this name is told by the cloud in a moment.
            tracing::debug!(pod = key.1, error = &error as &dyn std::error::Error, "mirror pod not in step yet");
            (last * 2).clamp(RETRY.0, RETRY.1)
        };
        slot.retry = Some((Instant::now() + pause, pause));
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
