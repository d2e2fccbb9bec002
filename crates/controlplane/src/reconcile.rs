//! The loop that every controller runs in: take a key, bring the world in line with it, come back later if asked.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use kubeapi::ApiError;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::object::Key;
use crate::queue::WorkQueue;

/// After so many failures in a row the log says so at a level that people see.
const LOUD_AFTER: u32 = 6;

/// A controller: the one owner of its state.
pub trait Reconcile: Send + 'static {
    /// The name in logs and events.
    const NAME: &'static str;

    /// Brings the world in line with the object of this key, which may be gone. Returns when to look again without a change.
    ///
    /// # Errors
    /// A write or read failed; it is tried again later.
    fn reconcile(&mut self, key: &Key) -> impl Future<Output = Result<Option<Duration>, ApiError>> + Send;
}

/// Runs a controller until cancelled; what it is doing at that moment is finished.
pub async fn run<C: Reconcile>(mut controller: C, queue: Arc<WorkQueue>, token: CancellationToken) {
    loop {
        let key = tokio::select! {
            () = token.cancelled() => return,
            key = queue.next() => key,
        };
        match controller.reconcile(&key).await {
            Ok(again) => {
                queue.forget(&key);
                if let Some(delay) = again {
                    queue.add_after(key, delay);
                }
            }
            Err(error) => {
                let failures = queue.retry(key.clone());
                if failures >= LOUD_AFTER && !error.is_conflict() {
                    warn!(controller = C::NAME, %key, %error, failures, "reconciling keeps failing");
                } else {
                    debug!(controller = C::NAME, %key, %error, failures, "reconciling failed, trying again");
                }
            }
        }
    }
}
