//! Sandboxes, runtimes, agents and whole machines that die: what comes back, and what is left alone.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use testkit::cri;
use tokio::time::{Instant, sleep};

use crate::{
    Site, pod, pod_with,
    site::{has, is_ready},
};

fn restarts(pod: &Value) -> i64 {
    pod["status"]["containerStatuses"][0]["restartCount"].as_i64().unwrap_or_default()
}

/// A pod with an init container that leaves a line in its log each time.
fn with_init(name: &str) -> Value {
    pod_with(name, |pod| {
        let mut init = pod["spec"]["containers"][0].clone();
        init["name"] = json!("prepare");
        init["command"] = json!(["sh", "-c", "echo prepared"]);
        pod["spec"]["initContainers"] = json!([init]);
    })
}

fn never(name: &str, script: &str) -> Value {
    pod_with(name, |pod| {
        pod["spec"]["restartPolicy"] = json!("Never");
        pod["spec"]["containers"][0]["command"] = json!(["sh", "-c", script]);
    })
}

/// Ids and creation times of everything of a pod.
async fn everything(site: &Site, pod: &str) -> BTreeMap<String, i64> {
    let sandboxes = site.sandboxes(pod).await.into_iter().map(|s| (s.id, s.created_at));
    let containers = site.containers(pod).await.into_iter().map(|c| (c.id, c.created_at));
    sandboxes.chain(containers).collect()
}

#[tokio::test]
async fn t10_a_stopped_sandbox_is_replaced() {
    let site = Site::start().await;
    let before = site.run(with_init("web")).await;
    let ip = before["status"]["podIP"].clone();
    let old = site.sandboxes("web").await.remove(0).id;
    let init_before = site.container_id("web", "prepare").await;
    let mut client = site.containerd.client().await.unwrap();
    client.stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id: old.clone() }).await.unwrap();
    let after = site.until("web", "back", |pod| restarts(pod) == 1 && is_ready(pod)).await;
    let newest = site.sandboxes("web").await.remove(0);
    assert_ne!(newest.id, old);
    assert_eq!(newest.metadata.unwrap().attempt, 1);
    assert_ne!(after["status"]["podIP"], ip, "the new address is told");
    assert_ne!(site.container_id("web", "prepare").await, init_before, "init containers run again");
    assert!(has(&after, "Initialized"));
    site.cloud.delete("web", 1).await;
    site.until_gone("web").await;
}

#[tokio::test]
async fn t37_a_restart_of_containerd_restarts_nothing() {
    let mut site = Site::start().await;
    site.run(pod("web")).await;
    let before = everything(&site, "web").await;
    let node_ready = |site: &Site| site.node_condition("Ready").unwrap_or_default();
    site.eventually("the node is ready", async || node_ready(&site) == "True").await;
    site.containerd.kill().await.unwrap();
    site.eventually("the node is not ready", async || node_ready(&site) == "False").await;
    site.containerd.start_again().await.unwrap();
    let begin = Instant::now();
    site.eventually("the node is ready again", async || node_ready(&site) == "True").await;
    assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
    assert_eq!(everything(&site, "web").await, before);
    // It works again, and what ran was not touched.
    site.run(pod("second")).await;
    assert_eq!(everything(&site, "web").await, before);
    assert_eq!(restarts(&site.cloud.pod("web").unwrap()), 0);
}

#[tokio::test]
async fn t58_a_killed_agent_adopts_what_runs() {
    let mut site = Site::start().await;
    let mut probed = with_init("web");
    probed["spec"]["containers"][0]["readinessProbe"] = json!({"exec": {"command": ["true"]}, "periodSeconds": 1});
    site.run(probed).await;
    let before = everything(&site, "web").await;
    site.kill_edged().await;
    let told = site.cloud.patches("web").len();
    site.start_edged();
    // The new agent is at work when another pod has come up.
    site.run(pod("second")).await;
    assert_eq!(everything(&site, "web").await, before);
    let web = site.cloud.pod("web").unwrap();
    assert!(is_ready(&web));
    assert_eq!(restarts(&web), 0);
    assert_eq!(site.cloud.patches("web").len(), told, "it never stopped being ready");
}

#[tokio::test]
async fn t59_a_pod_removed_meanwhile_ends_after_the_first_list() {
    let mut site = Site::start().await;
    let mark = site.directory().join("mark");
    std::fs::create_dir(&mark).unwrap();
    let gone = pod_with("gone", |pod| {
        pod["spec"]["volumes"] = json!([{"name": "mark", "hostPath": {"path": mark}}]);
        pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "mark", "mountPath": "/mark"}]);
        pod["spec"]["containers"][0]["lifecycle"] =
            json!({"preStop": {"exec": {"command": ["touch", "/mark/stopped"]}}});
    });
    site.run(gone).await;
    site.run(pod("keep")).await;
    let kept = everything(&site, "keep").await;
    site.kill_edged().await;
    site.cloud.forget("gone");
    site.cloud.fail_lists(true);
    site.start_edged();
    sleep(Duration::from_secs(3)).await;
    assert!(site.containers("gone").await.iter().all(|c| c.state == 1), "nothing is ended before the list is known");
    site.cloud.fail_lists(false);
    site.until_gone("gone").await;
    assert_eq!(everything(&site, "keep").await, kept);
    assert!(mark.join("stopped").is_file(), "its preStop hook was in the annotation");
}

#[tokio::test]
async fn t60_pods_come_back_after_a_reboot() {
    let mut site = Site::start().await;
    site.run(with_init("web")).await;
    site.run(never("job", "trap 'exit 0' TERM; while :; do sleep 0.1; done")).await;
    site.cloud.create(never("done", "exit 0")).await;
    site.until("done", "succeeded", |pod| pod["status"]["phase"] == "Succeeded").await;
    let init_before = site.container_id("web", "prepare").await;
    site.power_cut().await;
    site.start_edged();
    site.until("web", "back", |pod| restarts(pod) == 1 && is_ready(pod)).await;
    assert_eq!(site.sandboxes("web").await[0].metadata.as_ref().unwrap().attempt, 1);
    assert_ne!(site.container_id("web", "prepare").await, init_before, "init containers ran again");
    let job = site.until("job", "failed", |pod| pod["status"]["phase"] == "Failed").await;
    assert_eq!(restarts(&job), 0, "not run again");
    assert_eq!(site.cloud.pod("done").unwrap()["status"]["phase"], "Succeeded");
    assert!(site.containers("job").await.iter().all(|c| c.metadata.as_ref().unwrap().attempt == 0));
}

#[tokio::test]
async fn t61_counts_go_on_after_the_runtime_lost_everything() {
    let mut site = Site::start().await;
    site.run(pod("web")).await;
    site.sh("web", "main", "kill -TERM 1").await;
    site.until("web", "restarted", |pod| restarts(pod) == 1 && is_ready(pod)).await;
    site.kill_edged().await;
    site.wipe_containerd().await;
    site.start_edged();
    let pod = site.until("web", "back", |pod| restarts(pod) >= 2 && is_ready(pod)).await;
    assert_eq!(restarts(&pod), 2);
    assert!(site.log_dir("web").join("main/2.log").is_file(), "a new log, not the old one again");
    assert_eq!(site.container("web", "main").await.annotations["io.kubernetes.container.restartCount"], "2");
}

#[tokio::test]
async fn containerd_restarted_under_load_makes_no_duplicates() {
    let mut site = Site::start().await;
    let names = ["a", "b", "c", "d"];
    for name in names {
        site.cloud.create(pod(name)).await;
        sleep(Duration::from_millis(150)).await;
    }
    for _ in 0..2 {
        site.containerd.kill().await.unwrap();
        sleep(Duration::from_millis(500)).await;
        site.containerd.start_again().await.unwrap();
        sleep(Duration::from_millis(400)).await;
    }
    for name in names {
        site.until(name, "ready", is_ready).await;
        check_single(&site, name).await;
        site.cloud.delete(name, 1).await;
    }
    for name in names {
        site.until_gone(name).await;
    }
}

/// One ready sandbox, one running container.
async fn check_single(site: &Site, name: &str) {
    let ready = site.sandboxes(name).await.into_iter().filter(|s| s.state == 0).count();
    let running = site.containers(name).await.into_iter().filter(|c| c.state == 1).count();
    assert_eq!((ready, running), (1, 1), "{name}");
}

/// Kills edged at random moments while pods come and go; a seed is printed and can be given as `CRASH_SEED`.
async fn crash(kills: u32) {
    let seed =
        std::env::var("CRASH_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| rand::rng().random());
    eprintln!("CRASH_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut site = Site::start().await;
    let names = ["a", "b", "c", "d", "e"];
    let mut uids = BTreeMap::new();
    for round in 0..kills {
        for name in names {
            match site.cloud.pod(name) {
                None => {
                    let uid = format!("uid-{name}-{round}");
                    site.cloud.create(pod_with(name, |pod| pod["metadata"]["uid"] = json!(uid))).await;
                    uids.insert(name, uid);
                }
                Some(pod) if pod["metadata"]["deletionTimestamp"].is_null() && random.random_ratio(1, 4) => {
                    site.cloud.delete(name, 1).await;
                }
                Some(_) => {}
            }
        }
        sleep(Duration::from_millis(random.random_range(0..1200))).await;
        site.kill_edged().await;
        site.start_edged();
    }
    let wanted = |site: &Site, name: &str| {
        site.cloud.pod(name).is_some_and(|pod| pod["metadata"]["deletionTimestamp"].is_null())
    };
    for name in names {
        if wanted(&site, name) {
            let pod = site.until(name, "ready", is_ready).await;
            assert_eq!(restarts(&pod), 0, "seed {seed}: {name} was restarted without need");
            check_single(&site, name).await;
            site.cloud.delete(name, 1).await;
        }
    }
    for name in names {
        site.until_gone(name).await;
    }
    site.eventually("directories are gone", async || {
        std::fs::read_dir(site.settings.root_dir.join("pods")).is_ok_and(|mut entries| entries.next().is_none())
    })
    .await;
}

#[tokio::test]
async fn kills_at_random_moments_leave_nothing_and_restart_nothing() {
    crash(8).await;
}

#[tokio::test]
#[ignore = "slow: 60 kills"]
async fn sixty_kills_at_random_moments_leave_nothing_and_restart_nothing() {
    crash(60).await;
}
