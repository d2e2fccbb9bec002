//! A process in a container and the streams to it: remote command protocol v4 of Kubernetes over SPDY/3.1.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::Mutex;

use super::spdy::{self, Frame, FrameReader, Opener};

/// The subprotocol.
pub const V4: &str = "v4.channel.k8s.io";
/// The longest status.
const MAX_STATUS: usize = 64 << 10;
/// In the order in which clients open them.
const ERROR: u32 = 1;
const STDIN: u32 = 3;
const STDOUT: u32 = 5;
const STDERR: u32 = 7;
const RESIZE: u32 = 9;

/// Which streams there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Streams {
    /// Standard input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error; not with a terminal.
    pub stderr: bool,
    /// A terminal.
    pub tty: bool,
}

/// What a process sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Standard output.
    Stdout(Bytes),
    /// Standard error.
    Stderr(Bytes),
    /// How it ended: a Status object of the Kubernetes API, JSON. The last thing that comes.
    Status(Bytes),
}

/// What goes to the process.
#[derive(Clone, Debug)]
pub struct RemoteInput<Io> {
    writer: Arc<Mutex<WriteHalf<Io>>>,
    streams: Streams,
}

/// What comes from it.
#[derive(Debug)]
pub struct RemoteOutput<Io> {
    reader: FrameReader<ReadHalf<Io>>,
    writer: Arc<Mutex<WriteHalf<Io>>>,
    status: Vec<u8>,
    /// Streams that may bring more.
    open: Vec<u32>,
    done: bool,
}

/// Opens the streams on a connection that was upgraded to SPDY/3.1 and [`V4`]. When both halves are dropped the connection
/// ends, and with it the process's streams.
///
/// # Errors
/// The connection broke.
pub async fn open<Io: AsyncRead + AsyncWrite>(
    io: Io,
    streams: Streams,
) -> io::Result<(RemoteInput<Io>, RemoteOutput<Io>)> {
    let (from, mut to) = tokio::io::split(io);
    let mut opener = Opener::default();
    let wanted = [
        (true, ERROR, "error"),
        (streams.stdin, STDIN, "stdin"),
        (streams.stdout, STDOUT, "stdout"),
        (streams.stderr && !streams.tty, STDERR, "stderr"),
        (streams.tty, RESIZE, "resize"),
    ];
    let wanted = wanted.into_iter().filter(|(wanted, ..)| *wanted);
    let mut open = Vec::new();
    for (_, stream, kind) in wanted {
        to.write_all(&opener.open(stream, &[("streamtype", kind)])).await?;
        if matches!(stream, ERROR | STDOUT | STDERR) {
            open.push(stream);
        }
    }
    to.flush().await?;
    let writer = Arc::new(Mutex::new(to));
    let input = RemoteInput { writer: Arc::clone(&writer), streams };
    Ok((input, RemoteOutput { reader: FrameReader::new(from), writer, status: Vec::new(), open, done: false }))
}

impl<Io: AsyncRead + AsyncWrite> RemoteInput<Io> {
    /// Writes to standard input; waits while the process does not read. Without standard input nothing happens.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn stdin(&self, bytes: &[u8]) -> io::Result<()> {
        if self.streams.stdin { self.write(STDIN, bytes, false).await } else { Ok(()) }
    }

    /// The process reads the end of its standard input; its output goes on.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn close_stdin(&self) -> io::Result<()> {
        if self.streams.stdin { self.write(STDIN, &[], true).await } else { Ok(()) }
    }

    /// Changes the terminal's size: `{"Width":80,"Height":24}`.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn resize(&self, size: &[u8]) -> io::Result<()> {
        if self.streams.tty { self.write(RESIZE, size, false).await } else { Ok(()) }
    }

    async fn write(&self, stream: u32, bytes: &[u8], fin: bool) -> io::Result<()> {
        let mut writer = self.writer.lock().await;
        for part in bytes.chunks(spdy::MAX_DATA) {
            writer.write_all(&spdy::data(stream, part, false)).await?;
        }
        if fin {
            writer.write_all(&spdy::data(stream, &[], true)).await?;
        }
        writer.flush().await
    }
}

impl<Io: AsyncRead + AsyncWrite> RemoteOutput<Io> {
    /// What comes next; `None` after the status. May be dropped while it waits.
    ///
    /// # Errors
    /// The connection broke before the status was complete.
    pub async fn next(&mut self) -> io::Result<Option<Output>> {
        while !self.done {
            let Some(frame) = self.reader.next().await? else { return self.end().map(Some) };
            match frame {
                Frame::Data { stream: ERROR, bytes, fin } => {
                    let room = MAX_STATUS.saturating_sub(self.status.len());
                    self.status.extend_from_slice(&bytes[..bytes.len().min(room)]);
                    self.closed(ERROR, fin);
                }
                Frame::Data { stream, bytes, fin } => {
                    self.closed(stream, fin);
                    match stream {
                        _ if bytes.is_empty() => {}
                        STDOUT => return Ok(Some(Output::Stdout(bytes))),
                        STDERR => return Ok(Some(Output::Stderr(bytes))),
                        _ => {}
                    }
                }
                Frame::Closed(stream) => self.closed(stream, true),
                Frame::Ping(number) => {
                    // Whoever writes at this moment gives a sign of life anyway.
                    if let Ok(mut writer) = self.writer.try_lock() {
                        writer.write_all(&spdy::pong(number)).await?;
                        writer.flush().await?;
                    }
                }
            }
            if self.open.is_empty() {
                return self.end().map(Some);
            }
        }
        Ok(None)
    }

    fn closed(&mut self, stream: u32, fin: bool) {
        self.open.retain(|open| !fin || *open != stream);
    }

    fn end(&mut self) -> io::Result<Output> {
        self.done = true;
        if self.status.is_empty() {
            let text = "the container runtime ended the stream without a status";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        Ok(Output::Status(std::mem::take(&mut self.status).into()))
    }
}

/// The exit code that a status tells; `None` when the process could not be run or waited for.
pub fn exit_code(status: &[u8]) -> Option<i32> {
    #[derive(Deserialize)]
    struct Status {
        #[serde(default)]
        status: String,
        #[serde(default)]
        reason: String,
        #[serde(default)]
        details: Details,
    }
    #[derive(Default, Deserialize)]
    struct Details {
        #[serde(default)]
        causes: Vec<Cause>,
    }
    #[derive(Deserialize)]
    struct Cause {
        #[serde(default)]
        reason: String,
        #[serde(default)]
        message: String,
    }
    let status: Status = serde_json::from_slice(status).ok()?;
    match (status.status.as_str(), status.reason.as_str()) {
        ("Success", _) => Some(0),
        (_, "NonZeroExitCode") => {
            let causes = status.details.causes.iter();
            causes.filter(|cause| cause.reason == "ExitCode").find_map(|cause| cause.message.parse().ok())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[test]
    fn exit_codes() {
        assert_eq!(exit_code(br#"{"metadata":{},"status":"Success"}"#), Some(0));
        let failed = br#"{"metadata":{},"status":"Failure","message":"command terminated with non-zero exit code",
            "reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"3"}]}}"#;
        assert_eq!(exit_code(failed), Some(3));
        assert_eq!(exit_code(br#"{"status":"Failure","reason":"InternalError","details":null}"#), None);
        assert_eq!(exit_code(br#"{"status":"Failure","reason":"InternalError"}"#), None);
    }

    #[tokio::test]
    async fn output_and_status_in_order_and_an_end_without_status_is_an_error() {
        let streams = Streams { stdin: true, stdout: true, stderr: true, tty: false };
        for with_status in [true, false] {
            let (runtime, client) = tokio::io::duplex(1 << 16);
            let (input, mut output) = open(client, streams).await.unwrap();
            let (mut from, mut to) = tokio::io::split(runtime);
            to.write_all(&spdy::data(STDOUT, b"out", false)).await.unwrap();
            to.write_all(&spdy::data(STDERR, b"err", true)).await.unwrap();
            if with_status {
                to.write_all(&spdy::data(ERROR, b"{}", true)).await.unwrap();
            }
            to.write_all(&spdy::data(STDOUT, b"more", false)).await.unwrap();
            to.shutdown().await.unwrap();
            assert_eq!(output.next().await.unwrap(), Some(Output::Stdout("out".into())));
            assert_eq!(output.next().await.unwrap(), Some(Output::Stderr("err".into())));
            assert_eq!(output.next().await.unwrap(), Some(Output::Stdout("more".into())));
            if with_status {
                assert_eq!(output.next().await.unwrap(), Some(Output::Status("{}".into())));
                assert_eq!(output.next().await.unwrap(), None);
            } else {
                assert!(output.next().await.is_err());
            }
            input.stdin(b"in").await.unwrap();
            input.close_stdin().await.unwrap();
            drop((input, output));
            let mut sent = Vec::new();
            from.read_to_end(&mut sent).await.unwrap();
            assert!(sent.ends_with(&[spdy::data(STDIN, b"in", false), spdy::data(STDIN, b"", true)].concat()));
        }
    }
}
