//! Whether somebody uses a tunnel.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http_body_util::BodyExt;
use link::http_server::Body;
use tokio::time::Instant;
use tokio_util::io::InspectReader;

use super::tunnels::Io;

/// Counts what is open in a tunnel. Cloning is cheap.
#[derive(Clone)]
pub(super) struct Usage(Arc<Mutex<Used>>);

struct Used {
    open: usize,
    last: Instant,
}

/// An answer or a stream that is not over; dropped with it.
pub(super) struct Open(Usage);

impl Default for Usage {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Used { open: 0, last: Instant::now() })))
    }
}

impl Usage {
    /// One more.
    pub(super) fn begin(&self) -> Open {
        self.used().open += 1;
        Open(self.clone())
    }

    /// How many there are.
    pub(super) fn open(&self) -> usize {
        self.used().open
    }

    /// Resolves when there was none for this time.
    pub(super) async fn unused(&self, time: Duration) {
        loop {
            let until = match *self.used() {
                Used { open: 0, last } if last.elapsed() >= time => return,
                Used { open: 0, last } => last + time,
                Used { .. } => Instant::now() + time,
            };
            tokio::time::sleep_until(until).await;
        }
    }

    fn used(&self) -> MutexGuard<'_, Used> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    /// As long as this body is there.
    pub(super) fn with_body(self, body: Body) -> Body {
        let same = move |error| {
            let _ = &self;
            error
        };
        body.map_err(same).boxed()
    }

    /// As long as this stream is there.
    pub(super) fn with_io(self, io: Box<dyn Io>) -> Box<dyn Io> {
        Box::new(InspectReader::new(io, move |_| {
            let _ = &self;
        }))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut used = self.0.used();
        used.open -= 1;
        used.last = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_tunnel_is_unused_some_time_after_its_last_stream() {
        let (usage, minute) = (Usage::default(), Duration::from_secs(60));
        let (first, second) = (usage.begin(), usage.begin());
        assert_eq!(usage.open(), 2);
        drop(first);
        assert!(tokio::time::timeout(10 * minute, usage.unused(minute)).await.is_err(), "one is open");
        drop(second);
        let ended = Instant::now();
        usage.unused(minute).await;
        assert_eq!((usage.open(), ended.elapsed()), (0, minute));
    }
}
