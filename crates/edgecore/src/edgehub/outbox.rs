//! What is to be sent once the link stands again: the newest message per object, and the latest events.

use std::collections::VecDeque;

use tracing::warn;
use wire::{Message, kind};

/// Messages that are kept at most; the oldest goes first.
const MAX_MESSAGES: usize = 512;
/// Bytes of contents that are kept at most.
const MAX_BYTES: usize = 2 << 20;

/// Messages that wait for a link.
#[derive(Default)]
pub(super) struct Outbox {
    messages: VecDeque<Message>,
    bytes: usize,
}

impl Outbox {
    /// Keeps a message. An older one about the same object and with the same verb is worth nothing any more; events are each
    /// worth something.
    pub(super) fn keep(&mut self, message: Message) {
        if !message.route.resource.contains(&format!("/{}/", kind::EVENT)) {
            let same = |old: &Message| {
                old.route.resource == message.route.resource && old.route.operation == message.route.operation
            };
            if let Some(at) = self.messages.iter().position(same) {
                self.remove(at);
            }
        }
        self.bytes += message.content.raw().len();
        self.messages.push_back(message);
        let mut dropped = 0;
        while self.messages.len() > MAX_MESSAGES || self.bytes > MAX_BYTES {
            self.remove(0);
            dropped += 1;
        }
        if dropped > 0 {
            warn!(dropped, "too much waits for the link; the oldest messages are dropped");
        }
    }

    /// The oldest message.
    pub(super) fn take(&mut self) -> Option<Message> {
        self.remove(0)
    }

    fn remove(&mut self, at: usize) -> Option<Message> {
        let message = self.messages.remove(at)?;
        self.bytes -= message.content.raw().len();
        Some(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use beehive::compose;
    use wire::Content;

    fn message(operation: &str, resource: &str, text: &str) -> Message {
        compose::message("edged", "meta", operation, resource, Content::text(text))
    }

    #[test]
    fn the_newest_message_about_an_object_wins_and_events_are_kept() {
        let mut outbox = Outbox::default();
        outbox.keep(message("patch", "default/podpatch/a", "1"));
        outbox.keep(message("insert", "default/event/e", "1"));
        outbox.keep(message("insert", "default/event/e", "2"));
        outbox.keep(message("patch", "default/podpatch/a", "2"));
        let left: Vec<Content> = std::iter::from_fn(|| outbox.take()).map(|message| message.content).collect();
        assert_eq!(left, [Content::text("1"), Content::text("2"), Content::text("2")]);
        assert_eq!(outbox.bytes, 0);
    }

    #[test]
    fn memory_is_bounded() {
        let mut outbox = Outbox::default();
        for number in 0..2000 {
            outbox.keep(message("insert", &format!("default/event/{number}"), &"x".repeat(3000)));
        }
        assert!(outbox.messages.len() <= MAX_MESSAGES && outbox.bytes <= MAX_BYTES);
        assert_eq!(outbox.messages.back().expect("newest").route.resource, "default/event/1999");
    }
}
