//! Tells when a node is behind: in the feed of `/events`, and on the Node, where `kubectl describe node` shows it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::feed::{Event, Feed};
use super::sessions::Sessions;
use crate::edgecontroller::upstream::Upstream;

/// How often all sessions are looked at.
const LOOK: Duration = Duration::from_secs(5);
/// A node that has not had everything for so long lags.
pub(super) const LAGS: Duration = Duration::from_secs(30);
/// After this time it is told on the Node again, with the figures of then.
const AGAIN: Duration = Duration::from_secs(300);
/// Nodes that are written to the Kubernetes API in one look: a whole fleet may lag at once, and the next look comes soon.
const MAX_WRITES: usize = 100;

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
    let mut told = Told::default();
    while stopping.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_some() {
        let all = sessions.handles();
        // Of a node that is away the Ready condition tells.
        told.at.retain(|node, _| all.iter().any(|handle| handle.node() == node));
        let mut writes = 0;
        for handle in &all {
            let (node, lag) = (handle.node(), handle.lag());
            if let Some(lag) = lag.filter(|lag| lag.time >= LOOK) {
                feed.tell(node, || Event::Lag { pending: lag.pending, seconds: lag.time.as_secs() });
            }
            if writes == MAX_WRITES {
                continue;
            }
            match told.look(node, lag, Instant::now()) {
                Some(Tell::Lag(Lag { pending, time })) => {
                    let seconds = time.as_secs();
                    warn!(node, pending, seconds, "the node lags");
                    let text =
                        format!("{pending} changes wait for the node, which has not had everything for {seconds} s");
                    upstream.tell_on_node(node, "Warning", "Lagging", &text).await;
                }
                Some(Tell::CaughtUp) => {
                    info!(node, "the node has caught up");
                    feed.tell(node, || Event::CaughtUp);
                    upstream.tell_on_node(node, "Normal", "CaughtUp", "the node has all changes").await;
                }
                None => continue,
            }
            writes += 1;
        }
    }
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
