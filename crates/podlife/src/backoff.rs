//! The delay between restarts of a failing container or pulls of a failing image.
//!
//! First attempt at once, then 10 s doubling to 300 s, counted from the failure; an attempt that held for
//! more than twice the maximum starts over (kubelet 1.32).

use std::{collections::BTreeMap, time::Duration};

use jiff::{SignedDuration, Timestamp};

/// First delay.
pub const BACKOFF_INITIAL: Duration = Duration::from_secs(10);
/// Longest delay.
pub const BACKOFF_MAX: Duration = Duration::from_secs(300);

/// Delays by key. Owned by one pod worker; lost at a restart of the agent, as in Kubernetes.
#[derive(Clone, Debug, Default)]
pub struct Backoff {
    entries: BTreeMap<String, Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    delay: Duration,
    /// When the last attempt was let through.
    last_attempt: Timestamp,
    /// Failure under consideration and when it was first asked about: bounds the wait when the clock jumps.
    asked: Option<(Timestamp, Timestamp)>,
}

/// An attempt that has to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// The whole delay, as the message of CrashLoopBackOff prints it.
    pub delay: Duration,
    /// What is left of it.
    pub remaining: Duration,
}

impl Backoff {
    /// Asks whether an attempt may be made now after a failure at `failed_at`; when it may, it is counted.
    pub fn attempt(&mut self, key: &str, failed_at: Timestamp, now: Timestamp) -> Result<(), Wait> {
        if let Some(wait) = self.waiting(key, failed_at, now) {
            return Err(wait);
        }
        let delay = match self.entries.get(key) {
            Some(entry) if !entry.is_stale(failed_at) => (entry.delay * 2).min(BACKOFF_MAX),
            _ => BACKOFF_INITIAL,
        };
        self.entries.insert(key.to_owned(), Entry { delay, last_attempt: now, asked: None });
        Ok(())
    }

    /// Whether an attempt would have to wait.
    pub fn waiting(&mut self, key: &str, failed_at: Timestamp, now: Timestamp) -> Option<Wait> {
        let entry = self.entries.get_mut(key)?;
        if entry.is_stale(failed_at) {
            return None;
        }
        let asked_at = match entry.asked {
            Some((failure, asked_at)) if failure == failed_at && asked_at <= now => asked_at,
            _ => {
                entry.asked = Some((failed_at, now));
                now
            }
        };
        // A failure in the future means that the clock went back: count from when it was first seen.
        let since = now.duration_since(failed_at.min(asked_at)).unsigned_abs();
        let remaining = entry.delay.checked_sub(since).filter(|left| !left.is_zero())?;
        Some(Wait { delay: entry.delay, remaining })
    }

    /// Forgets a key after success of another kind (the spec changed).
    pub fn forget(&mut self, key: &str) {
        self.entries.remove(key);
    }

    /// Drops entries whose last attempt held for longer than twice the maximum.
    pub fn collect_garbage(&mut self, now: Timestamp) {
        self.entries.retain(|_, entry| !entry.is_stale(now));
    }
}

impl Entry {
    fn is_stale(&self, failed_at: Timestamp) -> bool {
        failed_at.duration_since(self.last_attempt)
            > SignedDuration::try_from(BACKOFF_MAX * 2).unwrap_or(SignedDuration::MAX)
    }
}

/// A duration as Go prints it: `10s`, `1m20s`, `5m0s`.
pub fn go_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 60, seconds % 60) {
        (0, seconds) => format!("{seconds}s"),
        (minutes, seconds) => format!("{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    #[test]
    fn doubles_to_the_cap_counting_from_the_exit() {
        let mut backoff = Backoff::default();
        let mut now = 0;
        let mut gaps = Vec::new();
        for _ in 0..9 {
            let failed_at = now;
            while backoff.attempt("c", at(failed_at), at(now)).is_err() {
                now += 1;
            }
            gaps.push(now - failed_at);
        }
        assert_eq!(gaps, [0, 10, 20, 40, 80, 160, 300, 300, 300]);
    }

    #[test]
    fn starts_over_after_a_long_run() {
        let mut backoff = Backoff::default();
        backoff.attempt("c", at(0), at(0)).unwrap();
        backoff.attempt("c", at(10), at(20)).unwrap();
        assert_eq!(backoff.attempt("c", at(30), at(31)).unwrap_err().delay, Duration::from_secs(20));
        // Ran for 11 minutes: the first delay again, and at once.
        assert_eq!(backoff.attempt("c", at(20 + 660), at(20 + 660)), Ok(()));
        assert_eq!(backoff.attempt("c", at(700), at(700)).unwrap_err().delay, BACKOFF_INITIAL);
    }

    #[test]
    fn a_clock_set_back_by_a_day_does_not_block_for_a_day() {
        let mut backoff = Backoff::default();
        backoff.attempt("c", at(0), at(0)).unwrap();
        let failed_at = at(5);
        let day = 86_400;
        assert!(backoff.attempt("c", failed_at, at(6 - day)).is_err());
        assert_eq!(backoff.attempt("c", failed_at, at(17 - day)), Ok(()));
    }

    #[test]
    fn prints_durations_like_go() {
        for (seconds, text) in [(10, "10s"), (80, "1m20s"), (160, "2m40s"), (300, "5m0s")] {
            assert_eq!(go_duration(Duration::from_secs(seconds)), text);
        }
    }
}
