//! Room for messages that are on their way through the broker, in bytes: channels alone are bounded in number, and a thousand messages may
//! be a gigabyte.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A permit is for that many bytes.
const UNIT: usize = 1 << 10;

/// So much may be on its way.
pub(crate) struct Room {
    free: Arc<Semaphore>,
    all: u32,
}

/// A place, until all who have it have dropped it.
pub(crate) type Place = Option<Arc<OwnedSemaphorePermit>>;

impl Room {
    pub(crate) fn of(bytes: usize) -> Self {
        let all = u32::try_from(bytes / UNIT).unwrap_or(u32::MAX);
        Self { free: Arc::new(Semaphore::new(all as usize)), all }
    }

    /// Waits for a place. A message that is larger than the whole room goes alone.
    pub(crate) async fn take(&self, bytes: usize) -> Place {
        self.free.clone().acquire_many_owned(self.units(bytes)).await.ok().map(Arc::new)
    }

    /// A place, if there is one now.
    pub(crate) fn try_take(&self, bytes: usize) -> Place {
        self.free.clone().try_acquire_many_owned(self.units(bytes)).ok().map(Arc::new)
    }

    fn units(&self, bytes: usize) -> u32 {
        u32::try_from(bytes / UNIT + 1).unwrap_or(u32::MAX).min(self.all)
    }
}
