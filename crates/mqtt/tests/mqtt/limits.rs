use rumqttc::QoS;
use tokio::net::TcpStream;

use crate::support::{Peer, Raw, broker, config, connect, publish, subscribe};

#[tokio::test]
async fn a_packet_that_is_too_large_ends_its_connection_alone() {
    let (_broker, address) = broker(config()).await;
    let mut subscriber = Peer::connect(address, "subscriber").await;
    subscriber.subscribe("#", QoS::AtMostOnce).await;
    let mut other = Peer::connect(address, "other").await;
    let large = publish(0x30, "t", 0, &[0], &vec![0; 1 << 20]);
    let (mut v5, accepted) = Raw::connect_v5(address, "v5", true, &[]).await;
    assert!(accepted.windows(5).any(|bytes| bytes == [0x27, 0, 0x10, 0, 0]), "it was told the limit");
    v5.send(&large[..100]).await;
    assert_eq!(v5.receive().await, [0xe0, 2, 0x95, 0], "before the packet has come");
    v5.closed_after().await;
    let mut v3 = Raw::connect(address, "v3", true).await;
    v3.send(&large[..100]).await;
    assert!(v3.closed_after().await.is_empty());
    let just_right = "x".repeat((1 << 20) - 100);
    other.publish_surely("fits", false, &just_right).await;
    assert_eq!(subscriber.next().await.payload.len(), just_right.len());
}

#[tokio::test]
async fn a_client_that_never_reads_costs_others_nothing() {
    let (_broker, address) = broker(config()).await;
    let mut deaf = Raw::connect(address, "deaf", true).await;
    deaf.send(&subscribe(1, &[], "t", 0)).await;
    deaf.receive().await;
    let mut deaf_surely = Raw::connect(address, "deaf-surely", true).await;
    deaf_surely.send(&subscribe(1, &[], "t", 1)).await;
    deaf_surely.receive().await;
    let mut reader = Peer::connect(address, "reader").await;
    reader.subscribe("t", QoS::AtMostOnce).await;
    let mut publisher = Peer::connect(address, "publisher").await;
    let payload = "x".repeat(32 << 10);
    // 64 MB, which no socket's buffers hold.
    for _ in 0..2000 {
        publisher.publish_surely("t", false, &payload).await;
        assert_eq!(reader.next().await.payload.len(), payload.len());
    }
    // It still gets something when it reads at last.
    assert_eq!(deaf.receive().await[0], 0x30);
    assert_eq!(deaf_surely.receive().await[0], 0x32);
}

#[tokio::test]
async fn silent_connections_keep_nobody_out() {
    let mut config = config();
    config.max_connections = 10;
    let (_broker, address) = broker(config).await;
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let mut one = Peer::connect(address, "one").await;
    one.subscribe("t", QoS::AtLeastOnce).await;
    let other = Peer::connect(address, "other").await;
    other.publish("t", QoS::AtLeastOnce, false, "1").await;
    one.expect(&["t 1"]).await;
    drop(silent);
}

#[tokio::test]
async fn nonsense_is_refused() {
    let (_broker, address) = broker(config()).await;
    for (what, bytes, answer) in [
        ("no CONNECT", vec![0xc0, 0], vec![]),
        ("HTTP", b"GET / HTTP/1.1\r\n\r\n".to_vec(), vec![]),
        ("MQTT 3.1", b"\x10\x0e\0\x06MQIsdp\x03\x02\0\0\0\0".to_vec(), vec![0x20, 2, 0, 1]),
        ("a version to come", connect(6, "x", 2, 0, &[]), vec![0x20, 3, 0, 0x84, 0]),
        ("no id for a session to keep", connect(4, "", 0, 0, &[]), vec![0x20, 2, 0, 2]),
        ("a reserved flag", connect(5, "x", 3, 0, &[]), vec![0x20, 3, 0, 0x81, 0]),
        ("a will of QoS 3", connect(5, "x", 0x1e, 0, &[]), vec![0x20, 3, 0, 0x81, 0]),
        ("authentication of another kind", connect(5, "x", 2, 0, &[0x15, 0, 1, b'x']), vec![0x20, 3, 0, 0x8c, 0]),
    ] {
        let mut raw = Raw::open(address).await;
        raw.send(&bytes).await;
        assert_eq!(raw.closed_after().await, answer, "{what}");
    }
    for (what, bytes, code) in [
        ("a second CONNECT", connect(5, "x", 2, 0, &[]), 0x82),
        ("SUBSCRIBE with wrong flags", packet_with_flags(), 0x81),
        ("an id of zero", publish(0x32, "t", 0, &[0], b""), 0x81),
        ("a wildcard in a topic", publish(0x30, "t/+", 0, &[0], b""), 0x90),
        ("an alias that is none", publish(0x30, "", 0, &[3, 0x23, 0, 1], b""), 0x94),
        ("QoS 3", publish(0x36, "t", 1, &[0], b""), 0x81),
    ] {
        let (mut raw, _) = Raw::connect_v5(address, "x", true, &[]).await;
        raw.send(&bytes).await;
        assert_eq!(raw.closed_after().await, [0xe0, 2, code, 0], "{what}");
    }
}

fn packet_with_flags() -> Vec<u8> {
    let mut packet = subscribe(1, &[0], "t", 0);
    packet[0] = 0x80;
    packet
}

#[tokio::test]
async fn all_that_is_retained_greets_a_subscriber_however_much_may_wait() {
    let mut config = config();
    (config.max_queued, config.max_retained) = (10, 300);
    let (_broker, address) = broker(config).await;
    let mut publisher = Peer::connect(address, "publisher").await;
    for number in 0..310 {
        publisher.publish_surely(&format!("t/{number:03}"), true, "x").await;
    }
    let mut subscriber = Peer::connect(address, "subscriber").await;
    subscriber.client.subscribe("#", QoS::AtLeastOnce).await.unwrap();
    for number in 0..300 {
        subscriber.expect(&[&format!("t/{number:03} x")]).await;
    }
    // Those beyond the bound were delivered to whoever listened, and not kept.
    publisher.publish("end", QoS::AtMostOnce, false, "").await;
    subscriber.expect(&["end "]).await;
}
