//! The tunnel to a Go cloudcore: frames of several connections, without flow control.
//!
//! One future reads and one writes, so that neither waits for the other. Each connection is a task with a bounded queue: bytes that
//! it does not take in time end it, and nobody else waits.

use std::collections::HashMap;
use std::time::Duration;

use edged::api::NodeApi;
use futures_util::{Sink, SinkExt, Stream, StreamExt};
use link::frames::{self, Frames, message};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};
use wire::tunnel::{Connect, Frame, Kind};

use super::Ended;
use super::connection::{self, Input};

/// Connections at once.
pub(super) const MAX_CONNECTIONS: usize = 512;
/// Frames that wait to be sent; each has at most [`connection::PIECE`] bytes.
const QUEUE: usize = 16;
/// What upstream's edges send, how often.
const PING: (&[u8], Duration) = (b"ping you", Duration::from_secs(5));
/// A Go cloud that says nothing for so long is gone, or waits for a client that takes nothing; then all others wait too.
const SILENCE: Duration = Duration::from_secs(60);
/// For the close frame.
const FAREWELL: Duration = Duration::from_secs(1);

/// What is open in a tunnel.
struct Tunnel {
    api: NodeApi,
    out: mpsc::Sender<Frame>,
    open: HashMap<u64, Open>,
    /// Each has sent its [`Kind::Remove`] when it ends.
    tasks: JoinSet<u64>,
}

/// A connection.
struct Open {
    input: Input,
    /// It is to end.
    end: CancellationToken,
    task: Id,
}

/// Serves until the tunnel ends. No connection is left then.
pub(super) async fn serve<S>(frames: Frames<S>, api: &NodeApi, stopping: &CancellationToken) -> Ended
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut sink, stream) = frames.with_pings(PING.0, PING.1, SILENCE).split();
    let (out, waiting) = mpsc::channel(QUEUE);
    let mut tunnel = Tunnel { api: api.clone(), out, open: HashMap::new(), tasks: JoinSet::new() };
    let ended = tokio::select! {
        () = stopping.cancelled() => Ended::Stopping,
        ended = tunnel.read(stream) => ended,
        ended = write(&mut sink, waiting) => ended,
    };
    tunnel.tasks.shutdown().await;
    // The cloud may be gone.
    let _ = tokio::time::timeout(FAREWELL, sink.close()).await;
    ended
}

/// Sends what waits; a flush for all that is there.
async fn write<W>(sink: &mut W, mut waiting: mpsc::Receiver<Frame>) -> Ended
where
    W: Sink<frames::Frame, Error = std::io::Error> + Unpin,
{
    let send = async {
        while let Some(first) = waiting.recv().await {
            let mut next = Some(first);
            while let Some(frame) = next {
                sink.feed(frames::Frame::text(frame.encode()?)).await?;
                next = waiting.try_recv().ok();
            }
            sink.flush().await?;
        }
        Ok::<_, Ended>(())
    };
    // The tunnel itself holds a sender.
    send.await.err().unwrap_or(Ended::Stopping)
}

impl Tunnel {
    async fn read<R>(&mut self, mut stream: R) -> Ended
    where
        R: Stream<Item = std::io::Result<frames::Frame>> + Unpin,
    {
        loop {
            let message = message(&mut stream);
            tokio::pin!(message);
            let message = loop {
                tokio::select! {
                    message = &mut message => break message,
                    Some(ended) = self.tasks.join_next_with_id() => self.ended(ended).await,
                }
            };
            let frame = match message {
                Ok(Some((_, bytes))) => Frame::decode(&bytes),
                Ok(None) => return Ended::Closed("it has ended the connection".to_owned()),
                Err(error) => return Ended::Broken(error),
            };
            match frame {
                Ok(Frame { kind: Kind::Close, data, .. }) => {
                    return Ended::Closed(String::from_utf8_lossy(&data).chars().take(500).collect());
                }
                Ok(frame) => self.take(frame).await,
                Err(error) => return Ended::Frame(error),
            }
        }
    }

    async fn take(&mut self, frame: Frame) {
        let Frame { id, kind, data } = frame;
        match kind {
            Kind::Data => {
                let Some(open) = self.open.get(&id).filter(|open| !open.end.is_cancelled()) else { return };
                if !open.input.offer(data) {
                    warn!(id, "a stream was ended: the process takes its input slower than the cloud sends it");
                    open.end.cancel();
                }
            }
            // A Go cloud says it again until it is confirmed.
            Kind::Remove => {
                if let Some(open) = self.open.get(&id) {
                    open.end.cancel();
                }
            }
            Kind::Unknown(number) => debug!(id, number, "a frame of an unknown type is left out"),
            // Read before.
            Kind::Close => {}
            Kind::Logs | Kind::Metrics | Kind::Exec | Kind::Attach => self.connect(id, kind, &data).await,
        }
    }

    async fn connect(&mut self, id: u64, kind: Kind, data: &[u8]) {
        if self.open.contains_key(&id) {
            debug!(id, "a connection's id came twice; the second is left out");
            return;
        }
        let request = Connect::parse(data).map_err(|error| super::chain(&error));
        let request = request.and_then(|connect| connection::request(&connect, kind));
        let request = match request {
            Ok(_) if self.open.len() >= MAX_CONNECTIONS => {
                let text = "too many open streams on this node: close some, or try again later";
                return self.refuse(id, kind, 429, text).await;
            }
            Ok(request) => request,
            Err(text) => return self.refuse(id, kind, 400, &text).await,
        };
        let (input, received) = connection::queue();
        let end = CancellationToken::new();
        let (api, out, ending) = (self.api.clone(), self.out.clone(), end.clone());
        let task = self.tasks.spawn(async move {
            let work = async {
                match kind {
                    Kind::Exec | Kind::Attach => connection::stream(&api, id, &request, received, &out).await,
                    _ => {
                        // What the cloud sends nevertheless is to take no room.
                        drop(received);
                        connection::relay(&api, id, request, &out).await;
                    }
                }
            };
            ending.run_until_cancelled(work).await;
            // Without a receiver the tunnel is at its end.
            let _ = out.send(Frame::remove(id)).await;
            id
        });
        self.open.insert(id, Open { input, end, task: task.id() });
    }

    /// Nobody else sends more than these few frames from here, so that reading goes on.
    async fn refuse(&self, id: u64, kind: Kind, status: u16, text: &str) {
        debug!(id, text, "a connection in the tunnel was refused");
        let text = match kind {
            Kind::Exec | Kind::Attach => connection::refusal(status, text),
            _ => format!("{text}\n"),
        };
        for frame in [Frame::data(id, text), Frame::remove(id)] {
            // Without a receiver the tunnel is at its end.
            let _ = self.out.send(frame).await;
        }
    }

    async fn ended(&mut self, ended: Result<(Id, u64), JoinError>) {
        match ended {
            Ok((_, id)) => drop(self.open.remove(&id)),
            Err(cause) => {
                let found = self.open.iter().find(|(_, open)| open.task == cause.id()).map(|(id, _)| *id);
                let Some(id) = found else { return };
                error!(id, %cause, "a connection of the tunnel failed");
                self.open.remove(&id);
                let _ = self.out.send(Frame::remove(id)).await;
            }
        }
    }
}
