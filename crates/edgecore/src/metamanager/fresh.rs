//! The node began with a fresh database. It may be new; or its database was lost, and pods that run are wanted.
//!
//! edged ends what runs and is not in the list of stored pods. From a fresh database it gets this list only when the cloud has said
//! that everything was sent (a Go cloud does not: it gets some time); pods that arrive meanwhile are run at once, like always. That the
//! database is fresh no more is stored in it.

use std::sync::Arc;
use std::time::Duration;

use beehive::Context;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::warn;
use wire::{EdgeResource, Message, kind, operation};

use super::table::Table;
use super::{answer_from, refuse};

/// After connecting, a Go cloud has sent the node's pods by then.
const SETTLED_AFTER: Duration = Duration::from_secs(15);
/// edged waits for an answer for a minute; it hears why there is none before that.
const PATIENCE: Duration = Duration::from_secs(50);

/// What is known of a fresh database. Cloning is cheap.
#[derive(Clone)]
pub(super) struct Fresh {
    table: Table,
    state: Arc<watch::Sender<State>>,
}

/// What the node is connected to.
#[derive(Clone, Copy)]
pub(super) enum Link {
    /// Nothing.
    None,
    /// A cloud of upstream's behaviour.
    Upstream,
    /// One that says when everything was sent.
    Own,
}

#[derive(Clone, Copy)]
enum State {
    /// Not fresh, or not any more.
    Settled,
    /// Without the cloud.
    Alone,
    /// With a Go cloud since then.
    Connected(Instant),
    /// With a cloud that says when everything was sent.
    Told,
}

impl Fresh {
    /// Looks whether the database is fresh.
    pub(super) fn new(table: Table) -> Self {
        let state = if table.is_settled() { State::Settled } else { State::Alone };
        Self { table, state: Arc::new(watch::Sender::new(state)) }
    }

    /// The link stands, or does not any more; with it, a cloud that says when everything was sent, or a Go cloud.
    pub(super) async fn connected(&self, link: Link) {
        let changed = self.state.send_if_modified(|state| {
            let fresh = !matches!(state, State::Settled);
            if fresh {
                *state = match link {
                    Link::None => State::Alone,
                    Link::Upstream => State::Connected(Instant::now()),
                    Link::Own => State::Told,
                };
            }
            fresh
        });
        if changed && matches!(link, Link::Upstream) {
            self.note(false).await;
        }
    }

    /// Whether the list of stored pods may lack some that the node shall run.
    pub(super) fn is_partial(&self) -> bool {
        !matches!(*self.state.borrow(), State::Settled)
    }

    /// The cloud has sent everything, and it is stored.
    pub(super) async fn synced(&self) {
        if self.is_partial() {
            self.settle().await;
        }
    }

    async fn settle(&self) {
        // Before anybody is answered: who was does not have to wait again after a restart.
        self.note(true).await;
        self.state.send_replace(State::Settled);
    }

    async fn note(&self, told: bool) {
        if let Err(error) = self.table.settle(told).await {
            // After the next start the cloud is waited for once more.
            warn!(%error, "that everything was sent could not be stored");
        }
    }

    /// Whether the answer to this request has to wait.
    pub(super) fn concerns(&self, request: &Message) -> bool {
        if !self.is_partial() || request.route.operation != operation::QUERY {
            return false;
        }
        EdgeResource::parse(&request.route.resource)
            .is_ok_and(|resource| resource.kind == kind::POD && resource.name.is_none())
    }

    /// Answers once the cloud has had its time.
    pub(super) async fn answer(&self, context: &Context, request: &Message) {
        let Ok(resource) = EdgeResource::parse(&request.route.resource) else { return };
        match tokio::time::timeout(PATIENCE, self.settled()).await {
            Ok(newly) => {
                answer_from(&self.table, context, &resource, request);
                if newly {
                    self.settle().await;
                }
            }
            Err(_) => refuse(
                context,
                request,
                "the node's database is new, and the cloud, out of reach, has not said which pods it shall run",
            ),
        }
    }

    /// Waits; whether it was the time that decided.
    async fn settled(&self) -> bool {
        let mut state = self.state.subscribe();
        loop {
            let now = *state.borrow_and_update();
            let changed = state.changed();
            match now {
                State::Settled => return false,
                State::Alone | State::Told => drop(changed.await),
                State::Connected(since) => {
                    if tokio::time::timeout_at(since + SETTLED_AFTER, changed).await.is_err() {
                        return true;
                    }
                }
            }
        }
    }
}
