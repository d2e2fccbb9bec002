//! `Exec`: a command in a container, in Kubernetes' remote command protocol v5 over a WebSocket through the tunnel.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, SplitSink, SplitStream};
use futures_util::{FutureExt, SinkExt, Stream, StreamExt, TryStreamExt};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use link::frames::{Frame, Frames, Side, message};
use link::remote_command::{CLOSE, RESIZE, STATUS, STDERR, STDIN, STDOUT, V5};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use tonic::{Status, Streaming};

use super::v1::exec_request::Action;
use super::v1::exec_response::Content;
use super::v1::{ExecRequest, ExecResponse, Exit, StartExec};
use super::{Answers, Asker, check_names, request, status};
use crate::cloudstream::tunnels::{Answer, Io};

/// Bytes of standard input in one message.
const PIECE: usize = 16 << 10;
/// A command's words, and their bytes together.
const MAX_WORDS: usize = 256;
const MAX_COMMAND: usize = 16 << 10;
/// How long the client may take for its first message.
const START: Duration = Duration::from_secs(30);

type Socket = Frames<Box<dyn Io>>;
type Sink = SplitSink<Socket, Frame>;

/// Runs a command while the answers are read.
pub(super) fn run(asker: Asker, requests: Streaming<ExecRequest>) -> Answers<ExecResponse> {
    Box::pin(stream::once(begin(asker, requests)).try_flatten())
}

async fn begin(asker: Asker, mut requests: Streaming<ExecRequest>) -> Result<Running, Status> {
    let first = tokio::time::timeout(START, requests.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("the first message did not come within 30 s"))??;
    let Some(ExecRequest { action: Some(Action::Start(start)) }) = first else {
        return Err(Status::invalid_argument("the first message must be start"));
    };
    let target = target(&start)?;
    let node = asker.node_of_pod("create", "exec", (&start.namespace, &start.pod)).await?;
    let tunnel = asker.server.tunnels.open(&node).await.map_err(status::of_tunnel)?;
    let (head, io) = match tunnel.ask(request(&target, headers()?)?).await.map_err(status::of_tunnel)? {
        Answer::Upgraded(head, io) => (head, io),
        Answer::Plain(answer) => {
            status::content(&node, answer).await?;
            return Err(Status::internal(format!("node {node} answers without a stream")));
        }
    };
    if head.headers().get(header::SEC_WEBSOCKET_PROTOCOL).is_none_or(|chosen| chosen != V5) {
        return Err(Status::failed_precondition(format!(
            "node {node} does not speak {V5}: update its edgecore, or use kubectl exec"
        )));
    }
    let (sink, frames) = Frames::new(io, Side::Client).split();
    Ok(Running {
        input: Some(feed(start, requests, sink, node.clone()).boxed()),
        failed: None,
        output: Box::pin(output(frames, node)),
    })
}

/// A command that runs; dropping it ends its stream.
struct Running {
    /// Only an error of it ends the call: the command goes on without input.
    input: Option<BoxFuture<'static, Result<Sink, Status>>>,
    /// Why the input ended; told after what the command has written.
    failed: Option<Status>,
    output: Answers<ExecResponse>,
}

impl Stream for Running {
    type Item = Result<ExecResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        // Also while there is output: who interrupts a command that writes all the time must be heard.
        if let Some(input) = &mut self.input
            && let Poll::Ready(ended) = input.poll_unpin(cx)
        {
            match ended {
                // It lives as long as the command, or the node would see its end.
                Ok(sink) => self.input = Some(keep(sink).boxed()),
                Err(status) => (self.input, self.failed) = (None, Some(status)),
            }
        }
        // What has come is told first: the node may have ended the stream, and so the input.
        let output = self.output.poll_next_unpin(cx);
        if output.is_pending()
            && let Some(status) = self.failed.take()
        {
            self.output = Box::pin(stream::empty());
            return Poll::Ready(Some(Err(status)));
        }
        output
    }
}

async fn keep(sink: Sink) -> Result<Sink, Status> {
    std::future::pending::<()>().await;
    Ok(sink)
}

/// The kubelet's path of a command.
fn target(start: &StartExec) -> Result<String, Status> {
    let StartExec { namespace, pod, container, command, .. } = start;
    check_names([("start.namespace", namespace), ("start.pod", pod), ("start.container", container)])?;
    let length: usize = command.iter().map(String::len).sum();
    if command.is_empty() || command.len() > MAX_WORDS || length > MAX_COMMAND {
        return Err(Status::invalid_argument(format!(
            "start.command: 1 to {MAX_WORDS} words, together at most 16 KiB"
        )));
    }
    let mut target = format!("/exec/{namespace}/{pod}/{container}?output=1");
    // A terminal has one output.
    for (name, wanted) in [("input", start.stdin), ("error", !start.tty), ("tty", start.tty)] {
        if wanted {
            target.push_str(&format!("&{name}=1"));
        }
    }
    for word in command {
        target.push_str("&command=");
        target.extend(utf8_percent_encode(word, NON_ALPHANUMERIC));
    }
    Ok(target)
}

fn headers() -> Result<HeaderMap, Status> {
    let key = std::array::from_fn::<u8, 16, _>(|_| 0);
    let key = HeaderValue::from_str(&STANDARD.encode(key));
    let key = key.map_err(|_| Status::internal("a WebSocket's key cannot be made"))?;
    Ok(HeaderMap::from_iter([
        (header::CONNECTION, HeaderValue::from_static("Upgrade")),
        (header::UPGRADE, HeaderValue::from_static("websocket")),
        (header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13")),
        (header::SEC_WEBSOCKET_KEY, key),
        (header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(V5)),
    ]))
}

/// Passes on what the client says, until it has ended its half.
async fn feed(
    start: StartExec,
    mut requests: Streaming<ExecRequest>,
    mut sink: Sink,
    node: String,
) -> Result<Sink, Status> {
    let broken = |error: std::io::Error| Status::unavailable(format!("the stream of node {node} broke: {error}"));
    let mut has_input = start.stdin;
    while let Some(request) = requests.message().await? {
        match request.action {
            Some(Action::Stdin(_)) if !start.stdin => {
                return Err(Status::failed_precondition("stdin: start has not asked for it"));
            }
            Some(Action::Stdin(_)) if !has_input => {
                return Err(Status::failed_precondition("stdin: it was closed"));
            }
            Some(Action::Stdin(bytes)) => {
                for piece in bytes.chunks(PIECE) {
                    send(&mut sink, STDIN, piece).await.map_err(broken)?;
                }
            }
            Some(Action::Resize(_)) if !start.tty => {
                return Err(Status::failed_precondition("resize: start has asked for no terminal (tty)"));
            }
            Some(Action::Resize(size)) => {
                let is_size = |length: u32| (1..=65_535).contains(&length);
                if !is_size(size.width) || !is_size(size.height) {
                    return Err(Status::invalid_argument("resize: width and height must be 1 to 65535"));
                }
                let size = json!({"Width": size.width, "Height": size.height}).to_string();
                send(&mut sink, RESIZE, size.as_bytes()).await.map_err(broken)?;
            }
            Some(Action::CloseStdin(_)) if has_input => {
                has_input = false;
                send(&mut sink, CLOSE, &[STDIN]).await.map_err(broken)?;
            }
            Some(Action::CloseStdin(_)) => {}
            Some(Action::Start(_)) => return Err(Status::invalid_argument("start: one command in a call")),
            None => return Err(Status::invalid_argument("an ExecRequest needs start, stdin, resize or close_stdin")),
        }
    }
    if has_input {
        send(&mut sink, CLOSE, &[STDIN]).await.map_err(broken)?;
    }
    Ok(sink)
}

async fn send(sink: &mut Sink, channel: u8, content: &[u8]) -> std::io::Result<()> {
    let mut message = Vec::with_capacity(content.len() + 1);
    message.push(channel);
    message.extend_from_slice(content);
    sink.send(Frame::binary(message)).await
}

/// What comes from the command, its exit last.
fn output(frames: SplitStream<Socket>, node: String) -> impl Stream<Item = Result<ExecResponse, Status>> {
    stream::try_unfold(Some(frames), move |frames| {
        let node = node.clone();
        async move {
            let Some(mut frames) = frames else { return Ok(None) };
            loop {
                let message = message(&mut frames).await;
                let message = message
                    .map_err(|error| Status::unavailable(format!("the stream of node {node} broke: {error}")))?
                    .ok_or_else(|| {
                        Status::unavailable(format!(
                            "node {node} ended the stream and did not say how the command ended"
                        ))
                    })?;
                let content = match *message.1 {
                    [STDOUT, _, ..] => Content::Stdout(message.1[1..].to_vec()),
                    [STDERR, _, ..] => Content::Stderr(message.1[1..].to_vec()),
                    [STATUS, ..] => {
                        let exit = Content::Exit(exit(&node, &message.1[1..])?);
                        return Ok(Some((ExecResponse { content: Some(exit) }, None)));
                    }
                    // The first message of a channel is empty.
                    _ => continue,
                };
                return Ok(Some((ExecResponse { content: Some(content) }, Some(frames))));
            }
        }
    })
}

/// The end of a command from a Kubernetes `Status`.
fn exit(node: &str, status: &[u8]) -> Result<Exit, Status> {
    let found: Value = serde_json::from_slice(status)
        .map_err(|_| Status::internal(format!("node {node} does not say clearly how the command ended")))?;
    if found["status"] == "Success" {
        return Ok(Exit { code: 0, text: String::new() });
    }
    let text = found["message"].as_str().unwrap_or_default().to_owned();
    let causes = found["details"]["causes"].as_array().into_iter().flatten();
    let code = causes.filter(|cause| cause["reason"] == "ExitCode").find_map(|cause| cause["message"].as_str());
    if let Some(code) = code.and_then(|code| code.parse().ok()) {
        return Ok(Exit { code, text });
    }
    let code = found["code"].as_u64().and_then(|code| StatusCode::from_u16(u16::try_from(code).ok()?).ok());
    let code = status::code(code.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR));
    Err(Status::new(code, format!("the command could not be run on node {node}: {text}")))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_command_that_writes_all_the_time_hears_its_input() {
        let heard = Arc::new(AtomicBool::new(false));
        let hears = heard.clone();
        let input = async move {
            hears.store(true, Ordering::SeqCst);
            Err(Status::invalid_argument("enough"))
        };
        let line = || Ok(ExecResponse { content: Some(Content::Stdout(b"y\n".to_vec())) });
        let output = stream::repeat_with(line).take(2).chain(stream::pending());
        let mut running = Running { input: Some(input.boxed()), failed: None, output: Box::pin(output) };
        assert!(running.next().await.expect("a line").is_ok() && heard.load(Ordering::SeqCst));
        assert!(running.next().await.expect("another").is_ok(), "what was written comes first");
        assert_eq!(running.next().await.expect("the end").expect_err("refused").message(), "enough");
        assert!(running.next().await.is_none());
    }
}
