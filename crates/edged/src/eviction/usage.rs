//! What pods use and have asked for of the resource that is short.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod};
use podlife::eviction::{Resource, Signal, message::Consumer, rank::Candidate};
use podlife::spec;

use crate::stats::summary::{ContainerStats, PodStats, Summary};
use podlife::quantity;

/// Usage of all pods, seen for one signal.
pub(super) struct Usages {
    /// Absent when it could not be read.
    summary: Option<Arc<Summary>>,
    signal: Signal,
    /// Images and writable layers have a file system of their own.
    image_fs: bool,
}

impl Usages {
    pub fn new(summary: Option<Arc<Summary>>, signal: Signal, image_fs: bool) -> Self {
        Self { summary, signal, image_fs }
    }

    /// A pod for the ranking.
    pub fn candidate(&self, pod: &Pod) -> Candidate {
        Candidate {
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            priority: pod.spec.as_ref().and_then(|s| s.priority).unwrap_or_default(),
            request: pod_sum(pod, |container| self.request(container)),
            usage: self.stats(pod).and_then(|stats| self.of_pod(stats)),
        }
    }

    /// Its containers for the message.
    pub fn consumers(&self, pod: &Pod) -> Vec<Consumer> {
        let measured = self.stats(pod).map(|stats| stats.containers.as_slice()).unwrap_or_default();
        let consumer = |stats: &ContainerStats| {
            let container = spec::container(pod, &stats.name)?;
            Some(Consumer {
                name: stats.name.clone(),
                usage: self.of_container(stats),
                request: self.request(container),
            })
        };
        measured.iter().filter_map(consumer).collect()
    }

    fn stats(&self, pod: &Pod) -> Option<&PodStats> {
        let uid = pod.metadata.uid.as_deref()?;
        self.summary.as_ref()?.pods.iter().find(|stats| stats.pod_ref.uid == uid)
    }

    /// What counts is what is on the file system that is short.
    fn of_pod(&self, pod: &PodStats) -> Option<u64> {
        let usage = &pod.usage;
        let layers = |inodes: bool| -> u64 {
            let layers = pod.containers.iter().filter_map(|container| container.usage.rootfs.as_ref());
            layers.filter_map(|layer| if inodes { layer.inodes_used } else { layer.used_bytes }).sum()
        };
        let inodes = self.signal.resource() == Resource::Inodes;
        match self.signal.resource() {
            Resource::Memory => usage.memory.as_ref()?.working_set_bytes,
            Resource::Pids => usage.process_stats.as_ref()?.process_count,
            Resource::EphemeralStorage | Resource::Inodes => {
                let storage = usage.ephemeral_storage.as_ref()?;
                let all = if inodes { storage.inodes_used? } else { storage.used_bytes? };
                let on_node_fs = matches!(self.signal, Signal::NodeFsAvailable | Signal::NodeFsInodesFree);
                Some(match (self.image_fs, on_node_fs) {
                    (false, _) => all,
                    (true, true) => all.saturating_sub(layers(inodes)),
                    (true, false) => layers(inodes),
                })
            }
        }
    }

    fn of_container(&self, container: &ContainerStats) -> Option<u64> {
        let usage = &container.usage;
        match self.signal.resource() {
            Resource::Memory => usage.memory.as_ref()?.working_set_bytes,
            Resource::EphemeralStorage => Some(usage.rootfs.as_ref()?.used_bytes? + usage.logs.as_ref()?.used_bytes?),
            Resource::Inodes | Resource::Pids => None,
        }
    }

    fn request(&self, container: &Container) -> u64 {
        match self.signal.resource() {
            resource @ (Resource::Memory | Resource::EphemeralStorage) => {
                let request = asked(container, resource.as_str(), false);
                request.or_else(|| asked(container, resource.as_str(), true))
            }
            Resource::Inodes | Resource::Pids => None,
        }
        .unwrap_or_default()
    }
}

/// A request or a limit of a container in whole units.
pub(super) fn asked(container: &Container, resource: &str, limit: bool) -> Option<u64> {
    let resources = container.resources.as_ref()?;
    let list = if limit { &resources.limits } else { &resources.requests };
    quantity::value(list.as_ref()?.get(resource)?).and_then(|value| u64::try_from(value).ok())
}

/// Sum over the containers that run together, or that of an init container with the sidecars before it if that is more.
pub(super) fn pod_sum(pod: &Pod, amount: impl Fn(&Container) -> u64) -> u64 {
    let (mut sidecars, mut first) = (0_u64, 0_u64);
    for container in spec::init_containers(pod) {
        if spec::is_sidecar(container) {
            sidecars = sidecars.saturating_add(amount(container));
        } else {
            first = first.max(sidecars.saturating_add(amount(container)));
        }
    }
    let main = spec::containers(pod).iter().fold(sidecars, |sum, container| sum.saturating_add(amount(container)));
    main.max(first)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::stats::summary::{ContainerUsage, FsStats, MemoryStats, PodReference, PodUsage};

    fn fs(bytes: u64) -> Option<FsStats> {
        Some(FsStats { used_bytes: Some(bytes), inodes_used: Some(bytes / 10), ..Default::default() })
    }

    fn summary() -> Arc<Summary> {
        let usage = ContainerUsage {
            memory: Some(MemoryStats { working_set_bytes: Some(7), ..Default::default() }),
            rootfs: fs(300),
            logs: fs(100),
            ..Default::default()
        };
        let container = ContainerStats { name: "c".into(), usage, ..Default::default() };
        let usage = PodUsage {
            memory: Some(MemoryStats { working_set_bytes: Some(9), ..Default::default() }),
            ephemeral_storage: fs(1000),
            ..Default::default()
        };
        let pod_ref = PodReference { uid: "u".into(), ..Default::default() };
        let pod = PodStats { pod_ref, containers: vec![container], usage, ..Default::default() };
        Arc::new(Summary { pods: vec![pod], ..Default::default() })
    }

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"uid": "u"},
            "spec": {
                "priority": 3,
                "containers": [{"name": "c", "resources": {"requests": {"memory": "5"}, "limits": {"ephemeral-storage": "2k"}}}],
                "initContainers": [
                    {"name": "side", "restartPolicy": "Always", "resources": {"requests": {"memory": "2"}}},
                    {"name": "init", "resources": {"requests": {"memory": "4"}}},
                ],
            },
        }))
        .unwrap()
    }

    #[test]
    fn what_is_on_the_file_system_that_is_short() {
        for (signal, image_fs, usage) in [
            (Signal::MemoryAvailable, false, Some(9)),
            (Signal::NodeFsAvailable, false, Some(1000)),
            (Signal::NodeFsAvailable, true, Some(700)),
            (Signal::ImageFsAvailable, true, Some(300)),
            (Signal::ImageFsInodesFree, true, Some(30)),
            (Signal::NodeFsInodesFree, false, Some(100)),
            (Signal::PidAvailable, false, None),
        ] {
            let candidate = Usages::new(Some(summary()), signal, image_fs).candidate(&pod());
            assert_eq!(candidate.usage, usage, "{signal:?}");
            assert_eq!(candidate.priority, 3);
        }
        assert_eq!(Usages::new(None, Signal::MemoryAvailable, false).candidate(&pod()).usage, None);
    }

    #[test]
    fn what_was_asked_for() {
        let memory = Usages::new(Some(summary()), Signal::MemoryAvailable, false);
        assert_eq!(memory.candidate(&pod()).request, 7);
        assert_eq!(memory.consumers(&pod()), [Consumer { name: "c".into(), usage: Some(7), request: 5 }]);
        let disk = Usages::new(Some(summary()), Signal::NodeFsAvailable, false);
        assert_eq!(disk.candidate(&pod()).request, 2000);
        assert_eq!(disk.consumers(&pod()), [Consumer { name: "c".into(), usage: Some(400), request: 2000 }]);
    }
}
