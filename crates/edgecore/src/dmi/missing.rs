//! Devices that wait for a mapper which nobody has started.

use std::collections::HashSet;
use std::time::Duration;

use dmi::convert::Metadata;
use store::rusqlite::OptionalExtension;
use store::{Database, StoreError};

use super::wanted::devices;

/// A device may be there so long before its mapper.
pub(super) const PATIENCE: Duration = Duration::from_millis(if cfg!(test) { 300 } else { 60_000 });

/// What has been said.
#[derive(Default)]
pub(super) struct Missing {
    /// By uid.
    told: HashSet<String>,
}

impl Missing {
    /// Devices with a protocol that no mapper is registered for, each once, and the protocol. One that has reported a value speaks MQTT itself.
    pub(super) fn news(
        &mut self,
        database: &Database,
        has_mapper: impl Fn(&str) -> bool,
    ) -> Result<Vec<(Metadata, String)>, StoreError> {
        let mut waiting = HashSet::new();
        let mut news = Vec::new();
        for (id, device) in devices(database)? {
            // DeviceTwin has told of one that cannot be read.
            let Ok(device) = device else { continue };
            let (protocol, about) = (device.protocol(), &device.metadata);
            if protocol.is_empty() || has_mapper(protocol) || has_reported(database, &id)? {
                continue;
            }
            waiting.insert(about.uid.clone());
            if !self.told.contains(&about.uid) {
                news.push((about.clone(), protocol.to_owned()));
            }
        }
        self.told = waiting;
        Ok(news)
    }
}

fn has_reported(database: &Database, id: &str) -> Result<bool, StoreError> {
    let sql = "SELECT 1 FROM property
        WHERE device = ?1 AND json_extract(CAST(value AS TEXT), '$.actual.value') <> '' LIMIT 1";
    database.read(|c| c.prepare_cached(sql)?.query_row([id], |_| Ok(())).optional()).map(|found| found.is_some())
}
