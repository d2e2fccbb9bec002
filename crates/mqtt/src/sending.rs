//! What the client has to say to its broker: messages that wait or are on their way, and what it wants to hear.

use std::collections::{BTreeSet, VecDeque};

use bytes::BytesMut;
use tracing::{info, warn};

use crate::Publish;
use crate::encode::{self, Ack, Version};
use crate::message::Qos;

/// Messages that may wait for the broker.
const MAX_WAITING: usize = 1000;
/// Bytes that may wait.
pub(crate) const MAX_BYTES: usize = 1 << 20;
/// Publishes of QoS 1 and 2 on their way to the broker.
const IN_FLIGHT: usize = 20;
/// So much is written at once.
const AT_ONCE: usize = 64 << 10;

/// What outlives a connection.
#[derive(Default)]
pub(crate) struct State {
    filters: BTreeSet<String>,
    /// Filters that it shall hear no more, until the broker has answered that.
    unwanted: BTreeSet<String>,
    /// What the broker has not been told: subscribe, or no more.
    changed: VecDeque<(String, bool)>,
    /// What it has been told and has not answered.
    asked: VecDeque<(u16, String)>,
    waiting: VecDeque<Publish>,
    /// Of those that wait.
    bytes: usize,
    dropped: u64,
    /// The broker has taken nothing for so long that nobody waits for it.
    stalled: bool,
    /// Sent and not acknowledged, in the order of sending.
    flying: VecDeque<Flying>,
    last_id: u16,
}

struct Flying {
    packet_id: u16,
    publish: Publish,
    /// Of QoS 2: the broker has it, and has not heard that we know.
    released: bool,
}

impl State {
    /// Has these to hear from the first connection on.
    pub(crate) fn new(filters: &[&str]) -> Self {
        Self { filters: filters.iter().map(|filter| (*filter).to_owned()).collect(), ..Self::default() }
    }

    /// Whether a message of this size is to be put without waiting for room.
    pub(crate) fn takes(&self, size: usize) -> bool {
        self.stalled || self.waiting.len() < MAX_WAITING && self.bytes + size <= MAX_BYTES
    }

    /// Keeps it until it can be sent. The oldest are dropped until the rest fits.
    pub(crate) fn put(&mut self, publish: Publish) {
        self.bytes += size(&publish);
        self.waiting.push_back(publish);
        while self.waiting.len() > MAX_WAITING || self.bytes > MAX_BYTES {
            let Some(oldest) = self.waiting.pop_front() else { return };
            self.bytes -= size(&oldest);
            if self.dropped == 0 {
                warn!("too many messages wait for the MQTT broker: the oldest are dropped");
            }
            self.dropped += 1;
        }
    }

    /// There was no room for too long.
    pub(crate) fn stall(&mut self) {
        if !self.stalled {
            warn!("the MQTT broker is connected and takes no messages: nobody waits for it until it does");
        }
        self.stalled = true;
    }

    /// Hears a filter, or no more. The broker is told at once if it is there, and else when it is back.
    pub(crate) fn change(&mut self, filter: &str, subscribe: bool, connected: bool) {
        let (wanted, other) = match subscribe {
            true => (&mut self.filters, &mut self.unwanted),
            false => (&mut self.unwanted, &mut self.filters),
        };
        other.remove(filter);
        wanted.insert(filter.to_owned());
        if connected {
            self.changed.retain(|(other, _)| other != filter);
            self.changed.push_back((filter.to_owned(), subscribe));
        }
    }

    /// There is a new connection. Gives how many messages wait, and how many were dropped since the last one.
    pub(crate) fn connected(&mut self, session_present: bool) -> (usize, u64) {
        self.asked.clear();
        self.stalled = false;
        if !session_present {
            self.unwanted.clear();
            // The broker knows nothing of these any more. It may have handed one on: better twice than not at all. They are few, and were held
            // already: nothing is dropped for them.
            while let Some(Flying { publish, .. }) = self.flying.pop_back() {
                self.bytes += size(&publish);
                self.waiting.push_front(publish);
            }
        }
        let gone = self.unwanted.iter().map(|filter| (filter.clone(), false));
        self.changed = gone.chain(self.filters.iter().map(|filter| (filter.clone(), true))).collect();
        (self.waiting.len(), std::mem::take(&mut self.dropped))
    }

    /// What a broker that remembers us may have, and has not acknowledged.
    pub(crate) fn send_again(&self, out: &mut BytesMut) {
        for Flying { packet_id, publish, released } in &self.flying {
            match released {
                true => out.extend_from_slice(&encode::ack(Version::V3, Ack::Release, *packet_id, 0)),
                false => encode::publish(publish, *packet_id, true, out),
            }
        }
    }

    /// What is to be sent now: whether there is room for more then.
    pub(crate) fn take(&mut self, out: &mut BytesMut) -> bool {
        while let Some((filter, subscribe)) = self.changed.pop_front() {
            let packet_id = self.next_id();
            encode::subscription(subscribe, packet_id, &filter, out);
            self.asked.push_back((packet_id, filter));
        }
        let mut freed = false;
        while self.flying.len() < IN_FLIGHT && out.len() < AT_ONCE {
            let Some(publish) = self.waiting.pop_front() else { break };
            freed = true;
            self.bytes -= size(&publish);
            let packet_id = if publish.qos == Qos::AtMostOnce { 0 } else { self.next_id() };
            encode::publish(&publish, packet_id, false, out);
            if packet_id != 0 {
                self.flying.push_back(Flying { packet_id, publish, released: false });
            }
        }
        if freed && std::mem::take(&mut self.stalled) {
            let dropped = std::mem::take(&mut self.dropped);
            info!(dropped, "the MQTT broker takes messages again");
        }
        freed
    }

    /// Nothing waits, and everything is acknowledged.
    pub(crate) fn all_is_said(&self) -> bool {
        self.waiting.is_empty() && self.flying.is_empty()
    }

    /// The broker has a message.
    pub(crate) fn acknowledged(&mut self, packet_id: u16) {
        self.flying.retain(|flying| flying.packet_id != packet_id);
    }

    /// The broker has a message of QoS 2.
    pub(crate) fn released(&mut self, packet_id: u16) {
        if let Some(flying) = self.flying.iter_mut().find(|flying| flying.packet_id == packet_id) {
            flying.released = true;
        }
    }

    /// The broker has answered a subscription: to what.
    pub(crate) fn subscribed(&mut self, packet_id: u16) -> Option<String> {
        let index = self.asked.iter().position(|(asked, _)| *asked == packet_id)?;
        self.asked.remove(index).map(|(_, filter)| filter)
    }

    /// The broker has answered that it says no more of a filter.
    pub(crate) fn unsubscribed(&mut self, packet_id: u16) {
        let Some(filter) = self.subscribed(packet_id) else { return };
        // It may have been wanted and not wanted again meanwhile.
        let asked = self.asked.iter().map(|(_, asked)| asked);
        if !asked.chain(self.changed.iter().map(|(changed, _)| changed)).any(|other| *other == filter) {
            self.unwanted.remove(&filter);
        }
    }

    fn next_id(&mut self) -> u16 {
        loop {
            self.last_id = self.last_id.wrapping_add(1);
            let id = self.last_id;
            if id != 0 && self.flying.iter().all(|flying| flying.packet_id != id) {
                return id;
            }
        }
    }
}

/// What a message takes, about.
pub(crate) fn size(publish: &Publish) -> usize {
    publish.topic.len() + publish.payload.len()
}
