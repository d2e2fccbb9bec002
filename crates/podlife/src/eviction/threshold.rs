//! How much must stay free: the maps `evictionHard`, `evictionSoft` and their companions.

use std::collections::BTreeMap;
use std::time::Duration;

use super::signal::{NAMES, Signal};

/// A quantity, or a part of the capacity.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Amount {
    /// Bytes, inodes or processes.
    Absolute(u64),
    /// Part of the capacity, 0 to 1.
    Part(f32),
}

/// A line that must not be crossed.
#[derive(Clone, Debug, PartialEq)]
pub struct Threshold {
    /// What is watched.
    pub signal: Signal,
    /// How much of it must stay free.
    pub value: Amount,
    /// How long it may be less; zero for a hard threshold.
    pub grace: Duration,
    /// How much more must be freed once it has been crossed.
    pub min_reclaim: Option<Amount>,
}

/// The maps as the configuration has them, durations in seconds already.
#[derive(Clone, Copy, Debug)]
pub struct Texts<'a> {
    /// `evictionHard`.
    pub hard: &'a BTreeMap<String, String>,
    /// `evictionSoft`.
    pub soft: &'a BTreeMap<String, String>,
    /// `evictionSoftGracePeriod`.
    pub soft_grace: &'a BTreeMap<String, Duration>,
    /// `evictionMinimumReclaim`.
    pub min_reclaim: &'a BTreeMap<String, String>,
}

/// A map entry that makes no sense.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{map}.{signal}: {problem}")]
pub struct ThresholdError {
    /// The map, `evictionHard`.
    pub map: &'static str,
    /// Its key.
    pub signal: String,
    /// What is wrong, and what to write.
    pub problem: String,
}

impl Amount {
    /// Of a capacity.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "as the kubelet computes it; the result is never more than the capacity"
    )]
    pub fn of(self, capacity: u64) -> u64 {
        match self {
            Amount::Absolute(value) => value,
            Amount::Part(part) => (capacity as f64 * f64::from(part)) as u64,
        }
    }
}

impl Threshold {
    /// Crossing it has consequences at once.
    pub fn is_hard(&self) -> bool {
        self.grace.is_zero()
    }
}

/// Reads the maps. `quantity` reads a Kubernetes quantity in whole units. A threshold of 0 or 100 % switches it off.
///
/// # Errors
/// Every entry that makes no sense.
pub fn parse(texts: Texts<'_>, quantity: impl Fn(&str) -> Option<u64>) -> Result<Vec<Threshold>, Vec<ThresholdError>> {
    let mut errors = Vec::new();
    let reclaims = amounts("evictionMinimumReclaim", texts.min_reclaim, &quantity, &mut errors);
    let hard = amounts("evictionHard", texts.hard, &quantity, &mut errors);
    let soft = amounts("evictionSoft", texts.soft, &quantity, &mut errors);
    for name in texts.soft_grace.keys().filter(|name| Signal::parse(name).is_none()) {
        errors.push(unknown("evictionSoftGracePeriod", name));
    }
    let mut thresholds = Vec::new();
    let made = |signal, value, grace| Threshold { signal, value, grace, min_reclaim: reclaims.get(&signal).copied() };
    for (signal, value) in &hard {
        thresholds.push(made(*signal, *value, Duration::ZERO));
        if *signal == Signal::MemoryAvailable {
            thresholds.push(Threshold {
                signal: Signal::AllocatableMemoryAvailable,
                ..made(*signal, *value, Duration::ZERO)
            });
        }
    }
    for (signal, value) in soft {
        match texts.soft_grace.get(signal.as_str()) {
            Some(grace) if !grace.is_zero() => thresholds.push(made(signal, value, *grace)),
            _ => errors.push(ThresholdError {
                map: "evictionSoft",
                signal: signal.as_str().into(),
                problem: "needs a grace period; name it in evictionSoftGracePeriod, for example 1m30s".into(),
            }),
        }
    }
    // A threshold that is off never holds.
    thresholds.retain(|threshold| match threshold.value {
        Amount::Absolute(value) => value > 0,
        Amount::Part(part) => part > 0.0 && part < 1.0,
    });
    if errors.is_empty() { Ok(thresholds) } else { Err(errors) }
}

fn amounts(
    map: &'static str,
    texts: &BTreeMap<String, String>,
    quantity: impl Fn(&str) -> Option<u64>,
    errors: &mut Vec<ThresholdError>,
) -> BTreeMap<Signal, Amount> {
    let mut read = BTreeMap::new();
    for (name, text) in texts {
        let Some(signal) = Signal::parse(name) else {
            errors.push(unknown(map, name));
            continue;
        };
        let amount = match text.strip_suffix('%') {
            Some(percent) => percent
                .trim()
                .parse::<f32>()
                .ok()
                .filter(|percent| (0.0..=100.0).contains(percent))
                .map(|percent| Amount::Part(percent / 100.0)),
            None => quantity(text).map(Amount::Absolute),
        };
        match amount {
            Some(amount) => drop(read.insert(signal, amount)),
            None => errors.push(ThresholdError {
                map,
                signal: name.clone(),
                problem: format!("{text:?} is neither a quantity (100Mi) nor a percentage from 0% to 100%"),
            }),
        }
    }
    read
}

fn unknown(map: &'static str, name: &str) -> ThresholdError {
    let known: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
    ThresholdError {
        map,
        signal: name.to_owned(),
        problem: format!("is no eviction signal; there are {}", known.join(", ")),
    }
}
