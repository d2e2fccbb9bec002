//! The cloud's half of the delivery to one node.
//!
//! Per object the newest version wins, and an edge stores objects by name: the deletion of an old one is acknowledged before its
//! namesake is sent (this file). Two versions of one object are never in flight together, and only so many objects are (`flights`).
//! Messages without acknowledgement (answers) go by a bounded lane of their own, first and in order.
//!
//! What waits is bounded in bytes. Once the bound is reached nothing more is taken, so that the queue runs dry; then it says that it
//! [overflowed](NodeQueue::take_overflow), and the caller finds out anew what the node lacks.

mod flights;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use wire::{Message, operation};

use flights::{Flights, size};

/// Messages without acknowledgement that may wait.
pub const MAX_UNACKED: usize = 1024;
/// Bytes of contents that may wait; a cluster's largest objects have 1.5 MB.
pub const MAX_WAITING_BYTES: usize = 8 << 20;
/// Deleted objects that are remembered after the node acknowledged it: an older state of one may still be on its way here.
const MAX_DELETED: usize = 128;

/// How much may be in flight to a node, and when it is sent again.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Objects.
    pub objects: usize,
    /// Bytes of their contents; one object of any size is allowed.
    pub bytes: usize,
    /// How long an acknowledgement may take before the message is sent again; doubled each time.
    pub resend_after: Duration,
    /// The longest such wait.
    pub longest_wait: Duration,
}

impl Window {
    /// Towards a Go edge. It reads into a queue of 100 that drops its oldest entry when it is full, so that the window must stay
    /// well below; what it drops is sent again as KubeEdge v1.23 does it, after five seconds with the same id.
    pub const UPSTREAM: Self = Self {
        objects: 16,
        bytes: 1 << 20,
        resend_after: Duration::from_secs(5),
        longest_wait: Duration::from_secs(60),
    };
    /// Towards our own edge, which drops nothing that it has read: enough for a fast link with a long way. A repetition is a net
    /// for what must not happen, and must not fill a slow link.
    pub const WIDE: Self = Self {
        objects: 256,
        bytes: 1 << 20,
        resend_after: Duration::from_secs(60),
        longest_wait: Duration::from_secs(300),
    };
}

/// The messages of one session.
pub struct NodeQueue {
    flights: Flights,
    plain: VecDeque<Message>,
    /// The newest version of each object that was offered, by uid: none older follows it.
    offered: HashMap<String, u64>,
    /// Uids of acknowledged deletions and the version that each left in `offered`, oldest first.
    deleted: VecDeque<(String, u64)>,
    /// Objects that are offered and not acknowledged, by name.
    open: HashMap<String, (String, Message)>,
    /// Uids of deletions that are not acknowledged, by name.
    deleting: HashMap<String, HashSet<String>>,
    /// What waits for the deletion of a namesake, by name.
    held: HashMap<String, (String, Message)>,
    held_bytes: usize,
    overflowed: bool,
}

/// The lane without acknowledgements is full: the node does not read.
#[derive(Debug, thiserror::Error)]
#[error("{MAX_UNACKED} messages wait for the node already")]
pub struct Full;

impl NodeQueue {
    /// A queue of a fresh session.
    pub fn new(window: Window) -> Self {
        Self {
            flights: Flights::new(window),
            plain: VecDeque::new(),
            offered: HashMap::new(),
            deleted: VecDeque::new(),
            open: HashMap::new(),
            deleting: HashMap::new(),
            held: HashMap::new(),
            held_bytes: 0,
            overflowed: false,
        }
    }

    /// Offers a version of an object; an older one than was offered before is left out.
    pub fn offer(&mut self, uid: &str, version: u64, message: Message) {
        let name = message.route.resource.clone();
        let is_deletion = message.route.operation == operation::DELETE;
        if !is_deletion && self.offered.get(uid).is_some_and(|offered| *offered >= version) {
            return;
        }
        // One object, however large, must get through.
        let bytes = self.flights.waiting_bytes() + self.held_bytes + size(&message);
        self.overflowed |= bytes > MAX_WAITING_BYTES && self.pending() > 0;
        // What the node is about to get, it must also be rid of: nothing says yet that it has it.
        let is_open = || self.flights.has(uid) || self.held.get(&name).is_some_and(|(held, _)| held == uid);
        if self.overflowed && !(is_deletion && is_open()) {
            return;
        }
        if is_deletion {
            // The uid does not come again.
            if self.offered.insert(uid.to_owned(), u64::MAX) != Some(u64::MAX) {
                self.delete(uid, name, message);
            }
            return;
        }
        self.offered.insert(uid.to_owned(), version);
        if self.deleting.contains_key(&name) {
            self.hold(name, uid.to_owned(), message);
            return;
        }
        self.open.insert(name, (uid.to_owned(), message.clone()));
        self.flights.offer(uid.to_owned(), message);
    }

    /// Offers the deletion of an object that still exists and, in this version, is not the node's any more. What is offered from this version on
    /// counts again: it may come back. A node that was offered a newer one keeps it.
    pub fn withdraw(&mut self, uid: &str, version: u64, message: Message) {
        let is_open = || self.flights.has(uid) || self.held.values().any(|(held, _)| held == uid);
        if self.offered.get(uid).is_some_and(|offered| *offered > version) || (self.overflowed && !is_open()) {
            return;
        }
        self.offered.insert(uid.to_owned(), version.saturating_sub(1));
        let name = message.route.resource.clone();
        self.delete(uid, name, message);
    }

    fn delete(&mut self, uid: &str, name: String, message: Message) {
        if self.held.get(&name).is_some_and(|(held, _)| held == uid) {
            self.release(&name);
        }
        // A namesake that is on its way already is sent once more behind the deletion.
        if let Some((other, open)) = self.open.remove(&name)
            && other != uid
            && !self.held.contains_key(&name)
        {
            self.hold(name.clone(), other, open);
        }
        self.deleting.entry(name).or_default().insert(uid.to_owned());
        self.flights.offer(uid.to_owned(), message);
    }

    fn hold(&mut self, name: String, uid: String, message: Message) {
        self.held_bytes += size(&message);
        if let Some((_, old)) = self.held.insert(name, (uid, message)) {
            self.held_bytes -= size(&old);
        }
    }

    fn release(&mut self, name: &str) -> Option<(String, Message)> {
        let released = self.held.remove(name)?;
        self.held_bytes -= size(&released.1);
        Some(released)
    }

    /// Queues a message that nobody acknowledges.
    ///
    /// # Errors
    /// Too many wait.
    pub fn post(&mut self, message: Message) -> Result<(), Full> {
        if self.plain.len() >= MAX_UNACKED {
            return Err(Full);
        }
        self.plain.push_back(message);
        Ok(())
    }

    /// What to send now: first what nobody acknowledges, then what is due again, then what waits and fits the window.
    pub fn next(&mut self, now: Instant) -> Option<Message> {
        self.plain.pop_front().or_else(|| self.flights.next(now))
    }

    /// When [`NodeQueue::next`] has something again without further events.
    pub fn next_due(&self) -> Option<Instant> {
        self.flights.next_due()
    }

    /// An acknowledgement arrived: the uid and the message it is of. Unknown ids (late, repeated, of others) are ignored.
    pub fn acknowledge(&mut self, id: &str) -> Option<(String, Message)> {
        let (uid, message) = self.flights.acknowledge(id)?;
        let name = &message.route.resource;
        if message.route.operation == operation::DELETE {
            self.deletion_is_done(&uid, name);
        } else if self.open.get(name).is_some_and(|(_, open)| open.header.msg_id == id) {
            self.open.remove(name);
        }
        if self.pending() == 0 && self.plain.is_empty() {
            self.flights.rest();
            self.plain.shrink_to_fit();
            self.offered.shrink_to_fit();
            self.open.shrink_to_fit();
        }
        Some((uid, message))
    }

    /// The node could not take the message with this id: its object's uid and itself, once for each time that it was sent. It stays
    /// in flight and is sent again, soon.
    pub fn refused(&mut self, id: &str, now: Instant) -> Option<(&str, &Message)> {
        self.flights.refused(id, now)
    }

    fn deletion_is_done(&mut self, uid: &str, name: &str) {
        // One more deletion of it waits: it came back and left again meanwhile.
        if self.flights.has_waiting_deletion(uid) {
            return;
        }
        if let Some(left) = self.offered.get(uid) {
            self.deleted.push_back((uid.to_owned(), *left));
        }
        if self.deleted.len() > MAX_DELETED
            && let Some((oldest, left)) = self.deleted.pop_front()
            && self.offered.get(&oldest) == Some(&left)
        {
            self.offered.remove(&oldest);
        }
        if let Some(deleting) = self.deleting.get_mut(name) {
            deleting.remove(uid);
            if !deleting.is_empty() {
                return;
            }
        }
        self.deleting.remove(name);
        if let Some((uid, message)) = self.release(name) {
            self.open.insert(name.to_owned(), (uid.clone(), message.clone()));
            self.flights.offer(uid, message);
        }
    }

    /// Objects that are not acknowledged yet.
    pub fn pending(&self) -> usize {
        self.flights.pending() + self.held.len()
    }

    /// Whether something was left out for want of room, and nobody has heard of it yet.
    pub fn has_overflowed(&self) -> bool {
        self.overflowed
    }

    /// Whether something was left out for want of room; `true` once, when nothing else waits and there is room. What is in flight may be
    /// refused again and again, and is not waited for.
    pub fn take_overflow(&mut self) -> bool {
        let has_room = self.held_bytes <= MAX_WAITING_BYTES / 2;
        !self.flights.has_waiting() && has_room && std::mem::take(&mut self.overflowed)
    }
}
