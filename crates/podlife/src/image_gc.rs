//! Which images go when they fill the disk: those that no container uses, the longest unused first. Rules of the kubelet.
//!
//! The clock is the monotonic one: all memory of uses begins with the agent.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// An image that the runtime has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// Its id.
    pub id: String,
    /// Bytes.
    pub size: u64,
    /// The runtime wants to keep it.
    pub pinned: bool,
    /// A container, running or dead, was made from it, or sandboxes are.
    pub in_use: bool,
}

/// What is remembered of an image.
#[derive(Clone, Debug)]
struct Record {
    size: u64,
    kept: bool,
    first_seen: Instant,
    last_used: Option<Instant>,
}

/// What is remembered of all images.
#[derive(Debug, Default)]
pub struct Records {
    images: BTreeMap<String, Record>,
}

/// When images are removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// From this part of the disk on, in percent, images are removed; 100 never.
    pub high_percent: u64,
    /// Down to this part.
    pub low_percent: u64,
    /// Images younger than this stay.
    pub min_age: Duration,
    /// Images that nobody used for so long are removed anyway; never when zero.
    pub max_age: Duration,
}

impl Policy {
    /// How many bytes must be freed on a file system; `None` while there is room.
    pub fn bytes_to_free(&self, capacity: u64, available: u64) -> Option<u64> {
        let available = available.min(capacity);
        let free_percent = (u128::from(available) * 100).checked_div(u128::from(capacity))?;
        let used_percent = 100 - u64::try_from(free_percent).unwrap_or(100);
        if self.high_percent >= 100 || used_percent < self.high_percent {
            return None;
        }
        let wanted = u128::from(capacity) * u128::from(100 - self.low_percent.min(100)) / 100;
        u64::try_from(wanted.saturating_sub(u128::from(available))).ok().filter(|bytes| *bytes > 0)
    }
}

impl Records {
    /// Takes in what there is now; images that are gone are forgotten.
    pub fn detect(&mut self, images: &[Image], now: Instant) {
        let mut after = BTreeMap::new();
        for image in images {
            let before = self.images.remove(&image.id);
            let record = Record {
                size: image.size,
                kept: image.in_use || image.pinned,
                first_seen: before.as_ref().map_or(now, |before| before.first_seen),
                last_used: if image.in_use { Some(now) } else { before.and_then(|before| before.last_used) },
            };
            after.insert(image.id.clone(), record);
        }
        self.images = after;
    }

    /// A container is being made from this image.
    pub fn used(&mut self, id: &str, now: Instant) {
        if let Some(record) = self.images.get_mut(id) {
            record.last_used = Some(now);
        }
    }

    /// Images that may go, with their sizes: the longest unused first, of those the longest here.
    pub fn unused(&self, min_age: Duration, now: Instant) -> Vec<(String, u64)> {
        let old_enough = |record: &Record| now.duration_since(record.first_seen) >= min_age;
        let mut free: Vec<_> = self.images.iter().filter(|(_, record)| !record.kept && old_enough(record)).collect();
        free.sort_by_key(|(_, record)| (record.last_used, record.first_seen));
        free.into_iter().map(|(id, record)| (id.clone(), record.size)).collect()
    }

    /// Images that nobody has used for longer than that, as far as the agent, which began then, can know.
    pub fn outdated(&self, max_age: Duration, began: Instant, now: Instant) -> Vec<(String, u64)> {
        if max_age.is_zero() || now.duration_since(began) <= max_age {
            return Vec::new();
        }
        let is_old = |record: &Record| now.duration_since(record.last_used.unwrap_or(record.first_seen)) > max_age;
        let free = self.images.iter().filter(|(_, record)| !record.kept && is_old(record));
        free.map(|(id, record)| (id.clone(), record.size)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy =
        Policy { high_percent: 85, low_percent: 80, min_age: Duration::from_secs(120), max_age: Duration::ZERO };

    fn image(id: &str, in_use: bool) -> Image {
        Image { id: id.into(), size: 10, in_use, ..Default::default() }
    }

    fn ids(list: &[(String, u64)]) -> Vec<&str> {
        list.iter().map(|(id, _)| id.as_str()).collect()
    }

    #[test]
    fn how_much() {
        let never = Policy { high_percent: 100, ..POLICY };
        for (policy, capacity, available, bytes) in [
            (POLICY, 1000, 500, None),
            (POLICY, 1000, 160, None),
            // Percentages are whole: this counts as 85.
            (POLICY, 1000, 159, Some(41)),
            (POLICY, 1000, 150, Some(50)),
            (POLICY, 1000, 0, Some(200)),
            (POLICY, 0, 0, None),
            (POLICY, u64::MAX, 0, Some(3_689_348_814_741_910_323)),
            (never, 1000, 0, None),
        ] {
            assert_eq!(policy.bytes_to_free(capacity, available), bytes, "{capacity} {available}");
        }
    }

    #[test]
    fn the_longest_unused_goes_first() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut records = Records::default();
        records.detect(&[image("busy", true), image("late", true), image("early", true), image("never", false)], at(0));
        records.used("late", at(50));
        records.used("unknown", at(50));
        let pinned = Image { pinned: true, ..image("pinned", false) };
        let later = [image("busy", true), image("late", false), image("early", false), image("never", false)];
        records.detect(&[later.as_slice(), &[image("new", false), pinned]].concat(), at(60));
        assert_eq!(ids(&records.unused(POLICY.min_age, at(119))), [""; 0]);
        assert_eq!(ids(&records.unused(POLICY.min_age, at(120))), ["never", "early", "late"]);
        assert_eq!(ids(&records.unused(POLICY.min_age, at(180))), ["never", "new", "early", "late"]);
        records.detect(&[], at(200));
        assert_eq!(records.unused(Duration::ZERO, at(200)), []);
    }

    #[test]
    fn what_nobody_uses_gets_too_old() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut records = Records::default();
        records.detect(&[image("used", true), image("idle", false)], at(0));
        records.detect(&[image("used", false), image("idle", false)], at(50));
        records.used("used", at(60));
        let age = Duration::from_secs(100);
        assert_eq!(records.outdated(age, at(0), at(100)), []);
        assert_eq!(ids(&records.outdated(age, at(0), at(101))), ["idle"]);
        assert_eq!(records.outdated(age, at(50), at(101)), [], "the agent has not been here for so long");
        assert_eq!(ids(&records.outdated(age, at(0), at(161))), ["idle", "used"]);
        assert_eq!(records.outdated(Duration::ZERO, at(0), at(1000)), []);
    }
}
