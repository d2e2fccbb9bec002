//! One watch per kind, shared by all controllers: a cache of its objects, and a call for each change.
//!
//! A controller also puts in what the API answered to its own writes ([`Cache::learn`]), so that it never decides on a state
//! older than its last write and needs no book-keeping of expected events.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::client::{Client, Resource, WatchEvent};
use crate::object::{Key, Object};

/// The pause before a failed list is tried again.
const RELIST_PAUSE: Duration = Duration::from_secs(1);

/// What happened to an object.
#[derive(Debug, Clone, Copy)]
pub enum Change<'a> {
    /// It is there, new or changed.
    Set {
        /// Its state before, if it was known.
        old: Option<&'a Object>,
        /// Its state now.
        new: &'a Object,
    },
    /// It is gone; its last state.
    Gone(&'a Object),
}

impl<'a> Change<'a> {
    /// The latest state.
    pub fn object(&self) -> &'a Object {
        match self {
            Change::Set { new, .. } => new,
            Change::Gone(last) => last,
        }
    }
}

type Handler = Box<dyn Fn(Change<'_>) + Send + Sync>;

/// The objects of one kind.
#[derive(Debug, Default)]
pub struct Cache {
    inner: RwLock<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    objects: BTreeMap<Key, Object>,
    /// The watch has told everything up to this version.
    seen: u64,
    /// What the handlers last heard of objects whose present state was learned from an own write.
    untold: BTreeMap<Key, Option<Object>>,
}

impl Cache {
    /// One object.
    pub fn get(&self, key: &Key) -> Option<Object> {
        self.read().objects.get(key).cloned()
    }

    /// All objects.
    pub fn all(&self) -> Vec<Object> {
        self.read().objects.values().cloned().collect()
    }

    /// All objects of a namespace.
    pub fn in_namespace(&self, namespace: &str) -> Vec<Object> {
        let from = Key::new(namespace, "");
        let read = self.read();
        read.objects.range(from..).take_while(|(k, _)| k.namespace == namespace).map(|(_, o)| o.clone()).collect()
    }

    /// The objects that fit.
    pub fn matching(&self, fits: impl Fn(&Object) -> bool) -> Vec<Object> {
        self.read().objects.values().filter(|o| fits(o)).cloned().collect()
    }

    /// Takes over the answer to an own write, unless the watch is further already.
    pub fn learn(&self, object: &Object) {
        let mut inner = self.write();
        let known = inner.objects.get(&object.key()).map_or(0, Object::version);
        if object.version() > inner.seen && object.version() > known {
            let before = inner.objects.insert(object.key(), object.clone());
            inner.untold.entry(object.key()).or_insert(before);
        }
    }

    fn set(&self, object: &Object) -> (Option<Object>, Object) {
        let mut inner = self.write();
        inner.seen = inner.seen.max(object.version());
        let key = object.key();
        let untold = inner.untold.remove(&key);
        match inner.objects.get(&key) {
            // An own write was faster; its event is still to come.
            Some(newer) if newer.version() > object.version() => {
                let newer = newer.clone();
                inner.untold.insert(key, Some(object.clone()));
                (untold.flatten(), newer)
            }
            _ => {
                let before = inner.objects.insert(key, object.clone());
                (untold.unwrap_or(before), object.clone())
            }
        }
    }

    fn remove(&self, object: &Object) {
        let mut inner = self.write();
        inner.seen = inner.seen.max(object.version());
        inner.objects.remove(&object.key());
        inner.untold.remove(&object.key());
    }

    /// Takes over a list; what is no longer there.
    fn replace(&self, objects: Vec<Object>, version: u64) -> Vec<Object> {
        let mut inner = self.write();
        inner.seen = version;
        inner.untold.clear();
        let mut new: BTreeMap<Key, Object> = objects.into_iter().map(|o| (o.key(), o)).collect();
        let mut gone = Vec::new();
        for (key, object) in std::mem::take(&mut inner.objects) {
            if object.version() > version {
                // An own write after the list: its event is still to come.
                let listed = new.insert(key.clone(), object);
                inner.untold.insert(key, listed);
            } else if new.get(&key).is_none_or(|n| n.uid() != object.uid()) {
                gone.push(object);
            }
        }
        inner.objects = new;
        gone
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The watch of one kind, before and while it runs.
pub struct Informer {
    resource: Resource,
    cache: Arc<Cache>,
    handlers: Vec<Handler>,
    synced: watch::Sender<bool>,
}

impl Informer {
    /// A watch of this kind; nothing happens until it runs.
    pub fn new(resource: Resource) -> Self {
        Self { resource, cache: Arc::default(), handlers: Vec::new(), synced: watch::Sender::new(false) }
    }

    /// The objects, filled once it runs.
    pub fn cache(&self) -> Arc<Cache> {
        self.cache.clone()
    }

    /// Becomes true when the first list is in the cache.
    pub fn synced(&self) -> watch::Receiver<bool> {
        self.synced.subscribe()
    }

    /// Calls this for every change, from the informer's task: it must be quick, usually it queues a key.
    pub fn on_change(&mut self, handler: impl Fn(Change<'_>) + Send + Sync + 'static) {
        self.handlers.push(Box::new(handler));
    }

    /// Lists and watches until cancelled.
    pub async fn run(self, client: Client, token: CancellationToken) {
        while !token.is_cancelled() {
            tokio::select! {
                () = token.cancelled() => return,
                () = self.list_and_watch(&client) => {}
            }
        }
    }

    async fn list_and_watch(&self, client: &Client) {
        let (items, version) = match client.list(&self.resource).await {
            Ok(list) => list,
            Err(error) => {
                warn!(resource = %self.resource, %error, "listing failed");
                tokio::time::sleep(RELIST_PAUSE).await;
                return;
            }
        };
        for gone in self.cache.replace(items, version) {
            self.tell(Change::Gone(&gone));
        }
        for object in self.cache.all() {
            self.tell(Change::Set { old: None, new: &object });
        }
        self.synced.send_replace(true);
        let mut events = match client.watch(&self.resource, version).await {
            Ok(events) => events,
            Err(error) => {
                warn!(resource = %self.resource, %error, "watching failed");
                tokio::time::sleep(RELIST_PAUSE).await;
                return;
            }
        };
        loop {
            match events.next().await {
                Ok(WatchEvent::Set(object)) => {
                    let (old, new) = self.cache.set(&object);
                    self.tell(Change::Set { old: old.as_ref(), new: &new });
                }
                Ok(WatchEvent::Gone(object)) => {
                    self.cache.remove(&object);
                    self.tell(Change::Gone(&object));
                }
                Err(error) => {
                    debug!(resource = %self.resource, %error, "watch ended, listing again");
                    return;
                }
            }
        }
    }

    fn tell(&self, change: Change<'_>) {
        for handler in &self.handlers {
            handler(change);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(name: &str, version: u64) -> Object {
        json!({"metadata": {"name": name, "namespace": "ns", "uid": name, "resourceVersion": version.to_string()}})
            .into()
    }

    #[test]
    fn an_own_write_is_seen_at_once_but_never_raises_the_dead() {
        let cache = Cache::default();
        cache.replace(vec![object("a", 3)], 5);
        cache.learn(&object("a", 6));
        assert_eq!(cache.get(&Key::new("ns", "a")).map(|o| o.version()), Some(6));
        // The watch is behind: the newer state stays.
        cache.set(&object("a", 4));
        assert_eq!(cache.get(&Key::new("ns", "a")).map(|o| o.version()), Some(6));
        cache.remove(&object("a", 8));
        cache.learn(&object("a", 7));
        assert_eq!(cache.get(&Key::new("ns", "a")), None);
    }

    #[test]
    fn a_new_list_tells_what_went_away() {
        let cache = Cache::default();
        cache.replace(vec![object("a", 1), object("b", 2)], 2);
        assert_eq!(cache.replace(vec![object("b", 2), object("c", 9)], 9), vec![object("a", 1)]);
        assert_eq!(cache.in_namespace("ns").len(), 2);
        // A write that the list does not know yet stays.
        cache.learn(&object("d", 12));
        assert_eq!(cache.replace(vec![object("b", 2), object("c", 9)], 10), vec![]);
        assert_eq!(cache.get(&Key::new("ns", "d")).map(|o| o.version()), Some(12));
        let (old, new) = cache.set(&object("d", 12));
        assert_eq!((old, new.version()), (None, 12));
        cache.remove(&object("d", 13));
        assert_eq!(cache.in_namespace("n").len(), 0);
    }
}
