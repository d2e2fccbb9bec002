//! `/metrics/resource`: what metrics-server, and so `kubectl top`, needs. Each sample has the time when it was measured: rates
//! are computed from it.

use super::text::{Kind, Page, number, seconds};
use crate::stats::summary::{CpuStats, MemoryStats, Summary, SwapStats};

type Metric = (&'static str, Kind, &'static str);

const NODE: [Metric; 3] = [
    (
        "node_cpu_usage_seconds_total",
        Kind::Counter,
        "[STABLE] Cumulative cpu time consumed by the node in core-seconds",
    ),
    ("node_memory_working_set_bytes", Kind::Gauge, "[STABLE] Current working set of the node in bytes"),
    (
        "node_swap_usage_bytes",
        Kind::Gauge,
        "[ALPHA] Current swap usage of the node in bytes. Reported only on non-windows systems",
    ),
];
const POD: [Metric; 3] = [
    ("pod_cpu_usage_seconds_total", Kind::Counter, "[STABLE] Cumulative cpu time consumed by the pod in core-seconds"),
    ("pod_memory_working_set_bytes", Kind::Gauge, "[STABLE] Current working set of the pod in bytes"),
    (
        "pod_swap_usage_bytes",
        Kind::Gauge,
        "[ALPHA] Current amount of the pod swap usage in bytes. Reported only on non-windows systems",
    ),
];
const CONTAINER: [Metric; 3] = [
    (
        "container_cpu_usage_seconds_total",
        Kind::Counter,
        "[STABLE] Cumulative cpu time consumed by the container in core-seconds",
    ),
    ("container_memory_working_set_bytes", Kind::Gauge, "[STABLE] Current working set of the container in bytes"),
    (
        "container_swap_usage_bytes",
        Kind::Gauge,
        "[ALPHA] Current amount of the container swap usage in bytes. Reported only on non-windows systems",
    ),
];
const START: Metric =
    ("container_start_time_seconds", Kind::Gauge, "[STABLE] Start time of the container since unix epoch in seconds");

/// The page; without a summary it only says that there was an error.
pub fn page(summary: Option<&Summary>) -> Page {
    let mut page = Page::default();
    let failed = if summary.is_some() { 0.0 } else { 1.0 };
    let text = "[ALPHA] (Deprecated since 1.29.0) 1 if there was an error while getting container metrics, 0 otherwise";
    page.add(("scrape_error", Kind::Gauge, text), &[], failed, None);
    let text = "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise";
    page.add(("resource_scrape_error", Kind::Gauge, text), &[], failed, None);
    let Some(summary) = summary else { return page };
    let node = &summary.node.usage;
    add(&mut page, NODE, &[], (node.cpu.as_ref(), node.memory.as_ref(), node.swap.as_ref()));
    for pod in &summary.pods {
        let (namespace, name) = (pod.pod_ref.namespace.as_str(), pod.pod_ref.name.as_str());
        let usage = &pod.usage;
        let labels = [("namespace", namespace), ("pod", name)];
        add(&mut page, POD, &labels, (usage.cpu.as_ref(), usage.memory.as_ref(), usage.swap.as_ref()));
        for container in &pod.containers {
            let labels = [("container", container.name.as_str()), ("namespace", namespace), ("pod", name)];
            let usage = &container.usage;
            add(&mut page, CONTAINER, &labels, (usage.cpu.as_ref(), usage.memory.as_ref(), usage.swap.as_ref()));
            // The start needs no time of its own.
            if let Some(start) = usage.start_time {
                page.add(START, &labels, start.0.as_duration().as_secs_f64(), None);
            }
        }
    }
    page
}

fn add(
    page: &mut Page,
    [cpu, memory, swap]: [Metric; 3],
    labels: &[(&str, &str)],
    usage: (Option<&CpuStats>, Option<&MemoryStats>, Option<&SwapStats>),
) {
    if let Some((stats, nanoseconds)) = usage.0.and_then(|stats| Some((stats, stats.usage_core_nano_seconds?))) {
        page.add(cpu, labels, seconds(nanoseconds), stats.time);
    }
    if let Some((stats, bytes)) = usage.1.and_then(|stats| Some((stats, stats.working_set_bytes?))) {
        page.add(memory, labels, number(bytes), stats.time);
    }
    if let Some((stats, bytes)) = usage.2.and_then(|stats| Some((stats, stats.swap_usage_bytes?))) {
        page.add(swap, labels, number(bytes), stats.time);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::summary::{ContainerStats, ContainerUsage, NodeStats, NodeUsage, PodReference, PodStats, Time};

    #[test]
    fn times_stand_behind_samples_but_not_behind_starts() {
        let time = Some(Time("2024-05-01T10:00:00.5Z".parse().unwrap()));
        let cpu = Some(CpuStats { time, usage_core_nano_seconds: Some(1_500_000_000), ..Default::default() });
        let memory = Some(MemoryStats { time, working_set_bytes: Some(20_000_000), ..Default::default() });
        let usage = ContainerUsage { start_time: time, cpu: cpu.clone(), memory, ..Default::default() };
        let summary = Summary {
            node: NodeStats { usage: NodeUsage { cpu, ..Default::default() }, ..Default::default() },
            pods: vec![PodStats {
                pod_ref: PodReference { name: "p".into(), namespace: "ns".into(), uid: "u".into() },
                containers: vec![ContainerStats { name: "c".into(), usage, ..Default::default() }],
                ..Default::default()
            }],
        };
        let text = page(Some(&summary)).into_text();
        let samples: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let labels = "{container=\"c\",namespace=\"ns\",pod=\"p\"}";
        assert_eq!(
            samples,
            [
                format!("container_cpu_usage_seconds_total{labels} 1.5 1714557600500"),
                format!("container_memory_working_set_bytes{labels} 20000000 1714557600500"),
                format!("container_start_time_seconds{labels} 1714557600.5"),
                "node_cpu_usage_seconds_total 1.5 1714557600500".into(),
                "resource_scrape_error 0".into(),
                "scrape_error 0".into(),
            ]
        );
        assert!(page(None).into_text().ends_with("scrape_error 1\n"));
    }
}
