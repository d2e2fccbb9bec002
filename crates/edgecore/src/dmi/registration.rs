//! A mapper that has registered, and what it has been told.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use store::rusqlite::params;
use store::{Database, StoreError};
use tracing::warn;

/// The table (a step of [`crate::metamanager::SCHEMA`]).
pub(crate) const TABLE: &str = "CREATE TABLE mapper (protocol TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID";

/// The mapper of a protocol.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Registration {
    /// The protocol whose devices it drives.
    pub(super) protocol: String,
    pub(super) name: String,
    pub(super) version: String,
    /// The path of its socket.
    pub(super) address: String,
    /// Whether it wants to hear of devices; otherwise it is never called.
    pub(super) with_data: bool,
    pub(super) told: Told,
}

/// What a mapper has been told, by namespace and name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Told {
    pub(super) models: BTreeMap<String, Known>,
    pub(super) devices: BTreeMap<String, Known>,
}

/// What a mapper knows of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Known {
    /// It has been told, but has not answered: it knows the object or does not.
    Perhaps,
    /// It has taken what has this digest.
    Digest(u64),
}

/// Registrations in the node's database.
#[derive(Clone)]
pub(super) struct Rows {
    database: Database,
}

impl Rows {
    pub(super) fn new(database: Database) -> Self {
        Self { database }
    }

    pub(super) fn database(&self) -> &Database {
        &self.database
    }

    /// All. One that cannot be read is left out: its mapper has to register again.
    pub(super) fn all(&self) -> Result<Vec<Registration>, StoreError> {
        let rows = self.database.read(|c| {
            let mut statement = c.prepare_cached("SELECT protocol, value FROM mapper ORDER BY protocol")?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect::<store::rusqlite::Result<Vec<(String, Vec<u8>)>>>()
        })?;
        let read = |(protocol, value): (String, Vec<u8>)| {
            let registration = serde_json::from_slice(&value);
            registration
                .inspect_err(
                    |error| warn!(protocol, %error, "a mapper cannot be read from the database: start it again"),
                )
                .ok()
        };
        Ok(rows.into_iter().filter_map(read).collect())
    }

    pub(super) async fn put(&self, mapper: &Registration) -> Result<(), StoreError> {
        let protocol = mapper.protocol.clone();
        // It has texts and numbers only.
        let value = serde_json::to_vec(mapper).unwrap_or_default();
        let sql = "INSERT OR REPLACE INTO mapper VALUES (?1, ?2)";
        self.database.write(move |c| c.prepare_cached(sql)?.execute(params![protocol, value]).map(|_| ())).await
    }

    pub(super) async fn remove(&self, protocol: &str) -> Result<(), StoreError> {
        let protocol = protocol.to_owned();
        let sql = "DELETE FROM mapper WHERE protocol = ?1";
        self.database.write(move |c| c.prepare_cached(sql)?.execute([protocol]).map(|_| ())).await
    }
}
