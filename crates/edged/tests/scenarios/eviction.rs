//! Pods that have to go.

use std::time::Duration;

use podlife::eviction::{Amount, Signal, Threshold};
use serde_json::{Value, json};

use crate::site::{has, is_ready};
use crate::{Site, pod_with};

const MI: u64 = 1 << 20;

fn is_evicted(pod: &Value) -> bool {
    pod["status"]["phase"] == "Failed" && pod["status"]["reason"] == "Evicted"
}

/// What the node last told of one of its conditions.
fn node_condition(site: &Site, kind: &str) -> String {
    let log = site.cloud.log();
    let told = log.iter().filter(|(_, resource, _)| resource.contains("/node/") || resource.contains("/nodepatch/"));
    let mut told = told.filter_map(|(_, _, content)| {
        let node = content.as_str().map_or_else(|| content.clone(), |text| serde_json::from_str(text).unwrap());
        let conditions = node["status"]["conditions"].as_array()?.clone();
        let status = conditions.iter().find(|c| c["type"] == kind)?["status"].as_str()?.to_owned();
        Some(status)
    });
    told.next_back().unwrap_or_default()
}

#[tokio::test]
async fn t65_a_pod_that_outgrows_its_own_limits_of_disk_is_evicted() {
    let site = Site::start().await;
    let writer = |name: &str, limits: Value, volume: Value| {
        pod_with(name, |pod| {
            let main = &mut pod["spec"]["containers"][0];
            main["command"] = json!(["sh", "-c", "dd if=/dev/zero of=/cache/file bs=1M count=4; sleep 1000"]);
            main["volumeMounts"] = json!([{"name": "cache", "mountPath": "/cache"}]);
            main["resources"] = json!({"limits": limits});
            pod["spec"]["volumes"] = json!([{"name": "cache", "emptyDir": volume}]);
        })
    };
    site.cloud.create(writer("volume", json!({}), json!({"sizeLimit": "2Mi"}))).await;
    site.cloud.create(writer("storage", json!({"ephemeral-storage": "3Mi"}), json!({}))).await;
    site.cloud.create(writer("modest", json!({"ephemeral-storage": "64Mi"}), json!({"sizeLimit": "8Mi"}))).await;
    let evicted = site.until("volume", "evicted", is_evicted).await;
    assert_eq!(evicted["status"]["message"], "Usage of EmptyDir volume \"cache\" exceeds the limit \"2Mi\". ");
    assert!(!has(&evicted, "DisruptionTarget"), "{evicted:#}");
    let evicted = site.until("storage", "evicted", is_evicted).await;
    let text = "Pod ephemeral local storage usage exceeds the total limit of containers 3Mi. ";
    assert_eq!(evicted["status"]["message"], text);
    assert!(site.cloud.events("storage").contains(&"Evicted".to_owned()));
    site.until("modest", "left alone", is_ready).await;
}

#[tokio::test]
#[ignore = "needs gigabytes of memory that nobody else uses meanwhile"]
async fn t73_the_pod_beyond_its_request_goes_when_memory_runs_short() {
    let node = edged::stats::node::usage(
        &edged::stats::cgroup::Cgroups::new("/sys/fs/cgroup"),
        std::path::Path::new("/"),
        jiff::Timestamp::now(),
    );
    // Others work on this machine meanwhile: half the hog is what they may take or give back.
    let available = node.memory.unwrap().available_bytes.unwrap();
    let hogs = (available / 4 / (2000 * MI)).clamp(1, 3);
    let must_be_free = available.saturating_sub(hogs * 1000 * MI) / MI * MI;
    let site = Site::start_with(|settings| {
        settings.eviction.thresholds = vec![Threshold {
            signal: Signal::MemoryAvailable,
            value: Amount::Absolute(must_be_free),
            grace: Duration::ZERO,
            min_reclaim: None,
        }];
        settings.eviction.pressure_transition = Duration::from_secs(15);
    })
    .await;
    let modest = pod_with("modest", |pod| {
        pod["spec"]["containers"][0]["resources"] = json!({"requests": {"memory": "512Mi"}});
    });
    site.run(modest).await;
    site.eventually("the node is calm", async || node_condition(&site, "MemoryPressure") == "False").await;
    let hog = pod_with("hog", |pod| {
        pod["spec"]["containers"][0]["command"] = json!([
            "sh",
            "-c",
            format!("for hog in $(seq {hogs}); do (head -c 2000m /dev/zero; sleep 1000) | tail & done; wait"),
        ]);
    });
    site.cloud.create(hog).await;
    let evicted = site.until("hog", "evicted", is_evicted).await;
    let message = evicted["status"]["message"].as_str().unwrap();
    let threshold = podlife::eviction::message::binary(must_be_free);
    let begin = format!("The node was low on resource: memory. Threshold quantity: {threshold}, available: ");
    assert!(message.starts_with(&begin), "{message}");
    assert!(message.contains(". Container main was using "), "{message}");
    assert!(message.ends_with(", request is 0, has larger consumption of memory. "), "{message}");
    let conditions = evicted["status"]["conditions"].as_array().unwrap();
    let target = conditions.iter().find(|c| c["type"] == "DisruptionTarget").unwrap();
    assert_eq!((&target["status"], &target["reason"]), (&json!("True"), &json!("TerminationByKubelet")));
    assert_eq!(target["message"], message);
    assert!(is_ready(&site.cloud.pod("modest").unwrap()), "within its request");
    site.eventually("pressure is told", async || node_condition(&site, "MemoryPressure") == "True").await;
    assert!(site.cloud.events("n1").contains(&"EvictionThresholdMet".to_owned()));
    site.eventually("pressure ends", async || node_condition(&site, "MemoryPressure") == "False").await;
    assert_eq!(node_condition(&site, "DiskPressure"), "False");
}
