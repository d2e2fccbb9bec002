//! What the broker beside has sent, on its way to edgecore: held until it has been taken, also over connections.
//!
//! What could not be taken (a full disk) is handed over again. The broker would not say it again without another connection, and one that keeps no
//! session for us forgets at the end of a connection what was on its way, whose publishers have their acknowledgement already.

use std::collections::VecDeque;
use std::time::Duration;

use link::backoff::Backoff;
use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

use crate::client::{RECEIVED, Shared};
use crate::replies::{Answer, End, Token};
use crate::room::Place;
use crate::{Publish, Received, Taken};

/// Waits before a message that could not be taken is handed over again.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A message of QoS 1 or 2.
pub(crate) struct Incoming {
    pub(crate) publish: Publish,
    pub(crate) place: Place,
    /// For when it is taken.
    pub(crate) answer: Answer,
}

/// One that was handed over. No word means that it could not be taken.
struct Given {
    incoming: Incoming,
    taken: oneshot::Receiver<()>,
}

/// The one who hands over.
pub(crate) struct HandOver<'a> {
    pub(crate) shared: &'a Shared,
    pub(crate) received: mpsc::Sender<Received>,
    pub(crate) answers: mpsc::Sender<Answer>,
}

impl HandOver<'_> {
    /// Hands over, and answers in the order in which the broker has sent. Never ends.
    pub(crate) async fn run(self, mut incoming: mpsc::Receiver<Incoming>) {
        let mut given: VecDeque<Given> = VecDeque::new();
        loop {
            tokio::select! {
                taken = first_taken(&mut given) => {
                    let Some(Given { incoming, .. }) = given.pop_front() else { continue };
                    match taken {
                        true => self.answer(incoming.answer).await,
                        false if self.is_repeated(&incoming) => {}
                        false => self.again(incoming, &mut given).await,
                    }
                }
                Some(next) = incoming.recv(), if given.len() < RECEIVED => {
                    // Nothing waits for what comes again.
                    given.retain(|one| !self.is_repeated(&one.incoming));
                    given.push_back(self.give(next).await);
                }
            }
        }
    }

    /// Waits while the channel is full.
    async fn give(&self, incoming: Incoming) -> Given {
        let (sender, taken) = oneshot::channel();
        let owed = Taken(Some(Token::new(End::Local(sender))), incoming.place.clone());
        if let Err(refused) = self.received.send(Received { publish: incoming.publish.clone(), taken: owed }).await {
            refused.0.taken.fail();
        }
        Given { incoming, taken }
    }

    /// Hands over again what could not be taken, one at a time. Also all that came after it: who has taken that must not end with something older.
    async fn again(&self, failed: Incoming, given: &mut VecDeque<Given>) {
        let mut all = VecDeque::from([failed]);
        for Given { incoming, taken } in given.drain(..) {
            // Whether it is taken or not, it must not be under way twice.
            let _ = taken.await;
            all.push_back(incoming);
        }
        if self.received.is_closed() {
            // Edgecore stops, and takes nothing any more. What is to be said to the broker still goes.
            return std::future::pending().await;
        }
        let messages = all.len();
        warn!(messages, "what the MQTT broker has sent could not be taken: it is handed over again until it is");
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        let mut was_taken = false;
        while let Some(next) = all.pop_front() {
            if !was_taken && !self.is_repeated(&next) {
                tokio::time::sleep(backoff.next_wait()).await;
            }
            if self.is_repeated(&next) {
                continue;
            }
            let Given { incoming, taken } = self.give(next).await;
            was_taken = taken.await.is_ok();
            match was_taken {
                true => {
                    backoff.reset();
                    self.answer(incoming.answer).await;
                }
                false => all.push_front(incoming),
            }
        }
        info!(messages, "what the MQTT broker has sent has been taken");
    }

    /// Whether the broker says it again on its own, because another connection has followed.
    fn is_repeated(&self, incoming: &Incoming) -> bool {
        self.shared.is_repeated(incoming.answer.connection)
    }

    async fn answer(&self, answer: Answer) {
        // Another connection has given the id to another message.
        if self.shared.is_current(answer.connection) {
            let _ = self.answers.send(answer).await;
        }
    }
}

/// Whether the first one was taken, once that is known.
async fn first_taken(given: &mut VecDeque<Given>) -> bool {
    match given.front_mut() {
        Some(first) => (&mut first.taken).await.is_ok(),
        None => std::future::pending().await,
    }
}
