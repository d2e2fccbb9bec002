//! The broker inside edgecore, from its settings: users, TLS, and another try when something is missing.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use api::edgecore::{EventBus as Settings, InternalBroker};
use beehive::Context;
use link::rustls::ServerConfig;
use mqtt::{BrokerConfig, Certificate, Listen, Received, ServerTls, StartError, TlsFileError};
use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

use super::FILTERS;
use super::users::{self, UsersError};

/// What waits for one client of the broker at least: what DeviceTwin says at once about what it has written down together.
const AT_ONCE: usize = 4096;
/// Bytes of retained messages: a node has little memory.
const RETAINED: usize = 4 << 20;
/// The wait after the broker could not be started.
const RETRY: Duration = Duration::from_secs(10);
/// How often is looked whether certificates were replaced.
const LOOK: Duration = Duration::from_secs(60);

/// The broker that runs.
pub(super) struct Inside {
    pub(super) bus: mqtt::Bus,
    pub(super) received: mpsc::Receiver<Received>,
    pub(super) certificates: Option<Certificates>,
}

/// The broker's certificates, which may be replaced while it runs.
pub(super) struct Certificates {
    files: ServerTls,
    read: Vec<Option<(SystemTime, u64)>>,
    current: watch::Sender<Arc<ServerConfig>>,
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
                let mut cause = std::error::Error::source(&missing);
                let mut causes = String::new();
                while let Some(error) = cause {
                    causes = format!("{causes}: {error}");
                    cause = error.source();
                }
                error!(reason = %missing, cause = causes.trim_start_matches(": "), "the MQTT broker cannot be started; tried again");
            }
        }
        tokio::select! {
            () = context.stopping() => return None,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

async fn try_start(broker: &InternalBroker, queue: usize, database: &Path) -> Result<Inside, Missing> {
    let users = broker.users_file.as_deref().map(users::read).transpose()?.unwrap_or_default();
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
    Ok(Inside { bus, received, certificates })
}

impl Certificates {
    pub(super) fn read(files: ServerTls) -> Result<Self, TlsFileError> {
        let read = state(&files);
        let (current, _) = watch::channel(files.load()?);
        Ok(Self { files, read, current })
    }

    /// Those that are shown now.
    pub(super) fn current(&self) -> watch::Receiver<Arc<ServerConfig>> {
        self.current.subscribe()
    }

    /// Reads them again when they were replaced, for clients that come then. A file that is half written is tried again.
    pub(super) async fn keep(mut self) {
        let mut told = false;
        loop {
            tokio::time::sleep(LOOK).await;
            let now = state(&self.files);
            if now == self.read {
                continue;
            }
            match self.files.load() {
                Ok(config) => {
                    (self.read, told) = (now, false);
                    self.current.send_replace(config);
                    info!("the MQTT broker has new certificates");
                }
                Err(error) if !told => {
                    warn!(%error, "the MQTT broker's new certificates cannot be used, it goes on with the old ones; tried again");
                    told = true;
                }
                Err(_) => {}
            }
        }
    }
}

/// What changes when a file is replaced.
fn state(files: &ServerTls) -> Vec<Option<(SystemTime, u64)>> {
    let one = |path: &PathBuf| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    };
    [&files.own.certificate, &files.own.key].into_iter().chain(&files.clients).map(one).collect()
}
