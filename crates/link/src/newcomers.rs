//! Connections that have not yet shown that somebody is there.
//!
//! They cost a socket and what they have said of their first word (of a TLS client's, rustls keeps 64 KiB at most; it mostly has less than 2).
//! So some thousands may wait. When they are too many the one that has been silent longest goes:
//! whoever means it says the first word within a round trip, however many others never do.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// Newcomers at a time.
const MAX: usize = 2048;
/// Those that have spoken and wait for a place. One more is closed: who means it comes again.
const MAX_WAITING: usize = 4096;

/// The newcomers of one server. Cloning is cheap.
#[derive(Clone)]
pub struct Newcomers {
    shared: Arc<Mutex<Waiting>>,
    queue: Arc<Semaphore>,
}

impl Default for Newcomers {
    fn default() -> Self {
        Self { shared: Arc::default(), queue: Arc::new(Semaphore::new(MAX_WAITING)) }
    }
}

#[derive(Default)]
struct Waiting {
    next: u64,
    /// In the order of their arrival.
    by_arrival: BTreeMap<u64, CancellationToken>,
}

/// One newcomer; dropping it ends that.
struct Newcomer<'a> {
    all: &'a Newcomers,
    number: u64,
    sent_away: CancellationToken,
}

impl Newcomers {
    /// Waits for the first word, and then for a place. `None` when it did not come within this time, makes no sense, or when there are
    /// too many others.
    pub async fn admit<T>(
        &self,
        first_word: impl Future<Output = io::Result<T>>,
        limit: Duration,
        places: Arc<Semaphore>,
    ) -> Option<(T, OwnedSemaphorePermit)> {
        let newcomer = self.enter();
        let said = tokio::select! {
            () = newcomer.sent_away.cancelled() => {
                debug!("a connection that said nothing made room for another");
                return None;
            }
            said = tokio::time::timeout(limit, first_word) => said,
        };
        drop(newcomer);
        let said = match said {
            Ok(Ok(said)) => said,
            Ok(Err(error)) => {
                debug!(%error, "a connection ended before it said what it wants");
                return None;
            }
            Err(_) => {
                debug!("a connection took too long to say what it wants");
                return None;
            }
        };
        let Ok(_in_queue) = self.queue.try_acquire() else {
            debug!("a connection was closed: {MAX_WAITING} others wait already");
            return None;
        };
        Some((said, places.acquire_owned().await.ok()?))
    }

    fn enter(&self) -> Newcomer<'_> {
        let sent_away = CancellationToken::new();
        let mut waiting = self.lock();
        let number = waiting.next;
        waiting.next += 1;
        waiting.by_arrival.insert(number, sent_away.clone());
        if waiting.by_arrival.len() > MAX
            && let Some((_, oldest)) = waiting.by_arrival.pop_first()
        {
            oldest.cancel();
        }
        Newcomer { all: self, number, sent_away }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Newcomer<'_> {
    fn drop(&mut self) {
        self.all.lock().by_arrival.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_that_has_been_silent_longest_makes_room() {
        let newcomers = Newcomers::default();
        let first = newcomers.enter();
        let mut others: Vec<_> = (1..MAX).map(|_| newcomers.enter()).collect();
        assert!(!first.sent_away.is_cancelled());
        let one_more = newcomers.enter();
        assert!(first.sent_away.is_cancelled() && !others[0].sent_away.is_cancelled());
        others.clear();
        drop(first);
        assert_eq!(newcomers.lock().by_arrival.keys().copied().collect::<Vec<_>>(), [one_more.number]);
    }
}
