//! What a watch on DeviceStatus shows, and how old that is.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use testkit::deployment::Cluster;
use tokio::task::JoinSet;

use super::{API, PROPERTY};

/// How often it is looked whether all is there; it bounds the precision.
const POLL: Duration = Duration::from_millis(20);
/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(300);

/// Values by the device's name, each with when it was there.
pub type Values = HashMap<String, Vec<(usize, Instant)>>;

/// A watch that goes on until it is dropped.
pub struct Watching {
    seen: Arc<Mutex<Values>>,
    task: JoinSet<Result<()>>,
}

/// What became of values that count up from 0.
pub struct Staleness {
    /// Seconds from a value's report until it, or a newer one, was seen; sorted.
    pub seconds: Vec<f64>,
    /// Writes that were seen.
    pub writes: usize,
    /// The writes a second of the device that has most.
    pub most: f64,
}

#[derive(Deserialize)]
struct Event {
    object: Object,
}

#[derive(Deserialize)]
struct Object {
    metadata: Metadata,
    status: Option<Status>,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
}

#[derive(Deserialize)]
struct Status {
    twins: Option<Vec<Twin>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Twin {
    property_name: String,
    reported: Reported,
}

#[derive(Deserialize)]
struct Reported {
    value: String,
}

impl Watching {
    /// Of all devices in the namespace that the bench uses.
    pub async fn start(cluster: &Cluster) -> Result<Self> {
        let mut watch = cluster.watch(&format!("{API}/devicestatuses")).await?;
        let seen: Arc<Mutex<Values>> = Arc::default();
        let into = seen.clone();
        let follow = async move {
            loop {
                let Event { object } = watch.next_as().await?;
                let at = Instant::now();
                let twins = object.status.and_then(|status| status.twins).unwrap_or_default();
                let value =
                    twins.into_iter().find(|twin| twin.property_name == PROPERTY).map(|twin| twin.reported.value);
                if let Some(value) = value.filter(|value| !value.is_empty()) {
                    let value = value.parse().with_context(|| format!("the value {value:?} was never reported"))?;
                    lock(&into).entry(object.metadata.name).or_default().push((value, at));
                }
            }
        };
        Ok(Self { seen, task: JoinSet::from_iter([follow]) })
    }

    /// Waits until the last of each of these values has been seen; how long that took.
    ///
    /// # Errors
    /// One does not come, or another one came: it is lost.
    pub async fn until_last(&mut self, reported: &HashMap<String, Vec<Instant>>) -> Result<Duration> {
        let began = Instant::now();
        loop {
            let differs = {
                let seen = lock(&self.seen);
                let last = |name: &String| seen.get(name).and_then(|values| values.last()).map(|(value, _)| *value);
                let differs = |(name, values): &(&String, &Vec<Instant>)| last(name) != values.len().checked_sub(1);
                reported.iter().filter(differs).count()
            };
            if differs == 0 {
                return Ok(began.elapsed());
            }
            if let Some(ended) = self.task.try_join_next() {
                ended??;
            }
            if began.elapsed() > LIMIT {
                bail!("of {differs} devices the last value is not in DeviceStatus after {} s", LIMIT.as_secs());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// How these values were seen that were reported since `from`, and the writes since then.
    pub fn staleness(&self, reported: &HashMap<String, Vec<Instant>>, from: Instant) -> Staleness {
        let seen = lock(&self.seen);
        let (mut seconds, mut writes, mut most) = (Vec::new(), 0, 0.0_f64);
        for (name, values) in reported {
            let seen = seen.get(name).map(Vec::as_slice).unwrap_or_default();
            let mut waiting = values.iter().enumerate().peekable();
            for (newest, at) in seen {
                while let Some((_, reported)) = waiting.next_if(|(value, _)| value <= newest) {
                    if *reported >= from {
                        seconds.push(at.saturating_duration_since(*reported).as_secs_f64());
                    }
                }
            }
            let since: Vec<Instant> = seen.iter().map(|(_, at)| *at).filter(|at| *at >= from).collect();
            writes += since.len();
            if let [first, .., last] = since[..] {
                most = most.max((since.len() - 1) as f64 / (last - first).as_secs_f64());
            }
        }
        seconds.sort_by(f64::total_cmp);
        Staleness { seconds, writes, most }
    }
}

impl Staleness {
    /// The value below which so many of a hundred are.
    pub fn percentile(&self, share: usize) -> f64 {
        self.seconds.get(self.seconds.len() * share / 100).copied().unwrap_or_default()
    }
}

fn lock(seen: &Mutex<Values>) -> MutexGuard<'_, Values> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_as_stale_as_what_is_seen_instead_of_it() {
        let start = Instant::now();
        let at = |milliseconds: u64| start + Duration::from_millis(milliseconds);
        let reported = HashMap::from([("d".to_owned(), vec![at(0), at(100), at(200), at(1500)])]);
        let seen = Values::from([("d".to_owned(), vec![(0, at(10)), (2, at(1010)), (3, at(2010))])]);
        let watching = Watching { seen: Arc::new(Mutex::new(seen)), task: JoinSet::new() };
        let all = watching.staleness(&reported, start);
        let rounded: Vec<u32> = all.seconds.iter().map(|seconds| (seconds * 1000.0).round() as u32).collect();
        assert_eq!((rounded, all.writes), (vec![10, 510, 810, 910], 3));
        assert!((all.most - 1.0).abs() < 1e-9, "{}", all.most);
        assert_eq!(watching.staleness(&reported, at(150)).seconds.len(), 2);
    }
}
