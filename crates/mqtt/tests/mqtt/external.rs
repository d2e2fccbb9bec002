//! The client, against the broker.

use std::net::SocketAddr;
use std::time::Duration;

use mqtt::{Bus, Client, ClientConfig, Publish, Qos, Received, Taken};
use rumqttc::QoS;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::support::{Peer, Raw, broker, config, packet, publish, soon, subscribe};

pub fn to(address: SocketAddr) -> ClientConfig {
    ClientConfig {
        host: address.ip().to_string(),
        port: address.port(),
        tls: None,
        client_id: "edgecore".to_owned(),
        keep_session: false,
        user: None,
        keep_alive: Duration::from_secs(30),
        connect_timeout: Duration::from_secs(5),
    }
}

fn message(topic: &str, payload: &str) -> Publish {
    Publish { topic: topic.to_owned(), payload: payload.to_owned().into(), qos: Qos::AtLeastOnce, retain: false }
}

pub async fn connected(client: &Client) {
    soon(async {
        while !client.is_connected() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn both_ways_and_over_an_outage() {
    // A port that is free, and nobody there.
    let address = TcpListener::bind(("127.0.0.1", 0)).await.unwrap().local_addr().unwrap();
    let (client, mut received) = Client::start(to(address), &["up/#"]).unwrap();
    client.publish(message("down/early", "kept")).unwrap();
    let at = || {
        let mut config = config();
        config.listen[0].address = address;
        config
    };
    let (first, _) = broker(at()).await;
    let mut device = Peer::persistent(address, "device").await;
    device.subscribe("down/#", QoS::AtLeastOnce).await;
    connected(&client).await;
    client.publish(message("down/1", "a")).unwrap();
    soon(async {
        // The early one may have come before the device has subscribed.
        while device.next().await.topic != "down/1" {}
    })
    .await;
    device.publish_surely("up/1", false, "b").await;
    let one = soon(received.recv()).await.unwrap();
    assert_eq!((one.publish.topic.as_str(), &one.publish.payload[..]), ("up/1", &b"b"[..]));
    one.taken.complete();

    first.stop().await;
    soon(async {
        while client.is_connected() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    client.publish(message("down/2", "while away")).unwrap();
    client.subscribe("more").unwrap();
    let (_second, _) = broker(at()).await;
    let mut device = Peer::connect(address, "device").await;
    device.subscribe("down/#", QoS::AtLeastOnce).await;
    device.publish("none", QoS::AtMostOnce, false, "").await;
    connected(&client).await;
    client.publish(message("down/3", "c")).unwrap();
    soon(async { while device.next().await.topic != "down/3" {} }).await;
    // Subscribed again, also to what was added meanwhile.
    soon(async {
        loop {
            device.publish("more", QoS::AtLeastOnce, false, "d").await;
            if let Ok(Some(more)) = tokio::time::timeout(Duration::from_millis(100), received.recv()).await {
                break assert_eq!(more.take().topic, "more");
            }
        }
    })
    .await;
    client.stop().await;
}

#[tokio::test]
async fn the_broker_is_answered_when_the_message_is_taken() {
    let (_broker, address) = broker(config()).await;
    let (bus, mut received) = Bus::client(to(address), &["t"]).unwrap();
    let Bus::Client(client) = &bus else { panic!("it is a client") };
    connected(client).await;
    let mut publisher = Peer::connect(address, "publisher").await;
    // The subscription may be on its way.
    publisher.publish_surely("t", true, "first").await;
    let mut held = vec![soon(received.recv()).await.unwrap()];
    for number in 1..40 {
        publisher.publish_surely("t", false, &number.to_string()).await;
    }
    // The broker has 20 on their way at most: the others come when those are answered.
    while held.len() < 20 {
        held.push(soon(received.recv()).await.unwrap());
    }
    assert!(tokio::time::timeout(Duration::from_millis(100), received.recv()).await.is_err());
    let mut seen: Vec<_> = held.drain(..).map(|one| one.take().payload).collect();
    while seen.len() < 40 {
        seen.push(soon(received.recv()).await.unwrap().take().payload);
    }
    assert_eq!(seen.last().unwrap(), "39");
    bus.publish(message("u", "x")).await.unwrap();
    bus.stop().await;
}

#[tokio::test]
async fn what_waits_for_a_broker_is_bounded() {
    let address = TcpListener::bind(("127.0.0.1", 0)).await.unwrap().local_addr().unwrap();
    let (client, _received) = Client::start(to(address), &[]).unwrap();
    for number in 0..1500 {
        client.publish(message("t", &number.to_string())).unwrap();
    }
    assert!(client.publish(message("t", &"x".repeat(2 << 20))).is_err());
    let mut config = config();
    config.listen[0].address = address;
    let folder = tempfile::tempdir().unwrap();
    config.database = Some(folder.path().join("mqtt.db"));
    let (broker, mut received) = crate::support::broker_with(config, &["t"]).await;
    for number in 500..1500 {
        let one = soon(received.recv()).await.unwrap();
        assert_eq!(one.take().payload, number.to_string(), "the oldest are dropped");
    }
    client.stop().await;
    broker.stop().await;
}

/// A connection of the client to a broker that the test plays.
async fn accepted(listener: &TcpListener, session_present: bool) -> Raw {
    let (tcp, _) = soon(listener.accept()).await.unwrap();
    let mut raw = Raw(tcp);
    assert_eq!(raw.receive().await[0], 0x10);
    raw.send(&[0x20, 2, u8::from(session_present), 0]).await;
    raw
}

#[tokio::test]
async fn a_broker_that_remembers_us_gets_the_rest_again() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let mut config = to(listener.local_addr().unwrap());
    config.keep_session = true;
    let (client, _received) = Client::start(config, &[]).unwrap();
    let mut raw = accepted(&listener, false).await;
    for (payload, qos) in [("a", Qos::AtLeastOnce), ("b", Qos::AtLeastOnce), ("c", Qos::ExactlyOnce)] {
        client.publish(Publish { qos, ..message("t", payload) }).unwrap();
    }
    let sent = [raw.receive().await, raw.receive().await, raw.receive().await];
    assert_eq!(sent[0], publish(0x32, "t", 1, &[], b"a"));
    // One is acknowledged, and of the third it is known that it has come.
    raw.send(&[0x40, 2, 0, 1, 0x50, 2, 0, 3]).await;
    assert_eq!(raw.receive().await, [0x62, 2, 0, 3]);
    drop(raw);
    let mut raw = accepted(&listener, true).await;
    assert_eq!(raw.receive().await, publish(0x3a, "t", 2, &[], b"b"), "the same id, and said to be a repetition");
    assert_eq!(raw.receive().await, [0x62, 2, 0, 3]);
    drop(raw);
    // One that has forgotten gets them as new ones.
    let mut raw = accepted(&listener, false).await;
    assert_eq!(raw.receive().await, publish(0x32, "t", 4, &[], b"b"));
    assert_eq!(raw.receive().await, publish(0x34, "t", 5, &[], b"c"));
    raw.send(&[0x40, 2, 0, 4, 0x50, 2, 0, 5]).await;
    assert_eq!(raw.receive().await, [0x62, 2, 0, 5]);
    raw.send(&[0x70, 2, 0, 5]).await;
    let (_, goodbye) = tokio::join!(client.stop(), raw.closed_after());
    assert_eq!(goodbye, [0xe0, 0]);
}

#[tokio::test]
async fn what_is_too_long_is_acknowledged_and_nonsense_ends_a_connection() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let (client, mut received) = Client::start(to(listener.local_addr().unwrap()), &[]).unwrap();
    let mut raw = accepted(&listener, false).await;
    raw.send(&publish(0x32, "t", 7, &[], &vec![b'x'; 2 << 20])).await;
    assert_eq!(raw.receive().await, [0x40, 2, 0, 7], "it would come again for ever");
    raw.send(&publish(0x32, "t", 8, &[], b"taken")).await;
    assert_eq!(soon(received.recv()).await.unwrap().take().payload, "taken");
    assert_eq!(raw.receive().await, [0x40, 2, 0, 8]);
    // The connection, and not the client.
    raw.send(&[0x90, 1, 0]).await;
    assert_eq!(raw.closed_after().await, b"");
    let _raw = accepted(&listener, false).await;
    connected(&client).await;
}

#[tokio::test]
async fn nothing_is_dropped_while_the_broker_is_there() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let (bus, _received) = Bus::client(to(listener.local_addr().unwrap()), &[]).unwrap();
    let Bus::Client(client) = &bus else { panic!("it is a client") };
    let mut raw = accepted(&listener, false).await;
    connected(client).await;
    // More than may wait, at once and without a pause: in number, then in bytes.
    let (many, large) = (3000_u32, "x".repeat(400_000));
    let saying = async {
        for number in 0..many {
            bus.publish(message("t", &number.to_string())).await.unwrap();
        }
        for _ in 0..10 {
            bus.publish(message("t", &large)).await.unwrap();
        }
    };
    let hearing = async {
        for number in 0..many + 10 {
            let packet = raw.receive().await;
            let (payload, id) = (number.to_string(), (number + 1) as u16);
            let expected = if number < many { payload.as_bytes() } else { large.as_bytes() };
            assert!(packet == publish(0x32, "t", id, &[], expected), "{number}");
            let [high, low] = id.to_be_bytes();
            raw.send(&[0x40, 2, high, low]).await;
        }
    };
    soon(async { tokio::join!(saying, hearing) }).await;
}

#[tokio::test]
async fn nobody_waits_for_a_broker_that_takes_nothing() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let patient = to(listener.local_addr().unwrap());
    let (bus, _received) = Bus::client(patient.clone(), &[]).unwrap();
    let Bus::Client(client) = &bus else { panic!("it is a client") };
    let raw = accepted(&listener, false).await;
    connected(client).await;
    // 20 are on their way, and 1,000 wait.
    let saying = async {
        for _ in 0..1100 {
            bus.publish(message("t", "x")).await.unwrap();
        }
    };
    let mut saying = Box::pin(saying);
    assert!(tokio::time::timeout(Duration::from_millis(300), &mut saying).await.is_err(), "it waits for room");
    // A connection that ends ends that.
    drop(raw);
    soon(saying).await;
    bus.stop().await;

    // One that answers our pings, and acknowledges nothing.
    let (bus, _received) = Bus::client(ClientConfig { keep_alive: Duration::from_secs(1), ..patient }, &[]).unwrap();
    let Bus::Client(client) = &bus else { panic!("it is a client") };
    let mut raw = accepted(&listener, false).await;
    connected(client).await;
    let saying = async {
        for number in 0..1100 {
            bus.publish(message("t", &number.to_string())).await.unwrap();
        }
    };
    let mut ids = Vec::new();
    let answering = async {
        loop {
            let packet = raw.receive().await;
            match packet[0] {
                0xc0 => raw.send(&[0xd0, 0]).await,
                _ => ids.push([packet[5], packet[6]]),
            }
        }
    };
    tokio::select! {
        () = soon(saying) => {}
        () = answering => {}
    }
    assert!(client.is_connected());
    // It goes on after the oldest were dropped.
    for [high, low] in ids {
        raw.send(&[0x40, 2, high, low]).await;
    }
    let next = soon(async {
        loop {
            let packet = raw.receive().await;
            if packet[0] == 0x32 {
                break String::from_utf8(packet[7..].to_vec()).unwrap();
            }
        }
    });
    assert_eq!(next.await, "100");
}

#[tokio::test]
async fn a_broker_that_says_nothing_any_more_is_left() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let mut config = to(listener.local_addr().unwrap());
    (config.keep_alive, config.connect_timeout) = (Duration::from_secs(1), Duration::from_secs(1));
    let (bus, _received) = Bus::client(config, &[]).unwrap();
    let Bus::Client(client) = &bus else { panic!("it is a client") };
    let _hangs = accepted(&listener, false).await;
    connected(client).await;
    let saying = async {
        for _ in 0..3000 {
            bus.publish(message("t", &"x".repeat(10_000))).await.unwrap();
        }
    };
    let (_again, ()) = soon(async { tokio::join!(accepted(&listener, false), saying) }).await;
}

#[tokio::test]
async fn a_broker_that_remembers_us_hears_what_is_unwanted() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let mut config = to(listener.local_addr().unwrap());
    config.keep_session = true;
    let (client, _received) = Client::start(config, &["old", "wanted"]).unwrap();
    let gone = async |raw: Raw| {
        drop(raw);
        soon(async {
            while client.is_connected() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    };
    let mut raw = accepted(&listener, false).await;
    for (id, filter) in [(1, "old"), (2, "wanted")] {
        assert_eq!(raw.receive().await, subscribe(id, &[], filter, 1));
        raw.send(&[0x90, 3, 0, id as u8, 1]).await;
    }
    gone(raw).await;
    client.unsubscribe("old");
    // Told again until it has answered that.
    for id in [3, 5] {
        let mut raw = accepted(&listener, true).await;
        assert_eq!(raw.receive().await, packet(0xa2, &[0, id, 0, 3, b'o', b'l', b'd']));
        assert_eq!(raw.receive().await, subscribe(u16::from(id) + 1, &[], "wanted", 1));
        if id == 5 {
            raw.send(&[0xb0, 2, 0, id]).await;
        }
        gone(raw).await;
    }
    let mut raw = accepted(&listener, true).await;
    assert_eq!(raw.receive().await, subscribe(7, &[], "wanted", 1));
}

/// The next message from the broker, which must be this one.
async fn comes(received: &mut mpsc::Receiver<Received>, payload: &str) -> Taken {
    let Received { publish, taken } = soon(received.recv()).await.unwrap();
    assert_eq!(publish.payload, payload);
    taken
}

#[tokio::test]
async fn what_cannot_be_taken_comes_again_in_its_order() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let (_client, mut received) = Client::start(to(listener.local_addr().unwrap()), &[]).unwrap();
    let mut raw = accepted(&listener, false).await;
    for (first, id, payload) in [(0x32, 7, "a"), (0x32, 8, "b"), (0x34, 9, "c")] {
        raw.send(&publish(first, "t", id, &[], payload.as_bytes())).await;
    }
    let (a, b, c) = (comes(&mut received, "a").await, comes(&mut received, "b").await, comes(&mut received, "c").await);
    a.complete();
    assert_eq!(raw.receive().await, [0x40, 2, 0, 7]);
    c.complete();
    b.fail();
    // One at a time, and until it is taken.
    comes(&mut received, "b").await.fail();
    let b = comes(&mut received, "b").await;
    // Meanwhile the connection is used.
    raw.send(&publish(0x32, "t", 10, &[], b"d")).await;
    raw.send(&[0x50, 2, 0, 99]).await;
    assert_eq!(raw.receive().await, [0x62, 2, 0, 99]);
    assert!(received.is_empty());
    b.complete();
    assert_eq!(raw.receive().await, [0x40, 2, 0, 8]);
    comes(&mut received, "c").await.complete();
    assert_eq!(raw.receive().await, [0x50, 2, 0, 9]);
    comes(&mut received, "d").await.complete();
    assert_eq!(raw.receive().await, [0x40, 2, 0, 10]);
}

#[tokio::test]
async fn what_cannot_be_taken_outlives_a_connection() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let (_client, mut received) = Client::start(to(listener.local_addr().unwrap()), &[]).unwrap();
    let mut raw = accepted(&listener, false).await;
    raw.send(&publish(0x32, "t", 1, &[], b"a")).await;
    let a = comes(&mut received, "a").await;
    raw.send(&publish(0x32, "t", 2, &[], b"b")).await;
    let b = comes(&mut received, "b").await;
    drop(raw);
    // The broker has forgotten us, and has another message with that id.
    let mut raw = accepted(&listener, false).await;
    raw.send(&publish(0x32, "t", 1, &[], b"c")).await;
    let c = comes(&mut received, "c").await;
    a.fail();
    b.fail();
    c.fail();
    for payload in ["a", "b", "c"] {
        comes(&mut received, payload).await.complete();
    }
    assert_eq!(raw.receive().await, [0x40, 2, 0, 1], "once");
    raw.send(&publish(0x32, "t", 2, &[], b"d")).await;
    let d = comes(&mut received, "d").await;
    drop(raw);
    // This one remembers, and says it again.
    let mut raw = accepted(&listener, true).await;
    raw.send(&publish(0x3a, "t", 2, &[], b"d")).await;
    comes(&mut received, "d").await.complete();
    assert_eq!(raw.receive().await, [0x40, 2, 0, 2], "the first one is still held");
    d.fail();
    raw.send(&publish(0x32, "t", 3, &[], b"e")).await;
    comes(&mut received, "e").await.complete();
    assert_eq!(raw.receive().await, [0x40, 2, 0, 3]);
}

#[tokio::test]
async fn large_messages_wait_at_the_broker() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let (_client, mut received) = Client::start(to(listener.local_addr().unwrap()), &[]).unwrap();
    let mut raw = accepted(&listener, false).await;
    // Of QoS 0 some are dropped.
    for _ in 0..60 {
        raw.send(&publish(0x30, "t", 0, &[], &vec![0; 1_000_000])).await;
    }
    raw.send(&publish(0x32, "t", 1, &[], b"small")).await;
    let mut heard = Vec::new();
    soon(async {
        while heard.last().is_none_or(|one: &Received| one.publish.qos == Qos::AtMostOnce) {
            heard.push(received.recv().await.unwrap());
        }
    })
    .await;
    assert_eq!(heard.len(), 17, "16 MiB at most");
    drop(heard);
    comes(&mut received, "small").await.complete();
    assert_eq!(raw.receive().await, [0x40, 2, 0, 1]);

    let mut flooding = JoinSet::new();
    flooding.spawn(async move {
        for id in 1..=60 {
            raw.send(&publish(0x32, "t", id, &[], &vec![0; 1_000_000])).await;
        }
        raw
    });
    let flooded = tokio::time::timeout(Duration::from_secs(2), flooding.join_next()).await;
    assert!(flooded.is_err() && received.len() < 20, "{} MB", received.len());
    for _ in 0..60 {
        soon(received.recv()).await.unwrap().take();
    }
    let mut raw = soon(flooding.join_next()).await.unwrap().unwrap();
    for id in 1..=60 {
        assert_eq!(raw.receive().await, [0x40, 2, 0, id]);
    }
}
