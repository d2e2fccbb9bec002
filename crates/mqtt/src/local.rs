//! The local end: edgecore, as connections see it.

use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::mpsc;

use crate::message::Message;
use crate::replies::Token;
use crate::room::Room;
use crate::topic::Tree;
use crate::{Publish, Received, Taken};

/// Bytes that edgecore may have and not have taken, of each broker.
pub(crate) const WAITING: usize = 16 << 20;

/// The local end, as connections see it.
pub(crate) struct LocalEnd {
    filters: RwLock<Tree<(), ()>>,
    sender: mpsc::Sender<Received>,
    room: Room,
}

impl LocalEnd {
    pub(crate) fn new(sender: mpsc::Sender<Received>) -> Self {
        Self { filters: RwLock::default(), sender, room: Room::of(WAITING) }
    }

    pub(crate) fn subscribe(&self, filter: &str) {
        self.filters.write().unwrap_or_else(PoisonError::into_inner).insert(filter, (), ());
    }

    pub(crate) fn unsubscribe(&self, filter: &str) {
        self.filters.write().unwrap_or_else(PoisonError::into_inner).remove(filter, &());
    }

    pub(crate) fn wants(&self, topic: &str) -> bool {
        let mut wants = false;
        let filters = self.filters.read().unwrap_or_else(PoisonError::into_inner);
        filters.matches(topic, &mut |(), ()| wants = true);
        wants
    }

    /// Waits while the channel is full, or what was handed over and is not taken is too much.
    pub(crate) async fn hand_over(&self, publish: Publish, token: Option<Arc<Token>>) {
        let place = self.room.take(publish.topic.len() + publish.payload.len()).await;
        if let Err(refused) = self.sender.send(Received { publish, taken: Taken(token, place) }).await {
            // Nobody takes it any more: it must not look as if somebody had.
            refused.0.taken.fail();
        }
    }
}

/// A message, as edgecore gets it.
pub(crate) fn publish_of(message: &Message) -> Publish {
    Publish { topic: message.topic.clone(), payload: message.payload.clone(), qos: message.qos, retain: message.retain }
}
