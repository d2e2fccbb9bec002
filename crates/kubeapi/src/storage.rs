//! What the API keeps its objects in: JSON texts by key, one growing revision for all, and the latest events per resource.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::watch;

use crate::ApiError;

/// Events that a resource keeps for watches; a watch that falls behind further gets 410 and lists again.
pub const MAX_EVENTS: usize = 2048;
/// Bytes of events that a resource keeps for watches.
pub const MAX_EVENT_BYTES: usize = 8 << 20;

/// Where an object is kept.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// `resource` or `resource.group`, for example `pods` or `deployments.apps`.
    pub resource: String,
    /// Empty for cluster scope.
    pub namespace: String,
    /// The object's name.
    pub name: String,
}

/// An object as it is kept.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Namespace and name are in the JSON too; these save parsing it.
    pub namespace: String,
    /// The object's name.
    pub name: String,
    /// The revision of its last change: `metadata.resourceVersion`.
    pub revision: u64,
    /// The object.
    pub json: Bytes,
}

/// A page of a list.
#[derive(Debug)]
pub struct Page {
    /// In the order of namespace and name.
    pub items: Vec<Stored>,
    /// The revision that the whole page shows.
    pub revision: u64,
    /// Whether there are more behind it.
    pub more: bool,
}

/// What a write expects to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Nothing with this key.
    Nothing,
    /// The object at this revision.
    Revision(u64),
}

/// The new state of an object. `None` deletes it.
pub type Change = Box<dyn FnOnce(u64) -> NewState + Send>;

/// What a write stores.
pub struct NewState {
    /// The JSON at the new revision; for a deletion the last state, with the deletion's revision in it.
    pub json: Bytes,
    /// Whether the object goes away.
    pub delete: bool,
}

/// A write did not happen.
#[derive(Debug)]
pub enum WriteError {
    /// The key is taken, or the object has another revision or is gone.
    Unexpected,
    /// The storage failed.
    Failed(ApiError),
}

/// A store of objects.
pub trait Storage: Send + Sync + 'static {
    /// One object.
    ///
    /// # Errors
    /// The storage failed.
    fn get(&self, key: &Key) -> Result<Option<Stored>, ApiError>;

    /// Objects of a resource, in one namespace or all, behind `after` (namespace and name), at most `limit`.
    ///
    /// # Errors
    /// The storage failed.
    fn list(
        &self,
        resource: &str,
        namespace: Option<&str>,
        after: Option<(&str, &str)>,
        limit: usize,
    ) -> Result<Page, ApiError>;

    /// Writes durably; the new revision. Its event is seen by watches before this returns.
    fn write(&self, key: Key, expect: Expect, change: Change) -> BoxFuture<'_, Result<u64, WriteError>>;

    /// The revision of the last write.
    fn revision(&self) -> u64;

    /// The latest events.
    fn events(&self) -> &EventLog;
}

/// One change of one object.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its revision.
    pub revision: u64,
    /// The object after it; for a deletion its last state.
    pub json: Bytes,
    /// The object before it.
    pub previous: Option<Bytes>,
    /// Whether the object went away.
    pub deleted: bool,
    /// The object's namespace.
    pub namespace: String,
    /// The object's name.
    pub name: String,
}

/// The latest events of every resource. Watches read from it at their own pace: none has a queue of its own, and a slow one
/// holds nothing up.
pub struct EventLog {
    resources: Mutex<HashMap<String, Arc<ResourceLog>>>,
    /// Events at or before this revision were never recorded.
    start: u64,
}

struct ResourceLog {
    events: Mutex<Ring>,
    newest: watch::Sender<u64>,
}

struct Ring {
    events: VecDeque<Arc<Event>>,
    bytes: usize,
    /// The revision of the last event that was dropped.
    dropped: u64,
}

/// A place in the events of one resource.
pub struct Cursor {
    log: Arc<ResourceLog>,
    newest: watch::Receiver<u64>,
    seen: u64,
}

impl EventLog {
    /// An empty log of a store at this revision.
    pub fn new(start: u64) -> Self {
        Self { resources: Mutex::default(), start }
    }

    /// Records an event; called in the order of revisions.
    pub fn push(&self, resource: &str, event: Event) {
        let log = self.resource(resource);
        let revision = event.revision;
        {
            let mut ring = log.events.lock().unwrap_or_else(PoisonError::into_inner);
            ring.bytes += event.size();
            ring.events.push_back(Arc::new(event));
            while ring.events.len() > MAX_EVENTS || ring.bytes > MAX_EVENT_BYTES {
                let Some(oldest) = ring.events.pop_front() else { break };
                ring.bytes -= oldest.size();
                ring.dropped = oldest.revision;
            }
        }
        log.newest.send_replace(revision);
    }

    /// A cursor behind this revision.
    ///
    /// # Errors
    /// Events after it are no longer there.
    pub fn cursor(&self, resource: &str, since: u64) -> Result<Cursor, ApiError> {
        let log = self.resource(resource);
        let newest = log.newest.subscribe();
        let cursor = Cursor { log, newest, seen: since };
        cursor.check()?;
        Ok(cursor)
    }

    fn resource(&self, resource: &str) -> Arc<ResourceLog> {
        let mut resources = self.resources.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(log) = resources.get(resource) {
            return log.clone();
        }
        let ring = Ring { events: VecDeque::new(), bytes: 0, dropped: self.start };
        let log = Arc::new(ResourceLog { events: Mutex::new(ring), newest: watch::Sender::new(0) });
        resources.insert(resource.to_owned(), log.clone());
        log
    }
}

impl Event {
    fn size(&self) -> usize {
        self.json.len() + self.previous.as_ref().map_or(0, Bytes::len) + 200
    }
}

impl Cursor {
    /// The next event; waits for it.
    ///
    /// # Errors
    /// The watch fell so far behind that events are lost.
    pub async fn next(&mut self) -> Result<Arc<Event>, ApiError> {
        loop {
            if let Some(event) = self.try_next()? {
                return Ok(event);
            }
            // The log outlives the cursor, which holds it.
            let _ = self.newest.changed().await;
        }
    }

    /// The next event, if it is there already.
    ///
    /// # Errors
    /// The watch fell so far behind that events are lost.
    pub fn try_next(&mut self) -> Result<Option<Arc<Event>>, ApiError> {
        self.check()?;
        let ring = self.log.events.lock().unwrap_or_else(PoisonError::into_inner);
        let at = ring.events.partition_point(|event| event.revision <= self.seen);
        let event = ring.events.get(at).cloned();
        if let Some(event) = &event {
            self.seen = event.revision;
        }
        Ok(event)
    }

    fn check(&self) -> Result<(), ApiError> {
        let ring = self.log.events.lock().unwrap_or_else(PoisonError::into_inner);
        if self.seen < ring.dropped {
            return Err(ApiError::expired(format!("too old resource version: {} ({})", self.seen, ring.dropped)));
        }
        Ok(())
    }
}
