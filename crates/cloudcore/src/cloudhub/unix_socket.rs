//! The unix socket by which a program beside cloudcore asks a node something and gets its answer: upstream's CSI driver does
//! (KubeEdge v1.23, `modules.cloudHub.unixsocket`).
//!
//! One connection, one request: a JSON message about `node/{node}/…`, of at most 10,480 bytes. It goes to the node; the node's answer comes
//! back, or an `error` message that says why there is none.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use beehive::compose;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;
use wire::Message;

use super::session::SessionHandle;
use super::sessions::Sessions;

/// The longest request.
const MAX_REQUEST: usize = 10_480;
/// How long a request may take to come.
const READING: Duration = Duration::from_secs(10);
/// How long a node may take to answer.
const ANSWER: Duration = Duration::from_secs(60);
/// How long a client may take to close after it was answered.
const CLOSING: Duration = Duration::from_secs(2);
/// Requests at the same time; more wait.
const MAX_CONNECTIONS: usize = 64;
/// The wait after a failed accept, which mostly means too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `stopping`. A socket that cannot be made is no reason not to serve nodes.
pub(super) async fn serve(path: PathBuf, sessions: Sessions, tasks: TaskTracker, stopping: CancellationToken) {
    let listener = match listen(&path) {
        Ok(listener) => listener,
        Err(error) => {
            let path = path.display();
            return warn!(%path, %error, "no unix socket (modules.cloudHub.unixsocket.address): a CSI driver cannot reach nodes");
        }
    };
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { break };
        let stream = tokio::select! {
            () = stopping.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    warn!(%error, "a connection to the unix socket could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        let (sessions, stopping) = (sessions.clone(), stopping.clone());
        tasks.spawn(async move {
            stopping.run_until_cancelled(answer(stream, &sessions)).await;
            drop(place);
        });
    }
    // The next cloudcore removes it otherwise.
    let _ = std::fs::remove_file(&path);
}

/// Only its owner may connect. A socket that an earlier cloudcore left is removed; any other file is not.
fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => return Err(io::Error::new(io::ErrorKind::AddrInUse, "another cloudcore serves there")),
            Err(_) => std::fs::remove_file(path)?,
        },
        Ok(_) => return Err(io::Error::new(io::ErrorKind::AlreadyExists, "there is a file that is no socket")),
        Err(_) => {}
    }
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

async fn answer(mut stream: UnixStream, sessions: &Sessions) {
    let mut request = vec![0; MAX_REQUEST + 1];
    // A client sends its request at once and waits without closing: what has come is it when it is a whole message.
    let read = async {
        let mut filled = 0;
        loop {
            match stream.read(&mut request[filled..]).await {
                Ok(count @ 1..) => filled += count,
                Ok(0) | Err(_) => break filled,
            }
            if filled > MAX_REQUEST || Message::parse(&request[..filled]).is_ok() {
                break filled;
            }
        }
    };
    let Ok(filled) = tokio::time::timeout(READING, read).await else { return };
    let answer = match Message::parse(&request[..filled]) {
        _ if filled > MAX_REQUEST => refusal(None, &format!("the request is longer than {MAX_REQUEST} bytes")),
        Ok(message) => match ask(&message, sessions).await {
            Ok(answer) => answer,
            Err(reason) => refusal(Some(&message), &reason),
        },
        Err(error) => refusal(None, &format!("the request is no message: {error}")),
    };
    // Whoever asked may have gone.
    let _ = stream.write_all(&answer.to_json()).await;
    let _ = stream.shutdown().await;
    // Closing with unread bytes would take the answer with it.
    let drain = async { while let Ok(1..) = stream.read(&mut request).await {} };
    let _ = tokio::time::timeout(CLOSING, drain).await;
}

async fn ask(message: &Message, sessions: &Sessions) -> Result<Message, String> {
    let mut parts = message.route.resource.split('/');
    let node = match (parts.next(), parts.next()) {
        (Some("node"), Some(node)) if !node.is_empty() => node,
        _ => return Err(format!("resource {:?} is not of the form node/NODE/…", message.route.resource)),
    };
    let session: SessionHandle = sessions.of(node).ok_or_else(|| format!("node {node} is not connected"))?;
    match tokio::time::timeout(ANSWER, session.ask(message.clone())).await {
        Ok(Some(answer)) => Ok(answer),
        Ok(None) => Err(format!("node {node} has lost its connection, or has too much to answer")),
        Err(_) => Err(format!("node {node} has not answered within {} s", ANSWER.as_secs())),
    }
}

fn refusal(about: Option<&Message>, text: &str) -> Message {
    let nothing = Message::new(String::new(), 0, wire::Route::new("", "", "", ""), wire::Content::null());
    let mut answer = about.unwrap_or(&nothing).error(compose::id(), compose::now(), text);
    wire::source::CLOUD_HUB.clone_into(&mut answer.route.source);
    answer
}
