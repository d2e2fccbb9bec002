//! Opening a file: pragmas, integrity, schema.

use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

/// How long a statement waits for another process.
const BUSY: Duration = Duration::from_secs(5);
/// Prepared statements that a connection keeps.
const STATEMENTS: usize = 64;

/// What a file holds.
#[derive(Clone, Copy)]
pub struct Schema {
    /// The steps to it; the file remembers how many it has taken. Steps are only ever added at the end.
    pub steps: &'static [&'static str],
    /// What to do with a damaged file: the owner of the data knows whether they come again.
    pub if_damaged: &'static str,
}

/// What survives a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Every commit. For what is acknowledged to a peer.
    Full,
    /// Every commit but the last few. For what can be made again.
    Normal,
}

/// A database file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file is no SQLite database, or damaged.
    #[error("database {path} is damaged: {cure}", path = .path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What to do.
        cure: &'static str,
        /// What is wrong with it.
        source: rusqlite::Error,
    },
    /// There is no room for what every start needs.
    #[error("database {} cannot be opened, for its disk is full: free some space", .0.display())]
    DiskFull(PathBuf, #[source] Box<dyn std::error::Error + Send + Sync>),
    /// A newer program wrote it.
    #[error("database {path} has schema {found}, this program knows {known}: use the newer program", path = .path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: usize,
        /// Ours.
        known: usize,
    },
    /// It cannot be created or opened.
    #[error("database {} cannot be opened: does the folder exist, with the right owner?", .0.display())]
    Open(PathBuf, #[source] Box<dyn std::error::Error + Send + Sync>),
    /// A step of the schema failed.
    #[error("the schema of database {} cannot be brought up to date", .0.display())]
    Migrate(PathBuf, #[source] Box<dyn std::error::Error + Send + Sync>),
    /// The writer thread cannot start.
    #[error("no thread can be started for database {}", .0.display())]
    Thread(PathBuf, #[source] std::io::Error),
}

pub(crate) fn open(path: &Path, schema: Schema, durability: Durability) -> Result<Connection, OpenError> {
    let damaged = |source| OpenError::Corrupt { path: path.to_path_buf(), cure: schema.if_damaged, source };
    let cannot = |error: Box<dyn std::error::Error + Send + Sync>| OpenError::Open(path.to_path_buf(), error);
    // Created by ourselves first, so that nobody else can read it at any time.
    std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path).map_err(|error| {
        match error.kind() {
            std::io::ErrorKind::StorageFull => OpenError::DiskFull(path.to_path_buf(), error.into()),
            _ => cannot(error.into()),
        }
    })?;
    let connection =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)
            .map_err(|error| cannot(error.into()))?;
    let synchronous = if durability == Durability::Full { "FULL" } else { "NORMAL" };
    let set = connection
        .busy_timeout(BUSY)
        .and_then(|()| connection.pragma_update(None, "journal_mode", "WAL"))
        .and_then(|()| connection.pragma_update(None, "synchronous", synchronous))
        .and_then(|()| connection.pragma_update(None, "cache_size", -512))
        .and_then(|()| connection.pragma_update(None, "journal_size_limit", 4 << 20))
        .and_then(|()| connection.pragma_update(None, "foreign_keys", true))
        .and_then(|()| connection.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0)));
    match set {
        Ok(verdict) if verdict == "ok" => {}
        Ok(_) => return Err(damaged(corrupt())),
        Err(error) => {
            return Err(match crate::StoreError::from(error) {
                crate::StoreError::Corrupt(error) => damaged(error),
                crate::StoreError::DiskFull(error) => OpenError::DiskFull(path.to_path_buf(), error.into()),
                error => cannot(error.into()),
            });
        }
    }
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    migrate(&connection, path, schema)?;
    Ok(connection)
}

pub(crate) fn reader(path: &Path) -> Result<Connection, OpenError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)
        .and_then(|connection| {
            connection.busy_timeout(BUSY)?;
            connection.pragma_update(None, "cache_size", -256)?;
            Ok(connection)
        })
        .map_err(|error| match crate::StoreError::from(error) {
            crate::StoreError::DiskFull(error) => OpenError::DiskFull(path.to_path_buf(), error.into()),
            error => OpenError::Open(path.to_path_buf(), error.into()),
        })?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(connection)
}

fn migrate(connection: &Connection, path: &Path, schema: Schema) -> Result<(), OpenError> {
    let fail = |error| match crate::StoreError::from(error) {
        crate::StoreError::DiskFull(error) => OpenError::DiskFull(path.to_path_buf(), error.into()),
        crate::StoreError::Corrupt(source) => {
            OpenError::Corrupt { path: path.to_path_buf(), cure: schema.if_damaged, source }
        }
        error => OpenError::Migrate(path.to_path_buf(), error.into()),
    };
    let found: u32 = connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(fail)?;
    let found = found as usize;
    let known = schema.steps.len();
    if found > known {
        return Err(OpenError::Newer { path: path.to_path_buf(), found, known });
    }
    for (number, step) in schema.steps.iter().enumerate().skip(found) {
        let batch = format!("BEGIN IMMEDIATE; {step}; PRAGMA user_version = {}; COMMIT;", number + 1);
        if let Err(error) = connection.execute_batch(&batch) {
            // The step may have failed before or within the transaction.
            let _ = connection.execute_batch("ROLLBACK");
            return Err(fail(error));
        }
    }
    Ok(())
}

fn corrupt() -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(
        rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT),
        Some("the quick check found damage".to_owned()),
    )
}
