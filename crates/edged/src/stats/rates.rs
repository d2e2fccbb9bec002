//! Rates of processor use, from the counters of two samples.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};

use super::summary::{CpuStats, Summary};

/// Counters that are closer together than this give no rate worth the name.
const MIN_INTERVAL: SignedDuration = SignedDuration::from_secs(3);

/// What was counted before, by a name of what it belongs to.
#[derive(Debug, Default)]
pub struct Rates {
    before: HashMap<String, Sample>,
}

#[derive(Clone, Debug)]
struct Sample {
    at: Timestamp,
    counter: u64,
    rate: Option<u64>,
}

impl Rates {
    /// Fills in rates, and remembers the counters for the next time.
    pub fn fill(&mut self, summary: &mut Summary) {
        let mut after = HashMap::new();
        let mut one = |key: String, cpu: Option<&mut CpuStats>| {
            let before = self.before.get(&key);
            if let Some(sample) = cpu.and_then(|cpu| next(before, cpu)) {
                after.insert(key, sample);
            }
        };
        one("node".into(), summary.node.usage.cpu.as_mut());
        for container in &mut summary.node.system_containers {
            one(format!("node/{}", container.name), container.usage.cpu.as_mut());
        }
        for pod in &mut summary.pods {
            one(format!("pod/{}", pod.pod_ref.uid), pod.usage.cpu.as_mut());
            for container in &mut pod.containers {
                one(format!("container/{}", container.id), container.usage.cpu.as_mut());
            }
        }
        self.before = after;
    }
}

/// The sample to go on with. A counter that ran backwards belongs to something new.
fn next(before: Option<&Sample>, cpu: &mut CpuStats) -> Option<Sample> {
    let (at, counter) = (cpu.time?.0, cpu.usage_core_nano_seconds?);
    let before = before.filter(|before| before.counter <= counter && before.at <= at);
    let Some(before) = before else { return Some(Sample { at, counter, rate: None }) };
    let interval = at.duration_since(before.at);
    let sample = if interval < MIN_INTERVAL {
        before.clone()
    } else {
        let used = u128::from(counter - before.counter);
        let rate = u64::try_from(used * 1_000_000_000 / interval.as_nanos().unsigned_abs()).ok();
        Sample { at, counter, rate }
    };
    cpu.usage_nano_cores = cpu.usage_nano_cores.or(sample.rate);
    Some(sample)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::summary::Time;

    fn summary(milliseconds: i64, counter: u64) -> Summary {
        let mut summary = Summary::default();
        summary.node.usage.cpu = Some(CpuStats {
            time: Timestamp::from_millisecond(milliseconds).ok().map(Time),
            usage_core_nano_seconds: Some(counter),
            ..Default::default()
        });
        summary
    }

    #[test]
    fn a_rate_needs_two_samples_some_seconds_apart() {
        let mut rates = Rates::default();
        for (milliseconds, counter, rate) in [
            (0, 1_000_000_000, None),
            (500, 1_500_000_000, None),
            (10_000, 6_000_000_000, Some(500_000_000)),
            (10_500, 6_500_000_000, Some(500_000_000)),
            (20_000, 6_000_000_000, Some(0)),
            // Started again.
            (30_000, 5, None),
        ] {
            let mut summary = summary(milliseconds, counter);
            rates.fill(&mut summary);
            assert_eq!(summary.node.usage.cpu.unwrap().usage_nano_cores, rate, "{milliseconds} ms");
        }
        rates.fill(&mut Summary::default());
        assert!(rates.before.is_empty(), "what is gone is forgotten");
    }
}
