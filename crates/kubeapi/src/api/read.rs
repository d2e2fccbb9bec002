//! Getting and listing.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use serde_json::Value;

use super::{Api, ListOptions, ResourceRef};
use crate::ApiError;
use crate::selector::Selectors;
use crate::storage::Stored;

/// Objects that are read from the storage at once while a selector is applied.
const CHUNK: usize = 500;

/// A list of objects.
#[derive(Debug)]
pub struct List<T = Value> {
    /// The objects.
    pub items: Vec<T>,
    /// The resource version that the list shows.
    pub revision: u64,
    /// Where the next page begins; empty when this was the last.
    pub continue_token: String,
}

impl Api {
    /// One object, in the version that was asked for.
    ///
    /// # Errors
    /// 404 when it is not there, 500 when it cannot be converted.
    pub async fn read(&self, what: &ResourceRef) -> Result<Value, ApiError> {
        match what.subresource.as_str() {
            "" | "status" | "approval" | "ephemeralcontainers" | "resize" => Ok(self.current(what).await?.0),
            "scale" => self.scale(what).await,
            _ => Err(ApiError::method_not_allowed()),
        }
    }

    /// One object, in the version that it is kept in.
    ///
    /// # Errors
    /// 404 when it is not there.
    pub fn get(&self, what: &ResourceRef) -> Result<Value, ApiError> {
        parse(&self.get_raw(what)?.json)
    }

    /// One object as it is kept.
    ///
    /// # Errors
    /// 404 when it is not there.
    pub fn get_raw(&self, what: &ResourceRef) -> Result<Stored, ApiError> {
        self.storage().get(&what.key())?.ok_or_else(|| what.not_found())
    }

    /// A list of parsed objects, in the versions that they are kept in.
    ///
    /// # Errors
    /// A selector or continue token is malformed.
    pub fn list(&self, what: &ResourceRef, options: &ListOptions) -> Result<List, ApiError> {
        let list = self.list_raw(what, options)?;
        let items = list.items.iter().map(|json| parse(json)).collect::<Result<_, _>>()?;
        Ok(List { items, revision: list.revision, continue_token: list.continue_token })
    }

    /// A list of objects as they are kept.
    ///
    /// # Errors
    /// A selector or continue token is malformed.
    pub fn list_raw(&self, what: &ResourceRef, options: &ListOptions) -> Result<List<Bytes>, ApiError> {
        let selectors = Selectors::parse(&options.label_selector, &options.field_selector)?;
        if let Some(name) = selectors.name().filter(|_| !what.namespace.is_empty() || !what.resource.namespaced) {
            return self.list_one(what, name, &selectors);
        }
        let mut place = Place::decode(&options.continue_token)?;
        let limit = if options.limit == 0 { usize::MAX } else { options.limit };
        let namespace = (!what.namespace.is_empty()).then_some(what.namespace.as_str());
        let mut items = Vec::new();
        // All pages and chunks carry the version of the first: a watch from there misses no change that came between them.
        let mut first = place.as_ref().map(|place| place.revision);
        loop {
            let chunk = if selectors.is_empty() { limit - items.len() } else { CHUNK };
            let after = place.as_ref().map(|place| (place.namespace.as_str(), place.name.as_str()));
            let page = self.storage().list(&what.resource.storage_name(), namespace, after, chunk)?;
            let revision = *first.get_or_insert(page.revision);
            let count = page.items.len();
            for (at, stored) in page.items.into_iter().enumerate() {
                place = Some(Place::of(&stored, revision));
                if !selectors.is_empty() && !selectors.matches(&parse(&stored.json)?) {
                    continue;
                }
                items.push(stored.json);
                if items.len() == limit && (page.more || at + 1 < count) {
                    let continue_token = place.map(|place| place.encode()).unwrap_or_default();
                    return Ok(List { items, revision, continue_token });
                }
            }
            if !page.more {
                return Ok(List { items, revision, continue_token: String::new() });
            }
        }
    }

    /// The object and its revision, in the version that was asked for.
    pub(super) async fn current(&self, what: &ResourceRef) -> Result<(Value, u64), ApiError> {
        let stored = self.get_raw(what)?;
        let object = parse(&stored.json)?;
        Ok((self.convert_one(what, object).await?, stored.revision))
    }

    fn list_one(&self, what: &ResourceRef, name: &str, selectors: &Selectors) -> Result<List<Bytes>, ApiError> {
        let revision = self.revision();
        let stored = self.storage().get(&what.named(&what.namespace, name).key())?;
        let mut items = Vec::new();
        if let Some(stored) = stored
            && selectors.matches(&parse(&stored.json)?)
        {
            items.push(stored.json);
        }
        Ok(List { items, revision, continue_token: String::new() })
    }
}

/// Reads an object as it is kept.
pub(super) fn parse(json: &[u8]) -> Result<Value, ApiError> {
    serde_json::from_slice(json).map_err(|error| ApiError::internal(format!("a stored object is no JSON: {error}")))
}

/// Where a page ended.
struct Place {
    /// The revision that the first page showed.
    revision: u64,
    namespace: String,
    name: String,
}

impl Place {
    fn of(stored: &Stored, revision: u64) -> Self {
        Self { revision, namespace: stored.namespace.clone(), name: stored.name.clone() }
    }

    fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(format!("{}/{}/{}", self.revision, self.namespace, self.name))
    }

    fn decode(token: &str) -> Result<Option<Self>, ApiError> {
        if token.is_empty() {
            return Ok(None);
        }
        let wrong = || ApiError::bad_request("continue key is not valid");
        let text = String::from_utf8(URL_SAFE_NO_PAD.decode(token).map_err(|_| wrong())?).map_err(|_| wrong())?;
        let (revision, key) = text.split_once('/').ok_or_else(wrong)?;
        let (namespace, name) = key.split_once('/').ok_or_else(wrong)?;
        let revision = revision.parse().map_err(|_| wrong())?;
        Ok(Some(Self { revision, namespace: namespace.to_owned(), name: name.to_owned() }))
    }
}
