//! MQTT 3.1.1 as far as a load needs it, with nothing between it and the socket: what measures must cost less than what is measured.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What is read at once.
const READ: usize = 64 << 10;
/// How long a broker may take to answer CONNECT and SUBSCRIBE, and to listen when it has been started.
const ANSWER: Duration = Duration::from_secs(10);
/// The longest packet that comes here.
const MAX_PACKET: usize = 1 << 20;

/// The types of packets, as the first byte has them.
const CONNECT: u8 = 0x10;
const CONNACK: u8 = 0x20;
const PUBLISH: u8 = 0x30;
const PUBACK: u8 = 0x40;
const SUBSCRIBE: u8 = 0x82;
const SUBACK: u8 = 0x90;

/// A connection with a clean session and without keep-alive.
pub struct Client {
    stream: TcpStream,
    read: BytesMut,
    out: BytesMut,
    packet_id: u16,
}

/// What a load has to know of a packet.
pub enum Packet {
    /// A message; one of QoS 1 is acknowledged with the next [`Client::flush`].
    Message {
        /// Its topic.
        topic: Bytes,
        /// What it says.
        payload: Bytes,
    },
    /// A message of QoS 1 that was published is acknowledged.
    Acknowledged,
    /// The answer to CONNECT or SUBSCRIBE.
    Answer,
}

/// Waits until a broker that has been started listens.
///
/// # Errors
/// It does not.
pub async fn until_there(broker: SocketAddr) -> Result<()> {
    let began = Instant::now();
    while let Err(error) = Client::connect(broker, "first").await {
        if began.elapsed() > ANSWER {
            return Err(error);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// The broker is not there or refuses.
    pub async fn connect(broker: SocketAddr, id: &str) -> Result<Self> {
        let stream = TcpStream::connect(broker).await.with_context(|| format!("the MQTT broker at {broker}"))?;
        stream.set_nodelay(true)?;
        let mut client =
            Self { stream, read: BytesMut::with_capacity(READ), out: BytesMut::with_capacity(READ), packet_id: 0 };
        client.begin(CONNECT, 10 + 2 + id.len());
        client.out.put_slice(b"\0\x04MQTT\x04\x02\0\0");
        client.text(id);
        client.answer().await?;
        Ok(client)
    }

    /// Subscribes.
    ///
    /// # Errors
    /// The broker refuses.
    pub async fn subscribe(&mut self, filters: &[String], qos: u8) -> Result<()> {
        for filter in filters {
            self.begin(SUBSCRIBE, 2 + 2 + filter.len() + 1);
            let id = self.next_id();
            self.out.put_u16(id);
            self.text(filter);
            self.out.put_u8(qos);
            self.answer().await?;
        }
        Ok(())
    }

    async fn answer(&mut self) -> Result<()> {
        self.flush().await?;
        let answered = async {
            while !matches!(self.take()?, Some(Packet::Answer)) {
                self.arrive().await?;
            }
            Ok(())
        };
        tokio::time::timeout(ANSWER, answered).await.context("the MQTT broker does not answer")?
    }

    /// Says a message with the next [`Client::flush`].
    pub fn publish(&mut self, topic: &str, payload: &[u8], qos: u8) {
        let id = if qos > 0 { 2 } else { 0 };
        self.begin(PUBLISH | qos << 1, 2 + topic.len() + id + payload.len());
        self.text(topic);
        if qos > 0 {
            let id = self.next_id();
            self.out.put_u16(id);
        }
        self.out.put_slice(payload);
    }

    /// Sends what is said. Cancelled, the rest is sent with the next.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn flush(&mut self) -> Result<()> {
        self.stream.write_all_buf(&mut self.out).await.context("the MQTT broker went away")
    }

    /// Waits for more of the broker. May be cancelled.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn arrive(&mut self) -> Result<()> {
        self.read.reserve(READ);
        match self.stream.read_buf(&mut self.read).await.context("the MQTT broker went away")? {
            0 => bail!("the MQTT broker ended the connection"),
            _ => Ok(()),
        }
    }

    /// The next packet of what has arrived.
    ///
    /// # Errors
    /// It is none, or a refusal.
    pub fn take(&mut self) -> Result<Option<Packet>> {
        let Some((length, begin)) = length(&self.read)? else { return Ok(None) };
        if self.read.len() < begin + length {
            return Ok(None);
        }
        let mut packet = self.read.split_to(begin + length).freeze();
        let first = packet[0];
        packet.advance(begin);
        match first & 0xf0 {
            PUBLISH => {
                let qos = first >> 1 & 3;
                let topic = usize::from(packet.try_get_u16()?);
                if packet.len() < topic + usize::from(qos > 0) * 2 {
                    bail!("a malformed packet of the MQTT broker");
                }
                let topic = packet.split_to(topic);
                if qos > 0 {
                    let id = packet.get_u16();
                    self.begin(PUBACK, 2);
                    self.out.put_u16(id);
                }
                Ok(Some(Packet::Message { topic, payload: packet }))
            }
            PUBACK => Ok(Some(Packet::Acknowledged)),
            CONNACK | SUBACK => match packet.last() {
                Some(0..=2) => Ok(Some(Packet::Answer)),
                code => bail!("the MQTT broker refuses: {code:?}"),
            },
            other => bail!("a packet {other:#x} of the MQTT broker"),
        }
    }

    fn begin(&mut self, first: u8, mut length: usize) {
        self.out.put_u8(first);
        while length > 127 {
            self.out.put_u8((length & 127) as u8 | 128);
            length >>= 7;
        }
        self.out.put_u8(length as u8);
    }

    fn text(&mut self, text: &str) {
        self.out.put_u16(text.len() as u16);
        self.out.put_slice(text.as_bytes());
    }

    fn next_id(&mut self) -> u16 {
        self.packet_id = self.packet_id.checked_add(1).unwrap_or(1);
        self.packet_id
    }
}

/// The length of a packet without its beginning, and that of the beginning.
fn length(read: &[u8]) -> Result<Option<(usize, usize)>> {
    let mut length = 0;
    for (index, byte) in read.iter().skip(1).take(4).enumerate() {
        length |= usize::from(byte & 127) << (7 * index);
        if byte & 128 == 0 {
            return match length {
                0..=MAX_PACKET => Ok(Some((length, index + 2))),
                _ => bail!("a packet of {length} bytes of the MQTT broker"),
            };
        }
    }
    if read.len() > 4 { bail!("a malformed packet of the MQTT broker") } else { Ok(None) }
}
