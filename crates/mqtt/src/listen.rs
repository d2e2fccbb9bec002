//! The broker as edgecore holds it: starts, publishes, stops.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use link::newcomers::Newcomers;
use rustls::ServerConfig;
use store::{Database, Durability, OpenError, StoreError};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::access::{AccessError, User, Users};
use crate::connection::{self, Stream};
use crate::journal::{self, Journal, SCHEMA};
use crate::local::LocalEnd;
use crate::message::{Message, Qos};
use crate::outbox::Bounds;
use crate::replies::{End, Token};
use crate::retained::Retained;
use crate::room::Room;
use crate::router::{Event, Limits, Router};
use crate::topic::{is_filter, is_topic};
use crate::{Publish, PublishError, Received};

/// How long a client may take for TLS and CONNECT.
const CONNECT: Duration = Duration::from_secs(10);
/// The wait after a failed accept, which mostly means too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What the router may have to do; more waits with those who ask.
const EVENTS: usize = 256;
/// Bytes of messages on their way to the router and to the disk.
const ON_WAY: usize = 32 << 20;
/// Messages that wait for the local end.
const LOCAL: usize = 256;
/// Wills that wait for their time; more are said at once.
const DELAYED_WILLS: usize = 1024;
/// How long clients may take to go when the broker stops.
const GRACE: Duration = Duration::from_secs(3);

/// Where the broker listens.
pub struct Listen {
    /// The address; port 0 is any.
    pub address: SocketAddr,
    /// TLS, which may change while it runs; `None` is plain TCP.
    pub tls: Option<watch::Receiver<Arc<ServerConfig>>>,
}

/// How the broker runs.
pub struct BrokerConfig {
    /// Where it listens.
    pub listen: Vec<Listen>,
    /// Who may connect; see [`Broker::set_users`]. When empty, everybody may do everything.
    pub users: Vec<User>,
    /// Where retained messages and persistent sessions are kept; `None` is in memory only.
    pub database: Option<PathBuf>,
    /// Clients at a time.
    pub max_connections: usize,
    /// The longest packet, in bytes; who sends a longer one is disconnected.
    pub max_packet: usize,
    /// Messages of QoS 1 and 2 on their way to one client.
    pub max_in_flight: usize,
    /// Messages that wait for one client. When there are more, the oldest of QoS 0 is dropped, else the new one.
    pub max_queued: usize,
    /// Bytes that wait for one client, with the same consequence.
    pub max_queued_bytes: usize,
    /// Retained messages. One on a further topic is delivered, but not kept.
    pub max_retained: usize,
    /// Bytes of retained messages.
    pub max_retained_bytes: usize,
    /// Sessions, of clients that are here or away. For one more the session that has been away longest is ended.
    pub max_sessions: usize,
    /// How long a session may be kept for a client that is away, whatever it asks for. Clients of MQTT 3.1.1 ask for ever.
    pub max_session_age: Duration,
}

impl BrokerConfig {
    /// Mosquitto's limits where it has any, on one address, without users and in memory.
    pub fn at(address: SocketAddr) -> Self {
        Self {
            listen: vec![Listen { address, tls: None }],
            users: Vec::new(),
            database: None,
            max_connections: 1024,
            max_packet: 1 << 20,
            max_in_flight: 20,
            max_queued: 1000,
            max_queued_bytes: 8 << 20,
            max_retained: 10_000,
            max_retained_bytes: 32 << 20,
            max_sessions: 4096,
            max_session_age: Duration::from_secs(14 * 24 * 3600),
        }
    }
}

/// The broker cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on.
    #[error("the MQTT broker cannot listen on {0}: is another broker running there?")]
    Listen(SocketAddr, #[source] std::io::Error),
    /// The database cannot be opened.
    #[error("the MQTT broker's database cannot be opened")]
    Open(#[source] OpenError),
    /// The database cannot be read.
    #[error("the MQTT broker's database cannot be read")]
    Load(#[source] StoreError),
    /// Users are not configured well.
    #[error("the MQTT broker's users are not configured well")]
    Users(#[source] AccessError),
    /// What edgecore wants to hear is no filter.
    #[error("{0:?} is no MQTT topic filter")]
    Filter(String),
}

/// The embedded broker.
pub struct Broker {
    addresses: Vec<SocketAddr>,
    shared: Arc<Shared>,
    /// Also one that is dropped stops.
    stop: DropGuard,
    tasks: TaskTracker,
    connections: TaskTracker,
}

/// What connections need.
pub(crate) struct Shared {
    pub(crate) users: Users,
    pub(crate) packet_size: usize,
    pub(crate) local: LocalEnd,
    pub(crate) journal: Journal,
    events: mpsc::Sender<Event>,
    room: Room,
}

impl Shared {
    /// Asks the router for something; waits while it has too much to do.
    pub(crate) async fn tell(&self, event: Event) {
        // It ends after the connections, so somebody listens.
        let _ = self.events.send(event).await;
    }

    /// Hands a message to the router; waits while too much is on its way there and to the disk.
    pub(crate) async fn publish(
        &self,
        from: Option<u64>,
        message: Message,
        incoming: Option<(u16, bool)>,
        token: Option<Arc<Token>>,
    ) {
        let place = self.room.take(message.size()).await;
        self.tell(Event::Publish { from, message, incoming, token, place }).await;
    }
}

impl Broker {
    /// Starts the broker, and gives what clients publish on these filters.
    ///
    /// # Errors
    /// An address is taken, the database cannot be used, or the configuration makes no sense.
    pub async fn start(config: BrokerConfig, filters: &[&str]) -> Result<(Self, mpsc::Receiver<Received>), StartError> {
        let users = Users::new(config.users).map_err(StartError::Users)?;
        let (local, received) = mpsc::channel(LOCAL);
        let local = LocalEnd::new(local);
        for filter in filters {
            if !is_filter(filter) {
                return Err(StartError::Filter((*filter).to_owned()));
            }
            local.subscribe(filter);
        }
        let mut listeners = Vec::new();
        for listen in config.listen {
            let listener = TcpListener::bind(listen.address).await;
            let listener = listener.map_err(|error| StartError::Listen(listen.address, error))?;
            listeners.push((listener, listen.tls));
        }
        let addresses = listeners.iter().filter_map(|(listener, _)| listener.local_addr().ok()).collect();
        let tasks = TaskTracker::new();
        let mut kept = (Vec::new(), Vec::new());
        let journal = match config.database {
            None => Journal::nowhere(),
            Some(path) => {
                let database = Database::open(&path, SCHEMA, Durability::Full).map_err(StartError::Open)?;
                kept = database.read(journal::load).map_err(StartError::Load)?;
                let (journal, work) = Journal::new(database);
                tasks.spawn(work);
                journal
            }
        };
        let client = Bounds {
            in_flight: config.max_in_flight.clamp(1, 1000),
            queued: config.max_queued.clamp(1, 30_000),
            queued_bytes: config.max_queued_bytes.max(config.max_packet),
            retained: config.max_retained,
            retained_bytes: config.max_retained_bytes,
        };
        let longest_keep = u32::try_from(config.max_session_age.as_secs()).unwrap_or(u32::MAX);
        let limits = Limits { client, sessions: config.max_sessions.max(config.max_connections), longest_keep };
        let retained = Retained::new(config.max_retained, config.max_retained_bytes);
        let mut router = Router::new(limits, retained, journal.clone());
        router.restore(kept.0, kept.1);
        let (events, asked) = mpsc::channel(EVENTS);
        tasks.spawn(router.run(asked));
        let shared =
            Arc::new(Shared { users, packet_size: config.max_packet, local, journal, events, room: Room::of(ON_WAY) });
        let (stop, connections) = (CancellationToken::new(), TaskTracker::new());
        let door = Door {
            newcomers: Newcomers::default(),
            places: Arc::new(Semaphore::new(config.max_connections)),
            wills: Arc::new(Semaphore::new(DELAYED_WILLS)),
            shared: shared.clone(),
            stop: stop.clone(),
            connections: connections.clone(),
        };
        let door = Arc::new(door);
        for (listener, tls) in listeners {
            connections.spawn(door.clone().accept(listener, tls));
        }
        tasks.close();
        Ok((Self { addresses, shared, stop: stop.drop_guard(), tasks, connections }, received))
    }

    /// Where it listens, in the order of the configuration.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// From now on these may connect, and nobody else. A client whose user is gone, or has another password or other rules, is disconnected;
    /// what its user may still do it can do when it comes again.
    ///
    /// # Errors
    /// They are not configured well; those before stay.
    pub fn set_users(&self, users: Vec<User>) -> Result<(), AccessError> {
        self.shared.users.replace(users)
    }

    /// Publishes to clients, not to the local end. Returns when every session has it queued, and with QoS 1 and 2 stored.
    ///
    /// # Errors
    /// The topic is none, the broker could not store it, or it is stopping.
    pub async fn publish(&self, publish: Publish) -> Result<(), PublishError> {
        if !is_topic(&publish.topic) {
            return Err(PublishError::Topic(publish.topic));
        }
        let (sender, done) = oneshot::channel();
        let message = Message::new(publish.topic, publish.payload, publish.qos, publish.retain);
        // Nobody waits for the disk because of QoS 0.
        let token = (message.qos != Qos::AtMostOnce).then(|| Token::new(End::Local(sender)));
        let waits = token.is_some();
        self.shared.publish(None, message, None, token).await;
        if waits { done.await.map_err(|_| PublishError::NotStored) } else { Ok(()) }
    }

    /// Hears what clients publish from now on; retained messages of before are not repeated.
    ///
    /// # Errors
    /// It is no filter.
    pub fn subscribe(&self, filter: &str) -> Result<(), PublishError> {
        if !is_filter(filter) {
            return Err(PublishError::Filter(filter.to_owned()));
        }
        self.shared.local.subscribe(filter);
        Ok(())
    }

    /// Hears it no more.
    pub fn unsubscribe(&self, filter: &str) {
        self.shared.local.unsubscribe(filter);
    }

    /// Disconnects everybody, writes what is to be written, and ends.
    pub async fn stop(self) {
        drop(self.stop);
        self.connections.close();
        let _ = tokio::time::timeout(GRACE, self.connections.wait()).await;
        drop(self.shared);
        let _ = tokio::time::timeout(GRACE, self.tasks.wait()).await;
    }
}

/// Lets clients in.
struct Door {
    newcomers: Newcomers,
    places: Arc<Semaphore>,
    wills: Arc<Semaphore>,
    shared: Arc<Shared>,
    stop: CancellationToken,
    connections: TaskTracker,
}

impl Door {
    async fn accept(self: Arc<Self>, listener: TcpListener, tls: Option<watch::Receiver<Arc<ServerConfig>>>) {
        loop {
            let accepted = tokio::select! {
                () = self.stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let tcp = match accepted {
                Ok((tcp, _)) => tcp,
                Err(error) => {
                    warn!(%error, "an MQTT connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let tls = tls.as_ref().map(|tls| tls.borrow().clone());
            self.connections.spawn(self.clone().serve(tcp, tls));
        }
    }

    async fn serve(self: Arc<Self>, tcp: TcpStream, tls: Option<Arc<ServerConfig>>) {
        let _ = tcp.set_nodelay(true);
        let longest = self.shared.packet_size;
        let first_word = async move {
            let stream: Stream = match tls {
                Some(tls) => Box::new(TlsAcceptor::from(tls).accept(tcp).await?),
                None => Box::new(tcp),
            };
            connection::first_word(stream, longest).await
        };
        // Boxed, for a connection's task is as large as its largest part, and has it until the client goes.
        let admitted = Box::pin(self.newcomers.admit(first_word, CONNECT, self.places.clone()));
        let Some(Some((newcomer, place))) = self.stop.run_until_cancelled(admitted).await else { return };
        let served = Box::pin(connection::serve(newcomer, &self.shared, &self.stop)).await;
        drop(place);
        let Some(farewell) = served else { return };
        let may_wait = if farewell.is_long() { self.wills.clone().try_acquire_owned().ok() } else { None };
        farewell.say(may_wait.is_none(), &self.stop).await;
    }
}
