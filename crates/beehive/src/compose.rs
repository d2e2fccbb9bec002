//! Messages with a fresh id and the current time.

use std::time::{SystemTime, UNIX_EPOCH};

use wire::{Content, Message, Route};

/// A message that answers none.
pub fn message(source: &str, group: &str, operation: &str, resource: &str, content: Content) -> Message {
    Message::new(id(), now(), Route::new(source, group, operation, resource), content)
}

/// An answer, or an acknowledgement.
pub fn response(request: &Message, content: Content) -> Message {
    request.response(id(), now(), content)
}

/// A failure in words.
pub fn error(request: &Message, text: &str) -> Message {
    request.error(id(), now(), text)
}

/// A fresh message id: a random UUID.
pub fn id() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// Milliseconds since 1970.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
