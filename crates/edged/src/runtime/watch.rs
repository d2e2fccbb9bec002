//! News from the runtime: which pod has changed.
//!
//! Where the runtime has events (CRI's own, or containerd's before 1.7) they say when to look; otherwise it is looked at
//! every second. What has changed is found by comparing lists, so that no single event has to be trusted.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::pin::Pin;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use super::{Runtime, RuntimeEvent};
use crate::cri::{CriClient, CriError};
use crate::{labels, observe};

/// Between looks without events, or while pods start and stop.
const BUSY: Duration = Duration::from_secs(1);
/// Between looks when events tell of changes: a net below them.
const IDLE: Duration = Duration::from_secs(10);
/// After an event: at once what is settled, later what CRI learns of the same event a little after us.
const AFTER_EVENT: [Duration; 3] = [Duration::from_millis(10), Duration::from_millis(100), Duration::from_secs(1)];

/// State of everything of one pod: what is compared from look to look.
type Fingerprint = BTreeSet<(String, i32)>;

/// A stream of events, of which only the arrival counts.
enum Source {
    /// It is asked for. A runtime may answer only with its first event (containerd does): nobody waits for that, and a
    /// question that has been heard is as good as an answer.
    Asked {
        since: Instant,
        answer: Asked,
    },
    Cri(Streaming<crate::cri::proto::ContainerEventResponse>),
    Containerd(Streaming<crate::cri::ContainerdEvent>),
    /// There is none, or it has ended.
    None,
}

type Asked = Pin<Box<dyn Future<Output = Result<Source, CriError>> + Send>>;

/// What a source has to say.
enum Heard {
    /// Something happened.
    Event,
    /// The stream was opened.
    Begun,
    /// The runtime has no events of any kind.
    Without,
    /// There is no stream now: it is asked for again after the next look.
    Refused,
    /// The stream has ended: events may have been missed.
    Ended,
}

impl Source {
    /// Asks for the best stream of events that this runtime has.
    fn ask(cri: &CriClient) -> Self {
        let cri = cri.clone();
        let answer = Box::pin(async move {
            match cri.container_events().await {
                Ok(stream) => return Ok(Source::Cri(stream)),
                Err(error) if error.is_unimplemented() => {}
                Err(error) => return Err(error),
            }
            match cri.containerd_events().await {
                Ok(stream) => Ok(Source::Containerd(stream)),
                Err(error) if error.is_unimplemented() => Ok(Source::None),
                Err(error) => Err(error),
            }
        });
        Source::Asked { since: Instant::now(), answer }
    }

    /// Resolves when there is something to say. May be dropped and called again: nothing is lost.
    async fn next(&mut self) -> Heard {
        match self {
            Source::Asked { answer, .. } => {
                let answer = answer.await;
                *self = Source::None;
                match answer {
                    Ok(Source::None) => Heard::Without,
                    Ok(stream) => {
                        *self = stream;
                        Heard::Begun
                    }
                    Err(error) => {
                        tracing::debug!(error = &error as &dyn std::error::Error, "no events from the runtime");
                        Heard::Refused
                    }
                }
            }
            Source::Cri(stream) => match stream.message().await {
                Ok(Some(_)) => Heard::Event,
                _ => Heard::Ended,
            },
            Source::Containerd(stream) => loop {
                match stream.message().await {
                    Ok(Some(event)) if event.is_container_exit() => return Heard::Event,
                    Ok(Some(_)) => {}
                    _ => return Heard::Ended,
                }
            },
            Source::None => std::future::pending().await,
        }
    }

    fn is_none(&self) -> bool {
        matches!(self, Source::None)
    }

    /// Whether a change would be told: a question has been heard when the runtime has answered another one a while later.
    fn tells(&self) -> bool {
        match self {
            Source::Asked { since, .. } => since.elapsed() >= BUSY,
            Source::Cri(_) | Source::Containerd(_) => true,
            Source::None => false,
        }
    }
}

/// When to look next.
struct Looks {
    regular: Instant,
    after_events: BTreeSet<Instant>,
}

impl Looks {
    fn next(&self) -> Instant {
        self.after_events.first().map_or(self.regular, |look| self.regular.min(*look))
    }

    /// A storm of events neither adds looks nor puts the next one off.
    fn event(&mut self, now: Instant) {
        let [soon, later @ ..] = AFTER_EVENT.map(|after| now + after);
        let soon = self.after_events.first().map_or(soon, |look| soon.min(*look));
        self.after_events = later.into_iter().chain([soon]).collect();
    }

    fn looked(&mut self, now: Instant, pause: Duration) {
        self.after_events.retain(|look| *look > now);
        self.regular = now + pause;
    }
}

impl Runtime {
    /// Sends news of pods until cancelled. A full queue is not waited for: what did not fit becomes one
    /// [`RuntimeEvent::Resync`].
    pub async fn events(&self, sender: mpsc::Sender<RuntimeEvent>, stop: CancellationToken) {
        tokio::select! {
            () = self.watch(sender) => {}
            () = stop.cancelled() => {}
        }
    }

    async fn watch(&self, sender: mpsc::Sender<RuntimeEvent>) {
        let mut busy = self.busy.subscribe();
        let mut watch = Watch { sender, known: None, lost: false };
        let mut source = Source::None;
        // Neither kind of event is known here: do not ask again before the runtime has been away.
        let mut without = false;
        let mut looks = Looks { regular: Instant::now(), after_events: BTreeSet::new() };
        loop {
            if source.is_none() && !without {
                source = Source::ask(&self.cri);
            }
            let begun = Instant::now();
            let fingerprints = self.fingerprints().await;
            self.measures.relist.add(begun.elapsed());
            match fingerprints {
                Ok(now) => watch.compare(now),
                Err(error) => {
                    if !watch.lost {
                        tracing::warn!(error = &error as &dyn std::error::Error, "container runtime does not answer");
                    }
                    watch.lost = true;
                    without = false;
                }
            }
            let often = watch.lost || !source.tells() || *busy.borrow_and_update();
            looks.looked(Instant::now(), if often { BUSY } else { IDLE });
            loop {
                tokio::select! {
                    () = sleep_until(looks.next()) => break,
                    heard = source.next() => match heard {
                        Heard::Event => looks.event(Instant::now()),
                        Heard::Begun | Heard::Refused => {}
                        Heard::Without => without = true,
                        Heard::Ended => {
                            source = Source::None;
                            break;
                        }
                    },
                    changed = busy.changed() => if changed.is_ok() { break },
                }
            }
        }
    }

    async fn fingerprints(&self) -> Result<HashMap<String, Fingerprint>, CriError> {
        let (sandboxes, containers) =
            tokio::try_join!(self.cri.list_sandboxes(BTreeMap::new()), self.cri.list_containers(BTreeMap::new()))?;
        let mut pods: HashMap<String, Fingerprint> = HashMap::new();
        let sandboxes = sandboxes.into_iter().map(|sandbox| (sandbox.labels, sandbox.id, sandbox.state));
        let containers = containers.into_iter().map(|container| (container.labels, container.id, container.state));
        for (mut labels, id, state) in sandboxes.chain(containers) {
            if observe::identity(&labels).is_some()
                && let Some(uid) = labels.remove(labels::POD_UID)
            {
                pods.entry(uid).or_default().insert((id, state));
            }
        }
        Ok(pods)
    }
}

struct Watch {
    sender: mpsc::Sender<RuntimeEvent>,
    /// Absent before the first look.
    known: Option<HashMap<String, Fingerprint>>,
    /// Events may have been missed.
    lost: bool,
}

impl Watch {
    fn compare(&mut self, now: HashMap<String, Fingerprint>) {
        if self.lost {
            self.lost = self.sender.try_send(RuntimeEvent::Resync).is_err();
        } else if let Some(known) = &self.known {
            let uids: BTreeSet<&String> = known.keys().chain(now.keys()).collect();
            for uid in uids.into_iter().filter(|uid| known.get(*uid) != now.get(*uid)).cloned() {
                if self.sender.try_send(RuntimeEvent::Pod { uid }).is_err() {
                    self.lost = true;
                    break;
                }
            }
        }
        self.known = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods(entries: &[(&str, i32)]) -> HashMap<String, Fingerprint> {
        let one = |uid: &str, state| (uid.to_owned(), Fingerprint::from([("id".to_owned(), state)]));
        entries.iter().map(|(uid, state)| one(uid, *state)).collect()
    }

    #[test]
    fn changes_are_told_and_what_does_not_fit_becomes_a_resync() {
        let (sender, mut receiver) = mpsc::channel(2);
        let mut watch = Watch { sender, known: Some(pods(&[("a", 1), ("b", 1)])), lost: false };
        watch.compare(pods(&[("a", 2), ("c", 1), ("b", 1)]));
        assert_eq!(receiver.try_recv().unwrap(), RuntimeEvent::Pod { uid: "a".into() });
        assert_eq!(receiver.try_recv().unwrap(), RuntimeEvent::Pod { uid: "c".into() });
        watch.compare(pods(&[]));
        assert!(watch.lost);
        receiver.try_recv().unwrap();
        receiver.try_recv().unwrap();
        watch.compare(pods(&[]));
        assert_eq!(receiver.try_recv().unwrap(), RuntimeEvent::Resync);
        assert!(!watch.lost);
    }
}
