//! What devices report, gathered until it can be written: of each property the latest value, one write at a time and not more than one a second
//! for a device, and a report is confirmed when what it said, or something newer, has been written. No clock and no connection here.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::status::{Known, Reported};
use crate::edgecontroller::view::NamespacedName;

/// Writes of one device are so far apart.
pub const INTERVAL: Duration = Duration::from_secs(1);
/// The longest wait after writes that failed.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Reports of one device that wait to be confirmed. Of more than that the oldest are not confirmed, and the edge says them again.
const MAX_WAITING: usize = 2048;
/// The same for all devices.
const MAX_WAITING_OF_ALL: usize = 1 << 16;
/// Devices whose last written state is remembered, which saves reading it; beyond it those at rest are forgotten.
const MAX_REMEMBERED: usize = 20_000;

/// What was reported of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Values {
    /// By property: what it is, and what the edge says that it shall be.
    pub twins: BTreeMap<String, (Option<Reported>, Option<Reported>)>,
    /// Its state.
    pub state: Option<String>,
    /// When it was last online.
    pub last_online: Option<String>,
}

impl Values {
    /// Whether nothing was.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Takes in what is newer.
    fn update(&mut self, newer: Self) {
        for (property, (actual, expected)) in newer.twins {
            let twin = self.twins.entry(property).or_default();
            twin.0 = actual.or(twin.0.take());
            twin.1 = expected.or(twin.1.take());
        }
        self.state = newer.state.or(self.state.take());
        self.last_online = newer.last_online.or(self.last_online.take());
    }
}

/// What is to be written of a device.
pub struct Job<C> {
    /// The device.
    pub name: NamespacedName,
    /// What was reported.
    pub values: Values,
    /// What is to be confirmed then.
    pub confirmations: VecDeque<C>,
    /// What was written last, if that is remembered.
    pub known: Option<Known>,
}

/// Of all devices. `C` is what it takes to confirm a report.
pub struct Reports<C> {
    devices: HashMap<NamespacedName, Gathered<C>>,
    due: BTreeSet<(Instant, NamespacedName)>,
    /// Confirmations that wait here.
    waiting: usize,
    /// With so many devices those at rest are forgotten.
    limit: usize,
}

struct Gathered<C> {
    values: Values,
    confirmations: VecDeque<C>,
    known: Option<Known>,
    is_writing: bool,
    /// When it stands in `due`.
    due: Option<Instant>,
    /// Not before.
    earliest: Instant,
    failures: u32,
}

impl<C> Default for Reports<C> {
    fn default() -> Self {
        Self { devices: HashMap::new(), due: BTreeSet::new(), waiting: 0, limit: MAX_REMEMBERED }
    }
}

impl<C> Reports<C> {
    /// A report.
    pub fn take_in(&mut self, name: &NamespacedName, values: Values, confirmation: C, now: Instant) {
        self.bound();
        let gathered = self.devices.entry(name.clone()).or_insert_with(|| Gathered {
            values: Values::default(),
            confirmations: VecDeque::new(),
            known: None,
            is_writing: false,
            due: None,
            earliest: now,
            failures: 0,
        });
        gathered.values.update(values);
        if gathered.confirmations.len() >= MAX_WAITING || self.waiting >= MAX_WAITING_OF_ALL {
            self.waiting -= usize::from(gathered.confirmations.pop_front().is_some());
        }
        if self.waiting < MAX_WAITING_OF_ALL {
            gathered.confirmations.push_back(confirmation);
            self.waiting += 1;
        }
        self.schedule(name, now);
    }

    /// What is to be written now.
    pub fn next(&mut self, now: Instant) -> Option<Job<C>> {
        let (_, name) = self.due.first().filter(|(due, _)| *due <= now)?.clone();
        self.due.pop_first();
        let gathered = self.devices.get_mut(&name)?;
        gathered.due = None;
        gathered.is_writing = true;
        gathered.earliest = now + INTERVAL;
        let confirmations = std::mem::take(&mut gathered.confirmations);
        self.waiting -= confirmations.len();
        Some(Job { name, values: std::mem::take(&mut gathered.values), confirmations, known: gathered.known.take() })
    }

    /// When [`Reports::next`] has something again.
    pub fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    /// It was written, and is so now. What could not be confirmed yet is tried again.
    pub fn written(&mut self, name: &NamespacedName, known: Known, left: VecDeque<C>, now: Instant) {
        let Some(gathered) = self.devices.get_mut(name) else { return };
        (gathered.known, gathered.is_writing, gathered.failures) = (Some(known), false, 0);
        self.waiting += put_before(&mut gathered.confirmations, left);
        self.schedule(name, now);
    }

    /// It could not be written, and is tried again later; how often that was so without a success between.
    pub fn failed(&mut self, job: Job<C>, now: Instant) -> u32 {
        let Some(gathered) = self.devices.get_mut(&job.name) else { return 0 };
        gathered.is_writing = false;
        gathered.failures += 1;
        gathered.earliest = now + INTERVAL.saturating_mul(1 << gathered.failures.min(16)).min(LONGEST_WAIT);
        let newer = std::mem::replace(&mut gathered.values, job.values);
        gathered.values.update(newer);
        self.waiting += put_before(&mut gathered.confirmations, job.confirmations);
        let failures = gathered.failures;
        self.schedule(&job.name, now);
        failures
    }

    /// The device is gone. What waits for a confirmation still.
    pub fn forget(&mut self, name: &NamespacedName) -> VecDeque<C> {
        let Some(gathered) = self.devices.remove(name) else { return VecDeque::new() };
        if let Some(due) = gathered.due {
            self.due.remove(&(due, name.clone()));
        }
        self.waiting -= gathered.confirmations.len();
        gathered.confirmations
    }

    fn schedule(&mut self, name: &NamespacedName, now: Instant) {
        let Some(gathered) = self.devices.get_mut(name) else { return };
        let is_at_rest = gathered.values.is_empty() && gathered.confirmations.is_empty();
        if is_at_rest || gathered.is_writing || gathered.due.is_some() {
            return;
        }
        let due = gathered.earliest.max(now);
        gathered.due = Some(due);
        self.due.insert((due, name.clone()));
    }

    /// Forgets devices at rest when there are too many; the limit grows with those that are not, so that this is not done all the time.
    fn bound(&mut self) {
        if self.devices.len() >= self.limit {
            self.devices.retain(|_, gathered| gathered.is_writing || gathered.due.is_some());
            self.limit = MAX_REMEMBERED.max(self.devices.len() * 2);
        }
    }
}

/// Puts what is older before the rest, as far as there is room; by how many it grew.
fn put_before<C>(waiting: &mut VecDeque<C>, mut older: VecDeque<C>) -> usize {
    let before = waiting.len();
    older.append(waiting);
    while older.len() > MAX_WAITING {
        older.pop_front();
    }
    *waiting = older;
    waiting.len().saturating_sub(before)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> NamespacedName {
        ("default".to_owned(), text.to_owned())
    }

    fn value(text: &str) -> Option<Reported> {
        Some(Reported { value: text.to_owned(), ..Reported::default() })
    }

    fn values(property: &str, text: &str) -> Values {
        Values { twins: BTreeMap::from([(property.to_owned(), (value(text), None))]), ..Values::default() }
    }

    #[test]
    fn a_flood_becomes_few_writes_with_the_last_values() {
        let start = Instant::now();
        let mut reports = Reports::default();
        let (mut writes, mut confirmed, mut last) = (0, Vec::new(), Values::default());
        for number in 0..1000_u64 {
            let now = start + Duration::from_millis(number);
            reports.take_in(&name("a"), values("t", &number.to_string()), number, now);
            if let Some(job) = reports.next(now) {
                writes += 1;
                confirmed.extend(job.confirmations);
                last = job.values;
                reports.written(&name("a"), Known::default(), VecDeque::new(), now);
            }
        }
        assert_eq!((writes, reports.next_due()), (1, Some(start + INTERVAL)));
        let job = reports.next(start + INTERVAL).expect("the rest");
        assert!(reports.next_due().is_none() && last == values("t", "0") && job.values == values("t", "999"));
        confirmed.extend(job.confirmations);
        assert_eq!(confirmed, (0..1000).collect::<Vec<_>>());
        assert_eq!(reports.waiting, 0);
    }

    #[test]
    fn what_comes_while_it_is_written_waits_and_wins_over_what_failed() {
        let now = Instant::now();
        let mut reports = Reports::default();
        reports.take_in(&name("a"), values("t", "1"), 1, now);
        reports.take_in(&name("a"), values("h", "5"), 2, now);
        let job = reports.next(now).expect("due");
        reports.take_in(&name("a"), values("t", "2"), 3, now);
        reports.take_in(&name("b"), values("t", "7"), 4, now);
        assert_eq!(reports.next(now).map(|job| job.name), Some(name("b")), "another device's");
        assert!(reports.next(now).is_none());
        assert_eq!(reports.failed(job, now), 1);
        assert_eq!(reports.next_due(), Some(now + INTERVAL * 2));
        let again = reports.next(now + INTERVAL * 2).expect("due");
        let twins = [("h", "5"), ("t", "2")].map(|(property, text)| (property.to_owned(), (value(text), None)));
        assert_eq!((again.values.twins, again.confirmations.len()), (BTreeMap::from(twins), 3));
        reports.written(&name("a"), Known::default(), VecDeque::from([9]), now + INTERVAL * 2);
        let last = reports.next(now + INTERVAL * 3).expect("what could not be confirmed");
        assert!(last.values.is_empty() && last.known.is_some());
        reports.written(&name("a"), Known::default(), VecDeque::new(), now);
        assert!(reports.next_due().is_none());
    }

    #[test]
    fn devices_at_rest_are_forgotten_when_there_are_too_many() {
        let now = Instant::now();
        let mut reports = Reports::default();
        for number in 0..=MAX_REMEMBERED {
            let name = name(&number.to_string());
            reports.take_in(&name, values("t", "1"), number, now);
            reports.next(now).expect("due");
            reports.written(&name, Known::default(), VecDeque::new(), now);
        }
        assert!(reports.devices.len() < 5, "{}", reports.devices.len());
    }

    #[test]
    fn waiting_confirmations_are_bounded() {
        let now = Instant::now();
        let mut reports = Reports::default();
        for number in 0..MAX_WAITING + 10 {
            reports.take_in(&name("a"), values("t", "1"), number, now);
        }
        assert_eq!(reports.waiting, MAX_WAITING);
        for device in 0..40 {
            for number in 0..MAX_WAITING {
                reports.take_in(&name(&device.to_string()), values("t", "1"), number, now);
            }
        }
        assert_eq!(reports.waiting, MAX_WAITING_OF_ALL);
        assert_eq!(reports.forget(&name("a")).front(), Some(&10), "the oldest were left out");
        let job = reports.next(now).expect("due");
        assert_eq!((reports.failed(job, now), reports.waiting), (1, MAX_WAITING_OF_ALL - MAX_WAITING));
    }
}
