//! Usage of node, pods and containers.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::node_api::NodeApi;
use crate::{Site, pod, pod_with};

/// A line of a page of metrics: name and labels, value, time.
type Samples = BTreeMap<String, (f64, Option<i64>)>;

fn samples(page: &str) -> Samples {
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    let sample = |line: &str| {
        let (name, rest) =
            line.rsplit_once('}').map_or_else(|| line.split_once(' ').unwrap(), |(name, rest)| (name, rest.trim()));
        let mut words = rest.split(' ');
        let value = words.next().unwrap().parse().unwrap();
        (name.to_owned(), (value, words.next().map(|time| time.parse().unwrap())))
    };
    lines.map(sample).collect()
}

fn of(metric: &str, pod: &str) -> String {
    if metric.starts_with("pod_") {
        format!("{metric}{{namespace=\"default\",pod=\"{pod}\"")
    } else {
        format!("{metric}{{container=\"main\",namespace=\"default\",pod=\"{pod}\"")
    }
}

#[tokio::test]
async fn t80_pods_summary_and_metrics() {
    let site = Site::start().await;
    let api = NodeApi::find(&site.cloud, &site.settings.root_dir).await;
    site.run(pod("idle")).await;
    site.run(pod_with("busy", |pod| {
        let command = "head -c 5000000 /dev/zero >/data/file; touch /data/done; while :; do :; done";
        pod["spec"]["containers"][0]["command"] = json!(["sh", "-c", command]);
        pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
        pod["spec"]["containers"][0]["resources"] = json!({"limits": {"cpu": "500m", "memory": "64Mi"}});
        pod["spec"]["containers"][0]["readinessProbe"] =
            json!({"exec": {"command": ["test", "-e", "/data/done"]}, "periodSeconds": 1});
        pod["spec"]["volumes"] = json!([{"name": "data", "emptyDir": {}}]);
    }))
    .await;
    let names = |list: &Value, field: &str| {
        let items = list.as_array().unwrap().iter().map(|item| item[field]["name"].as_str().unwrap().to_owned());
        let mut names: Vec<String> = items.collect();
        names.sort_unstable();
        names
    };
    let pods = api.json("/pods").await;
    assert_eq!(names(&pods["items"], "metadata"), ["busy", "idle"]);
    assert!(pods["items"].as_array().unwrap().iter().all(|pod| pod["status"]["phase"] == "Running"));

    let first = samples(&api.text("/metrics/resource").await);
    summary(&api).await;
    pages(&site, &api).await;
    // Two scrapes as metrics-server makes them.
    tokio::time::sleep(Duration::from_secs(15)).await;
    let second = samples(&api.text("/metrics/resource").await);
    for name in [
        "node_cpu_usage_seconds_total",
        &of("container_cpu_usage_seconds_total", "busy"),
        &of("pod_cpu_usage_seconds_total", "busy"),
    ] {
        let ((before, at), (after, later)) = (first[name], second[name]);
        assert!(after > before && later.unwrap() >= at.unwrap() + 14_000, "{name}: {before} {at:?}, {after} {later:?}");
    }
    for name in ["scrape_error", "resource_scrape_error"] {
        assert_eq!(second[name], (0.0, None));
    }
    for pod in ["busy", "idle"] {
        let start = of("container_start_time_seconds", pod);
        assert!(first[&start].1.is_none() && first[&start] == second[&start] && first[&start].0 > 1.6e9);
        assert!(second[&of("container_memory_working_set_bytes", pod)].0 > 0.0);
        assert!(second[&of("pod_memory_working_set_bytes", pod)].1.is_some());
    }
    // `kubectl top`: what is used in a window, beside what the kernel says.
    let name = of("container_cpu_usage_seconds_total", "busy");
    let (before, began) = cgroup_cpu(&site).await;
    let one = samples(&api.text("/metrics/resource").await)[&name];
    tokio::time::sleep(Duration::from_secs(8)).await;
    let two = samples(&api.text("/metrics/resource").await)[&name];
    let (after, ended) = cgroup_cpu(&site).await;
    let rate = (two.0 - one.0) / ((two.1.unwrap() - one.1.unwrap()) as f64 / 1000.0);
    let truth = (after - before) / ended.duration_since(began).as_secs_f64();
    assert!((rate / truth - 1.0).abs() < 0.05, "{rate} of {truth} processors");
}

/// Processor seconds of the busy container by its cgroup file, and when.
async fn cgroup_cpu(site: &Site) -> (f64, tokio::time::Instant) {
    let command = "cat /sys/fs/cgroup/cpuacct/cpuacct.usage 2>/dev/null || grep usage_usec /sys/fs/cgroup/cpu.stat";
    let (code, text) = site.sh("busy", "main", command).await;
    let now = tokio::time::Instant::now();
    assert_eq!(code, 0, "{text}");
    let seconds = match text.trim().strip_prefix("usage_usec ") {
        Some(micro) => micro.parse::<f64>().unwrap() / 1e6,
        None => text.trim().parse::<f64>().unwrap() / 1e9,
    };
    (seconds, now)
}

async fn summary(api: &NodeApi) {
    // Rates need two samples some seconds apart.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    let summary = loop {
        let summary = api.json("/stats/summary").await;
        if !summary["node"]["cpu"]["usageNanoCores"].is_null() {
            break summary;
        }
        assert!(tokio::time::Instant::now() < deadline, "no rate: {summary:#}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    };
    let node = &summary["node"];
    assert_eq!(node["nodeName"], "n1");
    for field in ["cpu", "memory", "network", "fs", "runtime", "rlimit", "startTime"] {
        assert!(!node[field].is_null(), "{field}: {node:#}");
    }
    assert!(node["cpu"]["usageNanoCores"].as_u64() > Some(0) && node["memory"]["workingSetBytes"].as_u64() > Some(0));
    let pods = summary["pods"].as_array().unwrap();
    let busy = pods.iter().find(|pod| pod["podRef"]["name"] == "busy").unwrap();
    assert_eq!(busy["podRef"], json!({"name": "busy", "namespace": "default", "uid": "uid-busy"}));
    let container = &busy["containers"][0];
    assert_eq!(container["name"], "main");
    // Half a processor at most, by its limit.
    let cores = container["cpu"]["usageNanoCores"].as_u64().unwrap();
    assert!(cores > 10_000_000 && cores < 600_000_000, "{cores}");
    for field in ["memory", "rootfs", "logs", "startTime"] {
        assert!(!container[field].is_null(), "{field}: {container:#}");
    }
    assert!(busy["ephemeral-storage"]["usedBytes"].as_u64() >= Some(5_000_000), "{busy:#}");
    let volume = busy["volume"].as_array().unwrap().iter().find(|volume| volume["name"] == "data").unwrap();
    assert!(volume["usedBytes"].as_u64() >= Some(5_000_000), "{volume:#}");
    let small = api.json("/stats/summary?only_cpu_and_memory=true").await;
    assert!(small["node"]["fs"].is_null() && small["node"]["cpu"]["usageCoreNanoSeconds"].is_number());
    assert!(small["pods"].as_array().unwrap().iter().all(|pod| pod["volume"].is_null() && pod["network"].is_null()));
}

/// The other pages parse and have what dashboards look for.
async fn pages(site: &Site, api: &NodeApi) {
    let cadvisor = api.text("/metrics/cadvisor").await;
    let group = format!("{}/kubepods/", site.settings.cgroup_root);
    for part in [
        &*format!("container_cpu_usage_seconds_total{{cpu=\"total\",container=\"main\",id=\"{group}"),
        &*format!("container_memory_working_set_bytes{{container=\"\",id=\"{group}"),
        "container_memory_working_set_bytes{container=\"\",id=\"/\",image=\"\",name=\"\",namespace=\"\",pod=\"\"} ",
        "container_spec_memory_limit_bytes{container=\"main\",",
        "machine_cpu_cores ",
    ] {
        assert!(cadvisor.contains(part), "{part}: {cadvisor}");
    }
    let limits: Vec<f64> = samples(&cadvisor)
        .iter()
        .filter(|(name, _)| name.starts_with("container_spec_memory_limit_bytes"))
        .map(|(_, sample)| sample.0)
        .collect();
    assert!(limits.contains(&(64.0 * 1024.0 * 1024.0)), "{limits:?}");
    let agent = samples(&api.text("/metrics").await);
    assert_eq!(agent["kubelet_node_name{node=\"n1\""].0, 1.0);
    assert_eq!(agent["kubelet_running_pods"].0, 2.0);
    assert_eq!(agent["kubelet_running_containers{container_state=\"running\""].0, 2.0);
    assert_eq!(agent["kubelet_pod_start_duration_seconds_count"].0, 2.0);
    assert_eq!(agent["kubelet_pod_start_duration_seconds_bucket{le=\"+Inf\""].0, 2.0);
    assert!(agent["kubelet_pleg_relist_duration_seconds_sum"].0 > 0.0);
    assert!(agent["process_resident_memory_bytes"].0 > 1e6 && agent["process_start_time_seconds"].0 > 1.6e9);
    assert!(
        api.text("/metrics/slis").await.ends_with("kubernetes_healthcheck{name=\"syncloop\",type=\"healthz\"} 1\n")
    );
}
