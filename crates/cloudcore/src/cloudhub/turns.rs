//! Requests of one node about one object are carried out in the order in which they came, those about others beside them.

use std::collections::HashMap;

use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;
use wire::{EdgeResource, kind};

/// Objects that are remembered before those without requests are forgotten.
const MAX_IDLE: usize = 64;

/// Who comes after whom.
#[derive(Default)]
pub(super) struct Turns {
    /// The end of the last request about an object.
    last: HashMap<String, oneshot::Receiver<()>>,
}

/// One request's turn; it ends when this is dropped.
pub(super) struct Turn {
    before: Option<oneshot::Receiver<()>>,
    _end: oneshot::Sender<()>,
}

impl Turns {
    /// Queues up for the object that this resource is about.
    pub(super) fn queue(&mut self, resource: &str) -> Turn {
        if self.last.len() >= MAX_IDLE {
            self.last.retain(|_, end| end.try_recv() == Err(TryRecvError::Empty));
        }
        let (end, ended) = oneshot::channel();
        Turn { before: self.last.insert(object(resource), ended), _end: end }
    }
}

impl Turn {
    /// Waits until those before have ended.
    pub(super) async fn come(&mut self) {
        if let Some(before) = self.before.take() {
            // The sender is dropped, never used: an error is the end.
            let _ = before.await;
        }
    }
}

/// A patch of a status is about the same object as its deletion.
fn object(resource: &str) -> String {
    let Ok(parsed) = EdgeResource::parse(resource) else { return resource.to_owned() };
    let what = match parsed.kind.as_str() {
        kind::POD_PATCH | kind::POD_STATUS => kind::POD,
        kind::NODE_PATCH | kind::NODE_STATUS => kind::NODE,
        other => other,
    };
    format!("{}/{what}/{}", parsed.namespace, parsed.name())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn one_object_in_order_others_beside() {
        let mut turns = Turns::default();
        let mut first = turns.queue("default/podpatch/a");
        let mut second = turns.queue("default/pod/a");
        let mut other = turns.queue("default/pod/b");
        first.come().await;
        other.come().await;
        let early = tokio::time::timeout(Duration::from_millis(20), second.come()).await;
        assert!(early.is_err(), "the first has not ended");
        drop(first);
        // The wait that was given up is over for this turn; a later one still waits for the second.
        let mut third = turns.queue("default/podpatch/a");
        assert!(tokio::time::timeout(Duration::from_millis(20), third.come()).await.is_err());
        drop(second);
    }

    #[tokio::test]
    async fn what_has_ended_is_forgotten() {
        let mut turns = Turns::default();
        let held = turns.queue("default/pod/held");
        for n in 0..1000 {
            drop(turns.queue(&format!("default/pod/{n}")));
        }
        assert!(turns.last.len() <= MAX_IDLE && turns.last.contains_key("default/pod/held"));
        drop(held);
    }
}
