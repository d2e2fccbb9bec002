//! `/metrics`: the agent itself, and what its pods are; `/metrics/probes` and `/metrics/slis`.

use std::collections::BTreeMap;
use std::fs;

use super::text::{Kind, Page, number};
use crate::access::Access;
use crate::cri::proto::{ContainerState, PodSandboxState};
use crate::pods::ProbeCounters;
use crate::stats::Detail;

type Metric = (&'static str, Kind, &'static str);

const VOLUME: [Metric; 6] = [
    ("kubelet_volume_stats_available_bytes", Kind::Gauge, "[ALPHA] Number of available bytes in the volume"),
    ("kubelet_volume_stats_capacity_bytes", Kind::Gauge, "[ALPHA] Capacity in bytes of the volume"),
    ("kubelet_volume_stats_used_bytes", Kind::Gauge, "[ALPHA] Number of used bytes in the volume"),
    ("kubelet_volume_stats_inodes_free", Kind::Gauge, "[ALPHA] Number of free inodes in the volume"),
    ("kubelet_volume_stats_inodes", Kind::Gauge, "[ALPHA] Maximum number of inodes in the volume"),
    ("kubelet_volume_stats_inodes_used", Kind::Gauge, "[ALPHA] Number of used inodes in the volume"),
];
/// Clock ticks a second, in which Linux counts the time of processes.
const TICKS: f64 = 100.0;

/// The page. What cannot be found out is left out.
pub async fn page(access: &Access) -> Page {
    let mut page = Page::default();
    let node = [("node", access.settings.node_name.as_str())];
    page.add(("kubelet_node_name", Kind::Gauge, "[ALPHA] The node's name. The count is always 1."), &node, 1.0, None);
    let streams = number(access.open_streams() as u64);
    let text = "Follows, execs, attaches and port-forwards that are open";
    page.add(("edged_open_streams", Kind::Gauge, text), &[], streams, None);
    let tasks = number(tokio::runtime::Handle::current().metrics().num_alive_tasks() as u64);
    page.add(("ferroedge_tasks", Kind::Gauge, "Tasks that run in this program"), &[], tasks, None);
    let measures = &access.runtime.measures;
    let text = "[ALPHA] Duration in seconds from kubelet seeing a pod for the first time to the pod starting to run";
    page.add_histogram("kubelet_pod_start_duration_seconds", text, &measures.pod_start);
    let text = "[ALPHA] Duration in seconds for relisting pods in PLEG.";
    page.add_histogram("kubelet_pleg_relist_duration_seconds", text, &measures.relist);
    add_running(&mut page, access).await;
    add_volumes(&mut page, access).await;
    add_process(&mut page);
    page
}

/// Whether the main loop is alive, as a metric.
pub fn health(alive: bool) -> Page {
    let mut page = Page::default();
    let text = "[STABLE] This metric records the result of a single healthcheck.";
    let labels = [("name", "syncloop"), ("type", "healthz")];
    page.add(("kubernetes_healthcheck", Kind::Gauge, text), &labels, f64::from(u8::from(alive)), None);
    page
}

/// How often probes ended how.
pub fn probes(counters: &ProbeCounters) -> Page {
    let mut page = Page::default();
    let text = "[ALPHA] Cumulative number of a liveness, readiness or startup probe for a container by result.";
    for (probe, count) in counters.rows() {
        for (result, count) in [("failed", count.failed), ("successful", count.successful)] {
            let labels = [
                ("container", probe.container.as_str()),
                ("namespace", &probe.namespace),
                ("pod", &probe.pod),
                ("pod_uid", &probe.pod_uid),
                ("probe_type", probe.kind.word()),
                ("result", result),
            ];
            if count > 0 {
                page.add(("prober_probe_total", Kind::Counter, text), &labels, number(count), None);
            }
        }
    }
    page
}

async fn add_running(page: &mut Page, access: &Access) {
    let cri = access.runtime.cri();
    let all = BTreeMap::new;
    let Ok((sandboxes, containers)) = tokio::try_join!(cri.list_sandboxes(all()), cri.list_containers(all())) else {
        return;
    };
    let pods = sandboxes.iter().filter(|sandbox| sandbox.state() == PodSandboxState::SandboxReady).count();
    let text = "[ALPHA] Number of pods that have a running pod sandbox";
    page.add(("kubelet_running_pods", Kind::Gauge, text), &[], number(pods as u64), None);
    for (state, name) in [
        (ContainerState::ContainerCreated, "created"),
        (ContainerState::ContainerExited, "exited"),
        (ContainerState::ContainerRunning, "running"),
        (ContainerState::ContainerUnknown, "unknown"),
    ] {
        let count = containers.iter().filter(|container| container.state() == state).count();
        let text = "[ALPHA] Number of containers currently running";
        let labels = [("container_state", name)];
        page.add(("kubelet_running_containers", Kind::Gauge, text), &labels, number(count as u64), None);
    }
}

async fn add_volumes(page: &mut Page, access: &Access) {
    let Ok(summary) = access.stats().summary(Detail::Everything).await else { return };
    for volume in summary.pods.iter().flat_map(|pod| &pod.volumes) {
        let (Some(claim), fs) = (&volume.pvc_ref, &volume.fs) else { continue };
        let labels = [("namespace", claim.namespace.as_str()), ("persistentvolumeclaim", claim.name.as_str())];
        let values = [fs.available_bytes, fs.capacity_bytes, fs.used_bytes, fs.inodes_free, fs.inodes, fs.inodes_used];
        for (metric, value) in VOLUME.into_iter().zip(values) {
            page.add_known(metric, &labels, value, None);
        }
    }
}

/// The usual metrics of a process.
fn add_process(page: &mut Page) {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name of the program may hold spaces; what follows it does not.
    let fields: Vec<&str> =
        stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default();
    let field = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok());
    if let Some((user, system)) = field(11).zip(field(12)) {
        let text = "Total user and system CPU time spent in seconds.";
        page.add(("process_cpu_seconds_total", Kind::Counter, text), &[], number(user + system) / TICKS, None);
    }
    page.add_known(
        ("process_virtual_memory_bytes", Kind::Gauge, "Virtual memory size in bytes."),
        &[],
        field(20),
        None,
    );
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok());
    let resident = resident.map(|kibibytes: u64| kibibytes * 1024);
    page.add_known(
        ("process_resident_memory_bytes", Kind::Gauge, "Resident memory size in bytes."),
        &[],
        resident,
        None,
    );
    let open = fs::read_dir("/proc/self/fd").map(|entries| entries.count() as u64).ok();
    page.add_known(("process_open_fds", Kind::Gauge, "Number of open file descriptors."), &[], open, None);
    let booted = fs::read_to_string("/proc/stat").unwrap_or_default();
    let booted = booted.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<u64>().ok());
    if let Some((booted, ticks)) = booted.zip(field(19)) {
        let text = "Start time of the process since unix epoch in seconds.";
        let start = number(booted) + number(ticks) / TICKS;
        page.add(("process_start_time_seconds", Kind::Gauge, text), &[], start, None);
    }
}
