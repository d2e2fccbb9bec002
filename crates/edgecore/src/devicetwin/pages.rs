//! Twins and their history as the node's API shows them, from what is committed.

use std::sync::Arc;

use beehive::compose;
use edged::api::{DeviceName, DevicePages, DeviceQuestion, Page};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use store::rusqlite::{Connection, OptionalExtension, Result as Rows};
use store::{Database, StoreError};
use twin::topic::DeviceId;
use wire::Status;

use super::device::{About, Stored};
use super::kept::MAX_AGE;

/// What the API asks, answered from this database.
pub(crate) fn pages(database: Database) -> DevicePages {
    Arc::new(move |question: &DeviceQuestion| match question {
        DeviceQuestion::List(page) => list(&database, page),
        DeviceQuestion::Twin(name) => twin(&database, name),
        DeviceQuestion::History { device, property, since, page } => {
            history(&database, device, property, since.as_ref(), page)
        }
    })
}

/// A page of history: where the series is, whether the device has the property, and the values.
struct Found {
    series: Option<i64>,
    has_property: bool,
    /// Number, time, value.
    values: Vec<(i64, i64, String)>,
}

fn list(database: &Database, page: &Page) -> Result<Value, Box<Status>> {
    let from = page.from.as_deref().unwrap_or_default();
    if !from.is_empty() && DeviceId::parse(from).is_none() {
        return Err(bad_token(from));
    }
    let sql = "SELECT id, value FROM device WHERE id > ?1 ORDER BY id LIMIT ?2";
    let found = database.read(|c| {
        let mut statement = c.prepare_cached(sql)?;
        let rows = statement.query_map((from, rows_of(page)), |row| Ok((row.get(0)?, row.get(1)?)))?;
        rows.collect::<Rows<Vec<(String, Vec<u8>)>>>()
    });
    let mut found = found.map_err(|error| failed(&error))?;
    let has_more = found.len() > page.limit;
    found.truncate(page.limit);
    let next = found.last().filter(|_| has_more).map(|(id, _)| id.clone());
    let items = found.iter().filter_map(|(id, value)| {
        let about: About = serde_json::from_slice(value).ok()?;
        Some(described(&DeviceId::parse(id)?, &about))
    });
    Ok(json!({"metadata": metadata(next), "items": items.collect::<Vec<_>>()}))
}

fn twin(database: &Database, name: &DeviceName) -> Result<Value, Box<Status>> {
    let id = DeviceId { namespace: name.namespace.clone(), name: name.name.clone() };
    let key = id.to_string();
    let found = database.read(|c| {
        let Some(about) = device(c, &key)? else { return Ok(None) };
        let mut statement = c.prepare_cached("SELECT name, value FROM property WHERE device = ?1")?;
        let rows = statement.query_map([&key], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let properties = rows.collect::<Rows<Vec<(String, Vec<u8>)>>>()?;
        let sql = "SELECT property, last - first + 1, oldest FROM series WHERE device = ?1";
        let mut statement = c.prepare_cached(sql)?;
        let rows = statement.query_map([&key], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        let series = rows.collect::<Rows<Vec<(String, i64, i64)>>>()?;
        Ok(Some((about, properties, series)))
    });
    let (about, properties, series) = found.map_err(|error| failed(&error))?.ok_or_else(|| no_device(&id))?;
    let mut answer = described(&id, &serde_json::from_slice(&about).unwrap_or_default());
    let properties = properties.into_iter().filter_map(|(name, value)| {
        let stored: Stored = serde_json::from_slice(&value).ok()?;
        Some((name, serde_json::to_value(stored.property.is_live().then(|| stored.property.entry())?).ok()?))
    });
    answer["twin"] = Value::Object(properties.collect());
    let series = series.into_iter();
    let series = series.map(|(name, values, oldest)| (name, json!({"values": values, "oldest": time(oldest)})));
    answer["history"] = Value::Object(series.collect());
    Ok(answer)
}

fn history(
    database: &Database,
    name: &DeviceName,
    property: &str,
    since: Option<&Timestamp>,
    page: &Page,
) -> Result<Value, Box<Status>> {
    let id = DeviceId { namespace: name.namespace.clone(), name: name.name.clone() };
    let (series, after) = match page.from.as_deref() {
        Some(token) => token_of(token).map(|(series, after)| (Some(series), after)).ok_or_else(|| bad_token(token))?,
        None => (None, 0),
    };
    let since = since.map_or(i64::MIN, |since| since.as_millisecond()).max(compose::now() - MAX_AGE);
    let found = database.read(|c| read(c, &id.to_string(), property, (after, since, rows_of(page))));
    let mut found = found.map_err(|error| failed(&error))?.ok_or_else(|| no_device(&id))?;
    if !found.has_property && found.series.is_none() {
        return Err(not_found(format!("device {id} has no property {property:?}")));
    }
    if series.is_some() && series != found.series {
        let why = format!(
            "what continue={} is about is gone: begin again without it",
            page.from.as_deref().unwrap_or_default()
        );
        return Err(Box::new(Status::failure(410, "Expired", why)));
    }
    let has_more = found.values.len() > page.limit;
    found.values.truncate(page.limit);
    let last = found.values.last().filter(|_| has_more);
    let next = found.series.zip(last).map(|(series, (number, ..))| format!("{series}.{number}"));
    let items: Vec<Value> =
        found.values.iter().map(|(_, at, value)| json!({"time": time(*at), "value": value})).collect();
    Ok(json!({"metadata": metadata(next), "items": items}))
}

/// `None` when there is no such device.
fn read(c: &Connection, id: &str, property: &str, which: (i64, i64, i64)) -> Rows<Option<Found>> {
    if device(c, id)?.is_none() {
        return Ok(None);
    }
    let exists = "SELECT EXISTS (SELECT 1 FROM property WHERE device = ?1 AND name = ?2)";
    let has_property = c.prepare_cached(exists)?.query_row([id, property], |row| row.get(0))?;
    let series = "SELECT id FROM series WHERE device = ?1 AND property = ?2";
    let series: Option<i64> = c.prepare_cached(series)?.query_row([id, property], |row| row.get(0)).optional()?;
    let (after, since, limit) = which;
    let sql = "SELECT number, time, value FROM reported WHERE series = ?1 AND number > ?2 AND time >= ?3 ORDER BY number LIMIT ?4";
    let mut statement = c.prepare_cached(sql)?;
    let rows = statement.query_map((series, after, since, limit), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    Ok(Some(Found { series, has_property, values: rows.collect::<Rows<_>>()? }))
}

/// One more than fit on the page tells that there is another.
fn rows_of(page: &Page) -> i64 {
    i64::try_from(page.limit).unwrap_or(i64::MAX - 1) + 1
}

fn device(c: &Connection, id: &str) -> Rows<Option<Vec<u8>>> {
    c.prepare_cached("SELECT value FROM device WHERE id = ?1")?.query_row([id], |row| row.get(0)).optional()
}

fn described(id: &DeviceId, about: &About) -> Value {
    let mut described = json!({"namespace": id.namespace, "name": id.name});
    for (name, text) in [
        ("uid", &about.uid),
        ("description", &about.description),
        ("state", &about.state),
        ("lastOnlineTime", &about.last_online),
    ] {
        if !text.is_empty() {
            described[name] = text.as_str().into();
        }
    }
    described
}

/// Where the next page begins, if there is one; as Kubernetes lists have it.
fn metadata(next: Option<String>) -> Value {
    let next = next.map(|next| ("continue".to_owned(), Value::from(next)));
    Value::Object(next.into_iter().collect::<Map<_, _>>())
}

fn token_of(text: &str) -> Option<(i64, i64)> {
    let (series, number) = text.split_once('.')?;
    Some((series.parse().ok()?, number.parse().ok()?))
}

/// RFC 3339 with milliseconds.
fn time(milliseconds: i64) -> String {
    let time = Timestamp::from_millisecond(milliseconds).unwrap_or_default();
    time.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string()
}

fn no_device(id: &DeviceId) -> Box<Status> {
    not_found(format!("no device {id} is on this node"))
}

fn not_found(why: String) -> Box<Status> {
    Box::new(Status::failure(404, "NotFound", why))
}

fn bad_token(token: &str) -> Box<Status> {
    let why = format!("continue: {:?} comes from no page", token.chars().take(64).collect::<String>());
    Box::new(Status::failure(400, "BadRequest", why))
}

fn failed(error: &StoreError) -> Box<Status> {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    Box::new(Status::failure(500, "InternalError", format!("the node's database cannot be read: {error}{cause}")))
}
