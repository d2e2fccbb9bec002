//! Cgroups of pods and containers, as the kernel has them.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::{Site, pod_with};

fn with_resources(name: &str, class: &str, resources: Value) -> Value {
    pod_with(name, |pod| {
        pod["spec"]["containers"][0]["resources"] = resources;
        pod["status"]["qosClass"] = json!(class);
    })
}

impl Site {
    /// A folder of the tree in a hierarchy of version 1.
    fn cgroup(&self, controller: &str, path: &str) -> PathBuf {
        let root = self.settings.cgroup_root.trim_start_matches('/');
        PathBuf::from("/sys/fs/cgroup").join(controller).join(root).join(path)
    }

    pub fn cgroup_value(&self, controller: &str, path: &str, file: &str) -> String {
        let path = self.cgroup(controller, path).join(file);
        std::fs::read_to_string(path).unwrap().trim().to_owned()
    }
}

/// What the node's memory makes of a score, which the runtime here may not give below its own.
fn score(wanted: i64, oci: &Value) -> i64 {
    let runtime: i64 = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim().parse().unwrap();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    let may_protect = u64::from_str_radix(line.trim(), 16).unwrap() & (1 << 24) != 0;
    assert!(oci["process"]["oomScoreAdj"].is_i64(), "{oci:#}");
    if may_protect { wanted } else { wanted.max(runtime) }
}

#[tokio::test]
async fn t15_requests_and_limits_become_cgroup_values() {
    let site = Site::start().await;
    let resources =
        json!({"requests": {"cpu": "250m", "memory": "64Mi"}, "limits": {"cpu": "500m", "memory": "128Mi"}});
    site.run(with_resources("one", "Burstable", resources.clone())).await;
    let oci = site.oci("one", "main").await;
    let linux = &oci["linux"]["resources"];
    assert_eq!(
        (&linux["cpu"]["shares"], &linux["cpu"]["quota"], &linux["cpu"]["period"], &linux["memory"]["limit"]),
        (&json!(256), &json!(50_000), &json!(100_000), &json!(134_217_728))
    );
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap();
    let memory: i64 = meminfo.split_whitespace().nth(1).unwrap().parse::<i64>().unwrap() * 1024;
    assert_eq!(oci["process"]["oomScoreAdj"], score(1000 - 1000 * (64 << 20) / memory, &oci));
    assert!(oci["linux"]["cgroupsPath"].as_str().unwrap().contains("/kubepods/burstable/poduid-one"));
    let pod = "kubepods/burstable/poduid-one";
    assert_eq!(site.cgroup_value("cpu", pod, "cpu.shares"), "256");
    assert_eq!(site.cgroup_value("cpu", pod, "cpu.cfs_quota_us"), "50000");
    assert_eq!(site.cgroup_value("memory", pod, "memory.limit_in_bytes"), "134217728");
    assert_eq!(site.cgroup_value("cpu", "kubepods/burstable", "cpu.shares"), "256");

    site.run(pod_with("two", |pod| {
        let open = pod["spec"]["containers"][0].clone();
        pod["spec"]["containers"][0]["resources"] = resources;
        pod["spec"]["containers"].as_array_mut().unwrap().push(open);
        pod["spec"]["containers"][1]["name"] = json!("open");
        pod["status"]["qosClass"] = json!("Burstable");
    }))
    .await;
    let pod = "kubepods/burstable/poduid-two";
    assert_eq!(site.cgroup_value("cpu", pod, "cpu.shares"), "256");
    assert_eq!(site.cgroup_value("cpu", pod, "cpu.cfs_quota_us"), "-1");
    let memory: u64 = site.cgroup_value("memory", pod, "memory.limit_in_bytes").parse().unwrap();
    assert!(memory > 1 << 60, "{memory}");
    assert_eq!(site.cgroup_value("cpu", "kubepods/burstable", "cpu.shares"), "512", "what both request together");
    site.cloud.delete("two", 2).await;
    site.until_gone("two").await;
    site.eventually("the class shrinks", async || {
        site.cgroup_value("cpu", "kubepods/burstable", "cpu.shares") == "256"
    })
    .await;
}

#[tokio::test]
async fn t16_classes_have_their_places_and_scores() {
    let site = Site::start().await;
    site.run(with_resources("sure", "Guaranteed", json!({"limits": {"cpu": "100m", "memory": "64Mi"}}))).await;
    site.run(with_resources("best", "BestEffort", json!({}))).await;
    let (sure, best) = (site.oci("sure", "main").await, site.oci("best", "main").await);
    assert_eq!(sure["process"]["oomScoreAdj"], score(-997, &sure));
    assert_eq!(best["process"]["oomScoreAdj"], score(1000, &best));
    assert!(sure["linux"]["cgroupsPath"].as_str().unwrap().contains("/kubepods/poduid-sure/"));
    assert!(best["linux"]["cgroupsPath"].as_str().unwrap().contains("/kubepods/besteffort/poduid-best/"));
    assert_eq!(best["linux"]["resources"]["cpu"]["shares"], 2);
    assert_eq!(site.cgroup_value("cpu", "kubepods/poduid-sure", "cpu.shares"), "102");
    assert_eq!(site.cgroup_value("memory", "kubepods/poduid-sure", "memory.limit_in_bytes"), "67108864");
    assert_eq!(site.cgroup_value("cpu", "kubepods/besteffort/poduid-best", "cpu.shares"), "2");
    assert_eq!(site.cgroup_value("cpu", "kubepods/besteffort", "cpu.shares"), "2");
    let cpus = std::thread::available_parallelism().unwrap().get() as u64;
    assert_eq!(site.cgroup_value("cpu", "kubepods", "cpu.shares"), (cpus * 1024).to_string());
}

/// The driver cgroupfs on version 1, as this machine has it; names and files of the other three are tested on a fake root beside the
/// code, for want of a systemd.
#[tokio::test]
async fn t85_a_cgroup_that_nobody_owns_goes_after_a_restart() {
    let mut site = Site::start().await;
    site.run(with_resources("web", "BestEffort", json!({}))).await;
    site.kill_edged().await;
    let orphan = site.cgroup("cpu", "kubepods/burstable/poduid-orphan/child");
    std::fs::create_dir_all(&orphan).unwrap();
    std::fs::create_dir_all(site.cgroup("memory", "kubepods/poduid-orphan")).unwrap();
    site.start_edged();
    site.eventually("the orphan is gone", async || site.cgroups_of("uid-orphan").is_empty()).await;
    assert!(!site.cgroups_of("uid-web").is_empty());
    assert_eq!(site.sh("web", "main", "echo alive").await.1, "alive\n");
}
