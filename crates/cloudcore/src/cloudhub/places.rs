//! Connections of one kind, few of each certificate's holder: one who connects again and again takes no room from others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// All of them, by the certificate's common name. Cloning is cheap.
#[derive(Clone)]
pub(super) struct Places {
    of_one: usize,
    counts: Arc<Mutex<HashMap<String, usize>>>,
}

/// The place of one connection; dropping it ends that.
pub(super) struct Place {
    all: Places,
    holder: String,
}

impl Places {
    /// So many of one holder at a time.
    pub(super) fn new(of_one: usize) -> Self {
        Self { of_one, counts: Arc::default() }
    }

    /// A place for one more; `None` when this holder has too many.
    pub(super) fn take(&self, holder: &str) -> Option<Place> {
        let mut counts = self.lock();
        let count = counts.entry(holder.to_owned()).or_default();
        if *count >= self.of_one {
            return None;
        }
        *count += 1;
        Some(Place { all: self.clone(), holder: holder.to_owned() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.all.lock();
        if let Some(count) = counts.get_mut(&self.holder) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.holder);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_holder_has_his_own_few_places() {
        let places = Places::new(2);
        let mut all = vec![places.take("a").expect("room"), places.take("a").expect("room")];
        assert!(places.take("a").is_none());
        assert!(places.take("b").is_some());
        all.pop();
        assert!(places.take("a").is_some());
        all.clear();
        assert!(places.lock().is_empty());
    }
}
