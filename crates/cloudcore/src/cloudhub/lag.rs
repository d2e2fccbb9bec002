//! Tells when a node is behind: in the feed of `/events`, and on the Node, where `kubectl describe node` shows it.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::feed::{Event, Feed};
use super::session::SessionHandle;
use super::sessions::Sessions;
use crate::edgecontroller::upstream::Upstream;

/// How often all sessions are looked at.
const LOOK: Duration = Duration::from_secs(5);
/// A node that has not had everything for so long lags.
pub(super) const LAGS: Duration = Duration::from_secs(30);
/// After this time it is told on the Node again, with the figures of then.
const AGAIN: Duration = Duration::from_secs(300);
/// For so long it is remembered of a node that is away.
const REMEMBERED: Duration = Duration::from_secs(3600);
/// Nodes that are written to the Kubernetes API in one look: a whole fleet may lag at once, and the next look comes soon.
const MAX_WRITES: usize = 100;
/// Of these so many at the same time.
const WRITES_AT_ONCE: usize = 16;

/// How far a connected node is behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lag {
    /// Objects that it has not acknowledged.
    pub(super) pending: usize,
    /// Since it last had everything.
    pub(super) time: Duration,
}

/// What is to be told of one node.
#[derive(Debug, PartialEq, Eq)]
enum Tell {
    /// It lags.
    Lag(Lag),
    /// It has everything again.
    CaughtUp,
}

impl Tell {
    /// Type, reason and text of the event on the Node.
    fn event(&self) -> (&'static str, &'static str, String) {
        match self {
            Self::CaughtUp => ("Normal", "CaughtUp", "the node has all changes".to_owned()),
            Self::Lag(Lag { pending: 0, time }) => {
                let text = format!("what the node lacks could not be found out for {} s", time.as_secs());
                ("Warning", "Lagging", text)
            }
            Self::Lag(Lag { pending, time }) => {
                let seconds = time.as_secs();
                let text = format!("{pending} changes wait for the node, which has not had everything for {seconds} s");
                ("Warning", "Lagging", text)
            }
        }
    }
}

/// When nodes were last told to lag.
#[derive(Default)]
struct Told {
    at: HashMap<String, Instant>,
}

impl Told {
    /// What to tell on the Node now, if anything.
    fn look(&mut self, node: &str, lag: Option<Lag>, now: Instant) -> Option<Tell> {
        match lag.filter(|lag| lag.time >= LAGS) {
            Some(lag) => {
                let is_new = self.at.get(node).is_none_or(|told| now.duration_since(*told) >= AGAIN);
                is_new.then(|| {
                    self.at.insert(node.to_owned(), now);
                    Tell::Lag(lag)
                })
            }
            None if lag.is_none() => self.at.remove(node).map(|_| Tell::CaughtUp),
            None => None,
        }
    }
}

/// Watches all sessions until `stopping`.
pub(super) async fn watch(sessions: Sessions, upstream: Upstream, feed: Feed, stopping: CancellationToken) {
    let watching = async {
        let mut told = Told::default();
        loop {
            tokio::time::sleep(LOOK).await;
            let tells = look(&sessions.handles(), &mut told, &feed);
            let writes = tells.into_iter().map(|(node, tell)| {
                let upstream = upstream.clone();
                async move {
                    let (kind, reason, text) = tell.event();
                    upstream.tell_on_node(&node, kind, reason, &text).await;
                }
            });
            stream::iter(writes).buffer_unordered(WRITES_AT_ONCE).for_each(|()| std::future::ready(())).await;
        }
    };
    let _ = stopping.run_until_cancelled(watching).await;
}

/// One look at all sessions: what is to be told on which Node.
fn look(sessions: &[SessionHandle], told: &mut Told, feed: &Feed) -> Vec<(String, Tell)> {
    let here: HashSet<&str> = sessions.iter().map(SessionHandle::node).collect();
    // Of a node that is away the Ready condition tells; when it is back and has everything it is told.
    told.at.retain(|node, at| here.contains(node.as_str()) || at.elapsed() < REMEMBERED);
    let mut tells = Vec::new();
    for handle in sessions {
        let (node, lag) = (handle.node(), handle.lag());
        if let Some(lag) = lag.filter(|lag| lag.time >= LOOK) {
            feed.tell(node, || Event::Lag { pending: lag.pending, seconds: lag.time.as_secs() });
        }
        if tells.len() == MAX_WRITES {
            continue;
        }
        let Some(tell) = told.look(node, lag, Instant::now()) else { continue };
        match &tell {
            Tell::Lag(Lag { pending, time }) => warn!(node, pending, seconds = time.as_secs(), "the node lags"),
            Tell::CaughtUp => {
                info!(node, "the node has caught up");
                feed.tell(node, || Event::CaughtUp);
            }
        }
        tells.push((node.to_owned(), tell));
    }
    tells
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lag_is_told_once_in_a_while_and_its_end_once() {
        let (mut told, now) = (Told::default(), Instant::now());
        let lag = |seconds| Some(Lag { pending: 2, time: Duration::from_secs(seconds) });
        assert_eq!(told.look("n", None, now), None);
        assert_eq!(told.look("n", lag(29), now), None);
        assert_eq!(told.look("n", lag(30), now), lag(30).map(Tell::Lag));
        assert_eq!(told.look("n", lag(35), now + LOOK), None);
        let later = now + AGAIN;
        assert_eq!(told.look("n", lag(330), later), lag(330).map(Tell::Lag));
        // It had everything for a moment and is behind again since then.
        assert_eq!(told.look("n", lag(1), later), None);
        assert_eq!(told.look("n", None, later), Some(Tell::CaughtUp));
        assert_eq!(told.look("n", None, later), None);
    }
}
