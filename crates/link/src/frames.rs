//! Frames of a WebSocket (RFC 6455) below messages: for the stream tunnel, whose text frames hold bytes that are no UTF-8.
//!
//! [`Frames`] answers pings, sends its own if it shall, and ends at a close frame; what is left are frames with data.

use std::io::{self, Cursor};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::{Sink, Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};
use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode};
use tokio_util::codec::{Decoder, Encoder, Framed};

/// The longest frame and message that is read: what upstream's readers take, and their header.
pub const MAX_MESSAGE: usize = (1 << 20) + 16;
/// Read buffer of a connection at rest.
const READ_BUFFER: usize = 4 << 10;

/// Which side of a WebSocket: the client masks what it sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that has asked for the upgrade.
    Client,
    /// The one that has granted it.
    Server,
}

/// A frame with data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Text, binary, or what continues the frame before.
    pub kind: Data,
    /// Nothing of the same message follows.
    pub is_final: bool,
    /// The bytes.
    pub payload: Bytes,
}

impl Frame {
    /// A whole message as text, whatever its bytes are.
    pub fn text(payload: impl Into<Bytes>) -> Self {
        Self { kind: Data::Text, is_final: true, payload: payload.into() }
    }

    /// A whole binary message.
    pub fn binary(payload: impl Into<Bytes>) -> Self {
        Self { kind: Data::Binary, is_final: true, payload: payload.into() }
    }
}

/// Frames in both directions; pings are answered, and a close frame is the end.
#[derive(Debug)]
pub struct Frames<S> {
    framed: Framed<S, Codec>,
    /// A ping, or the answer to one, is to be flushed.
    answering: bool,
    closed: bool,
    pings: Option<Pings>,
}

/// Our own pings.
#[derive(Debug)]
struct Pings {
    /// What is sent; `None` where the other side asks.
    payload: Option<&'static [u8]>,
    every: Interval,
    silence: Duration,
    heard: Instant,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Frames<S> {
    /// On a stream that has been upgraded.
    pub fn new(stream: S, side: Side) -> Self {
        let codec = Codec { masks: side == Side::Client };
        Self { framed: Framed::with_capacity(stream, codec, READ_BUFFER), answering: false, closed: false, pings: None }
    }

    /// Asks the other side for a sign of life this often, from now on, while frames are waited for. When nothing is heard for so
    /// long, reading fails.
    #[must_use]
    pub fn with_pings(self, payload: &'static [u8], every: Duration, silence: Duration) -> Self {
        self.watched(Some(payload), every, silence)
    }

    /// The same for both sides of a connection: the client asks, and the server hears whether it does.
    #[must_use]
    pub fn with_watch(self, every: Duration, silence: Duration) -> Self {
        let payload = self.framed.codec().masks.then_some(&b""[..]);
        self.watched(payload, every, silence)
    }

    fn watched(mut self, payload: Option<&'static [u8]>, every: Duration, silence: Duration) -> Self {
        let mut every = interval(every);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.pings = Some(Pings { payload, every, silence, heard: Instant::now() });
        self
    }

    /// Whether a close frame was sent or has come.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Asks the other side for a sign of life.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn ping(&mut self, payload: &'static [u8]) -> io::Result<()> {
        use futures_util::SinkExt;
        self.framed.send((OpCode::Control(Control::Ping), true, Bytes::from_static(payload))).await
    }
}

/// The next whole message of frames, at most [`MAX_MESSAGE`] long; `None` at the end. A call that is dropped may lose the beginning of
/// a message.
///
/// # Errors
/// The connection broke, or the message is too long.
pub async fn message<F>(frames: &mut F) -> io::Result<Option<(Data, Bytes)>>
where
    F: Stream<Item = io::Result<Frame>> + Unpin,
{
    let Some(first) = frames.next().await.transpose()? else { return Ok(None) };
    if first.is_final {
        return Ok(Some((first.kind, first.payload)));
    }
    let mut whole = BytesMut::from(first.payload);
    loop {
        let Some(next) = frames.next().await.transpose()? else { return Err(io::ErrorKind::UnexpectedEof.into()) };
        if whole.len() + next.payload.len() > MAX_MESSAGE {
            return Err(too_long());
        }
        whole.extend_from_slice(&next.payload);
        if next.is_final {
            return Ok(Some((first.kind, whole.freeze())));
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Frames<S> {
    fn poll_pings(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let Some(pings) = &mut self.pings else { return Ok(()) };
        while !self.closed && pings.every.poll_tick(cx).is_ready() {
            let quiet = pings.heard.elapsed();
            if quiet >= pings.silence {
                let text = format!("nothing was heard for {} s", quiet.as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            let Some(payload) = pings.payload else { continue };
            // Where there is no room, the next may find some.
            if Pin::new(&mut self.framed).poll_ready(cx)?.is_ready() {
                let ping = (OpCode::Control(Control::Ping), true, Bytes::from_static(payload));
                Pin::new(&mut self.framed).start_send(ping)?;
                self.answering = true;
            }
        }
        Ok(())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream for Frames<S> {
    type Item = io::Result<Frame>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            self.poll_pings(cx)?;
            if self.answering {
                match Pin::new(&mut self.framed).poll_flush(cx) {
                    Poll::Ready(Ok(())) => self.answering = false,
                    // Who has closed need not wait for the answer.
                    Poll::Ready(Err(_)) if self.closed => return Poll::Ready(None),
                    Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(error))),
                    Poll::Pending => {}
                }
            }
            if self.closed {
                return Poll::Ready(None);
            }
            let Some((opcode, is_final, payload)) = ready!(Pin::new(&mut self.framed).poll_next(cx)).transpose()?
            else {
                return Poll::Ready(None);
            };
            if let Some(pings) = &mut self.pings {
                pings.heard = Instant::now();
            }
            let answer = match opcode {
                OpCode::Data(kind @ (Data::Text | Data::Binary | Data::Continue)) => {
                    return Poll::Ready(Some(Ok(Frame { kind, is_final, payload })));
                }
                OpCode::Control(Control::Ping) => Control::Pong,
                OpCode::Control(Control::Close) => {
                    self.closed = true;
                    Control::Close
                }
                OpCode::Control(Control::Pong) => continue,
                OpCode::Data(_) | OpCode::Control(_) => return Poll::Ready(Some(Err(broken("a reserved frame")))),
            };
            // Where there is no room for an answer, bytes wait to be sent that are as good a sign of life.
            if Pin::new(&mut self.framed).poll_ready(cx)?.is_ready() {
                Pin::new(&mut self.framed).start_send((OpCode::Control(answer), true, payload))?;
                self.answering = true;
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Sink<Frame> for Frames<S> {
    type Error = io::Error;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.framed).poll_ready(cx)
    }

    fn start_send(mut self: Pin<&mut Self>, frame: Frame) -> io::Result<()> {
        Pin::new(&mut self.framed).start_send((OpCode::Data(frame.kind), frame.is_final, frame.payload))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.framed).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.closed {
            ready!(Pin::new(&mut self.framed).poll_ready(cx))?;
            self.closed = true;
            Pin::new(&mut self.framed).start_send((OpCode::Control(Control::Close), true, Bytes::new()))?;
        }
        Pin::new(&mut self.framed).poll_close(cx)
    }
}

/// Reads and writes frames.
#[derive(Debug)]
struct Codec {
    masks: bool,
}

type Raw = (OpCode, bool, Bytes);

impl Decoder for Codec {
    type Item = Raw;
    type Error = io::Error;

    fn decode(&mut self, from: &mut BytesMut) -> io::Result<Option<Raw>> {
        let mut cursor = Cursor::new(&from[..]);
        let parsed = FrameHeader::parse(&mut cursor).map_err(|_| broken("no frame"))?;
        let Some((header, length)) = parsed else { return Ok(None) };
        let begin = usize::try_from(cursor.position()).unwrap_or(usize::MAX);
        let is_control = matches!(header.opcode, OpCode::Control(_));
        let length = usize::try_from(length).ok().filter(|length| *length <= MAX_MESSAGE).ok_or_else(too_long)?;
        if is_control && (length > 125 || !header.is_final) {
            return Err(broken("a control frame that is too long or in parts"));
        }
        if header.rsv1 || header.rsv2 || header.rsv3 || header.mask.is_some() == self.masks {
            return Err(broken("a frame of an unknown extension, or masked by the wrong side"));
        }
        if from.len() < begin + length {
            return Ok(None);
        }
        from.advance(begin);
        let mut payload = from.split_to(length);
        if let Some(mask) = header.mask {
            apply(mask, &mut payload);
        }
        Ok(Some((header.opcode, header.is_final, payload.freeze())))
    }
}

impl Encoder<Raw> for Codec {
    type Error = io::Error;

    fn encode(&mut self, (opcode, is_final, payload): Raw, to: &mut BytesMut) -> io::Result<()> {
        let mask = self.masks.then(rand::random::<[u8; 4]>);
        let header = FrameHeader { is_final, opcode, mask, ..FrameHeader::default() };
        let length = payload.len() as u64;
        to.reserve(header.len(length) + payload.len());
        header.format(length, &mut to.writer()).map_err(|_| broken("no frame"))?;
        let begin = to.len();
        to.extend_from_slice(&payload);
        if let Some(mask) = mask {
            apply(mask, &mut to[begin..]);
        }
        Ok(())
    }
}

fn apply(mask: [u8; 4], bytes: &mut [u8]) {
    let mut words = bytes.chunks_exact_mut(4);
    for word in &mut words {
        word.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
    }
    words.into_remainder().iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("WebSocket: {what}"))
}

fn too_long() -> io::Error {
    broken("a message is longer than 1 MiB")
}

#[cfg(test)]
mod tests {
    use futures_util::SinkExt;
    use tokio::io::AsyncWriteExt;

    use super::*;

    fn pair(buffer: usize) -> (Frames<tokio::io::DuplexStream>, Frames<tokio::io::DuplexStream>) {
        let (client, server) = tokio::io::duplex(buffer);
        (Frames::new(client, Side::Client), Frames::new(server, Side::Server))
    }

    #[tokio::test]
    async fn messages_of_any_bytes_arrive_whole() {
        let (mut client, mut server) = pair(64);
        let texts = [&b"\x01\x03\xff\xfe"[..], b"", &[0xf5; 300]];
        let send = async {
            for text in texts {
                client.send(Frame::text(text)).await.unwrap();
            }
            let part = |kind, is_final, payload| Frame { kind, is_final, payload: Bytes::from_static(payload) };
            client.send(part(Data::Text, false, b"be")).await.unwrap();
            client.ping(b"ping you").await.unwrap();
            client.send(part(Data::Continue, true, b"gun")).await.unwrap();
            client.close().await.unwrap();
        };
        let receive = async {
            for text in texts {
                assert_eq!(message(&mut server).await.unwrap(), Some((Data::Text, Bytes::copy_from_slice(text))));
            }
            assert_eq!(message(&mut server).await.unwrap(), Some((Data::Text, Bytes::from_static(b"begun"))));
            assert_eq!(message(&mut server).await.unwrap(), None);
        };
        tokio::join!(send, receive);
    }

    #[tokio::test]
    async fn a_ping_is_answered_with_its_payload() {
        let (client, server) = tokio::io::duplex(1 << 10);
        let mut server = Frames::new(server, Side::Server);
        let mut raw = Framed::new(client, Codec { masks: true });
        raw.send((OpCode::Control(Control::Ping), true, Bytes::from_static(b"ping you"))).await.unwrap();
        let answer = async { raw.next().await.unwrap().unwrap() };
        let pong = tokio::select! {
            _ = server.next() => panic!("there is no data"),
            pong = answer => pong,
        };
        assert_eq!(pong, (OpCode::Control(Control::Pong), true, Bytes::from_static(b"ping you")));
    }

    #[tokio::test(start_paused = true)]
    async fn pings_find_out_whether_anybody_is_there() {
        let (client, mut server) = pair(1 << 10);
        let mut client = client.with_pings(b"ping you", Duration::from_secs(5), Duration::from_secs(60));
        let long = tokio::time::sleep(Duration::from_secs(300));
        tokio::select! {
            frame = client.next() => panic!("{frame:?} while pings are answered"),
            frame = server.next() => panic!("{frame:?} out of nothing"),
            () = long => {}
        }
        let begun = Instant::now();
        let error = client.next().await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!((50..=65).contains(&begun.elapsed().as_secs()), "after {:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn nonsense_and_too_much_are_refused() {
        for wrong in [
            &[0x81, 0x00][..],
            &[0xc1, 0x80, 1, 2, 3, 4],
            &[0x83, 0x80, 1, 2, 3, 4],
            &[0x89, 0xfe, 0, 126, 1, 2, 3, 4],
            &[0x81, 0xff, 0, 0, 0, 0, 0xff, 0, 0, 0, 1, 2, 3, 4],
        ] {
            let (mut client, server) = tokio::io::duplex(1 << 10);
            client.write_all(wrong).await.unwrap();
            drop(client);
            assert!(Frames::new(server, Side::Server).next().await.unwrap().is_err(), "{wrong:?}");
        }
    }
}
