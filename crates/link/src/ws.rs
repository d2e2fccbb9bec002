//! WebSocket as both hubs speak it: one message, one text frame (possibly fragmented), with limits and deadlines.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::error::Error as WsError;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use crate::reach;
use crate::tls_failure::TlsFailure;

/// The longest message of the message channel.
pub const MAX_MESSAGE_BYTES: usize = 32 << 20;
/// Read buffer of a connection: the library's default of 128 KiB would cost 10,000 nodes more than a gigabyte. TLS has one of 4 KiB below it, and
/// a longer frame is given the room that it needs.
const READ_BUFFER: usize = 1 << 10;
/// Longer messages are sent in fragments of this size, as upstream does: both ends keep a buffer of the longest frame that they
/// have seen, and a hub has many connections.
const FRAGMENT: usize = 8 << 10;

/// A byte stream below a WebSocket.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for T {}
type Socket = WebSocketStream<Counted>;

/// The receiving half of a connection.
pub struct Reader {
    stream: SplitStream<Socket>,
    received: Received,
}

/// How many bytes a connection has received. A peer whose long message comes in slowly is alive, though no message arrives.
#[derive(Clone, Debug, Default)]
pub struct Received(Arc<AtomicU64>);

/// A byte stream that counts what it receives.
struct Counted {
    inner: Box<dyn Stream>,
    received: Received,
}

/// The sending half of a connection.
pub struct Writer {
    sink: SplitSink<Socket, Message>,
    deadline: Duration,
    /// A message was begun and not ended.
    cut: bool,
}

/// What arrived.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming {
    /// A message in a text frame.
    Message(Bytes),
    /// A binary frame: a message too, or what both ends have agreed on.
    Binary(Bytes),
    /// The peer is alive: a ping, or the answer to one of ours.
    Alive,
    /// The peer closed, with its reason if it gave one.
    Closed(String),
}

/// A connection failed.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Nobody listens there, or the network is down.
    #[error("{0} cannot be reached")]
    Connect(String, #[source] std::io::Error),
    /// The address is no host and port.
    #[error("{0:?} is not of the form wss://host:port/path")]
    Address(String),
    /// TLS failed.
    #[error(transparent)]
    Tls(TlsFailure),
    /// The server answered the upgrade with this status.
    #[error("{server} refused the connection: {status} {reason}")]
    Refused {
        /// Who refused.
        server: String,
        /// HTTP status.
        status: u16,
        /// The body's text.
        reason: String,
    },
    /// It took too long.
    #[error("{what} took longer than {seconds} s", what = .0, seconds = .1.as_secs())]
    Timeout(&'static str, Duration),
    /// Sending an earlier message was given up in its middle; nothing can follow it.
    #[error("an earlier message was cut short")]
    Cut,
    /// The peer sent what is no WebSocket, or too much of it.
    #[error("the peer broke the WebSocket protocol or its limits")]
    Protocol(#[source] Box<WsError>),
    /// The upgrade broke off.
    #[error("{0} broke the upgrade off")]
    Exchange(String, #[source] hyper::Error),
    /// Reading or writing failed.
    #[error("the connection broke")]
    Broken(#[source] Box<WsError>),
}

/// Where and how to connect.
pub struct Target {
    /// `wss://host:port/path`.
    pub url: String,
    /// Extra headers of the upgrade request.
    pub headers: Vec<(&'static str, String)>,
    /// CA and own certificate.
    pub tls: Arc<ClientConfig>,
    /// For TCP, TLS and the upgrade together.
    pub connect_deadline: Duration,
    /// For each message, or each part of a long one.
    pub write_deadline: Duration,
}

/// Connects; also returns the headers of the server's answer.
///
/// # Errors
/// Any step failed or took too long.
pub async fn connect(target: &Target) -> Result<(Reader, Writer, HeaderMap), LinkError> {
    tokio::time::timeout(target.connect_deadline, connect_unbounded(target))
        .await
        .unwrap_or_else(|_| Err(LinkError::Timeout("connecting", target.connect_deadline)))
}

async fn connect_unbounded(target: &Target) -> Result<(Reader, Writer, HeaderMap), LinkError> {
    let (_, _, tls) = dial(target).await?;
    upgrade(tls, target).await
}

/// TCP and TLS: the request that is to follow, the server's name, and the stream.
pub(crate) async fn dial(target: &Target) -> Result<(Request<()>, String, TlsStream<TcpStream>), LinkError> {
    let request = target.request()?;
    let host = request.uri().host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let port = request.uri().port_u16().unwrap_or(443);
    let server = format!("{host}:{port}");
    let tcp = reach::tcp(&host, port).await.map_err(|e| LinkError::Connect(server.clone(), e))?;
    let name = ServerName::try_from(host).map_err(|_| LinkError::Address(target.url.clone()))?;
    let tls = TlsConnector::from(target.tls.clone())
        .connect(name, tcp)
        .await
        .map_err(|e| LinkError::Tls(TlsFailure::new(server.clone(), e)))?;
    Ok((request, server, tls))
}

/// Asks for the upgrade on a stream that is there already.
///
/// # Errors
/// The server refuses, or is none.
pub async fn upgrade<S: Stream>(stream: S, target: &Target) -> Result<(Reader, Writer, HeaderMap), LinkError> {
    let request = target.request()?;
    let server = request.uri().authority().map(ToString::to_string).unwrap_or_default();
    let (stream, received) = Counted::new(stream);
    let (socket, answer) = tokio_tungstenite::client_async_with_config(request, stream, Some(config())).await.map_err(
        |error| match error {
            WsError::Http(answer) => LinkError::Refused {
                status: answer.status().as_u16(),
                reason: String::from_utf8_lossy(answer.body().as_deref().unwrap_or_default()).trim().to_owned(),
                server,
            },
            // With TLS 1.3 a refused client certificate shows only now.
            WsError::Io(error) => LinkError::Tls(TlsFailure::new(server, error)),
            error => failed(error),
        },
    )?;
    let (reader, writer) = split(socket, received, target.write_deadline);
    Ok((reader, writer, answer.headers().clone()))
}

impl Target {
    fn request(&self) -> Result<Request<()>, LinkError> {
        let wrong = || LinkError::Address(self.url.clone());
        let mut request = self.url.as_str().into_client_request().map_err(|_| wrong())?;
        request.uri().host().ok_or_else(wrong)?;
        for (name, value) in &self.headers {
            let value = HeaderValue::from_str(value).map_err(|_| wrong())?;
            request.headers_mut().insert(HeaderName::from_static(name), value);
        }
        Ok(request)
    }
}

/// A refusal of an upgrade request.
pub struct Refusal {
    /// HTTP status.
    pub status: StatusCode,
    /// For the peer's log.
    pub reason: String,
}

/// Accepts an upgrade on any path. `decide` sees the request and gives the answer's extra headers, or refuses.
///
/// # Errors
/// The request is no upgrade, was refused, or took too long.
pub async fn accept<S: Stream>(
    stream: S,
    deadline: Duration,
    write_deadline: Duration,
    decide: impl FnOnce(&Request<()>) -> Result<HeaderMap, Refusal> + Unpin,
) -> Result<(Reader, Writer), LinkError> {
    let (stream, received) = Counted::new(stream);
    #[allow(clippy::result_large_err, reason = "the library's signature")]
    let callback = |request: &Request<()>, mut answer: Response<()>| match decide(request) {
        Ok(headers) => {
            answer.headers_mut().extend(headers);
            Ok(answer)
        }
        Err(refusal) => {
            let mut refused = Response::new(Some(refusal.reason));
            *refused.status_mut() = refusal.status;
            Err(refused)
        }
    };
    let upgrade = tokio_tungstenite::accept_hdr_async_with_config(stream, callback, Some(config()));
    match tokio::time::timeout(deadline, upgrade).await {
        Ok(Ok(socket)) => Ok(split(socket, received, write_deadline)),
        Ok(Err(error)) => Err(failed(error)),
        Err(_) => Err(LinkError::Timeout("the upgrade", deadline)),
    }
}

impl Received {
    /// Bytes so far, those of TLS not counted.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Adds to the count.
    pub fn add(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Counted {
    fn new(stream: impl Stream) -> (Self, Received) {
        let received = Received::default();
        (Self { inner: Box::new(stream), received: received.clone() }, received)
    }
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, into);
        self.received.add((into.filled().len() - before) as u64);
        read
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl Reader {
    /// Counts what has been received, for deadlines.
    pub fn received(&self) -> Received {
        self.received.clone()
    }

    /// The next thing that arrives. Pings are answered by themselves.
    ///
    /// # Errors
    /// The connection broke, or the peer exceeded a limit.
    pub async fn next(&mut self) -> Result<Incoming, LinkError> {
        loop {
            return match self.stream.next().await {
                Some(Ok(Message::Text(text))) => Ok(Incoming::Message(text.into())),
                Some(Ok(Message::Binary(bytes))) => Ok(Incoming::Binary(bytes)),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => Ok(Incoming::Alive),
                Some(Ok(Message::Close(frame))) => {
                    Ok(Incoming::Closed(frame.map(|frame| frame.reason.to_string()).unwrap_or_default()))
                }
                Some(Ok(Message::Frame(_))) => continue,
                Some(Err(WsError::ConnectionClosed | WsError::AlreadyClosed)) | None => {
                    Ok(Incoming::Closed(String::new()))
                }
                Some(Err(error)) => Err(failed(error)),
            };
        }
    }
}

impl Writer {
    /// Sends one message as text. The deadline is for each fragment: a slow link may take its time as long as it moves.
    ///
    /// # Errors
    /// The connection broke or the peer does not read; the message may or may not have arrived.
    pub async fn send(&mut self, message: Vec<u8>) -> Result<(), LinkError> {
        // Messages are JSON; what is not UTF-8 could not have been made.
        let text = Utf8Bytes::try_from(Bytes::from(message))
            .map_err(|_| LinkError::Protocol(Box::new(WsError::Utf8(String::from("not UTF-8")))))?;
        match text.len() <= FRAGMENT && !self.cut {
            true => self.put(Message::Text(text)).await,
            false => self.send_parts(text.into(), Data::Text).await,
        }
    }

    /// Sends a binary frame; the peer must expect it.
    ///
    /// # Errors
    /// As [`Writer::send`].
    pub async fn send_binary(&mut self, frame: Vec<u8>) -> Result<(), LinkError> {
        match frame.len() <= FRAGMENT && !self.cut {
            true => self.put(Message::Binary(frame.into())).await,
            false => self.send_parts(frame.into(), Data::Binary).await,
        }
    }

    async fn send_parts(&mut self, mut rest: Bytes, mut kind: Data) -> Result<(), LinkError> {
        if std::mem::replace(&mut self.cut, true) {
            return Err(LinkError::Cut);
        }
        while !rest.is_empty() {
            let part = rest.split_to(rest.len().min(FRAGMENT));
            self.put(Message::Frame(Frame::message(part, OpCode::Data(kind), rest.is_empty()))).await?;
            kind = Data::Continue;
        }
        self.cut = false;
        Ok(())
    }

    /// Asks the peer for a sign of life.
    ///
    /// # Errors
    /// The connection broke or the peer does not read.
    pub async fn ping(&mut self) -> Result<(), LinkError> {
        self.put(Message::Ping(Bytes::new())).await
    }

    /// Closes with a reason; failures do not matter any more.
    pub async fn close(&mut self, reason: &str) {
        // A close frame holds at most 123 bytes of text.
        let end = (0..=reason.len().min(120)).rev().find(|end| reason.is_char_boundary(*end)).unwrap_or(0);
        let frame = CloseFrame { code: CloseCode::Policy, reason: reason[..end].to_owned().into() };
        let _ = self.put(Message::Close(Some(frame))).await;
    }

    async fn put(&mut self, message: Message) -> Result<(), LinkError> {
        match tokio::time::timeout(self.deadline, self.sink.send(message)).await {
            Ok(sent) => sent.map_err(failed),
            Err(_) => Err(LinkError::Timeout("writing a message", self.deadline)),
        }
    }
}

fn split(socket: Socket, received: Received, deadline: Duration) -> (Reader, Writer) {
    let (sink, stream) = socket.split();
    (Reader { stream, received }, Writer { sink, deadline, cut: false })
}

fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(0)
        .max_write_buffer_size(4 * FRAGMENT)
        .max_message_size(Some(MAX_MESSAGE_BYTES))
        .max_frame_size(Some(MAX_MESSAGE_BYTES))
}

fn failed(error: WsError) -> LinkError {
    match error {
        WsError::Capacity(_) | WsError::Protocol(_) | WsError::Utf8(_) => LinkError::Protocol(Box::new(error)),
        error => LinkError::Broken(Box::new(error)),
    }
}
