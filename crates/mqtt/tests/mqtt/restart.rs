use std::path::Path;

use mqtt::{Broker, BrokerConfig};
use rumqttc::QoS;

use crate::support::{Peer, Raw, broker, config, publish, subscribe};

fn in_folder(folder: &Path) -> BrokerConfig {
    BrokerConfig { database: Some(folder.join("mqtt.db")), ..config() }
}

/// What a machine that loses power now would find: the files as they are.
fn crash(folder: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if !entry.file_name().to_string_lossy().ends_with("-shm") {
            std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
        }
    }
    copy
}

async fn prepare(folder: &Path) -> Broker {
    let (broker, address) = broker(in_folder(folder)).await;
    let mut subscriber = Peer::persistent(address, "subscriber").await;
    subscriber.subscribe("t/#", QoS::ExactlyOnce).await;
    subscriber.disconnect().await;
    let mut publisher = Peer::connect(address, "publisher").await;
    publisher.publish("t/0", QoS::AtMostOnce, false, "not kept").await;
    for number in 1..=30 {
        publisher.publish_surely(&format!("t/{number}"), false, "kept").await;
    }
    publisher.publish_surely("retained", true, "state").await;
    publisher.publish_surely("cleared", true, "state").await;
    publisher.publish_surely("cleared", true, "").await;
    broker
}

async fn check(folder: &Path) {
    let (broker, address) = broker(in_folder(folder)).await;
    let mut subscriber = Peer::persistent(address, "subscriber").await;
    assert!(subscriber.session_present);
    for number in 1..=30 {
        subscriber.expect(&[&format!("t/{number} kept")]).await;
    }
    let mut publisher = Peer::connect(address, "publisher").await;
    publisher.publish_surely("t/new", false, "after").await;
    subscriber.expect(&["t/new after"]).await;
    // It may come before the answer.
    publisher.client.subscribe("#", QoS::AtMostOnce).await.unwrap();
    publisher.expect(&["retained state"]).await;
    subscriber.disconnect().await;
    broker.stop().await;
    // All was acknowledged.
    let (_broker, address) = self::broker(in_folder(folder)).await;
    let mut subscriber = Peer::persistent(address, "subscriber").await;
    assert!(subscriber.session_present);
    let mut publisher = Peer::connect(address, "publisher").await;
    publisher.publish_surely("t/last", false, "1").await;
    subscriber.expect(&["t/last 1"]).await;
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_stop_and_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let running = prepare(folder.path()).await;
    let crashed = crash(folder.path());
    running.stop().await;
    check(crashed.path()).await;
    check(folder.path()).await;
}

#[tokio::test]
async fn a_message_of_qos_2_arrives_once_over_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let (_broker, address) = broker(in_folder(folder.path())).await;
    let mut subscriber = Raw::connect(address, "subscriber", false).await;
    subscriber.send(&subscribe(1, &[], "t", 2)).await;
    subscriber.receive().await;
    let mut publisher = Raw::connect(address, "publisher", false).await;
    for id in [1, 2] {
        publisher.send(&publish(0x34, "t", id, &[], &[id as u8])).await;
        assert_eq!(publisher.receive().await, [0x50, 2, 0, id as u8]);
    }
    let (one, two) = (subscriber.receive().await, subscriber.receive().await);
    subscriber.send(&[0x50, 2, one[5], one[6]]).await;
    assert_eq!(subscriber.receive().await, [0x62, 2, one[5], one[6]]);

    let crashed = crash(folder.path());
    let (_broker, address) = broker(in_folder(crashed.path())).await;
    let mut publisher = Raw::connect(address, "publisher", false).await;
    publisher.send(&publish(0x3c, "t", 2, &[], &[2])).await;
    assert_eq!(publisher.receive().await, [0x50, 2, 0, 2], "known from before");
    publisher.send(&[0x62, 2, 0, 2]).await;
    assert_eq!(publisher.receive().await, [0x70, 2, 0, 2]);
    let mut subscriber = Raw::connect(address, "subscriber", false).await;
    let (again_one, again_two) = (subscriber.receive().await, subscriber.receive().await);
    assert_eq!(again_one, [0x62, 2, one[5], one[6]], "the client has this one");
    assert_eq!(&again_two[1..], &two[1..], "under the same id, so that the client knows it");
    subscriber.send(&[0xc0, 0]).await;
    assert_eq!(subscriber.receive().await, [0xd0, 0]);
}
