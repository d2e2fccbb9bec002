//! The objects of the API in SQLite: one table for all kinds.
//!
//! The writer thread numbers the changes; what it has committed it tells to the event log, in that order.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use kubeapi::ApiError;
use kubeapi::storage::{Change, Event, EventLog, Expect, Key, Page, Storage, Stored, WriteError};
use store::rusqlite::{self, Connection, OptionalExtension, Row, params};
use store::{Database, Durability, OpenError, Schema, StoreError};

const SCHEMA: Schema = Schema {
    steps: &["CREATE TABLE objects (
        resource TEXT NOT NULL,
        namespace TEXT NOT NULL,
        name TEXT NOT NULL,
        revision INTEGER NOT NULL,
        json BLOB NOT NULL,
        PRIMARY KEY (resource, namespace, name)
    ) WITHOUT ROWID;
    CREATE TABLE latest (revision INTEGER NOT NULL);
    INSERT INTO latest VALUES (1)"],
    if_damaged: "it holds every object of the embedded Kubernetes, and there is no other copy: put a backup of it in its place; \
        without one, move it away to begin with an empty cluster, which every node must join anew",
};

/// A storage in one SQLite file.
#[derive(Clone)]
pub struct SqliteStorage {
    database: Database,
    shared: Arc<Shared>,
}

struct Shared {
    /// The revision of the last committed change.
    revision: AtomicU64,
    log: EventLog,
}

/// A committed change.
struct Written {
    revision: u64,
    event: Event,
}

impl SqliteStorage {
    /// Opens or creates the file.
    ///
    /// # Errors
    /// The file is damaged or cannot be created.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let database = Database::open(path, SCHEMA, Durability::Full)?;
        let revision = database
            .read(|c| c.query_row("SELECT revision FROM latest", [], |row| row.get::<_, i64>(0)))
            .map_err(|error| OpenError::Open(path.to_path_buf(), error.into()))?;
        let revision = u64::try_from(revision).unwrap_or(1);
        let shared = Shared { revision: AtomicU64::new(revision), log: EventLog::new(revision) };
        Ok(Self { database, shared: Arc::new(shared) })
    }
}

impl Storage for SqliteStorage {
    fn get(&self, key: &Key) -> Result<Option<Stored>, ApiError> {
        self.database.read(|c| find(c, key)).map_err(failed)
    }

    fn list(
        &self,
        resource: &str,
        namespace: Option<&str>,
        after: Option<(&str, &str)>,
        limit: usize,
    ) -> Result<Page, ApiError> {
        let (after_namespace, after_name) = after.unwrap_or(("", ""));
        // One more than asked for tells whether there is more.
        let asked = i64::try_from(limit.saturating_add(1)).unwrap_or(i64::MAX);
        let sql = "SELECT namespace, name, revision, json FROM objects
            WHERE resource = ?1 AND (?2 IS NULL OR namespace = ?2) AND (namespace, name) > (?3, ?4)
            ORDER BY namespace, name LIMIT ?5";
        let read = |c: &Connection| {
            // Both from one state of the database.
            let transaction = c.unchecked_transaction()?;
            let revision: i64 = c.query_row("SELECT revision FROM latest", [], |row| row.get(0))?;
            let items = c
                .prepare_cached(sql)?
                .query_map(params![resource, namespace, after_namespace, after_name, asked], stored)?
                .collect::<rusqlite::Result<Vec<_>>>()?;
            transaction.finish()?;
            Ok((items, revision))
        };
        let (mut items, revision) = self.database.read(read).map_err(failed)?;
        let more = items.len() > limit;
        items.truncate(limit);
        Ok(Page { items, revision: u64::try_from(revision).unwrap_or_default(), more })
    }

    fn write(&self, key: Key, expect: Expect, change: Change) -> BoxFuture<'_, Result<u64, WriteError>> {
        let shared = self.shared.clone();
        let resource = key.resource.clone();
        Box::pin(async move {
            let job = move |c: &Connection| write(c, &key, expect, change);
            let tell = move |written: &Option<Written>| {
                if let Some(written) = written {
                    shared.log.push(&resource, written.event.clone());
                    shared.revision.store(written.revision, Ordering::Release);
                }
            };
            match self.database.write_then(job, tell).await {
                Ok(Some(written)) => Ok(written.revision),
                Ok(None) => Err(WriteError::Unexpected),
                Err(error) => Err(WriteError::Failed(failed(error))),
            }
        })
    }

    fn revision(&self) -> u64 {
        self.shared.revision.load(Ordering::Acquire)
    }

    fn events(&self) -> &EventLog {
        &self.shared.log
    }
}

/// `None` when the object is not as expected.
fn write(c: &Connection, key: &Key, expect: Expect, change: Change) -> rusqlite::Result<Option<Written>> {
    let current = find(c, key)?;
    let found = current.as_ref().map(|stored| stored.revision);
    let expected = match expect {
        Expect::Nothing => None,
        Expect::Revision(revision) => Some(revision),
    };
    if found != expected {
        return Ok(None);
    }
    let next: i64 = c
        .prepare_cached("UPDATE latest SET revision = revision + 1 RETURNING revision")?
        .query_row([], |row| row.get(0))?;
    let revision = u64::try_from(next).unwrap_or_default();
    let new = change(revision);
    if new.delete {
        c.prepare_cached("DELETE FROM objects WHERE resource = ?1 AND namespace = ?2 AND name = ?3")?
            .execute(params![key.resource, key.namespace, key.name])?;
    } else {
        c.prepare_cached("INSERT OR REPLACE INTO objects VALUES (?1, ?2, ?3, ?4, ?5)")?.execute(params![
            key.resource,
            key.namespace,
            key.name,
            next,
            new.json.as_ref()
        ])?;
    }
    let event = Event {
        revision,
        json: new.json,
        previous: current.map(|stored| stored.json),
        deleted: new.delete,
        namespace: key.namespace.clone(),
        name: key.name.clone(),
    };
    Ok(Some(Written { revision, event }))
}

fn find(c: &Connection, key: &Key) -> rusqlite::Result<Option<Stored>> {
    c.prepare_cached(
        "SELECT namespace, name, revision, json FROM objects WHERE resource = ?1 AND namespace = ?2 AND name = ?3",
    )?
    .query_row(params![key.resource, key.namespace, key.name], stored)
    .optional()
}

fn stored(row: &Row<'_>) -> rusqlite::Result<Stored> {
    Ok(Stored {
        namespace: row.get(0)?,
        name: row.get(1)?,
        revision: u64::try_from(row.get::<_, i64>(2)?).unwrap_or_default(),
        json: Bytes::from(row.get::<_, Vec<u8>>(3)?),
    })
}

fn failed(error: StoreError) -> ApiError {
    ApiError::internal(error.to_string())
}
