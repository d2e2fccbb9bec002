//! Reported values in the node's database. Those of one property are a series, numbered without gaps; what is kept are the newest of
//! each. A series is there as long as it has a value.

use store::rusqlite::{Connection, OptionalExtension, Result, params};

use super::device::Kept;

/// The tables (a step of [`crate::metamanager::SCHEMA`]). `bytes` is what the values of a series take, `oldest` the time of the first.
pub(crate) const TABLES: &str =
    "CREATE TABLE series (id INTEGER PRIMARY KEY AUTOINCREMENT, device TEXT NOT NULL, property TEXT NOT NULL,
        first INTEGER NOT NULL, last INTEGER NOT NULL, oldest INTEGER NOT NULL, bytes INTEGER NOT NULL,
        UNIQUE (device, property));
    CREATE TABLE reported (series INTEGER, number INTEGER, time INTEGER NOT NULL, value TEXT NOT NULL,
        PRIMARY KEY (series, number)) WITHOUT ROWID";

/// Values are kept so long, in milliseconds.
pub(super) const MAX_AGE: i64 = 7 * 24 * 3600 * 1000;
/// What all values of the node may take, in bytes.
const MAX_BYTES: i64 = 32 << 20;
/// What a value takes besides its letters, about, in bytes.
const ROW: i64 = 32;
/// Series that are looked at for old values with each write.
const AT_ONCE: usize = 8;

/// Keeps a value; the oldest of its property make room.
pub(super) fn keep(c: &Connection, device: &str, kept: &Kept) -> Result<()> {
    let Kept { property, time, value, at_most } = kept;
    let bytes = ROW + i64::try_from(value.len()).unwrap_or(i64::MAX - ROW);
    let sql = "INSERT INTO series (device, property, first, last, oldest, bytes) VALUES (?1, ?2, 1, 1, ?3, ?4)
        ON CONFLICT (device, property) DO UPDATE SET last = last + 1, bytes = bytes + excluded.bytes
        RETURNING id, first, last";
    let (series, first, last): (i64, i64, i64) = c
        .prepare_cached(sql)?
        .query_row(params![device, property, time, bytes], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let sql = "INSERT INTO reported VALUES (?1, ?2, ?3, ?4)";
    c.prepare_cached(sql)?.execute(params![series, last, time, value])?;
    let until = last - i64::from(*at_most);
    if until >= first { forget(c, series, until) } else { Ok(()) }
}

/// Forgets what is kept of a device.
pub(super) fn remove(c: &Connection, device: &str) -> Result<()> {
    let sql = "DELETE FROM reported WHERE series IN (SELECT id FROM series WHERE device = ?1)";
    c.prepare_cached(sql)?.execute([device])?;
    c.prepare_cached("DELETE FROM series WHERE device = ?1")?.execute([device]).map(drop)
}

/// Forgets what is too old at this time (Unix milliseconds) and what the node has no room for: the longest series gives up its oldest.
pub(super) fn make_room(c: &Connection, now: i64) -> Result<()> {
    forget_old(c, now, AT_ONCE)?;
    make_room_within(c, MAX_BYTES)
}

fn make_room_within(c: &Connection, max: i64) -> Result<()> {
    loop {
        let all: i64 =
            c.prepare_cached("SELECT COALESCE(SUM(bytes), 0) FROM series")?.query_row([], |row| row.get(0))?;
        if all <= max {
            return Ok(());
        }
        let sql = "SELECT id, first + (last - first) / 8 FROM series ORDER BY bytes DESC, id LIMIT 1";
        let (series, until) = c.prepare_cached(sql)?.query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        forget(c, series, until)?;
    }
}

/// Forgets what is too old at this time, of so many series at most.
pub(super) fn forget_old(c: &Connection, now: i64, at_most: usize) -> Result<()> {
    let since = now - MAX_AGE;
    for _ in 0..at_most {
        let sql = "SELECT id, last FROM series WHERE oldest < ?1 ORDER BY oldest LIMIT 1";
        let found: Option<(i64, i64)> =
            c.prepare_cached(sql)?.query_row([since], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
        let Some((series, last)) = found else { return Ok(()) };
        let sql = "SELECT number - 1 FROM reported WHERE series = ?1 AND time >= ?2 ORDER BY number LIMIT 1";
        let until = c.prepare_cached(sql)?.query_row([series, since], |row| row.get(0)).optional()?.unwrap_or(last);
        forget(c, series, until)?;
    }
    Ok(())
}

/// Forgets the values of a series up to this number.
fn forget(c: &Connection, series: i64, until: i64) -> Result<()> {
    let which = "FROM reported WHERE series = ?1 AND number <= ?2";
    let sql = format!("SELECT COALESCE(SUM(length(value)), 0) + COUNT(*) * {ROW} {which}");
    let freed: i64 = c.prepare_cached(&sql)?.query_row([series, until], |row| row.get(0))?;
    c.prepare_cached(&format!("DELETE {which}"))?.execute([series, until])?;
    let sql = "SELECT number, time FROM reported WHERE series = ?1 ORDER BY number LIMIT 1";
    let first: Option<(i64, i64)> =
        c.prepare_cached(sql)?.query_row([series], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    match first {
        Some((number, time)) => {
            let sql = "UPDATE series SET first = ?2, oldest = ?3, bytes = bytes - ?4 WHERE id = ?1";
            c.prepare_cached(sql)?.execute([series, number, time, freed])
        }
        None => c.prepare_cached("DELETE FROM series WHERE id = ?1")?.execute([series]),
    }
    .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 24 * 3600 * 1000;

    fn table() -> Connection {
        let c = Connection::open_in_memory().expect("SQLite");
        c.execute_batch(TABLES).expect("tables");
        c
    }

    fn put(c: &Connection, property: &str, time: i64, at_most: u32) {
        let kept = Kept { property: property.to_owned(), time, value: time.to_string(), at_most };
        keep(c, "default/t1", &kept).expect("kept");
    }

    /// The times of a property's values, in order.
    fn times(c: &Connection, property: &str) -> Vec<i64> {
        let sql =
            "SELECT time FROM reported WHERE series = (SELECT id FROM series WHERE property = ?1) ORDER BY number";
        let mut statement = c.prepare(sql).expect("SQL");
        let found = statement.query_map([property], |row| row.get(0)).expect("rows");
        found.collect::<Result<_>>().expect("times")
    }

    /// What the series say of themselves is so.
    fn check(c: &Connection) {
        let sql = "SELECT COUNT(*) FROM series s JOIN (SELECT series, MIN(number) AS first, MAX(number) AS last, COUNT(*) AS count,
                SUM(length(value) + 32) AS bytes FROM reported GROUP BY series) r ON r.series = s.id
            WHERE s.first = r.first AND s.last = r.last AND r.count = r.last - r.first + 1 AND s.bytes = r.bytes
                AND s.oldest = (SELECT time FROM reported WHERE series = s.id AND number = s.first)";
        let number = |sql: &str| c.query_row(sql, [], |row| row.get::<_, i64>(0)).expect("a number");
        assert_eq!(number(sql), number("SELECT COUNT(*) FROM series"));
        assert_eq!(number("SELECT COUNT(DISTINCT series) FROM reported"), number("SELECT COUNT(*) FROM series"));
    }

    #[test]
    fn the_newest_are_kept_and_a_smaller_number_counts_at_once() {
        let c = table();
        (1..=10).for_each(|time| put(&c, "a", time, 4));
        (1..=3).for_each(|time| put(&c, "b", time, 4));
        assert_eq!((times(&c, "a"), times(&c, "b")), (vec![7, 8, 9, 10], vec![1, 2, 3]));
        put(&c, "a", 11, 2);
        put(&c, "a", 12, 3);
        assert_eq!(times(&c, "a"), [10, 11, 12]);
        check(&c);
        remove(&c, "default/t1").expect("removed");
        assert!(times(&c, "a").is_empty());
        check(&c);
    }

    #[test]
    fn what_is_old_goes_also_of_those_that_report_no_more() {
        let c = table();
        [1, 2, DAY, 3 * DAY].into_iter().for_each(|time| put(&c, "a", time, 100));
        put(&c, "silent", 5, 100);
        make_room(&c, MAX_AGE + 2).expect("room");
        assert_eq!((times(&c, "a"), times(&c, "silent")), (vec![2, DAY, 3 * DAY], vec![5]));
        make_room(&c, MAX_AGE + DAY).expect("room");
        assert_eq!((times(&c, "a"), times(&c, "silent")), (vec![DAY, 3 * DAY], vec![]));
        check(&c);
    }

    #[test]
    fn a_node_without_room_takes_it_from_the_longest_series() {
        let c = table();
        (0..5).for_each(|time| put(&c, "short", time, 1000));
        (0..900).for_each(|time| put(&c, "long", time, 1000));
        (0..300).for_each(|time| put(&c, "middle", time, 1000));
        make_room_within(&c, 500 * (ROW + 3)).expect("room");
        let [short, middle, long] = ["short", "middle", "long"].map(|property| times(&c, property));
        assert_eq!(short, [0, 1, 2, 3, 4]);
        assert!((440..=500).contains(&(middle.len() + long.len())), "{} {}", middle.len(), long.len());
        assert_eq!((middle.last(), long.last()), (Some(&299), Some(&899)));
        check(&c);
        make_room_within(&c, 0).expect("room");
        assert!(times(&c, "short").is_empty());
        check(&c);
    }
}
