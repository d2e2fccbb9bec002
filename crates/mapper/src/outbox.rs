//! What edgecore has to be told: of each device the latest value of each property, and the latest state.
//!
//! Workers put in, the reporter takes out. What could not be told goes back, unless there is something newer.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dmi::v1beta1::Twin;
use link::backoff::Backoff;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::device::Id;

/// Waits after edgecore could not take what a device reports.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// What waits of all devices.
#[derive(Default)]
pub(crate) struct Outbox {
    devices: Mutex<Devices>,
    wake: Notify,
}

#[derive(Default)]
struct Devices {
    by_id: BTreeMap<Id, Waiting>,
    /// Devices that have come so far.
    generation: u64,
}

/// The device that news are of, and not one that has its name afterwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sender {
    pub id: Id,
    generation: u64,
}

/// News of one device, by property, and its state.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct News {
    /// By the property's name.
    pub twins: BTreeMap<String, Twin>,
    /// `online` or `offline`.
    pub state: Option<&'static str>,
}

struct Waiting {
    generation: u64,
    news: News,
    /// On its way; empty otherwise.
    sending: Option<News>,
    not_before: Option<Instant>,
    backoff: Backoff,
    /// Since when its turn is due: the one that waits longest comes first.
    since: Option<Instant>,
    /// What edgecore refused, and why: said once.
    refused: BTreeMap<String, String>,
}

impl News {
    fn is_empty(&self) -> bool {
        self.twins.is_empty() && self.state.is_none()
    }

    /// Puts older news below these.
    fn take_back(&mut self, older: Self) {
        for (name, twin) in older.twins {
            self.twins.entry(name).or_insert(twin);
        }
        self.state = self.state.or(older.state);
    }
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, Devices> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A device has come.
    pub fn open(&self, id: &Id) {
        let mut devices = self.lock();
        devices.generation += 1;
        let generation = devices.generation;
        devices.by_id.insert(
            id.clone(),
            Waiting {
                generation,
                news: News::default(),
                sending: None,
                not_before: None,
                backoff: Backoff::new(FIRST_WAIT, LONGEST_WAIT),
                since: None,
                refused: BTreeMap::new(),
            },
        );
    }

    /// A device has gone, and what waits of it too.
    pub fn close(&self, id: &Id) {
        self.lock().by_id.remove(id);
    }

    /// Nothing of other properties than these waits any longer.
    pub fn retain(&self, id: &Id, wanted: impl Fn(&str) -> bool) {
        if let Some(waiting) = self.lock().by_id.get_mut(id) {
            waiting.news.twins.retain(|name, _| wanted(name));
            if let Some(sending) = &mut waiting.sending {
                sending.twins.retain(|name, _| wanted(name));
            }
        }
    }

    /// News of a device; of one that has gone it is dropped.
    pub fn put(&self, id: &Id, news: News) {
        if news.is_empty() {
            return;
        }
        if let Some(waiting) = self.lock().by_id.get_mut(id) {
            let older = std::mem::replace(&mut waiting.news, news);
            waiting.news.take_back(older);
            waiting.since.get_or_insert_with(Instant::now);
        }
        self.wake.notify_one();
    }

    /// The news to tell next. Until one of the methods below, no more is given of this device.
    pub fn take(&self) -> Option<(Sender, News)> {
        let now = Instant::now();
        let mut devices = self.lock();
        let due = devices.by_id.iter_mut().filter(|(_, waiting)| waiting.due().is_some_and(|due| due <= now));
        let (id, waiting) = due.min_by_key(|(_, waiting)| waiting.since)?;
        let news = std::mem::take(&mut waiting.news);
        waiting.sending = Some(news.clone());
        waiting.since = None;
        Some((Sender { id: id.clone(), generation: waiting.generation }, news))
    }

    /// Edgecore has it, but for what it refused, each with the reason: that is dropped.
    pub fn told(&self, sender: &Sender, refused: Vec<(String, String)>) {
        if let Some(waiting) = self.lock().of(sender) {
            waiting.refuse(&sender.id, refused);
            waiting.sending = None;
            waiting.not_before = None;
            waiting.backoff.reset();
        }
    }

    /// The same, but that some could not be taken now, for this reason: that is told again.
    pub fn later(&self, sender: &Sender, failed: &News, refused: Vec<(String, String)>, why: &str) {
        if let Some(waiting) = self.lock().of(sender) {
            let id = &sender.id;
            match waiting.not_before {
                None => warn!(device = %id, error = why, "edgecore could not take a report; it gets the latest later"),
                Some(_) => debug!(device = %id, error = why, "edgecore still could not take a report"),
            }
            waiting.refuse(id, refused);
            if let Some(sending) = &mut waiting.sending {
                sending.twins.retain(|name, _| failed.twins.contains_key(name));
                sending.state = sending.state.and(failed.state);
            }
            waiting.take_back();
            waiting.not_before = Some(Instant::now() + waiting.backoff.next_wait());
        }
    }

    /// Edgecore has gone: whatever is on its way may be lost.
    pub fn take_all_back(&self) {
        for waiting in self.lock().by_id.values_mut() {
            waiting.take_back();
            waiting.not_before = None;
        }
    }

    /// When something may be due.
    pub async fn due(&self) {
        let next = self.lock().by_id.values().filter_map(Waiting::due).min();
        let at_that_time = async {
            match next {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.wake.notified() => {}
            () = at_that_time => {}
        }
    }
}

impl Devices {
    /// None if it has gone, even if another one has its name.
    fn of(&mut self, sender: &Sender) -> Option<&mut Waiting> {
        self.by_id.get_mut(&sender.id).filter(|waiting| waiting.generation == sender.generation)
    }
}

impl Waiting {
    /// When its turn is; none while it has nothing to tell or is telling.
    fn due(&self) -> Option<Instant> {
        if self.news.is_empty() || self.sending.is_some() {
            return None;
        }
        self.not_before.max(self.since)
    }

    fn refuse(&mut self, id: &Id, refused: Vec<(String, String)>) {
        for (what, why) in refused {
            if self.refused.get(&what) != Some(&why) {
                warn!(device = %id, property = what, error = why, "edgecore refuses what is reported; it is dropped");
                self.refused.insert(what, why);
            }
        }
    }

    fn take_back(&mut self) {
        if let Some(older) = self.sending.take().filter(|older| !older.is_empty()) {
            self.news.take_back(older);
            self.since.get_or_insert_with(Instant::now);
        }
    }
}

#[cfg(test)]
#[path = "outbox_tests.rs"]
mod tests;
