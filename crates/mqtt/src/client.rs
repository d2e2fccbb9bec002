//! The client for a broker next door. It connects again by itself, and while there is no broker it keeps what is published, within bounds.
//!
//! It speaks MQTT 3.1.1. `dial` is the way there, `conversation` one connection; what has to outlive a connection is here.

use std::collections::{BTreeSet, VecDeque};
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

use crate::conversation::Conversation;
use crate::dial::dial;
use crate::encode::{self, Ack, Version};
use crate::listen::StartError;
use crate::message::Qos;
use crate::tls::ClientTls;
use crate::topic::{is_filter, is_topic};
use crate::{Publish, PublishError, Received};

/// Messages that may wait for the broker; the oldest is dropped for one more.
const MAX_WAITING: usize = 1000;
/// Bytes that may wait.
const MAX_BYTES: usize = 1 << 20;
/// Messages from the broker that wait to be taken, and that were taken and not acknowledged.
const RECEIVED: usize = 1000;
/// The longest packet from the broker, above the longest message.
pub(crate) const MAX_PACKET: usize = MAX_BYTES + (64 << 10);
/// Publishes of QoS 1 and 2 on their way to the broker.
const IN_FLIGHT: usize = 20;
/// So much is written at once.
const AT_ONCE: usize = 64 << 10;
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
    /// Also one that is dropped stops.
    stop: DropGuard,
    tasks: TaskTracker,
}

#[derive(Default)]
pub(crate) struct Shared {
    state: Mutex<State>,
    pub(crate) wake: Notify,
    /// The number of the connection; 0 while there is none.
    connection: AtomicU64,
}

#[derive(Default)]
pub(crate) struct State {
    filters: BTreeSet<String>,
    /// What the broker has not been told: subscribe, or no more.
    changed: VecDeque<(String, bool)>,
    /// Subscriptions that it has not answered.
    asked: VecDeque<(u16, String)>,
    waiting: VecDeque<Publish>,
    /// Of those that wait.
    bytes: usize,
    dropped: u64,
    /// Sent and not acknowledged, in the order of sending.
    flying: VecDeque<Flying>,
    last_id: u16,
}

struct Flying {
    packet_id: u16,
    publish: Publish,
    /// Of QoS 2: the broker has it, and has not heard that we know.
    released: bool,
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
        let shared = Arc::new(Shared::default());
        shared.lock().filters = filters.iter().map(|filter| (*filter).to_owned()).collect();
        let (received, receiver) = mpsc::channel(RECEIVED);
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        tasks.spawn(run(config, shared.clone(), received, stop.clone()));
        tasks.close();
        Ok((Self { shared, stop: stop.drop_guard(), tasks }, receiver))
    }

    /// Publishes, or keeps for when the broker is back.
    ///
    /// # Errors
    /// The topic is none, or the message is larger than all that may wait.
    pub fn publish(&self, publish: Publish) -> Result<(), PublishError> {
        if !is_topic(&publish.topic) {
            return Err(PublishError::Topic(publish.topic));
        }
        let size = size(&publish);
        if size > MAX_BYTES {
            return Err(PublishError::TooLarge(size));
        }
        let mut state = self.shared.lock();
        state.bytes += size;
        state.waiting.push_back(publish);
        state.bound();
        drop(state);
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
        let mut state = self.shared.lock();
        state.filters.insert(filter.to_owned());
        self.shared.change(&mut state, filter, true);
        Ok(())
    }

    /// Hears it no more.
    pub fn unsubscribe(&self, filter: &str) {
        let mut state = self.shared.lock();
        state.filters.remove(filter);
        self.shared.change(&mut state, filter, false);
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
async fn run(config: ClientConfig, shared: Arc<Shared>, received: mpsc::Sender<Received>, stop: CancellationToken) {
    let broker = format!("{}:{}", config.host, config.port);
    let (answers, mut to_answer) = mpsc::channel(RECEIVED);
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
                let conversation = Conversation {
                    config: &config,
                    shared: &shared,
                    connection,
                    received: &received,
                    answers: &answers,
                };
                let ended = conversation.run(dialled, &mut to_answer, &stop).await;
                shared.connection.store(0, Ordering::Release);
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

    fn change(&self, state: &mut State, filter: &str, subscribe: bool) {
        // At each connection the broker is told everything anyway.
        if self.is_connected() {
            state.changed.retain(|(other, _)| other != filter);
            state.changed.push_back((filter.to_owned(), subscribe));
            self.wake.notify_one();
        }
    }

    fn connected(&self, number: u64, session_present: bool, was_absent: bool, broker: &str) {
        let mut state = self.lock();
        state.changed = state.filters.iter().map(|filter| (filter.clone(), true)).collect();
        state.asked.clear();
        if !session_present {
            // The broker knows nothing of these any more. It may have handed one on: better twice than not at all.
            while let Some(Flying { publish, .. }) = state.flying.pop_back() {
                state.bytes += size(&publish);
                state.waiting.push_front(publish);
            }
            state.bound();
        }
        let (waiting, dropped) = (state.waiting.len(), std::mem::take(&mut state.dropped));
        match was_absent {
            true => info!(broker, waiting, dropped, "the MQTT broker is back"),
            false => info!(broker, "connected to the MQTT broker"),
        }
        self.connection.store(number, Ordering::Release);
    }

    /// The broker has a message.
    pub(crate) fn acknowledged(&self, packet_id: u16) {
        self.lock().flying.retain(|flying| flying.packet_id != packet_id);
        self.wake.notify_one();
    }
}

impl State {
    /// Drops the oldest until the rest fits.
    fn bound(&mut self) {
        while self.waiting.len() > MAX_WAITING || self.bytes > MAX_BYTES {
            let Some(oldest) = self.waiting.pop_front() else { return };
            self.bytes -= size(&oldest);
            if self.dropped == 0 {
                warn!("too many messages wait for the MQTT broker: the oldest are dropped");
            }
            self.dropped += 1;
        }
    }

    /// What a broker that remembers us may have, and has not acknowledged.
    pub(crate) fn send_again(&self, out: &mut BytesMut) {
        for Flying { packet_id, publish, released } in &self.flying {
            match released {
                true => out.extend_from_slice(&encode::ack(Version::V3, Ack::Release, *packet_id, 0)),
                false => encode::publish(publish, *packet_id, true, out),
            }
        }
    }

    /// What is to be sent now. `true` when nothing waits, and everything is acknowledged.
    pub(crate) fn take(&mut self, out: &mut BytesMut) -> bool {
        while let Some((filter, subscribe)) = self.changed.pop_front() {
            let packet_id = self.next_id();
            encode::subscription(subscribe, packet_id, &filter, out);
            if subscribe {
                self.asked.push_back((packet_id, filter));
            }
        }
        while self.flying.len() < IN_FLIGHT && out.len() < AT_ONCE {
            let Some(publish) = self.waiting.pop_front() else { break };
            self.bytes -= size(&publish);
            let packet_id = if publish.qos == Qos::AtMostOnce { 0 } else { self.next_id() };
            encode::publish(&publish, packet_id, false, out);
            if packet_id != 0 {
                self.flying.push_back(Flying { packet_id, publish, released: false });
            }
        }
        self.waiting.is_empty() && self.flying.is_empty()
    }

    /// The broker has a message of QoS 2.
    pub(crate) fn released(&mut self, packet_id: u16) {
        if let Some(flying) = self.flying.iter_mut().find(|flying| flying.packet_id == packet_id) {
            flying.released = true;
        }
    }

    /// The broker has answered a subscription: to what.
    pub(crate) fn subscribed(&mut self, packet_id: u16) -> Option<String> {
        let index = self.asked.iter().position(|(asked, _)| *asked == packet_id)?;
        self.asked.remove(index).map(|(_, filter)| filter)
    }

    fn next_id(&mut self) -> u16 {
        loop {
            self.last_id = self.last_id.wrapping_add(1);
            let id = self.last_id;
            if id != 0 && self.flying.iter().all(|flying| flying.packet_id != id) {
                return id;
            }
        }
    }
}

/// What a message takes, about.
fn size(publish: &Publish) -> usize {
    publish.topic.len() + publish.payload.len()
}
