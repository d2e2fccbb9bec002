//! Puts together what the runtime, cgroups and the disk say about pods.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use podlife::observed::PodIdentity;

use super::cgroup::{Cgroups, GroupUsage};
use super::disk::PodDisk;
use super::files::{self, Taken};
use super::node::time;
use super::summary::{
    ContainerStats, ContainerUsage, CpuStats, FsStats, InterfaceStats, MemoryStats, NetworkStats, PodReference,
    PodStats, PodUsage, ProcessStats, SwapStats, Time,
};
use crate::cgroups::Cgroups as PodCgroups;
use crate::cri::proto;
use crate::{labels, observe};

/// Classes of pods, whose cgroups lie in different places.
const CLASSES: [&str; 3] = ["Burstable", "BestEffort", "Guaranteed"];

/// What the runtime says about everything at one moment.
#[derive(Default)]
pub struct Observed {
    /// Sandboxes.
    pub sandboxes: Vec<proto::PodSandbox>,
    /// Containers in any state.
    pub containers: Vec<proto::Container>,
    /// Usage of containers.
    pub container_stats: Vec<proto::ContainerStats>,
    /// Usage of sandboxes; empty where it is not wanted or not known.
    pub sandbox_stats: Vec<proto::PodSandboxStats>,
}

/// Where else to look.
pub struct Sources<'a> {
    /// The kernel's counters.
    pub cgroups: &'a Cgroups,
    /// Where those of pods are.
    pub tree: &'a PodCgroups,
    /// Logs and volumes by UID; absent where only processors and memory are wanted.
    pub disks: Option<&'a HashMap<String, PodDisk>>,
    /// File system of writable layers.
    pub container_fs: Option<&'a FsStats>,
    /// File system of logs.
    pub node_fs: Option<&'a FsStats>,
    /// Now.
    pub now: Timestamp,
}

/// UIDs of pods with running containers.
pub fn running(observed: &Observed) -> Vec<String> {
    let running = observed.containers.iter().filter(|c| c.state() == proto::ContainerState::ContainerRunning);
    let mut uids: Vec<String> = running.filter_map(|c| c.labels.get(labels::POD_UID).cloned()).collect();
    uids.sort_unstable();
    uids.dedup();
    uids
}

/// Pods with running containers, by namespace and name.
pub fn pods(observed: &Observed, sources: &Sources<'_>) -> Vec<PodStats> {
    let usage: HashMap<&str, &proto::ContainerStats> =
        observed.container_stats.iter().filter_map(|s| Some((s.attributes.as_ref()?.id.as_str(), s))).collect();
    let mut pods: BTreeMap<PodIdentity, PodStats> = BTreeMap::new();
    for container in observed.containers.iter().filter(|c| c.state() == proto::ContainerState::ContainerRunning) {
        let Some(pod) = observe::identity(&container.labels) else { continue };
        let logs = sources.disks.and_then(|disks| disks.get(&pod.uid)).and_then(|disk| {
            let name = container.labels.get(labels::CONTAINER_NAME)?;
            disk.logs.get(name).copied()
        });
        let stats = self::container(container, usage.get(container.id.as_str()).copied(), logs, sources);
        pods.entry(pod).or_default().containers.push(stats);
    }
    let complete = |(pod, mut stats): (PodIdentity, PodStats)| {
        stats.pod_ref = PodReference { name: pod.name, namespace: pod.namespace, uid: pod.uid };
        stats.containers.sort_by(|a, b| a.name.cmp(&b.name));
        complete(&mut stats, observed, sources);
        stats
    };
    pods.into_iter().map(complete).collect()
}

/// Adds what is measured of the pod as a whole.
fn complete(pod: &mut PodStats, observed: &Observed, sources: &Sources<'_>) {
    let of_pod = |labels: &BTreeMap<String, String>| labels.get(labels::POD_UID) == Some(&pod.pod_ref.uid);
    let sandbox = observed.sandboxes.iter().filter(|s| of_pod(&s.labels)).max_by_key(|s| s.created_at);
    let group = group(&pod.pod_ref.uid, sources);
    let stats = observed.sandbox_stats.iter().find(|stats| {
        let of = stats.attributes.as_ref().map(|attributes| attributes.id.as_str());
        of.is_some() && of == sandbox.map(|sandbox| sandbox.id.as_str())
    });
    let linux = stats.and_then(|stats| stats.linux.as_ref());
    let tasks = group.tasks.or_else(|| value(linux?.process.as_ref()?.process_count));
    pod.usage = PodUsage {
        start_time: sandbox.and_then(|sandbox| time(sandbox.created_at)),
        cpu: group.cpu.or_else(|| sum_cpu(&pod.containers)),
        memory: group.memory.or_else(|| sum_memory(&pod.containers)),
        network: linux.and_then(|linux| network(linux.network.as_ref()?)),
        ephemeral_storage: None,
        process_stats: sources.disks.and(tasks).map(|count| ProcessStats { process_count: Some(count) }),
        swap: group.swap,
    };
    let Some(disk) = sources.disks.and_then(|disks| disks.get(&pod.pod_ref.uid)) else { return };
    let mut taken = disk.ephemeral;
    for layer in pod.containers.iter().filter_map(|container| container.usage.rootfs.as_ref()) {
        taken += Taken { bytes: layer.used_bytes.unwrap_or_default(), inodes: layer.inodes_used.unwrap_or_default() };
    }
    pod.usage.ephemeral_storage = sources.node_fs.map(|fs| files::part_of(fs, taken));
    pod.volumes.clone_from(&disk.volumes);
}

/// The cgroup of a pod, whichever class it is in.
fn group(uid: &str, sources: &Sources<'_>) -> GroupUsage {
    let paths = CLASSES.into_iter().map(|class| sources.tree.pod(uid, class));
    let found = paths.into_iter().find(|path| sources.cgroups.exists(path));
    found.map(|path| sources.cgroups.read(&path, sources.now)).unwrap_or_default()
}

fn container(
    container: &proto::Container,
    stats: Option<&proto::ContainerStats>,
    logs: Option<Taken>,
    sources: &Sources<'_>,
) -> ContainerStats {
    let wants_disk = sources.disks.is_some();
    let layer = stats.and_then(|stats| stats.writable_layer.as_ref()).filter(|_| wants_disk);
    ContainerStats {
        name: container.labels.get(labels::CONTAINER_NAME).cloned().unwrap_or_default(),
        id: container.id.clone(),
        image: container.image_ref.clone(),
        usage: ContainerUsage {
            start_time: time(container.created_at),
            cpu: stats.and_then(|stats| cpu(stats.cpu.as_ref()?)),
            memory: stats.and_then(|stats| memory(stats.memory.as_ref()?)),
            rootfs: layer.map(|layer| FsStats {
                used_bytes: value(layer.used_bytes),
                inodes_used: value(layer.inodes_used),
                ..sources.container_fs.cloned().unwrap_or_default()
            }),
            logs: sources.node_fs.and_then(|fs| Some(files::part_of(fs, logs?))),
            swap: stats.and_then(|stats| swap(stats.swap.as_ref()?)),
        },
    }
}

fn value(value: Option<proto::UInt64Value>) -> Option<u64> {
    value.map(|value| value.value)
}

fn cpu(usage: &proto::CpuUsage) -> Option<CpuStats> {
    Some(CpuStats {
        time: Some(time(usage.timestamp)?),
        usage_nano_cores: value(usage.usage_nano_cores),
        usage_core_nano_seconds: value(usage.usage_core_nano_seconds),
    })
}

fn memory(usage: &proto::MemoryUsage) -> Option<MemoryStats> {
    Some(MemoryStats {
        time: Some(time(usage.timestamp)?),
        // containerd says 0 when there is no limit.
        available_bytes: value(usage.available_bytes).filter(|bytes| *bytes > 0),
        usage_bytes: value(usage.usage_bytes),
        working_set_bytes: value(usage.working_set_bytes),
        rss_bytes: value(usage.rss_bytes),
        page_faults: value(usage.page_faults),
        major_page_faults: value(usage.major_page_faults),
    })
}

fn swap(usage: &proto::SwapUsage) -> Option<SwapStats> {
    Some(SwapStats {
        time: Some(time(usage.timestamp)?),
        swap_available_bytes: value(usage.swap_available_bytes),
        swap_usage_bytes: value(usage.swap_usage_bytes),
    })
}

fn network(usage: &proto::NetworkUsage) -> Option<NetworkStats> {
    let interface = |usage: &proto::NetworkInterfaceUsage| InterfaceStats {
        name: Some(usage.name.clone()),
        rx_bytes: value(usage.rx_bytes),
        rx_errors: value(usage.rx_errors),
        tx_bytes: value(usage.tx_bytes),
        tx_errors: value(usage.tx_errors),
    };
    let default = usage.default_interface.as_ref().map(interface);
    let others = usage.interfaces.iter().map(interface);
    Some(NetworkStats {
        time: time(usage.timestamp),
        interfaces: Some(default.iter().cloned().chain(others).collect()),
        default: Some(default?),
    })
}

/// The earliest of the containers' times goes with a sum.
fn earliest(times: impl Iterator<Item = Option<Time>>) -> Option<Time> {
    times.flatten().min()
}

fn sum_cpu(containers: &[ContainerStats]) -> Option<CpuStats> {
    let all: Vec<&CpuStats> = containers.iter().filter_map(|c| c.usage.cpu.as_ref()).collect();
    let counter = |cpu: &&CpuStats| cpu.usage_core_nano_seconds;
    (!all.is_empty()).then(|| CpuStats {
        time: earliest(all.iter().map(|cpu| cpu.time)),
        usage_core_nano_seconds: all.iter().map(counter).sum(),
        usage_nano_cores: None,
    })
}

fn sum_memory(containers: &[ContainerStats]) -> Option<MemoryStats> {
    let all: Vec<&MemoryStats> = containers.iter().filter_map(|c| c.usage.memory.as_ref()).collect();
    (!all.is_empty()).then(|| MemoryStats {
        time: earliest(all.iter().map(|memory| memory.time)),
        usage_bytes: all.iter().map(|memory| memory.usage_bytes).sum(),
        working_set_bytes: all.iter().map(|memory| memory.working_set_bytes).sum(),
        rss_bytes: all.iter().map(|memory| memory.rss_bytes).sum(),
        ..Default::default()
    })
}
