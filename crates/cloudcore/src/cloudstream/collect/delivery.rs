//! One output at work: it is offered lines until it takes them, and what it has taken is remembered each second.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use link::backoff::Backoff;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::positions::{self, Positions};
use super::supervisor::{Feed, MAX_STREAMS};
use super::{Chunk, Counters, Output};

/// Chunks that wait for an output; each has at most a line more than the 16 KiB that arrive in one piece.
const WAITING: usize = 16;
/// Bytes of lines that are offered in one go; with one chunk more it stays below 1 MiB.
const MAX_BATCH: usize = 640 << 10;
/// Lines of one go.
const MAX_LINES: usize = 10_000;
/// How long lines wait for others, and how often positions are written.
const EVERY: Duration = Duration::from_secs(1);
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

struct Delivery<O> {
    output: O,
    positions: Positions,
    counters: Arc<Counters>,
    stopping: CancellationToken,
    /// That it fails was told.
    told: bool,
}

/// Starts an output; what it is to take goes into the feed.
pub(super) fn start<O: Output>(
    new: impl FnOnce(Arc<Counters>) -> O,
    directory: &Path,
    tasks: &TaskTracker,
    stopping: &CancellationToken,
) -> Feed {
    let (to, incoming) = mpsc::channel(WAITING);
    let counters = Counters::new(O::NAME);
    let positions = Positions::open(directory, O::NAME);
    let known: HashMap<_, _> = positions.known.clone();
    let output = new(counters.clone());
    let delivery = Delivery { output, positions, counters: counters.clone(), stopping: stopping.clone(), told: false };
    tasks.spawn(delivery.run(incoming));
    Feed { to, counters, known, turns: Arc::new(Semaphore::new(MAX_STREAMS)) }
}

impl<O: Output> Delivery<O> {
    async fn run(mut self, mut incoming: mpsc::Receiver<Chunk>) {
        let stopping = self.stopping.clone();
        let mut every = tokio::time::interval(EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut batch = Vec::new();
        let (mut bytes, mut lines) = (0, 0);
        loop {
            let is_due = tokio::select! {
                () = stopping.cancelled() => break,
                _ = every.tick() => true,
                chunk = incoming.recv() => {
                    let Some(chunk) = chunk else { break };
                    bytes += chunk.bytes;
                    lines += chunk.lines.len();
                    batch.push(chunk);
                    false
                }
            };
            if is_due || bytes >= MAX_BATCH || lines >= MAX_LINES {
                self.deliver(&mut batch).await;
                (bytes, lines) = (0, 0);
            }
            if is_due {
                self.save().await;
            }
        }
        // What it does not take now is read again after the next start.
        self.offer(&mut batch).await;
        self.save().await;
    }

    /// Offers until all is taken, or cloudcore stops.
    async fn deliver(&mut self, batch: &mut Vec<Chunk>) {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        let stopping = self.stopping.clone();
        while !batch.is_empty() && !self.offer(batch).await {
            self.save().await;
            if stopping.run_until_cancelled(tokio::time::sleep(backoff.next_wait())).await.is_none() {
                return;
            }
        }
    }

    /// Whether it took all.
    async fn offer(&mut self, batch: &mut Vec<Chunk>) -> bool {
        if batch.is_empty() {
            return true;
        }
        let (taken, result) = self.output.take(batch).await;
        for chunk in batch.drain(..taken.min(batch.len())) {
            self.counters.lines.fetch_add(chunk.lines.len() as u64, Ordering::Relaxed);
            match chunk.position {
                Some(position) => drop(self.positions.known.insert(chunk.source.key(), position)),
                None => drop(self.positions.known.remove(&chunk.source.key())),
            }
            self.positions.changed = true;
        }
        match result {
            Ok(()) => {
                if std::mem::take(&mut self.told) {
                    info!(output = O::NAME, "the output takes collected logs again");
                }
                batch.is_empty()
            }
            Err(error) => {
                self.failed(&error);
                false
            }
        }
    }

    /// Writes positions, when what they stand for is durable.
    async fn save(&mut self) {
        if !self.positions.changed {
            return;
        }
        if let Err(error) = self.output.settle().await {
            return self.failed(&error);
        }
        let snapshot = self.positions.snapshot();
        match tokio::task::spawn_blocking(move || positions::write(snapshot)).await {
            Ok(Ok(())) => self.positions.changed = false,
            Ok(Err(error)) => self.failed(&error),
            // Only when the runtime ends.
            Err(_) => {}
        }
    }

    fn failed(&mut self, error: &dyn std::error::Error) {
        self.counters.failures.fetch_add(1, Ordering::Relaxed);
        if !std::mem::replace(&mut self.told, true) {
            let cause = error.source().map(ToString::to_string);
            warn!(output = O::NAME, %error, cause, "the output takes no collected logs: they wait on their nodes, and are offered again");
        }
    }
}
