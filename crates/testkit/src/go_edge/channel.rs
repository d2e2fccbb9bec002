//! The message channel as a Go edge speaks it: the recorded upgrade request, text messages with a newline at their end, cut into
//! frames of 4096 bytes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use futures_util::{SinkExt, StreamExt};
use rustls::ClientConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::http::{dial, read_head};

/// The project of every edge that was not told another one.
const PROJECT: &str = "e632aba927ea4ac2b575ec1603d56f10";
/// Go's client cuts messages at its write buffer.
const FRAGMENT: usize = 4096;
/// How long a refusal may take to be told.
const LAST_WORDS: Duration = Duration::from_secs(5);
const KEY: &str = "uN0GbcNaFVdxIEwIExlZCA==";

/// A connection.
pub struct Channel {
    socket: WebSocketStream<TlsStream<TcpStream>>,
}

/// What was read.
#[derive(Debug)]
pub enum Read {
    /// A whole message.
    Message(String),
    /// The end, with the reason if the cloud gave one.
    End(String),
}

impl Channel {
    /// Connects; `Node_id` is `node`, whatever the certificate says.
    ///
    /// # Errors
    /// Refused; the text tells status and body, or the TLS alert.
    pub async fn open(websocket: SocketAddr, tls: Arc<ClientConfig>, node: &str) -> Result<Self> {
        let mut stream = dial(websocket, tls).await?;
        let request = format!(
            "GET /{PROJECT}/{node}/events HTTP/1.1\r\nHost: {websocket}\r\nUser-Agent: Go-http-client/1.1\r\nConnection: Upgrade\r\n\
             Connectionuse: msg\r\nNode_id: {node}\r\nProject_id: {PROJECT}\r\nSec-WebSocket-Key: {KEY}\r\n\
             Sec-WebSocket-Version: 13\r\nUpgrade: websocket\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await?;
        let (answer, rest) = read_head(&mut stream).await?;
        if answer.status != 101 {
            let mut body = rest;
            // Whatever ends it, this is what the cloud said.
            let _ = tokio::time::timeout(LAST_WORDS, stream.read_to_end(&mut body)).await;
            bail!("the upgrade was refused: {} {}", answer.status, String::from_utf8_lossy(&body));
        }
        let header = |name| answer.header(name).unwrap_or_default();
        ensure!(header("upgrade").eq_ignore_ascii_case("websocket"), "answer without Upgrade: websocket");
        ensure!(header("connection").to_ascii_lowercase().contains("upgrade"), "answer without Connection: Upgrade");
        ensure!(header("sec-websocket-accept") == derive_accept_key(KEY.as_bytes()), "wrong Sec-WebSocket-Accept");
        for name in ["sec-websocket-extensions", "sec-websocket-protocol"] {
            ensure!(answer.header(name).is_none(), "the answer has {name}, which a Go edge did not ask for");
        }
        let config = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
        Ok(Self { socket: WebSocketStream::from_partially_read(stream, rest, Role::Client, Some(config)).await })
    }

    /// Writes one message.
    ///
    /// # Errors
    /// The connection is broken.
    pub async fn write(&mut self, text: &str) -> Result<()> {
        let mut payload = text.as_bytes().to_vec();
        payload.push(b'\n');
        let last = payload.len().div_ceil(FRAGMENT) - 1;
        for (at, part) in payload.chunks(FRAGMENT).enumerate() {
            let code = OpCode::Data(if at == 0 { Data::Text } else { Data::Continue });
            self.socket.feed(Message::Frame(Frame::message(part.to_vec(), code, at == last))).await?;
        }
        self.socket.flush().await?;
        Ok(())
    }

    /// Reads one message.
    pub async fn read(&mut self) -> Read {
        loop {
            return match self.socket.next().await {
                Some(Ok(Message::Text(text))) => Read::Message(text.to_string()),
                Some(Ok(Message::Binary(bytes))) => Read::Message(String::from_utf8_lossy(&bytes).into_owned()),
                Some(Ok(Message::Close(frame))) => {
                    Read::End(frame.map(|frame| frame.reason.to_string()).unwrap_or_default())
                }
                Some(Ok(_)) => continue,
                Some(Err(error)) => Read::End(format!("broken: {error}")),
                None => Read::End(String::new()),
            };
        }
    }
}
