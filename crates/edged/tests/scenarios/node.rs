//! The Node object, and the logs on the node.

use std::time::Duration;

use serde_json::{Value, json};

use crate::site::is_ready;
use crate::{Site, pod, pod_with};

/// What the node sent to this resource, in order.
fn sent(site: &Site, resource: &str) -> Vec<Value> {
    let log = site.cloud.log();
    let of = log.into_iter().filter(|(operation, to, _)| to == resource && operation != "query");
    of.map(|(_, _, content)| content.as_str().map_or(content.clone(), |text| serde_json::from_str(text).unwrap()))
        .collect()
}

/// Ready as it was told last: status and message.
fn ready(site: &Site) -> (String, String) {
    let all = sent(site, "null/node/n1").into_iter().chain(sent(site, "null/nodepatch/n1"));
    let mut last = (String::new(), String::new());
    for node in all {
        let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
        for condition in conditions.iter().filter(|c| c["type"] == "Ready") {
            let text = |field: &str| condition[field].as_str().map(str::to_owned);
            last = (text("status").unwrap_or(last.0), text("message").unwrap_or(last.1));
        }
    }
    last
}

#[tokio::test]
async fn t81_the_node_is_told_as_it_is_and_no_more_often_than_needed() {
    let site = Site::start_with(|settings| {
        settings.node_status_update_frequency = Duration::from_millis(100);
        settings.eviction.thresholds.clear();
        settings.reserved.memory = 64 << 20;
    })
    .await;
    site.eventually("registered and ready", async || ready(&site).0 == "True").await;
    let node = sent(&site, "null/node/n1").remove(0);
    for (label, value) in [
        ("kubernetes.io/hostname", "n1"),
        ("kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/os", "linux"),
        ("node-role.kubernetes.io/edge", ""),
        ("node-role.kubernetes.io/agent", ""),
    ] {
        assert_eq!(node["metadata"]["labels"][label], value, "{label}");
    }
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap();
    let total: u64 = meminfo.lines().next().unwrap().split_whitespace().nth(1).unwrap().parse().unwrap();
    let status = &node["status"];
    assert_eq!(status["capacity"]["memory"], format!("{total}Ki"));
    assert_eq!(status["allocatable"]["memory"], format!("{}Ki", total - (64 << 10)));
    let cpus = std::thread::available_parallelism().unwrap().get().to_string();
    assert_eq!((&status["capacity"]["cpu"], &status["capacity"]["pods"]), (&json!(cpus), &json!("110")));
    let types: Vec<&str> = status["conditions"].as_array().unwrap().iter().filter_map(|c| c["type"].as_str()).collect();
    assert_eq!(types, ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"]);
    assert!(site.cloud.events("n1").contains(&"Starting".to_owned()));
    let patches = sent(&site, "null/nodepatch/n1").len();
    let lease = "kube-node-lease/lease/n1";
    site.eventually("renewed twice", async || sent(&site, lease).len() >= 3).await;
    let times: Vec<jiff::Timestamp> =
        sent(&site, lease).iter().map(|lease| lease["spec"]["renewTime"].as_str().unwrap().parse().unwrap()).collect();
    for pair in times.windows(2) {
        let pause = pair[1].duration_since(pair[0]).as_secs_f64();
        assert!((9.5..14.0).contains(&pause), "{pause} s between renewals");
    }
    // Some twenty seconds of an idle node, two hundred computed statuses.
    assert_eq!(sent(&site, "null/nodepatch/n1").len(), patches);
}

#[tokio::test]
async fn t82_without_a_network_the_node_is_not_ready_and_pods_wait() {
    let site = Site::start().await;
    let running = site.run(pod("running")).await;
    let config = site.directory().join("containerd/cni/net.d/10-bridge.conflist");
    let aside = site.directory().join("conflist");
    std::fs::rename(&config, &aside).unwrap();
    site.eventually("not ready", async || ready(&site).0 == "False").await;
    let message = ready(&site).1;
    assert!(message.contains("container runtime network not ready: NetworkReady=false"), "{message}");
    assert!(site.cloud.events("n1").contains(&"NodeNotReady".to_owned()));
    site.cloud.create(pod("waits")).await;
    site.run(pod_with("host", |pod| pod["spec"]["hostNetwork"] = json!(true))).await;
    site.eventually("told why", async || site.cloud.events("waits").contains(&"NetworkNotReady".to_owned())).await;
    assert!(site.sandboxes("waits").await.is_empty());
    let still = site.cloud.pod("running").unwrap();
    assert!(is_ready(&still));
    assert_eq!(still["status"]["containerStatuses"], running["status"]["containerStatuses"]);
    // Written anew: containerd overlooks a file that is moved there.
    std::fs::copy(&aside, &config).unwrap();
    site.until("waits", "started", is_ready).await;
    site.eventually("ready again", async || ready(&site).0 == "True").await;
}

#[tokio::test]
async fn t77_a_long_log_is_cut_into_files_of_which_few_are_kept() {
    const MI: u64 = 1 << 20;
    let site = Site::start().await;
    site.run(pod("writer")).await;
    let folder = site.log_dir("writer").join("main");
    let files = || {
        let mut names: Vec<String> = std::fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        // One that is being compressed is there twice.
        names.retain(|name| !name.ends_with(".tmp"));
        names.sort_unstable();
        names
    };
    for burst in 1..=3 {
        let write = "head -c 12000000 /dev/zero | tr '\\0' x | fold -w 500 > /proc/1/fd/1";
        assert_eq!(site.sh("writer", "main", write).await.0, 0);
        site.eventually("rotated", async || files().len() > burst).await;
    }
    let names = files();
    assert!(names.len() <= 5 && names[0] == "0.log", "{names:?}");
    let (packed, plain): (Vec<_>, Vec<_>) = names[1..].iter().partition(|name| name.ends_with(".gz"));
    assert_eq!((packed.len(), plain.len()), (2, 1), "all but the newest are compressed: {names:?}");
    for name in packed {
        // The last four bytes of a gzip file are the size of what is in it.
        let bytes = std::fs::read(folder.join(name)).unwrap();
        let size = u32::from_le_bytes(bytes[bytes.len() - 4..].try_into().unwrap());
        assert!(u64::from(size) >= 10 * MI, "{name}: {size}");
    }
    assert!(std::fs::metadata(folder.join(plain[0])).unwrap().len() >= 10 * MI);
    site.sh("writer", "main", "echo goes on > /proc/1/fd/1").await;
    site.eventually("the container writes on", async || site.log("writer", "main", 0).contains("goes on")).await;
}
