//! What gives a stream its next connection.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use super::{Phase, Shared, watched};
use crate::frames::Frames;

/// For who makes the connections of a stream; one may wait in [`Self::cut`].
#[derive(Debug)]
pub struct Handle<S>(pub(super) Arc<Shared<S>>);

/// To go on on another connection. A later offer of the same stream makes it void.
#[derive(Debug)]
pub struct Offer<S> {
    shared: Arc<Shared<S>>,
    number: u64,
    read: u64,
}

/// A connection was not taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotResumed {
    /// There is a newer offer, or the stream is over.
    #[error("the stream is over, or went on elsewhere")]
    Late,
    /// The stream is over now.
    #[error("the stream cannot go on where the other end is: {0}")]
    Elsewhere(String),
}

impl<S> Clone for Handle<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S> Handle<S> {
    /// Resolves when the stream has no connection any more; never when it is over.
    pub async fn cut(&self) {
        poll_fn(|cx| {
            let mut state = self.0.lock();
            if let Phase::Suspended { .. } = state.phase {
                return Poll::Ready(());
            }
            state.watcher = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Whether the stream waits for a connection.
    pub fn is_cut(&self) -> bool {
        matches!(self.0.lock().phase, Phase::Suspended { .. })
    }

    /// To go on on another connection, whether it is known already that the one so far is dead or not: nothing more is read from that.
    /// `None` when the stream is over.
    pub fn offer(&self) -> Option<Offer<S>> {
        self.offer_if(|_| true)
    }

    /// The same for an end that is told first how far the other has read. `None` also when that cannot be; nothing has changed then.
    pub fn offer_at(&self, theirs: u64) -> Option<Offer<S>> {
        self.offer_if(|outgoing| outgoing.can_go_on_at(theirs))
    }

    fn offer_if(&self, is_wanted: impl FnOnce(&super::Outgoing) -> bool) -> Option<Offer<S>> {
        let mut state = self.0.lock();
        if matches!(state.phase, Phase::Over(_)) || !is_wanted(&state.outgoing) {
            return None;
        }
        if let Phase::Connected(_) = state.phase {
            state.cut("another connection was to take its place".to_owned());
        }
        state.offer += 1;
        let (number, read) = (state.offer, state.incoming.read());
        let is_over = matches!(state.phase, Phase::Over(_));
        Shared::wake(state);
        (!is_over).then(|| Offer { shared: self.0.clone(), number, read })
    }

    /// There will be no other connection than the one that stands: without it the stream is over.
    pub fn no_more(&self, why: &str) {
        let mut state = self.0.lock();
        state.kept = Duration::ZERO;
        if let Phase::Suspended { .. } = state.phase {
            state.over(Some((io::ErrorKind::ConnectionReset, why.to_owned())));
        }
        Shared::wake(state);
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Offer<S> {
    /// How many bytes were read so far; the other end goes on with what comes after.
    pub fn read(&self) -> u64 {
        self.read
    }

    /// Goes on on this connection, whose other end has read so much.
    ///
    /// # Errors
    /// The offer is void, or the other end cannot have read so much or so little.
    pub fn go_on(self, theirs: u64, frames: Frames<S>) -> Result<(), NotResumed> {
        let mut state = self.shared.lock();
        if state.offer != self.number || !matches!(state.phase, Phase::Suspended { .. }) {
            return Err(NotResumed::Late);
        }
        let went_on = state.outgoing.go_on_at(theirs).map_err(|impossible| impossible.to_string());
        match &went_on {
            Ok(()) => {
                state.incoming.tell();
                state.phase = Phase::Connected(watched(frames));
            }
            Err(why) => state.over(Some((io::ErrorKind::InvalidData, why.clone()))),
        }
        Shared::wake(state);
        went_on.map_err(NotResumed::Elsewhere)
    }
}
