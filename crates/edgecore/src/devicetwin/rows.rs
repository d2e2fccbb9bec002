//! Devices in the node's database: a row for each, and one for each of its properties.

use std::collections::HashMap;
use std::sync::Arc;

use beehive::compose;
use store::rusqlite::{Connection, params};
use store::{Database, StoreError};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use twin::topic::DeviceId;
use wire::kind;

use super::device::{About, Device, Stored, Write};
use super::kept;

/// The tables (a step of [`crate::metamanager::SCHEMA`]).
pub(crate) const TABLES: &str = "CREATE TABLE device (id TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE property (device TEXT, name TEXT, value BLOB NOT NULL, PRIMARY KEY (device, name)) WITHOUT ROWID";

/// The devices' part of the database.
#[derive(Clone)]
pub(super) struct Rows {
    database: Database,
    /// Told when a write has left something of the history that is too old.
    has_more: Arc<Notify>,
}

/// A row's key and its JSON text.
type Text = (String, Vec<u8>);

impl Rows {
    pub(super) fn new(database: Database) -> Self {
        Self { database, has_more: Arc::default() }
    }

    /// All devices. A row that cannot be read is left out.
    pub(super) fn devices(&self) -> Result<HashMap<DeviceId, Device>, StoreError> {
        let (devices, properties) = self.database.read(|c| {
            let devices = rows(c, "SELECT id, value FROM device")?;
            let mut statement = c.prepare_cached("SELECT device, name, value FROM property")?;
            let found = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
            let properties = found.collect::<store::rusqlite::Result<Vec<(String, String, Vec<u8>)>>>()?;
            Ok((devices, properties))
        })?;
        let mut all = HashMap::new();
        for (id, value) in devices {
            match (DeviceId::parse(&id), serde_json::from_slice::<About>(&value)) {
                (Some(id), Ok(about)) => drop(all.insert(id, Device { about, ..Device::default() })),
                _ => warn!(device = id, "a device cannot be read from the database"),
            }
        }
        for (id, name, value) in properties {
            let device = DeviceId::parse(&id).and_then(|id| all.get_mut(&id));
            let (Some(device), Ok(stored)) = (device, serde_json::from_slice::<Stored>(&value)) else {
                warn!(device = id, property = name, "a property cannot be read from the database");
                continue;
            };
            if stored.untold {
                device.untold.insert(name.clone());
            }
            device.twin.properties.insert(name, stored.property);
        }
        Ok(all)
    }

    /// The Device objects that MetaManager keeps: path and JSON text.
    pub(super) fn objects(&self) -> Result<Vec<Text>, StoreError> {
        self.database.read(|c| {
            let mut statement = c.prepare_cached("SELECT key, value FROM meta WHERE kind = ?1 ORDER BY key")?;
            statement.query_map([kind::DEVICE], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
        })
    }

    /// The object with this path, as JSON text.
    pub(super) fn object(&self, path: &str) -> Option<Vec<u8>> {
        let found = self
            .database
            .read(|c| c.prepare_cached("SELECT value FROM meta WHERE key = ?1")?.query_row([path], |row| row.get(0)));
        found.ok()
    }

    /// Writes all of it or nothing.
    pub(super) async fn write(&self, writes: Vec<Write>) -> Result<(), StoreError> {
        let now = compose::now();
        let job = move |c: &Connection| {
            writes.iter().try_for_each(|write| write_one(c, write))?;
            let kept = writes.iter().filter(|write| matches!(write, Write::Keep { .. })).count();
            let was_all = kept::forget_old(c, now, kept)?;
            kept::make_room(c).map(|()| was_all)
        };
        if !self.database.write(job).await? {
            self.has_more.notify_one();
        }
        Ok(())
    }

    /// Forgets what of the history is too old: what there is at the start, and what writes leave of it. Others write between.
    pub(super) async fn forget_old(&self, stop: &CancellationToken) {
        self.has_more.notify_one();
        while stop.run_until_cancelled(self.has_more.notified()).await.is_some() {
            match self.database.write(|c| kept::forget_old(c, compose::now(), 0)).await {
                Ok(was_all) if was_all => {}
                Ok(_) => self.has_more.notify_one(),
                Err(error) => {
                    warn!(%error, "old values of devices could not be removed; tried again when more is written")
                }
            }
        }
    }
}

fn rows(c: &Connection, query: &str) -> store::rusqlite::Result<Vec<Text>> {
    let mut statement = c.prepare_cached(query)?;
    statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

fn write_one(c: &Connection, write: &Write) -> store::rusqlite::Result<()> {
    match write {
        Write::Remove { device } => {
            c.prepare_cached("DELETE FROM device WHERE id = ?1")?.execute([device])?;
            c.prepare_cached("DELETE FROM property WHERE device = ?1")?.execute([device])?;
            kept::remove(c, device)?;
        }
        Write::Keep { device, kept } => kept::keep(c, device, kept)?,
        Write::About { device, value } => {
            c.prepare_cached("INSERT OR REPLACE INTO device VALUES (?1, ?2)")?.execute(params![device, value])?;
        }
        Write::Property { device, name, value } => {
            let sql = "INSERT OR REPLACE INTO property VALUES (?1, ?2, ?3)";
            c.prepare_cached(sql)?.execute(params![device, name, value])?;
        }
    }
    Ok(())
}
