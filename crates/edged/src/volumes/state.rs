//! What is remembered of the volumes of pods while the agent runs: which are there, and which failed how often.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{MountedVolume, MountedVolumes, NotMounted, VolumeError};

/// First pause after a failure of a volume; it doubles up to the last (kubelet).
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LAST_PAUSE: Duration = Duration::from_secs(122);
/// A claim may be bound at any moment, and no message tells of it.
const LAST_PAUSE_OF_CLAIMS: Duration = Duration::from_secs(10);
/// After this time it is told which volumes of the pod are missing.
const WAIT_FOR_MOUNT: Duration = Duration::from_secs(123);

/// Pods by UID.
#[derive(Default)]
pub(super) struct State {
    pods: Mutex<HashMap<String, PodVolumes>>,
}

#[derive(Default)]
struct PodVolumes {
    mounted: BTreeMap<String, Mounted>,
    failing: BTreeMap<String, Failing>,
    /// Since when volumes are missing, or when that was told last.
    waiting_since: Option<Instant>,
}

struct Mounted {
    volume: MountedVolume,
    /// Nothing that could be read again would change it.
    lasts: bool,
}

struct Failing {
    pause: Duration,
}

impl State {
    fn pods(&self) -> MutexGuard<'_, HashMap<String, PodVolumes>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A volume is there.
    pub fn mounted(&self, uid: &str, volume: &str, mounted: MountedVolume) {
        let mut pods = self.pods();
        let pod = pods.entry(uid.to_owned()).or_default();
        pod.failing.remove(volume);
        if pod.failing.is_empty() {
            pod.waiting_since = None;
        }
        let lasts = pod.mounted.get(volume).is_some_and(|before| before.lasts);
        pod.mounted.insert(volume.to_owned(), Mounted { volume: mounted, lasts });
    }

    /// A volume, once there, need not be looked at again.
    pub fn lasts(&self, uid: &str, volume: &str, mounted: &MountedVolume) {
        let mounted = Mounted { volume: mounted.clone(), lasts: true };
        self.pods().entry(uid.to_owned()).or_default().mounted.insert(volume.to_owned(), mounted);
    }

    /// A volume that need not be looked at again.
    pub fn lasting(&self, uid: &str, volume: &str) -> Option<MountedVolume> {
        let pods = self.pods();
        pods.get(uid)?.mounted.get(volume).filter(|mounted| mounted.lasts).map(|mounted| mounted.volume.clone())
    }

    /// Everything that is there.
    pub fn all_mounted(&self, uid: &str) -> MountedVolumes {
        let pods = self.pods();
        let mounted = pods.get(uid).into_iter().flat_map(|pod| &pod.mounted);
        mounted.map(|(name, mounted)| (name.clone(), mounted.volume.clone())).collect()
    }

    /// Volumes that are not there, and what is to be told of them.
    pub fn failed(&self, uid: &str, failed: &BTreeMap<&str, VolumeError>) -> NotMounted {
        let mut pods = self.pods();
        let pod = pods.entry(uid.to_owned()).or_default();
        let since = *pod.waiting_since.get_or_insert_with(Instant::now);
        let mut events = Vec::new();
        let mut claims = Vec::new();
        let mut unprocessed = Vec::new();
        for (&name, error) in failed {
            let longest = if matches!(error, VolumeError::Claim(_)) { LAST_PAUSE_OF_CLAIMS } else { LAST_PAUSE };
            let failing = pod.failing.entry(name.to_owned());
            let pause = failing.and_modify(|failing| failing.pause *= 2).or_insert(Failing { pause: FIRST_PAUSE });
            pause.pause = pause.pause.min(longest);
            match error.event(name) {
                Some(text) => events.push(text),
                None => {
                    claims.push(error.to_string());
                    unprocessed.push(name);
                }
            }
        }
        let names = failed.keys().copied().collect::<Vec<_>>().join(" ");
        let all = |unprocessed: &str, cause: &str| {
            format!(
                "Unable to attach or mount volumes: unmounted volumes=[{names}], unattached volumes=[], \
                 failed to process volumes=[{unprocessed}]: {cause}"
            )
        };
        if !claims.is_empty() {
            events.push(all(&unprocessed.join(" "), &claims.join("; ")));
        } else if since.elapsed() >= WAIT_FOR_MOUNT {
            events.push(all("", "context deadline exceeded"));
            pod.waiting_since = Some(Instant::now());
        }
        NotMounted { message: events.join("; "), events }
    }

    pub fn retry_after(&self, uid: &str) -> Duration {
        let pods = self.pods();
        let failing = pods.get(uid).into_iter().flat_map(|pod| pod.failing.values());
        failing.map(|failing| failing.pause).min().unwrap_or(FIRST_PAUSE)
    }

    pub fn forget(&self, uid: &str) {
        self.pods().remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_texts_are_the_kubelets() {
        let state = State::default();
        let missing = || VolumeError::Missing("configmap \"c\" not found".into());
        let first = state.failed("u", &BTreeMap::from([("cfg", missing())]));
        assert_eq!(first.events, [r#"MountVolume.SetUp failed for volume "cfg" : configmap "c" not found"#]);
        assert_eq!(state.retry_after("u"), FIRST_PAUSE);
        for _ in 0..20 {
            state.failed("u", &BTreeMap::from([("cfg", missing())]));
        }
        assert_eq!(state.retry_after("u"), LAST_PAUSE);
        let claim = VolumeError::Claim("error processing PVC default/d: PVC is not bound".into());
        let both = state.failed("u", &BTreeMap::from([("cfg", missing()), ("data", claim)]));
        assert_eq!(
            both.events[1],
            "Unable to attach or mount volumes: unmounted volumes=[cfg data], unattached volumes=[], \
             failed to process volumes=[data]: error processing PVC default/d: PVC is not bound"
        );
        assert_eq!(state.retry_after("u"), FIRST_PAUSE);
        let mounted = MountedVolume { path: "/v".into(), read_only: true, group: None };
        for volume in ["cfg", "data"] {
            state.mounted("u", volume, mounted.clone());
        }
        assert_eq!(state.all_mounted("u").len(), 2);
        assert_eq!(state.lasting("u", "cfg"), None);
        state.lasts("u", "cfg", &mounted);
        state.mounted("u", "cfg", mounted.clone());
        assert_eq!(state.lasting("u", "cfg"), Some(mounted));
        state.forget("u");
        assert!(state.all_mounted("u").is_empty());
    }
}
