//! The broker's answers to one connection.
//!
//! A publisher is answered when everybody who must have a message has it: each of them holds a [`Token`], and the last one to drop it
//! sends the answer. MQTT wants answers to publishes in the order of these (MQTT 5, chapter 4.6), so they wait for each other.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;
use tokio::sync::{Notify, oneshot};

use crate::encode::{Ack, Version, ack, reason};
use crate::outbox::Outbox;

/// Publishes of one connection that may wait for their answer; after that nothing is read from it.
pub(crate) const MAX_WAITING: usize = 1000;
/// Answers that may wait to be sent, in bytes.
const MAX_READY: usize = 64 << 10;

/// The answers of one connection.
pub(crate) struct Replies {
    version: Version,
    inner: Mutex<Inner>,
    /// Wakes the one who writes.
    wake: Arc<Notify>,
    /// Wakes the one who reads, when it may go on.
    room: Notify,
}

#[derive(Default)]
struct Inner {
    /// The number of the first one that waits.
    first: u64,
    waiting: VecDeque<Option<[u8; 4]>>,
    ready: BytesMut,
    broken: bool,
}

/// What happens when the last holder of a token is done.
pub(crate) enum End {
    /// A publish is answered in its turn; of QoS 2 the session notes it.
    Published { replies: Arc<Replies>, place: u64, ack: Ack, packet_id: u16, outbox: Arc<Outbox> },
    /// Something else is answered at once.
    Answered(Arc<Replies>, Vec<u8>),
    /// Somebody in this process waits.
    Local(oneshot::Sender<()>),
}

/// The answer to a message of a broker elsewhere.
#[derive(Clone, Copy)]
pub(crate) struct Answer {
    /// Another connection has given the id to another message.
    pub(crate) connection: u64,
    pub(crate) ack: Ack,
    pub(crate) packet_id: u16,
}

/// Held by all that must be done before an answer.
pub(crate) struct Token {
    end: Option<End>,
    failed: AtomicBool,
}

impl Replies {
    pub(crate) fn new(version: Version, wake: Arc<Notify>) -> Arc<Self> {
        Arc::new(Self { version, inner: Mutex::default(), wake, room: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A token for a publish, which is answered after those before it.
    pub(crate) fn for_publish(self: &Arc<Self>, ack: Ack, packet_id: u16, outbox: &Arc<Outbox>) -> Arc<Token> {
        let place = {
            let mut inner = self.lock();
            inner.waiting.push_back(None);
            inner.first + inner.waiting.len() as u64 - 1
        };
        Token::new(End::Published { replies: self.clone(), place, ack, packet_id, outbox: outbox.clone() })
    }

    /// Answers at once.
    pub(crate) fn answer(&self, bytes: &[u8]) {
        self.lock().ready.extend_from_slice(bytes);
        self.wake.notify_one();
    }

    /// Waits until another publish may be read.
    pub(crate) async fn room(&self) {
        loop {
            {
                let inner = self.lock();
                if inner.waiting.len() < MAX_WAITING && inner.ready.len() < MAX_READY {
                    return;
                }
            }
            // One permit is kept for whoever comes late, so no wake is lost.
            self.room.notified().await;
        }
    }

    /// Takes what is ready. `false` when the connection must end, for it cannot be told what went wrong.
    pub(crate) fn take(&self, into: &mut BytesMut) -> bool {
        let mut inner = self.lock();
        into.extend_from_slice(&inner.ready);
        inner.ready.clear();
        self.room.notify_one();
        !inner.broken
    }

    fn publish_answered(&self, place: u64, answer: [u8; 4]) {
        let mut inner = self.lock();
        let index = usize::try_from(place.saturating_sub(inner.first)).unwrap_or(usize::MAX);
        if let Some(slot) = inner.waiting.get_mut(index) {
            *slot = Some(answer);
        }
        while let Some(Some([kind, high, low, code])) = inner.waiting.front().copied() {
            inner.waiting.pop_front();
            inner.first += 1;
            let kind = if kind == Ack::Acknowledged as u8 { Ack::Acknowledged } else { Ack::Received };
            let packet = ack(self.version, kind, u16::from_be_bytes([high, low]), code);
            inner.ready.extend_from_slice(&packet);
        }
        drop(inner);
        self.wake.notify_one();
        self.room.notify_one();
    }

    fn give_up(&self) {
        self.lock().broken = true;
        self.wake.notify_one();
    }
}

impl Token {
    pub(crate) fn new(end: End) -> Arc<Self> {
        Arc::new(Self { end: Some(end), failed: AtomicBool::new(false) })
    }

    /// It cannot be done.
    pub(crate) fn fail(&self) {
        self.failed.store(true, Ordering::Release);
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        let failed = self.failed.load(Ordering::Acquire);
        match self.end.take() {
            Some(End::Published { replies, place, ack, packet_id, outbox }) => {
                if ack == Ack::Received {
                    outbox.settle_incoming(packet_id, !failed);
                }
                if failed && replies.version == Version::V3 {
                    // 3.1.1 has no word for it. Without an answer the client publishes again when it has connected again.
                    return replies.give_up();
                }
                let [high, low] = packet_id.to_be_bytes();
                let code = if failed { reason::UNSPECIFIED } else { 0 };
                replies.publish_answered(place, [ack as u8, high, low, code]);
            }
            Some(End::Answered(replies, _)) if failed => replies.give_up(),
            Some(End::Answered(replies, bytes)) => replies.answer(&bytes),
            Some(End::Local(sender)) if !failed => {
                let _ = sender.send(());
            }
            Some(End::Local(_)) | None => {}
        }
    }
}
