//! HTTP/1.1 as Go's client writes it, byte by byte: header names and their order as recorded, a body on a GET, no `Connection`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// For one exchange together.
const DEADLINE: Duration = Duration::from_secs(30);
/// Longer heads are no answer.
const MAX_HEAD: usize = 16 << 10;
/// The limit of upstream's client for an answer's body.
const MAX_BODY: usize = 1 << 20;

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// Headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Connects with TLS; the server's name is the address, as an edge with an IP in its configuration has it.
///
/// # Errors
/// Nobody listens, or TLS failed.
pub async fn dial(server: SocketAddr, tls: Arc<ClientConfig>) -> Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(server).await.with_context(|| format!("connecting to {server}"))?;
    let name = ServerName::from(server.ip());
    TlsConnector::from(tls).connect(name, tcp).await.with_context(|| format!("TLS with {server}"))
}

/// One exchange on a connection of its own. `Host` comes first by itself.
///
/// # Errors
/// No answer came.
pub async fn exchange(
    server: SocketAddr,
    tls: Arc<ClientConfig>,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Result<Answer> {
    tokio::time::timeout(DEADLINE, async {
        let mut stream = dial(server, tls).await?;
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {server}\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += "\r\n";
        stream.write_all(&[head.as_bytes(), body].concat()).await?;
        stream.flush().await?;
        let (mut answer, rest) = read_head(&mut stream).await?;
        let length = answer.header("content-length").map_or(Ok(0), str::parse::<usize>)?;
        if length > MAX_BODY || method == "HEAD" {
            answer.body = rest;
            return Ok(answer);
        }
        answer.body = vec![0; length];
        let begun = rest.len().min(length);
        answer.body[..begun].copy_from_slice(&rest[..begun]);
        stream.read_exact(&mut answer.body[begun..]).await.context("the answer's body broke off")?;
        Ok(answer)
    })
    .await
    .with_context(|| format!("{method} {path}: no answer"))?
}

/// Reads status and headers; also what came behind them already.
pub(super) async fn read_head(stream: &mut TlsStream<TcpStream>) -> Result<(Answer, Vec<u8>)> {
    let mut read = Vec::new();
    let end = loop {
        if let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
        if read.len() > MAX_HEAD {
            bail!("the answer's head is longer than {MAX_HEAD} bytes");
        }
        if stream.read_buf(&mut read).await.context("the connection ended without an answer")? == 0 {
            bail!("the connection ended without an answer");
        }
    };
    let head = std::str::from_utf8(&read[..end]).context("the answer's head is no text")?;
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).context("no status line")?.parse()?;
    let header =
        |line: &str| line.split_once(':').map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()));
    let headers = lines.filter_map(header).collect();
    Ok((Answer { status, headers, body: Vec::new() }, read[end + 4..].to_vec()))
}
