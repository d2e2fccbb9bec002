//! The rows: one per object, by its resource path.

use std::borrow::Cow;

use bytes::Bytes;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use store::rusqlite::{OptionalExtension, params};
use store::{Database, Schema, StoreError};
use wire::inventory::{self, Held};
use wire::{Content, EdgeResource, kind};

/// The schema of the node's database.
pub const SCHEMA: Schema = Schema {
    steps: &[
        "CREATE TABLE meta (
        key TEXT PRIMARY KEY,
        kind TEXT NOT NULL,
        uid TEXT NOT NULL,
        revision INTEGER NOT NULL,
        value BLOB NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX meta_kind ON meta (kind)",
        "CREATE TABLE settled (told INTEGER PRIMARY KEY);
    INSERT INTO settled SELECT 1 WHERE EXISTS (SELECT 1 FROM meta WHERE kind = 'pod')",
        crate::devicetwin::TABLES,
        crate::dmi::TABLE,
        crate::devicetwin::HISTORY,
    ],
    if_damaged: "move it away to start with an empty one (the cloud sends its content again)",
};

/// A token is used for this part of its life, and not longer than a day; then a new one is asked for.
const FRESH_PART: f64 = 0.8;
const MAX_AGE: f64 = 24.0 * 3600.0;
/// Seconds by which the clocks of node and cloud may differ.
const CLOCK_LEEWAY: f64 = 300.0;

/// The node's objects.
#[derive(Clone)]
pub(super) struct Table {
    database: Database,
}

/// One object.
pub(super) struct Row {
    key: String,
    kind: String,
    uid: String,
    revision: i64,
    value: Bytes,
}

/// The part of an object that a row needs.
#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    metadata: Metadata,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    uid: String,
    resource_version: String,
}

impl Row {
    /// `None` when the content is no object.
    pub(super) fn read(resource: &EdgeResource, content: &Content) -> Option<Self> {
        // An object's own text is shared, not copied.
        let value = match content.payload() {
            Cow::Borrowed(_) => content.to_bytes(),
            Cow::Owned(text) => text.into(),
        };
        let head: Head = serde_json::from_slice(&value).ok()?;
        Some(Self {
            key: resource.to_string(),
            kind: resource.kind.clone(),
            uid: head.metadata.uid,
            revision: head.metadata.resource_version.parse().unwrap_or_default(),
            value,
        })
    }

    /// With `apiVersion` and `kind`, which answers leave out.
    pub(super) fn of_kind(mut self, api_version: &str, kind: &str) -> Self {
        if let Ok(Value::Object(mut object)) = serde_json::from_slice(&self.value)
            && object.get("kind").is_none_or(Value::is_null)
        {
            object.insert("apiVersion".to_owned(), json!(api_version));
            object.insert("kind".to_owned(), json!(kind));
            self.value = Value::Object(object).to_string().into();
        }
        self
    }
}

impl Table {
    pub(super) fn new(database: Database) -> Self {
        Self { database }
    }

    /// Stores an object as the cloud pushes it: the cloud keeps the order, and after a restored backup versions go back. One that is here
    /// already is not written again.
    pub(super) async fn push(&self, row: Row) -> Result<(), StoreError> {
        let sql = "INSERT INTO meta VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (key) DO UPDATE
            SET uid = excluded.uid, revision = excluded.revision, value = excluded.value
            WHERE excluded.uid <> meta.uid OR excluded.revision <> meta.revision OR excluded.value <> meta.value";
        self.write(sql, row).await
    }

    /// Stores an object, unless a newer version of the same object is there.
    pub(super) async fn put(&self, row: Row) -> Result<(), StoreError> {
        let sql = "INSERT INTO meta VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (key) DO UPDATE
            SET uid = excluded.uid, revision = excluded.revision, value = excluded.value
            WHERE excluded.uid <> meta.uid OR excluded.revision >= meta.revision";
        self.write(sql, row).await
    }

    /// Stores an object only where an older version of the same object is.
    pub(super) async fn replace(&self, row: Row) -> Result<(), StoreError> {
        let sql =
            "UPDATE meta SET revision = ?4, value = ?5 WHERE key = ?1 AND kind = ?2 AND uid = ?3 AND revision <= ?4";
        self.write(sql, row).await
    }

    /// Whether the cloud has once sent everything that is for this node; of a Go cloud, which does not say so, any pod counts for that.
    /// A database that cannot be read is not taken for a new one.
    pub(super) fn is_settled(&self) -> bool {
        let query = "SELECT EXISTS (SELECT 1 FROM settled WHERE told OR EXISTS (SELECT 1 FROM meta WHERE kind = ?1))";
        self.database.read(|c| c.prepare_cached(query)?.query_row([kind::POD], |row| row.get(0))).unwrap_or(true)
    }

    /// The cloud has sent everything (`told`), or is one that will not say so.
    pub(super) async fn settle(&self, told: bool) -> Result<(), StoreError> {
        self.database.write(move |c| c.execute("INSERT OR IGNORE INTO settled VALUES (?1)", [told]).map(drop)).await
    }

    /// Whether a Node is stored; a node gets no other than its own.
    pub(super) fn has_node(&self) -> Result<bool, StoreError> {
        self.database.read(|c| {
            let query = "SELECT EXISTS (SELECT 1 FROM meta WHERE kind = ?1)";
            c.prepare_cached(query)?.query_row([kind::NODE], |row| row.get(0))
        })
    }

    /// All pods: path and JSON text.
    pub(super) fn pods(&self) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        self.database.read(|c| {
            let mut statement = c.prepare_cached("SELECT key, value FROM meta WHERE kind = ?1 ORDER BY key")?;
            let rows = statement.query_map([kind::POD], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect()
        })
    }

    /// What the cloud keeps note of.
    pub(super) fn inventory(&self) -> Result<Vec<Held>, StoreError> {
        self.database.read(|c| {
            let sql = "SELECT uid, key, revision FROM meta WHERE kind IN (?1, ?2, ?3, ?4, ?5) AND uid <> ''";
            let mut statement = c.prepare_cached(sql)?;
            let rows = statement.query_map(inventory::KINDS, |row| {
                let revision: i64 = row.get(2)?;
                Ok(Held(row.get(0)?, row.get(1)?, u64::try_from(revision).unwrap_or_default()))
            })?;
            rows.collect()
        })
    }

    async fn write(&self, sql: &'static str, row: Row) -> Result<(), StoreError> {
        let job = move |c: &store::rusqlite::Connection| {
            let Row { key, kind, uid, revision, value } = row;
            c.prepare_cached(sql)?.execute(params![key, kind, uid, revision, value.as_ref()]).map(drop)
        };
        self.database.write(job).await
    }

    /// Removes an object; with a uid only the object that has it, and the tokens that were bound to it.
    pub(super) async fn delete(&self, resource: &EdgeResource, uid: &str) -> Result<(), StoreError> {
        let (key, uid) = (resource.to_string(), uid.to_owned());
        self.database
            .write(move |c| {
                c.prepare_cached("DELETE FROM meta WHERE key = ?1 AND (?2 = '' OR uid = ?2)")?
                    .execute(params![key, uid])?;
                if !uid.is_empty() {
                    c.prepare_cached("DELETE FROM meta WHERE kind = ?1 AND uid = ?2")?
                        .execute(params![kind::SERVICE_ACCOUNT_TOKEN, uid])?;
                }
                Ok(())
            })
            .await
    }

    /// The object of this path, or all of its type when the path names none.
    pub(super) fn find(&self, resource: &EdgeResource) -> Result<Vec<String>, StoreError> {
        let (sql, value) = match &resource.name {
            Some(_) => ("SELECT value FROM meta WHERE key = ?1", resource.to_string()),
            None => ("SELECT value FROM meta WHERE kind = ?1 ORDER BY key", resource.kind.clone()),
        };
        self.database.read(|c| {
            let mut statement = c.prepare_cached(sql)?;
            let rows = statement.query_map([value], |row| row.get::<_, Vec<u8>>(0))?;
            rows.map(|row| row.map(|value| String::from_utf8_lossy(&value).into_owned())).collect()
        })
    }

    /// The token that was kept for such a request.
    pub(super) fn token(&self, resource: &EdgeResource, request: &Content) -> Result<Option<Content>, StoreError> {
        let key = token_key(resource, request).0;
        let value: Option<Vec<u8>> = self.database.read(|c| {
            c.prepare_cached("SELECT value FROM meta WHERE key = ?1")?.query_row([&key], |row| row.get(0)).optional()
        })?;
        Ok(value.and_then(|value| Content::from_raw(value.into()).ok()))
    }

    /// Keeps a token until a newer one arrives or its pod is gone; an expired one is better than none for a node without link.
    pub(super) async fn keep_token(
        &self,
        resource: &EdgeResource,
        request: &Content,
        token: &Content,
    ) -> Result<(), StoreError> {
        let (key, uid) = token_key(resource, request);
        let kind = kind::SERVICE_ACCOUNT_TOKEN.to_owned();
        let row = Row { key, kind, uid, revision: 0, value: Bytes::copy_from_slice(&token.payload()) };
        self.put(row).await
    }
}

/// The uid of an object; empty when it has none.
pub(crate) fn uid(content: &Content) -> String {
    content.parse::<Head>().map(|head| head.metadata.uid).unwrap_or_default()
}

/// Whether a token has most of its life before it.
pub(super) fn is_fresh(token: &Content) -> bool {
    let token: Value = token.parse().unwrap_or_default();
    let expires = token["status"]["expirationTimestamp"].as_str().and_then(|text| text.parse::<Timestamp>().ok());
    let lifetime = token["spec"]["expirationSeconds"].as_f64().unwrap_or(3600.0);
    expires.is_some_and(|expires| {
        let age = lifetime - expires.duration_since(Timestamp::now()).as_secs_f64();
        // One from the future tells that the node's clock is slow, not how old it is.
        (-CLOCK_LEEWAY..(lifetime * FRESH_PART).min(MAX_AGE)).contains(&age)
    })
}

/// Tokens differ by account, audiences, lifetime and what they are bound to; the key, and the uid of that.
fn token_key(resource: &EdgeResource, request: &Content) -> (String, String) {
    let request: Value = request.parse().unwrap_or_default();
    let spec = &request["spec"];
    let bound = &spec["boundObjectRef"];
    let key = format!("{resource}/{}/{}/{}", spec["audiences"], spec["expirationSeconds"], bound["uid"]);
    (key, bound["uid"].as_str().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use store::Durability;

    fn table() -> (tempfile::TempDir, Table) {
        let dir = tempfile::tempdir().expect("dir");
        let database = Database::open(&dir.path().join("edge.db"), SCHEMA, Durability::Full).expect("database");
        (dir, Table::new(database))
    }

    fn pod(uid: &str, version: u32) -> Content {
        Content::json(&json!({"metadata": {"name": "p", "uid": uid, "resourceVersion": version.to_string()}}))
            .expect("pod")
    }

    fn row(content: &Content) -> Row {
        Row::read(&path(), content).expect("row")
    }

    fn path() -> EdgeResource {
        EdgeResource::parse("default/pod/p").expect("path")
    }

    #[tokio::test]
    async fn versions_never_go_back_but_another_object_may_take_the_name() {
        let (_dir, table) = table();
        table.put(row(&pod("u1", 5))).await.expect("stored");
        table.put(row(&pod("u1", 4))).await.expect("older");
        assert!(table.find(&path()).expect("row")[0].contains("\"5\""));
        table.put(row(&pod("u2", 2))).await.expect("another");
        assert!(table.find(&path()).expect("row")[0].contains("u2"));
    }

    #[tokio::test]
    async fn the_inventory_has_what_the_cloud_notes() {
        let (_dir, table) = table();
        for kind in ["pod", "configmap", "secret", "device", "devicemodel", "node", "lease"] {
            let path = EdgeResource::object("default", kind, "p");
            table.push(Row::read(&path, &pod(kind, 5)).expect("row")).await.expect("stored");
        }
        let mut kinds: Vec<String> = table.inventory().expect("rows").into_iter().map(|Held(uid, ..)| uid).collect();
        kinds.sort();
        assert_eq!(kinds, ["configmap", "device", "devicemodel", "pod", "secret"]);
    }

    #[tokio::test]
    async fn a_deletion_is_for_the_object_that_it_names() {
        let (_dir, table) = table();
        table.put(row(&pod("u2", 5))).await.expect("stored");
        table.delete(&path(), "u1").await.expect("another");
        assert_eq!(table.find(&path()).expect("row").len(), 1);
        table.delete(&path(), "u2").await.expect("this one");
        table.replace(row(&pod("u2", 6))).await.expect("too late");
        assert!(table.find(&path()).expect("row").is_empty(), "a late answer does not bring it back");
        assert!(table.find(&EdgeResource::parse("any/pod").expect("list")).expect("rows").is_empty());
    }

    #[tokio::test]
    async fn tokens_are_kept_by_what_they_are_for_and_go_with_their_pod() {
        let (_dir, table) = table();
        let account = EdgeResource::parse("default/serviceaccounttoken/default").expect("path");
        let request = |uid: &str| {
            Content::json(
                &json!({"spec": {"audiences": null, "expirationSeconds": 3607, "boundObjectRef": {"uid": uid}}}),
            )
            .expect("request")
        };
        let token = Content::json(&json!({"spec": {"expirationSeconds": 3607}, "status": {"token": "t", "expirationTimestamp": "2020-01-01T00:00:00Z"}})).expect("token");
        table.keep_token(&account, &request("u1"), &token).await.expect("kept");
        assert_eq!(table.token(&account, &request("u1")).expect("read"), Some(token.clone()));
        assert_eq!(table.token(&account, &request("u2")).expect("read"), None, "another pod's token is nobody else's");
        assert!(!is_fresh(&token));
        let of_age = |age: i64, lifetime: i64| {
            let expires =
                Timestamp::from_second(Timestamp::now().as_second() + lifetime - age).expect("time").to_string();
            let token = json!({"spec": {"expirationSeconds": lifetime}, "status": {"expirationTimestamp": expires}});
            is_fresh(&Content::json(&token).expect("token"))
        };
        assert!(of_age(2800, 3600) && !of_age(2900, 3600));
        assert!(of_age(-200, 3600) && !of_age(-86_400, 3600), "clocks differ, but not by a day");
        assert!(of_age(86_000, 864_000) && !of_age(87_000, 864_000), "a day is the longest");
        table.delete(&path(), "u1").await.expect("pod gone");
        assert_eq!(table.token(&account, &request("u1")).expect("read"), None);
    }
}
