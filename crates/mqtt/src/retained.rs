//! The last message of each topic that asked for it, bounded in number and bytes.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::message::Message;
use crate::topic::covers;

/// Retained messages.
pub(crate) struct Retained {
    messages: BTreeMap<String, Arc<Message>>,
    bytes: usize,
    most: usize,
    most_bytes: usize,
}

impl Retained {
    pub(crate) fn new(most: usize, most_bytes: usize) -> Self {
        Self { messages: BTreeMap::new(), bytes: 0, most, most_bytes }
    }

    /// Keeps a message in place of the one before it. `false` when there is no room for a new one.
    pub(crate) fn set(&mut self, message: Arc<Message>) -> bool {
        let before = self.messages.get(&message.topic).map_or(0, |before| before.size());
        let is_new = before == 0;
        let bytes = self.bytes - before + message.size();
        if bytes > self.most_bytes || is_new && self.messages.len() >= self.most {
            return false;
        }
        self.bytes = bytes;
        self.messages.insert(message.topic.clone(), message);
        true
    }

    /// `false` when there was none.
    pub(crate) fn remove(&mut self, topic: &str) -> bool {
        let removed = self.messages.remove(topic);
        self.bytes -= removed.as_ref().map_or(0, |message| message.size());
        removed.is_some()
    }

    /// Those that a filter matches.
    pub(crate) fn matching<'a>(&'a self, filter: &'a str, now: u64) -> impl Iterator<Item = &'a Arc<Message>> {
        // Up to its first wildcard a filter is a prefix, and most filters have one.
        let prefix = filter.split(['+', '#']).next().unwrap_or("");
        let prefix = if prefix.len() < filter.len() { prefix.strip_suffix('/').unwrap_or(prefix) } else { filter };
        let from = self.messages.range::<str, _>((std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded));
        from.take_while(move |(topic, _)| topic.starts_with(prefix))
            .filter(move |(topic, message)| covers(filter, topic) && !message.is_expired(now))
            .map(|(_, message)| message)
    }

    /// Removes what nobody wants any more, and names it.
    pub(crate) fn expire(&mut self, now: u64) -> Vec<String> {
        let expired = self.messages.values().filter(|message| message.is_expired(now));
        let expired: Vec<String> = expired.map(|message| message.topic.clone()).collect();
        for topic in &expired {
            self.remove(topic);
        }
        expired
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Qos;

    #[test]
    fn the_last_message_of_a_topic_is_kept_within_bounds() {
        let message = |topic: &str, payload: &'static str, expires| {
            let mut message = Message::new(topic.to_owned(), payload.into(), Qos::AtMostOnce, true);
            message.expires = expires;
            Arc::new(message)
        };
        let mut retained = Retained::new(3, 30);
        assert!(retained.set(message("a/b", "1", None)) && retained.set(message("a/c", "2", Some(9))));
        assert!(retained.set(message("a/b", "3", None)) && retained.set(message("$x", "4", None)));
        assert!(!retained.set(message("d", "5", None)), "too many");
        assert!(!retained.set(message("a/b", "a payload that is too long", None)), "too large");
        for (filter, now, expected) in
            [("a/+", 0, "32"), ("#", 0, "32"), ("a/#", 9, "3"), ("$x", 0, "4"), ("a/b", 0, "3"), ("a", 0, "")]
        {
            let found: Vec<u8> = retained.matching(filter, now).flat_map(|message| message.payload.to_vec()).collect();
            assert_eq!(found, expected.as_bytes(), "{filter}");
        }
        assert_eq!(retained.expire(9), ["a/c"]);
        assert!(retained.remove("$x") && retained.remove("a/b") && !retained.remove("a/b") && retained.bytes == 0);
    }
}
