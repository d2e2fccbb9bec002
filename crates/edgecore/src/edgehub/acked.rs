//! Ids of messages that the cloud has acknowledged or answered, from the reading half of a connection to the sending half. Neither waits
//! for the other: a half that waited could hold up the cloud, and the cloud the other half.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

/// Ids that are remembered at most: more than can be in flight. What a peer makes up beyond them is left out.
const MAX_IDS: usize = 4096;

/// The ids. Cloning is cheap.
#[derive(Clone, Default)]
pub(super) struct Acked {
    shared: Arc<(Mutex<Vec<String>>, Notify)>,
}

impl Acked {
    pub(super) fn add(&self, ids: impl IntoIterator<Item = String>) {
        let mut known = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = MAX_IDS.saturating_sub(known.len());
        known.extend(ids.into_iter().take(room));
        drop(known);
        self.shared.1.notify_one();
    }

    /// Resolves when ids have come. May be dropped and called again.
    pub(super) async fn arrived(&self) {
        self.shared.1.notified().await;
    }

    pub(super) fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn memory_is_bounded() {
        let acked = Acked::default();
        acked.add((0..MAX_IDS * 2).map(|n| n.to_string()));
        acked.arrived().await;
        assert_eq!(acked.take().len(), MAX_IDS);
        acked.add(["late".to_owned()]);
        assert_eq!(acked.take(), ["late"]);
    }
}
