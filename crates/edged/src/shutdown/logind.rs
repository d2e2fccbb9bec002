//! systemd-logind, over the system's D-Bus: it tells of a shutdown before it happens, and waits for who asked it to.

use std::path::PathBuf;
use std::time::Duration;

use futures_util::StreamExt;
use zbus::connection::Builder;
use zbus::proxy::{CacheProperties, SignalStream};
use zbus::zvariant::OwnedFd;
use zbus::{Connection, Proxy};

const SERVICE: &str = "org.freedesktop.login1";
const PATH: &str = "/org/freedesktop/login1";
const INTERFACE: &str = "org.freedesktop.login1.Manager";
/// A bus or a service that hangs must not hold up the agent.
const CALL_LIMIT: Duration = Duration::from_secs(25);
/// What makes logind read its configuration again.
const SIGHUP: i32 = 1;
/// The kubelet's name for its part of logind's configuration; a node that changes hands keeps one file.
const DROP_IN: &str = "99-kubelet.conf";

/// Where things are on this machine.
#[derive(Clone, Debug)]
pub struct Places {
    /// Address of the bus; the system's when absent.
    pub bus: Option<String>,
    /// Folder of further parts of logind's configuration.
    pub drop_ins: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        Self { bus: None, drop_ins: "/etc/systemd/logind.conf.d".into() }
    }
}

/// logind cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LogindError {
    /// The bus or logind does not answer.
    #[error("systemd-logind does not answer on D-Bus: check that dbus and systemd-logind run")]
    Bus(#[from] zbus::Error),
    /// It takes too long.
    #[error("systemd-logind did not answer within 25 s")]
    Timeout(#[from] tokio::time::error::Elapsed),
    /// logind holds up a shutdown for less than is configured, and its configuration cannot be changed.
    #[error("{0} cannot be written; set InhibitDelayMaxSec in logind.conf by hand")]
    DropIn(PathBuf, #[source] std::io::Error),
    /// logind holds up a shutdown for less than is configured, also after it was told otherwise.
    #[error(
        "systemd-logind delays a shutdown for {0:?} only, the configured grace periods take {1:?}: set InhibitDelayMaxSec in logind.conf"
    )]
    TooShort(Duration, Duration),
}

/// A connection to logind.
pub struct Logind {
    connection: Connection,
    manager: Proxy<'static>,
    signals: SignalStream<'static>,
}

/// Holds up a shutdown as long as it lives.
#[derive(Debug)]
pub struct Inhibitor(#[expect(dead_code, reason = "logind waits until it is closed")] OwnedFd);

impl Logind {
    /// Connects, and sees to it that logind holds up a shutdown for so long.
    ///
    /// # Errors
    /// There is no logind, or it does not wait long enough.
    pub async fn connect(places: &Places, total: Duration) -> Result<Self, LogindError> {
        let connect = async {
            let builder = match &places.bus {
                Some(address) => Builder::address(address.as_str())?,
                None => Builder::system()?,
            };
            let connection = builder.build().await?;
            let manager = manager(&connection).await?;
            let signals = manager.receive_signal("PrepareForShutdown").await?;
            Ok::<_, zbus::Error>(Self { connection, manager, signals })
        };
        let logind = tokio::time::timeout(CALL_LIMIT, connect).await??;
        let longest = logind.longest_delay().await?;
        if longest < total {
            logind.lengthen_delay(places, total).await?;
            let longest = logind.longest_delay().await?;
            if longest < total {
                return Err(LogindError::TooShort(longest, total));
            }
        }
        Ok(logind)
    }

    async fn longest_delay(&self) -> Result<Duration, LogindError> {
        let micros: u64 = tokio::time::timeout(CALL_LIMIT, self.manager.get_property("InhibitDelayMaxUSec")).await??;
        Ok(Duration::from_micros(micros))
    }

    /// Writes a part of logind's configuration and has it read.
    async fn lengthen_delay(&self, places: &Places, total: Duration) -> Result<(), LogindError> {
        let file = places.drop_ins.join(DROP_IN);
        let seconds = total.as_secs() + u64::from(total.subsec_nanos() > 0);
        let text = format!("# Kubelet logind override\n[Login]\nInhibitDelayMaxSec={seconds}\n");
        let written = std::fs::create_dir_all(&places.drop_ins).and_then(|()| std::fs::write(&file, text));
        written.map_err(|error| LogindError::DropIn(file, error))?;
        let reload = async {
            let systemd = Proxy::new(
                &self.connection,
                "org.freedesktop.systemd1",
                "/org/freedesktop/systemd1",
                "org.freedesktop.systemd1.Manager",
            );
            let systemd = systemd.await?;
            let () = systemd.call("KillUnit", &("systemd-logind.service", "all", SIGHUP)).await?;
            Ok::<_, zbus::Error>(())
        };
        tokio::time::timeout(CALL_LIMIT, reload).await??;
        // It reads the file in its own time.
        let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
        while self.longest_delay().await? < total && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// Asks logind to wait with a shutdown until the answer is dropped.
    ///
    /// # Errors
    /// It refuses.
    pub async fn inhibit(&self) -> Result<Inhibitor, LogindError> {
        let arguments = ("shutdown", "kubelet", "Kubelet needs time to handle node shutdown", "delay");
        let answer = tokio::time::timeout(CALL_LIMIT, self.manager.call("Inhibit", &arguments));
        Ok(Inhibitor(answer.await??))
    }

    /// The next word of logind: true when a shutdown begins, false when it was called off. `None` when the bus is gone.
    pub async fn next(&mut self) -> Option<bool> {
        loop {
            let message = self.signals.next().await?;
            match message.body().deserialize::<bool>() {
                Ok(begins) => return Some(begins),
                Err(error) => tracing::warn!(%error, "PrepareForShutdown cannot be read"),
            }
        }
    }
}

async fn manager(connection: &Connection) -> zbus::Result<Proxy<'static>> {
    zbus::proxy::Builder::new(connection)
        .destination(SERVICE)?
        .path(PATH)?
        .interface(INTERFACE)?
        .cache_properties(CacheProperties::No)
        .build()
        .await
}
