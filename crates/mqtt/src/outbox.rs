//! What waits for one client: the router puts in, the client's connection takes out, and it outlives the connection as long as
//! the session does.
//!
//! As in mosquitto at most 20 messages are on their way and 1000 wait. When it is full, the oldest message of QoS 0 makes room,
//! or the new one is dropped. So one who reads slowly costs others nothing.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;
use tokio::sync::Notify;

use crate::encode::{Ack, Delivery, Version, ack};
use crate::message::{Message, Qos, Storing};

/// What a connection takes at once, about, in bytes.
const HANDFUL: usize = 64 << 10;

/// The bounds of one client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) in_flight: usize,
    pub(crate) queued: usize,
    pub(crate) queued_bytes: usize,
    /// As many more may wait when the client subscribes to what is retained.
    pub(crate) retained: usize,
    pub(crate) retained_bytes: usize,
}

/// What waits for one client.
pub(crate) struct Outbox {
    bounds: Bounds,
    inner: Mutex<Inner>,
    /// A message of QoS 2 from the client has come to its end.
    settled: Notify,
}

#[derive(Default)]
struct Inner {
    /// Which connection may take: a later one has the session, an earlier one has lost it.
    epoch: u64,
    wake: Arc<Notify>,
    queue: VecDeque<Waiting>,
    bytes: usize,
    /// Of QoS 0 in the queue.
    unsure: usize,
    on_way: VecDeque<OnWay>,
    /// How many of those are to be sent once more, the first of them first.
    again: usize,
    next_id: u16,
    receive_maximum: usize,
    /// Messages of QoS 2 that this client has published and not released.
    incoming: HashMap<u16, Incoming>,
}

/// A message for this client.
#[derive(Clone)]
pub(crate) struct Waiting {
    pub(crate) message: Arc<Message>,
    pub(crate) qos: Qos,
    pub(crate) retain: bool,
    /// 0 for QoS 0. Given when it is queued, so that what is stored is what is sent.
    pub(crate) packet_id: u16,
    pub(crate) identifiers: Vec<u32>,
}

struct OnWay {
    waiting: Waiting,
    /// The client has it (QoS 2), and PUBREL follows or has followed.
    released: bool,
}

/// How far a message of QoS 2 has come that the client published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Incoming {
    /// PUBREC is to come.
    Pending,
    /// It was acknowledged.
    Done,
    /// Subscribers have it; whether the local end had taken it before a restart is not known.
    LocalAgain,
}

/// What a connection took.
#[derive(Default)]
pub(crate) struct Took {
    /// Messages that this client never gets; their rows can go.
    pub(crate) dropped: Vec<u16>,
    /// There is no more for this connection: another one has the session.
    pub(crate) lost: bool,
}

impl Outbox {
    /// An empty one. Packet ids begin elsewhere in each, so that a late word about a client's earlier session means none of this one.
    pub(crate) fn new(bounds: Bounds, number: u64) -> Self {
        let next_id = u16::try_from(number.wrapping_mul(9973) % 60_000).unwrap_or(0) + 1;
        let inner = Inner { next_id, receive_maximum: bounds.in_flight, ..Inner::default() };
        Self { bounds, inner: Mutex::new(inner), settled: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands the box to a connection. What was on its way is sent again.
    pub(crate) fn attach(&self, receive_maximum: u16) -> (u64, Arc<Notify>) {
        let mut inner = self.lock();
        inner.epoch += 1;
        inner.wake = Arc::new(Notify::new());
        inner.wake.notify_one();
        inner.again = inner.on_way.len();
        inner.receive_maximum = self.bounds.in_flight.min(usize::from(receive_maximum));
        (inner.epoch, inner.wake.clone())
    }

    /// The connection has gone. Messages of QoS 0 are not kept.
    pub(crate) fn detach(&self) {
        let mut inner = self.lock();
        inner.epoch += 1;
        inner.queue.retain(|waiting| waiting.qos != Qos::AtMostOnce);
        inner.bytes = inner.queue.iter().map(|waiting| waiting.message.size()).sum();
        inner.unsure = 0;
    }

    /// Queues a message and gives its packet id, or `None` when there is no room. `greeting` is for what the client subscribes to
    /// and is there already: all of that may wait besides.
    pub(crate) fn put(&self, mut waiting: Waiting, greeting: bool) -> Option<u16> {
        let mut inner = self.lock();
        let size = waiting.message.size();
        let (mut most, mut most_bytes) = (self.bounds.queued, self.bounds.queued_bytes);
        if greeting {
            most += self.bounds.retained;
            most_bytes += self.bounds.retained_bytes;
        }
        while inner.queue.len() >= most || inner.bytes + size > most_bytes {
            if inner.unsure == 0 {
                return None;
            }
            let oldest = inner.queue.iter().position(|waiting| waiting.qos == Qos::AtMostOnce)?;
            inner.unqueue(oldest);
        }
        if waiting.qos != Qos::AtMostOnce {
            waiting.packet_id = inner.free_id()?;
        }
        let packet_id = waiting.packet_id;
        inner.enqueue(waiting);
        inner.wake.notify_one();
        Some(packet_id)
    }

    /// Puts in what was stored, before anybody connects.
    pub(crate) fn restore(&self, waiting: Waiting, released: bool) {
        let mut inner = self.lock();
        inner.next_id = waiting.packet_id.checked_add(1).unwrap_or(1);
        if released {
            inner.on_way.push_back(OnWay { waiting, released });
        } else {
            inner.enqueue(waiting);
        }
    }

    /// Something that waited may be ready.
    pub(crate) fn wake(&self) {
        self.lock().wake.notify_one();
    }

    /// Writes what may be sent now.
    pub(crate) fn take(&self, epoch: u64, version: Version, longest: u32, now: u64, into: &mut BytesMut) -> Took {
        let longest = usize::try_from(longest).unwrap_or(usize::MAX);
        let mut inner = self.lock();
        let mut took = Took { dropped: Vec::new(), lost: inner.epoch != epoch };
        while !took.lost && into.len() < HANDFUL {
            if inner.again > 0 {
                let index = inner.on_way.len().saturating_sub(inner.again);
                inner.again -= 1;
                let Some(on_way) = inner.on_way.get(index) else { continue };
                let sent = if on_way.released {
                    into.extend_from_slice(&ack(version, Ack::Release, on_way.waiting.packet_id, 0));
                    true
                } else {
                    on_way.waiting.delivery(true).write(version, longest, now, into)
                };
                if !sent && let Some(on_way) = inner.on_way.remove(index) {
                    took.dropped.push(on_way.waiting.packet_id);
                }
                continue;
            }
            let Some(first) = inner.queue.front() else { break };
            let storing = first.message.storing();
            let room = first.qos == Qos::AtMostOnce || inner.on_way.len() < inner.receive_maximum;
            if storing == Storing::Pending || !room {
                break;
            }
            let Some(waiting) = inner.unqueue(0) else { break };
            let wanted = storing == Storing::Done && !waiting.message.is_expired(now);
            let sent = wanted && waiting.delivery(false).write(version, longest, now, into);
            if waiting.qos != Qos::AtMostOnce {
                match sent {
                    true => inner.on_way.push_back(OnWay { waiting, released: false }),
                    false => took.dropped.push(waiting.packet_id),
                }
            }
        }
        took
    }

    /// A message is done with: PUBACK for QoS 1, PUBCOMP after PUBREL for QoS 2, or a refusal. `false` when there is none such.
    pub(crate) fn done(&self, packet_id: u16, qos: Qos, released: bool) -> bool {
        let mut inner = self.lock();
        let is_it = |on_way: &OnWay| {
            on_way.waiting.packet_id == packet_id && on_way.waiting.qos == qos && on_way.released == released
        };
        let Some(index) = inner.on_way.iter().position(is_it) else { return false };
        if index >= inner.on_way.len() - inner.again {
            inner.again -= 1;
        }
        inner.on_way.remove(index);
        inner.wake.notify_one();
        true
    }

    /// The client has a message of QoS 2. `false` when there is none of this id.
    pub(crate) fn received(&self, packet_id: u16) -> bool {
        let mut inner = self.lock();
        let is_it =
            |on_way: &&mut OnWay| on_way.waiting.packet_id == packet_id && on_way.waiting.qos == Qos::ExactlyOnce;
        inner.on_way.iter_mut().find(is_it).map(|on_way| on_way.released = true).is_some()
    }

    /// A message of QoS 2 comes from this client: notes it, and says what was noted of its id before. When the same message is still
    /// on its way to those who must have it, this waits for the end of that.
    pub(crate) async fn begin_incoming(&self, packet_id: u16) -> Option<Incoming> {
        loop {
            let settled = self.settled.notified();
            tokio::pin!(settled);
            settled.as_mut().enable();
            let before = {
                let mut inner = self.lock();
                let before = inner.incoming.get(&packet_id).copied();
                if before != Some(Incoming::Done) {
                    inner.incoming.insert(packet_id, Incoming::Pending);
                }
                before
            };
            if before != Some(Incoming::Pending) {
                return before;
            }
            settled.await;
        }
    }

    /// It is where it must be, or could not be brought there.
    pub(crate) fn settle_incoming(&self, packet_id: u16, arrived: bool) {
        let mut inner = self.lock();
        match arrived {
            true => inner.incoming.insert(packet_id, Incoming::Done),
            false => inner.incoming.remove(&packet_id),
        };
        drop(inner);
        self.settled.notify_waiters();
    }

    /// What a restart left of it.
    pub(crate) fn restore_incoming(&self, packet_id: u16, state: Incoming) {
        self.lock().incoming.insert(packet_id, state);
    }

    /// The client has released it.
    pub(crate) fn forget_incoming(&self, packet_id: u16) -> bool {
        self.lock().incoming.remove(&packet_id).is_some()
    }
}

impl Waiting {
    fn delivery(&self, again: bool) -> Delivery<'_> {
        Delivery {
            message: &self.message,
            qos: self.qos,
            retain: self.retain,
            again,
            packet_id: self.packet_id,
            identifiers: &self.identifiers,
        }
    }
}

impl Inner {
    fn enqueue(&mut self, waiting: Waiting) {
        self.bytes += waiting.message.size();
        self.unsure += usize::from(waiting.qos == Qos::AtMostOnce);
        self.queue.push_back(waiting);
    }

    fn unqueue(&mut self, index: usize) -> Option<Waiting> {
        let waiting = self.queue.remove(index)?;
        self.bytes = self.bytes.saturating_sub(waiting.message.size());
        self.unsure -= usize::from(waiting.qos == Qos::AtMostOnce);
        Some(waiting)
    }

    /// The next id that nothing uses. Bounds are far below the number of ids, so a few steps find one.
    fn free_id(&mut self) -> Option<u16> {
        for _ in 0..u16::MAX {
            let id = self.next_id;
            self.next_id = id.checked_add(1).unwrap_or(1);
            // Ids of the queue lie together, and were given after the last round.
            let first = self.queue.iter().find(|waiting| waiting.packet_id != 0).map(|waiting| waiting.packet_id);
            let used = self.on_way.iter().any(|on_way| on_way.waiting.packet_id == id);
            if !used && first != Some(id) {
                return Some(id);
            }
        }
        None
    }
}
