//! What a broker elsewhere says, in MQTT 3.1.1.

use std::sync::Arc;

use bytes::Bytes;
use mqtt_protocol_core::mqtt::packet::v3_1_1;

use crate::Publish;
use crate::encode::{Ack, reason};
use crate::message::Qos;
use crate::packet::{Frame, Refusal, packet_id, refusal};

/// A packet of a broker.
pub(crate) enum Heard {
    /// CONNACK.
    Connected { session_present: bool },
    /// CONNACK with a code other than zero.
    Refused(u8),
    /// PUBLISH; the id is 0 with QoS 0.
    Publish { publish: Publish, packet_id: u16 },
    /// PUBACK and the like.
    Ack { ack: Ack, packet_id: u16 },
    /// SUBACK.
    Subscribed { packet_id: u16, refused: bool },
    /// UNSUBACK.
    Unsubscribed(u16),
    /// Nothing to do.
    Nothing,
}

/// Reads a packet.
pub(crate) fn heard(frame: Frame) -> Result<Heard, Refusal> {
    let Frame { first, body } = frame;
    let (kind, flags) = (first >> 4, first & 0x0f);
    if kind != 3 && flags != if kind == 6 { 2 } else { 0 } {
        return Err(Refusal(reason::MALFORMED));
    }
    match (kind, &body[..]) {
        (2, [present @ 0..=1, 0]) => Ok(Heard::Connected { session_present: *present == 1 }),
        (2, [_, code]) if *code != 0 => Ok(Heard::Refused(*code)),
        (3, _) => publish(flags, &body),
        (4..=7, [_, _]) => {
            let ack = [Ack::Acknowledged, Ack::Received, Ack::Release, Ack::Complete][usize::from(kind - 4)];
            Ok(Heard::Ack { ack, packet_id: packet_id(&body)? })
        }
        (9, [_, _, codes @ ..]) => {
            let refused = codes.iter().any(|code| *code >= 0x80);
            Ok(Heard::Subscribed { packet_id: packet_id(&body)?, refused })
        }
        (11, [_, _]) => Ok(Heard::Unsubscribed(packet_id(&body)?)),
        (13, []) => Ok(Heard::Nothing),
        _ => Err(Refusal(reason::PROTOCOL_ERROR)),
    }
}

/// Which topics it has is the broker's business.
fn publish(flags: u8, body: &Bytes) -> Result<Heard, Refusal> {
    let qos = Qos::from_number(flags >> 1 & 3).ok_or(Refusal(reason::MALFORMED))?;
    let (packet, _) = v3_1_1::Publish::parse(flags, Arc::from(&body[..])).map_err(refusal)?;
    let packet_id = packet.packet_id().unwrap_or(0);
    if (packet_id == 0) != (qos == Qos::AtMostOnce) {
        return Err(Refusal(reason::MALFORMED));
    }
    let payload = Bytes::copy_from_slice(packet.payload().as_slice());
    let publish = Publish { topic: packet.topic_name().to_owned(), payload, qos, retain: flags & 1 != 0 };
    Ok(Heard::Publish { publish, packet_id })
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;
    use crate::packet;

    fn read(bytes: &[u8]) -> Result<Heard, Refusal> {
        let frame = packet::frame(&mut BytesMut::from(bytes), 1 << 20)?.ok_or(Refusal(0))?;
        heard(frame)
    }

    #[test]
    fn a_brokers_packets() {
        assert!(matches!(read(b"\x20\x02\x01\0"), Ok(Heard::Connected { session_present: true })));
        assert!(matches!(read(b"\x20\x02\0\x05"), Ok(Heard::Refused(5))));
        let Ok(Heard::Publish { publish, packet_id: 7 }) = read(b"\x33\x07\0\x01t\0\x07hi") else {
            panic!("no PUBLISH")
        };
        assert_eq!((publish.topic.as_str(), &publish.payload[..], publish.retain), ("t", &b"hi"[..], true));
        assert!(matches!(read(b"\x62\x02\0\x07"), Ok(Heard::Ack { ack: Ack::Release, packet_id: 7 })));
        assert!(matches!(read(b"\x90\x03\0\x01\x80"), Ok(Heard::Subscribed { packet_id: 1, refused: true })));
        for wrong in [
            &b"\x20\x02\x02\0"[..],
            b"\x36\x05\0\x01t\0\x07",
            b"\x32\x05\0\x01t\0\0",
            b"\x60\x02\0\x07",
            b"\x40\x02\0\0",
            b"\x10\x02\0\0",
            b"\x90\x01\0",
        ] {
            assert!(read(wrong).is_err(), "{wrong:x?}");
        }
    }
}
