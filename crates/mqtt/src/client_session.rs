//! A client's session, as the router has it.

use std::collections::HashSet;
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::journal::Op;
use crate::message::Qos;
use crate::outbox::{Outbox, Waiting};
use crate::packet::Refusal;

/// What the router knows of a client.
pub(crate) struct Session {
    pub(crate) client: Arc<str>,
    pub(crate) user: Option<String>,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) epoch: u64,
    pub(crate) connected: Option<oneshot::Sender<Refusal>>,
    pub(crate) is_back: CancellationToken,
    pub(crate) filters: HashSet<String>,
    pub(crate) filter_bytes: usize,
    pub(crate) keep: u32,
    pub(crate) ended: u64,
    /// It has rows in the journal.
    pub(crate) stored: bool,
    pub(crate) told_of_loss: bool,
}

impl Session {
    /// Queues a message for this client. `false` when it gets nothing.
    pub(crate) fn put(&mut self, waiting: Waiting, greeting: bool, ops: &mut Vec<Op>) -> bool {
        if self.connected.is_none() && waiting.qos == Qos::AtMostOnce {
            return false;
        }
        let row = (self.stored && waiting.qos != Qos::AtMostOnce).then(|| waiting.clone());
        let Some(packet_id) = self.outbox.put(waiting, greeting) else {
            match self.told_of_loss {
                false => warn!(client = %self.client, "an MQTT client's queue is full: messages for it are dropped"),
                true => debug!(client = %self.client, "a message for an MQTT client was dropped"),
            }
            self.told_of_loss = true;
            return false;
        };
        if let Some(row) = row {
            ops.push(Op::Queued(self.client.clone(), Waiting { packet_id, ..row }));
        }
        true
    }
}
