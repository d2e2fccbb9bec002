//! What the broker says, as bytes. Reading is the library's work; what is written here is fixed but for a few fields.

use std::time::Duration;

use bytes::{BufMut, BytesMut};

use crate::Publish;
use crate::message::{Message, Qos};

/// The version that a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// MQTT 3.1.1.
    V3,
    /// MQTT 5.
    V5,
}

/// An answer to a packet with an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Ack {
    /// PUBACK.
    Acknowledged = 0x40,
    /// PUBREC.
    Received = 0x50,
    /// PUBREL.
    Release = 0x62,
    /// PUBCOMP.
    Complete = 0x70,
}

pub(crate) const PING_RESPONSE: [u8; 2] = [0xd0, 0];
/// PINGREQ, of a client.
pub(crate) const PING: [u8; 2] = [0xc0, 0];
/// DISCONNECT of a client of 3.1.1.
pub(crate) const GOODBYE: [u8; 2] = [0xe0, 0];

/// Reason codes of MQTT 5.
pub(crate) mod reason {
    pub(crate) const UNSPECIFIED: u8 = 0x80;
    pub(crate) const MALFORMED: u8 = 0x81;
    pub(crate) const PROTOCOL_ERROR: u8 = 0x82;
    pub(crate) const UNSUPPORTED_VERSION: u8 = 0x84;
    pub(crate) const CLIENT_ID: u8 = 0x85;
    pub(crate) const BAD_PASSWORD: u8 = 0x86;
    pub(crate) const NOT_AUTHORIZED: u8 = 0x87;
    pub(crate) const SHUTTING_DOWN: u8 = 0x8b;
    pub(crate) const BAD_METHOD: u8 = 0x8c;
    pub(crate) const KEEP_ALIVE: u8 = 0x8d;
    pub(crate) const TAKEN_OVER: u8 = 0x8e;
    pub(crate) const BAD_FILTER: u8 = 0x8f;
    pub(crate) const BAD_TOPIC: u8 = 0x90;
    pub(crate) const UNKNOWN_ID: u8 = 0x92;
    pub(crate) const ALIAS: u8 = 0x94;
    pub(crate) const TOO_LARGE: u8 = 0x95;
    pub(crate) const QUOTA: u8 = 0x97;
    pub(crate) const NO_SHARING: u8 = 0x9e;
    pub(crate) const NO_SUBSCRIPTION: u8 = 0x11;
}

/// What a client learns of the broker's limits.
pub(crate) struct Limits<'a> {
    pub(crate) assigned_id: Option<&'a str>,
    pub(crate) receive_maximum: u16,
    pub(crate) packet_size: u32,
    pub(crate) topic_aliases: u16,
}

pub(crate) fn accepted(version: Version, session_present: bool, limits: &Limits<'_>) -> Vec<u8> {
    if version == Version::V3 {
        return vec![0x20, 2, u8::from(session_present), 0];
    }
    let mut properties = vec![0x21];
    properties.put_u16(limits.receive_maximum);
    properties.put_u8(0x27);
    properties.put_u32(limits.packet_size);
    properties.put_u8(0x22);
    properties.put_u16(limits.topic_aliases);
    // No shared subscriptions.
    properties.put_slice(&[0x2a, 0]);
    if let Some(id) = limits.assigned_id {
        properties.put_u8(0x12);
        put_bytes(&mut properties, id.as_bytes());
    }
    let mut packet = vec![0x20];
    put_length(&mut packet, 2 + length_size(properties.len()) + properties.len());
    packet.put_slice(&[u8::from(session_present), 0]);
    put_length(&mut packet, properties.len());
    packet.put_slice(&properties);
    packet
}

/// Refuses a CONNECT, for a reason of MQTT 5; 3.1.1 knows five.
pub(crate) fn refused(version: Version, code: u8) -> Vec<u8> {
    let old = match code {
        reason::UNSUPPORTED_VERSION => 1,
        reason::CLIENT_ID => 2,
        reason::BAD_PASSWORD => 4,
        reason::NOT_AUTHORIZED => 5,
        _ => 3,
    };
    match version {
        Version::V3 => vec![0x20, 2, 0, old],
        Version::V5 => vec![0x20, 3, 0, code, 0],
    }
}

pub(crate) fn ack(version: Version, ack: Ack, packet_id: u16, code: u8) -> Vec<u8> {
    let [high, low] = packet_id.to_be_bytes();
    match version {
        Version::V5 if code != 0 => vec![ack as u8, 3, high, low, code],
        _ => vec![ack as u8, 2, high, low],
    }
}

/// SUBACK, or with `unsubscribed` UNSUBACK, which has no codes in 3.1.1.
pub(crate) fn subscription_ack(version: Version, unsubscribed: bool, packet_id: u16, codes: &[u8]) -> Vec<u8> {
    let mut body = packet_id.to_be_bytes().to_vec();
    match version {
        Version::V5 => {
            body.put_u8(0);
            body.put_slice(codes);
        }
        Version::V3 if unsubscribed => {}
        // 3.1.1 has one code for every refusal.
        Version::V3 => body.extend(codes.iter().map(|code| (*code).min(0x80))),
    }
    let mut packet = vec![if unsubscribed { 0xb0 } else { 0x90 }];
    put_length(&mut packet, body.len());
    packet.put_slice(&body);
    packet
}

/// DISCONNECT with a reason; 3.1.1 just closes.
pub(crate) fn disconnect(version: Version, code: u8) -> Option<[u8; 4]> {
    (version == Version::V5).then_some([0xe0, 2, code, 0])
}

/// CONNECT of a client of 3.1.1. Name and password have 65,535 bytes at most.
pub(crate) fn connect(client_id: &str, user: Option<(&str, &str)>, clean: bool, keep_alive: Duration) -> Vec<u8> {
    let mut body = b"\0\x04MQTT\x04".to_vec();
    body.put_u8(u8::from(clean) << 1 | if user.is_some() { 0xc0 } else { 0 });
    body.put_u16(u16::try_from(keep_alive.as_secs()).unwrap_or(u16::MAX));
    put_bytes(&mut body, client_id.as_bytes());
    if let Some((name, password)) = user {
        put_bytes(&mut body, name.as_bytes());
        put_bytes(&mut body, password.as_bytes());
    }
    let mut packet = vec![0x10];
    put_length(&mut packet, body.len());
    packet.put_slice(&body);
    packet
}

/// SUBSCRIBE with QoS 1, or UNSUBSCRIBE, of a client of 3.1.1.
pub(crate) fn subscription(subscribe: bool, packet_id: u16, filter: &str, into: &mut BytesMut) {
    into.put_u8(if subscribe { 0x82 } else { 0xa2 });
    put_length(into, 4 + filter.len() + usize::from(subscribe));
    into.put_u16(packet_id);
    put_bytes(into, filter.as_bytes());
    if subscribe {
        into.put_u8(1);
    }
}

/// PUBLISH of a client of 3.1.1.
pub(crate) fn publish(publish: &Publish, packet_id: u16, again: bool, into: &mut BytesMut) {
    let has_id = publish.qos != Qos::AtMostOnce;
    let length = 2 + publish.topic.len() + publish.payload.len() + if has_id { 2 } else { 0 };
    into.reserve(5 + length);
    into.put_u8(0x30 | u8::from(again && has_id) << 3 | (publish.qos as u8) << 1 | u8::from(publish.retain));
    put_length(into, length);
    put_bytes(into, publish.topic.as_bytes());
    if has_id {
        into.put_u16(packet_id);
    }
    into.put_slice(&publish.payload);
}

/// A message for one subscriber.
pub(crate) struct Delivery<'a> {
    pub(crate) message: &'a Message,
    pub(crate) qos: Qos,
    pub(crate) retain: bool,
    pub(crate) again: bool,
    pub(crate) packet_id: u16,
    pub(crate) identifiers: &'a [u32],
}

impl Delivery<'_> {
    /// Writes a PUBLISH. `false` when it would be longer than the client takes; then nothing is written.
    pub(crate) fn write(&self, version: Version, longest: usize, now: u64, into: &mut BytesMut) -> bool {
        let message = self.message;
        let mut length = 2 + message.topic.len() + message.payload.len();
        length += if self.qos == Qos::AtMostOnce { 0 } else { 2 };
        let mut properties = 0;
        if version == Version::V5 {
            properties = message.properties.len() + message.expires.map_or(0, |_| 5);
            properties += self.identifiers.iter().map(|id| 1 + length_size(*id as usize)).sum::<usize>();
            length += length_size(properties) + properties;
        }
        if 1 + length_size(length) + length > longest {
            return false;
        }
        into.reserve(5 + length);
        into.put_u8(0x30 | u8::from(self.again) << 3 | (self.qos as u8) << 1 | u8::from(self.retain));
        put_length(into, length);
        put_bytes(into, message.topic.as_bytes());
        if self.qos != Qos::AtMostOnce {
            into.put_u16(self.packet_id);
        }
        if version == Version::V5 {
            put_length(into, properties);
            into.put_slice(&message.properties);
            if let Some(at) = message.expires {
                into.put_u8(0x02);
                into.put_u32(u32::try_from(at.saturating_sub(now)).unwrap_or(u32::MAX));
            }
            for id in self.identifiers {
                into.put_u8(0x0b);
                put_length(into, *id as usize);
            }
        }
        into.put_slice(&message.payload);
        true
    }
}

fn put_bytes(into: &mut impl BufMut, bytes: &[u8]) {
    into.put_u16(u16::try_from(bytes.len()).unwrap_or(u16::MAX));
    into.put_slice(bytes.get(..usize::from(u16::MAX)).unwrap_or(bytes));
}

fn put_length(into: &mut impl BufMut, mut length: usize) {
    loop {
        let byte = (length & 0x7f) as u8;
        length >>= 7;
        if length == 0 {
            return into.put_u8(byte);
        }
        into.put_u8(byte | 0x80);
    }
}

fn length_size(length: usize) -> usize {
    match length {
        0..0x80 => 1,
        0x80..0x4000 => 2,
        0x4000..0x20_0000 => 3,
        _ => 4,
    }
}
