//! The message channel: accepts nodes, one session each; the newest connection of a node is the one that counts.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::cloudcore::CloudHub as Settings;
use api::edgecore::is_node_name;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode};
use jiff::Timestamp;
use link::identity::Identity;
use link::newcomers::Newcomers;
use link::rustls::ServerConfig;
use link::rustls::server::Acceptor;
use link::ws::{self, Refusal};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_rustls::LazyConfigAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};
use wire::{FEATURES, Features, INVENTORY, on_demand};

use super::Controllers;
use super::feed::{self, Feed, Scope};
use super::monitor::{Counters, count};
use super::places::{Place, Places};
use super::session::{self, Peer, Services, SessionHandle};
use super::turns::NodeTurns;
use crate::edgecontroller::downstream::Event;

/// For TLS, and for the upgrade.
const HANDSHAKE: Duration = Duration::from_secs(15);
/// Handshakes at once: they cost CPU, and ten thousand nodes come back together.
const MAX_HANDSHAKES: usize = 256;
/// Milliseconds for which the kernel of the other end may be silent to what was written: then the connection is dead.
const UNACKNOWLEDGED: u32 = 120_000;
/// The path of the live feed.
const EVENTS: &str = "/events";
/// Observers that watch at the same time.
const MAX_OBSERVERS: usize = 32;
/// Connections at the same time by which nodes watch, and by which one of them does.
const MAX_NODES_WATCHING: usize = 64;
const MAX_OF_ONE_NODE: usize = 2;
/// Connections of one holder that have not asked for the upgrade yet.
const MAX_UPGRADES: usize = 8;
/// Nodes without a session of which it is remembered since when; of the others it is not known.
const MAX_GONE: usize = 100_000;
/// The wait after a failed accept, which mostly means too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// All sessions.
#[derive(Clone)]
pub(crate) struct Sessions {
    shared: Arc<Shared>,
}

struct Shared {
    settings: Settings,
    events: mpsc::Sender<Event>,
    services: Services,
    current: Mutex<HashMap<String, SessionHandle>>,
    gone: Mutex<HashMap<String, Timestamp>>,
    turns: NodeTurns,
    observers: Arc<Semaphore>,
    nodes_watching: Arc<Semaphore>,
    watching: Places,
    upgrades: Places,
}

/// Whether a node is connected.
pub(crate) enum Presence {
    /// By this session.
    Connected(SessionHandle),
    /// Not since this time.
    Gone(Timestamp),
    /// Not since cloudcore started.
    NotYet,
}

/// What those need who arrive.
struct Door {
    tls: Arc<ServerConfig>,
    newcomers: Newcomers,
    places: Arc<Semaphore>,
}

/// What a connection is for.
enum Purpose {
    /// The message channel of this node.
    Node(String, Peer),
    /// A live feed of what happens.
    Watch(Scope, OwnedSemaphorePermit, Option<Place>),
}

impl Sessions {
    pub(super) fn new(settings: Settings, controllers: Controllers, tasks: &TaskTracker) -> Self {
        let Controllers { events, upstream, devices, records } = controllers;
        let services = Services {
            upstream,
            devices,
            records,
            events: events.clone(),
            feed: Feed::default(),
            counters: Arc::default(),
            keepalive: settings.keepalive_interval,
            tasks: tasks.clone(),
        };
        let (current, gone, turns) = (Mutex::default(), Mutex::default(), NodeTurns::default());
        Self {
            shared: Arc::new(Shared {
                settings,
                events,
                services,
                current,
                gone,
                turns,
                observers: Arc::new(Semaphore::new(MAX_OBSERVERS)),
                nodes_watching: Arc::new(Semaphore::new(MAX_NODES_WATCHING)),
                watching: Places::new(MAX_OF_ONE_NODE),
                upgrades: Places::new(MAX_UPGRADES),
            }),
        }
    }

    /// Sessions that count now.
    pub(crate) fn handles(&self) -> Vec<SessionHandle> {
        self.current().values().cloned().collect()
    }

    /// The session of this node.
    pub(super) fn of(&self, node: &str) -> Option<SessionHandle> {
        self.current().get(node).cloned()
    }

    /// Whether this node is connected, and since when it is not.
    pub(crate) fn presence(&self, node: &str) -> Presence {
        match self.of(node) {
            // It is being closed.
            Some(session) if session.has_ended() => return Presence::Gone(Timestamp::now()),
            Some(session) => return Presence::Connected(session),
            None => {}
        }
        match self.gone().get(node) {
            Some(since) => Presence::Gone(*since),
            None => Presence::NotYet,
        }
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.shared.services.counters
    }

    pub(super) fn feed(&self) -> &Feed {
        &self.shared.services.feed
    }

    pub(super) async fn serve(
        self,
        listener: TcpListener,
        tls: Arc<ServerConfig>,
        tasks: TaskTracker,
        stopping: CancellationToken,
    ) {
        let places = Arc::new(Semaphore::new(MAX_HANDSHAKES));
        let newcomers = Newcomers::default();
        loop {
            let accepted = tokio::select! {
                () = stopping.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            let tcp = match accepted {
                Ok((tcp, _)) => tcp,
                Err(error) => {
                    warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (sessions, stopping) = (self.clone(), stopping.clone());
            let door = Door { tls: tls.clone(), newcomers: newcomers.clone(), places: places.clone() };
            tasks.spawn(async move {
                let peer = tcp.peer_addr().map(|address| address.to_string()).unwrap_or_default();
                // What an arrival needs is given back when it is over: most sessions are at rest.
                let arrived = Box::pin(stopping.run_until_cancelled(sessions.arrive(tcp, &peer, door))).await;
                if let Some((purpose, reader, writer)) = arrived.flatten() {
                    sessions.connection(purpose, &peer, reader, writer, stopping).await;
                }
            });
        }
    }

    /// From a peer's first word until what it asks for is granted.
    async fn arrive(&self, tcp: TcpStream, peer: &str, door: Door) -> Option<(Purpose, ws::Reader, ws::Writer)> {
        let _ = tcp.set_nodelay(true);
        let _ = rustix::net::sockopt::set_tcp_user_timeout(&tcp, UNACKNOWLEDGED);
        let hello = LazyConfigAcceptor::new(Acceptor::default(), tcp);
        let (handshake, place) = door.newcomers.admit(hello, HANDSHAKE, door.places).await?;
        let stream = match tokio::time::timeout(HANDSHAKE, handshake.into_stream(door.tls)).await {
            Ok(Ok(stream)) => stream,
            // A load balancer or `keadm join` that looks whether the port is open.
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                debug!(peer, "a connection ended before its TLS handshake");
                return None;
            }
            Ok(Err(error)) => {
                warn!(peer, %error, "a node was refused: its certificate is missing, expired or of another CA");
                return None;
            }
            Err(_) => {
                debug!(peer, "a TLS handshake took too long");
                return None;
            }
        };
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let identity = certificate.and_then(|certificate| Identity::read(certificate).ok());
        // What cost CPU is done.
        drop(place);
        let holder = identity.as_ref().map(|identity| identity.common_name.as_str()).unwrap_or_default();
        let Some(_upgrade) = self.shared.upgrades.take(holder) else {
            count(&self.counters().refused, 1);
            warn!(
                peer,
                holder, "a connection was refused: too many of this certificate have not asked for anything yet"
            );
            return None;
        };
        let mut purpose = None;
        let decide = |request: &Request<()>| {
            let admitted = self.admit(request, identity.as_ref())?;
            let mut answer = HeaderMap::new();
            if let Purpose::Node(_, Peer { features, .. }) = &admitted
                && *features != Features::default()
                && let Ok(value) = HeaderValue::from_str(&features.to_string())
            {
                answer.insert(HeaderName::from_static(FEATURES), value);
            }
            purpose = Some(admitted);
            Ok(answer)
        };
        match ws::accept(stream, HANDSHAKE, self.shared.settings.write_timeout, decide).await {
            // The upgrade calls the decision before it succeeds.
            Ok((reader, writer)) => purpose.map(|purpose| (purpose, reader, writer)),
            Err(error) => {
                count(&self.counters().refused, 1);
                warn!(peer, %error, "a connection was refused");
                None
            }
        }
    }

    async fn connection(
        &self,
        purpose: Purpose,
        peer: &str,
        mut reader: ws::Reader,
        mut writer: ws::Writer,
        stopping: CancellationToken,
    ) {
        match purpose {
            Purpose::Node(node, says) => {
                self.session(SessionHandle::new(&node, says), peer, reader, writer, stopping).await;
            }
            Purpose::Watch(scope, _place, _of_node) => {
                info!(peer, ?scope, "events are watched");
                let feeding = self.feed().serve(&scope, &mut reader, &mut writer);
                Box::pin(stopping.run_until_cancelled(feeding)).await;
                writer.close("the feed ends").await;
            }
        }
    }

    /// Who may connect, and as what: any path but `/events` is a node's message channel, as upstream has it.
    fn admit(&self, request: &Request<()>, identity: Option<&Identity>) -> Result<Purpose, Refusal> {
        let headers = request.headers();
        if request.uri().path() != EVENTS {
            return Ok(Purpose::Node(self.admit_node(headers, identity)?, agree(headers)));
        }
        let Some(scope) = identity.and_then(Scope::of) else {
            let reason =
                "/events is for nodes and for certificates of the group ferroedge:observers (Secret kubeedge/observer)";
            return Err(Refusal { status: StatusCode::FORBIDDEN, reason: reason.to_owned() });
        };
        let full = |reason: String| Refusal { status: StatusCode::SERVICE_UNAVAILABLE, reason };
        let (all, limit, who) = match &scope {
            Scope::All => (&self.shared.observers, MAX_OBSERVERS, "observers"),
            Scope::Node(_) => (&self.shared.nodes_watching, MAX_NODES_WATCHING, "connections of nodes"),
        };
        let Ok(place) = all.clone().try_acquire_owned() else {
            return Err(full(format!("{limit} {who} watch the events already")));
        };
        let of_node = match &scope {
            Scope::All => None,
            Scope::Node(node) => match self.shared.watching.take(node) {
                Some(place) => Some(place),
                None => return Err(full(format!("{MAX_OF_ONE_NODE} connections of {node} watch its events already"))),
            },
        };
        Ok(Purpose::Watch(scope, place, of_node))
    }

    /// The name that the node gives itself must be the one in its certificate.
    fn admit_node(&self, headers: &HeaderMap, identity: Option<&Identity>) -> Result<String, Refusal> {
        let refuse = |status: StatusCode, reason: String| {
            warn!(reason, "a connection was refused");
            Err(Refusal { status, reason })
        };
        let node = headers.get("node_id").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let own = identity.and_then(Identity::node);
        // A certificate that another cloudcore issued may hold any name; ours becomes part of URLs.
        if !is_node_name(node) || own != Some(node) {
            let found = identity.map(|identity| identity.common_name.clone()).unwrap_or_default();
            return refuse(
                StatusCode::FORBIDDEN,
                format!(
                    "header node_id is {node:?}, but the certificate is for {found:?}: each node needs its own certificate"
                ),
            );
        }
        match self.no_room(&self.current(), node) {
            Some(reason) => refuse(StatusCode::SERVICE_UNAVAILABLE, reason),
            None => Ok(node.to_owned()),
        }
    }

    fn no_room(&self, current: &HashMap<String, SessionHandle>, node: &str) -> Option<String> {
        let limit = self.shared.settings.node_limit;
        let is_full = current.len() >= limit && !current.contains_key(node);
        is_full.then(|| format!("{limit} nodes are connected already (modules.cloudHub.nodeLimit)"))
    }

    /// Makes it the session that counts; the one before is closed. Nodes that were admitted together may be too many.
    fn enter(&self, handle: &SessionHandle) -> Result<(), String> {
        let mut current = self.current();
        if let Some(reason) = self.no_room(&current, handle.node()) {
            return Err(reason);
        }
        if let Some(old) = current.insert(handle.node().to_owned(), handle.clone()) {
            old.close("another connection of this node took over");
        }
        self.gone().remove(handle.node());
        Ok(())
    }

    /// It counts no more. A late end must not take a newer session with it.
    fn leave(&self, handle: &SessionHandle) {
        let mut current = self.current();
        if current.get(handle.node()).is_some_and(|newest| newest.is(handle)) {
            current.remove(handle.node());
            let mut gone = self.gone();
            if gone.len() >= MAX_GONE
                && let Some(any) = gone.keys().next().cloned()
            {
                gone.remove(&any);
            }
            gone.insert(handle.node().to_owned(), Timestamp::now());
        }
    }

    pub(super) async fn session(
        &self,
        handle: SessionHandle,
        peer: &str,
        reader: ws::Reader,
        mut writer: ws::Writer,
        stopping: CancellationToken,
    ) {
        let node = handle.node();
        if let Err(reason) = self.enter(&handle) {
            warn!(node, reason, "a node was refused");
            return writer.close(&reason).await;
        }
        info!(node, peer, "node connected");
        count(&self.counters().connected, 1);
        let features = handle.peer().features;
        self.feed().tell(node, || feed::Event::Connected { peer: peer.to_owned(), features: features.to_string() });
        let told = self.shared.events.send(Event::Connected(handle.clone())).await;
        let reason = match told {
            Ok(()) => {
                let served = session::serve(&handle, reader, writer, &self.shared.services, self.shared.turns.of(node));
                tokio::pin!(served);
                tokio::select! {
                    reason = &mut served => reason,
                    () = stopping.cancelled() => {
                        handle.close("cloudcore stops; connect again");
                        served.await
                    }
                }
            }
            Err(_) => "cloudcore ends".to_owned(),
        };
        info!(node, reason, "node disconnected");
        self.feed().tell(node, || feed::Event::Disconnected { reason: reason.clone() });
        self.leave(&handle);
        // When the controller has ended there is nobody to tell.
        let _ = self.shared.events.send(Event::Disconnected(handle)).await;
    }

    fn gone(&self) -> std::sync::MutexGuard<'_, HashMap<String, Timestamp>> {
        self.shared.gone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self) -> std::sync::MutexGuard<'_, HashMap<String, SessionHandle>> {
        self.shared.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What our own edge announces and this version knows; nothing for a Go edge.
pub(super) fn agree(headers: &HeaderMap) -> Peer {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let features = Features::ALL.both(Features::parse(text(FEATURES)));
    let digest = if features.inventory { text(INVENTORY).to_owned() } else { String::new() };
    let address = text(on_demand::ADDRESS).parse().ok().filter(|_| features.tunnel);
    let process = text(on_demand::PROCESS).parse().ok();
    Peer { features, digest, address, process }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devicecontroller::DeviceController;
    use crate::edgecontroller::upstream::Upstream;
    use crate::kubernetes::Kubernetes;
    use std::path::Path;

    #[tokio::test]
    async fn nodes_that_are_admitted_together_are_not_too_many() {
        let (tasks, stopping) = (TaskTracker::new(), CancellationToken::new());
        stopping.cancel();
        let text = "modules: {cloudHub: {advertiseAddress: [127.0.0.1], nodeLimit: 1}}";
        let settings = api::cloudcore::Config::parse(text, Path::new("cloudcore.yaml")).expect("settings").cloud_hub();
        let kubernetes = Kubernetes::at("http://127.0.0.1:1");
        let records = crate::objectsync::start(kubernetes.clone(), &tasks, &stopping);
        let upstream = Upstream::new(kubernetes.clone(), Arc::default(), Default::default());
        let devices = DeviceController::start(kubernetes, Arc::default(), &tasks, &stopping);
        let (events, _incoming) = mpsc::channel(1);
        let sessions = Sessions::new(settings, Controllers { events, upstream, devices, records }, &tasks);
        let [first, second, again] = ["n1", "n2", "n1"].map(|node| SessionHandle::new(node, Peer::default()));
        sessions.enter(&first).expect("room");
        assert!(sessions.enter(&second).expect_err("none left").contains("nodeLimit"));
        sessions.enter(&again).expect("its own place");
        assert!(first.has_ended() && !again.has_ended());
        sessions.leave(&first);
        assert!(sessions.of("n1").is_some_and(|counts| counts.is(&again)), "a late end takes no newer session with it");
        sessions.leave(&again);
        assert!(sessions.of("n1").is_none());
    }
}
