//! Following the changes of a resource.

use std::collections::VecDeque;

use bytes::Bytes;
use serde_json::Value;

use super::read::parse;
use super::{Api, ListOptions, ResourceRef};
use crate::ApiError;
use crate::selector::Selectors;
use crate::storage::{Cursor, Event};

/// What happened to an object, as the watcher sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchKind {
    /// It came into being, or into the selection.
    Added,
    /// It changed.
    Modified,
    /// It is gone, or out of the selection.
    Deleted,
}

/// One change.
#[derive(Clone, Debug)]
pub struct WatchEvent {
    /// What happened.
    pub kind: WatchKind,
    /// The object as it is kept; its last state when it is gone.
    pub json: Bytes,
    /// Its revision.
    pub revision: u64,
}

/// A running watch. It has no queue: dropping it costs nothing, and a slow reader holds nobody up.
pub struct Watch {
    what: ResourceRef,
    selectors: Selectors,
    cursor: Cursor,
    first: VecDeque<WatchEvent>,
}

impl WatchKind {
    /// As it is written in a watch event.
    pub fn text(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

impl WatchEvent {
    /// The object.
    ///
    /// # Errors
    /// Never for what this API stored.
    pub fn object(&self) -> Result<Value, ApiError> {
        serde_json::from_slice(&self.json).map_err(|error| ApiError::internal(error.to_string()))
    }
}

impl Api {
    /// Watches a resource in one namespace or all. `since` is the revision of a list; without it all existing objects come
    /// first as added.
    ///
    /// # Errors
    /// 410 when the revision is too old, or not of this storage: list again.
    pub fn watch(&self, what: &ResourceRef, options: &ListOptions, since: Option<u64>) -> Result<Watch, ApiError> {
        let selectors = Selectors::parse(&options.label_selector, &options.field_selector)?;
        let mut first = VecDeque::new();
        let since = match since {
            // From another life of the storage: its events would seem old news to this watch.
            Some(since) if since > self.revision() && since > self.committed(what)? => {
                return Err(ApiError::expired(format!(
                    "too large resource version: {since}, current: {}",
                    self.revision()
                )));
            }
            Some(since) => since,
            None => {
                let list =
                    self.list_raw(what, &ListOptions { limit: 0, continue_token: String::new(), ..options.clone() })?;
                first.extend(list.items.into_iter().map(|json| WatchEvent {
                    kind: WatchKind::Added,
                    json,
                    revision: list.revision,
                }));
                list.revision
            }
        };
        let cursor = self.storage().events().cursor(&what.resource.storage_name(), since)?;
        Ok(Watch { what: what.clone(), selectors, cursor, first })
    }
}

impl Api {
    /// The revision of the last commit, which may be a moment ahead of the events.
    fn committed(&self, what: &ResourceRef) -> Result<u64, ApiError> {
        Ok(self.storage().list(&what.resource.storage_name(), None, None, 1)?.revision)
    }
}

impl Watch {
    /// The next change; waits for it. Dropping the future loses nothing.
    ///
    /// # Errors
    /// 410 when the reader fell too far behind: list again.
    pub async fn next(&mut self) -> Result<WatchEvent, ApiError> {
        if let Some(event) = self.first.pop_front() {
            return Ok(event);
        }
        loop {
            let event = self.cursor.next().await?;
            if let Some(event) = self.select(&event)? {
                return Ok(event);
            }
        }
    }

    /// The next change, if it is there already.
    ///
    /// # Errors
    /// 410 when the reader fell too far behind: list again.
    pub fn try_next(&mut self) -> Result<Option<WatchEvent>, ApiError> {
        if let Some(event) = self.first.pop_front() {
            return Ok(Some(event));
        }
        while let Some(event) = self.cursor.try_next()? {
            if let Some(event) = self.select(&event)? {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    fn select(&self, event: &Event) -> Result<Option<WatchEvent>, ApiError> {
        if !self.what.namespace.is_empty() && event.namespace != self.what.namespace {
            return Ok(None);
        }
        if self.selectors.name().is_some_and(|name| name != event.name) {
            return Ok(None);
        }
        let matches = |json: &Option<&Bytes>| -> Result<bool, ApiError> {
            match json {
                None => Ok(false),
                Some(_) if self.selectors.is_empty() => Ok(true),
                Some(json) => Ok(self.selectors.matches(&parse(json)?)),
            }
        };
        let before = matches(&event.previous.as_ref())?;
        let after = matches(&(!event.deleted).then_some(&event.json))?;
        let kind = match (before, after) {
            (false, false) => return Ok(None),
            (false, true) => WatchKind::Added,
            (true, true) => WatchKind::Modified,
            (true, false) => WatchKind::Deleted,
        };
        Ok(Some(WatchEvent { kind, json: event.json.clone(), revision: event.revision }))
    }
}
