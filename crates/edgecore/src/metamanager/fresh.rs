//! The node began with a database that holds no pod. It may be new; or its database was lost, and pods that run are wanted.
//!
//! edged ends what runs and is not in the list of stored pods. From a fresh database it gets this list only when the cloud has
//! had the time to send the node's pods; pods that arrive meanwhile are run at once, like always.

use std::sync::Arc;
use std::time::Duration;

use beehive::Context;
use tokio::sync::watch;
use tokio::time::Instant;
use wire::{EdgeResource, Message, kind, operation};

use super::table::Table;
use super::{answer_from, refuse};

/// After connecting, the cloud has sent the node's pods by then.
const SETTLED_AFTER: Duration = Duration::from_secs(15);
/// edged waits for an answer for a minute; it hears why there is none before that.
const PATIENCE: Duration = Duration::from_secs(50);

/// What is known of a fresh database. Cloning is cheap.
#[derive(Clone)]
pub(super) struct Fresh {
    table: Table,
    state: Arc<watch::Sender<State>>,
}

#[derive(Clone, Copy)]
enum State {
    /// Not fresh, or not any more.
    Settled,
    /// Without the cloud.
    Alone,
    /// With the cloud since then.
    Connected(Instant),
}

impl Fresh {
    /// Looks whether the database is fresh.
    pub(super) fn new(table: Table) -> Self {
        let state = if table.holds_pods() { State::Settled } else { State::Alone };
        Self { table, state: Arc::new(watch::Sender::new(state)) }
    }

    /// The link stands, or does not any more.
    pub(super) fn connected(&self, connected: bool) {
        self.state.send_if_modified(|state| {
            let fresh = !matches!(state, State::Settled);
            if fresh {
                *state = if connected { State::Connected(Instant::now()) } else { State::Alone };
            }
            fresh
        });
    }

    /// Whether the answer to this request has to wait.
    pub(super) fn concerns(&self, request: &Message) -> bool {
        if matches!(*self.state.borrow(), State::Settled) || request.route.operation != operation::QUERY {
            return false;
        }
        EdgeResource::parse(&request.route.resource)
            .is_ok_and(|resource| resource.kind == kind::POD && resource.name.is_none())
    }

    /// Answers once the cloud has had its time.
    pub(super) async fn answer(&self, context: &Context, request: &Message) {
        let Ok(resource) = EdgeResource::parse(&request.route.resource) else { return };
        match tokio::time::timeout(PATIENCE, self.settled()).await {
            Ok(()) => answer_from(&self.table, context, &resource, request),
            Err(_) => refuse(
                context,
                request,
                "the node's database is new, and the cloud, out of reach, has not said which pods it shall run",
            ),
        }
    }

    async fn settled(&self) {
        let mut state = self.state.subscribe();
        loop {
            let now = *state.borrow_and_update();
            let changed = state.changed();
            match now {
                State::Settled => return,
                State::Alone => drop(changed.await),
                State::Connected(since) => {
                    if tokio::time::timeout_at(since + SETTLED_AFTER, changed).await.is_err() {
                        self.state.send_replace(State::Settled);
                        return;
                    }
                }
            }
        }
    }
}
