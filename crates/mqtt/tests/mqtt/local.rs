use mqtt::{Publish, Qos};
use rumqttc::QoS;

use crate::support::{Peer, Raw, broker_with, config, publish, soon, subscribe};

#[tokio::test]
async fn an_acknowledgement_means_that_the_local_end_has_it() {
    let (broker, mut received) = broker_with(config(), &["$hw/events/#", "+/user/#"]).await;
    let address = broker.addresses()[0];
    let mut raw = Raw::connect(address, "device", true).await;
    for (id, first) in [(1, 0x32), (2, 0x34), (3, 0x32)] {
        raw.send(&publish(first, "$hw/events/x", id, &[], b"up")).await;
    }
    // Not for the local end, but after those.
    raw.send(&publish(0x32, "other", 4, &[], b"")).await;
    raw.send(&[0xc0, 0]).await;
    assert_eq!(raw.receive().await, [0xd0, 0], "nothing is acknowledged yet");
    let first = soon(received.recv()).await.unwrap();
    let second = soon(received.recv()).await.unwrap();
    let third = soon(received.recv()).await.unwrap();
    assert_eq!((first.publish.topic.as_str(), &first.publish.payload[..]), ("$hw/events/x", &b"up"[..]));
    assert_eq!(second.publish.qos, Qos::ExactlyOnce);
    third.taken.complete();
    second.taken.complete();
    raw.send(&[0xc0, 0]).await;
    assert_eq!(raw.receive().await, [0xd0, 0], "the first one is missing");
    first.taken.complete();
    assert_eq!(raw.receive().await, [0x40, 2, 0, 1]);
    assert_eq!(raw.receive().await, [0x50, 2, 0, 2]);
    assert_eq!(raw.receive().await, [0x40, 2, 0, 3]);
    assert_eq!(raw.receive().await, [0x40, 2, 0, 4]);
    // What the local end cannot take is published again.
    raw.send(&publish(0x32, "a/user/b", 5, &[], b"")).await;
    soon(received.recv()).await.unwrap().taken.fail();
    assert!(raw.closed_after().await.is_empty());
}

#[tokio::test]
async fn a_slow_local_end_holds_up_its_publisher_only() {
    let (broker, mut received) = broker_with(config(), &["up"]).await;
    let address = broker.addresses()[0];
    let mut flood = Raw::connect(address, "flood", true).await;
    flood.send(&subscribe(9, &[], "down", 0)).await;
    flood.receive().await;
    for _ in 0..300 {
        flood.send(&publish(0x30, "up", 0, &[], b"")).await;
    }
    let mut other = Peer::connect(address, "other").await;
    other.subscribe("t", QoS::AtLeastOnce).await;
    other.publish_surely("t", false, "1").await;
    other.publish("down", QoS::AtMostOnce, false, "2").await;
    other.expect(&["t 1"]).await;
    assert_eq!(flood.receive().await[0], 0x30, "what it gets is not held up");
    for _ in 0..300 {
        soon(received.recv()).await.unwrap().take();
    }
    broker.unsubscribe("up");
    broker.subscribe("more/+").unwrap();
    other.publish("up", QoS::AtMostOnce, false, "3").await;
    other.publish("more/x", QoS::AtMostOnce, false, "4").await;
    assert_eq!(soon(received.recv()).await.unwrap().take().payload, "4");
}

#[tokio::test]
async fn what_edgecore_publishes_reaches_clients_and_not_itself() {
    let (broker, mut received) = broker_with(config(), &["#"]).await;
    let mut client = Peer::connect(broker.addresses()[0], "client").await;
    client.subscribe("t", QoS::ExactlyOnce).await;
    for (qos, payload) in [(Qos::AtMostOnce, "0"), (Qos::AtLeastOnce, "1"), (Qos::ExactlyOnce, "2")] {
        broker.publish(Publish { topic: "t".to_owned(), payload: payload.into(), qos, retain: true }).await.unwrap();
    }
    client.expect(&["t 0", "t 1", "t 2"]).await;
    client.publish("end", QoS::AtMostOnce, false, "").await;
    assert_eq!(soon(received.recv()).await.unwrap().take().topic, "end");
    let wrong = Publish { topic: "t/#".to_owned(), payload: "".into(), qos: Qos::AtMostOnce, retain: false };
    assert!(broker.publish(wrong).await.is_err());
    broker.stop().await;
    client.closed().await;
}

#[tokio::test]
async fn the_local_end_hears_wills() {
    let (broker, mut received) = broker_with(config(), &["will"]).await;
    let mut options = crate::support::options(broker.addresses()[0], "vanishes");
    options.set_last_will(rumqttc::LastWill::new("will", "gone", QoS::AtLeastOnce, false));
    drop(Peer::with(options).await.unwrap());
    assert_eq!(soon(received.recv()).await.unwrap().take().payload, "gone");
}

#[tokio::test]
async fn large_messages_wait_at_their_publisher() {
    let (broker, mut received) = broker_with(config(), &["up"]).await;
    let address = broker.addresses()[0];
    let mut flood = Raw::connect(address, "flood", true).await;
    let large = publish(0x32, "up", 1, &[], &vec![0; 1_000_000]);
    let mut flooding = tokio::task::JoinSet::new();
    flooding.spawn(async move {
        for _ in 0..60 {
            flood.send(&large).await;
        }
        flood
    });
    let mut other = Peer::connect(address, "other").await;
    other.subscribe("t", QoS::AtLeastOnce).await;
    for _ in 0..100 {
        other.publish_surely("t", false, "1").await;
    }
    assert!(received.len() < 20, "16 MiB at most");
    for _ in 0..60 {
        soon(received.recv()).await.unwrap().take();
    }
    let mut flood = soon(flooding.join_next()).await.unwrap().unwrap();
    for _ in 0..60 {
        assert_eq!(flood.receive().await, [0x40, 2, 0, 1]);
    }
}
