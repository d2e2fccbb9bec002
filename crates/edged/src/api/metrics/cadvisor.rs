//! `/metrics/cadvisor`: usage by cgroup, with the names that cAdvisor gave it.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::Pod;
use podlife::{qos::qos_class, spec};

use super::text::{Kind, Page, number, seconds};
use crate::cgroups::Cgroups;
use crate::container::resources::{amounts, quota, shares};
use crate::pods::PodRecord;
use crate::stats::summary::{CpuStats, FsStats, MemoryStats, NetworkStats, PodStats, Summary, Time};

type Metric = (&'static str, Kind, &'static str);

const CPU: Metric = ("container_cpu_usage_seconds_total", Kind::Counter, "Cumulative cpu time consumed in seconds.");
const USAGE: Metric = (
    "container_memory_usage_bytes",
    Kind::Gauge,
    "Current memory usage in bytes, including all memory regardless of when it was accessed",
);
const WORKING_SET: Metric = ("container_memory_working_set_bytes", Kind::Gauge, "Current working set in bytes.");
const RSS: Metric = ("container_memory_rss", Kind::Gauge, "Size of RSS in bytes.");
const CACHE: Metric = ("container_memory_cache", Kind::Gauge, "Number of bytes of page cache memory.");
const FAILURES: Metric =
    ("container_memory_failures_total", Kind::Counter, "Cumulative count of memory allocation failures.");
const FS_USAGE: Metric =
    ("container_fs_usage_bytes", Kind::Gauge, "Number of bytes that are consumed by the container on this filesystem.");
const FS_LIMIT: Metric = (
    "container_fs_limit_bytes",
    Kind::Gauge,
    "Number of bytes that can be consumed by the container on this filesystem.",
);
const LAST_SEEN: Metric = ("container_last_seen", Kind::Gauge, "Last time a container was seen by the exporter");
const START: Metric =
    ("container_start_time_seconds", Kind::Gauge, "Start time of the container since unix epoch in seconds.");
const NETWORK: [Metric; 4] = [
    ("container_network_receive_bytes_total", Kind::Counter, "Cumulative count of bytes received"),
    ("container_network_receive_errors_total", Kind::Counter, "Cumulative count of errors encountered while receiving"),
    ("container_network_transmit_bytes_total", Kind::Counter, "Cumulative count of bytes transmitted"),
    (
        "container_network_transmit_errors_total",
        Kind::Counter,
        "Cumulative count of errors encountered while transmitting",
    ),
];
const PERIOD: Metric = ("container_spec_cpu_period", Kind::Gauge, "CPU period of the container.");
const QUOTA: Metric = ("container_spec_cpu_quota", Kind::Gauge, "CPU quota of the container.");
const SHARES: Metric = ("container_spec_cpu_shares", Kind::Gauge, "CPU share of the container.");
const LIMIT: Metric = ("container_spec_memory_limit_bytes", Kind::Gauge, "Memory limit for the container.");

/// Length of a scheduling period in microseconds.
const CPU_PERIOD: f64 = 100_000.0;

/// The page. What stands in a pod's spec is taken from the configured pods.
pub fn page(summary: &Summary, pods: &[PodRecord], tree: &Cgroups) -> Page {
    let mut page = Page::default();
    let configured: HashMap<&str, &Pod> = pods.iter().map(|pod| (pod.identity.uid.as_str(), &*pod.pod)).collect();
    let node = &summary.node.usage;
    let root = labels("/", "", "", ["", "", ""]);
    add_usage(&mut page, &root, node.cpu.as_ref(), node.memory.as_ref());
    if let Some(network) = &node.network {
        add_network(&mut page, &root, network);
    }
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    page.add(("machine_cpu_cores", Kind::Gauge, "Number of logical CPU cores."), &[], number(cores as u64), None);
    let memory = node.memory.as_ref().and_then(|memory| Some(memory.available_bytes? + memory.working_set_bytes?));
    page.add_known(
        ("machine_memory_bytes", Kind::Gauge, "Amount of memory installed on the machine."),
        &[],
        memory,
        None,
    );
    for pod in &summary.pods {
        add_pod(&mut page, pod, configured.get(pod.pod_ref.uid.as_str()).copied(), tree);
    }
    page
}

fn labels<'a>(
    id: &'a str,
    name: &'a str,
    image: &'a str,
    [namespace, pod, container]: [&'a str; 3],
) -> [(&'static str, &'a str); 6] {
    [("container", container), ("id", id), ("image", image), ("name", name), ("namespace", namespace), ("pod", pod)]
}

fn add_pod(page: &mut Page, pod: &PodStats, configured: Option<&Pod>, tree: &Cgroups) {
    let reference = &pod.pod_ref;
    let group = tree.pod(&reference.uid, configured.map_or("BestEffort", qos_class));
    let of_pod = labels(&group, "", "", [&reference.namespace, &reference.name, ""]);
    add_usage(page, &of_pod, pod.usage.cpu.as_ref(), pod.usage.memory.as_ref());
    if let Some(network) = &pod.usage.network {
        add_network(page, &of_pod, network);
    }
    for container in &pod.containers {
        let id = format!("{group}/{}", container.id);
        let names = [reference.namespace.as_str(), reference.name.as_str(), container.name.as_str()];
        let labels = labels(&id, &container.id, &container.image, names);
        let usage = &container.usage;
        add_usage(page, &labels, usage.cpu.as_ref(), usage.memory.as_ref());
        if let Some(FsStats { used_bytes, capacity_bytes, time, .. }) = &usage.rootfs {
            page.add_known(FS_USAGE, &labels, *used_bytes, *time);
            page.add_known(FS_LIMIT, &labels, *capacity_bytes, *time);
        }
        if let Some(Time(start)) = usage.start_time {
            page.add(START, &labels, start.as_duration().as_secs_f64(), None);
        }
        if let Some(Time(seen)) = usage.cpu.as_ref().and_then(|cpu| cpu.time) {
            page.add(LAST_SEEN, &labels, seen.as_duration().as_secs_f64().floor(), None);
        }
        if let Some(spec) = configured.and_then(|pod| spec::container(pod, &container.name)) {
            let amounts = amounts(spec);
            let whole = |value: i64| number(u64::try_from(value).unwrap_or_default());
            page.add(SHARES, &labels, whole(shares(amounts.cpu_request)), None);
            page.add(PERIOD, &labels, CPU_PERIOD, None);
            page.add(LIMIT, &labels, whole(amounts.memory_limit), None);
            if amounts.cpu_limit > 0 {
                page.add(QUOTA, &labels, whole(quota(amounts.cpu_limit)), None);
            }
        }
    }
}

fn add_usage(page: &mut Page, labels: &[(&str, &str)], cpu: Option<&CpuStats>, memory: Option<&MemoryStats>) {
    if let Some((stats, nanoseconds)) = cpu.and_then(|stats| Some((stats, stats.usage_core_nano_seconds?))) {
        let all: Vec<(&str, &str)> = [("cpu", "total")].into_iter().chain(labels.iter().copied()).collect();
        page.add(CPU, &all, seconds(nanoseconds), stats.time);
    }
    let Some(memory) = memory else { return };
    page.add_known(USAGE, labels, memory.usage_bytes, memory.time);
    page.add_known(WORKING_SET, labels, memory.working_set_bytes, memory.time);
    page.add_known(RSS, labels, memory.rss_bytes, memory.time);
    let cache = memory.usage_bytes.zip(memory.rss_bytes).map(|(usage, rss)| usage.saturating_sub(rss));
    page.add_known(CACHE, labels, cache, memory.time);
    for (kind, count) in [("pgfault", memory.page_faults), ("pgmajfault", memory.major_page_faults)] {
        let kind = [("failure_type", kind), ("scope", "hierarchy")];
        let all: Vec<(&str, &str)> = kind.into_iter().chain(labels.iter().copied()).collect();
        page.add_known(FAILURES, &all, count, memory.time);
    }
}

fn add_network(page: &mut Page, labels: &[(&str, &str)], network: &NetworkStats) {
    for interface in network.interfaces.iter().flatten() {
        let name = [("interface", interface.name.as_deref().unwrap_or_default())];
        let all: Vec<(&str, &str)> = name.into_iter().chain(labels.iter().copied()).collect();
        let counters = [interface.rx_bytes, interface.rx_errors, interface.tx_bytes, interface.tx_errors];
        for (metric, counter) in NETWORK.into_iter().zip(counters) {
            page.add_known(metric, &all, counter, network.time);
        }
    }
}
