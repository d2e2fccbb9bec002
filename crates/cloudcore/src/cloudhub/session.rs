//! One node's session: what is to be sent to it, and what it says.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use link::ws::{Incoming, Reader, Writer};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};
use wire::{Message, group, operation, source};

use super::lane::Lane;
use super::turns::Turns;
use crate::edgecontroller::told::NotTaken;
use crate::edgecontroller::upstream::Upstream;
use crate::objectsync::{Acknowledged, Records};

/// Requests of one node that are carried out at the same time; more wait in its connection.
const MAX_REQUESTS: usize = 32;
/// How long a node may take to close its side after it was told the reason.
const CLOSING: Duration = Duration::from_secs(2);
/// Of what a node says about its failures, so many characters are kept.
const MAX_TEXT: usize = 512;

/// A handle to a session. Cloning is cheap.
#[derive(Clone)]
pub struct SessionHandle {
    shared: Arc<Shared>,
}

struct Shared {
    node: String,
    has_nothing: AtomicBool,
    lane: Mutex<Lane>,
    wake: Notify,
    end: CancellationToken,
    reason: Mutex<String>,
}

impl SessionHandle {
    /// A session of this node that has not begun. `has_nothing` when the node's database is empty, whatever it acknowledged
    /// before.
    pub fn new(node: &str, has_nothing: bool) -> Self {
        let shared = Shared {
            node: node.to_owned(),
            has_nothing: AtomicBool::new(has_nothing),
            lane: Mutex::default(),
            wake: Notify::new(),
            end: CancellationToken::new(),
            reason: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The node.
    pub fn node(&self) -> &str {
        &self.shared.node
    }

    /// Whether the node has said that its database is empty; `true` once at most, for the one who forgets what it had.
    pub fn take_has_nothing(&self) -> bool {
        self.shared.has_nothing.swap(false, Ordering::Relaxed)
    }

    /// Whether both are the same session.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// Whether it is over.
    pub fn has_ended(&self) -> bool {
        self.shared.end.is_cancelled()
    }

    /// Offers a version of an object; an older one than was offered before is left out.
    pub fn offer(&self, uid: &str, version: u64, message: Message) {
        self.lane().offer(uid, version, message);
        self.shared.wake.notify_one();
    }

    /// Ends the session; the node is told the reason.
    pub fn close(&self, reason: &str) {
        reason.clone_into(&mut self.shared.reason.lock().unwrap_or_else(PoisonError::into_inner));
        self.shared.end.cancel();
    }

    /// Sends an answer. A node that does not read its answers loses the session.
    fn answer(&self, message: Message, place: OwnedSemaphorePermit) {
        let uid = if message.header.resource_version.is_empty() { String::new() } else { uid_of(&message) };
        let posted = self.lane().answer(&uid, message, Some(place));
        if let Err(full) = posted {
            self.close(&full.to_string());
        }
        self.shared.wake.notify_one();
    }

    fn acknowledge(&self, id: &str) -> Option<Acknowledged> {
        let found = self.lane().acknowledge(id);
        self.shared.wake.notify_one();
        found
    }

    /// The node could not take the message with this id: the object's uid and its path.
    fn refused(&self, id: &str) -> Option<(String, String)> {
        self.lane().refused(id)
    }

    fn lane(&self) -> MutexGuard<'_, Lane> {
        self.shared.lane.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a session needs besides its connection.
#[derive(Clone)]
pub(super) struct Services {
    pub(super) upstream: Upstream,
    pub(super) records: Records,
    pub(super) keepalive: Duration,
    /// Requests are carried out to their end, also when the session has ended.
    pub(super) tasks: TaskTracker,
}

/// Serves a session until it ends; why it did.
pub(super) async fn serve(
    handle: &SessionHandle,
    mut reader: Reader,
    mut writer: Writer,
    services: Services,
    turns: Turns,
) -> String {
    let reason = tokio::select! {
        () = handle.shared.end.cancelled() => handle.shared.reason.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        reason = read(handle, &mut reader, &services, &turns) => reason,
        reason = write(handle, &mut writer) => reason,
    };
    handle.shared.end.cancel();
    writer.close(&reason).await;
    // Closing with unread bytes would reset the connection, and the reason with it.
    let drain = async { while let Ok(Incoming::Message(_) | Incoming::Alive) = reader.next().await {} };
    let _ = tokio::time::timeout(CLOSING, drain).await;
    reason
}

async fn write(handle: &SessionHandle, writer: &mut Writer) -> String {
    loop {
        let (message, due) = {
            let mut lane = handle.lane();
            (lane.next(Instant::now()), lane.next_due())
        };
        if let Some(message) = message {
            let mut line = message.to_json();
            line.push(b'\n');
            if let Err(error) = writer.send(line).await {
                return format!("writing failed: {error}");
            }
            continue;
        }
        let due = async {
            match due {
                Some(due) => tokio::time::sleep_until(due.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = handle.shared.wake.notified() => {}
            () = due => {}
        }
    }
}

async fn read(handle: &SessionHandle, reader: &mut Reader, services: &Services, turns: &Turns) -> String {
    let places = Arc::new(Semaphore::new(MAX_REQUESTS));
    let mut alive_until = tokio::time::Instant::now() + services.keepalive;
    loop {
        let incoming = match tokio::time::timeout_at(alive_until, reader.next()).await {
            Ok(Ok(incoming)) => incoming,
            Ok(Err(error)) => {
                let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
                return format!("{error}{cause}");
            }
            Err(_) => return format!("no keepalive for {} s", services.keepalive.as_secs()),
        };
        let frame = match incoming {
            Incoming::Message(frame) => frame,
            Incoming::Alive => continue,
            Incoming::Closed(reason) => return format!("the node closed the connection {reason}"),
        };
        let message = match Message::parse(&frame) {
            Ok(message) => message,
            Err(error) => {
                let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
                return format!("the node sent what is no message: {error}{cause}");
            }
        };
        if message.route.operation == operation::KEEPALIVE {
            alive_until = tokio::time::Instant::now() + services.keepalive;
            continue;
        }
        if let Some(work) = dispatch(handle, services, message) {
            let Ok(place) = places.clone().acquire_owned().await else { return "cloudcore ends".to_owned() };
            let (handle, upstream) = (handle.clone(), services.upstream.clone());
            let mut turn = turns.queue(work.resource());
            services.tasks.spawn(async move {
                turn.come().await;
                match work {
                    Work::Request(request) => {
                        let outcome = upstream.handle(handle.node(), &request).await;
                        if let Some((uid, deletion)) = outcome.orphan {
                            handle.offer(&uid, u64::MAX, deletion);
                        }
                        if let Some(answer) = outcome.answer {
                            handle.answer(answer, place);
                        }
                    }
                    Work::NotTaken(not_taken) => upstream.tell(handle.node(), &not_taken).await,
                }
                drop(turn);
            });
        }
    }
}

/// What a message of the node is cause for and takes a while.
enum Work {
    Request(Message),
    NotTaken(NotTaken),
}

impl Work {
    fn resource(&self) -> &str {
        match self {
            Self::Request(request) => &request.route.resource,
            Self::NotTaken(not_taken) => &not_taken.resource,
        }
    }
}

/// What is no request is dealt with at once.
fn dispatch(handle: &SessionHandle, services: &Services, message: Message) -> Option<Work> {
    let node = handle.node();
    let route = &message.route;
    if message.is_empty_envelope() {
        info!(node, "the node's agent stops");
        return None;
    }
    match route.operation.as_str() {
        operation::RESPONSE => {
            // What a newer session was told to forget must not come back.
            let acknowledged = handle.acknowledge(&message.header.parent_msg_id).filter(|_| !handle.has_ended());
            if let Some(acknowledged) = acknowledged {
                services.records.acknowledged(node, &acknowledged);
            }
            return None;
        }
        operation::ERROR => {
            let why = bounded(&message);
            warn!(node, resource = route.resource, why, "the node could not carry out a message; it is sent again");
            let (uid, resource) = handle.refused(&message.header.parent_msg_id)?;
            return Some(Work::NotTaken(NotTaken { uid, resource, why }));
        }
        _ => {}
    }
    let own = [
        source::CLOUD_HUB,
        source::CLOUD_STREAM,
        source::DEVICE_CONTROLLER,
        source::EDGE_CONTROLLER,
        source::SYNC_CONTROLLER,
    ];
    let not_here = matches!(route.group.as_str(), group::USER | group::TWIN)
        || matches!(route.source.as_str(), source::TWIN | source::META_SERVER)
        || matches!(
            route.operation.as_str(),
            operation::UPGRADE | operation::PREPULL | operation::UPDATE_NODE_ACTION_STATUS
        );
    if own.contains(&route.source.as_str()) || not_here {
        debug!(
            node,
            source = route.source,
            group = route.group,
            resource = route.resource,
            "a message for a part that this version does not have"
        );
        return None;
    }
    Some(Work::Request(message))
}

/// The text of a failure, for logs and people.
fn bounded(message: &Message) -> String {
    let text = message.content.payload();
    String::from_utf8_lossy(&text).chars().filter(|letter| !letter.is_control()).take(MAX_TEXT).collect()
}

/// The uid of the object in an answer.
fn uid_of(message: &Message) -> String {
    #[derive(serde::Deserialize)]
    struct Object {
        metadata: Metadata,
    }
    #[derive(serde::Deserialize)]
    struct Metadata {
        #[serde(default)]
        uid: String,
    }
    message.content.parse::<Object>().map(|object| object.metadata.uid).unwrap_or_default()
}
