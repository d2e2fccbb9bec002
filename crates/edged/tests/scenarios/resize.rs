//! Resources of a running pod that change, as the kernel has them.

use serde_json::{Value, json};

use crate::{Site, pod_with};

fn resources(request: &str, limit: &str, memory: &str) -> Value {
    json!({"requests": {"cpu": request, "memory": "16Mi"}, "limits": {"cpu": limit, "memory": memory}})
}

fn told<'a>(pod: &'a Value, kind: &str, resource: &str) -> &'a str {
    pod["status"]["containerStatuses"][0]["resources"][kind][resource].as_str().unwrap_or_default()
}

#[tokio::test]
async fn rs1_a_running_container_is_resized_in_place() {
    let site = Site::start().await;
    site.run(pod_with("web", |pod| {
        pod["spec"]["containers"][0]["resources"] = resources("100m", "200m", "64Mi");
        pod["status"]["qosClass"] = json!("Burstable");
    }))
    .await;
    let id = site.container_id("web", "main").await;
    let (pod, container) = ("kubepods/burstable/poduid-web".to_owned(), format!("kubepods/burstable/poduid-web/{id}"));
    let values = |path: &str| {
        ["cpu.shares", "cpu.cfs_quota_us", "memory.limit_in_bytes"]
            .map(|file| site.cgroup_value(if file.starts_with("cpu") { "cpu" } else { "memory" }, path, file))
    };
    assert_eq!(values(&container), ["102", "20000", "67108864"]);

    // More than the pod's cgroup had, then less.
    for (request, limit, memory, expected) in
        [("500m", "1", "128Mi", ["512", "100000", "134217728"]), ("50m", "100m", "32Mi", ["51", "10000", "33554432"])]
    {
        let wanted = resources(request, limit, memory);
        site.cloud.change("web", |pod| pod["spec"]["containers"][0]["resources"] = wanted).await;
        let now = site.until("web", "resized", |pod| told(pod, "limits", "memory") == memory).await;
        assert_eq!((values(&container), values(&pod)), (expected.map(String::from), expected.map(String::from)));
        assert_eq!(now["status"]["containerStatuses"][0]["allocatedResources"]["cpu"], request);
        assert!(now["status"]["resize"].as_str().unwrap_or_default().is_empty(), "{now:#}");
        assert_eq!(site.container_id("web", "main").await, id);
    }

    // Less memory than it uses is refused, and it lives.
    let (code, _) = site.sh("web", "main", "head -c 24000000 /dev/zero > /dev/shm/full").await;
    assert_eq!(code, 0);
    let wanted = resources("50m", "100m", "20Mi");
    site.cloud.change("web", |pod| pod["spec"]["containers"][0]["resources"] = wanted).await;
    site.until("web", "in progress", |pod| pod["status"]["resize"] == "InProgress").await;
    let refused = |text: &String| text.contains("the memory limit of 20971520 bytes is below the ");
    site.eventually("refusal told", async || site.cloud.event_texts("web").iter().any(refused)).await;
    assert_eq!(values(&container), ["51", "10000", "33554432"]);
    let (code, _) = site.sh("web", "main", "rm /dev/shm/full").await;
    assert_eq!(code, 0);
    site.until("web", "resized", |pod| told(pod, "limits", "memory") == "20Mi").await;
    assert_eq!(values(&pod), ["51", "10000", "20971520"]);
    assert_eq!(site.container("web", "main").await.id, id);
    site.cloud.delete("web", 1).await;
    site.until_gone("web").await;
}
