use std::time::Duration;

use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{
    ConnectProperties, DisconnectReasonCode, Filter, Packet, Publish, PublishProperties, SubscribeProperties,
    SubscribeReasonCode,
};
use rumqttc::v5::{AsyncClient, Event, EventLoop, MqttOptions};

use crate::support::{Peer, Raw, broker, config, connect, packet, publish, soon, subscribe};

async fn until<T>(eventloop: &mut EventLoop, mut wanted: impl FnMut(Packet) -> Option<T>) -> T {
    soon(async {
        loop {
            if let Event::Incoming(packet) = eventloop.poll().await.unwrap()
                && let Some(found) = wanted(packet)
            {
                return found;
            }
        }
    })
    .await
}

fn options(address: std::net::SocketAddr, id: &str) -> MqttOptions {
    MqttOptions::new(id, address.ip().to_string(), address.port())
}

fn a_publish(packet: Packet) -> Option<Publish> {
    if let Packet::Publish(publish) = packet { Some(publish) } else { None }
}

#[tokio::test]
async fn properties_go_through() {
    let (_broker, address) = broker(config()).await;
    let (client, mut eventloop) = AsyncClient::new(options(address, "v5"), 10);
    let properties = SubscribeProperties { id: Some(300), user_properties: vec![] };
    client.subscribe_with_properties("t/#", QoS::ExactlyOnce, properties).await.unwrap();
    until(&mut eventloop, |packet| matches!(packet, Packet::SubAck(_)).then_some(())).await;
    let properties = PublishProperties {
        payload_format_indicator: Some(1),
        message_expiry_interval: Some(1000),
        response_topic: Some("answer".to_owned()),
        correlation_data: Some("17".into()),
        user_properties: vec![("a".to_owned(), "b".to_owned()), ("a".to_owned(), "c".to_owned())],
        content_type: Some("text/plain".to_owned()),
        ..PublishProperties::default()
    };
    client.publish_with_properties("t/1", QoS::ExactlyOnce, false, "hello", properties.clone()).await.unwrap();
    let publish = until(&mut eventloop, a_publish).await;
    assert_eq!((&publish.topic[..], &publish.payload[..]), (&b"t/1"[..], &b"hello"[..]));
    let got = publish.properties.unwrap();
    assert!(got.message_expiry_interval.is_some_and(|seconds| (990..=1000).contains(&seconds)));
    let expected = PublishProperties {
        message_expiry_interval: got.message_expiry_interval,
        subscription_identifiers: vec![300],
        ..properties
    };
    assert_eq!(got, expected);
    // And a client of 3.1.1 gets the message without them.
    let mut old = Peer::connect(address, "v3").await;
    old.subscribe("t/+", rumqttc::QoS::AtLeastOnce).await;
    client.publish("t/2", QoS::AtLeastOnce, false, "x").await.unwrap();
    until(&mut eventloop, a_publish).await;
    old.expect(&["t/2 x"]).await;
}

#[tokio::test]
async fn a_client_that_is_taken_over_is_told_so() {
    let (_broker, address) = broker(config()).await;
    let (_first, mut eventloop) = AsyncClient::new(options(address, "one"), 10);
    until(&mut eventloop, |packet| matches!(packet, Packet::ConnAck(_)).then_some(())).await;
    let (_second, _) = Raw::connect_v5(address, "one", true, &[]).await;
    let reason = soon(async {
        loop {
            match eventloop.poll().await {
                Ok(Event::Incoming(Packet::Disconnect(disconnect))) => return disconnect.reason_code,
                Err(rumqttc::v5::ConnectionError::MqttState(rumqttc::v5::StateError::ServerDisconnect {
                    reason_code,
                    ..
                })) => return reason_code,
                Ok(_) => {}
                Err(error) => panic!("{error}"),
            }
        }
    })
    .await;
    assert_eq!(reason, DisconnectReasonCode::SessionTakenOver);
}

#[tokio::test]
async fn options_of_subscriptions_are_kept() {
    let (_broker, address) = broker(config()).await;
    let (client, mut eventloop) = AsyncClient::new(options(address, "v5"), 10);
    client.publish("state", QoS::AtMostOnce, true, "kept").await.unwrap();
    let shared = Filter::new("$share/group/t", QoS::AtMostOnce);
    let mut own = Filter::new("own", QoS::AtMostOnce);
    own.nolocal = true;
    let mut state = Filter::new("state", QoS::AtMostOnce);
    state.retain_forward_rule = rumqttc::v5::mqttbytes::v5::RetainForwardRule::Never;
    state.preserve_retain = true;
    client.subscribe_many([shared, own, state]).await.unwrap();
    let ack = until(&mut eventloop, |packet| if let Packet::SubAck(ack) = packet { Some(ack) } else { None }).await;
    let granted = SubscribeReasonCode::Success(QoS::AtMostOnce);
    assert_eq!(ack.return_codes, [SubscribeReasonCode::SharedSubscriptionsNotSupported, granted, granted]);
    client.publish("own", QoS::AtMostOnce, false, "not for me").await.unwrap();
    client.publish("state", QoS::AtMostOnce, true, "live").await.unwrap();
    let publish = until(&mut eventloop, a_publish).await;
    assert_eq!((&publish.payload[..], publish.retain), (&b"live"[..], true));
}

#[tokio::test]
async fn sessions_and_messages_end_when_they_shall() {
    let (_broker, address) = broker(config()).await;
    let expiry = |seconds: u8| [0x11, 0, 0, 0, seconds];
    for (id, seconds) in [("short", 1), ("long", 100)] {
        let (mut raw, _) = Raw::connect_v5(address, id, true, &expiry(seconds)).await;
        raw.send(&subscribe(1, &[0], "t", 1)).await;
        assert_eq!(raw.receive().await, [0x90, 4, 0, 1, 0, 1]);
        raw.send(&[0xe0, 0]).await;
        raw.closed_after().await;
    }
    let mut publisher = Raw::connect_v5(address, "publisher", true, &[]).await.0;
    publisher.send(&publish(0x32, "t", 1, &[5, 2, 0, 0, 0, 1], b"too late")).await;
    assert_eq!(publisher.receive().await, [0x40, 2, 0, 1]);
    publisher.send(&publish(0x32, "t", 2, &[5, 2, 0, 0, 0, 100], b"in time")).await;
    assert_eq!(publisher.receive().await, [0x40, 2, 0, 2]);
    let deadline = tokio::time::Instant::now() + crate::support::DEADLINE;
    loop {
        // Whether the session is there; this look does not prolong it.
        let (mut raw, accepted) = Raw::connect_v5(address, "short", false, &expiry(1)).await;
        let present = accepted[2] == 1;
        raw.send(&[0xe0, 0]).await;
        raw.closed_after().await;
        if !present {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "the session does not end");
        tokio::time::sleep(Duration::from_millis(2500)).await;
    }
    let (mut raw, accepted) = Raw::connect_v5(address, "long", false, &[]).await;
    assert_eq!(accepted[2], 1);
    let message = raw.receive().await;
    assert!(message.ends_with(b"in time"), "{message:?}");
}

#[tokio::test]
async fn topics_have_short_names_and_refusals_reasons() {
    let mut config = config();
    let rule = mqtt::Rule { access: mqtt::Access::ReadWrite, filter: "t".to_owned() };
    let password = mqtt::Password::Plain("p".to_owned());
    config.users = vec![mqtt::User { name: "u".to_owned(), password, rules: vec![rule] }];
    let (_broker, address) = broker(config).await;
    let mut raw = Raw::open(address).await;
    let mut body = connect(5, "", 0xc2, 0, &[])[2..].to_vec();
    body.extend(b"\0\x01u\0\x01p");
    raw.send(&packet(0x10, &body)).await;
    let accepted = raw.receive().await;
    assert!(accepted.windows(7).any(|bytes| bytes.ends_with(b"auto-")), "it was given a name");
    raw.send(&subscribe(1, &[0], "t", 0)).await;
    raw.receive().await;
    raw.send(&publish(0x30, "t", 0, &[3, 0x23, 0, 9], b"1")).await;
    raw.send(&publish(0x30, "", 0, &[3, 0x23, 0, 9], b"2")).await;
    assert_eq!(raw.receive().await, publish(0x30, "t", 0, &[0], b"1"));
    assert_eq!(raw.receive().await, publish(0x30, "t", 0, &[0], b"2"));
    raw.send(&publish(0x32, "secret", 5, &[0], b"")).await;
    assert_eq!(raw.receive().await, [0x40, 3, 0, 5, 0x87]);
    raw.send(&[0x62, 2, 0, 9]).await;
    assert_eq!(raw.receive().await, [0x70, 3, 0, 9, 0x92]);
    raw.send(&packet(0xa2, b"\0\x01\0\0\x01t\0\x01x")).await;
    assert_eq!(raw.receive().await, [0xb0, 5, 0, 1, 0, 0, 0x11]);
}

#[tokio::test]
async fn a_will_waits_for_the_client_to_come_back() {
    let (_broker, address) = broker(config()).await;
    let mut subscriber = Peer::connect(address, "subscriber").await;
    subscriber.subscribe("will/+", rumqttc::QoS::AtMostOnce).await;
    let with_will = |id: &str, delay: u8| {
        let mut properties = ConnectProperties::new();
        properties.session_expiry_interval = Some(100);
        let mut body = connect(5, id, 0x06, 0, &[0x11, 0, 0, 0, 100])[2..].to_vec();
        body.extend([5, 0x18, 0, 0, 0, delay]);
        body.extend((5 + id.len() as u16).to_be_bytes());
        body.extend(format!("will/{id}").bytes());
        body.extend(b"\0\x04gone");
        packet(0x10, &body)
    };
    for (id, delay) in [("back", 2), ("lost", 3)] {
        let mut raw = Raw::open(address).await;
        raw.send(&with_will(id, delay)).await;
        assert_eq!(raw.receive().await[0], 0x20);
    }
    let (_back, accepted) = Raw::connect_v5(address, "back", false, &[]).await;
    assert_eq!(accepted[2], 1);
    subscriber.expect(&["will/lost gone"]).await;
}
