//! DMI: mappers, the programs that drive devices of one protocol, and edgecore's calls to them.
//!
//! A mapper registers at a unix socket (`service`) and gets the devices of its protocol. From then on a task (`driving`) brings what the
//! mapper has been told to what the node's Device and DeviceModel objects say (`wanted`), one call for each difference, again and again
//! until the mapper has taken it. What it has been told is written down (`registration`), so that neither side has to be started again
//! with the other. Reports go to DeviceTwin, like those of MQTT, and are answered when they have been written down.

mod call;
mod complaints;
mod driving;
mod missing;
mod registration;
mod service;
#[cfg(test)]
mod tests;
mod wanted;

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use beehive::{BoxFuture, Context, Inbox, Module, ModuleError};
use dmi::convert::Metadata;
use edged::events::{EventType, Recorder};
use store::{Database, StoreError};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::eventbus::Arrived;
use crate::instance::Instance;
use registration::{Registration, Rows};
use wanted::Wanted;

pub(crate) use registration::TABLE;

/// The name of the module.
pub const NAME: &str = "dmi";

/// Mappers that are known at any time: one for each protocol.
const MAX_MAPPERS: usize = 64;
/// Registrations that wait.
const WAITING: usize = 16;
/// The wait after the socket could not be opened.
const RETRY: Duration = Duration::from_secs(10);

/// Tells DMI that Device or DeviceModel objects are different.
#[derive(Clone, Debug)]
pub struct Changed(watch::Sender<()>);

/// By protocol, the task that calls its mapper. It ends with its entry.
type Driven = HashMap<String, JoinSet<()>>;

/// The module.
pub struct Dmi {
    socket: PathBuf,
    rows: Rows,
    to_twin: mpsc::Sender<Arrived>,
    changed: Changed,
    recorder: Recorder,
}

/// A mapper registers; it hears which devices it has to drive.
struct Registering {
    mapper: Registration,
    answer: oneshot::Sender<Result<Wanted, NotRegistered>>,
}

/// A mapper could not be registered.
#[derive(Debug, thiserror::Error)]
enum NotRegistered {
    #[error("mappers of {MAX_MAPPERS} protocols that have devices are registered on this node already")]
    TooMany,
    #[error("the node's database does not work, try again")]
    Storage(#[from] StoreError),
}

impl Changed {
    /// For one node.
    pub fn new() -> Self {
        Self(watch::Sender::new(()))
    }

    /// Something is different.
    pub fn tell(&self) {
        self.0.send_replace(());
    }
}

impl Default for Changed {
    fn default() -> Self {
        Self::new()
    }
}

impl Dmi {
    /// Listens at `socket`; reports go to DeviceTwin by `to_twin`.
    pub fn new(
        socket: PathBuf,
        database: Database,
        to_twin: mpsc::Sender<Arrived>,
        changed: Changed,
        recorder: Recorder,
    ) -> Self {
        Self { socket, rows: Rows::new(database), to_twin, changed, recorder }
    }

    async fn serve(&self, context: &Context) -> Result<(), ModuleError> {
        let mut driven = Driven::new();
        for mapper in self.rows.all()? {
            self.drive(mapper, &mut driven);
        }
        let (registering, mut waiting) = mpsc::channel(WAITING);
        let listening = self.listen(context, registering);
        tokio::pin!(listening);
        let mut changed = self.changed.0.subscribe();
        let mut missing = missing::Missing::default();
        let mut look = Some(Instant::now() + missing::PATIENCE);
        loop {
            tokio::select! {
                () = &mut listening => return Ok(()),
                Ok(()) = changed.changed() => look = look.or_else(|| Some(Instant::now() + missing::PATIENCE)),
                () = until(look) => {
                    look = None;
                    for (device, protocol) in missing.news(self.rows.database(), |protocol| driven.contains_key(protocol))? {
                        self.tell_missing(&device, &protocol);
                    }
                }
                Some(Registering { mapper, answer }) = waiting.recv() => {
                    let registered = self.register(mapper, &mut driven).await;
                    // A mapper that does not wait any more registers again.
                    let _ = answer.send(registered);
                }
            }
        }
    }

    fn tell_missing(&self, device: &Metadata, protocol: &str) {
        let Metadata { name, namespace, uid } = device;
        warn!(device = format!("{namespace}/{name}"), protocol, "no mapper for this protocol has registered");
        let socket = self.socket.display();
        let message = format!(
            "no mapper for protocol {protocol:?} has registered at {socket} of this node: start one; a device that speaks MQTT itself needs none"
        );
        self.recorder.device(namespace, name, uid, EventType::Warning, "NoMapper", message);
    }

    /// Serves mappers until the module stops.
    async fn listen(&self, context: &Context, registering: mpsc::Sender<Registering>) {
        loop {
            let claimed = dmi::socket::make_folder(&self.socket).map_err(|error| error.to_string());
            let claimed = claimed.and_then(|()| Instance::claim(&self.socket).map_err(|error| error.to_string()));
            let failed = match claimed
                .and_then(|claim| Ok((claim, dmi::socket::listen(&self.socket).map_err(|error| error.to_string())?)))
            {
                Ok((_claim, listener)) => {
                    info!(socket = %self.socket.display(), "mappers can register");
                    let service = service::Service { to_twin: self.to_twin.clone(), registering: registering.clone() };
                    service::serve(listener, service, context.stopping()).await.err().map(|error| error.to_string())
                }
                Err(error) => Some(error),
            };
            let Some(error) = failed else { return };
            error!(socket = %self.socket.display(), error, "the socket for mappers cannot be served: give modules.deviceTwin.dmiSockPath a folder of this edgecore's own, which it may write to; tried again");
            tokio::select! {
                () = context.stopping() => return,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }

    /// From now on this is the mapper of its protocol.
    async fn register(&self, mut mapper: Registration, driven: &mut Driven) -> Result<Wanted, NotRegistered> {
        if !driven.contains_key(&mapper.protocol) && driven.len() >= MAX_MAPPERS {
            self.make_room(driven).await?;
        }
        // The one before must note nothing any more.
        if let Some(mut before) = driven.remove(&mapper.protocol) {
            before.shutdown().await;
        }
        let wanted = self.registered(&mut mapper).await;
        match &wanted {
            Ok(wanted) => info!(
                mapper = mapper.name,
                protocol = mapper.protocol,
                socket = mapper.address,
                devices = wanted.devices.len(),
                "a mapper registered"
            ),
            Err(error) => {
                error!(mapper = mapper.name, protocol = mapper.protocol, %error, "a mapper cannot be registered")
            }
        }
        // Also after a failure: it may be the one before that has come again, and it is told what it misses.
        self.drive(mapper, driven);
        wanted
    }

    /// Forgets a mapper that has no devices: it registers again if it is still there.
    async fn make_room(&self, driven: &mut Driven) -> Result<(), NotRegistered> {
        let devices = wanted::devices(self.rows.database())?;
        let has_devices =
            |protocol: &str| devices.iter().flat_map(|(_, device)| device).any(|d| d.protocol() == protocol);
        let idle = driven.keys().find(|protocol| !has_devices(protocol)).cloned().ok_or(NotRegistered::TooMany)?;
        warn!(protocol = idle, "the mapper of a protocol without devices is forgotten to make room for another");
        driven.remove(&idle);
        Ok(self.rows.remove(&idle).await?)
    }

    /// What it has to drive; that it has been told so is written down.
    async fn registered(&self, mapper: &mut Registration) -> Result<Wanted, NotRegistered> {
        if !mapper.with_data {
            self.rows.put(mapper).await?;
            return Ok(Wanted::default());
        }
        let wanted = Wanted::read_aside(self.rows.database(), &mapper.protocol).await?;
        self.rows.put(&Registration { told: wanted.digests(), ..mapper.clone() }).await?;
        mapper.told = wanted.digests();
        Ok(wanted)
    }

    fn drive(&self, mapper: Registration, driven: &mut Driven) {
        let mut task = JoinSet::new();
        let protocol = mapper.protocol.clone();
        task.spawn(driving::drive(self.rows.clone(), mapper, self.changed.0.subscribe(), self.recorder.clone()));
        driven.insert(protocol, task);
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

impl Module for Dmi {
    fn name(&self) -> &'static str {
        NAME
    }

    fn group(&self) -> &'static str {
        NAME
    }

    fn run<'a>(&'a mut self, context: Context, inbox: &'a mut Inbox) -> BoxFuture<'a, Result<(), ModuleError>> {
        Box::pin(async move {
            // Nobody sends messages here.
            let ignoring = async { while inbox.recv().await.is_some() {} };
            tokio::select! {
                ended = self.serve(&context) => ended,
                () = ignoring => Ok(()),
            }
        })
    }
}
