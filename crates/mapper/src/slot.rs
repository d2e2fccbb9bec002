//! When a property is read, written and told.

use std::time::Duration;

use jiff::Timestamp;
use link::backoff::Backoff;
use tokio::time::Instant;

use crate::driver::Fault;
use crate::push::Push;

/// What was read.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    pub value: String,
    pub at: Timestamp,
}

/// What has come of what a property shall be.
pub(crate) enum Written {
    /// Nothing was written since the device was opened.
    Nothing,
    /// It has this value from us.
    Done(String),
    /// This value cannot be written.
    Never(String),
    /// The device refused this value, and is asked again.
    Later(String, Instant, Backoff),
}

/// A property of an open or closed device.
pub(crate) struct Slot {
    next_collect: Instant,
    next_report: Instant,
    reading: Option<Reading>,
    /// Whether the reading was told.
    told: bool,
    pub written: Written,
    /// The last fault of reading: said once.
    fault: Option<Fault>,
    /// Since it did not answer.
    silence: Option<Silence>,
    pub pushes: Vec<Push>,
}

/// A property that does not answer waits by itself: others of the device may answer.
struct Silence {
    not_before: Instant,
    backoff: Backoff,
}

impl Slot {
    pub fn new(now: Instant, pushes: Vec<Push>) -> Self {
        Self {
            next_collect: now,
            next_report: now,
            reading: None,
            told: false,
            written: Written::Nothing,
            fault: None,
            silence: None,
            pushes,
        }
    }

    /// The device is another one, or was described wrongly before: nothing that it said counts any more.
    pub fn begin_anew(&mut self) {
        self.written = Written::Nothing;
        self.fault = None;
        self.silence = None;
    }

    pub fn is_silent(&self) -> bool {
        self.silence.is_some()
    }

    /// It did not answer; `backoff` is for the first time. Whether it is the first time.
    pub fn fall_silent(&mut self, backoff: Backoff) -> bool {
        let is_first = self.silence.is_none();
        let mut backoff = self.silence.take().map_or(backoff, |silence| silence.backoff);
        let not_before = Instant::now() + backoff.next_wait();
        self.silence = Some(Silence { not_before, backoff });
        is_first
    }

    /// It has answered; whether it was silent before.
    pub fn speaks(&mut self) -> bool {
        self.silence.take().is_some()
    }

    /// The device is back, and this property may be too.
    pub fn ask_soon(&mut self) {
        if let Some(silence) = &mut self.silence {
            silence.not_before = Instant::now();
        }
    }

    /// Whether nothing can be expected of it: it is silent, or left alone.
    pub fn is_mute(&self) -> bool {
        self.is_silent() || self.is_misconfigured()
    }

    fn not_before(&self) -> Option<Instant> {
        self.silence.as_ref().map(|silence| silence.not_before)
    }

    /// The device was opened: it may have forgotten what it was told.
    pub fn begin_writing(&mut self) {
        if !matches!(self.written, Written::Never(_)) {
            self.written = Written::Nothing;
        }
    }

    /// The property is where it was, with other cycles or bounds: what was written there need not be again.
    pub fn take_over(&mut self, old: Self) {
        if matches!(old.written, Written::Done(_)) {
            self.written = old.written;
        }
        self.silence = old.silence;
    }

    pub fn must_write(&self, desired: &str) -> bool {
        self.write_due(desired).is_some_and(|due| due <= Instant::now())
    }

    /// When it is to be written; none if it need not be.
    fn write_due(&self, desired: &str) -> Option<Instant> {
        let due = match &self.written {
            _ if desired.is_empty() => return None,
            Written::Done(value) | Written::Never(value) if value == desired => return None,
            Written::Later(value, due, _) if value == desired => *due,
            _ => Instant::now(),
        };
        self.not_before().max(Some(due))
    }

    /// When it is to be read; none if it need not be.
    fn collect_due(&self) -> Option<Instant> {
        if self.is_misconfigured() { None } else { self.not_before().max(Some(self.next_collect)) }
    }

    /// It is read and told at once, so that whoever wished it sees it.
    pub fn wrote(&mut self, desired: &str) {
        self.written = Written::Done(desired.to_owned());
        self.next_collect = Instant::now();
        self.next_report = self.next_collect;
    }

    /// The device refused it; `backoff` is for the first time.
    pub fn write_later(&mut self, desired: &str, backoff: Backoff) {
        let mut backoff = match std::mem::replace(&mut self.written, Written::Nothing) {
            Written::Later(value, _, backoff) if value == desired => backoff,
            _ => backoff,
        };
        let due = Instant::now() + backoff.next_wait();
        self.written = Written::Later(desired.to_owned(), due, backoff);
    }

    pub fn must_collect(&self, now: Instant) -> bool {
        self.collect_due().is_some_and(|due| due <= now)
    }

    /// It was read, or not. Turns that were missed are left out.
    pub fn collected(&mut self, cycle: Duration, now: Instant) {
        self.next_collect = following(self.next_collect, cycle, now);
    }

    pub fn read(&mut self, reading: Reading) {
        self.reading = Some(reading);
        self.told = false;
        self.fault = None;
    }

    /// Whether this fault is another one than before.
    pub fn complain(&mut self, fault: &Fault) -> bool {
        let is_new = self.fault.as_ref() != Some(fault);
        self.fault = Some(fault.clone());
        is_new
    }

    /// The reading, if it is due until then and was not told.
    pub fn report(&mut self, cycle: Duration, until: Instant) -> Option<&Reading> {
        if self.next_report > until || self.told {
            return None;
        }
        let reading = self.reading.as_ref()?;
        self.told = true;
        self.next_report = following(self.next_report, cycle, until);
        Some(reading)
    }

    /// When there is something to do.
    pub fn next_due(&self, desired: &str, is_open: bool) -> Option<Instant> {
        let report = self.reading.as_ref().filter(|_| !self.told).map(|_| self.next_report);
        let collect = self.collect_due().filter(|_| is_open);
        let write = self.write_due(desired).filter(|_| is_open);
        [report, collect, write].into_iter().flatten().min()
    }

    fn is_misconfigured(&self) -> bool {
        matches!(self.fault, Some(Fault::Config(_)))
    }
}

/// The turn after now of those that come each cycle.
fn following(turn: Instant, cycle: Duration, now: Instant) -> Instant {
    let next = turn + cycle;
    if next > now {
        return next;
    }
    let missed = now.duration_since(turn).as_nanos() / cycle.as_nanos().max(1);
    turn + cycle * u32::try_from(missed + 1).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading() -> Reading {
        Reading { value: "1".to_owned(), at: Timestamp::now() }
    }

    #[tokio::test(start_paused = true)]
    async fn turns_keep_their_beat_and_missed_ones_are_left_out() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        for (now, next) in [(0, 1000), (999, 1000), (1000, 2000), (1001, 2000), (7500, 8000)] {
            assert_eq!(following(start, second, at(now)), at(next), "{now}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_reading_is_told_once_and_at_its_time() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut slot = Slot::new(start, Vec::new());
        assert!(slot.report(second, start).is_none(), "nothing was read");
        slot.read(reading());
        assert!(slot.report(second, start).is_some());
        assert!(slot.report(second, start + second).is_none(), "nothing is new");
        slot.read(reading());
        assert!(slot.report(second, start + second / 2).is_none(), "it is not its time");
        assert_eq!(slot.next_due("", false), Some(start + second));
        assert!(slot.report(second, start + second).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn wishes() {
        let mut slot = Slot::new(Instant::now(), Vec::new());
        assert!(!slot.must_write("") && slot.must_write("1"));
        slot.wrote("1");
        assert!(!slot.must_write("1") && slot.must_write("2"));
        slot.begin_writing();
        assert!(slot.must_write("1"), "the device was opened anew");
        slot.written = Written::Never("9".to_owned());
        slot.begin_writing();
        assert!(!slot.must_write("9") && slot.must_write("1"));
        let (first, longest) = (Duration::from_secs(1), Duration::from_secs(60));
        slot.write_later("1", Backoff::new(first, longest));
        assert!(!slot.must_write("1") && slot.must_write("2"));
        tokio::time::advance(first).await;
        assert!(slot.must_write("1"));
        // The second wait is a longer one.
        slot.write_later("1", Backoff::new(first, longest));
        tokio::time::advance(first - Duration::from_millis(1)).await;
        assert!(!slot.must_write("1"));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_misconfigured_is_left_alone() {
        let now = Instant::now();
        let mut slot = Slot::new(now, Vec::new());
        assert!(slot.must_collect(now));
        assert!(slot.complain(&Fault::Refused("no".to_owned())) && !slot.complain(&Fault::Refused("no".to_owned())));
        assert!(slot.must_collect(now));
        assert!(slot.complain(&Fault::Config("no offset".to_owned())));
        assert!(!slot.must_collect(now));
        assert_eq!(slot.next_due("", true), None);
        slot.written = Written::Never("9".to_owned());
        slot.begin_anew();
        assert!(slot.must_collect(now) && slot.must_write("9"), "its configuration is another one");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_silent_waits_longer_each_time_until_it_speaks() {
        let (first, longest) = (Duration::from_secs(1), Duration::from_secs(60));
        let mut slot = Slot::new(Instant::now(), Vec::new());
        assert!(slot.fall_silent(Backoff::new(first, longest)) && slot.is_silent());
        assert!(!slot.must_collect(Instant::now()) && !slot.must_write("1"));
        tokio::time::advance(first).await;
        assert!(slot.must_collect(Instant::now()) && slot.must_write("1"));
        assert!(!slot.fall_silent(Backoff::new(first, longest)), "it was silent before");
        tokio::time::advance(first - Duration::from_millis(1)).await;
        assert!(!slot.must_collect(Instant::now()));
        slot.ask_soon();
        assert!(slot.must_collect(Instant::now()) && slot.is_silent());
        assert!(slot.speaks() && !slot.speaks() && !slot.is_silent());
    }
}
