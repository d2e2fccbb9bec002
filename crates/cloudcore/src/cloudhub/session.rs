//! One node's session: what is to be sent to it (this file), and what it says (`reading`).

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use beehive::compose;
use link::resume::Id;
use link::ws::{Incoming, LinkError, Reader, Writer};
use session::cloud::Full;
use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wire::inventory::{self, Held};
use wire::{Content, Features, Message, batch, group, on_demand, operation, source};

use super::feed::{self, Feed};
use super::lag::Lag;
use super::lane::Lane;
use super::monitor::{Counters, count};
use super::reading::read;
use super::turns::Turns;
use crate::devicecontroller::DeviceController;
use crate::edgecontroller::downstream::Event;
use crate::edgecontroller::upstream::Upstream;
use crate::objectsync::{Acknowledged, Doubt, Records};

/// How long a node may take to close its side after it was told the reason.
const CLOSING: Duration = Duration::from_secs(2);
/// Requests of programs beside cloudcore that a node may have to answer at the same time.
const MAX_REQUESTS: usize = 64;
/// How long a node may take to say what it has.
const INVENTORY: Duration = Duration::from_secs(60);

/// What a node said of itself when it connected. The default is that of a Go edge.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// What both ends have agreed on.
    pub features: Features,
    /// The digest of what it has; empty without the feature `inventory-1`.
    pub digest: String,
    /// The node's own IP address, when it opens its stream tunnel on demand.
    pub address: Option<IpAddr>,
    /// What tells its edgecore from the one before.
    pub process: Option<Id>,
}

/// A handle to a session. Cloning is cheap.
#[derive(Clone)]
pub struct SessionHandle {
    shared: Arc<Shared>,
}

struct Shared {
    node: String,
    peer: Peer,
    lane: Mutex<Lane>,
    /// The question for the node's inventory: its id, and who asked.
    asked: Mutex<Option<(String, oneshot::Sender<()>)>>,
    /// Who waits for the node's answer, by the id of the request.
    requests: Mutex<HashMap<String, oneshot::Sender<Message>>>,
    wake: Notify,
    end: CancellationToken,
    reason: Mutex<String>,
}

impl SessionHandle {
    /// A session of this node that has not begun.
    pub fn new(node: &str, peer: Peer) -> Self {
        let shared = Shared {
            node: node.to_owned(),
            lane: Mutex::new(Lane::new(peer.features)),
            peer,
            asked: Mutex::default(),
            requests: Mutex::default(),
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

    /// What the node said of itself.
    pub fn peer(&self) -> &Peer {
        &self.shared.peer
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

    /// Offers the deletion of an object that exists, but in this version is not the node's any more; it may come back.
    pub fn withdraw(&self, uid: &str, version: u64, message: Message) {
        self.lane().withdraw(uid, version, message);
        self.shared.wake.notify_one();
    }

    /// Sends a message that nobody acknowledges.
    ///
    /// # Errors
    /// Too many wait: the node does not read.
    pub fn post(&self, message: Message) -> Result<(), Full> {
        let posted = self.lane().post(message);
        self.shared.wake.notify_one();
        posted
    }

    /// Asks the node to open its stream tunnel, unless it goes on with one of this name; `false` when it does not open one on demand, or
    /// does not read.
    pub fn ask_tunnel(&self, cut: Option<Id>) -> bool {
        let (from, about) = (source::CLOUD_HUB, on_demand::RESOURCE);
        let content = cut.map_or_else(Content::null, |cut| Content::text(&cut.to_string()));
        let wish = || compose::message(from, group::RESOURCE, on_demand::OPEN, about, content);
        self.peer().features.tunnel && self.post(wish()).is_ok()
    }

    /// Resolves when it is over.
    pub async fn ended(&self) {
        self.shared.end.cancelled().await;
    }

    /// A comparison of the node with the cluster is wanted. Whether the caller has to run it, for nobody does yet.
    pub fn want_comparison(&self, is_thorough: bool) -> bool {
        self.lane().progress().want(is_thorough)
    }

    /// A comparison begins, and whether it is a thorough one; `None` when no more is wanted.
    pub fn next_comparison(&self) -> Option<bool> {
        self.lane().progress().next()
    }

    /// A comparison, which began with this doubt about the node, has offered what the node lacked.
    pub fn compared(&self, doubt: Option<Doubt>) {
        self.lane().compared(doubt);
        self.shared.wake.notify_one();
    }

    /// Ends the session; the node is told the reason.
    pub fn close(&self, reason: &str) {
        reason.clone_into(&mut lock(&self.shared.reason));
        self.shared.end.cancel();
    }

    /// Asks the node what it has and notes its answer; `false` when none came.
    pub async fn ask_inventory(&self) -> bool {
        let (from, about) = (source::CLOUD_HUB, inventory::RESOURCE);
        let question = compose::message(from, group::RESOURCE, operation::QUERY, about, Content::null());
        let (tell, told) = oneshot::channel();
        *lock(&self.shared.asked) = Some((question.header.msg_id.clone(), tell));
        if self.lane().post(question).is_err() {
            return false;
        }
        self.shared.wake.notify_one();
        let answered = self.shared.end.run_until_cancelled(tokio::time::timeout(INVENTORY, told)).await;
        matches!(answered, Some(Ok(Ok(()))))
    }

    /// Sends a request to the node; its answer. `None` when the session ends before, or too many wait already.
    pub(super) async fn ask(&self, mut request: Message) -> Option<Message> {
        if request.header.msg_id.is_empty() {
            request.header.msg_id = compose::id();
        }
        request.header.sync = true;
        let id = request.header.msg_id.clone();
        let (tell, told) = oneshot::channel();
        {
            let mut requests = lock(&self.shared.requests);
            // Those whose asker has given up take no place.
            requests.retain(|_, waiting| !waiting.is_closed());
            if requests.len() >= MAX_REQUESTS {
                return None;
            }
            requests.insert(id, tell);
        }
        self.lane().post(request).ok()?;
        self.shared.wake.notify_one();
        self.shared.end.run_until_cancelled(told).await?.ok()
    }

    /// Whether this is the node's answer to a request of [`SessionHandle::ask`]; it is handed over then.
    pub(super) fn takes_answer(&self, message: &Message) -> bool {
        let waiting = lock(&self.shared.requests).remove(&message.header.parent_msg_id);
        let Some(tell) = waiting else { return false };
        // Who asked may have given up.
        let _ = tell.send(message.clone());
        true
    }

    /// Whether this is the node's answer to that question; it is noted then.
    pub(super) fn takes_inventory(&self, message: &Message, records: &Records) -> bool {
        let mut asked = lock(&self.shared.asked);
        if asked.as_ref().is_none_or(|(id, _)| *id != message.header.parent_msg_id) {
            return false;
        }
        let Some((_, tell)) = asked.take() else { return false };
        if let Ok(mut held) = message.content.parse::<Vec<Held>>() {
            held.truncate(inventory::MAX_OBJECTS);
            records.replace(self.node(), held);
            // Who asked may have given up.
            let _ = tell.send(());
        }
        true
    }

    /// Sends an answer. A node that does not read its answers loses the session.
    pub(super) fn answer(&self, uid: &str, message: Message, place: OwnedSemaphorePermit) {
        let posted = self.lane().answer(uid, message, Some(place));
        if let Err(full) = posted {
            self.close(&full.to_string());
        }
        self.shared.wake.notify_one();
    }

    /// A message of the node was dealt with and has no answer.
    pub(crate) fn done(&self, id: &str) {
        self.lane().done(id);
        self.shared.wake.notify_one();
    }

    pub(super) fn acknowledge(&self, id: &str) -> Option<Acknowledged> {
        let found = self.lane().acknowledge(id);
        self.shared.wake.notify_one();
        found
    }

    /// The node could not take the message with this id: the object's uid and its path.
    pub(super) fn refused(&self, id: &str) -> Option<(String, String)> {
        let found = self.lane().refused(id);
        self.shared.wake.notify_one();
        found
    }

    /// How far the node is behind; `None` when it has everything.
    pub(super) fn lag(&self) -> Option<Lag> {
        self.lag_at(now())
    }

    /// The same at this time.
    pub(super) fn lag_at(&self, now: Instant) -> Option<Lag> {
        self.lane().lag(now)
    }

    /// Objects that the node has not acknowledged.
    pub fn pending(&self) -> usize {
        self.lane().pending()
    }

    fn lane(&self) -> MutexGuard<'_, Lane> {
        lock(&self.shared.lane)
    }
}

/// The time by tokio's clock, which a test may let run faster.
pub(super) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a session needs besides its connection.
pub(super) struct Services {
    pub(super) upstream: Upstream,
    pub(super) devices: DeviceController,
    pub(super) records: Records,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) feed: Feed,
    pub(super) counters: Arc<Counters>,
    pub(super) keepalive: Duration,
    /// Requests are carried out to their end, also when the session has ended.
    pub(super) tasks: TaskTracker,
}

/// Serves a session until it ends; why it did.
pub(super) async fn serve(
    handle: &SessionHandle,
    mut reader: Reader,
    mut writer: Writer,
    services: &Services,
    turns: Turns,
) -> String {
    let reason = tokio::select! {
        () = handle.shared.end.cancelled() => lock(&handle.shared.reason).clone(),
        reason = read(handle, &mut reader, services, &turns) => reason,
        reason = write(handle, &mut writer, services) => reason,
    };
    handle.shared.end.cancel();
    handle.lane().end();
    writer.close(&reason).await;
    // Closing with unread bytes would reset the connection, and the reason with it.
    let drain =
        async { while let Ok(Incoming::Message(_) | Incoming::Binary(_) | Incoming::Alive) = reader.next().await {} };
    let _ = tokio::time::timeout(CLOSING, drain).await;
    reason
}

async fn write(handle: &SessionHandle, writer: &mut Writer, services: &Services) -> String {
    loop {
        let (messages, due, lacking, settled) = {
            let mut lane = handle.lane();
            (lane.take(now()), lane.next_due(), lane.take_overflow(), lane.take_settled())
        };
        if let Some(doubt) = settled {
            services.records.trust(handle.node(), doubt);
        }
        if lacking && services.events.send(Event::Lacking(handle.clone())).await.is_err() {
            return "cloudcore ends".to_owned();
        }
        if !messages.is_empty() {
            if let Err(error) = send(writer, &messages, handle.peer().features).await {
                return format!("writing failed: {error}");
            }
            count(&services.counters.sent, messages.len());
            for message in messages.iter().filter(|message| is_about_an_object(message)) {
                services.feed.tell(handle.node(), || feed::Event::sent(message));
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

fn is_about_an_object(message: &Message) -> bool {
    matches!(message.route.operation.as_str(), operation::INSERT | operation::UPDATE | operation::DELETE)
}

async fn send(writer: &mut Writer, messages: &[Message], features: Features) -> Result<(), LinkError> {
    let documents: Vec<Vec<u8>> = messages.iter().map(Message::to_json).collect();
    if features.batch {
        return writer.send_binary(batch::encode(documents.iter().map(Vec::as_slice))).await;
    }
    for mut line in documents {
        line.push(b'\n');
        writer.send(line).await?;
    }
    Ok(())
}
