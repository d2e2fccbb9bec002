//! What is to be sent and cannot be yet, because there is no link or because of the sending rate.

use std::collections::VecDeque;

use tracing::warn;
use wire::{Message, kind};

/// Messages that are kept at most, and as many events.
const MAX_MESSAGES: usize = 512;
/// Bytes of contents that are kept at most, and as many of events.
const MAX_BYTES: usize = 1 << 20;

/// Messages that wait. Events go last: a flood of them must not make a pod's status late.
#[derive(Default)]
pub(super) struct Outbox {
    messages: Lane,
    events: Lane,
}

/// Messages in their order, oldest first.
#[derive(Default)]
struct Lane {
    messages: VecDeque<Message>,
    bytes: usize,
}

impl Outbox {
    /// Keeps a message for the next link. An older one about the same object and with the same verb is worth nothing any more;
    /// events are each worth something. When there are too many the oldest goes.
    pub(super) fn keep(&mut self, message: Message) {
        if is_event(&message) {
            return self.events.push_bounded(message);
        }
        let same = |old: &Message| {
            old.route.resource == message.route.resource && old.route.operation == message.route.operation
        };
        if let Some(at) = self.messages.messages.iter().position(same) {
            self.messages.remove(at);
        }
        self.messages.push_bounded(message);
    }

    /// Queues a message for its turn; somebody may wait for its answer, so that none is dropped but events.
    pub(super) fn queue(&mut self, message: Message) {
        match is_event(&message) {
            true => self.events.push_bounded(message),
            false => self.messages.push(message),
        }
    }

    /// Whether more than events may be queued; senders wait otherwise.
    pub(super) fn has_room(&self) -> bool {
        !self.messages.is_over(0)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages.messages.is_empty() && self.events.messages.is_empty()
    }

    pub(super) fn has_only_events(&self) -> bool {
        self.messages.messages.is_empty()
    }

    /// The next message.
    pub(super) fn take(&mut self) -> Option<Message> {
        self.messages.remove(0).or_else(|| self.events.remove(0))
    }
}

impl Lane {
    fn push(&mut self, message: Message) {
        self.bytes += message.content.raw().len();
        self.messages.push_back(message);
    }

    fn push_bounded(&mut self, message: Message) {
        self.push(message);
        let mut dropped = 0;
        while self.is_over(1) {
            self.remove(0);
            dropped += 1;
        }
        if dropped > 0 {
            warn!(dropped, "too much waits for the link; the oldest messages are dropped");
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use beehive::compose;
    use wire::Content;

    fn message(operation: &str, resource: &str, text: &str) -> Message {
        compose::message("edged", "meta", operation, resource, Content::text(text))
    }

    fn drain(outbox: &mut Outbox) -> Vec<Content> {
        let left = std::iter::from_fn(|| outbox.take()).map(|message| message.content).collect();
        assert_eq!((outbox.messages.bytes, outbox.events.bytes), (0, 0));
        left
    }

    #[test]
    fn the_newest_message_about_an_object_wins_and_events_are_kept() {
        let mut outbox = Outbox::default();
        outbox.keep(message("patch", "default/podpatch/a", "1"));
        outbox.keep(message("insert", "default/event/e", "1"));
        outbox.keep(message("insert", "default/event/e", "2"));
        outbox.keep(message("patch", "default/podpatch/a", "2"));
        let [status, events] = [["2"].as_slice(), &["1", "2"]];
        let expected: Vec<Content> = [status, events].concat().into_iter().map(Content::text).collect();
        assert_eq!(drain(&mut outbox), expected, "events last");
    }

    #[test]
    fn queued_messages_keep_their_order_and_none_replaces_another() {
        let mut outbox = Outbox::default();
        outbox.queue(message("patch", "default/podpatch/a", "1"));
        outbox.queue(message("patch", "default/podpatch/a", "2"));
        assert_eq!(drain(&mut outbox), [Content::text("1"), Content::text("2")]);
    }

    #[test]
    fn memory_is_bounded() {
        let mut outbox = Outbox::default();
        for number in 0..2000 {
            outbox.keep(message("insert", &format!("default/event/{number}"), &"x".repeat(3000)));
        }
        assert!(outbox.events.messages.len() <= MAX_MESSAGES && outbox.events.bytes <= MAX_BYTES);
        assert_eq!(outbox.events.messages.back().expect("newest").route.resource, "default/event/1999");
    }

    #[test]
    fn a_flood_of_events_takes_no_place_from_others() {
        let mut outbox = Outbox::default();
        outbox.queue(message("patch", "default/podpatch/a", "1"));
        for number in 0..2000 {
            outbox.queue(message("insert", &format!("default/event/{number}"), "x"));
            assert!(outbox.has_room());
        }
        assert_eq!(outbox.events.messages.len(), MAX_MESSAGES);
        assert_eq!(outbox.take().expect("first").route.operation, "patch");
        for number in 0..MAX_MESSAGES {
            outbox.queue(message("patch", &format!("default/podpatch/{number}"), "x"));
        }
        assert!(!outbox.has_room());
    }
}
