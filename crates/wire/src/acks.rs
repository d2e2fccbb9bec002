//! Acknowledgements of many messages in one (feature `acks-1`): a `response` about `acks` with the ids as its content.

use crate::{Content, Message, Route, group, operation};

/// The resource of such a message.
const RESOURCE: &str = "acks";
/// Ids in one message at most; a peer's longer list is cut.
pub const MAX_ACKS: usize = 1024;

/// The message that acknowledges these ids.
pub fn of(ids: &[String], source: &str, id: String, timestamp: i64) -> Message {
    let content = Content::json(ids).unwrap_or_else(|_| Content::null());
    Message::new(id, timestamp, Route::new(source, group::RESOURCE, operation::RESPONSE, RESOURCE), content)
}

/// The ids that this message acknowledges; `None` when it is another kind of message.
pub fn read(message: &Message) -> Option<Vec<String>> {
    if message.route.operation != operation::RESPONSE || message.route.resource != RESOURCE {
        return None;
    }
    let mut ids: Vec<String> = message.content.parse().unwrap_or_default();
    ids.truncate(MAX_ACKS);
    Some(ids)
}

/// Whether this only acknowledges one message, as upstream's edges do: the id of that.
pub fn single(message: &Message) -> Option<&str> {
    let id = message.header.parent_msg_id.as_str();
    (message.route.operation == operation::RESPONSE && message.content.is_ok() && !id.is_empty()).then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_travel_together() {
        let ids = vec!["a".to_owned(), "b".to_owned()];
        let message = of(&ids, "websocket", "m".to_owned(), 7);
        let message = Message::parse(&message.to_json()).expect("a message");
        assert_eq!(read(&message), Some(ids));
        assert_eq!(single(&message), None);
    }

    #[test]
    fn others_are_none_and_nonsense_acknowledges_nothing() {
        let route = |resource: &str| Route::new("edged", "meta", operation::RESPONSE, resource);
        let mut one = Message::new("m".to_owned(), 0, route("default/pod/p"), Content::ok());
        one.header.parent_msg_id = "p".to_owned();
        assert_eq!((read(&one), single(&one)), (None, Some("p")));
        let nonsense = Message::new("m".to_owned(), 0, route("acks"), Content::text("all"));
        assert_eq!(read(&nonsense), Some(Vec::new()));
        let many: Vec<String> = (0..5000).map(|n| n.to_string()).collect();
        assert_eq!(read(&of(&many, "s", "m".to_owned(), 0)).map(|ids| ids.len()), Some(MAX_ACKS));
    }
}
