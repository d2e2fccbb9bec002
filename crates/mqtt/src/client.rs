//! The client for a broker next door. It connects again by itself, and while there is no broker it keeps what is published, within bounds.
//!
//! One task polls `rumqttc` and hands over what comes; beside it in the same task, publishes and acknowledgements go the other way, so
//! that neither ever waits within the other. TLS is for a later version of `rumqttc`: this one brings an old `rustls-webpki`.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use link::backoff::Backoff;
use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, NetworkOptions, Packet, QoS, Request};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use crate::listen::StartError;
use crate::message::Qos;
use crate::replies::{End, Token};
use crate::topic::{is_filter, is_topic};
use crate::{Publish, PublishError, Received, Taken};

/// Messages that may wait for the broker; the oldest is dropped for one more.
const MAX_WAITING: usize = 1000;
/// Bytes that may wait.
const MAX_BYTES: usize = 1 << 20;
/// Messages from the broker that wait to be taken, and that were taken and not acknowledged.
const RECEIVED: usize = 1000;
/// The longest packet either way, above the longest message.
const MAX_PACKET: usize = MAX_BYTES + (64 << 10);
/// Requests between the two halves.
const REQUESTS: usize = 16;
/// Publishes on their way to the broker.
const IN_FLIGHT: u16 = 20;
/// Waits between tries to connect.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// How long the last messages may take at the end.
const GRACE: Duration = Duration::from_secs(2);

/// Which broker, and as whom.
#[derive(Clone)]
pub struct ClientConfig {
    /// Its host.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The id that it knows us by. Two with one id throw each other out.
    pub client_id: String,
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
struct Shared {
    state: Mutex<State>,
    wake: Notify,
    /// The number of the connection; 0 while there is none.
    connection: AtomicU64,
}

#[derive(Default)]
struct State {
    filters: BTreeSet<String>,
    /// What the broker has not been told: subscribe, or no more.
    changed: VecDeque<(String, bool)>,
    waiting: VecDeque<Publish>,
    bytes: usize,
    dropped: u64,
    /// Sent, and not acknowledged.
    unsure: usize,
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
        let mut options = MqttOptions::new(config.client_id, config.host, config.port);
        options.set_keep_alive(config.keep_alive).set_manual_acks(true).set_clean_session(true);
        options.set_max_packet_size(MAX_PACKET, MAX_PACKET).set_inflight(IN_FLIGHT);
        if let Some((name, password)) = config.user {
            options.set_credentials(name, password);
        }
        let (client, mut eventloop) = AsyncClient::new(options, REQUESTS);
        let mut network = NetworkOptions::new();
        network.set_tcp_nodelay(true);
        network.set_connection_timeout(config.connect_timeout.as_secs().max(1));
        eventloop.set_network_options(network);
        let shared = Arc::new(Shared::default());
        shared.lock().filters = filters.iter().map(|filter| (*filter).to_owned()).collect();
        let (received, receiver) = mpsc::channel(RECEIVED);
        let (acks, to_ack) = mpsc::channel(RECEIVED);
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let task = {
            let (shared, stop) = (shared.clone(), stop.clone());
            async move {
                let last_word = async {
                    stop.cancelled().await;
                    let _ = tokio::time::timeout(GRACE, shared.until_sent()).await;
                    if shared.is_connected() {
                        let _ = client.disconnect().await;
                        // Until the connection is closed, which ends the driver.
                        std::future::pending::<()>().await;
                    }
                };
                let driver = Driver { shared: &shared, received, acks, stop: &stop };
                tokio::select! {
                    () = driver.run(eventloop) => {}
                    () = send(&client, &shared, to_ack) => {}
                    () = last_word => {}
                }
            }
        };
        tasks.spawn(task);
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

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
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

    /// When the broker has everything, or is not there.
    async fn until_sent(&self) {
        let mut poll = tokio::time::interval(Duration::from_millis(10));
        while self.is_connected() && {
            let state = self.lock();
            !state.waiting.is_empty() || state.unsure > 0
        } {
            poll.tick().await;
        }
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
}

/// Polls the connection.
struct Driver<'a> {
    shared: &'a Shared,
    received: mpsc::Sender<Received>,
    acks: mpsc::Sender<(u64, rumqttc::Publish)>,
    stop: &'a CancellationToken,
}

impl Driver<'_> {
    async fn run(self, mut eventloop: EventLoop) {
        let mut backoff = Backoff::new(FIRST_WAIT, LONGEST_WAIT);
        let (mut connections, mut absent, mut overrun) = (0, false, false);
        loop {
            match eventloop.poll().await {
                Ok(Event::Incoming(Packet::ConnAck(_))) => {
                    connections += 1;
                    backoff.reset();
                    self.connected(connections, absent);
                    absent = false;
                }
                Ok(Event::Incoming(Packet::Publish(publish))) => {
                    self.hand_over(connections, publish, &mut overrun).await;
                }
                Ok(Event::Incoming(Packet::PubAck(_) | Packet::PubComp(_))) => {
                    let mut state = self.shared.lock();
                    state.unsure = state.unsure.saturating_sub(1);
                }
                Ok(Event::Incoming(Packet::SubAck(ack))) => {
                    if ack.return_codes.contains(&rumqttc::SubscribeReasonCode::Failure) {
                        warn!("the MQTT broker refuses a subscription: do its rules allow the user to read?");
                    }
                }
                Ok(_) => {}
                Err(error) => {
                    self.shared.connection.store(0, Ordering::Release);
                    self.take_back(&mut eventloop);
                    if self.stop.is_cancelled() {
                        return;
                    }
                    match absent {
                        false => warn!(%error, "the MQTT broker is absent; messages for it wait"),
                        true => debug!(%error, "the MQTT broker is still absent"),
                    }
                    absent = true;
                    tokio::select! {
                        () = tokio::time::sleep(backoff.next_wait()) => {}
                        () = self.stop.cancelled() => return,
                    }
                }
            }
        }
    }

    fn connected(&self, number: u64, was_absent: bool) {
        let mut state = self.shared.lock();
        // The session is a new one: it has no subscriptions.
        state.changed = state.filters.iter().map(|filter| (filter.clone(), true)).collect();
        state.unsure = 0;
        let (waiting, dropped) = (state.waiting.len(), std::mem::take(&mut state.dropped));
        match was_absent {
            true => info!(waiting, dropped, "the MQTT broker is back"),
            false => info!("connected to the MQTT broker"),
        }
        self.shared.connection.store(number, Ordering::Release);
        drop(state);
        self.shared.wake.notify_one();
    }

    /// What the broker has not acknowledged waits for the next connection: `rumqttc` would forget it, for the session is a new one.
    fn take_back(&self, eventloop: &mut EventLoop) {
        let mut state = self.shared.lock();
        state.unsure = 0;
        let pending: Vec<Request> = eventloop.pending.drain(..).collect();
        for request in pending.into_iter().rev() {
            if let Request::Publish(publish) = request {
                let publish = publish_of(publish);
                state.bytes += size(&publish);
                state.waiting.push_front(publish);
            }
        }
        state.bound();
    }

    async fn hand_over(&self, connection: u64, publish: rumqttc::Publish, overrun: &mut bool) {
        if publish.qos == QoS::AtMostOnce {
            let received = Received { publish: publish_of(publish), taken: Taken(None, None) };
            let full = matches!(self.received.try_send(received), Err(mpsc::error::TrySendError::Full(_)));
            if full && !*overrun {
                warn!("messages of QoS 0 come faster than they are taken: some are dropped");
            }
            *overrun = full;
            return;
        }
        // The broker has few of these on their way, so this waits only when nobody takes them for long.
        let Ok(place) = self.acks.clone().reserve_owned().await else { return };
        let token = Token::new(End::Elsewhere(place, connection, publish.clone()));
        let received = Received { publish: publish_of(publish), taken: Taken(Some(token), None) };
        if let Err(refused) = self.received.send(received).await {
            refused.0.taken.fail();
        }
    }
}

/// Sends what waits: acknowledgements, subscriptions, messages.
async fn send(client: &AsyncClient, shared: &Shared, mut to_ack: mpsc::Receiver<(u64, rumqttc::Publish)>) {
    loop {
        tokio::select! {
            Some((connection, publish)) = to_ack.recv() => {
                // Another connection has given the number to another message.
                if connection == shared.connection.load(Ordering::Acquire) {
                    let _ = client.ack(&publish).await;
                }
            }
            () = shared.wake.notified() => {}
        }
        while shared.is_connected() {
            let (change, publish) = {
                let mut state = shared.lock();
                let change = state.changed.pop_front();
                let publish = if change.is_none() { state.waiting.pop_front() } else { None };
                if let Some(publish) = &publish {
                    state.bytes -= size(publish);
                    state.unsure += usize::from(publish.qos != Qos::AtMostOnce);
                }
                (change, publish)
            };
            // The other half ends first, so these reach it.
            let _ = match (change, publish) {
                (Some((filter, true)), _) => client.subscribe(filter, QoS::AtLeastOnce).await,
                (Some((filter, false)), _) => client.unsubscribe(filter).await,
                (None, Some(publish)) => {
                    let qos = match publish.qos {
                        Qos::AtMostOnce => QoS::AtMostOnce,
                        Qos::AtLeastOnce => QoS::AtLeastOnce,
                        Qos::ExactlyOnce => QoS::ExactlyOnce,
                    };
                    client.publish_bytes(publish.topic, qos, publish.retain, publish.payload).await
                }
                (None, None) => break,
            };
            while let Ok((connection, publish)) = to_ack.try_recv() {
                if connection == shared.connection.load(Ordering::Acquire) {
                    let _ = client.ack(&publish).await;
                }
            }
        }
    }
}

fn publish_of(publish: rumqttc::Publish) -> Publish {
    let qos = match publish.qos {
        QoS::AtMostOnce => Qos::AtMostOnce,
        QoS::AtLeastOnce => Qos::AtLeastOnce,
        QoS::ExactlyOnce => Qos::ExactlyOnce,
    };
    Publish { topic: publish.topic, payload: publish.payload, qos, retain: publish.retain }
}

/// What a message takes, about.
fn size(publish: &Publish) -> usize {
    publish.topic.len() + publish.payload.len()
}
