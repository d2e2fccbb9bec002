//! Objects that wait and objects in flight, each in one version at a time.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use wire::{EdgeResource, Message, kind, operation};

use super::{MAX_WAITING_BYTES, Window};

/// A message that the node could not take is sent again after this time, doubled with each refusal.
const AFTER_REFUSAL: Duration = Duration::from_secs(5);

/// Who goes first: the Node itself, then pods, then what pods and devices refer to, then devices.
const CLASSES: usize = 4;
/// What was refused may stay in flight for ever and is not counted against the window, as long as there is not more of it than so many windows.
const STUCK_WINDOWS: usize = 3;

pub(super) struct Flights {
    window: Window,
    /// Uids of objects that wait, by class, in the order in which they began to.
    order: [VecDeque<String>; CLASSES],
    waiting: HashMap<String, Message>,
    waiting_bytes: usize,
    in_flight: HashMap<String, Flight>,
    flying_bytes: usize,
    /// Which object a message id is of.
    ids: HashMap<String, String>,
}

struct Flight {
    message: Message,
    due: Instant,
    wait: Duration,
    /// The node has said that it cannot take it.
    refused: bool,
    refusals: u32,
}

impl Flight {
    fn is_stuck(&self, window: &Window) -> bool {
        self.refusals > 0 || self.wait > window.resend_after
    }
}

impl Flights {
    pub(super) fn new(window: Window) -> Self {
        Self {
            window,
            order: Default::default(),
            waiting: HashMap::new(),
            waiting_bytes: 0,
            in_flight: HashMap::new(),
            flying_bytes: 0,
            ids: HashMap::new(),
        }
    }

    /// Queues the newest state of an object; an older one that waits is replaced and keeps its place.
    pub(super) fn offer(&mut self, uid: String, message: Message) {
        let class = class(&message);
        self.waiting_bytes += size(&message);
        match self.waiting.insert(uid.clone(), message) {
            Some(old) => self.waiting_bytes -= size(&old),
            None => self.order[class].push_back(uid),
        }
    }

    pub(super) fn next(&mut self, now: Instant) -> Option<Message> {
        self.next_again(now).or_else(|| self.next_waiting(now))
    }

    fn next_waiting(&mut self, now: Instant) -> Option<Message> {
        // What was only sent in vain may lie in a Go edge's queue still.
        let refused = self.in_flight.values().filter(|flight| flight.refusals > 0).count();
        let counted = self.in_flight.len() - refused.min(self.window.objects * STUCK_WINDOWS);
        if counted >= self.window.objects {
            return None;
        }
        let (class, at) = self.order.iter().enumerate().find_map(|(class, order)| {
            let at = order.iter().position(|uid| !self.in_flight.contains_key(uid))?;
            Some((class, at))
        })?;
        let uid = self.order[class].get(at)?;
        let bytes = size(self.waiting.get(uid)?);
        // One object of any size is allowed, and what is stuck must not keep it back.
        let stuck = self.in_flight.values().filter(|flight| flight.is_stuck(&self.window));
        let stuck: usize = stuck.map(|flight| size(&flight.message)).sum();
        let flying = self.flying_bytes - stuck.min(MAX_WAITING_BYTES);
        if flying > 0 && flying + bytes > self.window.bytes {
            return None;
        }
        let uid = self.order[class].remove(at)?;
        let message = self.waiting.remove(&uid)?;
        self.waiting_bytes -= bytes;
        self.flying_bytes += bytes;
        self.ids.insert(message.header.msg_id.clone(), uid.clone());
        let wait = self.window.resend_after;
        let flight = Flight { message: message.clone(), due: now + wait, wait, refused: false, refusals: 0 };
        self.in_flight.insert(uid, flight);
        Some(message)
    }

    /// What was not acknowledged in time; a newer version takes the place of the one that was sent in vain, at once if the node has
    /// refused that: it may be what cures it.
    fn next_again(&mut self, now: Instant) -> Option<Message> {
        let Self { in_flight, waiting, .. } = self;
        let is_due = |uid: &String, flight: &Flight| flight.due <= now || (flight.refused && waiting.contains_key(uid));
        let due = in_flight.iter_mut().filter(|(uid, flight)| is_due(uid, flight));
        let (uid, flight) = due.min_by_key(|(_, flight)| flight.due)?;
        flight.wait = (flight.wait * 2).min(self.window.longest_wait);
        flight.due = now + flight.wait;
        flight.refused = false;
        if let Some(newer) = self.waiting.remove(uid) {
            self.order.iter_mut().for_each(|order| order.retain(|waiting| waiting != uid));
            self.ids.remove(&flight.message.header.msg_id);
            self.ids.insert(newer.header.msg_id.clone(), uid.clone());
            self.waiting_bytes -= size(&newer);
            self.flying_bytes = self.flying_bytes + size(&newer) - size(&flight.message);
            flight.message = newer;
        }
        Some(flight.message.clone())
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.in_flight.values().map(|flight| flight.due).min()
    }

    pub(super) fn acknowledge(&mut self, id: &str) -> Option<(String, Message)> {
        let uid = self.ids.remove(id)?;
        let flight = self.in_flight.remove(&uid)?;
        self.flying_bytes -= size(&flight.message);
        Some((uid, flight.message))
    }

    pub(super) fn refused(&mut self, id: &str, now: Instant) -> Option<(&str, &Message)> {
        let uid = self.ids.get(id)?;
        let flight = self.in_flight.get_mut(uid)?;
        if std::mem::replace(&mut flight.refused, true) {
            return None;
        }
        let pause = AFTER_REFUSAL.saturating_mul(1 << flight.refusals.min(16)).min(self.window.longest_wait);
        flight.refusals += 1;
        flight.due = flight.due.min(now + pause);
        Some((uid.as_str(), &flight.message))
    }

    /// Whether the node has, or may get, a version of this object.
    pub(super) fn has(&self, uid: &str) -> bool {
        self.waiting.contains_key(uid) || self.in_flight.contains_key(uid)
    }

    /// Whether the newest that waits of this object is its deletion.
    pub(super) fn has_waiting_deletion(&self, uid: &str) -> bool {
        self.waiting.get(uid).is_some_and(|message| message.route.operation == operation::DELETE)
    }

    pub(super) fn pending(&self) -> usize {
        self.waiting.len() + self.in_flight.len()
    }

    /// Nothing waits and nothing flies: what the maps have taken for it is given back. There are many sessions, and most are at rest.
    pub(super) fn rest(&mut self) {
        self.order.iter_mut().for_each(VecDeque::shrink_to_fit);
        self.waiting.shrink_to_fit();
        self.in_flight.shrink_to_fit();
        self.ids.shrink_to_fit();
    }

    pub(super) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    pub(super) fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }
}

pub(super) fn size(message: &Message) -> usize {
    message.content.raw().len()
}

fn class(message: &Message) -> usize {
    match EdgeResource::parse(&message.route.resource).map(|resource| resource.kind).as_deref() {
        Ok(kind::NODE) => 0,
        Ok(kind::POD) => 1,
        Ok(kind::DEVICE) => 3,
        _ => 2,
    }
}
