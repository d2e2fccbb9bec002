//! What the tables of all controllers are made with.

use jiff::Timestamp;
use serde_json::Value;

/// The time of every table.
pub fn now() -> Timestamp {
    "2026-11-24T12:00:00Z".parse().expect("time")
}

/// Writes the fields of `change` over those of `target`, at every depth; lists are replaced.
pub fn merge(target: &mut Value, change: Value) {
    match (target, change) {
        (Value::Object(t), Value::Object(c)) => {
            for (k, v) in c {
                merge(t.entry(k).or_insert(Value::Null), v);
            }
        }
        (t, c) => *t = c,
    }
}
