//! The broker inside edgecore, from its settings: users, TLS, and another try when something is missing.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::edgecore::{EventBus as Settings, InternalBroker};
use beehive::Context;
use link::rustls::ServerConfig;
use mqtt::{BrokerConfig, Certificate, Listen, Received, ServerTls, StartError, TlsFileError, User};
use tokio::sync::{mpsc, watch};
use tracing::{error, info};

use super::FILTERS;
use super::files::{Files, causes};
use super::users::{self, UsersError};

/// What waits for one client of the broker at least: what DeviceTwin says at once about what it has written down together.
const AT_ONCE: usize = 4096;
/// Bytes of retained messages: a node has little memory.
const RETAINED: usize = 4 << 20;
/// The wait after the broker could not be started.
const RETRY: Duration = Duration::from_secs(10);

/// The broker that runs.
pub(super) struct Inside {
    pub(super) bus: mqtt::Bus,
    pub(super) received: mpsc::Receiver<Received>,
    pub(super) certificates: Option<Certificates>,
    pub(super) users: Option<Users>,
}

/// The broker's certificates, which may be replaced while it runs.
pub(super) struct Certificates {
    tls: ServerTls,
    files: Files,
    current: watch::Sender<Arc<ServerConfig>>,
}

/// The broker's users, who may be others while it runs.
pub(super) struct Users {
    path: PathBuf,
    files: Files,
}

#[derive(Debug, thiserror::Error)]
enum Missing {
    #[error(transparent)]
    Users(#[from] UsersError),
    #[error("the MQTT broker has no certificate to show")]
    Certificate,
    #[error("the MQTT broker cannot speak TLS: correct the files of modules.eventBus.eventBusTLS")]
    Tls(#[source] TlsFileError),
    #[error("set modules.eventBus.mqttServerInternal to a free port, or mqttMode to 2 for a broker beside edgecore")]
    Listen(#[source] StartError),
    #[error(transparent)]
    Start(StartError),
}

/// Starts the broker; tries again until it can. `None` when there shall be none, or edgecore stops.
pub(super) async fn start(context: &Context, settings: &Settings, database: &Path) -> Option<Inside> {
    let broker = settings.internal.as_ref()?;
    loop {
        match try_start(broker, settings.queue, database).await {
            Ok(inside) => {
                let (tls, users) = (inside.certificates.is_some(), broker.users_file.is_some());
                info!(address = %broker.address, tls, users, "the MQTT broker listens");
                return Some(inside);
            }
            Err(missing) => {
                error!(reason = %missing, cause = causes(&missing), "the MQTT broker cannot be started; tried again");
            }
        }
        tokio::select! {
            () = context.stopping() => return None,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

async fn try_start(broker: &InternalBroker, queue: usize, database: &Path) -> Result<Inside, Missing> {
    let (kept, users) = broker.users_file.as_deref().map(Users::read).transpose()?.unzip();
    let users = users.unwrap_or_default();
    let certificates = match &broker.tls {
        Some(files) => {
            let (certificate, key) = files.own.clone().ok_or(Missing::Certificate)?;
            // Who has a name and a password needs no certificate.
            let clients = if users.is_empty() { files.ca.clone() } else { None };
            Some(
                Certificates::read(ServerTls { own: Certificate { certificate, key }, clients })
                    .map_err(Missing::Tls)?,
            )
        }
        None => None,
    };
    let tls = certificates.as_ref().map(|certificates| certificates.current());
    let config = BrokerConfig {
        listen: vec![Listen { address: broker.address, tls }],
        users,
        database: Some(database.to_path_buf()),
        max_queued: queue.max(AT_ONCE),
        max_retained_bytes: RETAINED,
        ..BrokerConfig::at(broker.address)
    };
    let (bus, received) = mqtt::Bus::broker(config, &FILTERS).await.map_err(|error| match error {
        StartError::Listen(..) => Missing::Listen(error),
        error => Missing::Start(error),
    })?;
    Ok(Inside { bus, received, certificates, users: kept })
}

impl Certificates {
    pub(super) fn read(tls: ServerTls) -> Result<Self, TlsFileError> {
        let paths = [&tls.own.certificate, &tls.own.key].into_iter().chain(&tls.clients);
        let files = Files::new(paths.cloned().collect());
        let (current, _) = watch::channel(tls.load()?);
        Ok(Self { tls, files, current })
    }

    /// Those that are shown now.
    pub(super) fn current(&self) -> watch::Receiver<Arc<ServerConfig>> {
        self.current.subscribe()
    }

    /// Shows those that they are replaced with to clients that come then.
    pub(super) async fn keep(self) {
        let take = || self.tls.load().map(|config| drop(self.current.send_replace(config)));
        self.files.follow("certificates", take).await;
    }
}

impl Users {
    /// Also gives those of now.
    fn read(path: &Path) -> Result<(Self, Vec<User>), UsersError> {
        let files = Files::new(vec![path.to_path_buf()]);
        let users = users::read(path)?;
        Ok((Self { path: path.to_path_buf(), files }, users))
    }

    /// Lets in those that they are replaced with, and sends away who is not one of them.
    pub(super) async fn keep(self, bus: &mqtt::Bus) {
        let mqtt::Bus::Broker(broker) = bus else { return };
        let take = || Ok::<_, UsersError>(broker.set_users(users::read(&self.path)?)?);
        self.files.follow("users", take).await;
    }
}
