//! The sending rate: a token bucket.

use std::time::Duration;

use tokio::time::Instant;

/// So many messages at once, then so many per second.
pub(super) struct Rate {
    per_second: f64,
    burst: f64,
    left: f64,
    at: Instant,
}

impl Rate {
    /// Zero per second means no limit.
    pub(super) fn new(per_second: u32, burst: u32) -> Self {
        let burst = f64::from(burst.max(1));
        Self { per_second: f64::from(per_second), burst, left: burst, at: Instant::now() }
    }

    /// Takes a token; or tells when there will be one.
    pub(super) fn take(&mut self) -> Result<(), Instant> {
        if self.per_second == 0.0 {
            return Ok(());
        }
        let now = Instant::now();
        self.left = (self.left + now.duration_since(self.at).as_secs_f64() * self.per_second).min(self.burst);
        self.at = now;
        if self.left >= 1.0 {
            self.left -= 1.0;
            return Ok(());
        }
        Err(now + Duration::from_secs_f64((1.0 - self.left) / self.per_second))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_then_a_rate() {
        let mut rate = Rate::new(10, 3);
        let start = Instant::now();
        for _ in 0..13 {
            while let Err(at) = rate.take() {
                tokio::time::sleep_until(at).await;
            }
        }
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(990) && took <= Duration::from_millis(1100), "{took:?}");
    }
}
