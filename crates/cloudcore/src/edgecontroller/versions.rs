//! In which version the cluster has each object, as far as the watches have told: what a returning node has is compared with
//! this, so that ten thousand nodes may come back without a question to the Kubernetes API.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{PoisonError, RwLock, RwLockWriteGuard};

use tokio::sync::watch;

use crate::kubernetes::kinds;

/// Versions by kind. A uid is kept as its hash: there may be very many.
#[derive(Default)]
pub struct Versions {
    kinds: RwLock<HashMap<&'static str, Known>>,
    /// Kinds that need not be waited for: of which a list was read, or which the API does not have.
    settled: watch::Sender<usize>,
}

#[derive(Default)]
struct Known {
    now: HashMap<u64, u64>,
    /// The highest version that was seen.
    newest: u64,
    /// What stands in a list that is being read.
    list: Option<HashMap<u64, u64>>,
    /// A list was read to its end.
    is_listed: bool,
    /// The API does not know the kind.
    is_absent: bool,
}

impl Versions {
    /// Whether the cluster has this object of this kind in just this version.
    pub fn is_current(&self, kind: &str, uid: &str, version: u64) -> bool {
        let kinds = self.kinds.read().unwrap_or_else(PoisonError::into_inner);
        kinds.get(kind).is_some_and(|known| known.is_listed && known.now.get(&hash(uid)) == Some(&version))
    }

    /// The highest version that the watches have shown. One above it is from the future: the cluster was restored from a backup, or
    /// another watch was quicker.
    pub fn newest(&self) -> u64 {
        let kinds = self.kinds.read().unwrap_or_else(PoisonError::into_inner);
        kinds.values().map(|known| known.newest).max().unwrap_or_default()
    }

    /// Waits until each kind that there is was listed once.
    pub async fn all_listed(&self) {
        // The sender lives in `self`.
        let _ = self.settled.subscribe().wait_for(|settled| *settled >= kinds::ALL.len()).await;
    }

    /// Whether the API does not know this kind: nothing of it is waited for.
    pub fn is_absent(&self, kind: &str) -> bool {
        let kinds = self.kinds.read().unwrap_or_else(PoisonError::into_inner);
        kinds.get(kind).is_some_and(|known| known.is_absent)
    }

    /// The API does not know this kind, or knows it again.
    pub(crate) fn set_absent(&self, kind: &'static str, is_absent: bool) {
        let mut kinds = self.write();
        kinds.entry(kind).or_default().is_absent = is_absent;
        self.count_settled(&kinds);
    }

    /// The object is there in this version.
    pub(crate) fn put(&self, kind: &'static str, uid: &str, version: u64) {
        let mut kinds = self.write();
        let known = kinds.entry(kind).or_default();
        known.newest = known.newest.max(version);
        known.now.insert(hash(uid), version);
        if let Some(list) = &mut known.list {
            list.insert(hash(uid), version);
        }
    }

    /// The object is gone.
    pub(crate) fn remove(&self, kind: &'static str, uid: &str) {
        self.write().entry(kind).or_default().now.remove(&hash(uid));
    }

    /// A list begins.
    pub(crate) fn begin(&self, kind: &'static str) {
        self.write().entry(kind).or_default().list = Some(HashMap::new());
    }

    /// The list is complete: what is not in it is gone.
    pub(crate) fn listed(&self, kind: &'static str) {
        let mut kinds = self.write();
        let known = kinds.entry(kind).or_default();
        if let Some(list) = known.list.take() {
            known.now = list;
        }
        known.is_listed = true;
        self.count_settled(&kinds);
    }

    /// Versions of this kind mean something else from now on.
    pub(crate) fn forget(&self, kind: &'static str) {
        let mut kinds = self.write();
        kinds.remove(kind);
        self.count_settled(&kinds);
    }

    fn count_settled(&self, kinds: &HashMap<&'static str, Known>) {
        self.settled.send_replace(kinds.values().filter(|known| known.is_listed || known.is_absent).count());
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<&'static str, Known>> {
        self.kinds.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn hash(uid: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    uid.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_the_api_does_not_know_is_not_waited_for() {
        let versions = Versions::default();
        let waits =
            async || tokio::time::timeout(std::time::Duration::from_secs(1), versions.all_listed()).await.is_err();
        for kind in kinds::ALL.iter().filter(|kind| kind.api_version == "v1") {
            versions.listed(kind.name);
        }
        assert!(waits().await);
        versions.set_absent("Device", true);
        versions.set_absent("DeviceModel", true);
        assert!(!waits().await && versions.is_absent("Device") && !versions.is_absent("Pod"));
        versions.set_absent("Device", false);
        assert!(waits().await);
    }

    #[test]
    fn a_version_is_current_until_another_comes_or_a_list_is_without_it() {
        let versions = Versions::default();
        versions.begin("Pod");
        versions.put("Pod", "a", 1);
        assert!(!versions.is_current("Pod", "a", 1), "the list is not complete");
        versions.listed("Pod");
        assert!(versions.is_current("Pod", "a", 1) && !versions.is_current("Secret", "a", 1));
        versions.put("Pod", "a", 2);
        versions.put("Pod", "b", 3);
        assert!(!versions.is_current("Pod", "a", 1) && versions.is_current("Pod", "a", 2));
        versions.begin("Pod");
        assert!(versions.is_current("Pod", "b", 3), "as long as the new list is read, the old one counts");
        versions.put("Pod", "a", 2);
        versions.listed("Pod");
        assert!(versions.is_current("Pod", "a", 2) && !versions.is_current("Pod", "b", 3));
        versions.remove("Pod", "a");
        assert!(!versions.is_current("Pod", "a", 2));
        versions.put("Pod", "a", 2);
        versions.put("Secret", "c", 9);
        assert_eq!(versions.newest(), 9);
        versions.forget("Secret");
        assert_eq!(versions.newest(), 3);
        versions.forget("Pod");
        assert_eq!(versions.newest(), 0);
        assert!(!versions.is_current("Pod", "a", 2));
    }
}
