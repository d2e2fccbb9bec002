//! The client for a broker next door. It connects again by itself, and while there is no broker it keeps what is published, within bounds.
//!
//! It speaks MQTT 3.1.1. `dial` is the way there, `conversation` one connection, `sending` what has to outlive one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use link::backoff::Backoff;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use crate::conversation::{Conversation, Ways};
use crate::dial::dial;
use crate::handover::HandOver;
use crate::listen::StartError;
use crate::replies::Answer;
use crate::room::Room;
use crate::sending::{MAX_BYTES, State, size};
use crate::tls::ClientTls;
use crate::topic::{is_filter, is_topic};
use crate::{Publish, PublishError, Received, local};

/// Messages from the broker that wait to be handed over, that were handed over, and that were taken and not acknowledged: of each so many.
pub(crate) const RECEIVED: usize = 1000;
/// The longest packet from the broker, above the longest message.
pub(crate) const MAX_PACKET: usize = MAX_BYTES + (64 << 10);
/// Waits between tries to connect.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// A connection that has lasted so long is no reason to wait longer for the next one.
const STEADY: Duration = Duration::from_secs(5);
/// How long the last messages may take at the end.
pub(crate) const GRACE: Duration = Duration::from_secs(2);

/// Which broker, and as whom.
#[derive(Clone)]
pub struct ClientConfig {
    /// Its host.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// TLS, for the name in `host`; `None` is plain TCP.
    pub tls: Option<ClientTls>,
    /// The id that it knows us by. Two with one id throw each other out.
    pub client_id: String,
    /// Whether the broker keeps our session while we are away: what comes with QoS 1 meanwhile is received later. The id must stay the same then, and
    /// what is published with QoS 2 while this process dies may be lost.
    pub keep_session: bool,
    /// Name and password, if it wants them.
    pub user: Option<(String, String)>,
    /// How often it hears of us; KubeEdge has 30 seconds.
    pub keep_alive: Duration,
    /// How long a connection may take; KubeEdge has 30 seconds.
    pub connect_timeout: Duration,
}

/// A connection to a broker that comes back by itself.
pub struct Client {
    shared: Arc<Shared>,
    /// So long it may take no messages before nobody waits for it.
    patience: Duration,
    /// Also one that is dropped stops.
    stop: DropGuard,
    tasks: TaskTracker,
}

#[derive(Default)]
pub(crate) struct Shared {
    state: Mutex<State>,
    pub(crate) wake: Notify,
    /// Wakes those who wait for room, or for the end of a connection.
    room: Notify,
    /// The number of the connection; 0 while there is none.
    connection: AtomicU64,
    /// What it has not heard of connections before this one the broker says again.
    repeats: AtomicU64,
}

impl Client {
    /// Starts to connect, and gives what comes on these filters.
    ///
    /// # Errors
    /// A filter is none.
    pub fn start(config: ClientConfig, filters: &[&str]) -> Result<(Self, mpsc::Receiver<Received>), StartError> {
        if let Some(filter) = filters.iter().find(|filter| !is_filter(filter)) {
            return Err(StartError::Filter((*filter).to_owned()));
        }
        let shared = Arc::new(Shared { state: Mutex::new(State::new(filters)), ..Shared::default() });
        let patience = config.keep_alive;
        let (received, receiver) = mpsc::channel(RECEIVED);
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let (arrived, to_hand) = mpsc::channel(RECEIVED);
        let (answers, to_answer) = mpsc::channel(RECEIVED);
        let ways =
            Ways { received: received.clone(), arrived, answers: answers.clone(), room: Room::of(local::WAITING) };
        let (ours, stopped) = (shared.clone(), stop.clone());
        tasks.spawn(async move {
            let hand_over = HandOver { shared: &ours, received, answers };
            tokio::select! {
                () = run(config, &ours, &ways, to_answer, stopped) => {}
                () = hand_over.run(to_hand) => {}
            }
        });
        tasks.close();
        Ok((Self { shared, patience, stop: stop.drop_guard(), tasks }, receiver))
    }

    /// Publishes, or keeps for when the broker is back. Never waits: when too much waits already the oldest is dropped.
    ///
    /// # Errors
    /// The topic is none, or the message is larger than all that may wait.
    pub fn publish(&self, publish: Publish) -> Result<(), PublishError> {
        check(&publish)?;
        self.shared.lock().put(publish);
        self.shared.wake.notify_one();
        Ok(())
    }

    /// Publishes as [`Self::publish`], but drops nothing while the broker is there: it waits for room. Nobody waits for a broker that has taken
    /// nothing for as long as the keep-alive, until it does so again.
    ///
    /// # Errors
    /// As [`Self::publish`].
    pub async fn publish_with_room(&self, publish: Publish) -> Result<(), PublishError> {
        check(&publish)?;
        let size = size(&publish);
        loop {
            // Before the look, so that no wake is lost.
            let room = self.shared.room.notified();
            {
                let mut state = self.shared.lock();
                if !self.shared.is_connected() || state.takes(size) {
                    state.put(publish);
                    break;
                }
            }
            if tokio::time::timeout(self.patience, room).await.is_err() {
                self.shared.lock().stall();
            }
        }
        self.shared.wake.notify_one();
        Ok(())
    }

    /// Hears one more filter.
    ///
    /// # Errors
    /// It is no filter.
    pub fn subscribe(&self, filter: &str) -> Result<(), PublishError> {
        if !is_filter(filter) {
            return Err(PublishError::Filter(filter.to_owned()));
        }
        self.shared.change(filter, true);
        Ok(())
    }

    /// Hears it no more.
    pub fn unsubscribe(&self, filter: &str) {
        self.shared.change(filter, false);
    }

    /// Whether there is a broker.
    pub fn is_connected(&self) -> bool {
        self.shared.is_connected()
    }

    /// Sends what waits, within a short time, and ends.
    pub async fn stop(self) {
        drop(self.stop);
        let _ = tokio::time::timeout(GRACE * 2, self.tasks.wait()).await;
    }
}

/// Connects again and again.
async fn run(
    config: ClientConfig,
    shared: &Shared,
    ways: &Ways,
    mut to_answer: mpsc::Receiver<Answer>,
    stop: CancellationToken,
) {
    let broker = format!("{}:{}", config.host, config.port);
    let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
    let (mut connection, mut trouble) = (0, String::new());
    loop {
        let dialled = tokio::select! {
            () = stop.cancelled() => return,
            dialled = dial(&config) => dialled,
        };
        let reason = match dialled {
            Ok(dialled) => {
                connection += 1;
                let was_absent = !std::mem::take(&mut trouble).is_empty();
                shared.connected(connection, dialled.session_present, was_absent, &broker);
                let since = Instant::now();
                let conversation = Conversation { config: &config, shared, connection, ways };
                let ended = conversation.run(dialled, &mut to_answer, &stop).await;
                shared.disconnected();
                if since.elapsed() >= STEADY {
                    backoff.reset();
                }
                let Err(ended) = ended else { return };
                ended.to_string()
            }
            Err(error) => error.to_string(),
        };
        if stop.is_cancelled() {
            return;
        }
        // Each trouble is told once, and not at each try.
        if reason == trouble {
            debug!(broker, reason, "the MQTT broker still cannot be used");
        } else {
            warn!(broker, reason, "the MQTT broker cannot be used; messages for it wait, and it is tried again");
        }
        trouble = reason;
        tokio::select! {
            () = tokio::time::sleep(backoff.next_wait()) => {}
            () = stop.cancelled() => return,
        }
    }
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_connected(&self) -> bool {
        self.connection.load(Ordering::Acquire) != 0
    }

    /// Whether it is the connection that there is.
    pub(crate) fn is_current(&self, connection: u64) -> bool {
        self.connection.load(Ordering::Acquire) == connection
    }

    /// Whether the broker says again what it has not heard of on that connection.
    pub(crate) fn is_repeated(&self, connection: u64) -> bool {
        connection < self.repeats.load(Ordering::Acquire)
    }

    fn change(&self, filter: &str, subscribe: bool) {
        self.lock().change(filter, subscribe, self.is_connected());
        self.wake.notify_one();
    }

    fn connected(&self, number: u64, session_present: bool, was_absent: bool, broker: &str) {
        let mut state = self.lock();
        let (waiting, dropped) = state.connected(session_present);
        match was_absent {
            true => info!(broker, waiting, dropped, "the MQTT broker is back"),
            false => info!(broker, waiting, dropped, "connected to the MQTT broker"),
        }
        if session_present {
            self.repeats.store(number, Ordering::Release);
        }
        self.connection.store(number, Ordering::Release);
    }

    fn disconnected(&self) {
        self.connection.store(0, Ordering::Release);
        self.room.notify_waiters();
    }

    /// What is to be sent now. `true` when nothing waits, and everything is acknowledged.
    pub(crate) fn take(&self, out: &mut BytesMut) -> bool {
        let mut state = self.lock();
        if state.take(out) {
            self.room.notify_waiters();
        }
        state.all_is_said()
    }

    /// The broker has a message.
    pub(crate) fn acknowledged(&self, packet_id: u16) {
        self.lock().acknowledged(packet_id);
        self.wake.notify_one();
    }
}

fn check(publish: &Publish) -> Result<(), PublishError> {
    if !is_topic(&publish.topic) {
        return Err(PublishError::Topic(publish.topic.clone()));
    }
    match size(publish) {
        size if size > MAX_BYTES => Err(PublishError::TooLarge(size)),
        _ => Ok(()),
    }
}
