//! What waits for one node, and in which order. Around [`session::NodeQueue`], which keeps versions of one object apart, stand the
//! rules for objects that share a name: an edge stores objects by name, so that the deletion of an old one must be acknowledged
//! before its namesake is sent.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use session::{Full, NodeQueue};
use tokio::sync::OwnedSemaphorePermit;
use wire::{Message, operation};

use crate::objectsync::Acknowledged;

/// Answers whose acknowledgement is waited for.
const MAX_ANSWERS: usize = 1024;
/// Deleted objects that are remembered after the node acknowledged it: an older state of one may still be on its way here.
const MAX_DELETED: usize = 128;

/// The messages of one session.
#[derive(Default)]
pub(super) struct Lane {
    queue: NodeQueue,
    /// The newest version of each object that was offered, by uid: none older follows it.
    offered: HashMap<String, u64>,
    /// Uids of acknowledged deletions, oldest first.
    deleted: VecDeque<String>,
    /// Objects that are offered and not acknowledged, by name.
    open: HashMap<String, (String, Message)>,
    /// Deletions that are not acknowledged, by name.
    deleting: HashMap<String, usize>,
    /// What waits for the deletion of a namesake, by name.
    held: HashMap<String, (String, Message)>,
    /// Answers with an object, by message id: when the node acknowledges one, it has the object. The objects themselves may be
    /// large and are not kept.
    answers: HashMap<String, Acknowledged>,
    /// Places of requests whose answers wait to be sent, by message id: a node that does not read its answers gets no more of them.
    places: HashMap<String, OwnedSemaphorePermit>,
}

impl Lane {
    /// Offers a version of an object; an older one than was offered before is left out.
    pub(super) fn offer(&mut self, uid: &str, version: u64, message: Message) {
        let name = message.route.resource.clone();
        if message.route.operation == operation::DELETE {
            self.delete(uid, name, message);
            return;
        }
        if self.offered.get(uid).is_some_and(|offered| *offered >= version) {
            return;
        }
        self.offered.insert(uid.to_owned(), version);
        if self.deleting.contains_key(&name) {
            self.held.insert(name, (uid.to_owned(), message));
            return;
        }
        self.open.insert(name, (uid.to_owned(), message.clone()));
        self.queue.offer(uid.to_owned(), message);
    }

    fn delete(&mut self, uid: &str, name: String, message: Message) {
        // The uid does not come again.
        if self.offered.insert(uid.to_owned(), u64::MAX) == Some(u64::MAX) {
            return;
        }
        if self.held.get(&name).is_some_and(|(held, _)| held == uid) {
            self.held.remove(&name);
        }
        // A namesake that is on its way already is sent once more behind the deletion.
        if let Some((other, open)) = self.open.remove(&name)
            && other != uid
        {
            self.held.entry(name.clone()).or_insert((other, open));
        }
        *self.deleting.entry(name).or_default() += 1;
        self.queue.offer(uid.to_owned(), message);
    }

    /// Queues an answer; the place of its request is free again when it is sent.
    ///
    /// # Errors
    /// Too many wait: the node does not read.
    pub(super) fn answer(
        &mut self,
        uid: &str,
        message: Message,
        place: Option<OwnedSemaphorePermit>,
    ) -> Result<(), Full> {
        let id = &message.header.msg_id;
        if !uid.is_empty() && self.answers.len() < MAX_ANSWERS {
            self.answers.insert(id.clone(), Acknowledged::of(uid, &message));
        }
        if let Some(place) = place {
            self.places.insert(id.clone(), place);
        }
        self.queue.post(message)
    }

    /// The node acknowledged this message id: what it was about.
    pub(super) fn acknowledge(&mut self, id: &str) -> Option<Acknowledged> {
        let Some((uid, message)) = self.queue.acknowledge(id) else { return self.answers.remove(id) };
        let name = &message.route.resource;
        if message.route.operation == operation::DELETE {
            self.deletion_is_done(&uid, name);
        } else if self.open.get(name).is_some_and(|(_, open)| open.header.msg_id == id) {
            self.open.remove(name);
        }
        Some(Acknowledged::of(&uid, &message))
    }

    /// The node could not take the message with this id: the object's uid and its path, once for each time that it was sent.
    pub(super) fn refused(&mut self, id: &str) -> Option<(String, String)> {
        let (uid, message) = self.queue.refused(id)?;
        Some((uid.to_owned(), message.route.resource.clone()))
    }

    fn deletion_is_done(&mut self, uid: &str, name: &str) {
        self.deleted.push_back(uid.to_owned());
        if self.deleted.len() > MAX_DELETED
            && let Some(oldest) = self.deleted.pop_front()
        {
            self.offered.remove(&oldest);
        }
        let left = self.deleting.get(name).map_or(0, |count| count.saturating_sub(1));
        if left > 0 {
            self.deleting.insert(name.to_owned(), left);
            return;
        }
        self.deleting.remove(name);
        if let Some((uid, message)) = self.held.remove(name) {
            self.open.insert(name.to_owned(), (uid.clone(), message.clone()));
            self.queue.offer(uid, message);
        }
    }

    /// What to send now.
    pub(super) fn next(&mut self, now: Instant) -> Option<Message> {
        let message = self.queue.next(now)?;
        self.places.remove(&message.header.msg_id);
        Some(message)
    }

    /// When there is something again without further events.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.queue.next_due()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tokio::sync::Semaphore;
    use wire::{Content, Route};

    fn message(id: &str, verb: &str) -> Message {
        Message::new(
            id.to_owned(),
            0,
            Route::new("edgecontroller", "resource", verb, "default/pod/web"),
            Content::null(),
        )
    }

    fn sent(lane: &mut Lane) -> Vec<String> {
        std::iter::from_fn(|| lane.next(Instant::now())).map(|message| message.header.msg_id).collect()
    }

    #[test]
    fn a_namesake_waits_for_the_deletion() {
        let mut lane = Lane::default();
        lane.offer("old", 1, message("old", "update"));
        assert_eq!(sent(&mut lane), ["old"]);
        lane.acknowledge("old");
        lane.offer("old", 9, message("bye", "delete"));
        lane.offer("new", 10, message("new-1", "insert"));
        lane.offer("new", 11, message("new-2", "update"));
        assert_eq!(sent(&mut lane), ["bye"]);
        lane.acknowledge("bye");
        assert_eq!(sent(&mut lane), ["new-2"]);
    }

    #[test]
    fn a_namesake_on_its_way_is_sent_again_behind_a_late_deletion() {
        let mut lane = Lane::default();
        lane.offer("new", 10, message("new", "insert"));
        assert_eq!(sent(&mut lane), ["new"]);
        lane.offer("old", u64::MAX, message("bye", "delete"));
        lane.acknowledge("new");
        assert_eq!(sent(&mut lane), ["bye"]);
        lane.acknowledge("bye");
        assert_eq!(sent(&mut lane), ["new"]);
    }

    #[test]
    fn what_was_deleted_does_not_come_back() {
        let mut lane = Lane::default();
        lane.offer("old", 9, message("bye", "delete"));
        assert_eq!(sent(&mut lane), ["bye"]);
        assert!(lane.acknowledge("bye").is_some() && lane.acknowledge("bye").is_none());
        lane.offer("old", 8, message("late", "update"));
        lane.offer("old", u64::MAX, message("again", "delete"));
        assert!(sent(&mut lane).is_empty());
        for n in 0..=MAX_DELETED {
            lane.offer(&n.to_string(), 9, message(&format!("bye-{n}"), "delete"));
            sent(&mut lane);
            lane.acknowledge(&format!("bye-{n}"));
        }
        assert_eq!((lane.offered.len(), lane.deleting.len(), lane.open.len()), (MAX_DELETED, 0, 0));
    }

    #[test]
    fn an_acknowledged_answer_counts_as_the_object() {
        let mut lane = Lane::default();
        lane.answer("uid", message("answer", "response"), None).expect("room");
        assert_eq!(sent(&mut lane), ["answer"]);
        assert_eq!(lane.acknowledge("answer").map(|acknowledged| acknowledged.uid).as_deref(), Some("uid"));
    }

    #[test]
    fn a_request_keeps_its_place_until_its_answer_is_sent() {
        let mut lane = Lane::default();
        let places = Arc::new(Semaphore::new(1));
        let place = places.clone().try_acquire_owned().expect("free");
        lane.answer("uid", message("answer", "response"), Some(place)).expect("room");
        assert_eq!(places.available_permits(), 0);
        assert_eq!(sent(&mut lane), ["answer"]);
        assert_eq!(places.available_permits(), 1);
    }
}
