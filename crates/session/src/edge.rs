//! The edge's half: what is to be sent and cannot be yet, because there is no link or because of the sending rate, and what was sent
//! and may still be lost with the link.
//!
//! While there is no link the latest message per object and verb is kept, events each; in order, within a bound in messages and bytes.
//! Beyond it the oldest goes. Events have a bound of their own and go last: a flood of them must not make a pod's status late.
//! Where the cloud acknowledges (feature `acks-1`), what it has not acknowledged when the link breaks is sent again by the next one.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use wire::{Message, kind};

/// Messages that are kept at most, and as many events.
pub const MAX_MESSAGES: usize = 512;
/// Bytes of contents that are kept at most, and as many of events.
pub const MAX_BYTES: usize = 1 << 20;
/// What the cloud has not acknowledged after this time is sent again: the Kubernetes API was not in its reach, for example.
pub const RESEND_AFTER: Duration = Duration::from_secs(60);

/// Messages that wait, and messages that wait for their acknowledgement.
#[derive(Default)]
pub struct Outbox {
    messages: Lane,
    events: Lane,
    in_flight: VecDeque<(Instant, Message)>,
}

/// Messages in their order, oldest first.
#[derive(Default)]
struct Lane {
    messages: VecDeque<Message>,
    bytes: usize,
}

impl Outbox {
    /// Keeps a message for the next link. An older one about the same object and with the same verb is worth nothing any more;
    /// events are each worth something. When there are too many the oldest goes; how many did.
    #[must_use = "a loss is to be told"]
    pub fn keep(&mut self, message: Message) -> usize {
        if is_event(&message) {
            return self.events.push_bounded(message);
        }
        if let Some(at) = self.messages.messages.iter().position(|old| is_same(old, &message)) {
            self.messages.remove(at);
        }
        self.messages.push_bounded(message)
    }

    /// Queues a message for its turn; somebody may wait for its answer, so that none is dropped but events: how many were.
    #[must_use = "a loss is to be told"]
    pub fn queue(&mut self, message: Message) -> usize {
        if is_event(&message) {
            return self.events.push_bounded(message);
        }
        self.messages.push(message);
        0
    }

    /// Whether more than events may be queued; senders wait otherwise.
    pub fn has_room(&self) -> bool {
        !self.messages.is_over(0)
    }

    /// Whether nothing waits that may be sent.
    pub fn is_empty(&self) -> bool {
        self.messages.messages.is_empty() && (self.events.messages.is_empty() || self.holds_events())
    }

    /// Whether only events wait, or nothing.
    pub fn has_only_events(&self) -> bool {
        self.messages.messages.is_empty()
    }

    /// The next message.
    pub fn take(&mut self) -> Option<Message> {
        let message = self.messages.remove(0);
        if message.is_some() || self.holds_events() {
            return message;
        }
        self.events.remove(0)
    }

    /// Events wait while too much is not acknowledged: the cloud cannot carry them out now.
    fn holds_events(&self) -> bool {
        self.in_flight.len() >= MAX_MESSAGES
    }

    /// A message was sent that the cloud is to acknowledge. An older one about the same object is not sent again: it would come after
    /// this one.
    pub fn sent(&mut self, message: Message, now: Instant) {
        if !is_event(&message) {
            self.in_flight.retain(|(_, older)| !is_same(older, &message));
        }
        self.in_flight.push_back((now, message));
    }

    /// The cloud acknowledged the message with this id, or answered it. Unknown ids are ignored.
    pub fn acknowledged(&mut self, id: &str) {
        if let Some(at) = self.in_flight.iter().position(|(_, message)| message.header.msg_id == id) {
            self.in_flight.remove(at);
        }
    }

    /// When something is to be sent again.
    pub fn next_due(&self) -> Option<Instant> {
        self.in_flight.front().map(|(at, _)| *at + RESEND_AFTER)
    }

    /// Puts what is due again back to what waits: how much was lost for want of room.
    pub fn repeat(&mut self, now: Instant) -> usize {
        let due = self.in_flight.iter().take_while(|(at, _)| *at + RESEND_AFTER <= now).count();
        self.put_back(due)
    }

    /// The link is gone: what was not acknowledged is to be sent again, before what came later. How much was lost for want of room.
    pub fn disconnected(&mut self) -> usize {
        self.put_back(self.in_flight.len())
    }

    fn put_back(&mut self, count: usize) -> usize {
        let mut lost = 0;
        for (_, message) in self.in_flight.drain(..count).rev() {
            let lane = if is_event(&message) { &mut self.events } else { &mut self.messages };
            let is_outdated = !is_event(&message) && lane.messages.iter().any(|newer| is_same(newer, &message));
            let has_room = lane.messages.len() < MAX_MESSAGES && lane.bytes < MAX_BYTES;
            match (is_outdated, has_room) {
                (true, _) => {}
                (false, true) => lane.push_front(message),
                (false, false) => lost += 1,
            }
        }
        lost
    }

    /// Messages that wait or are in flight.
    pub fn len(&self) -> usize {
        self.messages.messages.len() + self.events.messages.len() + self.in_flight.len()
    }
}

impl Lane {
    fn push(&mut self, message: Message) {
        self.bytes += message.content.raw().len();
        self.messages.push_back(message);
    }

    fn push_front(&mut self, message: Message) {
        self.bytes += message.content.raw().len();
        self.messages.push_front(message);
    }

    fn push_bounded(&mut self, message: Message) -> usize {
        self.push(message);
        let mut dropped = 0;
        while self.is_over(1) && self.remove(0).is_some() {
            dropped += 1;
        }
        dropped
    }

    /// Over the limits, when so many more messages than the limit are one too many.
    fn is_over(&self, more: usize) -> bool {
        self.messages.len() >= MAX_MESSAGES + more || self.bytes >= MAX_BYTES + more
    }

    fn remove(&mut self, at: usize) -> Option<Message> {
        let message = self.messages.remove(at)?;
        self.bytes -= message.content.raw().len();
        Some(message)
    }
}

fn is_event(message: &Message) -> bool {
    message.route.resource.split('/').nth(1) == Some(kind::EVENT)
}

fn is_same(one: &Message, other: &Message) -> bool {
    one.route.resource == other.route.resource && one.route.operation == other.route.operation
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::{Content, Route};

    fn message(operation: &str, resource: &str, text: &str) -> Message {
        let route = Route::new("edged", "meta", operation, resource);
        Message::new(format!("{resource} {text}"), 0, route, Content::text(text))
    }

    fn texts(outbox: &mut Outbox) -> Vec<String> {
        let text = |message: Message| String::from_utf8_lossy(&message.content.payload()).into_owned();
        let left = std::iter::from_fn(|| outbox.take()).map(text).collect();
        assert_eq!((outbox.messages.bytes, outbox.events.bytes), (0, 0));
        left
    }

    #[test]
    fn the_newest_message_about_an_object_wins_and_events_are_kept() {
        let mut outbox = Outbox::default();
        let mut lost = outbox.keep(message("patch", "default/podpatch/a", "1"));
        lost += outbox.keep(message("insert", "default/event/e", "e1"));
        lost += outbox.keep(message("insert", "default/event/e", "e2"));
        lost += outbox.keep(message("patch", "default/podpatch/a", "2"));
        assert_eq!((lost, texts(&mut outbox)), (0, vec!["2".to_owned(), "e1".to_owned(), "e2".to_owned()]));
    }

    #[test]
    fn queued_messages_keep_their_order_and_none_replaces_another() {
        let mut outbox = Outbox::default();
        let lost = outbox.queue(message("patch", "default/podpatch/a", "1"))
            + outbox.queue(message("patch", "default/podpatch/a", "2"));
        assert_eq!((lost, texts(&mut outbox)), (0, vec!["1".to_owned(), "2".to_owned()]));
    }

    #[test]
    fn memory_is_bounded_and_a_loss_is_counted() {
        let mut outbox = Outbox::default();
        let lost: usize = (0..2000)
            .map(|number| outbox.keep(message("insert", &format!("default/event/{number}"), &"x".repeat(3000))))
            .sum();
        assert!(outbox.events.messages.len() <= MAX_MESSAGES && outbox.events.bytes <= MAX_BYTES);
        assert_eq!(lost + outbox.len(), 2000);
        assert_eq!(outbox.events.messages.back().expect("newest").route.resource, "default/event/1999");
    }

    #[test]
    fn a_flood_of_events_takes_no_place_from_others() {
        let mut outbox = Outbox::default();
        let _ = outbox.queue(message("patch", "default/podpatch/a", "1"));
        for number in 0..2000 {
            let _ = outbox.queue(message("insert", &format!("default/event/{number}"), "x"));
            assert!(outbox.has_room());
        }
        assert_eq!(outbox.events.messages.len(), MAX_MESSAGES);
        assert_eq!(outbox.take().expect("first").route.operation, "patch");
        for number in 0..MAX_MESSAGES {
            let _ = outbox.queue(message("patch", &format!("default/podpatch/{number}"), "x"));
        }
        assert!(!outbox.has_room());
    }

    #[test]
    fn events_that_the_cloud_cannot_carry_out_hold_back_events_alone() {
        let (mut outbox, now) = (Outbox::default(), Instant::now());
        for number in 0..2 * MAX_MESSAGES {
            let _ = outbox.queue(message("insert", &format!("default/event/{number}"), "x"));
            if let Some(event) = outbox.take() {
                outbox.sent(event, now);
            }
        }
        assert_eq!((outbox.in_flight.len(), outbox.events.messages.len()), (MAX_MESSAGES, MAX_MESSAGES));
        assert!(outbox.is_empty() && outbox.has_room() && outbox.take().is_none());
        let _ = outbox.queue(message("patch", "default/podpatch/a", "1"));
        assert!(!outbox.is_empty());
        assert_eq!(outbox.take().expect("no event").route.operation, "patch");
        outbox.acknowledged("default/event/0 x");
        assert_eq!(outbox.take().expect("an event").route.resource, format!("default/event/{MAX_MESSAGES}"));
    }

    #[test]
    fn what_was_not_acknowledged_is_sent_by_the_next_link_before_what_came_later() {
        let (mut outbox, now) = (Outbox::default(), Instant::now());
        for (resource, text) in [("default/event/e", "e1"), ("default/event/e", "e2"), ("default/rule/r", "r1")] {
            let _ = outbox.keep(message("insert", resource, text));
        }
        while let Some(message) = outbox.take() {
            outbox.sent(message, now);
        }
        outbox.acknowledged("default/event/e e1");
        outbox.acknowledged("never sent");
        let _ = outbox.keep(message("insert", "default/event/e", "e3"));
        let _ = outbox.keep(message("insert", "default/rule/r", "r2"));
        assert_eq!(outbox.disconnected(), 0);
        assert_eq!(texts(&mut outbox), ["r2", "e2", "e3"], "r1 is outdated, e1 was acknowledged");
    }

    #[test]
    fn an_older_message_never_follows_a_newer_one() {
        let (mut outbox, now) = (Outbox::default(), Instant::now());
        outbox.sent(message("patch", "default/podpatch/a", "1"), now);
        outbox.sent(message("patch", "default/podpatch/a", "2"), now + Duration::from_secs(1));
        assert_eq!(outbox.repeat(now + RESEND_AFTER), 0);
        assert!(outbox.is_empty(), "2 is on its way");
        assert_eq!((outbox.disconnected(), texts(&mut outbox)), (0, vec!["2".to_owned()]));
    }

    #[test]
    fn what_the_cloud_could_not_do_is_sent_again_later() {
        let (mut outbox, now) = (Outbox::default(), Instant::now());
        outbox.sent(message("insert", "default/event/e", "e1"), now);
        let due = outbox.next_due().expect("due");
        assert_eq!(outbox.repeat(due - Duration::from_secs(1)) + outbox.repeat(due), 0);
        assert_eq!((texts(&mut outbox), outbox.next_due()), (vec!["e1".to_owned()], None));
    }
}
