//! What waits for one node: around [`NodeQueue`], which has the rules of delivery, stand the answers to the node's requests, what the
//! node is to hear of its own messages, and the word that it has caught up.

use std::collections::HashMap;
use std::time::Instant;

use beehive::compose;
use session::cloud::{Full, NodeQueue, Window};
use tokio::sync::OwnedSemaphorePermit;
use wire::{Content, Features, Message, acks, group, inventory, source};

use super::lag::Lag;
use super::progress::Progress;
use super::session::now;
use crate::objectsync::{Acknowledged, Doubt};

/// Answers whose acknowledgement is waited for.
const MAX_ANSWERS: usize = 1024;
/// Messages that are taken to be sent together.
const MAX_TOGETHER: usize = 256;
/// Bytes of contents that are taken to be sent together; one message may have any size.
const MAX_BYTES_TOGETHER: usize = 128 << 10;

/// The messages of one session.
pub(super) struct Lane {
    queue: NodeQueue,
    features: Features,
    /// Answers with an object, by message id: when the node acknowledges one, it has the object. The objects themselves may be
    /// large and are not kept.
    answers: HashMap<String, Acknowledged>,
    /// Places of requests whose answers wait to be sent, by message id: a node that does not read its answers gets no more of them.
    places: HashMap<String, OwnedSemaphorePermit>,
    /// Ids of messages of the node that were dealt with and have no answer.
    done: Vec<String>,
    /// How far the node has been compared with the cluster.
    progress: Progress,
    /// All that the node lacked has been offered, and it has not been told yet.
    caught_up: bool,
    /// The doubt that is over when it is told.
    doubt: Option<Doubt>,
    /// When the node last had everything, if it does not now.
    behind: Option<Instant>,
    has_ended: bool,
}

impl Lane {
    /// Of a session with these features.
    pub(super) fn new(features: Features) -> Self {
        Self {
            queue: NodeQueue::new(if features.acks { Window::WIDE } else { Window::UPSTREAM }),
            features,
            answers: HashMap::new(),
            places: HashMap::new(),
            done: Vec::new(),
            progress: Progress::default(),
            caught_up: false,
            doubt: None,
            behind: Some(now()),
            has_ended: false,
        }
    }

    /// Offers a version of an object; an older one than was offered before is left out.
    pub(super) fn offer(&mut self, uid: &str, version: u64, message: Message) {
        self.queue.offer(uid, version, message);
        self.note_lag();
    }

    /// Offers the deletion of an object that is not the node's any more, as of this version; it may come back.
    pub(super) fn withdraw(&mut self, uid: &str, version: u64, message: Message) {
        self.queue.withdraw(uid, version, message);
        self.note_lag();
    }

    /// The session has ended: what was not sent is not sent any more, and takes no place of what the node asks in its next session.
    pub(super) fn end(&mut self) {
        self.has_ended = true;
        self.places.clear();
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
        if let Some(place) = place.filter(|_| !self.has_ended) {
            self.places.insert(id.clone(), place);
        }
        self.queue.post(message)
    }

    /// Queues a message that nobody acknowledges.
    ///
    /// # Errors
    /// Too many wait: the node does not read.
    pub(super) fn post(&mut self, message: Message) -> Result<(), Full> {
        self.queue.post(message)
    }

    /// A message of the node was dealt with and has no answer. Where both ends agreed on it, the node hears so.
    pub(super) fn done(&mut self, id: &str) {
        if self.features.acks && self.done.len() < acks::MAX_ACKS {
            self.done.push(id.to_owned());
        }
    }

    /// How far the node has been compared with the cluster.
    pub(super) fn progress(&mut self) -> &mut Progress {
        &mut self.progress
    }

    /// A comparison, which began with this doubt about the node, has offered what the node lacked. Unless something is missing, the node hears
    /// so when it has acknowledged it.
    pub(super) fn compared(&mut self, doubt: Option<Doubt>) {
        self.caught_up = self.progress.compared() && self.features.inventory;
        self.doubt = doubt;
        self.note_lag();
    }

    /// The node acknowledged this message id: what it was about.
    pub(super) fn acknowledge(&mut self, id: &str) -> Option<Acknowledged> {
        let Some((uid, message)) = self.queue.acknowledge(id) else { return self.answers.remove(id) };
        self.note_lag();
        Some(Acknowledged::of(&uid, &message))
    }

    /// The node could not take the message with this id: the object's uid and its path, once for each time that it was sent.
    pub(super) fn refused(&mut self, id: &str) -> Option<(String, String)> {
        let (uid, message) = self.queue.refused(id, now())?;
        Some((uid.to_owned(), message.route.resource.clone()))
    }

    /// What to send now, in its order; empty when there is nothing.
    pub(super) fn take(&mut self, now: Instant) -> Vec<Message> {
        let (mut taken, mut bytes) = (Vec::new(), 0);
        if !self.done.is_empty() {
            let ids = std::mem::take(&mut self.done);
            taken.push(acks::of(&ids, source::CLOUD_HUB, compose::id(), compose::now()));
        }
        while taken.len() < MAX_TOGETHER && bytes < MAX_BYTES_TOGETHER {
            let Some(message) = self.queue.next(now) else { break };
            self.places.remove(&message.header.msg_id);
            bytes += message.content.raw().len();
            taken.push(message);
        }
        if taken.is_empty() && self.caught_up && self.queue.pending() == 0 && !self.queue.has_overflowed() {
            self.caught_up = false;
            let (from, about) = (source::EDGE_CONTROLLER, inventory::RESOURCE);
            taken.push(compose::message(from, group::RESOURCE, inventory::SYNCED, about, Content::null()));
        }
        taken
    }

    /// The doubt about the node that is over, for it was just told that it has everything.
    pub(super) fn take_settled(&mut self) -> Option<Doubt> {
        let is_told = self.progress.is_complete() && !self.caught_up;
        let has_all = is_told && self.queue.pending() == 0 && !self.queue.has_overflowed();
        if has_all { self.doubt.take() } else { None }
    }

    /// When there is something again without further events.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.queue.next_due()
    }

    /// Whether something was left out for want of room and has to be found out anew; `true` once.
    pub(super) fn take_overflow(&mut self) -> bool {
        let overflowed = self.queue.take_overflow();
        if overflowed {
            // What is found out anew ends with the word that it has caught up.
            self.caught_up = false;
            self.progress.left_out();
            self.note_lag();
        }
        overflowed
    }

    /// How far the node is behind; `None` when it has everything.
    pub(super) fn lag(&self, now: Instant) -> Option<Lag> {
        self.behind.map(|since| Lag { pending: self.queue.pending(), time: now.saturating_duration_since(since) })
    }

    fn note_lag(&mut self) {
        let has_everything = self.queue.pending() == 0 && !self.queue.has_overflowed() && self.progress.is_complete();
        self.behind = if has_everything { None } else { self.behind.or_else(|| Some(now())) };
    }

    /// Objects that the node has not acknowledged.
    pub(super) fn pending(&self) -> usize {
        self.queue.pending()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tokio::sync::Semaphore;
    use wire::Route;

    fn message(id: &str, verb: &str) -> Message {
        let route = Route::new("edgecontroller", "resource", verb, "default/pod/web");
        Message::new(id.to_owned(), 0, route, Content::null())
    }

    fn sent(lane: &mut Lane) -> Vec<String> {
        lane.take(Instant::now()).into_iter().map(|message| message.header.msg_id).collect()
    }

    #[test]
    fn an_acknowledged_answer_counts_as_the_object() {
        let mut lane = Lane::new(Features::default());
        lane.answer("uid", message("answer", "response"), None).expect("room");
        assert_eq!(sent(&mut lane), ["answer"]);
        assert_eq!(lane.acknowledge("answer").map(|acknowledged| acknowledged.uid).as_deref(), Some("uid"));
    }

    #[test]
    fn a_node_is_behind_until_it_was_compared_and_from_an_offer_until_the_last_acknowledgement() {
        let mut lane = Lane::new(Features::ALL);
        assert!(lane.lag(Instant::now()).is_some(), "what it lacks is not known yet");
        lane.compared(None);
        assert_eq!(lane.lag(Instant::now()), None);
        lane.offer("a", 1, message("first", "update"));
        lane.offer("b", 1, message("second", "update"));
        assert_eq!(sent(&mut lane), ["first", "second"]);
        lane.acknowledge("first");
        let lag = lane.lag(Instant::now() + std::time::Duration::from_secs(9)).expect("one is missing");
        assert!(lag.pending == 1 && lag.time.as_secs() >= 9, "{lag:?}");
        lane.acknowledge("second");
        assert_eq!(lane.lag(Instant::now()), None);
    }

    #[test]
    fn a_request_keeps_its_place_until_its_answer_is_sent() {
        let mut lane = Lane::new(Features::default());
        let places = Arc::new(Semaphore::new(1));
        let place = places.clone().try_acquire_owned().expect("free");
        lane.answer("uid", message("answer", "response"), Some(place)).expect("room");
        assert_eq!(places.available_permits(), 0);
        assert_eq!(sent(&mut lane), ["answer"]);
        assert_eq!(places.available_permits(), 1);
    }

    #[test]
    fn an_ended_session_keeps_no_place() {
        let mut lane = Lane::new(Features::default());
        let places = Arc::new(Semaphore::new(2));
        let place = || places.clone().try_acquire_owned().expect("free");
        lane.answer("uid", message("answer", "response"), Some(place())).expect("room");
        lane.end();
        assert_eq!(places.available_permits(), 2);
        lane.answer("uid", message("late", "response"), Some(place())).expect("room");
        assert_eq!(places.available_permits(), 2);
    }

    #[test]
    fn a_node_hears_that_it_has_caught_up_when_it_has_acknowledged_everything() {
        let mut lane = Lane::new(Features::ALL);
        lane.offer("uid", 1, message("object", "update"));
        lane.compared(None);
        assert_eq!(sent(&mut lane), ["object"]);
        assert!(sent(&mut lane).is_empty());
        lane.acknowledge("object");
        let told = lane.take(Instant::now());
        assert_eq!((told.len(), told[0].route.operation.as_str()), (1, inventory::SYNCED));
        assert!(sent(&mut lane).is_empty(), "once");
    }

    #[test]
    fn a_node_that_did_not_get_everything_for_want_of_room_has_not_caught_up() {
        let mut lane = Lane::new(Features::ALL);
        let text = Content::text(&"x".repeat(5 << 20));
        for id in ["a", "b"] {
            let mut message = message(id, "update");
            (message.route.resource, message.content) = (format!("default/pod/{id}"), text.clone());
            lane.offer(id, 1, message);
        }
        lane.compared(None);
        assert_eq!(sent(&mut lane), ["a"]);
        lane.acknowledge("a");
        assert!(sent(&mut lane).is_empty(), "the second found no room");
        assert!(lane.take_overflow() && !lane.take_overflow());
        assert!(sent(&mut lane).is_empty(), "it is being found out");
        assert!(lane.progress().want(true) && lane.progress().next() == Some(true));
        lane.compared(None);
        assert_eq!(lane.take(Instant::now())[0].route.operation, inventory::SYNCED);
    }

    #[test]
    fn only_our_own_edge_hears_of_its_messages() {
        let mut lane = Lane::new(Features::ALL);
        lane.done("a");
        lane.done("b");
        let taken = lane.take(Instant::now());
        assert_eq!(acks::read(&taken[0]), Some(vec!["a".to_owned(), "b".to_owned()]));
        let mut plain = Lane::new(Features::default());
        plain.done("a");
        plain.compared(None);
        assert!(sent(&mut plain).is_empty());
    }
}
