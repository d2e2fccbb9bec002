//! What is left to do for a client that has gone: its will.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::access::Rights;
use crate::listen::Shared;
use crate::local::publish_of;
use crate::message::unix_now;
use crate::packet::Will;

/// What is left to do for a client that has gone.
pub(crate) struct Farewell {
    pub(crate) shared: Arc<Shared>,
    /// The will, and when the client came.
    pub(crate) will: Option<(Will, u64)>,
    pub(crate) rights: Rights,
    pub(crate) session: u64,
    pub(crate) is_back: CancellationToken,
}

impl Farewell {
    /// Whether this will take a while.
    pub(crate) fn is_long(&self) -> bool {
        self.will.as_ref().is_some_and(|(will, _)| will.delay > 0)
    }

    /// Publishes the client's will, when it is due.
    pub(crate) async fn say(self, at_once: bool, stop: &CancellationToken) {
        let Some((Will { mut message, delay }, came)) = self.will else { return };
        if !at_once && delay > 0 {
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(u64::from(delay))) => {}
                () = self.is_back.cancelled() => return,
                () = stop.cancelled() => return,
            }
        }
        if !self.rights.may_still_write(&message.topic) {
            return;
        }
        message.expires = message.expires.map(|at| at + unix_now().saturating_sub(came));
        let local = self.shared.local.wants(&message.topic).then(|| publish_of(&message));
        self.shared.publish(Some(self.session), message, None, None).await;
        if let Some(publish) = local {
            self.shared.local.hand_over(publish, None).await;
        }
    }
}
