//! The writer thread: takes all jobs that wait into one transaction, commits, and only then reports each.

use std::thread::JoinHandle;

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};

use crate::StoreError;

/// Jobs that may wait; a caller beyond that waits itself.
const QUEUE: usize = 256;
/// Jobs in one transaction at most, so that the first of them does not wait for ever.
const BATCH: usize = 128;

/// A job with its way to report. It is called within the transaction, or with the reason why there is none, and gives what to
/// do after the commit.
type Job = Box<dyn FnOnce(Result<&Connection, CommitFailed>) -> Report + Send>;
/// Tells the caller how it ended: the commit's error, if it failed.
type Report = Box<dyn FnOnce(Result<(), CommitFailed>) + Send>;

/// A commit failed for every job in it.
#[derive(Clone)]
struct CommitFailed {
    code: i32,
    message: String,
}

pub(crate) struct Writer {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub(crate) fn start(connection: Connection) -> std::io::Result<Self> {
        let (jobs, waiting) = mpsc::channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            .stack_size(512 << 10)
            .spawn(|| work(connection, waiting))?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    pub(crate) async fn run<T, F, G>(&self, job: F, after: G) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
        G: FnOnce(&T) + Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            let result = connection.map_err(CommitFailed::into_error).and_then(|c| in_savepoint(c, job));
            Box::new(move |committed| {
                let result = match (result, committed) {
                    (Ok(value), Ok(())) => {
                        after(&value);
                        Ok(value)
                    }
                    (Ok(_), Err(failed)) => Err(StoreError::from(failed.into_error())),
                    (Err(error), _) => Err(StoreError::from(error)),
                };
                // The caller may have gone away; what it asked for is stored all the same.
                let _ = sender.send(result);
            })
        });
        let jobs = self.jobs.as_ref().ok_or(StoreError::Closed)?;
        jobs.send(job).await.map_err(|_| StoreError::Closed)?;
        receiver.await.map_err(|_| StoreError::Closed)?
    }
}

impl Drop for Writer {
    /// Waits for the jobs that were accepted.
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl CommitFailed {
    fn of(error: &rusqlite::Error) -> Self {
        Self { code: error.sqlite_error().map_or(1, |error| error.extended_code), message: error.to_string() }
    }

    fn into_error(self) -> rusqlite::Error {
        rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(self.code), Some(self.message))
    }
}

fn work(connection: Connection, mut waiting: mpsc::Receiver<Job>) {
    while let Some(first) = waiting.blocking_recv() {
        if let Err(error) = connection.execute_batch("BEGIN IMMEDIATE") {
            // Outside of a transaction every job would be committed on its own, behind everybody's back.
            let failed = CommitFailed::of(&error);
            first(Err(failed.clone()))(Err(failed));
            continue;
        }
        let mut reports = vec![first(Ok(&connection))];
        // A full disk ends the transaction; what still waits goes into the next one.
        while reports.len() < BATCH
            && !connection.is_autocommit()
            && let Ok(job) = waiting.try_recv()
        {
            reports.push(job(Ok(&connection)));
        }
        let committed = connection.execute_batch("COMMIT").map_err(|error| {
            let failed = CommitFailed::of(&error);
            let _ = connection.execute_batch("ROLLBACK");
            failed
        });
        for report in reports {
            report(committed.clone());
        }
    }
    // Leaves one file instead of three, and the log empty; not needed for what is stored.
    let _ = connection.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)");
}

fn in_savepoint<T>(
    connection: &Connection,
    job: impl FnOnce(&Connection) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    connection.execute_batch("SAVEPOINT job")?;
    let result = job(connection);
    let end = if result.is_ok() { "RELEASE job" } else { "ROLLBACK TO job; RELEASE job" };
    match connection.execute_batch(end) {
        Ok(()) => result,
        // A full disk may have rolled everything back already; the job's own error tells more.
        Err(error) => result.and(Err(error)),
    }
}
