//! A message on its way through the broker.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;

/// How surely a message arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Qos {
    /// Perhaps.
    AtMostOnce = 0,
    /// Once or more often.
    AtLeastOnce = 1,
    /// Once.
    ExactlyOnce = 2,
}

impl Qos {
    /// The level that has this number.
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::AtMostOnce, Self::AtLeastOnce, Self::ExactlyOnce].get(usize::from(number)).copied()
    }
}

/// Whether a message may be delivered already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Storing {
    /// Its rows are being written.
    Pending,
    /// It is as safe as it shall be.
    Done,
    /// It could not be stored; the publisher was told, and nobody gets it.
    Failed,
}

/// What was published.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) topic: String,
    pub(crate) payload: Bytes,
    pub(crate) qos: Qos,
    pub(crate) retain: bool,
    /// Properties of MQTT 5 that go through unchanged, as on the wire.
    pub(crate) properties: Bytes,
    /// When nobody wants it any more, in seconds since 1970.
    pub(crate) expires: Option<u64>,
    storing: AtomicU8,
}

impl Message {
    /// A message that is stored, or need not be.
    pub(crate) fn new(topic: String, payload: Bytes, qos: Qos, retain: bool) -> Self {
        let storing = AtomicU8::new(Storing::Done as u8);
        Self { topic, payload, qos, retain, properties: Bytes::new(), expires: None, storing }
    }

    /// What it takes in memory, about.
    pub(crate) fn size(&self) -> usize {
        self.topic.len() + self.payload.len() + self.properties.len()
    }

    pub(crate) fn is_expired(&self, now: u64) -> bool {
        self.expires.is_some_and(|at| at <= now)
    }

    pub(crate) fn storing(&self) -> Storing {
        match self.storing.load(Ordering::Acquire) {
            0 => Storing::Pending,
            1 => Storing::Done,
            _ => Storing::Failed,
        }
    }

    pub(crate) fn set_storing(&self, storing: Storing) {
        self.storing.store(storing as u8, Ordering::Release);
    }
}

/// Seconds since 1970. Expiry is counted over restarts, so it cannot use a clock that begins anew.
pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
