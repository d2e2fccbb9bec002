use rumqttc::{LastWill, QoS};

use crate::support::{Peer, Raw, broker, config, options, publish, soon, subscribe};

#[tokio::test]
async fn a_message_reaches_all_who_want_it_and_nobody_else() {
    let (_broker, address) = broker(config()).await;
    let mut exact = Peer::connect(address, "exact").await;
    let mut plus = Peer::connect(address, "plus").await;
    let mut all = Peer::connect(address, "all").await;
    let mut system = Peer::connect(address, "system").await;
    exact.subscribe("a/b", QoS::AtMostOnce).await;
    plus.subscribe("a/+", QoS::AtLeastOnce).await;
    all.subscribe("#", QoS::ExactlyOnce).await;
    // Two filters of one client, one message.
    all.subscribe("a/b", QoS::AtMostOnce).await;
    system.subscribe("$hw/#", QoS::AtMostOnce).await;
    let publisher = Peer::connect(address, "publisher").await;
    for (topic, payload) in [("a/b", "1"), ("a/c", "2"), ("$hw/x", "3"), ("b", "4"), ("a/b", "5")] {
        publisher.publish(topic, QoS::AtLeastOnce, false, payload).await;
    }
    exact.expect(&["a/b 1", "a/b 5"]).await;
    plus.expect(&["a/b 1", "a/c 2", "a/b 5"]).await;
    all.expect(&["a/b 1", "a/c 2", "b 4", "a/b 5"]).await;
    system.expect(&["$hw/x 3"]).await;
    plus.client.unsubscribe("a/+").await.unwrap();
    plus.packet(|packet| matches!(packet, rumqttc::Packet::UnsubAck(_)).then_some(())).await;
    plus.subscribe("end", QoS::AtMostOnce).await;
    publisher.publish("a/c", QoS::AtMostOnce, false, "6").await;
    publisher.publish("end", QoS::AtMostOnce, false, "7").await;
    plus.expect(&["end 7"]).await;
    // A filter that is none; the library would not send it.
    let mut raw = Raw::connect(address, "raw", true).await;
    raw.send(&subscribe(1, &[], "a/#/b", 0)).await;
    assert_eq!(raw.receive().await, [0x90, 3, 0, 1, 0x80]);
}

#[tokio::test]
async fn a_message_of_qos_2_arrives_once_however_often_it_is_sent() {
    let (_broker, address) = broker(config()).await;
    let mut subscriber = Raw::connect(address, "subscriber", true).await;
    subscriber.send(&subscribe(1, &[], "t", 2)).await;
    assert_eq!(subscriber.receive().await, [0x90, 3, 0, 1, 2]);

    let mut publisher = Raw::connect(address, "publisher", false).await;
    publisher.send(&publish(0x34, "t", 7, &[], b"once")).await;
    assert_eq!(publisher.receive().await, [0x50, 2, 0, 7]);
    publisher.send(&publish(0x3c, "t", 7, &[], b"once")).await;
    assert_eq!(publisher.receive().await, [0x50, 2, 0, 7]);
    // It comes back before it has released the message.
    drop(publisher);
    let mut publisher = Raw::connect(address, "publisher", false).await;
    publisher.send(&publish(0x3c, "t", 7, &[], b"once")).await;
    assert_eq!(publisher.receive().await, [0x50, 2, 0, 7]);
    publisher.send(&[0x62, 2, 0, 7]).await;
    assert_eq!(publisher.receive().await, [0x70, 2, 0, 7]);
    publisher.send(&publish(0x34, "t", 7, &[], b"next")).await;
    assert_eq!(publisher.receive().await, [0x50, 2, 0, 7]);

    let first = subscriber.receive().await;
    assert_eq!((first[0], &first[first.len() - 4..]), (0x34, &b"once"[..]));
    let second = subscriber.receive().await;
    assert_eq!((second[0], &second[second.len() - 4..]), (0x34, &b"next"[..]));
    let id = &first[5..7];
    subscriber.send(&[0x50, 2, id[0], id[1]]).await;
    assert_eq!(subscriber.receive().await, [0x62, 2, id[0], id[1]]);
    subscriber.send(&[0x70, 2, id[0], id[1]]).await;
    subscriber.send(&[0xc0, 0]).await;
    assert_eq!(subscriber.receive().await, [0xd0, 0]);
}

#[tokio::test]
async fn what_was_not_acknowledged_comes_again_when_the_client_does() {
    let (_broker, address) = broker(config()).await;
    let mut subscriber = Raw::connect(address, "subscriber", false).await;
    subscriber.send(&subscribe(1, &[], "t", 2)).await;
    assert_eq!(subscriber.receive().await, [0x90, 3, 0, 1, 2]);
    let mut publisher = Peer::connect(address, "publisher").await;
    publisher.publish_surely("t", false, "1").await;
    publisher.publish("t", QoS::ExactlyOnce, false, "2").await;
    let (one, two) = (subscriber.receive().await, subscriber.receive().await);
    assert_eq!((one[0], two[0]), (0x32, 0x34));
    subscriber.send(&[0x50, 2, two[5], two[6]]).await;
    assert_eq!(subscriber.receive().await[0], 0x62);
    drop(subscriber);
    let mut subscriber = Raw::open(address).await;
    subscriber.send(&crate::support::connect(4, "subscriber", 0, 0, &[])).await;
    assert_eq!(subscriber.receive().await, [0x20, 2, 1, 0]);
    let again = subscriber.receive().await;
    assert_eq!((again[0], &again[1..]), (0x3a, &one[1..]), "the same message, marked");
    assert_eq!(subscriber.receive().await, [0x62, 2, two[5], two[6]], "the other one was there already");
    subscriber.send(&[0x40, 2, one[5], one[6], 0x70, 2, two[5], two[6]]).await;
    // Nothing is left.
    drop(subscriber);
    let mut subscriber = Raw::connect(address, "subscriber", false).await;
    subscriber.send(&[0xc0, 0]).await;
    assert_eq!(subscriber.receive().await, [0xd0, 0]);
}

#[tokio::test]
async fn retained_messages_greet_new_subscribers() {
    let (_broker, address) = broker(config()).await;
    let mut publisher = Peer::connect(address, "publisher").await;
    for (topic, payload) in
        [("state/a", "old"), ("state/a", "new"), ("state/b", "1"), ("state/c", "gone"), ("state/c", "")]
    {
        publisher.publish_surely(topic, true, payload).await;
    }
    let mut subscriber = Peer::connect(address, "subscriber").await;
    subscriber.client.subscribe("state/+", QoS::AtLeastOnce).await.unwrap();
    for expected in ["state/a new", "state/b 1"] {
        let publish = subscriber.next().await;
        assert!(publish.retain);
        assert_eq!(format!("{} {}", publish.topic, String::from_utf8_lossy(&publish.payload)), expected);
    }
    publisher.publish("state/c", QoS::AtMostOnce, true, "live").await;
    let live = subscriber.next().await;
    assert!(!live.retain && live.payload == "live");
}

#[tokio::test]
async fn a_will_is_said_for_those_who_vanish() {
    let (_broker, address) = broker(config()).await;
    let mut subscriber = Peer::connect(address, "subscriber").await;
    subscriber.subscribe("will/#", QoS::AtLeastOnce).await;
    let with_will = |id: &str| {
        let mut options = options(address, id);
        options.set_last_will(LastWill::new(format!("will/{id}"), "gone", QoS::AtLeastOnce, false));
        Peer::with(options)
    };
    with_will("polite").await.unwrap().disconnect().await;
    drop(with_will("vanished").await.unwrap());
    subscriber.expect(&["will/vanished gone"]).await;
}

#[tokio::test]
async fn the_later_client_of_an_id_has_it() {
    let (_broker, address) = broker(config()).await;
    let mut first = Peer::persistent(address, "one").await;
    first.subscribe("t", QoS::AtLeastOnce).await;
    assert!(!first.session_present);
    let mut second = Peer::persistent(address, "one").await;
    assert!(second.session_present);
    first.closed().await;
    let mut publisher = Peer::connect(address, "publisher").await;
    publisher.publish_surely("t", false, "1").await;
    second.expect(&["t 1"]).await;
    let third = Peer::connect(address, "one").await;
    assert!(!third.session_present, "a clean session forgets");
    second.closed().await;
}

#[tokio::test]
async fn a_client_that_is_silent_for_too_long_is_gone() {
    let (_broker, address) = broker(config()).await;
    let mut raw = Raw::open(address).await;
    raw.send(&crate::support::connect(4, "silent", 2, 1, &[])).await;
    let began = tokio::time::Instant::now();
    assert_eq!(soon(raw.closed_after()).await, [0x20, 2, 0, 0]);
    assert!(began.elapsed().as_millis() >= 1500);
}
