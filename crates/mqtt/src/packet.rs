//! What clients say. The bytes come from strangers: `mqtt-protocol-core` reads them, and what it leaves to its connection type
//! (flags, ids of zero, aliases, names) is checked here.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use mqtt_protocol_core::mqtt::packet::{Properties, Property, SubEntry, v3_1_1, v5_0};
use mqtt_protocol_core::mqtt::result_code::MqttError;

use crate::encode::{Ack, Version, reason};
use crate::message::{Message, Qos, unix_now};
use crate::topic;

/// Why a client is sent away: a reason code of MQTT 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refusal(pub(crate) u8);

/// A packet that has come whole.
pub(crate) struct Frame {
    pub(crate) first: u8,
    pub(crate) body: Bytes,
}

/// CONNECT.
#[derive(Debug)]
pub(crate) struct Hello {
    pub(crate) version: Version,
    pub(crate) client_id: String,
    pub(crate) clean: bool,
    pub(crate) keep_alive: u16,
    /// Seconds for which the session outlives its connection.
    pub(crate) expiry: Option<u32>,
    pub(crate) receive_maximum: u16,
    pub(crate) packet_size: u32,
    pub(crate) will: Option<Will>,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<Vec<u8>>,
}

/// What the others shall hear when a client vanishes.
#[derive(Debug)]
pub(crate) struct Will {
    pub(crate) message: Message,
    /// Seconds.
    pub(crate) delay: u32,
}

/// How somebody subscribes.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) qos: Qos,
    pub(crate) no_local: bool,
    pub(crate) as_published: bool,
    /// 0: retained messages always, 1: when the subscription is new, 2: never.
    pub(crate) retained: u8,
    pub(crate) identifier: Option<u32>,
}

/// A packet of a client that is connected.
pub(crate) enum Packet {
    Publish { message: Message, packet_id: u16 },
    Ack { ack: Ack, packet_id: u16, failed: bool },
    Subscribe { packet_id: u16, filters: Vec<(String, Options)> },
    Unsubscribe { packet_id: u16, filters: Vec<String> },
    Ping,
    Disconnect { with_will: bool, expiry: Option<u32> },
}

/// The topics that a client has given a number.
pub(crate) type Aliases = Vec<String>;
/// As many as that.
pub(crate) const ALIASES: u16 = 16;

/// Takes the next whole packet out of what has been read.
pub(crate) fn frame(read: &mut BytesMut, longest: usize) -> Result<Option<Frame>, Refusal> {
    let Some((start, length)) = head(read)? else { return Ok(None) };
    let whole = start + length;
    if whole > longest {
        return Err(Refusal(reason::TOO_LARGE));
    }
    if read.len() < whole {
        return Ok(None);
    }
    let first = read[0];
    let mut packet = read.split_to(whole);
    let body = packet.split_off(start).freeze();
    Ok(Some(Frame { first, body }))
}

/// How long a packet's head is, and how long what follows is to be.
pub(crate) fn head(read: &[u8]) -> Result<Option<(usize, usize)>, Refusal> {
    let mut length = 0;
    for index in 0..4 {
        let Some(&byte) = read.get(1 + index) else { return Ok(None) };
        length |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Ok(Some((2 + index, length)));
        }
    }
    Err(Refusal(reason::MALFORMED))
}

/// Whether what has been read can begin a CONNECT: anything else need not be waited for.
pub(crate) fn may_be_connect(read: &[u8]) -> bool {
    read.first().is_none_or(|first| *first == 0x10)
}

/// Reads CONNECT. A refusal comes with the version in which to say it.
pub(crate) fn hello(frame: &Frame) -> Result<Hello, (Version, Refusal)> {
    let body = &frame.body[..];
    let old = |code| (Version::V3, Refusal(code));
    if frame.first != 0x10 || body.len() < 8 || !body.starts_with(b"\0\x04MQTT") {
        return Err(old(if body.starts_with(b"\0\x06MQIsdp") {
            reason::UNSUPPORTED_VERSION
        } else {
            reason::MALFORMED
        }));
    }
    let flags = body[7];
    let (will, will_qos, will_retain) = (flags & 4 != 0, flags >> 3 & 3, flags & 0x20 != 0);
    let flags_good = flags & 1 == 0 && (will || (will_qos == 0 && !will_retain)) && will_qos < 3;
    let version = match body[6] {
        4 => Version::V3,
        5 => Version::V5,
        level => return Err((if level > 5 { Version::V5 } else { Version::V3 }, Refusal(reason::UNSUPPORTED_VERSION))),
    };
    let fail = |error: MqttError| (version, refusal(error));
    if !flags_good {
        return Err((version, Refusal(reason::MALFORMED)));
    }
    let qos = Qos::from_number(will_qos).unwrap_or(Qos::AtMostOnce);
    let of_will = |topic: &str, payload: &[u8], properties: &Properties| {
        let message = Message::new(topic.to_owned(), Bytes::copy_from_slice(payload), qos, will_retain);
        let delay = properties.iter().find_map(|property| match property {
            Property::WillDelayInterval(delay) => Some(delay.val()),
            _ => None,
        });
        Will { message: with_properties(message, properties), delay: delay.unwrap_or(0) }
    };
    let hello = if version == Version::V3 {
        let packet = whole(v3_1_1::Connect::parse(body), body).map_err(fail)?;
        let will =
            will.then(|| of_will(packet.will_topic().unwrap_or(""), packet.will_payload().unwrap_or(&[]), &vec![]));
        Hello {
            version,
            client_id: packet.client_id().to_owned(),
            clean: packet.clean_session(),
            keep_alive: packet.keep_alive(),
            expiry: if packet.clean_session() { Some(0) } else { None },
            receive_maximum: u16::MAX,
            packet_size: u32::MAX,
            will,
            user: packet.user_name().map(str::to_owned),
            password: packet.password().map(<[u8]>::to_vec),
        }
    } else {
        let packet = whole(v5_0::Connect::parse(body), body).map_err(fail)?;
        let mut hello = Hello {
            version,
            client_id: packet.client_id().to_owned(),
            clean: packet.clean_start(),
            keep_alive: packet.keep_alive(),
            expiry: Some(0),
            receive_maximum: u16::MAX,
            packet_size: u32::MAX,
            will: will.then(|| {
                let (topic, payload) = (packet.will_topic().unwrap_or(""), packet.will_payload().unwrap_or(&[]));
                of_will(topic, payload, packet.will_props())
            }),
            user: packet.user_name().map(str::to_owned),
            password: packet.password().map(<[u8]>::to_vec),
        };
        for property in packet.props() {
            match property {
                Property::SessionExpiryInterval(seconds) => hello.expiry = Some(seconds.val()),
                Property::ReceiveMaximum(number) => hello.receive_maximum = number.val(),
                Property::MaximumPacketSize(size) => hello.packet_size = size.val(),
                Property::AuthenticationMethod(_) => return Err((version, Refusal(reason::BAD_METHOD))),
                _ => {}
            }
        }
        hello
    };
    if hello.will.as_ref().is_some_and(|will| !topic::is_topic(&will.message.topic)) {
        return Err((version, Refusal(reason::BAD_TOPIC)));
    }
    if hello.receive_maximum == 0 || hello.packet_size == 0 {
        return Err((version, Refusal(reason::PROTOCOL_ERROR)));
    }
    Ok(hello)
}

/// Reads a packet of a client that is connected.
pub(crate) fn packet(frame: Frame, version: Version, aliases: &mut Aliases) -> Result<Packet, Refusal> {
    let (kind, flags) = (frame.first >> 4, frame.first & 0x0f);
    let body = &frame.body[..];
    if kind != 3 && flags != if matches!(kind, 6 | 8 | 10) { 2 } else { 0 } {
        return Err(Refusal(reason::MALFORMED));
    }
    match kind {
        3 => publish(flags, body, version, aliases),
        4..=7 => {
            let ack = [Ack::Acknowledged, Ack::Received, Ack::Release, Ack::Complete][usize::from(kind - 4)];
            let failed = body.get(2).is_some_and(|code| *code >= 0x80);
            if version == Version::V3 && body.len() != 2 {
                return Err(Refusal(reason::MALFORMED));
            }
            Ok(Packet::Ack { ack, packet_id: packet_id(body)?, failed })
        }
        8 => subscribe(body, version),
        10 => {
            let filters = match version {
                Version::V3 => {
                    let packet = whole(v3_1_1::Unsubscribe::parse(body), body).map_err(refusal)?;
                    packet.entries().iter().map(|filter| filter.as_str().to_owned()).collect()
                }
                Version::V5 => {
                    let packet = whole(v5_0::Unsubscribe::parse(body), body).map_err(refusal)?;
                    packet.entries().iter().map(|filter| filter.as_str().to_owned()).collect()
                }
            };
            Ok(Packet::Unsubscribe { packet_id: packet_id(body)?, filters })
        }
        12 if body.is_empty() => Ok(Packet::Ping),
        14 if version == Version::V3 && body.is_empty() => Ok(Packet::Disconnect { with_will: false, expiry: None }),
        14 if version == Version::V5 => {
            let packet = whole(v5_0::Disconnect::parse(body), body).map_err(refusal)?;
            let expiry = packet.props().iter().flatten().find_map(|property| match property {
                Property::SessionExpiryInterval(seconds) => Some(seconds.val()),
                _ => None,
            });
            Ok(Packet::Disconnect { with_will: body.first().is_some_and(|code| *code != 0), expiry })
        }
        15 => Err(Refusal(reason::BAD_METHOD)),
        _ => Err(Refusal(reason::PROTOCOL_ERROR)),
    }
}

fn publish(flags: u8, body: &[u8], version: Version, aliases: &mut Aliases) -> Result<Packet, Refusal> {
    let qos = Qos::from_number(flags >> 1 & 3).ok_or(Refusal(reason::MALFORMED))?;
    let shared: Arc<[u8]> = Arc::from(body);
    let (mut message, packet_id) = match version {
        Version::V3 => {
            let (packet, _) = v3_1_1::Publish::parse(flags, shared).map_err(refusal)?;
            let payload = Bytes::copy_from_slice(packet.payload().as_slice());
            let message = Message::new(packet.topic_name().to_owned(), payload, qos, flags & 1 != 0);
            (message, packet.packet_id())
        }
        Version::V5 => {
            let (packet, _) = v5_0::Publish::parse(flags, shared).map_err(refusal)?;
            let payload = Bytes::copy_from_slice(packet.payload().as_slice());
            let message = Message::new(packet.topic_name().to_owned(), payload, qos, flags & 1 != 0);
            let mut message = with_properties(message, packet.props());
            for property in packet.props() {
                match property {
                    Property::TopicAlias(alias) => use_alias(alias.val(), &mut message.topic, aliases)?,
                    Property::SubscriptionIdentifier(_) => return Err(Refusal(reason::PROTOCOL_ERROR)),
                    Property::ResponseTopic(topic) if !topic::is_topic(topic.val()) => {
                        return Err(Refusal(reason::BAD_TOPIC));
                    }
                    _ => {}
                }
            }
            (message, packet.packet_id())
        }
    };
    if !topic::is_topic(&message.topic) {
        return Err(Refusal(reason::BAD_TOPIC));
    }
    if message.qos == Qos::AtMostOnce && flags & 8 != 0 || packet_id == Some(0) {
        return Err(Refusal(reason::MALFORMED));
    }
    message.topic.shrink_to_fit();
    Ok(Packet::Publish { message, packet_id: packet_id.unwrap_or(0) })
}

fn use_alias(alias: u16, topic: &mut String, aliases: &mut Aliases) -> Result<(), Refusal> {
    if alias == 0 || alias > ALIASES {
        return Err(Refusal(reason::ALIAS));
    }
    if aliases.is_empty() {
        aliases.resize(usize::from(ALIASES), String::new());
    }
    let known = aliases.get_mut(usize::from(alias - 1)).ok_or(Refusal(reason::ALIAS))?;
    if topic.is_empty() {
        topic.clone_from(known);
        return if topic.is_empty() { Err(Refusal(reason::ALIAS)) } else { Ok(()) };
    }
    known.clone_from(topic);
    Ok(())
}

fn subscribe(body: &[u8], version: Version) -> Result<Packet, Refusal> {
    let options = |entry: &SubEntry, identifier| {
        let bits = entry.sub_opts().to_buffer()[0];
        let qos = Qos::from_number(bits & 3).unwrap_or(Qos::AtMostOnce);
        let options = match version {
            Version::V3 => Options { qos, no_local: false, as_published: false, retained: 0, identifier },
            Version::V5 => {
                let (no_local, as_published) = (bits & 4 != 0, bits & 8 != 0);
                Options { qos, no_local, as_published, retained: bits >> 4 & 3, identifier }
            }
        };
        (entry.topic_filter().to_owned(), options)
    };
    let filters = match version {
        Version::V3 => {
            let packet = whole(v3_1_1::Subscribe::parse(body), body).map_err(refusal)?;
            packet.entries().iter().map(|entry| options(entry, None)).collect()
        }
        Version::V5 => {
            let packet = whole(v5_0::Subscribe::parse(body), body).map_err(refusal)?;
            let identifier = packet.props().iter().find_map(|property| match property {
                Property::SubscriptionIdentifier(id) => Some(id.val()),
                _ => None,
            });
            packet.entries().iter().map(|entry| options(entry, identifier)).collect()
        }
    };
    Ok(Packet::Subscribe { packet_id: packet_id(body)?, filters })
}

/// The properties that go through to subscribers; the rest is between the two ends of a connection.
fn with_properties(mut message: Message, properties: &Properties) -> Message {
    let mut through = Vec::new();
    for property in properties {
        match property {
            Property::MessageExpiryInterval(seconds) => message.expires = Some(unix_now() + u64::from(seconds.val())),
            Property::PayloadFormatIndicator(_)
            | Property::ContentType(_)
            | Property::ResponseTopic(_)
            | Property::CorrelationData(_)
            | Property::UserProperty(_) => through.extend(property.to_continuous_buffer()),
            _ => {}
        }
    }
    message.properties = Bytes::from(through);
    message
}

pub(crate) fn packet_id(body: &[u8]) -> Result<u16, Refusal> {
    match body {
        [high, low, ..] if (*high, *low) != (0, 0) => Ok(u16::from_be_bytes([*high, *low])),
        _ => Err(Refusal(reason::MALFORMED)),
    }
}

/// A packet must be as long as it says.
fn whole<T>(parsed: Result<(T, usize), MqttError>, body: &[u8]) -> Result<T, MqttError> {
    let (packet, length) = parsed?;
    if length == body.len() { Ok(packet) } else { Err(MqttError::MalformedPacket) }
}

pub(crate) fn refusal(error: MqttError) -> Refusal {
    Refusal(match error {
        MqttError::ProtocolError => reason::PROTOCOL_ERROR,
        MqttError::UnsupportedProtocolVersion => reason::UNSUPPORTED_VERSION,
        MqttError::ClientIdentifierNotValid => reason::CLIENT_ID,
        MqttError::BadUserNameOrPassword => reason::BAD_PASSWORD,
        _ => reason::MALFORMED,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::Delivery;

    /// Packets that are good, to be broken.
    fn samples() -> Vec<Vec<u8>> {
        let mut message = Message::new("a/b".to_owned(), "payload".into(), Qos::AtLeastOnce, false);
        message.properties =
            Bytes::from_static(&[0x26, 0, 1, b'k', 0, 1, b'v', 3, 0, 1, b't', 8, 0, 1, b'r', 9, 0, 1, b'c', 1, 1]);
        message.expires = Some(unix_now() + 60);
        let mut published = BytesMut::new();
        let delivery = Delivery {
            message: &message,
            qos: Qos::AtLeastOnce,
            retain: true,
            again: false,
            packet_id: 7,
            identifiers: &[],
        };
        delivery.write(Version::V5, usize::MAX, unix_now(), &mut published);
        let hello = |level: u8, properties: &[u8]| {
            let mut body = b"\0\x04MQTT".to_vec();
            body.extend([level, 0xee, 0, 60]);
            body.extend(properties);
            body.extend(b"\0\x02id");
            body.extend(if level == 5 { &[5, 0x18, 0, 0, 0, 9][..] } else { &[] });
            body.extend(b"\0\x04will\0\x03bye\0\x01u\0\x01p");
            let mut packet = vec![0x10, body.len() as u8];
            packet.extend(body);
            packet
        };
        vec![
            hello(4, &[]),
            hello(5, &[18, 0x11, 0, 0, 0, 9, 0x21, 0, 9, 0x27, 0, 0, 9, 9, 0x26, 0, 0, 0, 0]),
            published.to_vec(),
            b"\x82\x0f\0\x01\x02\x0b\x09\0\x03a/+\x2d\0\x01#\x00".to_vec(),
            b"\xa2\x0b\0\x01\0\0\x03a/+\0\x01#".to_vec(),
            b"\xe0\x07\x04\x05\x11\0\0\0\x09".to_vec(),
            b"\x40\x03\0\x01\x10".to_vec(),
            b"\x62\x02\0\x01".to_vec(),
            b"\xc0\0".to_vec(),
        ]
    }

    fn read(bytes: &[u8]) -> bool {
        let mut read = BytesMut::from(bytes);
        let Ok(Some(frame)) = frame(&mut read, 1 << 20) else { return false };
        let is_hello = hello(&frame).is_ok();
        let again =
            |version| packet(Frame { first: frame.first, body: frame.body.clone() }, version, &mut Aliases::new());
        let (old, new) = (again(Version::V3), again(Version::V5));
        is_hello || old.is_ok() || new.is_ok()
    }

    #[test]
    fn good_packets_are_read_and_broken_ones_do_no_harm() {
        let mut seed = 1_u64;
        let mut random = move |below: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % below
        };
        for sample in samples() {
            assert!(read(&sample), "{sample:x?}");
            for length in 0..sample.len() {
                read(&sample[..length]);
                // Shorter, and with a length that says so.
                let mut short = sample[..length.max(2)].to_vec();
                short[1] = (short.len() - 2) as u8;
                read(&short);
            }
            for _ in 0..20_000 {
                let mut broken = sample.clone();
                for _ in 0..=random(4) {
                    let index = random(broken.len());
                    match random(4) {
                        0 if index > 1 => drop(broken.remove(index)),
                        1 if broken.len() < 120 => broken.insert(index.max(2), random(256) as u8),
                        _ => broken[index] = random(256) as u8,
                    }
                }
                if random(4) > 0 && broken.len() > 1 {
                    broken[1] = (broken.len() - 2) as u8;
                }
                read(&broken);
            }
        }
    }
}
