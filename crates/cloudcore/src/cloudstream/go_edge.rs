//! A tunnel to a Go edge: upstream's frames, which carry bytes and no heads, and have no flow control.
//!
//! A client that reads slowly must not hold up the others of its node, so what it has not read waits here within a bound; beyond it
//! its stream is ended.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame as BodyFrame;
use link::frames::{self, Frames};
use link::http_server::Body;
use link::tunnel::Io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, mpsc};
use tokio_util::io::ReaderStream;
use tokio_util::sync::PollSender;
use tracing::{debug, info, warn};
use wire::tunnel::{Connect, Frame, Kind};

use super::tunnels::{Answer, TunnelError};

/// Frames that wait to be written to a node.
const TO_WRITE: usize = 32;
/// Bytes that wait for a client.
const MAX_WAITING: usize = 8 << 20;
/// Their frames: a Go edge sends 256 bytes in one.
const MAX_FRAMES: usize = MAX_WAITING / 256;
/// Streams of a node at once.
const MAX_STREAMS: usize = 512;
/// The longest data that is sent in a frame.
const PIECE: usize = 16 << 10;
/// The longest head of an answer, and its headers.
const MAX_HEAD: usize = 16 << 10;
const MAX_HEADERS: usize = 64;
/// How long a node may take for the head of an answer.
const ANSWER: Duration = Duration::from_secs(30);
/// For one frame.
const WRITE: Duration = Duration::from_secs(30);
/// How often a node is asked whether it lives, and for how long it may be silent.
const PING: Duration = Duration::from_secs(15);
const SILENCE: Duration = Duration::from_secs(30);

/// A Go edge.
#[derive(Clone)]
pub struct GoEdge(Arc<Shared>);

struct Shared {
    out: mpsc::Sender<Frame>,
    /// `None` when the tunnel has ended.
    streams: Mutex<Option<HashMap<u64, Arrivals>>>,
    /// Streams whose end the node is still to be told: it goes before what waits.
    unwanted: Mutex<Vec<u64>>,
    to_tell: Notify,
    last: AtomicU64,
}

/// Ends the streams with the tunnel: without an end of their own, clients hear that theirs were cut.
struct Ending(Arc<Shared>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.streams().take();
    }
}

/// Where what arrives for a stream goes.
struct Arrivals {
    to: mpsc::Sender<Arrived>,
    waiting: Arc<AtomicUsize>,
}

enum Arrived {
    Bytes(Bytes),
    End,
}

/// The bytes of a stream; dropping it tells the node that nobody wants them.
struct GoStream {
    id: u64,
    shared: Arc<Shared>,
    arrived: mpsc::Receiver<Arrived>,
    waiting: Arc<AtomicUsize>,
    current: Bytes,
    ended: bool,
    out: PollSender<Frame>,
}

impl GoEdge {
    /// Speaks to this edge while the future runs; it ends with the connection.
    pub fn start(node: &str, frames: Frames<Io>) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (out, to_write) = mpsc::channel(TO_WRITE);
        let shared = Arc::new(Shared::new(out));
        // It ends the streams also when it is never run.
        let ending = Ending(shared.clone());
        (Self(shared), run(node.to_owned(), frames, ending, to_write))
    }

    /// One that says nothing.
    #[cfg(test)]
    pub fn unconnected() -> Self {
        Self(Arc::new(Shared::new(mpsc::channel(1).0)))
    }

    /// Asks for a log or a page. The node tells neither status nor headers: they are 200 and none.
    pub async fn ask(&self, node: &str, request: Request<Full<Bytes>>) -> Result<Response<Body>, TunnelError> {
        if request.method() != Method::GET {
            return Err(TunnelError::Unsupported(node.to_owned(), "requests that are no GET"));
        }
        let kind = if request.uri().path().starts_with("/containerLogs/") { Kind::Logs } else { Kind::Metrics };
        let stream = self.open(node, kind, &request).await?;
        let pieces = ReaderStream::with_capacity(stream, PIECE).map(|piece| match piece {
            Ok(bytes) => Ok(BodyFrame::data(bytes)),
            Err(error) => Err(error.into()),
        });
        Ok(Response::new(BodyExt::boxed(StreamBody::new(pieces))))
    }

    /// Asks for a stream of bytes, which the node begins with the head of its answer.
    pub async fn upgrade(&self, node: &str, request: Request<Full<Bytes>>) -> Result<Answer, TunnelError> {
        let kind = if request.uri().path().starts_with("/attach/") { Kind::Attach } else { Kind::Exec };
        let mut stream = self.open(node, kind, &request).await?;
        let broken = |error: io::Error| TunnelError::Broken(node.to_owned(), error.into());
        let silent = || TunnelError::Silent { node: node.to_owned(), seconds: ANSWER.as_secs() };
        let head = tokio::time::timeout(ANSWER, read_head(&mut stream)).await.map_err(|_| silent())?.map_err(broken)?;
        if head.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(Answer::Upgraded(head, Box::new(stream)));
        }
        let length = head.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        let mut text = Vec::new();
        let mut rest = stream.take(length.unwrap_or(MAX_HEAD as u64).min(MAX_HEAD as u64));
        let reading = rest.read_to_end(&mut text);
        tokio::time::timeout(ANSWER, reading).await.map_err(|_| silent())?.map_err(broken)?;
        let mut answer = Response::new(Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed());
        *answer.status_mut() = head.status();
        Ok(Answer::Plain(answer))
    }

    async fn open(&self, node: &str, kind: Kind, request: &Request<Full<Bytes>>) -> Result<GoStream, TunnelError> {
        let id = self.0.last.fetch_add(1, Ordering::Relaxed) + 1;
        let mut connect = Connect {
            id,
            path: request.uri().path().to_owned(),
            query: request.uri().query().unwrap_or_default().to_owned(),
            method: matches!(kind, Kind::Exec | Kind::Attach).then(|| request.method().to_string()),
            ..Connect::default()
        };
        for (name, value) in request.headers() {
            if ![header::HOST, header::AUTHORIZATION, header::COOKIE, header::ACCEPT_ENCODING].contains(name) {
                connect.add_header(name.as_str(), value.as_bytes());
            }
        }
        let (to, arrived) = mpsc::channel(MAX_FRAMES);
        let waiting = Arc::<AtomicUsize>::default();
        {
            let mut streams = self.0.streams();
            let ended = || TunnelError::Broken(node.to_owned(), "it has ended".into());
            let streams = streams.as_mut().ok_or_else(ended)?;
            if streams.len() >= MAX_STREAMS {
                return Err(TunnelError::TooMany(node.to_owned()));
            }
            streams.insert(id, Arrivals { to, waiting: waiting.clone() });
        }
        let shared = self.0.clone();
        let out = PollSender::new(shared.out.clone());
        let stream = GoStream { id, shared, arrived, waiting, current: Bytes::new(), ended: false, out };
        let sent = self.0.out.send(Frame { id, kind, data: connect.to_json() }).await;
        sent.map_err(|error| TunnelError::Broken(node.to_owned(), error.into()))?;
        Ok(stream)
    }
}

async fn run(node: String, frames: Frames<Io>, ending: Ending, mut to_write: mpsc::Receiver<Frame>) {
    let shared = ending.0.clone();
    let (mut sink, mut stream) = frames.with_pings(b"", PING, SILENCE).split();
    let writing = async {
        loop {
            let frame = tokio::select! {
                biased;
                id = shared.next_unwanted() => Frame::remove(id),
                frame = to_write.recv() => match frame {
                    Some(frame) => frame,
                    None => return Ok(()),
                },
            };
            let bytes = frame.encode().map_err(io::Error::other)?;
            tokio::time::timeout(WRITE, sink.send(frames::Frame::text(bytes)))
                .await
                .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        }
    };
    let reading = async {
        while let Some((_, bytes)) = frames::message(&mut stream).await? {
            shared.arrived(&node, Frame::decode(&bytes).map_err(io::Error::other)?);
        }
        Ok(())
    };
    let ended: io::Result<()> = tokio::select! {
        ended = writing => ended,
        ended = reading => ended,
    };
    if let Err(error) = ended {
        info!(node, %error, "a stream tunnel broke");
    }
    drop(ending);
}

impl Shared {
    fn new(out: mpsc::Sender<Frame>) -> Self {
        let streams = Mutex::new(Some(HashMap::new()));
        Self { out, streams, unwanted: Mutex::default(), to_tell: Notify::new(), last: AtomicU64::new(0) }
    }

    fn streams(&self) -> MutexGuard<'_, Option<HashMap<u64, Arrivals>>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unwanted(&self) -> MutexGuard<'_, Vec<u64>> {
        self.unwanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node is to end this; each stream comes here once.
    fn end(&self, id: u64) {
        self.unwanted().push(id);
        self.to_tell.notify_one();
    }

    /// The next stream that the node is to end; may be dropped.
    async fn next_unwanted(&self) -> u64 {
        loop {
            let next = self.unwanted().pop();
            match next {
                Some(id) => return id,
                None => self.to_tell.notified().await,
            }
        }
    }

    fn arrived(&self, node: &str, frame: Frame) {
        let mut streams = self.streams();
        let Some(streams) = streams.as_mut() else { return };
        // What nobody wants was said to be unwanted already.
        let Some(stream) = streams.get(&frame.id) else { return };
        match frame.kind {
            Kind::Data => {
                let length = frame.data.len();
                let is_full = stream.waiting.fetch_add(length, Ordering::Relaxed) + length > MAX_WAITING;
                if is_full || stream.to.try_send(Arrived::Bytes(frame.data)).is_err() {
                    warn!(node, "a stream was ended: its client reads too slowly");
                    streams.remove(&frame.id);
                    self.end(frame.id);
                }
            }
            Kind::Remove => {
                let _ = stream.to.try_send(Arrived::End);
                streams.remove(&frame.id);
            }
            kind => debug!(node, ?kind, "a frame of no use in this direction was left out"),
        }
    }
}

impl Drop for GoStream {
    fn drop(&mut self) {
        if self.shared.streams().as_mut().is_some_and(|streams| streams.remove(&self.id).is_some()) {
            self.shared.end(self.id);
        }
    }
}

impl AsyncRead for GoStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.current.is_empty() && !self.ended {
            match ready!(self.arrived.poll_recv(cx)) {
                Some(Arrived::Bytes(bytes)) => {
                    self.waiting.fetch_sub(bytes.len(), Ordering::Relaxed);
                    self.current = bytes;
                }
                Some(Arrived::End) => self.ended = true,
                None => {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the stream was cut")));
                }
            }
        }
        let length = self.current.len().min(into.remaining());
        into.put_slice(&self.current.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for GoStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        ready!(self.out.poll_reserve(cx)).map_err(gone)?;
        let piece = &bytes[..bytes.len().min(PIECE)];
        let frame = Frame::data(self.id, Bytes::copy_from_slice(piece));
        self.out.send_item(frame).map_err(gone)?;
        Poll::Ready(Ok(piece.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The head of an answer; what follows stays in the stream.
async fn read_head(stream: &mut GoStream) -> io::Result<Response<()>> {
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("the node's answer {what}"));
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= MAX_HEAD {
            return Err(wrong("has a head that is too long"));
        }
        head.push(stream.read_u8().await?);
    }
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Response::new(&mut headers);
    parsed.parse(&head).map_err(|_| wrong("is no HTTP"))?;
    let mut answer = Response::new(());
    *answer.status_mut() =
        parsed.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or_else(|| wrong("has no status"))?;
    for header in parsed.headers.iter() {
        let (name, value) = (HeaderName::try_from(header.name), HeaderValue::from_bytes(header.value));
        if let (Ok(name), Ok(value)) = (name, value) {
            answer.headers_mut().append(name, value);
        }
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_of_a_stream_is_told_whatever_waits_and_none_begins_after_the_tunnels() {
        let (out, _waits) = mpsc::channel(1);
        let edge = GoEdge(Arc::new(Shared::new(out)));
        let request = Request::get("/containerLogs/a/b/c").body(Full::default()).unwrap();
        let stream = edge.open("n1", Kind::Logs, &request).await.unwrap();
        // Nothing is written, and there is no room for more.
        drop(stream);
        assert_eq!(edge.0.next_unwanted().await, 1);
        drop(Ending(edge.0.clone()));
        let ended = edge.open("n1", Kind::Logs, &request).await.err().unwrap();
        assert!(matches!(ended, TunnelError::Broken(..)), "{ended}");
    }
}
