//! What each direction of a resumable stream keeps and counts, without any connection.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use tokio::io::ReadBuf;

/// Bytes of one direction that are written and not known to have been read at the other end; then the writer waits.
pub(super) const WINDOW: usize = 1 << 20;
/// Bytes of one message.
pub(super) const PIECE: usize = 16 << 10;
/// The least that is kept room for.
const SMALLEST: usize = 1 << 10;
/// Bytes after whose reading the other end is told at once.
const TOLD_AT: u64 = 64 << 10;

/// The other end says what cannot be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Impossible {
    #[error("the other end has read up to byte {said}, it says: that cannot be, it had {least} and was sent {most}")]
    Count { said: u64, least: u64, most: u64 },
    #[error("the other end does not wait until what it sent is read")]
    TooMuch,
}

/// What was written and is not known to have been read.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    kept: VecDeque<u8>,
    /// The place of the first of them in all that was ever written.
    begin: u64,
    /// How many of them were given to this connection.
    given: usize,
    /// The place up to which any connection was given bytes.
    furthest: u64,
}

impl Outgoing {
    /// Bytes that wait for a connection.
    pub(super) fn waiting(&self) -> usize {
        self.kept.len() - self.given
    }

    /// Whether nothing more can be kept.
    pub(super) fn is_full(&self) -> bool {
        self.kept.len() >= WINDOW
    }

    /// Takes as much as there is room for, one message at most; returns how much.
    pub(super) fn push(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(WINDOW - self.kept.len()).min(PIECE);
        let (needed, capacity) = (self.kept.len() + taken, self.kept.capacity());
        if needed > capacity {
            let capacity = needed.max(2 * capacity).clamp(SMALLEST, WINDOW);
            self.kept.reserve_exact(capacity - self.kept.len());
        }
        self.kept.extend(&bytes[..taken]);
        taken
    }

    /// The next to give to this connection; empty when it has all.
    pub(super) fn piece(&mut self) -> Bytes {
        let end = self.kept.len().min(self.given + PIECE);
        let mut piece = BytesMut::with_capacity(end - self.given);
        let (front, back) = self.kept.as_slices();
        piece.extend_from_slice(&front[self.given.min(front.len())..end.min(front.len())]);
        piece.extend_from_slice(&back[self.given.saturating_sub(front.len())..end.saturating_sub(front.len())]);
        self.given = end;
        self.furthest = self.furthest.max(self.begin + end as u64);
        piece.freeze()
    }

    /// On this connection the other end has read up to here.
    pub(super) fn read_up_to(&mut self, count: u64) -> Result<(), Impossible> {
        self.drop_up_to(count, self.begin + self.given as u64)
    }

    /// Whether the other end can have read up to here when all connections are thought of.
    pub(super) fn can_go_on_at(&self, count: u64) -> bool {
        (self.begin..=self.furthest).contains(&count)
    }

    /// A new connection gets what comes after this.
    pub(super) fn go_on_at(&mut self, count: u64) -> Result<(), Impossible> {
        self.drop_up_to(count, self.furthest)
    }

    /// There is no connection any more: all of it waits for the next.
    pub(super) fn cut(&mut self) {
        self.given = 0;
    }

    fn drop_up_to(&mut self, count: u64, most: u64) -> Result<(), Impossible> {
        if !(self.begin..=most).contains(&count) {
            return Err(Impossible::Count { said: count, least: self.begin, most });
        }
        // At most WINDOW.
        let read = usize::try_from(count - self.begin).unwrap_or(usize::MAX).min(self.kept.len());
        self.kept.drain(..read);
        self.given = self.given.saturating_sub(read);
        self.begin = count;
        // At rest it takes no memory.
        if self.kept.is_empty() {
            self.kept = VecDeque::new();
        }
        Ok(())
    }
}

/// What has come and is to be read.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    first: Bytes,
    /// What came while nobody read.
    rest: BytesMut,
    /// How many bytes were ever read.
    read: u64,
    /// How many of them the other end knows of.
    told: u64,
}

impl Incoming {
    /// A message of it has come.
    pub(super) fn push(&mut self, message: Bytes) -> Result<(), Impossible> {
        if self.first.len() + self.rest.len() + message.len() > WINDOW {
            return Err(Impossible::TooMuch);
        }
        if self.first.is_empty() {
            self.first = message;
        } else {
            self.rest.extend_from_slice(&message);
        }
        Ok(())
    }

    /// Reads; whether there was anything.
    pub(super) fn fill(&mut self, into: &mut ReadBuf<'_>) -> bool {
        if self.first.is_empty() {
            return false;
        }
        let length = self.first.len().min(into.remaining());
        into.put_slice(&self.first.split_to(length));
        if self.first.is_empty() {
            self.first = std::mem::take(&mut self.rest).freeze();
        }
        self.read += length as u64;
        true
    }

    /// How many bytes were ever read.
    pub(super) fn read(&self) -> u64 {
        self.read
    }

    /// Whether the other end does not know of all that was read, and whether that is so much that it is to be told at once.
    pub(super) fn untold(&self) -> (bool, bool) {
        (self.read > self.told, self.read - self.told >= TOLD_AT)
    }

    /// The other end knows of all.
    pub(super) fn tell(&mut self) -> u64 {
        self.told = self.read;
        self.read
    }

    /// There is no connection any more: what was not read comes again.
    pub(super) fn cut(&mut self) {
        self.first = Bytes::new();
        self.rest = BytesMut::new();
    }
}

#[cfg(test)]
impl Outgoing {
    pub(super) fn memory(&self) -> usize {
        self.kept.capacity()
    }
}

#[cfg(test)]
impl Incoming {
    pub(super) fn memory(&self) -> usize {
        self.first.len() + self.rest.capacity()
    }
}
