//! Who may pull when: pulls go one by one in the order of asking (`serializeImagePulls`), and not too many a second
//! (`registryPullQPS`, `registryBurst`).

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::settings::Settings;

/// A pull keeps others waiting at most for this long: a registry that stalls does not stop the node, and a large image over a
/// slow line may take as long as it takes.
pub(super) const LONGEST_TURN: Duration = Duration::from_secs(600);

/// The node's turns.
pub(super) struct Turns {
    places: Semaphore,
    /// Absent without limit.
    rate: Option<Mutex<Bucket>>,
}

struct Bucket {
    per_second: f64,
    burst: f64,
    left: f64,
    at: Instant,
}

impl Turns {
    pub fn new(settings: &Settings) -> Self {
        let places = match settings.parallel_image_pulls {
            Some(places) => places.clamp(1, Semaphore::MAX_PERMITS),
            None => Semaphore::MAX_PERMITS,
        };
        let (per_second, burst) = (f64::from(settings.registry_pull_qps), f64::from(settings.registry_burst.max(1)));
        let bucket = Bucket { per_second, burst, left: burst, at: Instant::now() };
        Self { places: Semaphore::new(places), rate: (settings.registry_pull_qps > 0).then(|| Mutex::new(bucket)) }
    }

    /// Waits for a turn, first come first served. `None` only if the turns are closed, which they never are.
    pub async fn wait(&self) -> Option<SemaphorePermit<'_>> {
        self.places.acquire().await.ok()
    }

    /// Whether one more pull may be asked for now; it then counts.
    pub fn admit(&self, now: Instant) -> bool {
        let Some(rate) = &self.rate else { return true };
        let mut bucket = rate.lock().unwrap_or_else(PoisonError::into_inner);
        let earned = now.saturating_duration_since(bucket.at).as_secs_f64() * bucket.per_second;
        bucket.left = (bucket.left + earned).min(bucket.burst);
        bucket.at = now;
        let admitted = bucket.left >= 1.0;
        if admitted {
            bucket.left -= 1.0;
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_five_a_second() {
        let turns = Turns::new(&Settings::new("n1"));
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        assert_eq!((0..20).filter(|_| turns.admit(at(0))).count(), 10);
        assert!(!turns.admit(at(150)));
        assert_eq!((0..20).filter(|_| turns.admit(at(1150))).count(), 5);
        let unlimited = Turns::new(&Settings { registry_pull_qps: 0, ..Settings::new("n1") });
        assert!((0..100).all(|_| unlimited.admit(start)));
    }
}
