//! The envelope: one JSON document per WebSocket message.

use std::fmt;

use serde::Serialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::{Content, MAX_MESSAGE_BYTES, operation};

/// One message between modules, within a process or across the link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Identity and version.
    pub header: Header,
    /// From whom, about what.
    pub route: Route,
    /// Any JSON value.
    pub content: Content,
}

/// Identity of a message, and the version of the object in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Header {
    /// A UUID; empty only in the last envelope of a stopping Go edge.
    pub msg_id: String,
    /// The message that this one answers.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub parent_msg_id: String,
    /// When it was made, in milliseconds since 1970.
    pub timestamp: i64,
    /// The Kubernetes resource version of the object in the content.
    #[serde(rename = "resourceversion", skip_serializing_if = "String::is_empty")]
    pub resource_version: String,
    /// Set within a process by a sender that waits; never on the wire.
    #[serde(skip_serializing_if = "is_false")]
    pub sync: bool,
    /// `channel` or `unixpacket`; empty on the wire.
    #[serde(rename = "type", skip_serializing_if = "String::is_empty")]
    pub kind: String,
}

/// Where a message comes from and what it is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Route {
    /// The sending module.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// Unused on the wire.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub destination: String,
    /// The routing class.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// The verb.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub operation: String,
    /// The resource path.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource: String,
}

/// A frame is no message.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    /// Longer than [`MAX_MESSAGE_BYTES`].
    #[error("a message of {0} bytes is over the limit of {MAX_MESSAGE_BYTES}")]
    TooLong(usize),
    /// No JSON object of the envelope's shape.
    #[error("the frame is no message")]
    Json(#[source] serde_json::Error),
}

impl Route {
    /// A route without destination.
    pub fn new(source: &str, group: &str, operation: &str, resource: &str) -> Self {
        Self {
            source: source.to_owned(),
            destination: String::new(),
            group: group.to_owned(),
            operation: operation.to_owned(),
            resource: resource.to_owned(),
        }
    }
}

impl Message {
    /// A message of its own, answering none.
    pub fn new(id: String, timestamp: i64, route: Route, content: Content) -> Self {
        Self { header: Header { msg_id: id, timestamp, ..Header::default() }, route, content }
    }

    /// An answer to this message: source, group, resource and type are copied, the resource version is not.
    pub fn response(&self, id: String, timestamp: i64, content: Content) -> Self {
        let header = Header {
            msg_id: id,
            parent_msg_id: self.header.msg_id.clone(),
            timestamp,
            kind: self.header.kind.clone(),
            ..Header::default()
        };
        let route =
            Route { destination: String::new(), operation: operation::RESPONSE.to_owned(), ..self.route.clone() };
        Self { header, route, content }
    }

    /// The failure of this message: only the resource is copied.
    pub fn error(&self, id: String, timestamp: i64, text: &str) -> Self {
        let header = Header { msg_id: id, parent_msg_id: self.header.msg_id.clone(), timestamp, ..Header::default() };
        let route =
            Route { operation: operation::ERROR.to_owned(), resource: self.route.resource.clone(), ..Route::default() };
        Self { header, route, content: Content::text(text) }
    }

    /// Reads the first JSON document of a frame; what follows it is ignored, as Go does. Keys are matched without regard
    /// to case, unknown ones are skipped, the last of several equal ones counts.
    ///
    /// # Errors
    /// The frame is too long, or no message.
    pub fn parse(frame: &[u8]) -> Result<Self, ParseError> {
        if frame.len() > MAX_MESSAGE_BYTES {
            return Err(ParseError::TooLong(frame.len()));
        }
        let mut documents = serde_json::Deserializer::from_slice(frame);
        EnvelopeSeed.deserialize(&mut documents).map_err(ParseError::Json)
    }

    /// The JSON document, without a trailing newline; `<`, `>`, `&` are escaped as Go writes them.
    pub fn to_json(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.content.raw().len() + 320);
        out.extend_from_slice(b"{\"header\":");
        write_like_go(&mut out, &self.header);
        out.extend_from_slice(b",\"route\":");
        write_like_go(&mut out, &self.route);
        out.extend_from_slice(b",\"content\":");
        out.extend_from_slice(self.content.raw());
        out.push(b'}');
        out
    }

    /// Whether this is the empty envelope that a stopping Go edge sends last.
    pub fn is_empty_envelope(&self) -> bool {
        self.header.msg_id.is_empty() && self.route == Route::default() && self.content.is_null()
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

/// Strings and numbers of a header or route; neither can fail to serialise.
fn write_like_go<T: Serialize>(out: &mut Vec<u8>, value: &T) {
    let text = serde_json::to_vec(value).unwrap_or_else(|_| b"{}".to_vec());
    for byte in text {
        match byte {
            // Outside of strings these three bytes do not occur in JSON.
            b'<' => out.extend_from_slice(b"\\u003c"),
            b'>' => out.extend_from_slice(b"\\u003e"),
            b'&' => out.extend_from_slice(b"\\u0026"),
            byte => out.push(byte),
        }
    }
}

/// As [`Message::parse`], for one document among others.
impl<'de> serde::Deserialize<'de> for Message {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        EnvelopeSeed.deserialize(deserializer)
    }
}

struct EnvelopeSeed;

impl<'de> DeserializeSeed<'de> for EnvelopeSeed {
    type Value = Message;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Message, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for EnvelopeSeed {
    type Value = Message;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a message with header, route and content")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Message, A::Error> {
        let mut message = Message { header: Header::default(), route: Route::default(), content: Content::null() };
        while let Some(key) = map.next_key::<String>()? {
            match key.to_ascii_lowercase().as_str() {
                "header" => map.next_value_seed(Part(&mut message.header))?,
                "route" => map.next_value_seed(Part(&mut message.route))?,
                "content" => message.content = Content::from_checked(map.next_value::<&RawValue>()?),
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(message)
    }
}

/// Reads an object's known fields into `self.0`; `null` leaves it as it is, as Go does.
struct Part<'a, T>(&'a mut T);

/// A struct whose fields are set one by one, by lower-case name.
trait Fields {
    fn set<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error>;
}

impl Fields for Header {
    fn set<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "msg_id" => set(&mut self.msg_id, map),
            "parent_msg_id" => set(&mut self.parent_msg_id, map),
            "timestamp" => set(&mut self.timestamp, map),
            "resourceversion" => set(&mut self.resource_version, map),
            "sync" => set(&mut self.sync, map),
            "type" => set(&mut self.kind, map),
            _ => map.next_value::<IgnoredAny>().map(drop),
        }
    }
}

impl Fields for Route {
    fn set<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "source" => set(&mut self.source, map),
            "destination" => set(&mut self.destination, map),
            "group" => set(&mut self.group, map),
            "operation" => set(&mut self.operation, map),
            "resource" => set(&mut self.resource, map),
            _ => map.next_value::<IgnoredAny>().map(drop),
        }
    }
}

fn set<'de, T: serde::Deserialize<'de>, A: MapAccess<'de>>(field: &mut T, map: &mut A) -> Result<(), A::Error> {
    if let Some(value) = map.next_value::<Option<T>>()? {
        *field = value;
    }
    Ok(())
}

impl<'de, T: Fields> DeserializeSeed<'de> for Part<'_, T> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, T: Fields> Visitor<'de> for Part<'_, T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            self.0.set(&key.to_ascii_lowercase(), &mut map)?;
        }
        Ok(())
    }
}
