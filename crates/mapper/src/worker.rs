//! The task of one device: opens it, reads and writes its properties, says what came of it.
//!
//! The task waits for nothing but its own device: reports and pushes are handed over.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use link::backoff::Backoff;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tracing::{debug, info, warn};

use crate::device::{Device, Property};
use crate::driver::{Driver, Fault};
use crate::outbox::{News, Outbox};
use crate::push::Pusher;
use crate::readings::{Readings, twin};
use crate::slot::{Reading, Slot, Written};

/// How long a device may take for one call of its driver.
pub const CALL_LIMIT: Duration = Duration::from_secs(5);
/// Waits before a device that does not answer is opened again.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How long what is due may wait for others while a turn takes its time.
const LONGEST_DELAY: Duration = Duration::from_millis(100);
/// What is due this soon goes along.
const TOGETHER: Duration = Duration::from_millis(20);
/// A longer value is refused.
const MAX_VALUE: usize = 64 << 10;

/// One device.
pub(crate) struct Worker<D: Driver> {
    driver: Arc<D>,
    changes: watch::Receiver<Arc<Device>>,
    device: Arc<Device>,
    readings: Arc<Readings>,
    outbox: Arc<Outbox>,
    pusher: Arc<Pusher>,
    open: Option<D::Open>,
    next_open: Instant,
    /// Of a device that is away; from the beginning again after a whole turn.
    backoff: Backoff,
    /// Whether it is to be told again what it shall be when it is open.
    rewrite: bool,
    /// Properties that have just fallen silent, one after the other.
    doubts: usize,
    /// Whether it answers, once that is known.
    online: Option<bool>,
    next_state: Instant,
    /// When it was last looked for what is to be told, or a turn began.
    reported: Instant,
    /// The property that a turn begins with: the one after that with which the last turn ended.
    first_write: usize,
    first_read: usize,
    /// By the property's name.
    slots: BTreeMap<String, Slot>,
}

impl<D: Driver> Worker<D> {
    pub fn new(
        driver: Arc<D>,
        mut changes: watch::Receiver<Arc<Device>>,
        readings: Arc<Readings>,
        outbox: Arc<Outbox>,
        pusher: Arc<Pusher>,
    ) -> Self {
        let (device, now) = (changes.borrow_and_update().clone(), Instant::now());
        Self {
            driver,
            changes,
            device,
            readings,
            outbox,
            pusher,
            open: None,
            next_open: now,
            backoff: Backoff::new(FIRST_WAIT, LONGEST_WAIT),
            rewrite: true,
            doubts: 0,
            online: None,
            next_state: now,
            reported: now,
            first_write: 0,
            first_read: 0,
            slots: BTreeMap::new(),
        }
    }

    /// Until dropped, or nobody can change the device any more.
    pub async fn run(mut self) {
        self.fill_slots(&[]);
        loop {
            self.turn().await;
            let due = self.next_due();
            tokio::select! {
                biased;
                changed = self.changes.changed() => match changed {
                    Ok(()) => self.adopt(),
                    Err(_) => return,
                },
                () = tokio::time::sleep_until(due) => {}
            }
        }
    }

    /// Does what is due, until something has changed or the device has to be opened anew.
    async fn turn(&mut self) {
        if self.open.is_none() && self.next_open <= Instant::now() {
            self.open().await;
        }
        self.reported = Instant::now();
        let device = self.device.clone();
        if self.open.is_some() && self.ask_all(&device.properties).await {
            if self.online == Some(true) {
                self.backoff.reset();
            }
            self.ask_silent(&device.properties).await;
        }
        self.report();
    }

    async fn open(&mut self) {
        match in_time(self.driver.open(&self.device)).await {
            Ok(open) => {
                self.open = Some(open);
                if std::mem::take(&mut self.rewrite) {
                    // It may have forgotten what it shall be, and whoever says no may say yes now.
                    self.slots.values_mut().for_each(Slot::begin_writing);
                }
                if self.device.properties.is_empty() {
                    self.answered();
                }
            }
            Err(fault) => self.lost(&fault),
        }
    }

    /// Writes and reads what is due, but for silent properties; whether the turn came to its end. The next one goes on where it did not.
    async fn ask_all(&mut self, properties: &[Property]) -> bool {
        for at in in_turn(self.first_write, properties.len()) {
            if self.is_silent(&properties[at]) || !self.write(&properties[at]).await {
                continue;
            }
            self.first_write = at + 1;
            if self.is_over() {
                return false;
            }
        }
        for at in in_turn(self.first_read, properties.len()) {
            if self.is_silent(&properties[at]) || !self.collect(&properties[at]).await {
                continue;
            }
            self.first_read = at + 1;
            if self.is_over() {
                return false;
            }
        }
        true
    }

    /// Asks those that were silent, after all others and until the first that still is: they hold nothing up.
    async fn ask_silent(&mut self, properties: &[Property]) {
        for property in properties {
            if self.is_silent(property)
                && (self.write(property).await || self.collect(property).await)
                && self.is_over()
            {
                return;
            }
        }
    }

    fn is_silent(&self, property: &Property) -> bool {
        self.slots.get(&property.name).is_some_and(Slot::is_silent)
    }

    /// After each call. What has become due meanwhile is told; what has changed comes first.
    fn is_over(&mut self) -> bool {
        if self.reported + LONGEST_DELAY <= Instant::now() {
            self.report();
        }
        self.open.is_none() || self.changes.has_changed().unwrap_or(true)
    }

    /// Writes what a property shall be, unless it is that already. Whether the device was asked.
    async fn write(&mut self, property: &Property) -> bool {
        let Some(slot) = self.slots.get_mut(&property.name) else { return false };
        let Some(open) = self.open.as_mut().filter(|_| slot.must_write(&property.desired)) else { return false };
        let device = &self.device.id;
        let value = match property.value_to_write(&property.desired) {
            Ok(value) => value,
            Err(error) => {
                warn!(%device, %error, "a desired value is not written");
                slot.written = Written::Never(property.desired.clone());
                return false;
            }
        };
        match in_time(self.driver.write(open, property, &value)).await {
            Ok(()) => {
                info!(%device, property = property.name, "a desired value was written");
                slot.wrote(&property.desired);
                self.heard(property);
            }
            Err(Fault::Config(error)) => {
                warn!(%device, property = property.name, error, "a desired value cannot be written: its configuration is wrong");
                slot.written = Written::Never(property.desired.clone());
            }
            Err(Fault::Refused(error)) => {
                warn!(%device, property = property.name, error, "the device refuses a desired value; it is asked again");
                slot.write_later(&property.desired, Backoff::new(FIRST_WAIT, LONGEST_WAIT));
                self.heard(property);
            }
            Err(fault @ (Fault::Silent(_) | Fault::Unreachable(_))) => self.not_heard(property, &fault),
        }
        true
    }

    /// Reads a property if it is due. Whether the device was asked.
    async fn collect(&mut self, property: &Property) -> bool {
        let Some(slot) = self.slots.get_mut(&property.name) else { return false };
        let Some(open) = self.open.as_mut().filter(|_| slot.must_collect(Instant::now())) else { return false };
        let read = in_time(self.driver.read(open, property)).await;
        slot.collected(property.collect_cycle, Instant::now());
        let read = read.and_then(|value| {
            let value = value.to_string();
            match value.len() {
                0..=MAX_VALUE => Ok(value),
                bytes => Err(Fault::Refused(format!("a value of {bytes} bytes is too long: {MAX_VALUE} at most"))),
            }
        });
        match read {
            Ok(value) => {
                let reading = Reading { value, at: Timestamp::now() };
                self.readings.set(twin(property, &reading));
                slot.read(reading);
                self.heard(property);
            }
            Err(fault @ (Fault::Silent(_) | Fault::Unreachable(_))) => self.not_heard(property, &fault),
            Err(fault) => {
                if slot.complain(&fault) {
                    warn!(device = %self.device.id, property = property.name, error = %fault, "a property cannot be read");
                }
                if matches!(fault, Fault::Refused(_)) {
                    self.heard(property);
                }
            }
        }
        true
    }

    /// Hands over what is due.
    fn report(&mut self) {
        let (now, device) = (Instant::now(), self.device.clone());
        self.reported = now;
        let mut news = News::default();
        for property in &device.properties {
            let Some(slot) = self.slots.get_mut(&property.name) else { continue };
            let Some(reading) = slot.report(property.report_cycle, now + TOGETHER).cloned() else { continue };
            if property.report_to_cloud {
                news.twins.insert(property.name.clone(), twin(property, &reading));
            }
            slot.pushes.iter().for_each(|push| push.send(&property.name, &reading));
        }
        if let (Some(cycle), Some(online)) = (device.state_cycle, self.online)
            && self.next_state <= now + TOGETHER
        {
            self.next_state = now + cycle;
            news.state = Some(if online { "online" } else { "offline" });
        }
        self.outbox.put(&device.id, news);
    }

    /// A property has answered.
    fn heard(&mut self, property: &Property) {
        if self.slots.get_mut(&property.name).is_some_and(Slot::speaks) {
            info!(device = %self.device.id, property = property.name, "a property answers again");
        }
        self.answered();
    }

    /// A property did not answer: is it that property, or the device?
    fn not_heard(&mut self, property: &Property, fault: &Fault) {
        self.open = None;
        self.next_open = Instant::now();
        let Some(slot) = self.slots.get_mut(&property.name) else { return };
        let is_new = slot.fall_silent(Backoff::new(FIRST_WAIT, LONGEST_WAIT));
        if is_new {
            warn!(device = %self.device.id, property = property.name, error = %fault, "a property does not answer; it is asked again");
            self.doubts += 1;
        }
        // What was silent before says nothing about the device, as long as others answer.
        let is_broken = is_new && (self.doubts > 1 || matches!(fault, Fault::Unreachable(_)));
        if is_broken || self.slots.values().all(Slot::is_mute) {
            self.lost(fault);
        }
    }

    fn answered(&mut self) {
        self.doubts = 0;
        if self.online != Some(true) {
            info!(device = %self.device.id, "the device answers");
            self.online = Some(true);
            self.next_state = Instant::now();
            self.slots.values_mut().for_each(Slot::ask_soon);
        }
    }

    /// The device is away.
    fn lost(&mut self, fault: &Fault) {
        self.open = None;
        self.next_open = Instant::now() + self.backoff.next_wait();
        self.rewrite = true;
        if self.online == Some(false) {
            debug!(device = %self.device.id, error = %fault, "the device still does not answer");
            return;
        }
        warn!(device = %self.device.id, error = %fault, "the device does not answer; it is tried again");
        self.online = Some(false);
        self.next_state = Instant::now();
    }

    /// Takes over what has changed of the device.
    fn adopt(&mut self) {
        let new = self.changes.borrow_and_update().clone();
        let old = std::mem::replace(&mut self.device, new);
        if old.config != self.device.config {
            self.open = None;
            self.next_open = Instant::now();
            self.backoff.reset();
            self.rewrite = true;
            self.doubts = 0;
            self.slots.values_mut().for_each(Slot::begin_anew);
        }
        if old.state_cycle != self.device.state_cycle {
            self.next_state = Instant::now();
        }
        self.fill_slots(&old.properties);
    }

    fn fill_slots(&mut self, old: &[Property]) {
        let (device, now) = (self.device.clone(), Instant::now());
        let is_wanted = |name: &str| device.properties.iter().any(|property| property.name == name);
        self.slots.retain(|name, _| is_wanted(name));
        self.readings.retain(is_wanted);
        let is_told = |name: &str| device.properties.iter().any(|other| other.name == name && other.report_to_cloud);
        self.outbox.retain(&device.id, is_told);
        for property in &device.properties {
            let before = old.iter().find(|before| before.name == property.name);
            let same = before
                .is_some_and(|before| Property { desired: property.desired.clone(), ..before.clone() } == *property);
            // What it shall be is compared with what was written at each turn.
            if same && self.slots.contains_key(&property.name) {
                continue;
            }
            let push = property.push.as_ref();
            let pushes = push.map(|push| self.pusher.pushes(&device.id, &property.name, push));
            let slot = Slot::new(now, pushes.unwrap_or_default());
            let old = self.slots.insert(property.name.clone(), slot);
            let in_place =
                before.is_some_and(|before| before.kind == property.kind && before.visitor == property.visitor);
            if let (Some(old), Some(slot), true) = (old, self.slots.get_mut(&property.name), in_place) {
                slot.take_over(old);
            }
        }
        for why in &device.unusable {
            warn!(device = %device.id, error = why, "a property cannot be driven");
        }
    }

    fn next_due(&self) -> Instant {
        let mut next = Instant::now() + LONGEST_WAIT;
        let is_open = self.open.is_some();
        if !is_open {
            next = next.min(self.next_open);
        }
        if self.device.state_cycle.is_some() && self.online.is_some() {
            next = next.min(self.next_state);
        }
        for property in &self.device.properties {
            let due = self.slots.get(&property.name).and_then(|slot| slot.next_due(&property.desired, is_open));
            next = next.min(due.unwrap_or(next));
        }
        next
    }
}

async fn in_time<T>(call: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
    let late = || Fault::Silent(format!("no answer within {} s", CALL_LIMIT.as_secs()));
    timeout(CALL_LIMIT, call).await.unwrap_or_else(|_| Err(late()))
}

/// All of so many, beginning with this one.
fn in_turn(first: usize, count: usize) -> impl Iterator<Item = usize> {
    let first = if first < count { first } else { 0 };
    (first..count).chain(0..first)
}
