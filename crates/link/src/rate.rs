//! The sending rate: a token bucket.

use std::time::Duration;

use tokio::time::Instant;

/// So many messages at once, then so many per second.
pub struct Rate {
    per_second: f64,
    burst: f64,
    left: f64,
    at: Instant,
}

impl Rate {
    /// Zero per second means no limit.
    pub fn new(per_second: u32, burst: u32) -> Self {
        let burst = f64::from(burst.max(1));
        Self { per_second: f64::from(per_second), burst, left: burst, at: Instant::now() }
    }

    /// When a token may be taken so that this part of the burst (0 to 1) is left for others.
    pub fn ready_at(&mut self, reserve: f64) -> Instant {
        let now = Instant::now();
        if self.per_second == 0.0 {
            return now;
        }
        self.left = (self.left + now.duration_since(self.at).as_secs_f64() * self.per_second).min(self.burst);
        self.at = now;
        let needed = (1.0 + reserve * self.burst).min(self.burst);
        now + Duration::from_secs_f64((needed - self.left).max(0.0) / self.per_second)
    }

    /// Takes a token.
    pub fn take(&mut self) {
        self.left -= 1.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn send(rate: &mut Rate, messages: usize, reserve: f64) -> Duration {
        let start = Instant::now();
        for _ in 0..messages {
            tokio::time::sleep_until(rate.ready_at(reserve)).await;
            rate.take();
        }
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_then_a_rate() {
        let took = send(&mut Rate::new(10, 3), 13, 0.0).await;
        assert!(took >= Duration::from_millis(990) && took <= Duration::from_millis(1100), "{took:?}");
        assert_eq!(send(&mut Rate::new(0, 3), 10_000, 0.0).await, Duration::ZERO, "no limit");
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_is_left_for_others() {
        let mut rate = Rate::new(30, 60);
        assert!(send(&mut rate, 100, 0.75).await > Duration::from_secs(2));
        assert_eq!(send(&mut rate, 44, 0.0).await, Duration::ZERO, "three quarters are there for others");
        assert!(send(&mut Rate::new(30, 1), 10, 0.75).await > Duration::ZERO, "but nobody waits for ever");
    }
}
