//! WebSockets of clients.
//!
//! The remote command protocol: each binary message begins with the number of its channel: 0 standard input, 1 output, 2
//! error, 3 the status, 4 the terminal's size; in v5, 255 and a number closes that channel.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use link::http_server::Body;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::answer;
use crate::access::{AccessError, Session};
use crate::streams::dial::Io;
use crate::streams::remote::{Output, RemoteInput, RemoteOutput, Streams};
use link::remote_command::{CLOSE, RESIZE, STATUS, STDERR, STDIN, STDOUT};
use link::splice::{Activity, BUFFER};

/// The longest message of a client: kubectl sends what it reads in one go.
const MAX_MESSAGE: usize = 1 << 20;
/// Read buffer of a connection.
const READ_BUFFER: usize = 8 << 10;
/// For a client's answer to the end of the stream.
const FAREWELL: Duration = Duration::from_secs(5);

type Socket = WebSocketStream<TokioIo<Upgraded>>;
type Sink = SplitSink<Socket, Message>;

/// The answer that begins a WebSocket.
///
/// # Errors
/// The key is none.
pub fn accept(headers: &HeaderMap, protocol: Option<&'static str>) -> Result<Response<Body>, AccessError> {
    let key = headers.get(header::SEC_WEBSOCKET_KEY).map(|key| derive_accept_key(key.as_bytes()));
    let key = key.and_then(|key| HeaderValue::from_str(&key).ok());
    let key = key.ok_or_else(|| AccessError::Refused("Sec-WebSocket-Key is needed".into()))?;
    let mut answer = answer::empty(StatusCode::SWITCHING_PROTOCOLS);
    let headers = answer.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, key);
    headers.extend(protocol.map(|name| (header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name))));
    Ok(answer)
}

async fn socket(client: Upgraded) -> (Sink, SplitStream<Socket>) {
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(0)
        .max_write_buffer_size(2 * MAX_MESSAGE)
        .max_message_size(Some(MAX_MESSAGE))
        .max_frame_size(Some(MAX_MESSAGE));
    WebSocketStream::from_raw_socket(TokioIo::new(client), Role::Server, Some(config)).await.split()
}

/// A client that speaks the remote command protocol, and the process.
pub struct Remote {
    /// The process.
    pub session: Session,
    /// Its streams.
    pub streams: Streams,
    /// Whether the client may close a channel (v5).
    pub has_close: bool,
}

impl Remote {
    /// Carries messages until either side ends or both are silent for too long.
    pub async fn run(self, client: Upgraded, idle: Duration) {
        let Session { input, mut output, .. } = self.session;
        let (mut sink, mut messages) = socket(client).await;
        let activity = Activity::default();
        let from_client = async {
            while let Some(message) = messages.next().await.transpose()? {
                activity.touch();
                if to_process(&input, &message, self.has_close).await? == Next::Stop {
                    break;
                }
            }
            Ok::<_, StreamBroken>(())
        };
        let to_client = send_output(&mut output, &mut sink, self.streams, &activity);
        let ended = tokio::select! {
            ended = from_client => ended,
            ended = to_client => ended,
            () = activity.idle(idle) => {
                tracing::info!(seconds = idle.as_secs(), "a stream was closed: nothing moved for too long");
                Ok(())
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, cause = std::error::Error::source(&error), "a stream broke");
        }
        // The process's streams end here, whether the client answers or not.
        drop((input, output));
        farewell(&mut sink, &mut messages).await;
    }
}

#[derive(Debug, thiserror::Error)]
enum StreamBroken {
    #[error("the client's connection broke")]
    Client(#[from] Error),
    #[error("the runtime's connection broke")]
    Runtime(#[from] io::Error),
}

#[derive(PartialEq)]
enum Next {
    More,
    Stop,
}

async fn to_process(input: &RemoteInput<Io>, message: &Message, has_close: bool) -> io::Result<Next> {
    let content = match message {
        Message::Binary(bytes) => bytes.as_ref(),
        Message::Text(text) => text.as_bytes(),
        Message::Close(_) => return Ok(Next::Stop),
        _ => return Ok(Next::More),
    };
    match content {
        [STDIN, content @ ..] => input.stdin(content).await?,
        [RESIZE, size @ ..] => input.resize(size).await?,
        [CLOSE, STDIN] if has_close => input.close_stdin().await?,
        // Nothing else comes from clients.
        _ => {}
    }
    Ok(Next::More)
}

async fn send_output(
    output: &mut RemoteOutput<Io>,
    sink: &mut Sink,
    streams: Streams,
    activity: &Activity,
) -> Result<(), StreamBroken> {
    // Tells the client that the stream is there.
    let lowest = if streams.stdout {
        STDOUT
    } else if streams.stderr {
        STDERR
    } else {
        STATUS
    };
    send(sink, lowest, &[]).await?;
    loop {
        match output.next().await? {
            Some(Output::Stdout(bytes)) => send(sink, STDOUT, &bytes).await?,
            Some(Output::Stderr(bytes)) => send(sink, STDERR, &bytes).await?,
            Some(Output::Status(status)) => send(sink, STATUS, &status).await?,
            None => return Ok(()),
        }
        activity.touch();
    }
}

async fn send(sink: &mut Sink, channel: u8, content: &[u8]) -> Result<(), Error> {
    let mut message = Vec::with_capacity(content.len() + 1);
    message.push(channel);
    message.extend_from_slice(content);
    sink.send(Message::Binary(message.into())).await
}

/// Closes a WebSocket and waits a little for the answer.
async fn farewell(sink: &mut Sink, messages: &mut SplitStream<Socket>) {
    let close = async {
        let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        // The client may be gone.
        if sink.send(Message::Close(Some(frame))).await.is_ok() {
            while let Some(Ok(_)) = messages.next().await {}
        }
    };
    let _ = tokio::time::timeout(FAREWELL, close).await;
}

/// Joins a WebSocket whose binary messages are pieces of a byte stream with that stream.
pub async fn unpack(client: Upgraded, runtime: Io, idle: Duration) {
    let (mut sink, mut messages) = socket(client).await;
    let (mut from_runtime, mut to_runtime) = tokio::io::split(runtime);
    let activity = Activity::default();
    let from_client = async {
        while let Some(message) = messages.next().await.transpose()? {
            activity.touch();
            match message {
                Message::Binary(bytes) => {
                    to_runtime.write_all(&bytes).await?;
                    to_runtime.flush().await?;
                }
                Message::Close(_) => break,
                _ => {}
            }
        }
        Ok::<_, StreamBroken>(())
    };
    let to_client = async {
        let mut buffer = vec![0; BUFFER];
        loop {
            let read = from_runtime.read(&mut buffer).await?;
            if read == 0 {
                return Ok(());
            }
            activity.touch();
            sink.send(Message::Binary(Bytes::copy_from_slice(&buffer[..read]))).await?;
        }
    };
    let ended: Result<(), StreamBroken> = tokio::select! {
        ended = from_client => ended,
        ended = to_client => ended,
        () = activity.idle(idle) => Ok(()),
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a forwarded connection broke");
    }
    let _ = to_runtime.shutdown().await;
    drop((from_runtime, to_runtime));
    farewell(&mut sink, &mut messages).await;
}
