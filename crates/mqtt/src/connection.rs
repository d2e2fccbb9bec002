//! One client: its first word, then one who reads and one who writes, side by side in one task.
//!
//! Whatever makes the reader wait (the local end is behind, too many publishes are unanswered, the disk is slow) holds up this client
//! alone, and only what it sends: it still gets its messages.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};
use uuid::Uuid;

use crate::access::Rights;
use crate::encode::{self, Ack, Limits, PING_RESPONSE, Version, accepted, ack, reason};
use crate::farewell::Farewell;
use crate::journal::{Change, Op};
use crate::listen::Shared;
use crate::local::publish_of;
use crate::message::{Message, Qos, unix_now};
use crate::outbox::{Incoming, Outbox};
use crate::packet::{self, ALIASES, Aliases, Frame, Hello, Options, Packet, Refusal, Will};
use crate::replies::{End, MAX_WAITING, Replies, Token};
use crate::router::{Event, Join, Welcome};
use crate::topic;

/// What is read at once. An idle client holds that much.
const READ: usize = 1 << 10;
/// A larger read buffer is given back when it is empty.
const READ_KEPT: usize = 64 << 10;
/// The longest CONNECT: there may be many who are not known yet. A will and a password fit.
const MAX_CONNECT: usize = 96 << 10;
/// Filters of one SUBSCRIBE at most.
const MAX_FILTERS: usize = 1000;
/// The longest id of a client; it is kept in memory, on disk and in the log.
const MAX_ID: usize = 1024;
/// How long a last word may take.
const FAREWELL: Duration = Duration::from_secs(2);

/// A TCP or TLS connection.
pub(crate) trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}
pub(crate) type Stream = Box<dyn Io>;

/// A client that has said CONNECT, or something else.
pub(crate) struct Newcomer {
    stream: Stream,
    read: BytesMut,
    hello: Result<Hello, (Version, Refusal)>,
}

/// Why a connection ended.
enum Ended {
    /// The client said so.
    Disconnected { with_will: bool, expiry: Option<u32> },
    /// It is sent away.
    Refused(Refusal),
    /// The network, or a peer that just closed.
    Lost(io::Error),
}

/// Reads CONNECT.
pub(crate) async fn first_word(mut stream: Stream, longest: usize) -> io::Result<Newcomer> {
    let mut read = BytesMut::with_capacity(READ);
    loop {
        if !packet::may_be_connect(&read) {
            return Err(io::Error::other("no CONNECT"));
        }
        match packet::frame(&mut read, longest.min(MAX_CONNECT)) {
            Ok(Some(frame)) => return Ok(Newcomer { stream, read, hello: packet::hello(&frame) }),
            Ok(None) => more(&mut stream, &mut read).await?,
            Err(_) => return Err(io::Error::other("CONNECT is too long or malformed")),
        }
    }
}

/// Reads what comes next.
pub(crate) async fn more(stream: &mut (impl AsyncRead + Unpin), read: &mut BytesMut) -> io::Result<()> {
    if read.is_empty() && read.capacity() > READ_KEPT {
        *read = BytesMut::new();
    }
    // Grows with what has come, not with what a peer says is to come.
    read.reserve(READ.max(read.len() / 2));
    match stream.read_buf(read).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

/// Cancelled, it leaves what is not sent yet.
pub(crate) async fn send_all(to: &mut WriteHalf<Stream>, out: &mut BytesMut) -> io::Result<()> {
    to.write_all_buf(out).await?;
    to.flush().await
}

/// Serves a client until it goes or is sent away.
pub(crate) async fn serve(newcomer: Newcomer, shared: &Arc<Shared>, stop: &CancellationToken) -> Option<Farewell> {
    let Newcomer { mut stream, read, hello } = newcomer;
    let (kick, kicked) = oneshot::channel();
    let is_back = CancellationToken::new();
    let joined = match hello {
        Ok(hello) => {
            let version = hello.version;
            join(hello, shared, kick, is_back.clone()).await.map_err(|refusal| (version, refusal))
        }
        Err(refused) => Err(refused),
    };
    let (client, welcome) = match joined {
        Ok(joined) => joined,
        Err((version, Refusal(code))) => {
            info!(code, "an MQTT client was refused");
            let refused = encode::refused(version, code);
            let _ = tokio::time::timeout(FAREWELL, async {
                stream.write_all(&refused).await?;
                stream.shutdown().await
            })
            .await;
            return None;
        }
    };
    Some(client.run(stream, read, welcome, kicked, is_back, stop).await)
}

/// A connected client, as its reader sees it.
struct Client {
    shared: Arc<Shared>,
    id: Arc<str>,
    version: Version,
    rights: Rights,
    keep_alive: Option<Duration>,
    packet_size: u32,
    will: Option<Will>,
    came: u64,
    session: u64,
    epoch: u64,
    stored: bool,
    outbox: Arc<Outbox>,
    replies: Arc<Replies>,
}

/// Lets a client in, or says why not.
async fn join(
    hello: Hello,
    shared: &Arc<Shared>,
    kick: oneshot::Sender<Refusal>,
    is_back: CancellationToken,
) -> Result<(Client, (Vec<u8>, Arc<Notify>)), Refusal> {
    let rights = shared.users.admit(hello.user.as_deref(), hello.password.as_deref()).await;
    let rights = rights.ok_or(Refusal(reason::BAD_PASSWORD))?;
    if hello.will.as_ref().is_some_and(|will| !rights.may_write(&will.message.topic)) {
        return Err(Refusal(reason::NOT_AUTHORIZED));
    }
    let unnamed = hello.client_id.is_empty();
    if unnamed && hello.version == Version::V3 && !hello.clean || hello.client_id.len() > MAX_ID {
        return Err(Refusal(reason::CLIENT_ID));
    }
    let id: Arc<str> =
        if unnamed { format!("auto-{}", Uuid::new_v4().simple()).into() } else { hello.client_id.into() };
    let (reply, welcome) = oneshot::channel();
    let join = Join {
        client: id.clone(),
        rights: rights.clone(),
        clean: hello.clean,
        keep: hello.expiry.unwrap_or(u32::MAX),
        receive_maximum: hello.receive_maximum,
        kick,
        is_back,
    };
    shared.tell(Event::Connect { join, reply }).await;
    let Welcome { session, epoch, outbox, wake, present, stored } =
        welcome.await.map_err(|_| Refusal(reason::SHUTTING_DOWN))??;
    let limits = Limits {
        assigned_id: unnamed.then_some(&id),
        receive_maximum: MAX_WAITING as u16,
        packet_size: u32::try_from(shared.packet_size).unwrap_or(u32::MAX),
        topic_aliases: ALIASES,
    };
    let accepted = accepted(hello.version, present, &limits);
    let replies = Replies::new(hello.version, wake.clone());
    let keep_alive = (hello.keep_alive > 0).then(|| Duration::from_millis(u64::from(hello.keep_alive) * 1500));
    let client = Client {
        shared: shared.clone(),
        id,
        version: hello.version,
        rights,
        keep_alive,
        packet_size: hello.packet_size,
        will: hello.will,
        came: unix_now(),
        session,
        epoch,
        stored,
        outbox,
        replies,
    };
    Ok((client, (accepted, wake)))
}

impl Client {
    async fn run(
        mut self,
        stream: Stream,
        read: BytesMut,
        (accepted, wake): (Vec<u8>, Arc<Notify>),
        kicked: oneshot::Receiver<Refusal>,
        is_back: CancellationToken,
        stop: &CancellationToken,
    ) -> Farewell {
        debug!(client = %self.id, "an MQTT client is connected");
        let (mut from, mut to) = tokio::io::split(stream);
        let mut out = BytesMut::from(&accepted[..]);
        let ended = tokio::select! {
            ended = self.read(&mut from, read) => ended,
            ended = self.write(&mut to, &mut out, &wake) => ended,
            () = self.rights.withdrawn() => Ended::Refused(Refusal(reason::NOT_AUTHORIZED)),
            refusal = kicked => Ended::Refused(refusal.unwrap_or(Refusal(reason::UNSPECIFIED))),
            () = stop.cancelled() => Ended::Refused(Refusal(reason::SHUTTING_DOWN)),
        };
        let (with_will, expiry) = match ended {
            Ended::Disconnected { with_will, expiry } => (with_will, expiry),
            Ended::Lost(error) => {
                debug!(client = %self.id, %error, "an MQTT client's connection is lost");
                (true, None)
            }
            Ended::Refused(Refusal(code)) => {
                info!(client = %self.id, code, "an MQTT client is sent away");
                // After what is half sent already.
                out.extend_from_slice(
                    encode::disconnect(self.version, code).as_ref().map_or(&[], |packet| &packet[..]),
                );
                let _ = tokio::time::timeout(FAREWELL, to.write_all_buf(&mut out)).await;
                (code != reason::SHUTTING_DOWN, None)
            }
        };
        let _ = tokio::time::timeout(FAREWELL, to.shutdown()).await;
        self.shared.tell(Event::Disconnect { from: self.session, epoch: self.epoch, expiry }).await;
        let will = self.will.take().filter(|_| with_will).map(|will| (will, self.came));
        Farewell { shared: self.shared, will, rights: self.rights, session: self.session, is_back }
    }

    async fn read(&self, from: &mut ReadHalf<Stream>, mut read: BytesMut) -> Ended {
        let mut aliases = Aliases::new();
        loop {
            match packet::frame(&mut read, self.shared.packet_size) {
                Ok(Some(frame)) => {
                    if let Err(ended) = self.handle(frame, &mut aliases).await {
                        return ended;
                    }
                }
                Ok(None) => {
                    let more = more(from, &mut read);
                    let more = match self.keep_alive {
                        Some(limit) => tokio::time::timeout(limit, more).await,
                        None => Ok(more.await),
                    };
                    match more {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => return Ended::Lost(error),
                        Err(_) => return Ended::Refused(Refusal(reason::KEEP_ALIVE)),
                    }
                }
                Err(refusal) => return Ended::Refused(refusal),
            }
        }
    }

    async fn write(&self, to: &mut WriteHalf<Stream>, out: &mut BytesMut, wake: &Notify) -> Ended {
        loop {
            let whole = self.replies.take(out);
            let took = self.outbox.take(self.epoch, self.version, self.packet_size, unix_now(), out);
            if !took.dropped.is_empty() && self.stored {
                let dropped = took.dropped.iter().map(|id| Op::Dequeued(self.id.clone(), *id));
                self.shared.journal.write(Change { ops: dropped.collect(), ..Change::default() }).await;
            }
            let is_empty = out.is_empty();
            if !is_empty && let Err(error) = send_all(to, out).await {
                return Ended::Lost(error);
            }
            if !whole {
                return Ended::Refused(Refusal(reason::UNSPECIFIED));
            }
            if is_empty {
                if out.capacity() > READ_KEPT || out.capacity() > 0 && out.capacity() < READ {
                    *out = BytesMut::new();
                }
                wake.notified().await;
            }
        }
    }

    async fn handle(&self, frame: Frame, aliases: &mut Aliases) -> Result<(), Ended> {
        self.replies.room().await;
        match packet::packet(frame, self.version, aliases).map_err(Ended::Refused)? {
            Packet::Publish { message, packet_id } => self.publish(message, packet_id).await,
            Packet::Ack { ack, packet_id, failed } => self.acknowledged(ack, packet_id, failed).await,
            Packet::Subscribe { packet_id, filters } => {
                let one = |(index, (filter, options))| match index {
                    0..MAX_FILTERS => self.may_subscribe(filter, options),
                    _ => Err(reason::QUOTA),
                };
                let filters = filters.into_iter().enumerate().map(one).collect();
                let (replies, version) = (self.replies.clone(), self.version);
                self.shared.tell(Event::Subscribe { from: self.session, packet_id, filters, replies, version }).await;
            }
            Packet::Unsubscribe { packet_id, filters } => {
                let (replies, version) = (self.replies.clone(), self.version);
                self.shared.tell(Event::Unsubscribe { from: self.session, packet_id, filters, replies, version }).await;
            }
            Packet::Ping => self.replies.answer(&PING_RESPONSE),
            Packet::Disconnect { with_will, expiry } => return Err(Ended::Disconnected { with_will, expiry }),
        }
        Ok(())
    }

    fn may_subscribe(&self, filter: String, options: Options) -> Result<(String, Options), u8> {
        if filter.starts_with("$share/") && self.version == Version::V5 {
            Err(reason::NO_SHARING)
        } else if !topic::is_filter(&filter) {
            Err(reason::BAD_FILTER)
        } else if !self.rights.may_read(&filter) {
            Err(reason::NOT_AUTHORIZED)
        } else {
            Ok((filter, options))
        }
    }

    async fn publish(&self, message: Message, packet_id: u16) {
        let answer = if message.qos == Qos::ExactlyOnce { Ack::Received } else { Ack::Acknowledged };
        if !self.rights.may_write(&message.topic) {
            debug!(client = %self.id, topic = message.topic, "an MQTT client may not publish to this topic");
            // 3.1.1 has no word for it: acknowledged and dropped, as mosquitto does.
            if message.qos != Qos::AtMostOnce {
                self.replies.answer(&ack(self.version, answer, packet_id, reason::NOT_AUTHORIZED));
            }
            return;
        }
        let mut local_only = false;
        if message.qos == Qos::ExactlyOnce {
            match self.outbox.begin_incoming(packet_id).await {
                None => {}
                Some(Incoming::LocalAgain) => local_only = true,
                Some(_) => return self.replies.answer(&ack(self.version, Ack::Received, packet_id, 0)),
            }
        }
        let token = (message.qos != Qos::AtMostOnce).then(|| self.replies.for_publish(answer, packet_id, &self.outbox));
        let local = self.shared.local.wants(&message.topic).then(|| publish_of(&message));
        let incoming = (message.qos == Qos::ExactlyOnce).then_some((packet_id, local.is_some()));
        if !local_only {
            let token = token.clone();
            self.shared.publish(Some(self.session), message, incoming, token).await;
        }
        if let Some(publish) = local {
            self.shared.local.hand_over(publish, token).await;
        }
    }

    async fn acknowledged(&self, kind: Ack, packet_id: u16, failed: bool) {
        let now = |kind, code| self.replies.answer(&ack(self.version, kind, packet_id, code));
        let op: Option<fn(Arc<str>, u16) -> Op> = match kind {
            Ack::Acknowledged => self.outbox.done(packet_id, Qos::AtLeastOnce, false).then_some(Op::Dequeued),
            Ack::Complete => self.outbox.done(packet_id, Qos::ExactlyOnce, true).then_some(Op::Dequeued),
            Ack::Received if failed => self.outbox.done(packet_id, Qos::ExactlyOnce, false).then_some(Op::Dequeued),
            Ack::Received if !self.outbox.received(packet_id) => return now(Ack::Release, reason::UNKNOWN_ID),
            Ack::Received if !self.stored => return now(Ack::Release, 0),
            Ack::Received => Some(Op::Released),
            Ack::Release if !self.outbox.forget_incoming(packet_id) => return now(Ack::Complete, reason::UNKNOWN_ID),
            Ack::Release if !self.stored => return now(Ack::Complete, 0),
            Ack::Release => Some(Op::IncomingGone),
        };
        let answer = match kind {
            Ack::Received if !failed => Some(Ack::Release),
            Ack::Release => Some(Ack::Complete),
            _ => None,
        };
        if let Some(op) = op.filter(|_| self.stored) {
            let answer = answer.map(|kind| ack(self.version, kind, packet_id, 0));
            let token = answer.map(|answer| Token::new(End::Answered(self.replies.clone(), answer)));
            let ops = vec![op(self.id.clone(), packet_id)];
            self.shared.journal.write(Change { ops, token, ..Change::default() }).await;
        }
    }
}
