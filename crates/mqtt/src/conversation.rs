//! One connection to a broker elsewhere: one half reads and one writes, side by side in one task, and neither ever waits within the other.

use std::io;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::client::{ClientConfig, GRACE, MAX_PACKET, Shared};
use crate::connection::{Stream, more, send_all};
use crate::dial::Dialled;
use crate::encode::{self, Ack, GOODBYE, PING, Version, reason};
use crate::handover::Incoming;
use crate::heard::{Heard, heard};
use crate::message::Qos;
use crate::packet::{Refusal, frame, head};
use crate::replies::Answer;
use crate::room::Room;
use crate::sending::size;
use crate::{Publish, Received, Taken};

/// A connection, as both halves see it.
pub(crate) struct Conversation<'a> {
    pub(crate) config: &'a ClientConfig,
    pub(crate) shared: &'a Shared,
    /// Its number.
    pub(crate) connection: u64,
    pub(crate) ways: &'a Ways,
}

/// Where it goes what the broker sends; the same for all connections.
pub(crate) struct Ways {
    /// Of QoS 0.
    pub(crate) received: mpsc::Sender<Received>,
    /// Of QoS 1 and 2, to be handed over.
    pub(crate) arrived: mpsc::Sender<Incoming>,
    pub(crate) answers: mpsc::Sender<Answer>,
    /// For all that is not taken yet.
    pub(crate) room: Room,
}

/// Why it ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Ended {
    #[error("the connection is lost ({0}): does the broker still run, and does another client have our client id?")]
    Lost(#[from] io::Error),
    #[error("it says nothing any more")]
    Silent,
    #[error("it says what is not MQTT 3.1.1 (code {0})")]
    Nonsense(u8),
}

impl Conversation<'_> {
    /// Goes on until the connection is lost, or is closed because of `stop`.
    pub(crate) async fn run(
        self,
        dialled: Dialled,
        to_answer: &mut mpsc::Receiver<Answer>,
        stop: &CancellationToken,
    ) -> Result<(), Ended> {
        let (mut from, mut to) = tokio::io::split(dialled.stream);
        let late = async {
            stop.cancelled().await;
            tokio::time::sleep(GRACE).await;
        };
        tokio::select! {
            ended = self.read(&mut from, dialled.read) => ended,
            ended = self.write(&mut to, to_answer, stop) => ended,
            () = late => Ok(()),
        }
    }

    async fn write(
        &self,
        to: &mut WriteHalf<Stream>,
        to_answer: &mut mpsc::Receiver<Answer>,
        stop: &CancellationToken,
    ) -> Result<(), Ended> {
        let mut out = BytesMut::new();
        // Often enough for a broker that counts strictly.
        let each = (self.config.keep_alive * 3 / 4).max(Duration::from_millis(500));
        let mut ping = tokio::time::interval_at(Instant::now() + each, each);
        self.shared.lock().send_again(&mut out);
        loop {
            while let Ok(answer) = to_answer.try_recv() {
                self.answer(answer, &mut out);
            }
            let all_is_said = self.shared.take(&mut out);
            if !out.is_empty() {
                let sent = tokio::time::timeout(self.config.connect_timeout, send_all(to, &mut out)).await;
                sent.map_err(|_| Ended::Silent)??;
                continue;
            }
            let stopping = stop.is_cancelled();
            if stopping && all_is_said {
                to.write_all(&GOODBYE).await?;
                to.shutdown().await?;
                return Ok(());
            }
            tokio::select! {
                Some(answer) = to_answer.recv() => self.answer(answer, &mut out),
                () = self.shared.wake.notified() => {}
                _ = ping.tick() => out.extend_from_slice(&PING),
                () = stop.cancelled(), if !stopping => {}
            }
        }
    }

    fn answer(&self, answer: Answer, out: &mut BytesMut) {
        if answer.connection == self.connection {
            out.extend_from_slice(&encode::ack(Version::V3, answer.ack, answer.packet_id, 0));
        }
    }

    async fn read(&self, from: &mut ReadHalf<Stream>, mut read: BytesMut) -> Result<(), Ended> {
        // It answers our pings.
        let limit = self.config.keep_alive * 3 / 2 + self.config.connect_timeout;
        let mut overrun = false;
        loop {
            match frame(&mut read, MAX_PACKET) {
                Ok(Some(frame)) => {
                    let heard = heard(frame).map_err(|Refusal(code)| Ended::Nonsense(code))?;
                    self.handle(heard, &mut overrun).await?;
                }
                Ok(None) => more_within(limit, from, &mut read).await?,
                Err(Refusal(reason::TOO_LARGE)) => {
                    let (ack, packet_id) = skip(limit, from, &mut read).await?;
                    if packet_id != 0 {
                        self.say(ack, packet_id).await;
                    }
                }
                Err(Refusal(code)) => return Err(Ended::Nonsense(code)),
            }
        }
    }

    async fn handle(&self, heard: Heard, overrun: &mut bool) -> Result<(), Ended> {
        match heard {
            Heard::Publish { publish, .. } if publish.qos == Qos::AtMostOnce => {
                let place = self.ways.room.try_take(size(&publish));
                let full = place.is_none() || {
                    let received = Received { publish, taken: Taken(None, place) };
                    matches!(self.ways.received.try_send(received), Err(mpsc::error::TrySendError::Full(_)))
                };
                if full && !*overrun {
                    warn!("messages of QoS 0 come faster than they are taken: some are dropped");
                }
                *overrun = full;
            }
            Heard::Publish { publish, packet_id } => self.arrived(publish, packet_id).await,
            Heard::Ack { ack: Ack::Acknowledged | Ack::Complete, packet_id } => self.shared.acknowledged(packet_id),
            Heard::Ack { ack: Ack::Received, packet_id } => {
                self.shared.lock().released(packet_id);
                self.say(Ack::Release, packet_id).await;
            }
            Heard::Ack { ack: Ack::Release, packet_id } => self.say(Ack::Complete, packet_id).await,
            Heard::Subscribed { packet_id, refused } => {
                let filter = self.shared.lock().subscribed(packet_id);
                if refused {
                    let filter = filter.unwrap_or_default();
                    warn!(filter, "the MQTT broker refuses a subscription: do its rules allow the user to read that?");
                }
            }
            Heard::Unsubscribed(packet_id) => self.shared.lock().unsubscribed(packet_id),
            Heard::Nothing => {}
            Heard::Connected { .. } | Heard::Refused(_) => return Err(Ended::Nonsense(reason::PROTOCOL_ERROR)),
        }
        Ok(())
    }

    /// Waits while too much is not handed over yet; the broker then has to wait, too.
    async fn arrived(&self, publish: Publish, packet_id: u16) {
        let ack = if publish.qos == Qos::ExactlyOnce { Ack::Received } else { Ack::Acknowledged };
        let answer = Answer { connection: self.connection, ack, packet_id };
        let place = self.ways.room.take(size(&publish)).await;
        // Whoever hands over ends together with us.
        let _ = self.ways.arrived.send(Incoming { publish, place, answer }).await;
    }

    async fn say(&self, ack: Ack, packet_id: u16) {
        // The writing half has the other end.
        let _ = self.ways.answers.send(Answer { connection: self.connection, ack, packet_id }).await;
    }
}

async fn more_within(limit: Duration, from: &mut (impl AsyncRead + Unpin), read: &mut BytesMut) -> Result<(), Ended> {
    Ok(tokio::time::timeout(limit, more(from, read)).await.map_err(|_| Ended::Silent)??)
}

/// Reads past a message that is too long. Not to be repeated for ever it is acknowledged, with this, unless the id is zero.
async fn skip(limit: Duration, from: &mut (impl AsyncRead + Unpin), read: &mut BytesMut) -> Result<(Ack, u16), Ended> {
    let (first, Ok(Some((start, mut left)))) = (read.first().copied().unwrap_or(0), head(read)) else {
        return Err(Ended::Nonsense(reason::MALFORMED));
    };
    read.advance(start);
    if first >> 4 != 3 {
        return Err(Ended::Nonsense(reason::TOO_LARGE));
    }
    // The topic and the id have at most so much, and the whole is longer.
    const START: usize = 2 + u16::MAX as usize + 2;
    while read.len() < START.min(left) {
        more_within(limit, from, read).await?;
    }
    let bytes = left;
    let topic_length = usize::from(u16::from_be_bytes([read[0], read[1]]));
    let topic = String::from_utf8_lossy(&read[2..2 + topic_length]).into_owned();
    let packet_id = u16::from_be_bytes([read[2 + topic_length], read[3 + topic_length]]);
    warn!(topic, bytes, "a message of the MQTT broker is longer than 1 MiB and is dropped");
    while left > 0 {
        let here = left.min(read.len());
        read.advance(here);
        left -= here;
        if left > 0 {
            more_within(limit, from, read).await?;
        }
    }
    match first >> 1 & 3 {
        0 => Ok((Ack::Acknowledged, 0)),
        1 => Ok((Ack::Acknowledged, packet_id)),
        _ => Ok((Ack::Received, packet_id)),
    }
}
