//! Limits of disk that pods have themselves: `sizeLimit` of emptyDir volumes, `ephemeral-storage` of containers.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Container, Pod};
use podlife::eviction::{message, rank};
use podlife::spec;

use super::usage::{asked, pod_sum};
use crate::pods::PodRecord;
use crate::stats::{Stats, disk::PodDisk};
use podlife::quantity;

/// The resource that containers limit.
const STORAGE: &str = "ephemeral-storage";
/// Looking at files costs at most one part in so many of the time.
const PART: u32 = 50;
/// A pod with limits is looked at this often at least.
const LONGEST: Duration = Duration::from_secs(60);

/// When pods with limits are looked at again.
#[derive(Default)]
pub(super) struct LocalLimits {
    next: HashMap<String, Instant>,
}

impl LocalLimits {
    /// Pods that have outgrown a limit, and the message for each. Only pods with limits are looked at; those that take long
    /// to look at, more rarely.
    pub async fn outgrown(&mut self, stats: &Stats, mut pods: Vec<PodRecord>) -> Vec<(PodRecord, String)> {
        pods.retain(|record| has_limits(&record.pod) && !rank::is_critical(&record.pod));
        self.next.retain(|uid, _| pods.iter().any(|record| record.identity.uid == *uid));
        let mut found = Vec::new();
        for record in pods {
            let uid = &record.identity.uid;
            let begin = Instant::now();
            if self.next.get(uid).is_some_and(|next| *next > begin) {
                continue;
            }
            let disk = stats.pod_disk(uid).await;
            let layers = stats.writable_layers(uid).await.unwrap_or_default();
            let pause = (begin.elapsed() * PART).min(LONGEST);
            self.next.insert(uid.clone(), Instant::now() + pause);
            if let Some(text) = exceeded(&record.pod, &disk, &layers) {
                found.push((record, text));
            }
        }
        found
    }
}

fn has_limits(pod: &Pod) -> bool {
    let all = spec::containers(pod).iter().chain(spec::init_containers(pod));
    empty_dirs(pod).next().is_some() || all.into_iter().any(|container| limit(container).is_some())
}

fn limit(container: &Container) -> Option<u64> {
    asked(container, STORAGE, true).filter(|limit| *limit > 0)
}

/// Volumes on disk with a limit: name, limit, and how the pod writes it.
fn empty_dirs(pod: &Pod) -> impl Iterator<Item = (&str, u64, &str)> {
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
    volumes.iter().filter_map(|volume| {
        let source = volume.empty_dir.as_ref()?;
        let limit = source.size_limit.as_ref()?;
        let on_disk = source.medium.as_deref().unwrap_or_default().is_empty();
        let bytes = quantity::value(limit).and_then(|bytes| u64::try_from(bytes).ok()).filter(|bytes| *bytes > 0)?;
        on_disk.then_some((volume.name.as_str(), bytes, limit.0.as_str()))
    })
}

/// The message of the first limit that is exceeded: volumes, the pod, containers.
fn exceeded(pod: &Pod, disk: &PodDisk, layers: &BTreeMap<String, u64>) -> Option<String> {
    for (name, limit, written) in empty_dirs(pod) {
        let volume = disk.volumes.iter().find(|volume| volume.name == name);
        if volume.and_then(|volume| volume.fs.used_bytes).is_some_and(|used| used > limit) {
            return Some(message::empty_dir(name, written));
        }
    }
    let total = disk.ephemeral.bytes + layers.values().sum::<u64>();
    let pod_limit = pod_sum(pod, |container| limit(container).unwrap_or_default());
    if pod_limit > 0 && total > pod_limit {
        return Some(message::pod_storage(pod_limit));
    }
    let all = spec::containers(pod).iter().chain(spec::init_containers(pod));
    all.into_iter().find_map(|container| {
        let limit = limit(container)?;
        let logs = disk.logs.get(&container.name).map_or(0, |taken| taken.bytes);
        let used = logs + layers.get(&container.name).copied().unwrap_or_default();
        let written = container.resources.as_ref()?.limits.as_ref()?.get(STORAGE)?;
        (used > limit).then(|| message::container_storage(&container.name, &written.0))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::stats::files::Taken;
    use crate::stats::summary::{FsStats, VolumeStats};

    #[test]
    fn the_first_limit_that_is_exceeded() {
        let limited = |limit: &str| json!({"limits": {"ephemeral-storage": limit}});
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "volumes": [
                {"name": "cache", "emptyDir": {"sizeLimit": "1Mi"}},
                {"name": "ram", "emptyDir": {"sizeLimit": "1Mi", "medium": "Memory"}},
                {"name": "free", "emptyDir": {}},
            ],
            "containers": [{"name": "a", "resources": limited("1Mi")}, {"name": "b", "resources": limited("3Mi")}],
        }}))
        .unwrap();
        let mi = |count: u64| count << 20;
        let volume = |name: &str, bytes| VolumeStats {
            name: name.into(),
            fs: FsStats { used_bytes: Some(bytes), ..Default::default() },
            ..Default::default()
        };
        let disk = |cache, logs_of_a, ephemeral| PodDisk {
            logs: BTreeMap::from([("a".to_owned(), Taken { bytes: logs_of_a, inodes: 1 })]),
            volumes: vec![volume("ram", mi(9)), volume("free", mi(9)), volume("cache", cache)],
            ephemeral: Taken { bytes: ephemeral, inodes: 1 },
        };
        let layers = BTreeMap::from([("a".to_owned(), mi(1))]);
        for (disk, text) in [
            (disk(mi(1), 0, mi(1)), None),
            (disk(mi(1) + 1, mi(9), mi(9)), Some(r#"Usage of EmptyDir volume "cache" exceeds the limit "1Mi". "#)),
            (
                disk(0, 0, mi(3) + 1),
                Some("Pod ephemeral local storage usage exceeds the total limit of containers 4Mi. "),
            ),
            (disk(0, 1, 1), Some(r#"Container a exceeded its local ephemeral storage limit "1Mi". "#)),
        ] {
            assert_eq!(exceeded(&pod, &disk, &layers).as_deref(), text);
        }
        assert!(has_limits(&pod));
        let plain = json!({"spec": {"containers": [{"name": "a"}], "volumes": [{"name": "v", "emptyDir": {}}]}});
        assert!(!has_limits(&serde_json::from_value(plain).unwrap()));
    }
}
