//! Reported values in the node's database. Those of one property are a series, numbered without gaps; what is kept are the newest of
//! each. A series is there as long as it has a value. What a removed device has left is a series of nobody until it is forgotten.
//!
//! No transaction is long: it forgets about as much as it keeps, and of what is too old or of nobody a bounded part.

use store::rusqlite::{Connection, OptionalExtension, Result, params};

use super::device::Kept;

/// The tables (a step of [`crate::metamanager::SCHEMA`]). `bytes` is what a series takes, about, and in `history` what all take;
/// `oldest` is the time of its first value.
pub(crate) const TABLES: &str =
    "CREATE TABLE series (id INTEGER PRIMARY KEY AUTOINCREMENT, device TEXT, property TEXT NOT NULL,
        first INTEGER NOT NULL, last INTEGER NOT NULL, oldest INTEGER NOT NULL, bytes INTEGER NOT NULL,
        UNIQUE (device, property));
    CREATE INDEX series_oldest ON series (oldest);
    CREATE INDEX series_bytes ON series (bytes DESC);
    CREATE TABLE reported (series INTEGER, number INTEGER, time INTEGER NOT NULL, value TEXT NOT NULL,
        PRIMARY KEY (series, number)) WITHOUT ROWID;
    CREATE TABLE history (bytes INTEGER NOT NULL);
    INSERT INTO history VALUES (0);
    CREATE TRIGGER series_begins AFTER INSERT ON series BEGIN UPDATE history SET bytes = bytes + new.bytes; END;
    CREATE TRIGGER series_changes AFTER UPDATE OF bytes ON series
        BEGIN UPDATE history SET bytes = bytes + new.bytes - old.bytes; END;
    CREATE TRIGGER series_ends AFTER DELETE ON series BEGIN UPDATE history SET bytes = bytes - old.bytes; END";

/// Values are kept so long, in milliseconds.
pub(super) const MAX_AGE: i64 = 7 * 24 * 3600 * 1000;
/// What all values of the node may take, in bytes.
const MAX_BYTES: i64 = 32 << 20;
/// What a series takes besides its values, about, in bytes: four entries of trees, two of them with its names.
const SERIES: i64 = 300;
/// What a value takes besides its letters, about, in bytes.
const ROW: i64 = 32;
/// Values that are forgotten at once, or twice as many.
const STEP: usize = 1000;
/// The series with the oldest value, if that is too old.
const OLDEST: &str = "SELECT id, last FROM series WHERE oldest < ?1 ORDER BY oldest LIMIT 1";
/// The series that takes most.
const LONGEST: &str = "SELECT id, first + (last - first) / 8 FROM series ORDER BY bytes DESC, id LIMIT 1";

/// Keeps a value; the oldest of its property make room.
pub(super) fn keep(c: &Connection, device: &str, kept: &Kept) -> Result<()> {
    let Kept { property, time, value, at_most } = kept;
    let bytes = ROW + i64::try_from(value.len()).unwrap_or(i64::MAX / 2);
    let sql = "INSERT INTO series (device, property, first, last, oldest, bytes) VALUES (?1, ?2, 1, 1, ?3, ?4 + ?5)
        ON CONFLICT (device, property) DO UPDATE SET last = last + 1, bytes = bytes + ?5 RETURNING id, first, last";
    let (series, first, last): (i64, i64, i64) = c
        .prepare_cached(sql)?
        .query_row(params![device, property, time, SERIES, bytes], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let sql = "INSERT INTO reported VALUES (?1, ?2, ?3, ?4)";
    c.prepare_cached(sql)?.execute(params![series, last, time, value])?;
    let until = last - i64::from(*at_most);
    if until >= first { forget(c, series, until).map(drop) } else { Ok(()) }
}

/// What is kept of a device is nobody's, and older than everything.
pub(super) fn remove(c: &Connection, device: &str) -> Result<()> {
    let sql = "UPDATE series SET device = NULL, oldest = ?2 WHERE device = ?1";
    c.prepare_cached(sql)?.execute(params![device, i64::MIN]).map(drop)
}

/// Forgets what the node has no room for: the longest series gives up its oldest.
pub(super) fn make_room(c: &Connection) -> Result<()> {
    make_room_within(c, MAX_BYTES)
}

fn make_room_within(c: &Connection, max: i64) -> Result<()> {
    loop {
        let all: i64 = c.prepare_cached("SELECT bytes FROM history")?.query_row([], |row| row.get(0))?;
        if all <= max {
            return Ok(());
        }
        let longest = c.prepare_cached(LONGEST)?.query_row([], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
        let Some((series, until)) = longest else { return Ok(()) };
        forget(c, series, until)?;
    }
}

/// Forgets what is too old at this time (Unix milliseconds) or nobody's, as many values as have been `kept` and some more. Whether
/// that was all.
pub(super) fn forget_old(c: &Connection, now: i64, kept: usize) -> Result<bool> {
    let since = now - MAX_AGE;
    let mut forgotten = 0;
    while forgotten < kept + STEP {
        let found = c.prepare_cached(OLDEST)?.query_row([since], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
        let Some((series, last)) = found else { return Ok(true) };
        let sql = "SELECT number - 1 FROM reported JOIN series ON id = series
            WHERE series = ?1 AND time >= ?2 AND device IS NOT NULL ORDER BY number LIMIT 1";
        let until = c.prepare_cached(sql)?.query_row([series, since], |row| row.get(0)).optional()?;
        forgotten += forget(c, series, until.unwrap_or(last))?;
    }
    Ok(false)
}

/// Forgets the values of a series up to this number, [`STEP`] at most: how many it were.
fn forget(c: &Connection, series: i64, until: i64) -> Result<usize> {
    let which = format!(
        "FROM reported WHERE series = ?1 AND number <= MIN(?2, (SELECT first FROM series WHERE id = ?1) + {STEP} - 1)"
    );
    let sql = format!("SELECT COALESCE(SUM(octet_length(value)), 0) + COUNT(*) * {ROW} {which}");
    let freed: i64 = c.prepare_cached(&sql)?.query_row([series, until], |row| row.get(0))?;
    let forgotten = c.prepare_cached(&format!("DELETE {which}"))?.execute([series, until])?;
    let sql = "SELECT number, time FROM reported WHERE series = ?1 ORDER BY number LIMIT 1";
    let first: Option<(i64, i64)> =
        c.prepare_cached(sql)?.query_row([series], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    match first {
        Some((number, time)) => {
            let sql = "UPDATE series SET first = ?2, oldest = iif(device IS NULL, oldest, ?3), bytes = bytes - ?4
                WHERE id = ?1";
            c.prepare_cached(sql)?.execute([series, number, time, freed])?;
        }
        None => drop(c.prepare_cached("DELETE FROM series WHERE id = ?1")?.execute([series])?),
    }
    Ok(forgotten)
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
                SUM(octet_length(value) + 32) + 300 AS bytes FROM reported GROUP BY series) r ON r.series = s.id
            WHERE s.first = r.first AND s.last = r.last AND r.count = r.last - r.first + 1 AND s.bytes = r.bytes
                AND s.oldest = (SELECT time FROM reported WHERE series = s.id AND number = s.first)";
        let number = |sql: &str| c.query_row(sql, [], |row| row.get::<_, i64>(0)).expect("a number");
        assert_eq!(number(sql), number("SELECT COUNT(*) FROM series"));
        assert_eq!(number("SELECT COUNT(DISTINCT series) FROM reported"), number("SELECT COUNT(*) FROM series"));
        assert_eq!(number("SELECT bytes FROM history"), number("SELECT COALESCE(SUM(bytes), 0) FROM series"));
    }

    fn count(c: &Connection) -> i64 {
        c.query_row("SELECT COUNT(*) FROM reported", [], |row| row.get(0)).expect("a number")
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
        assert!(forget_old(&c, 0, 0).expect("forgotten"));
        assert_eq!(count(&c), 0);
        check(&c);
    }

    #[test]
    fn many_values_go_a_bounded_part_at_a_time() {
        let c = table();
        (0..4500).for_each(|time| put(&c, "a", time, 10_000));
        // Another device of that name does not get them.
        remove(&c, "default/t1").expect("removed");
        put(&c, "a", MAX_AGE, 10_000);
        let mut there = vec![count(&c)];
        while !forget_old(&c, MAX_AGE, 0).expect("forgotten") {
            there.push(count(&c));
        }
        assert_eq!(there, [4501, 3501, 2501, 1501, 501]);
        assert_eq!(times(&c, "a"), [MAX_AGE]);
        check(&c);
        // Short series go together, and at least as many as come.
        let property = |number: usize| format!("p{number}");
        (0..4 * STEP).for_each(|number| put(&c, &property(number), 0, 1));
        assert!(!forget_old(&c, MAX_AGE + 1, 2 * STEP).expect("forgotten"));
        assert_eq!(count(&c), 1 + 1000);
        check(&c);
        // A number that is much smaller.
        (0..2500).for_each(|time| put(&c, "b", time, 10_000));
        let left: Vec<usize> = (0..3)
            .map(|_| {
                put(&c, "b", 1, 10);
                times(&c, "b").len()
            })
            .collect();
        assert_eq!(left, [1501, 502, 10]);
        check(&c);
    }

    #[test]
    fn nothing_looks_at_all_series() {
        let c = table();
        for (sql, index) in [(OLDEST, "series_oldest"), (LONGEST, "series_bytes")] {
            let mut statement = c.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).expect("SQL");
            let plan = statement.raw_query().mapped(|row| row.get(3));
            let plan: Vec<String> = plan.collect::<Result<_>>().expect("a plan");
            assert!(plan.len() == 1 && plan[0].contains(&format!("INDEX {index}")), "{plan:?}");
        }
    }

    #[test]
    fn many_short_series_take_no_more_than_the_node_has_for_them() {
        let c = table();
        c.execute_batch("BEGIN").expect("begun");
        for number in 0..5000 {
            put(&c, &format!("property-{number}"), 1_769_860_800_000, 10);
            make_room_within(&c, 1 << 20).expect("room");
        }
        let bytes: i64 = c.query_row("SELECT bytes FROM history", [], |row| row.get(0)).expect("a number");
        assert!(((1 << 20) - 1000..=1 << 20).contains(&bytes), "{bytes}");
        check(&c);
        c.execute_batch("COMMIT; VACUUM").expect("committed");
        let sql = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size";
        let bytes: i64 = c.query_row(sql, [], |row| row.get(0)).expect("a number");
        assert!(bytes <= 1 << 20, "{bytes}");
    }

    #[test]
    fn what_is_old_goes_also_of_those_that_report_no_more() {
        let c = table();
        [1, 2, DAY, 3 * DAY].into_iter().for_each(|time| put(&c, "a", time, 100));
        put(&c, "silent", 5, 100);
        assert!(forget_old(&c, MAX_AGE + 2, 0).expect("forgotten"));
        assert_eq!((times(&c, "a"), times(&c, "silent")), (vec![2, DAY, 3 * DAY], vec![5]));
        assert!(forget_old(&c, MAX_AGE + DAY, 0).expect("forgotten"));
        assert_eq!((times(&c, "a"), times(&c, "silent")), (vec![DAY, 3 * DAY], vec![]));
        check(&c);
    }

    #[test]
    fn a_node_without_room_takes_it_from_the_longest_series() {
        let c = table();
        (0..5).for_each(|time| put(&c, "short", time, 1000));
        (0..900).for_each(|time| put(&c, "long", time, 1000));
        (0..300).for_each(|time| put(&c, "middle", time, 1000));
        make_room_within(&c, 500 * (ROW + 3) + 3 * SERIES).expect("room");
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
