//! The delay between restarts of a failing container or pulls of a failing image.
//!
//! First attempt at once, then 10 s doubling to 300 s, counted from the failure; an attempt that held for
//! more than twice the maximum starts over (kubelet 1.32).

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;

/// First delay.
pub const BACKOFF_INITIAL: Duration = Duration::from_secs(10);
/// Longest delay.
pub const BACKOFF_MAX: Duration = Duration::from_secs(300);

/// Delays by key. Owned by one pod worker; lost at a restart of the agent, as in Kubernetes.
#[derive(Clone, Debug, Default)]
pub struct Backoff {
    entries: BTreeMap<String, Entry>,
}

/// Now, twice: by the clock, which may be set at any time, and since some start, which only grows.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// By the clock that failures are stamped with.
    pub clock: Timestamp,
    /// Since a start of the caller's choice.
    pub running: Duration,
}

#[derive(Clone, Debug)]
struct Entry {
    delay: Duration,
    /// When the last attempt was let through.
    last_attempt: Duration,
    /// Failure under consideration, and when it happened by the time that only grows.
    failure: Option<(Timestamp, Duration)>,
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
    pub fn attempt(&mut self, key: &str, failed_at: Timestamp, now: Moment) -> Result<(), Wait> {
        let mut delay = BACKOFF_INITIAL;
        if let Some(entry) = self.entries.get_mut(key) {
            let failed = entry.failed(failed_at, now);
            if failed.saturating_sub(entry.last_attempt) <= 2 * BACKOFF_MAX {
                let since = now.running.saturating_sub(failed);
                if let Some(remaining) = entry.delay.checked_sub(since).filter(|left| !left.is_zero()) {
                    return Err(Wait { delay: entry.delay, remaining });
                }
                delay = (entry.delay * 2).min(BACKOFF_MAX);
            }
        }
        self.entries.insert(key.to_owned(), Entry { delay, last_attempt: now.running, failure: None });
        Ok(())
    }
}

impl Entry {
    /// When this failure happened. The clock is asked once, and believed as far as it makes sense: a failure cannot lie in
    /// the future, nor before the attempt that failed.
    fn failed(&mut self, failed_at: Timestamp, now: Moment) -> Duration {
        match self.failure {
            Some((known, failed)) if known == failed_at => failed,
            _ => {
                let age = Duration::try_from(now.clock.duration_since(failed_at)).unwrap_or_default();
                let failed = now.running.saturating_sub(age).max(self.last_attempt);
                self.failure = Some((failed_at, failed));
                failed
            }
        }
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

    /// This many seconds after the start, by a clock that is off by so many.
    fn moment(second: u64, clock_offset: i64) -> Moment {
        let clock = at(i64::try_from(second).unwrap() + clock_offset);
        Moment { clock, running: Duration::from_secs(second) }
    }

    #[test]
    fn doubles_to_the_cap_counting_from_the_exit() {
        let mut backoff = Backoff::default();
        let mut now = 0;
        let mut gaps = Vec::new();
        for _ in 0..9 {
            let failed = now;
            while backoff.attempt("c", at(i64::try_from(failed).unwrap()), moment(now, 0)).is_err() {
                now += 1;
            }
            gaps.push(now - failed);
            now += 1;
        }
        assert_eq!(gaps, [0, 10, 20, 40, 80, 160, 300, 300, 300]);
    }

    #[test]
    fn starts_over_after_a_long_run() {
        let mut backoff = Backoff::default();
        backoff.attempt("c", at(0), moment(0, 0)).unwrap();
        backoff.attempt("c", at(10), moment(20, 0)).unwrap();
        assert_eq!(backoff.attempt("c", at(30), moment(31, 0)).unwrap_err().delay, Duration::from_secs(20));
        // Ran for 11 minutes: the first delay again, and at once.
        assert_eq!(backoff.attempt("c", at(20 + 660), moment(20 + 660, 0)), Ok(()));
        assert_eq!(backoff.attempt("c", at(700), moment(700, 0)).unwrap_err().delay, BACKOFF_INITIAL);
    }

    #[test]
    fn a_clock_that_is_set_makes_no_wait_longer_or_shorter() {
        let day = 86_400;
        for jump in [-day, day] {
            // Before the failure, between failure and question, and while it waits.
            for (stamped, asked, later) in [(jump, jump, jump), (0, jump, jump), (0, 0, jump)] {
                let mut backoff = Backoff::default();
                backoff.attempt("c", at(0), moment(0, 0)).unwrap();
                let failed_at = at(5 + stamped);
                let wait = backoff.attempt("c", failed_at, moment(6, asked)).unwrap_err();
                assert_eq!(wait.delay, BACKOFF_INITIAL, "{jump} {stamped} {asked}");
                // What was stamped before the clock was set has an unknown age: that of the attempt, or none.
                assert!((4..=10).contains(&wait.remaining.as_secs()), "{jump} {stamped} {asked}: {wait:?}");
                assert_eq!(backoff.attempt("c", failed_at, moment(16, later)), Ok(()), "{jump} {stamped} {asked}");
            }
        }
    }

    #[test]
    fn prints_durations_like_go() {
        for (seconds, text) in [(10, "10s"), (80, "1m20s"), (160, "2m40s"), (300, "5m0s")] {
            assert_eq!(go_duration(Duration::from_secs(seconds)), text);
        }
    }
}
