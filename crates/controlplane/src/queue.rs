//! A queue of keys to look at: each key at most once, later if asked, with a growing pause after failures.
//!
//! Bounded by the number of objects that exist. One consumer; any number of producers, which never wait.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::object::Key;

/// The first pause after a failure; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The queue of one controller.
#[derive(Debug, Default)]
pub struct WorkQueue {
    state: Mutex<State>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct State {
    ready: VecDeque<Key>,
    queued: HashSet<Key>,
    later: BTreeMap<(Instant, u64), Key>,
    due: HashMap<Key, (Instant, u64)>,
    failures: HashMap<Key, u32>,
    sequence: u64,
}

impl WorkQueue {
    /// Looks at the key as soon as possible.
    pub fn add(&self, key: Key) {
        let mut state = self.lock();
        if state.queued.insert(key.clone()) {
            state.ready.push_back(key);
            drop(state);
            self.wake.notify_one();
        }
    }

    /// Looks at the key after this time, or earlier if it was to be earlier.
    pub fn add_after(&self, key: Key, delay: Duration) {
        let mut state = self.lock();
        let due = Instant::now() + delay;
        if let Some(old) = state.due.get(&key).copied() {
            if old.0 <= due {
                return;
            }
            state.later.remove(&old);
        }
        state.sequence += 1;
        let place = (due, state.sequence);
        state.due.insert(key.clone(), place);
        state.later.insert(place, key);
        drop(state);
        self.wake.notify_one();
    }

    /// The key failed: looks again after a pause that grows with each failure. Returns how often it has failed in a row.
    pub fn retry(&self, key: Key) -> u32 {
        let failures = {
            let mut state = self.lock();
            let failures = state.failures.entry(key.clone()).or_default();
            *failures += 1;
            *failures
        };
        let pause = FIRST_PAUSE.saturating_mul(1 << failures.min(16).saturating_sub(1)).min(LONGEST_PAUSE);
        self.add_after(key, pause);
        failures
    }

    /// The key succeeded: its next failure is the first again.
    pub fn forget(&self, key: &Key) {
        self.lock().failures.remove(key);
    }

    /// The next key; waits for it.
    pub async fn next(&self) -> Key {
        loop {
            let due = {
                let mut state = self.lock();
                state.promote(Instant::now());
                if let Some(key) = state.ready.pop_front() {
                    state.queued.remove(&key);
                    return key;
                }
                state.later.keys().next().map(|(due, _)| *due)
            };
            match due {
                Some(due) => {
                    tokio::select! {
                        () = self.wake.notified() => {}
                        () = tokio::time::sleep_until(due) => {}
                    }
                }
                None => self.wake.notified().await,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn promote(&mut self, now: Instant) {
        while let Some(entry) = self.later.first_entry() {
            if entry.key().0 > now {
                return;
            }
            let key = entry.remove();
            self.due.remove(&key);
            if self.queued.insert(key.clone()) {
                self.ready.push_back(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_key_once_and_the_earliest_time_counts() {
        let queue = WorkQueue::default();
        let key = |name: &str| Key::new("ns", name);
        queue.add(key("a"));
        queue.add(key("a"));
        queue.add_after(key("b"), Duration::from_secs(5));
        queue.add_after(key("b"), Duration::from_secs(2));
        queue.add_after(key("b"), Duration::from_secs(9));
        let start = Instant::now();
        assert_eq!(queue.next().await, key("a"));
        assert_eq!(queue.next().await, key("b"));
        assert_eq!(start.elapsed().as_secs(), 2);
        assert!(tokio::time::timeout(Duration::from_secs(60), queue.next()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn failures_pause_longer_and_longer() {
        let queue = WorkQueue::default();
        let key = Key::new("", "n");
        let mut pauses = Vec::new();
        for _ in 0..4 {
            let start = Instant::now();
            queue.retry(key.clone());
            queue.next().await;
            pauses.push(start.elapsed().as_millis());
        }
        assert_eq!(pauses, [20, 40, 80, 160]);
        queue.forget(&key);
        assert_eq!(queue.retry(key), 1);
    }
}
