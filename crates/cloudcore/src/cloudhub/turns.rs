//! Requests of one node about one object are carried out in the order in which they came, those about others beside them. That holds
//! across its connections: what an earlier one brought is carried out before what a later one brings.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use wire::{EdgeResource, kind};

/// Objects that are remembered before those without requests are forgotten.
const MAX_IDLE: usize = 64;

/// Those of all nodes.
#[derive(Default)]
pub(super) struct NodeTurns {
    nodes: Mutex<HashMap<String, Turns>>,
}

/// Requests of one node that are carried out at the same time, whatever connection they came by; more wait in the last.
const MAX_REQUESTS: usize = 32;

/// Who of a node comes after whom. Cloning is cheap.
#[derive(Clone)]
pub(super) struct Turns {
    /// The end of the last request about an object.
    last: Arc<Mutex<HashMap<String, oneshot::Receiver<()>>>>,
    places: Arc<Semaphore>,
}

impl Default for Turns {
    fn default() -> Self {
        Self { last: Arc::default(), places: Arc::new(Semaphore::new(MAX_REQUESTS)) }
    }
}

/// One request's turn; it ends when this is dropped.
pub(super) struct Turn {
    before: Option<oneshot::Receiver<()>>,
    _end: oneshot::Sender<()>,
    /// Keeps them as long as a request is carried out, also when the connection has ended.
    _turns: Turns,
}

impl NodeTurns {
    /// Those of a node: the same as long as a connection of it stands or a request is carried out.
    pub(super) fn of(&self, node: &str) -> Turns {
        let mut nodes = lock(&self.nodes);
        if let Some(turns) = nodes.get(node) {
            return turns.clone();
        }
        // Doubling keeps this cheap when all nodes come back together.
        if nodes.len() >= MAX_IDLE && nodes.len().is_power_of_two() {
            nodes.retain(|_, turns| Arc::strong_count(&turns.last) > 1);
        }
        nodes.entry(node.to_owned()).or_default().clone()
    }
}

impl Turns {
    /// A place for one more request; waits until one is free. (`None` never comes: nobody closes the semaphore.)
    pub(super) async fn place(&self) -> Option<OwnedSemaphorePermit> {
        self.places.clone().acquire_owned().await.ok()
    }

    /// Queues up for the object that this resource is about.
    pub(super) fn queue(&self, resource: &str) -> Turn {
        let mut last = lock(&self.last);
        if last.len() >= MAX_IDLE {
            last.retain(|_, end| end.try_recv() == Err(TryRecvError::Empty));
        }
        let (end, ended) = oneshot::channel();
        Turn { before: last.insert(object(resource), ended), _end: end, _turns: self.clone() }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
        let turns = Turns::default();
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
    async fn who_connects_again_and_again_has_no_more_places() {
        let nodes = NodeTurns::default();
        let first = nodes.of("n1");
        let mut taken = Vec::new();
        for _ in 0..MAX_REQUESTS {
            taken.push(first.place().await.expect("free"));
        }
        let again = nodes.of("n1");
        assert!(tokio::time::timeout(Duration::from_millis(20), again.place()).await.is_err());
        drop(nodes.of("n2").place().await.expect("another node's"));
        taken.pop();
        drop(again.place().await.expect("free again"));
    }

    #[tokio::test]
    async fn what_has_ended_is_forgotten() {
        let turns = Turns::default();
        let held = turns.queue("default/pod/held");
        for n in 0..1000 {
            drop(turns.queue(&format!("default/pod/{n}")));
        }
        let last = lock(&turns.last);
        assert!(last.len() <= MAX_IDLE && last.contains_key("default/pod/held"));
        drop((last, held));
    }

    #[tokio::test]
    async fn a_later_connection_waits_for_what_an_earlier_one_brought() {
        let nodes = NodeTurns::default();
        let mut early = nodes.of("n1").queue("default/podpatch/a");
        early.come().await;
        let mut late = nodes.of("n1").queue("default/podpatch/a");
        let mut other = nodes.of("n2").queue("default/podpatch/a");
        other.come().await;
        assert!(
            tokio::time::timeout(Duration::from_millis(20), late.come()).await.is_err(),
            "the early one has not ended"
        );
        drop((early, late, other));
        let busy = nodes.of("busy");
        for n in 0..1000 {
            nodes.of(&n.to_string());
        }
        assert!(lock(&nodes.nodes).len() < 1000 && lock(&nodes.nodes).contains_key("busy"));
        drop(busy);
    }
}
