//! Connections that have shown a certificate and not yet asked for the upgrade: few of each holder, so that one who connects again and
//! again and says nothing more takes no room from others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Such connections of one holder at a time.
const MAX_OF_ONE: usize = 8;

/// All of them, by the certificate's common name. Cloning is cheap.
#[derive(Clone, Default)]
pub(super) struct Upgrades {
    counts: Arc<Mutex<HashMap<String, usize>>>,
}

/// One of them; dropping it ends that.
pub(super) struct Upgrade {
    all: Upgrades,
    holder: String,
}

impl Upgrades {
    /// A place for one more; `None` when this holder has too many.
    pub(super) fn begin(&self, holder: &str) -> Option<Upgrade> {
        let mut counts = self.lock();
        let count = counts.entry(holder.to_owned()).or_default();
        if *count >= MAX_OF_ONE {
            return None;
        }
        *count += 1;
        Some(Upgrade { all: self.clone(), holder: holder.to_owned() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Upgrade {
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
        let upgrades = Upgrades::default();
        let mut all: Vec<_> = (0..MAX_OF_ONE).map(|_| upgrades.begin("a").expect("room")).collect();
        assert!(upgrades.begin("a").is_none());
        assert!(upgrades.begin("b").is_some());
        all.pop();
        assert!(upgrades.begin("a").is_some());
        all.clear();
        assert!(upgrades.lock().is_empty());
    }
}
