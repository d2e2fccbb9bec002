//! What is stored stays, what fails takes nothing with it, and bad files are named.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use store::{Database, Durability, OpenError, Schema, StoreError};

const SCHEMA: Schema = Schema {
    steps: &["CREATE TABLE t (k TEXT PRIMARY KEY, v INTEGER NOT NULL) WITHOUT ROWID"],
    if_damaged: "ask the owner",
};

fn open(path: &Path) -> Database {
    Database::open(path, SCHEMA, Durability::Full).expect("database")
}

fn file() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().join("edge.db");
    (dir, path)
}

async fn put(db: &Database, key: String, value: i64) -> Result<usize, StoreError> {
    db.write(move |c| c.prepare_cached("INSERT INTO t VALUES (?1, ?2)")?.execute((key, value))).await
}

fn count(db: &Database) -> i64 {
    db.read(|c| c.query_row("SELECT count(*) FROM t", [], |row| row.get(0))).expect("count")
}

#[tokio::test]
async fn what_was_written_is_there_after_reopening() {
    let (_dir, path) = file();
    let db = open(&path);
    put(&db, "a".into(), 1).await.expect("stored");
    assert_eq!(count(&db), 1);
    drop(db);
    assert_eq!(count(&open(&path)), 1);
    assert_eq!(std::fs::metadata(&path).expect("file").permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn a_failing_job_takes_no_other_with_it() {
    let (_dir, path) = file();
    let db = open(&path);
    let jobs: Vec<_> = (0..300)
        .map(|n| {
            let db = db.clone();
            // Every third key is a duplicate.
            let key = if n % 3 == 0 { "same".to_owned() } else { n.to_string() };
            async move { put(&db, key, n).await.is_ok() }
        })
        .collect();
    let done = futures_util::future::join_all(jobs).await;
    assert_eq!(done.iter().filter(|ok| **ok).count(), 201);
    assert_eq!(count(&db), 201);
}

#[tokio::test]
async fn a_job_that_fails_midway_leaves_nothing() {
    let (_dir, path) = file();
    let db = open(&path);
    let failed: Result<(), _> = db
        .write(|c| {
            c.execute("INSERT INTO t VALUES ('half', 1)", [])?;
            c.execute("INSERT INTO t VALUES ('half', 2)", []).map(drop)
        })
        .await;
    assert!(matches!(failed, Err(StoreError::Sqlite(_))));
    assert_eq!(count(&db), 0);
}

#[tokio::test]
async fn a_full_disk_is_told_and_stores_nothing() {
    let (_dir, path) = file();
    let db = open(&path);
    put(&db, "a".into(), 1).await.expect("stored");
    // SQLite's own limit on pages fails as a full disk does.
    db.write(|c| c.pragma_update(None, "max_page_count", 4)).await.expect("limit");
    let big = "x".repeat(100_000);
    assert!(matches!(put(&db, big, 1).await, Err(StoreError::DiskFull(_))));
    assert_eq!(count(&db), 1);
    db.write(|c| c.pragma_update(None, "max_page_count", 100_000)).await.expect("limit");
    put(&db, "b".into(), 1).await.expect("it goes on when there is space again");
}

#[test]
fn a_damaged_file_is_named_and_left_alone() {
    let (_dir, path) = file();
    std::fs::write(&path, b"this is no database, but somebody may want it back").expect("file");
    let error = Database::open(&path, SCHEMA, Durability::Full).map(|_| ()).expect_err("damaged");
    assert!(matches!(error, OpenError::Corrupt { .. }), "{error:?}");
    assert!(error.to_string().contains("edge.db") && error.to_string().contains("damaged: ask the owner"), "{error}");
    assert!(std::fs::read(&path).expect("file").starts_with(b"this is no database"));
}

#[tokio::test]
async fn a_file_damaged_in_the_middle_is_noticed() {
    let (_dir, path) = file();
    let db = open(&path);
    for n in 0..500 {
        put(&db, format!("{n:0>100}"), n).await.expect("stored");
    }
    drop(db);
    let mut bytes = std::fs::read(&path).expect("file");
    let middle = bytes.len() / 2;
    bytes[middle..middle + 4096].fill(0xa5);
    std::fs::write(&path, bytes).expect("file");
    let opened = Database::open(&path, SCHEMA, Durability::Full);
    assert!(matches!(opened, Err(OpenError::Corrupt { .. })));
}

#[test]
fn a_newer_file_is_refused_and_an_older_one_brought_up_to_date() {
    const NEXT: Schema = Schema { steps: &[SCHEMA.steps[0], "ALTER TABLE t ADD COLUMN w TEXT"], ..SCHEMA };
    let (_dir, path) = file();
    drop(open(&path));
    drop(Database::open(&path, NEXT, Durability::Normal).expect("brought up to date"));
    let error = Database::open(&path, SCHEMA, Durability::Full).map(|_| ()).expect_err("newer");
    assert!(matches!(error, OpenError::Newer { found: 2, known: 1, .. }), "{error:?}");
}

#[test]
fn a_folder_that_is_missing_is_told() {
    let error =
        Database::open(Path::new("/nonexistent/edge.db"), SCHEMA, Durability::Full).map(|_| ()).expect_err("no");
    assert!(matches!(error, OpenError::Open(..)), "{error:?}");
}

#[tokio::test]
async fn what_is_reported_is_what_is_stored_when_a_transaction_breaks() {
    let (_dir, path) = file();
    let db = open(&path);
    let jobs = (0..300).map(|n| {
        let db = db.clone();
        async move {
            if n % 7 == 3 {
                // As SQLite itself does when the disk is full.
                db.write(|c| c.execute_batch("ROLLBACK").and(Err(store::rusqlite::Error::InvalidQuery)))
                    .await
                    .map(|()| 0)
            } else {
                put(&db, n.to_string(), n).await
            }
        }
    });
    let results = futures_util::future::join_all(jobs).await;
    let stored = results.iter().filter(|result| result.is_ok()).count();
    assert_eq!(count(&db), i64::try_from(stored).expect("few"));
    put(&db, "after".into(), 1).await.expect("the next transaction is sound");
}
