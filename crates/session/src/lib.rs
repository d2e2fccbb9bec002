//! Delivery of objects to one node: what waits, what is in flight, what was acknowledged. No clock and no sockets: the
//! caller says what time it is and sends what it is told to.
//!
//! Per object the newest version wins: a newer one replaces a waiting one, two versions of one object are never in flight
//! together, and what is sent again is the newest that there is by then. Messages without acknowledgement (answers, twin updates) go by a bounded lane of their own, in order. Rules towards
//! a Go edge are those of KubeEdge v1.23 (`cloud/pkg/cloudhub`): resend after five seconds with the same id.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use wire::Message;

/// Objects in flight to one node. A Go edge reads into a queue of 100 that drops its oldest entry when it is full, so that the
/// window must stay well below.
pub const WINDOW: usize = 16;
/// How long an acknowledgement may take before the message is sent again.
pub const RESEND_AFTER: Duration = Duration::from_secs(5);
/// The longest wait before a message is sent again.
pub const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// Messages without acknowledgement that may wait.
pub const MAX_UNACKED: usize = 1024;

/// Tells objects apart: the uid of a Kubernetes object, or the resource path when a deletion has none.
pub type ObjectKey = String;

/// The cloud's half of the delivery to one node.
#[derive(Default)]
pub struct NodeQueue {
    /// Objects that wait, in the order in which they began to.
    order: VecDeque<ObjectKey>,
    waiting: HashMap<ObjectKey, Message>,
    in_flight: HashMap<ObjectKey, InFlight>,
    /// Which object a message id is of.
    ids: HashMap<String, ObjectKey>,
    plain: VecDeque<Message>,
}

struct InFlight {
    message: Message,
    due: Instant,
    wait: Duration,
    /// The node has said that it cannot take it.
    refused: bool,
}

/// The lane without acknowledgements is full: the node does not read.
#[derive(Debug, thiserror::Error)]
#[error("{MAX_UNACKED} messages wait for the node already")]
pub struct Full;

impl NodeQueue {
    /// A queue of a fresh session.
    pub fn new() -> Self {
        Self::default()
    }

    /// Queues the newest state of an object; an older one that waits is replaced and keeps its place.
    pub fn offer(&mut self, key: ObjectKey, message: Message) {
        if self.waiting.insert(key.clone(), message).is_none() {
            self.order.push_back(key);
        }
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
        if let Some(message) = self.plain.pop_front() {
            return Some(message);
        }
        if let Some(message) = self.next_again(now) {
            return Some(message);
        }
        if self.in_flight.len() >= WINDOW {
            return None;
        }
        let at = self.order.iter().position(|key| !self.in_flight.contains_key(key))?;
        let key = self.order.remove(at)?;
        let message = self.waiting.remove(&key)?;
        self.ids.insert(message.header.msg_id.clone(), key.clone());
        let flying = InFlight { message: message.clone(), due: now + RESEND_AFTER, wait: RESEND_AFTER, refused: false };
        self.in_flight.insert(key, flying);
        Some(message)
    }

    /// What was not acknowledged in time; a newer version takes the place of the one that was sent in vain.
    fn next_again(&mut self, now: Instant) -> Option<Message> {
        let due = self.in_flight.iter_mut().filter(|(_, flying)| flying.due <= now);
        let (key, flying) = due.min_by_key(|(_, flying)| flying.due)?;
        flying.wait = (flying.wait * 2).min(LONGEST_WAIT);
        flying.due = now + flying.wait;
        flying.refused = false;
        if let Some(newer) = self.waiting.remove(key) {
            self.order.retain(|waiting| waiting != key);
            self.ids.remove(&flying.message.header.msg_id);
            self.ids.insert(newer.header.msg_id.clone(), key.clone());
            flying.message = newer;
        }
        Some(flying.message.clone())
    }

    /// When [`NodeQueue::next`] has something again without further events.
    pub fn next_due(&self) -> Option<Instant> {
        self.in_flight.values().map(|flying| flying.due).min()
    }

    /// An acknowledgement arrived: the message it is of. Unknown ids (late, repeated, of others) are ignored.
    pub fn acknowledge(&mut self, id: &str) -> Option<(ObjectKey, Message)> {
        let key = self.ids.remove(id)?;
        let flying = self.in_flight.remove(&key)?;
        Some((key, flying.message))
    }

    /// The node could not take the message with this id: its object and itself, once for each time that it was sent. It stays in
    /// flight and is sent again.
    pub fn refused(&mut self, id: &str) -> Option<(&str, &Message)> {
        let key = self.ids.get(id)?;
        let flying = self.in_flight.get_mut(key)?;
        (!std::mem::replace(&mut flying.refused, true)).then_some((key.as_str(), &flying.message))
    }

    /// Objects that are not acknowledged yet.
    pub fn pending(&self) -> usize {
        self.waiting.len() + self.in_flight.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;
    use wire::{Content, Route};

    fn message(object: usize, version: usize) -> Message {
        let mut message = Message::new(
            format!("{object}-{version}"),
            0,
            Route::new("edgecontroller", "resource", "update", &format!("default/pod/{object}")),
            Content::null(),
        );
        message.header.resource_version = version.to_string();
        message
    }

    #[test]
    fn the_newest_version_replaces_a_waiting_one_and_none_overtakes_itself() {
        let (mut queue, now) = (NodeQueue::new(), Instant::now());
        queue.offer("a".into(), message(1, 1));
        assert_eq!(queue.next(now).expect("sent").header.msg_id, "1-1");
        queue.offer("a".into(), message(1, 2));
        queue.offer("a".into(), message(1, 3));
        assert!(queue.next(now).is_none(), "version 1 is in flight");
        assert!(queue.acknowledge("1-2").is_none(), "never sent");
        assert_eq!(queue.acknowledge("1-1").expect("acknowledged").1.header.resource_version, "1");
        assert_eq!(queue.next(now).expect("sent").header.msg_id, "1-3");
        assert!(queue.acknowledge("1-1").is_none(), "late");
        assert!(queue.acknowledge("1-3").is_some());
        assert_eq!(queue.pending(), 0);
    }

    #[test]
    fn what_is_not_acknowledged_is_sent_again_with_growing_waits() {
        let (mut queue, start) = (NodeQueue::new(), Instant::now());
        queue.offer("a".into(), message(1, 1));
        assert!(queue.next(start).is_some());
        let mut at = start;
        for seconds in [5, 10, 20, 40, 60, 60] {
            assert!(queue.next(at).is_none());
            at = queue.next_due().expect("due");
            assert_eq!(queue.next(at).expect("again").header.msg_id, "1-1");
            assert_eq!(queue.next_due().expect("due") - at, Duration::from_secs(u64::min(seconds * 2, 60)));
        }
    }

    #[test]
    fn what_is_sent_again_is_the_newest() {
        let (mut queue, now) = (NodeQueue::new(), Instant::now());
        queue.offer("a".into(), message(1, 1));
        assert!(queue.next(now).is_some());
        queue.offer("a".into(), message(1, 2));
        assert!(queue.next(now).is_none());
        assert_eq!(queue.next(now + RESEND_AFTER).expect("again").header.msg_id, "1-2");
        assert!(queue.acknowledge("1-1").is_none(), "the old one does not count any more");
        assert!(queue.acknowledge("1-2").is_some());
        assert_eq!(queue.pending(), 0);
        assert!(queue.next(now + LONGEST_WAIT).is_none());
    }

    #[test]
    fn a_refusal_is_told_once_for_each_sending() {
        let (mut queue, now) = (NodeQueue::new(), Instant::now());
        queue.offer("a".into(), message(1, 1));
        assert!(queue.refused("1-1").is_none(), "not sent yet");
        queue.next(now).expect("sent");
        assert_eq!(queue.refused("1-1").map(|(key, _)| key), Some("a"));
        assert!(queue.refused("1-1").is_none(), "told already");
        queue.next(now + RESEND_AFTER).expect("again");
        assert!(queue.refused("1-1").is_some());
        assert!(queue.acknowledge("1-1").is_some() && queue.refused("1-1").is_none());
    }

    #[test]
    fn one_full_lane_does_not_hold_up_the_other() {
        let (mut queue, now) = (NodeQueue::new(), Instant::now());
        for n in 0..MAX_UNACKED {
            queue.post(message(n, 0)).expect("room");
        }
        assert!(queue.post(message(0, 0)).is_err());
        for n in 0..WINDOW * 2 {
            queue.offer(n.to_string(), message(n, 1));
        }
        let sent = std::iter::from_fn(|| queue.next(now)).count();
        assert_eq!(sent, MAX_UNACKED + WINDOW);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Change(usize),
        Send,
        Ack(usize),
        Wait,
    }

    proptest! {
        /// Whatever is changed, sent, lost and acknowledged: never two versions of an object in flight, versions never go
        /// back, memory is bounded by the number of objects, and in the end every object's newest version has arrived.
        #[test]
        fn random_interleavings(steps in prop::collection::vec(
            prop_oneof![
                (0..6_usize).prop_map(Step::Change),
                Just(Step::Send),
                (0..20_usize).prop_map(Step::Ack),
                Just(Step::Wait),
            ], 0..200))
        {
            let (mut queue, mut now) = (NodeQueue::new(), Instant::now());
            let mut newest = [0_usize; 6];
            let mut arrived = [0_usize; 6];
            let mut sent: Vec<(usize, usize)> = Vec::new();
            let mut acknowledged: HashSet<(usize, usize)> = HashSet::new();
            let deliver = |queue: &mut NodeQueue, now: Instant, sent: &mut Vec<(usize, usize)>, arrived: &mut [usize; 6]| {
                while let Some(message) = queue.next(now) {
                    let (object, version) = message.header.msg_id.split_once('-').expect("id");
                    let (object, version): (usize, usize) = (object.parse().expect("n"), version.parse().expect("n"));
                    assert!(version >= arrived[object], "versions never go back");
                    arrived[object] = version;
                    sent.push((object, version));
                }
            };
            for step in steps {
                match step {
                    Step::Change(object) => {
                        newest[object] += 1;
                        queue.offer(object.to_string(), message(object, newest[object]));
                    }
                    Step::Send => deliver(&mut queue, now, &mut sent, &mut arrived),
                    Step::Ack(at) => {
                        if let Some((object, version)) = sent.get(at).copied()
                            && queue.acknowledge(&format!("{object}-{version}")).is_some()
                        {
                            prop_assert!(acknowledged.insert((object, version)), "acknowledged once");
                        }
                    }
                    Step::Wait => now += Duration::from_secs(7),
                }
                prop_assert!(queue.pending() <= 12);
            }
            for _ in 0..20 {
                now += Duration::from_secs(100);
                deliver(&mut queue, now, &mut sent, &mut arrived);
                for (object, version) in sent.clone() {
                    queue.acknowledge(&format!("{object}-{version}"));
                }
            }
            prop_assert_eq!(arrived, newest);
            prop_assert_eq!(queue.pending(), 0);
        }
    }
}
