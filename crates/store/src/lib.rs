//! SQLite as both programs use it: one file, one writer thread that commits what has gathered as one transaction, and
//! readers beside it.
//!
//! A job is durable when [`Database::write`] returns: acknowledge after that, never before. Each job stands in a
//! savepoint, so that one that fails takes no other with it.

mod open;
mod writer;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

pub use rusqlite;
use rusqlite::Connection;

pub use open::{Durability, OpenError, Schema};
use writer::Writer;

/// A handle to an open database. Cloning is cheap; the file closes with the last clone.
#[derive(Clone)]
pub struct Database {
    writer: Arc<Writer>,
    reader: Arc<Mutex<Connection>>,
}

/// A job failed; nothing of it was stored.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk is full.
    #[error("the disk that holds the database is full: free some space")]
    DiskFull(#[source] rusqlite::Error),
    /// The file is damaged.
    #[error("the database file is damaged")]
    Corrupt(#[source] rusqlite::Error),
    /// SQLite refused.
    #[error("the database refused")]
    Sqlite(#[source] rusqlite::Error),
    /// The writer thread has ended.
    #[error("the database is closed")]
    Closed,
}

impl Database {
    /// Opens or creates a file (mode 0600) and brings its schema up to date.
    ///
    /// # Errors
    /// The file is damaged, newer than this program, in use in a way that excludes us, or cannot be created.
    pub fn open(path: &Path, schema: Schema, durability: Durability) -> Result<Self, OpenError> {
        let connection = open::open(path, schema, durability)?;
        let reader = open::reader(path)?;
        let writer = Writer::start(connection).map_err(|error| OpenError::Thread(path.to_path_buf(), error))?;
        Ok(Self { writer: Arc::new(writer), reader: Arc::new(Mutex::new(reader)) })
    }

    /// Runs a job in the next transaction; returns when that is committed.
    ///
    /// # Errors
    /// The job failed, or the commit did; then nothing was stored.
    pub async fn write<T, F>(&self, job: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        self.writer.run(job, |_| ()).await
    }

    /// As [`Database::write`]; `after` is called with the job's result once that is committed, in the order of the jobs,
    /// before this returns, and also when the caller has gone away.
    ///
    /// # Errors
    /// The job failed, or the commit did; then nothing was stored and `after` is not called.
    pub async fn write_then<T, F, G>(&self, job: F, after: G) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
        G: FnOnce(&T) + Send + 'static,
    {
        self.writer.run(job, after).await
    }

    /// Runs a query on what is committed. It blocks the caller for as long as the query takes: keep it short.
    ///
    /// # Errors
    /// The query failed.
    pub fn read<T>(&self, query: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        let reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        query(&reader).map_err(StoreError::from)
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode::{DatabaseCorrupt, DiskFull, NotADatabase};
        // The file that readers and writers share could not grow.
        let no_room = error.sqlite_error().is_some_and(|e| e.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE);
        match error.sqlite_error_code() {
            Some(DiskFull) => Self::DiskFull(error),
            _ if no_room => Self::DiskFull(error),
            Some(DatabaseCorrupt | NotADatabase) => Self::Corrupt(error),
            _ => Self::Sqlite(error),
        }
    }
}
