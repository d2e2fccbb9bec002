//! Streams into containers: SPDY, WebSockets, and in process.

use std::time::Duration;

use bytes::Bytes;
use edged::access::{ContainerName, ExecOptions};
use edged::streams::dial::Io;
use edged::streams::remote::{self, Output, RemoteInput, RemoteOutput, Streams, exit_code};
use edged::streams::spdy::{self, Frame, FrameReader, Opener};
use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::node_api::NodeApi;
use crate::site::PATIENCE;
use crate::{Site, pod, pod_with};

const SPDY: [(&str, &str); 3] =
    [("connection", "Upgrade"), ("upgrade", "SPDY/3.1"), ("x-stream-protocol-version", "v4.channel.k8s.io")];
const WEBSOCKET: [(&str, &str); 4] = [
    ("connection", "Upgrade"),
    ("upgrade", "websocket"),
    ("sec-websocket-version", "13"),
    ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
];
const ALL: Streams = Streams { stdin: true, stdout: true, stderr: true, tty: false };
const TERMINAL: Streams = Streams { stdin: true, stdout: true, stderr: false, tty: true };

/// What a process wrote, and its exit code.
#[derive(Debug, Default, PartialEq)]
struct Said {
    stdout: String,
    stderr: String,
    code: Option<i32>,
}

/// A client of one kind or the other.
enum Client {
    Spdy(RemoteInput<Io>, RemoteOutput<Io>),
    Socket(Box<WebSocketStream<Io>>),
}

impl Client {
    async fn spdy(api: &NodeApi, path: &str, streams: Streams) -> Self {
        let (head, io) = api.upgrade(path, &SPDY).await.unwrap();
        assert_eq!(head["x-stream-protocol-version"], "v4.channel.k8s.io");
        let (input, output) = remote::open(io, streams).await.unwrap();
        Client::Spdy(input, output)
    }

    async fn socket(api: &NodeApi, path: &str, protocol: &str) -> Self {
        let headers = [&WEBSOCKET[..], &[("sec-websocket-protocol", protocol)]].concat();
        let (head, io) = api.upgrade(path, &headers).await.unwrap();
        assert_eq!(head["sec-websocket-protocol"], protocol);
        assert_eq!(head["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        Client::Socket(Box::new(WebSocketStream::from_raw_socket(io, Role::Client, None).await))
    }

    async fn stdin(&mut self, bytes: &[u8]) {
        match self {
            Client::Spdy(input, _) => input.stdin(bytes).await.unwrap(),
            Client::Socket(socket) => socket.send(Message::Binary([b"\0", bytes].concat().into())).await.unwrap(),
        }
    }

    async fn close_stdin(&mut self) {
        match self {
            Client::Spdy(input, _) => input.close_stdin().await.unwrap(),
            Client::Socket(socket) => socket.send(Message::Binary(Bytes::from_static(&[255, 0]))).await.unwrap(),
        }
    }

    async fn resize(&mut self, width: u16, height: u16) {
        let size = json!({"Width": width, "Height": height}).to_string();
        match self {
            Client::Spdy(input, _) => input.resize(size.as_bytes()).await.unwrap(),
            Client::Socket(socket) => {
                socket.send(Message::Binary([b"\x04", size.as_bytes()].concat().into())).await.unwrap();
            }
        }
    }

    /// Reads one piece; false at the end.
    async fn read(&mut self, said: &mut Said) -> bool {
        let (channel, bytes) = match self {
            Client::Spdy(_, output) => match timeout(PATIENCE, output.next()).await.expect("output").unwrap() {
                Some(Output::Stdout(bytes)) => (1, bytes),
                Some(Output::Stderr(bytes)) => (2, bytes),
                Some(Output::Status(bytes)) => (3, bytes),
                None => return false,
            },
            Client::Socket(socket) => match timeout(PATIENCE, socket.next()).await.expect("output") {
                Some(Ok(Message::Binary(bytes))) => (bytes[0], bytes.slice(1..)),
                Some(Ok(Message::Close(_))) | None => return false,
                other => panic!("{other:?}"),
            },
        };
        let text = std::str::from_utf8(&bytes).unwrap();
        match channel {
            1 => said.stdout.push_str(text),
            2 => said.stderr.push_str(text),
            3 if !bytes.is_empty() => said.code = Some(exit_code(&bytes).unwrap_or(-1)),
            _ => {}
        }
        true
    }

    async fn until(&mut self, said: &mut Said, text: &str) {
        while !said.stdout.contains(text) {
            assert!(self.read(said).await, "ended before {text:?}: {said:?}");
        }
    }

    async fn rest(mut self) -> Said {
        let mut said = Said::default();
        while self.read(&mut said).await {}
        said
    }
}

fn exec(query: &str, command: &str) -> String {
    let command: String = command.bytes().map(|byte| format!("%{byte:02x}")).collect();
    format!("/exec/default/box/main?{query}&command=sh&command=-c&command={command}")
}

#[tokio::test]
async fn t79_commands_with_their_streams_and_exit_codes() {
    let site = Site::start().await;
    let api = NodeApi::find(&site.cloud, &site.settings.root_dir).await;
    site.run(pod("box")).await;
    for kind in ["spdy", "v5.channel.k8s.io", "v4.channel.k8s.io"] {
        let open = async |path: String, streams: Streams| match kind {
            "spdy" => Client::spdy(&api, &path, streams).await,
            protocol => Client::socket(&api, &path, protocol).await,
        };
        // Both streams and an exit code.
        let path = exec("output=1&error=1", "echo out; echo err >&2; exit 3");
        let said = open(path, Streams { stdin: false, ..ALL }).await.rest().await;
        assert_eq!(said, Said { stdout: "out\n".into(), stderr: "err\n".into(), code: Some(3) }, "{kind}");
        // Standard input ends while the output goes on; v4 over WebSocket has no way to say so.
        if kind != "v4.channel.k8s.io" {
            let path = exec("input=1&output=1&error=1", "wc -c; echo more; cat; echo end");
            let mut client = open(path, ALL).await;
            let long = vec![b'x'; 300_000];
            client.stdin(&long).await;
            client.close_stdin().await;
            let said = client.rest().await;
            assert_eq!((said.stdout.as_str(), said.code), ("300000\nmore\nend\n", Some(0)), "{kind}");
        }
        // Much output arrives whole.
        let path = exec("output=1&error=1", "head -c 3000000 /dev/zero | tr '\\0' y; echo");
        let said = open(path, Streams { stdin: false, ..ALL }).await.rest().await;
        assert!(said.stdout.len() == 3_000_001 && said.code == Some(0), "{kind}: {}", said.stdout.len());
        // A terminal, and its size.
        let path = exec("input=1&output=1&tty=1", "read a; stty size; read b; stty size; tty; exit 7");
        let mut client = open(path, TERMINAL).await;
        let mut said = Said::default();
        client.resize(100, 40).await;
        // Both ways lead to the runtime on their own: give the size the start it needs.
        wait_for_size(&mut client, &mut said, "40 100").await;
        client.resize(77, 33).await;
        client.stdin(b"\n").await;
        while client.read(&mut said).await {}
        assert!(said.stdout.contains("/dev/pts/") && said.code == Some(7), "{kind}: {said:?}");
    }
    // A command that is not there has no exit code, but a status.
    let path = "/exec/default/box/main?output=1&command=no-such-command";
    let said = Client::socket(&api, path, "v5.channel.k8s.io").await.rest().await;
    assert!(said.code.is_some_and(|code| code != 0), "{said:?}");
    refusals(&api).await;
    in_process(&site).await;
}

/// Sends a line when the terminal has its size, and waits for what `stty` says.
async fn wait_for_size(client: &mut Client, said: &mut Said, size: &str) {
    tokio::time::sleep(Duration::from_millis(300)).await;
    client.stdin(b"\n").await;
    client.until(said, size).await;
}

async fn refusals(api: &NodeApi) {
    for (path, status, text) in [
        ("/exec/default/none/main?output=1&command=ls", 404, "pod \"none\" does not exist"),
        ("/exec/default/box/other?output=1&command=ls", 404, "container not found (\"other\")"),
        ("/exec/default/box/wrong-uid/main?output=1&command=ls", 404, "pod \"box\" does not exist"),
        ("/exec/default/box/main?command=ls", 400, "you must specify at least 1 of stdin, stdout, stderr"),
        ("/exec/default/box/main?output=1", 400, "command: a command is needed"),
        ("/portForward/default/none", 404, "pod \"none\" does not exist"),
        ("/portForward/default/box?port=http", 400, "port: \"http\" is no port"),
    ] {
        let (refused, why) = api.upgrade(path, &SPDY).await.map(|_| ()).unwrap_err();
        assert!(refused == status && why.starts_with(text), "{path}: {refused} {why}");
    }
    let (status, text) = api.get("/exec/default/box/main?output=1&command=ls").await;
    assert!(status == 400 && text.starts_with("Upgrade request required"), "{text}");
    // Commands to their end, without streams.
    assert_eq!(api.request("POST", "/run/default/box/main?cmd=echo%20a%20%20b").await, (200, "a b\n".into()));
    let (status, text) = api.request("POST", "/run/default/box/main?cmd=seq%2040000").await;
    assert_eq!((status, text.len()), (200, 228_894), "not cut");
    let (status, text) = api.request("POST", "/run/default/box/uid-box/main?cmd=ls%20/none").await;
    assert!(status == 500 && text.starts_with("command 'ls /none' exited with 1: "), "{text}");
    assert_eq!(api.get("/run/default/box/main?cmd=ls").await.0, 405);
}

/// What other modules of the program call.
async fn in_process(site: &Site) {
    let access = site.access.clone().unwrap();
    let access = access.borrow().clone().unwrap();
    let name = ContainerName { namespace: "default".into(), pod: "box".into(), uid: None, container: "main".into() };
    let options = ExecOptions { command: vec!["cat".into()], streams: ALL };
    let mut session = access.exec(&name, &options).await.unwrap();
    session.input.stdin(b"hello").await.unwrap();
    session.input.close_stdin().await.unwrap();
    assert_eq!(session.output.next().await.unwrap(), Some(Output::Stdout("hello".into())));
    let Some(Output::Status(status)) = session.output.next().await.unwrap() else { panic!("no status") };
    assert_eq!((exit_code(&status), session.output.next().await.unwrap()), (Some(0), None));
}

#[tokio::test]
async fn t79_attach_and_port_forward() {
    let site = Site::start().await;
    let api = NodeApi::find(&site.cloud, &site.settings.root_dir).await;
    site.run(pod_with("box", |pod| {
        pod["spec"]["containers"][0]["stdin"] = json!(true);
        let serve =
            "mkdir /www; echo page >/www/index.html; httpd -p 8080 -h /www; while read line; do echo got $line; done";
        pod["spec"]["containers"][0]["command"] = json!(["sh", "-c", serve]);
    }))
    .await;
    for kind in ["spdy", "v5.channel.k8s.io"] {
        let path = "/attach/default/box/main?input=1&output=1&error=1";
        let mut client = match kind {
            "spdy" => Client::spdy(&api, path, ALL).await,
            protocol => Client::socket(&api, path, protocol).await,
        };
        let mut said = Said::default();
        client.stdin(b"ping\n").await;
        client.until(&mut said, "got ping\n").await;
    }
    // SPDY as it is, and SPDY in a WebSocket.
    for tunnelled in [false, true] {
        let mut forward = Forward::open(&api, tunnelled).await;
        for request in 0..2 {
            let page = forward.get(request, 8080).await;
            assert!(page.contains("200 OK") && page.ends_with("page\n"), "{page}");
        }
        let refused = forward.get(2, 9999).await;
        assert!(refused.contains("error: ") && refused.contains("9999"), "{refused}");
    }
}

/// A client of port-forward, speaking SPDY.
struct Forward {
    reader: FrameReader<Box<dyn tokio::io::AsyncRead + Send + Unpin>>,
    writer: Box<dyn tokio::io::AsyncWrite + Send + Unpin>,
    opener: Opener,
    _tasks: tokio::task::JoinSet<()>,
}

impl Forward {
    async fn open(api: &NodeApi, tunnelled: bool) -> Self {
        let mut tasks = tokio::task::JoinSet::new();
        let path = "/portForward/default/box";
        if !tunnelled {
            let headers = [SPDY[0], SPDY[1], ("x-stream-protocol-version", "portforward.k8s.io")];
            let (_, io) = api.upgrade(path, &headers).await.unwrap();
            let (reader, writer) = tokio::io::split(io);
            return Self {
                reader: FrameReader::new(Box::new(reader)),
                writer: Box::new(writer),
                opener: Opener::default(),
                _tasks: tasks,
            };
        }
        let protocol = ("sec-websocket-protocol", "SPDY/3.1+portforward.k8s.io");
        let (head, io) = api.upgrade(path, &[&WEBSOCKET[..], &[protocol]].concat()).await.unwrap();
        assert_eq!(head["sec-websocket-protocol"], protocol.1);
        let (mut sink, mut messages) = WebSocketStream::from_raw_socket(io, Role::Client, None).await.split();
        let (near, far) = tokio::io::duplex(1 << 16);
        let (mut from, mut to) = tokio::io::split(far);
        tasks.spawn(async move {
            while let Some(Ok(message)) = messages.next().await {
                if let Message::Binary(bytes) = message {
                    to.write_all(&bytes).await.unwrap();
                }
            }
        });
        tasks.spawn(async move {
            let mut buffer = [0; 1000];
            while let Ok(read @ 1..) = tokio::io::AsyncReadExt::read(&mut from, &mut buffer).await {
                sink.send(Message::Binary(Bytes::copy_from_slice(&buffer[..read]))).await.unwrap();
            }
        });
        let (reader, writer) = tokio::io::split(near);
        Self {
            reader: FrameReader::new(Box::new(reader)),
            writer: Box::new(writer),
            opener: Opener::default(),
            _tasks: tasks,
        }
    }

    /// One connection: a pair of streams. What came back, and what the error stream said.
    async fn get(&mut self, request: u32, port: u16) -> String {
        let (error, data) = (4 * request + 1, 4 * request + 3);
        let (port, request) = (port.to_string(), request.to_string());
        let headers = |kind| [("port", port.as_str()), ("requestid", request.as_str()), ("streamtype", kind)];
        for frame in [
            self.opener.open(error, &headers("error")),
            spdy::data(error, b"", true),
            self.opener.open(data, &headers("data")),
            spdy::data(data, b"GET /index.html HTTP/1.0\r\n\r\n", false),
        ] {
            self.writer.write_all(&frame).await.unwrap();
        }
        self.writer.flush().await.unwrap();
        let (mut said, mut ended) = (String::new(), 0);
        while ended < 2 {
            let frame = timeout(PATIENCE, self.reader.next()).await.expect("a frame").unwrap().expect("not the end");
            match frame {
                Frame::Data { stream, bytes, fin } if stream == error || stream == data => {
                    if stream == error && !bytes.is_empty() {
                        said.push_str("error: ");
                    }
                    said.push_str(std::str::from_utf8(&bytes).unwrap());
                    ended += u8::from(fin);
                }
                Frame::Closed(stream) if stream == error || stream == data => ended += 1,
                _ => {}
            }
        }
        said
    }
}

#[tokio::test]
async fn t79_silent_streams_are_closed_and_a_client_that_goes_ends_what_it_began() {
    let limit = Duration::from_secs(3);
    let site = Site::start_with(|settings| settings.streaming_idle_timeout = limit).await;
    let api = NodeApi::find(&site.cloud, &site.settings.root_dir).await;
    site.run(pod("box")).await;
    for kind in ["spdy", "v5.channel.k8s.io"] {
        let path = exec("input=1&output=1", "echo begun; exec cat");
        let mut client = match kind {
            "spdy" => Client::spdy(&api, &path, Streams { stderr: false, ..ALL }).await,
            protocol => Client::socket(&api, &path, protocol).await,
        };
        let mut said = Said::default();
        client.until(&mut said, "begun\n").await;
        // What moves is kept open.
        let begun = Instant::now();
        while begun.elapsed() < limit * 2 {
            tokio::time::sleep(limit / 4).await;
            client.stdin(b"x").await;
        }
        client.until(&mut said, "xxxxxxxx").await;
        let silent = Instant::now();
        match &mut client {
            Client::Spdy(_, output) => assert!(timeout(PATIENCE, output.next()).await.expect("closed").is_err()),
            Client::Socket(_) => while client.read(&mut said).await {},
        }
        assert!(silent.elapsed() > limit / 2, "{kind}: {:?}", silent.elapsed());
        until_no_cat(&site).await;
        // A client that goes away.
        let mut client = match kind {
            "spdy" => Client::spdy(&api, &path, Streams { stderr: false, ..ALL }).await,
            protocol => Client::socket(&api, &path, protocol).await,
        };
        client.until(&mut Said::default(), "begun\n").await;
        drop(client);
        until_no_cat(&site).await;
    }
}

async fn until_no_cat(site: &Site) {
    site.eventually("the process has ended", async || {
        let (_, processes) = site.sh("box", "main", "ps -o args").await;
        !processes.lines().any(|line| line.trim() == "cat")
    })
    .await;
}

#[tokio::test]
async fn t79_streams_leave_no_memory_behind() {
    let site = Site::start().await;
    let api = NodeApi::find(&site.cloud, &site.settings.root_dir).await;
    site.run(pod("box")).await;
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<i64>().unwrap()
    };
    let access = site.access.clone().unwrap().borrow().clone().unwrap();
    let mut after = Vec::new();
    for _ in 0..4 {
        let mut follows = Vec::new();
        for _ in 0..50 {
            follows.push(api.ask("GET", "/containerLogs/default/box/main?follow=true").await);
        }
        for kind in ["spdy", "v5.channel.k8s.io"].repeat(5) {
            let path = exec("output=1", "head -c 1000000 /dev/zero | tr '\\0' y");
            let streams = Streams { stdout: true, ..Streams::default() };
            let client = match kind {
                "spdy" => Client::spdy(&api, &path, streams).await,
                protocol => Client::socket(&api, &path, protocol).await,
            };
            assert_eq!(client.rest().await.stdout.len(), 1_000_000);
        }
        assert!(access.open_streams() >= 50);
        drop(follows);
        site.eventually("all streams are closed", async || access.open_streams() == 0).await;
        after.push(resident());
    }
    // The first rounds fill what the allocator keeps.
    assert!(after[3] - after[1] < 2_000, "KiB after each round: {after:?}");
}
