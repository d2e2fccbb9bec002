//! Remembers since when something is short, and says what follows from it. The clock is the monotonic one: a node whose
//! time is set anew is not short of anything for that.

use std::time::{Duration, Instant};

use super::signal::{Observations, Pressure, Resource, Signal};
use super::threshold::Threshold;

/// State between two observations.
#[derive(Debug)]
pub struct Watch {
    thresholds: Vec<Threshold>,
    /// How long a condition stays after what caused it was seen last (`evictionPressureTransitionPeriod`).
    transition: Duration,
    states: Vec<State>,
}

/// State of one threshold.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// Crossed since; absent when it is not.
    since: Option<Instant>,
    /// When it was crossed last.
    last: Option<Instant>,
}

/// Something that must be freed now.
#[derive(Clone, Debug, PartialEq)]
pub struct Shortage {
    /// What is short.
    pub signal: Signal,
    /// No time for a long goodbye.
    pub hard: bool,
    /// How much must be free.
    pub threshold: u64,
    /// How much is.
    pub available: u64,
}

impl Shortage {
    /// What is short.
    pub fn resource(&self) -> Resource {
        self.signal.resource()
    }
}

impl Watch {
    /// Watches these thresholds.
    pub fn new(thresholds: Vec<Threshold>, transition: Duration) -> Self {
        Self { states: vec![State::default(); thresholds.len()], thresholds, transition }
    }

    /// Takes in an observation; returns what must be freed now, the most urgent first.
    pub fn observe(&mut self, observations: &Observations, now: Instant) -> Vec<Shortage> {
        let mut shortages = Vec::new();
        for (threshold, state) in self.thresholds.iter().zip(&mut self.states) {
            let Some(observed) = observations.get(&threshold.signal) else {
                // What cannot be read now neither begins nor ends.
                continue;
            };
            let limit = threshold.value.of(observed.capacity);
            let reclaim = threshold.min_reclaim.filter(|_| state.since.is_some());
            let wanted = limit.saturating_add(reclaim.map_or(0, |reclaim| reclaim.of(observed.capacity)));
            if observed.available >= wanted {
                state.since = None;
                continue;
            }
            let since = *state.since.get_or_insert(now);
            state.last = Some(now);
            if now.duration_since(since) >= threshold.grace {
                shortages.push(Shortage {
                    signal: threshold.signal,
                    hard: threshold.is_hard(),
                    threshold: limit,
                    available: observed.available,
                });
            }
        }
        // Memory first: without it nothing else can be done. Otherwise the order of the configuration.
        shortages.sort_by_key(|shortage| (shortage.resource() != Resource::Memory, !shortage.hard));
        shortages
    }

    /// Conditions of the node.
    pub fn pressure(&self, now: Instant) -> Pressure {
        let held = self.thresholds.iter().zip(&self.states).filter(|(_, state)| {
            let recent = |last| now.duration_since(last) < self.transition;
            state.since.is_some() || state.last.is_some_and(recent)
        });
        held.fold(Pressure::default(), |pressure, (threshold, _)| pressure.or(Pressure::of(threshold.signal)))
    }

    /// Whether freeing has made this signal good, with all that had to be freed at least.
    pub fn is_resolved(&self, signal: Signal, observations: &Observations) -> bool {
        let Some(observed) = observations.get(&signal) else { return false };
        self.thresholds.iter().zip(&self.states).filter(|(t, s)| t.signal == signal && s.since.is_some()).all(
            |(t, _)| {
                let reclaim = t.min_reclaim.map_or(0, |reclaim| reclaim.of(observed.capacity));
                observed.available >= t.value.of(observed.capacity).saturating_add(reclaim)
            },
        )
    }
}
