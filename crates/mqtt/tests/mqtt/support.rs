//! Brokers on port 0, clients that wait with a deadline, and one that speaks in bytes.

use std::net::SocketAddr;
use std::time::Duration;

use mqtt::{Broker, BrokerConfig, Received};
use rumqttc::{AsyncClient, ConnectionError, Event, MqttOptions, Packet, Publish, QoS};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// After that a test has failed.
pub const DEADLINE: Duration = Duration::from_secs(20);

pub fn config() -> BrokerConfig {
    BrokerConfig::at(SocketAddr::from(([127, 0, 0, 1], 0)))
}

/// A broker whose local end hears nothing.
pub async fn broker(config: BrokerConfig) -> (Broker, SocketAddr) {
    let (broker, _received) = broker_with(config, &[]).await;
    let address = broker.addresses()[0];
    (broker, address)
}

pub async fn broker_with(config: BrokerConfig, filters: &[&str]) -> (Broker, mpsc::Receiver<Received>) {
    Broker::start(config, filters).await.unwrap()
}

pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("it takes too long")
}

/// A client of MQTT 3.1.1.
pub struct Peer {
    pub client: AsyncClient,
    packets: mpsc::Receiver<Packet>,
    /// Whether the broker had a session for it.
    pub session_present: bool,
    _task: JoinSet<()>,
}

pub fn options(address: SocketAddr, id: &str) -> MqttOptions {
    let mut options = MqttOptions::new(id, address.ip().to_string(), address.port());
    options.set_max_packet_size(4 << 20, 4 << 20).set_keep_alive(Duration::from_secs(20));
    options
}

impl Peer {
    pub async fn connect(address: SocketAddr, id: &str) -> Self {
        Self::with(options(address, id)).await.unwrap()
    }

    pub async fn persistent(address: SocketAddr, id: &str) -> Self {
        let mut options = options(address, id);
        options.set_clean_session(false);
        Self::with(options).await.unwrap()
    }

    pub async fn with(options: MqttOptions) -> Result<Self, ConnectionError> {
        let (client, mut eventloop) = AsyncClient::new(options, 100);
        let session_present = loop {
            if let Event::Incoming(Packet::ConnAck(ack)) = soon(eventloop.poll()).await? {
                break ack.session_present;
            }
        };
        let (sender, packets) = mpsc::channel(10_000);
        let mut task = JoinSet::new();
        task.spawn(async move {
            while let Ok(event) = eventloop.poll().await {
                if let Event::Incoming(packet) = event
                    && sender.send(packet).await.is_err()
                {
                    return;
                }
            }
        });
        Ok(Self { client, packets, session_present, _task: task })
    }

    /// The next packet for which this gives something.
    pub async fn packet<T>(&mut self, mut wanted: impl FnMut(Packet) -> Option<T>) -> T {
        soon(async {
            loop {
                let packet = self.packets.recv().await.expect("the connection has ended");
                if let Some(found) = wanted(packet) {
                    return found;
                }
            }
        })
        .await
    }

    pub async fn subscribe(&mut self, filter: &str, qos: QoS) -> rumqttc::SubAck {
        self.client.subscribe(filter, qos).await.unwrap();
        self.packet(|packet| if let Packet::SubAck(ack) = packet { Some(ack) } else { None }).await
    }

    pub async fn next(&mut self) -> Publish {
        self.packet(|packet| if let Packet::Publish(publish) = packet { Some(publish) } else { None }).await
    }

    /// The next messages, as `topic payload`.
    pub async fn expect(&mut self, expected: &[&str]) {
        for expected in expected {
            let publish = self.next().await;
            assert_eq!(format!("{} {}", publish.topic, String::from_utf8_lossy(&publish.payload)), *expected);
        }
    }

    pub async fn publish(&self, topic: &str, qos: QoS, retain: bool, payload: &str) {
        self.client.publish(topic, qos, retain, payload).await.unwrap();
    }

    /// Publishes with QoS 1 and waits for the acknowledgement.
    pub async fn publish_surely(&mut self, topic: &str, retain: bool, payload: &str) {
        self.publish(topic, QoS::AtLeastOnce, retain, payload).await;
        self.packet(|packet| matches!(packet, Packet::PubAck(_)).then_some(())).await;
    }

    /// Waits until the broker has closed the connection.
    pub async fn closed(&mut self) {
        soon(async { while self.packets.recv().await.is_some() {} }).await;
    }

    /// Says goodbye and waits until the broker has heard it.
    pub async fn disconnect(mut self) {
        self.client.disconnect().await.unwrap();
        self.closed().await;
    }
}

/// Bytes, for what no client library does.
pub struct Raw(pub TcpStream);

impl Raw {
    pub async fn open(address: SocketAddr) -> Self {
        Self(TcpStream::connect(address).await.unwrap())
    }

    /// CONNECT of MQTT 3.1.1, answered.
    pub async fn connect(address: SocketAddr, id: &str, clean: bool) -> Self {
        let mut raw = Self::open(address).await;
        raw.send(&connect(4, id, if clean { 2 } else { 0 }, 0, &[])).await;
        let answer = raw.receive().await;
        assert_eq!((answer[0], answer[3]), (0x20, 0));
        raw
    }

    /// CONNECT of MQTT 5 with these properties, answered.
    pub async fn connect_v5(address: SocketAddr, id: &str, clean: bool, properties: &[u8]) -> (Self, Vec<u8>) {
        let mut raw = Self::open(address).await;
        raw.send(&connect(5, id, if clean { 2 } else { 0 }, 0, properties)).await;
        let answer = raw.receive().await;
        assert_eq!(answer[0], 0x20);
        (raw, answer)
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    /// The next packet, whole.
    pub async fn receive(&mut self) -> Vec<u8> {
        soon(async {
            let mut packet = vec![self.0.read_u8().await.unwrap()];
            let (mut length, mut shift) = (0, 0);
            loop {
                let byte = self.0.read_u8().await.unwrap();
                packet.push(byte);
                length |= usize::from(byte & 0x7f) << shift;
                shift += 7;
                if byte & 0x80 == 0 {
                    break;
                }
            }
            let start = packet.len();
            packet.resize(start + length, 0);
            self.0.read_exact(&mut packet[start..]).await.unwrap();
            packet
        })
        .await
    }

    /// The broker has closed it, after these bytes.
    pub async fn closed_after(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        // A reset is an end too.
        let _ = soon(self.0.read_to_end(&mut rest)).await;
        rest
    }
}

/// CONNECT. Flags besides; properties are those of MQTT 5 without their length.
pub fn connect(level: u8, id: &str, flags: u8, keep_alive: u16, properties: &[u8]) -> Vec<u8> {
    let mut body = b"\0\x04MQTT".to_vec();
    body.extend([level, flags]);
    body.extend(keep_alive.to_be_bytes());
    if level == 5 {
        body.push(properties.len() as u8);
        body.extend(properties);
    }
    body.extend((id.len() as u16).to_be_bytes());
    body.extend(id.as_bytes());
    packet(0x10, &body)
}

/// PUBLISH. `first` has the flags; properties are those of MQTT 5 with their length, or nothing.
pub fn publish(first: u8, topic: &str, packet_id: u16, properties: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut body = (topic.len() as u16).to_be_bytes().to_vec();
    body.extend(topic.as_bytes());
    if first & 6 != 0 {
        body.extend(packet_id.to_be_bytes());
    }
    body.extend(properties);
    body.extend(payload);
    packet(first, &body)
}

/// SUBSCRIBE with one filter.
pub fn subscribe(packet_id: u16, properties: &[u8], filter: &str, options: u8) -> Vec<u8> {
    let mut body = packet_id.to_be_bytes().to_vec();
    body.extend(properties);
    body.extend((filter.len() as u16).to_be_bytes());
    body.extend(filter.as_bytes());
    body.push(options);
    packet(0x82, &body)
}

pub fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![first];
    let mut length = body.len();
    loop {
        let byte = (length & 0x7f) as u8;
        length >>= 7;
        packet.push(if length == 0 { byte } else { byte | 0x80 });
        if length == 0 {
            break;
        }
    }
    packet.extend(body);
    packet
}
