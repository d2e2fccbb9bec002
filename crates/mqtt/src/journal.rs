//! Retained messages and sessions that outlive a connection, on disk.
//!
//! The router says what changes, in order; one task writes whatever has gathered as one transaction, and only then lets messages go to
//! their subscribers and answers to their publishers. So what was acknowledged survives a `kill -9`, and what survives was not lost
//! or doubled by it. Without a database everything is as safe as it shall be at once.

use std::sync::Arc;

use bytes::Bytes;
use store::rusqlite::{self, Connection, params};
use store::{Database, Schema};
use tokio::sync::mpsc;
use tracing::{error, info};

use crate::message::{Message, Qos, Storing};
use crate::outbox::{Outbox, Waiting};
use crate::packet::Options;
use crate::replies::Token;
use crate::room::Place;

/// What the broker's file holds.
pub(crate) const SCHEMA: Schema = Schema {
    steps: &["
CREATE TABLE session (client TEXT PRIMARY KEY, user TEXT, keep INTEGER NOT NULL, ended INTEGER) WITHOUT ROWID;
CREATE TABLE subscription (client TEXT NOT NULL, filter TEXT NOT NULL, options INTEGER NOT NULL, identifier INTEGER,
  PRIMARY KEY (client, filter)) WITHOUT ROWID;
CREATE TABLE queued (number INTEGER PRIMARY KEY, client TEXT NOT NULL, packet_id INTEGER NOT NULL, qos INTEGER NOT NULL,
  retain INTEGER NOT NULL, identifiers TEXT NOT NULL, released INTEGER NOT NULL DEFAULT 0,
  topic TEXT NOT NULL, payload BLOB NOT NULL, properties BLOB NOT NULL, expires INTEGER, UNIQUE (client, packet_id));
CREATE TABLE incoming (client TEXT NOT NULL, packet_id INTEGER NOT NULL, local INTEGER NOT NULL,
  PRIMARY KEY (client, packet_id)) WITHOUT ROWID;
CREATE TABLE retained (topic TEXT PRIMARY KEY, payload BLOB NOT NULL, qos INTEGER NOT NULL, properties BLOB NOT NULL,
  expires INTEGER) WITHOUT ROWID;
"],
    if_damaged: "move it away; retained messages and queues of the MQTT broker are lost, clients subscribe again",
};

/// Changes that may wait; then the router waits itself.
const QUEUE: usize = 1024;
/// Changes in one transaction at most.
const BATCH: usize = 256;

/// One row, more or less.
pub(crate) enum Op {
    Session { client: Arc<str>, user: Option<String>, keep: u32 },
    Ended { client: Arc<str>, keep: u32, at: u64 },
    Gone(Arc<str>),
    Subscribed(Arc<str>, String, Options),
    Unsubscribed(Arc<str>, String),
    Queued(Arc<str>, Waiting),
    Released(Arc<str>, u16),
    Dequeued(Arc<str>, u16),
    Incoming { client: Arc<str>, packet_id: u16, local: bool },
    IncomingGone(Arc<str>, u16),
    Retained(Arc<Message>),
    Unretained(String),
}

/// What is written together, and who is told when it is.
#[derive(Default)]
pub(crate) struct Change {
    pub(crate) ops: Vec<Op>,
    /// May be delivered then.
    pub(crate) message: Option<Arc<Message>>,
    /// To these.
    pub(crate) wake: Vec<Arc<Outbox>>,
    /// And this one is a holder less.
    pub(crate) token: Option<Arc<Token>>,
    /// What the message takes on its way.
    pub(crate) place: Place,
}

/// The way to the disk.
#[derive(Clone)]
pub(crate) struct Journal(Option<mpsc::Sender<Change>>);

impl Journal {
    /// One that keeps nothing.
    pub(crate) fn nowhere() -> Self {
        Self(None)
    }

    pub(crate) fn keeps(&self) -> bool {
        self.0.is_some()
    }

    /// One that keeps everything, and the task that does it.
    pub(crate) fn new(database: Database) -> (Self, impl Future<Output = ()> + Send) {
        let (sender, changes) = mpsc::channel(QUEUE);
        (Self(Some(sender)), work(database, changes))
    }

    /// Hands a change over. The order of the calls is the order on disk.
    pub(crate) async fn write(&self, change: Change) {
        let refused = match &self.0 {
            None => return change.settle(true),
            Some(sender) => sender.send(change).await,
        };
        if let Err(refused) = refused {
            refused.0.settle(false);
        }
    }
}

impl Change {
    fn settle(self, stored: bool) {
        if let Some(message) = &self.message {
            message.set_storing(if stored { Storing::Done } else { Storing::Failed });
        }
        if let Some(token) = &self.token
            && !stored
        {
            token.fail();
        }
        self.wake.iter().for_each(|outbox| outbox.wake());
        drop(self.place);
    }
}

async fn work(database: Database, mut changes: mpsc::Receiver<Change>) {
    let mut batch = Vec::new();
    let mut failing = false;
    while changes.recv_many(&mut batch, BATCH).await > 0 {
        let ops: Vec<Op> = batch.iter_mut().flat_map(|change| std::mem::take(&mut change.ops)).collect();
        let mut stored = true;
        if !ops.is_empty() {
            let result = database.write(move |connection| ops.iter().try_for_each(|op| op.apply(connection))).await;
            stored = result.is_ok();
            match result {
                Err(error) if !failing => {
                    error!(
                        error = &error as &dyn std::error::Error,
                        "the MQTT broker cannot store; publishers are told"
                    );
                    failing = true;
                }
                Ok(()) if failing => {
                    info!("the MQTT broker can store again");
                    failing = false;
                }
                _ => {}
            }
        }
        batch.drain(..).for_each(|change| change.settle(stored));
    }
}

impl Op {
    fn apply(&self, connection: &Connection) -> rusqlite::Result<()> {
        let run =
            |sql: &str, values: &[&dyn rusqlite::ToSql]| connection.prepare_cached(sql)?.execute(values).map(drop);
        match self {
            Self::Session { client, user, keep } => run(
                "INSERT INTO session (client, user, keep) VALUES (?1, ?2, ?3)
                 ON CONFLICT (client) DO UPDATE SET user = ?2, keep = ?3, ended = NULL",
                params![client, user, keep],
            ),
            Self::Ended { client, keep, at } => {
                run("UPDATE session SET keep = ?2, ended = ?3 WHERE client = ?1", params![client, keep, signed(*at)])
            }
            Self::Gone(client) => {
                for table in ["session", "subscription", "queued", "incoming"] {
                    run(&format!("DELETE FROM {table} WHERE client = ?1"), params![client])?;
                }
                Ok(())
            }
            Self::Subscribed(client, filter, options) => run(
                "INSERT OR REPLACE INTO subscription VALUES (?1, ?2, ?3, ?4)",
                params![client, filter, options.bits(), options.identifier],
            ),
            Self::Unsubscribed(client, filter) => {
                run("DELETE FROM subscription WHERE client = ?1 AND filter = ?2", params![client, filter])
            }
            Self::Queued(client, waiting) => {
                let message = &waiting.message;
                let identifiers: Vec<String> = waiting.identifiers.iter().map(u32::to_string).collect();
                run(
                    "INSERT INTO queued (client, packet_id, qos, retain, identifiers, topic, payload, properties, expires)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
                    params![
                        client,
                        waiting.packet_id,
                        waiting.qos as u8,
                        waiting.retain,
                        identifiers.join(","),
                        message.topic,
                        &message.payload[..],
                        &message.properties[..],
                        message.expires.map(signed)
                    ],
                )
            }
            Self::Released(client, id) => {
                run("UPDATE queued SET released = 1 WHERE client = ?1 AND packet_id = ?2", params![client, id])
            }
            Self::Dequeued(client, id) => {
                run("DELETE FROM queued WHERE client = ?1 AND packet_id = ?2", params![client, id])
            }
            Self::Incoming { client, packet_id, local } => {
                run("INSERT OR REPLACE INTO incoming VALUES (?1, ?2, ?3)", params![client, packet_id, local])
            }
            Self::IncomingGone(client, id) => {
                run("DELETE FROM incoming WHERE client = ?1 AND packet_id = ?2", params![client, id])
            }
            Self::Retained(message) => run(
                "INSERT OR REPLACE INTO retained VALUES (?1, ?2, ?3, ?4, ?5)",
                params![
                    message.topic,
                    &message.payload[..],
                    message.qos as u8,
                    &message.properties[..],
                    message.expires.map(signed)
                ],
            ),
            Self::Unretained(topic) => run("DELETE FROM retained WHERE topic = ?1", params![topic]),
        }
    }
}

/// A session as it was stored.
pub(crate) struct Kept {
    pub(crate) client: Arc<str>,
    pub(crate) user: Option<String>,
    pub(crate) keep: u32,
    pub(crate) ended: Option<u64>,
    pub(crate) subscriptions: Vec<(String, Options)>,
    pub(crate) queued: Vec<(Waiting, bool)>,
    pub(crate) incoming: Vec<(u16, bool)>,
}

/// Reads what an earlier run has left.
pub(crate) fn load(connection: &Connection) -> rusqlite::Result<(Vec<Kept>, Vec<Message>)> {
    let mut statement = connection.prepare("SELECT client, user, keep, ended FROM session")?;
    let sessions = statement.query_map([], |row| {
        let ended: Option<i64> = row.get(3)?;
        Ok(Kept {
            client: row.get::<_, String>(0)?.into(),
            user: row.get(1)?,
            keep: row.get(2)?,
            ended: ended.map(unsigned),
            subscriptions: Vec::new(),
            queued: Vec::new(),
            incoming: Vec::new(),
        })
    })?;
    let mut sessions: Vec<Kept> = sessions.collect::<rusqlite::Result<_>>()?;
    let mut filters = connection.prepare("SELECT filter, options, identifier FROM subscription WHERE client = ?1")?;
    let mut queued = connection.prepare(
        "SELECT topic, payload, qos, properties, expires, packet_id, retain, identifiers, released FROM queued
         WHERE client = ?1 ORDER BY number",
    )?;
    let mut incoming = connection.prepare("SELECT packet_id, local FROM incoming WHERE client = ?1")?;
    for session in &mut sessions {
        let client = [&session.client];
        let rows = filters.query_map(client, |row| Ok((row.get(0)?, Options::from_bits(row.get(1)?, row.get(2)?))))?;
        session.subscriptions = rows.collect::<rusqlite::Result<_>>()?;
        let rows = queued.query_map(client, |row| {
            let message = Arc::new(message(row)?);
            let identifiers: String = row.get(7)?;
            let identifiers = identifiers.split(',').filter_map(|id| id.parse().ok()).collect();
            let (qos, packet_id, retain) = (message.qos, row.get(5)?, row.get(6)?);
            Ok((Waiting { message, qos, retain, packet_id, identifiers }, row.get(8)?))
        })?;
        session.queued = rows.collect::<rusqlite::Result<_>>()?;
        let rows = incoming.query_map(client, |row| Ok((row.get(0)?, row.get(1)?)))?;
        session.incoming = rows.collect::<rusqlite::Result<_>>()?;
    }
    let mut statement = connection.prepare("SELECT topic, payload, qos, properties, expires FROM retained")?;
    let retained = statement.query_map([], message)?.collect::<rusqlite::Result<_>>()?;
    Ok((sessions, retained))
}

fn message(row: &rusqlite::Row<'_>) -> rusqlite::Result<Message> {
    let payload: Vec<u8> = row.get(1)?;
    let qos = Qos::from_number(row.get(2)?).unwrap_or(Qos::AtMostOnce);
    let mut message = Message::new(row.get(0)?, payload.into(), qos, true);
    message.properties = Bytes::from(row.get::<_, Vec<u8>>(3)?);
    let expires: Option<i64> = row.get(4)?;
    message.expires = expires.map(unsigned);
    Ok(message)
}

impl Options {
    /// As on the wire.
    fn bits(&self) -> u8 {
        self.qos as u8 | u8::from(self.no_local) << 2 | u8::from(self.as_published) << 3 | self.retained << 4
    }

    pub(crate) fn from_bits(bits: u8, identifier: Option<u32>) -> Self {
        Self {
            qos: Qos::from_number(bits & 3).unwrap_or(Qos::AtMostOnce),
            no_local: bits & 4 != 0,
            as_published: bits & 8 != 0,
            retained: bits >> 4 & 3,
            identifier,
        }
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
