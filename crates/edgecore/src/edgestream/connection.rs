//! One connection in a Go cloud's tunnel.

use std::convert::Infallible;
use std::fmt::Write;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use edged::api::NodeApi;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::BodyExt;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex, split};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tracing::debug;
use wire::tunnel::{Connect, Frame, Kind, MAX_DATA};

/// Bytes of a stream in one frame.
pub(super) const PIECE: usize = 4 << 10;
/// What a frame that waits counts for beside its bytes.
const FRAME: usize = 64;
/// Bytes from the cloud that wait for a connection.
const ROOM: usize = MAX_DATA + FRAME;
/// Bytes between a stream and the HTTP server that has it.
const PIPE: usize = 8 << 10;

/// Bytes that wait, and the room that they take.
pub(super) type Received = mpsc::Receiver<(Bytes, OwnedSemaphorePermit)>;

/// Where the cloud's bytes go.
pub(super) struct Input {
    sender: mpsc::Sender<(Bytes, OwnedSemaphorePermit)>,
    room: Arc<Semaphore>,
}

/// A queue for the cloud's bytes.
pub(super) fn queue() -> (Input, Received) {
    let (sender, receiver) = mpsc::channel(ROOM / FRAME);
    (Input { sender, room: Arc::new(Semaphore::new(ROOM)) }, receiver)
}

impl Input {
    /// False when there is no room. A connection that reads nothing (logs) or nothing any more takes everything.
    pub(super) fn offer(&self, data: Bytes) -> bool {
        if self.sender.is_closed() {
            return true;
        }
        let Ok(weight) = u32::try_from(data.len() + FRAME) else { return false };
        let Ok(place) = Arc::clone(&self.room).try_acquire_many_owned(weight) else { return false };
        !matches!(self.sender.try_send((data, place)), Err(mpsc::error::TrySendError::Full(_)))
    }
}

/// The request that the cloud means; else what is wrong with it.
pub(super) fn request(connect: &Connect, kind: Kind) -> Result<Request<()>, String> {
    let method = match (kind, &connect.method) {
        (Kind::Exec | Kind::Attach, Some(method)) => method.parse().map_err(|_| "this is no method".to_owned())?,
        _ => Method::GET,
    };
    let target = connect.target();
    let uri = target.parse().ok().filter(|_| target.starts_with('/'));
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = uri.ok_or_else(|| format!("{:?} is no path of the node's API", connect.path))?;
    for (name, values) in &connect.headers {
        for value in values {
            match (name.parse::<HeaderName>(), HeaderValue::from_str(value)) {
                (Ok(header::HOST), _) => {}
                (Ok(name), Ok(value)) => drop(request.headers_mut().append(name, value)),
                _ => return Err(format!("{name:?} is no header")),
            }
        }
    }
    Ok(request)
}

/// A refusal for one who waits for an answer of HTTP/1.1.
pub(super) fn refusal(status: u16, text: &str) -> String {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}\n",
        text.len() + 1
    )
}

/// Asks and sends the answer's text, whatever its status: the tunnel has no place for that.
pub(super) async fn relay(api: &NodeApi, id: u64, mut request: Request<()>, out: &mpsc::Sender<Frame>) {
    // Nor for a header that would say how the text is packed.
    request.headers_mut().remove(header::ACCEPT_ENCODING);
    let mut body = api.answer(request).await.into_body();
    while let Some(frame) = body.frame().await {
        let mut data = match frame {
            Ok(frame) => frame.into_data().unwrap_or_default(),
            Err(error) => return debug!(id, %error, "an answer in the tunnel broke off"),
        };
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(PIECE));
            if out.send(Frame::data(id, piece)).await.is_err() {
                return;
            }
        }
    }
}

/// Lets an HTTP server have the connection's bytes, with the request as the first, until it closes.
pub(super) async fn stream(
    api: &NodeApi,
    id: u64,
    request: &Request<()>,
    mut received: Received,
    out: &mpsc::Sender<Frame>,
) {
    let (ours, theirs) = duplex(PIPE);
    let service = service_fn(|request| async move { Ok::<_, Infallible>(api.answer(request).await) });
    let mut server = http1::Builder::new();
    let server = server.keep_alive(false).header_read_timeout(None).serve_connection(TokioIo::new(theirs), service);
    // It ends with the upgrade, and its side of the pipe then belongs to whoever has that.
    let server = async {
        if let Err(error) = server.with_upgrades().await {
            debug!(id, %error, "a stream in the tunnel broke");
        }
    };
    let (mut from_server, mut to_server) = split(ours);
    let send = async {
        let mut sent = to_server.write_all(head(request).as_bytes()).await;
        while let (Ok(()), Some((data, _place))) = (&sent, received.recv().await) {
            sent = to_server.write_all(&data).await;
        }
        // What the server has said before it left is still to be read.
        std::future::pending::<()>().await;
    };
    let receive = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(PIECE);
            match (&mut from_server).take(PIECE as u64).read_buf(&mut buffer).await {
                Ok(read) if read > 0 && out.send(Frame::data(id, buffer.split().freeze())).await.is_ok() => {}
                _ => return,
            }
        }
    };
    tokio::select! {
        () = send => {}
        _ = async { tokio::join!(server, receive) } => {}
    }
}

fn head(request: &Request<()>) -> String {
    let mut head = format!("{} {} HTTP/1.1\r\nHost: localhost\r\n", request.method(), request.uri());
    for (name, value) in request.headers() {
        // Made of text; writing into a string cannot fail.
        let _ = write!(head, "{name}: {}\r\n", String::from_utf8_lossy(value.as_bytes()));
    }
    head.push_str("\r\n");
    head
}
