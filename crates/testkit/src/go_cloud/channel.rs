//! The message channel: mTLS, an upgrade on any path, text messages in upstream's fragments.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Result;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use http::{Request, Response};
use link::identity::Identity;
use link::tls::{Certificate, ClientAuth, server};
use rustls::pki_types::CertificateDer;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};
use tokio_util::sync::CancellationToken;

use super::{Answer, Connection, QUEUE, Received, Recorded, Shared, recorded};

/// Payloads up to this fit the Go server's write buffer together with the frame's head.
const ONE_FRAME: usize = 4082;
/// Payloads up to this are two fragments.
const TWO_FRAMES: usize = 8192;
const HANDSHAKE: Duration = Duration::from_secs(10);
const MAX_MESSAGE: usize = 64 << 20;
/// Sources that a Go cloud keeps to itself: CloudHub drops what an edge sends with them.
const CLOUD_SOURCES: [&str; 5] = ["cloudhub", "cloudStream", "devicecontroller", "edgecontroller", "synccontroller"];

type Socket = WebSocketStream<TlsStream<TcpStream>>;

pub(super) fn serve(
    listener: TcpListener,
    own: &Certificate,
    ca: CertificateDer<'static>,
    shared: Arc<Shared>,
    recorded: Arc<Recorded>,
) -> Result<impl Future<Output = ()> + Send + use<>> {
    // The Go server advertises h2 as well; an edge must not choose it.
    let tls = TlsAcceptor::from(server(own, ClientAuth::Required(ca), &[b"h2", b"http/1.1"])?);
    Ok(async move {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => if let Ok((tcp, _)) = accepted {
                    connections.spawn(connection(tcp, tls.clone(), shared.clone(), recorded.clone()));
                },
                _ = connections.join_next(), if !connections.is_empty() => {}
            }
        }
    })
}

async fn connection(tcp: TcpStream, tls: TlsAcceptor, shared: Arc<Shared>, recorded: Arc<Recorded>) {
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, tls.accept(tcp)).await else { return };
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        shared.change(|state| state.complaints.push("the edge chose h2 by ALPN".to_owned()));
        return;
    }
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).map(|der| der.to_vec());
    let peer = certificate.and_then(|der| Identity::read(&der).ok()).unwrap_or_else(nobody);
    let mut upgrade = (String::new(), Vec::new());
    #[allow(clippy::result_large_err, reason = "the library's signature")]
    let note = |request: &Request<()>, answer: Response<()>| {
        let header = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
            (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        upgrade = (request.uri().path().to_owned(), request.headers().iter().map(header).collect());
        Ok(answer)
    };
    let limits = WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
    let accepted = tokio_tungstenite::accept_hdr_async_with_config(stream, note, Some(limits)).await;
    let Ok(socket) = accepted else { return };
    let (path, headers) = upgrade;
    let (sender, waiting) = mpsc::channel(QUEUE);
    let header = |wanted: &str| headers.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
    let node = header("node_id").unwrap_or_default().to_owned();
    let mut wrong = Vec::new();
    if node.is_empty() {
        wrong.push("the upgrade names no node_id".to_owned());
    }
    if header("connectionuse") != Some("msg") {
        wrong.push("connectionuse is not msg: the server would never read".to_owned());
    }
    for unwanted in ["origin", "sec-websocket-extensions", "sec-websocket-protocol"] {
        if header(unwanted).is_some() {
            wrong.push(format!("the upgrade has a header {unwanted}"));
        }
    }
    let hang_up = CancellationToken::new();
    let gone = hang_up.clone();
    let number = shared.change(|state| {
        state.complaints.append(&mut wrong);
        state.connections.push(Connection { path, headers, peer, open: true, sender: sender.clone(), hang_up: gone });
        state.connections.len() - 1
    });
    let (sink, stream) = socket.split();
    tokio::select! {
        () = hang_up.cancelled() => {}
        () = write(sink, waiting) => {}
        () = read(stream, number, &node, &shared, &recorded, &sender) => {}
    }
    shared.change(|state| state.connections[number].open = false);
}

fn nobody() -> Identity {
    Identity { common_name: String::new(), organisations: Vec::new(), not_before: UNIX_EPOCH, not_after: UNIX_EPOCH }
}

async fn write(mut sink: SplitSink<Socket, Message>, mut waiting: mpsc::Receiver<String>) {
    while let Some(mut text) = waiting.recv().await {
        text.push('\n');
        for frame in fragments(text.into_bytes()) {
            if sink.send(Message::Frame(frame)).await.is_err() {
                return;
            }
        }
    }
}

/// As gorilla/websocket writes with a buffer of 4096 bytes: small ones whole, middle ones in two, large ones as one fragment
/// and an empty last one.
fn fragments(mut payload: Vec<u8>) -> Vec<Frame> {
    let text = OpCode::Data(Data::Text);
    let more = OpCode::Data(Data::Continue);
    match payload.len() {
        0..=ONE_FRAME => vec![Frame::message(payload, text, true)],
        size if size <= TWO_FRAMES => {
            let rest = payload.split_off(ONE_FRAME);
            vec![Frame::message(payload, text, false), Frame::message(rest, more, true)]
        }
        _ => vec![Frame::message(payload, text, false), Frame::message(Vec::new(), more, true)],
    }
}

async fn read(
    mut stream: SplitStream<Socket>,
    number: usize,
    node: &str,
    shared: &Shared,
    recorded: &Recorded,
    sender: &mpsc::Sender<String>,
) {
    while let Some(Ok(incoming)) = stream.next().await {
        let text = match incoming {
            Message::Text(text) => text,
            Message::Binary(_) => {
                shared.change(|state| state.complaints.push("a message is binary".to_owned()));
                continue;
            }
            Message::Close(_) => return,
            _ => continue,
        };
        // A Go cloud closes the connection when it cannot decode.
        let Ok(message) = serde_json::from_str::<Value>(&text) else {
            shared.change(|state| state.complaints.push("a message is no JSON".to_owned()));
            return;
        };
        let mut wrong = faults(&text, &message);
        let received = Received { connection: number, message };
        let resource = received.route("resource").to_owned();
        let planned = shared.change(|state| {
            state.complaints.append(&mut wrong);
            state.received.push(received.clone());
            state.answers.get(&resource).cloned()
        });
        let answers = match planned {
            Some(Answer::Silence) => Vec::new(),
            Some(Answer::Content(content)) if recorded::wants_answer(&received) => {
                vec![recorded::answer_with(&received, content)]
            }
            _ => match shared.change(|state| state.pods.patch(&received)) {
                Some(answers) => answers,
                None => recorded.answers(&received, node),
            },
        };
        for answer in answers {
            if sender.send(answer.to_string()).await.is_err() {
                return;
            }
        }
    }
}

/// What a Go cloud would choke on or drop silently.
fn faults(text: &str, message: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    let header = &message["header"];
    let route = |part: &str| message["route"][part].as_str().unwrap_or_default();
    let about = format!("{} {}", route("operation"), route("resource"));
    let mut fault = |what: &str| faults.push(format!("{about}: {what}"));
    let id = header["msg_id"].as_str().unwrap_or_default();
    if id.len() != 36 || id.bytes().any(|b| b.is_ascii_uppercase()) {
        fault("msg_id is no lower-case UUID");
    }
    if header["timestamp"].as_i64().is_none_or(|at| at <= 0) {
        fault("timestamp is no number of milliseconds");
    }
    if header.get("sync").is_some() {
        fault("header.sync is for within a process");
    }
    if message["route"].get("destination").is_some() {
        fault("route.destination is set");
    }
    if !text.ends_with('\n') {
        fault("the newline at the end is missing");
    }
    let answers = matches!(route("operation"), "response" | "error");
    if answers && header["parent_msg_id"].as_str().unwrap_or_default().is_empty() {
        fault("it answers nothing");
    }
    if !answers && CLOUD_SOURCES.contains(&route("source")) {
        fault("a cloud drops messages with this source");
    }
    if route("operation").is_empty() || route("resource").is_empty() {
        fault("operation or resource is empty");
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fragments_are_those_of_the_go_server() {
        let lengths = |size: usize| -> Vec<(usize, bool)> {
            fragments(vec![b'x'; size]).iter().map(|f| (f.payload().len(), f.header().is_final)).collect()
        };
        assert_eq!(lengths(4082), [(4082, true)]);
        assert_eq!(lengths(4083), [(4082, false), (1, true)]);
        assert_eq!(lengths(8193), [(8193, false), (0, true)]);
    }
}
