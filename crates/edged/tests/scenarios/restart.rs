//! Restarts and their back-off, the identity of containers, and what is kept of dead ones.

use std::time::Duration;

use serde_json::{Value, json};
use testkit::cri;
use tokio::time::Instant;

use crate::told::{has_event, main_status, phase, script, tag, until_term, waiting};
use crate::{Site, pod_with};

fn with_main(name: &str, policy: &str, text: &str) -> Value {
    pod_with(name, |pod| {
        pod["spec"]["restartPolicy"] = json!(policy);
        pod["spec"]["containers"] = json!([script("main", text)]);
    })
}

#[tokio::test]
async fn t02_a_container_carries_what_a_later_agent_needs() {
    let site = Site::start().await;
    tag(&site, "docker.io/library/nginx:1.27");
    let nginx = pod_with("web", |pod| {
        let container = &mut pod["spec"]["containers"][0];
        container["name"] = json!("nginx");
        container["image"] = json!("nginx:1.27");
        container["ports"] = json!([{"containerPort": 80, "protocol": "TCP"}]);
        container["lifecycle"] = json!({"preStop": {"exec": {"command": ["true"]}}});
        container["terminationMessagePath"] = json!("/tmp/last");
        container["terminationMessagePolicy"] = json!("FallbackToLogsOnError");
        pod["spec"]["terminationGracePeriodSeconds"] = json!(3);
    });
    site.run(nginx).await;
    let annotations = site.container("web", "nginx").await.annotations;
    for (key, value) in [
        ("io.kubernetes.container.hash", "91edee8f"),
        ("io.kubernetes.container.restartCount", "0"),
        ("io.kubernetes.container.terminationMessagePath", "/tmp/last"),
        ("io.kubernetes.container.terminationMessagePolicy", "FallbackToLogsOnError"),
        ("io.kubernetes.container.preStopHandler", r#"{"exec":{"command":["true"]}}"#),
        ("io.kubernetes.container.ports", r#"[{"containerPort":80,"protocol":"TCP"}]"#),
        ("io.kubernetes.pod.terminationGracePeriod", "3"),
    ] {
        assert_eq!(annotations.get(key).map(String::as_str), Some(value), "{key}");
    }
    assert!(!annotations.contains_key("io.kubernetes.pod.deletionGracePeriod"));
    site.cloud.delete("web", 2).await;
    site.until_gone("web").await;
}

/// Waits for so many instances of `main` and returns when each was made, in seconds.
async fn made(site: &Site, name: &str, count: u32, limit: Duration) -> Vec<f64> {
    let deadline = Instant::now() + limit;
    let mut times: Vec<(u32, i64)> = Vec::new();
    while times.len() < count as usize {
        for container in site.containers(name).await {
            let attempt = container.metadata.as_ref().unwrap().attempt;
            if times.iter().all(|(known, _)| *known != attempt) {
                times.push((attempt, container.created_at));
            }
        }
        assert!(Instant::now() < deadline, "{count} instances of {name}: {times:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    times.sort_unstable();
    times.iter().map(|(_, at)| *at as f64 / 1e9).collect()
}

fn gaps(times: &[f64]) -> Vec<f64> {
    times.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

#[tokio::test]
async fn t32_a_crash_loop_backs_off_and_is_shown() {
    let site = Site::start().await;
    site.cloud.create(with_main("crash", "Always", "exit 1")).await;
    let (times, pod) = tokio::join!(
        made(&site, "crash", 4, Duration::from_secs(90)),
        site.until("crash", "back-off", |pod| waiting(main_status(pod, "main")) == "CrashLoopBackOff")
    );
    assert_eq!(phase(&pod), "Running");
    let main = main_status(&pod, "main");
    assert_eq!((&main["restartCount"], &main["lastState"]["terminated"]["exitCode"]), (&json!(1), &json!(1)));
    assert_eq!(
        main["state"]["waiting"]["message"],
        "back-off 10s restarting failed container=main pod=crash_default(uid-crash)"
    );
    let text = "Back-off restarting failed container main in pod crash_default(uid-crash)";
    site.eventually("event", async || has_event(&site, "crash", "BackOff", text)).await;
    let gaps = gaps(&times);
    for (gap, least) in gaps.iter().zip([0.0, 10.0, 20.0]) {
        assert!((least..least + 20.0).contains(gap), "{gaps:?}");
    }
    site.cloud.delete("crash", 2).await;
    site.until_gone("crash").await;
}

#[tokio::test]
#[ignore = "slow: waits for five restarts of a crash loop, two and a half minutes"]
async fn t32_t75_five_crashes_back_off_and_leave_one_dead_container() {
    let site = Site::start().await;
    site.cloud.create(with_main("crash", "Always", "echo run; exit 1")).await;
    let gaps = gaps(&made(&site, "crash", 6, Duration::from_secs(300)).await);
    for (gap, least) in gaps.iter().zip([0.0, 10.0, 20.0, 40.0, 80.0]) {
        assert!((least..least + 20.0).contains(gap), "{gaps:?}");
    }
    site.eventually("one dead container", async || site.containers("crash").await.len() <= 1).await;
    let newest = site.container("crash", "main").await;
    assert_eq!(newest.metadata.unwrap().attempt, 5);
    assert!(site.log("crash", "main", 5).contains("run"), "what --previous reads");
    assert_eq!(std::fs::read_dir(site.log_dir("crash").join("main")).unwrap().count(), 1, "older logs are gone");
    site.cloud.delete("crash", 2).await;
    site.until_gone("crash").await;
}

#[tokio::test]
async fn t75_only_the_newest_dead_container_is_kept() {
    let site = Site::start().await;
    site.cloud.create(with_main("crash", "Always", "echo run; exit 1")).await;
    made(&site, "crash", 3, Duration::from_secs(60)).await;
    site.until("crash", "back-off", |pod| {
        waiting(main_status(pod, "main")) == "CrashLoopBackOff" && main_status(pod, "main")["restartCount"] == 2
    })
    .await;
    site.eventually("one dead container", async || site.containers("crash").await.len() == 1).await;
    assert!(site.log("crash", "main", 2).contains("run"), "what --previous reads");
    assert!(!site.log_dir("crash").join("main/1.log").exists());
    site.cloud.delete("crash", 2).await;
    site.until_gone("crash").await;
}

#[tokio::test]
async fn t33_policies_decide_by_the_exit_code() {
    let site = Site::start().await;
    for (name, policy, text) in
        [("good", "OnFailure", "exit 0"), ("retry", "OnFailure", "exit 3"), ("never", "Never", "exit 3")]
    {
        site.cloud.create(with_main(name, policy, text)).await;
    }
    let good = site.until("good", "succeeded", |pod| phase(pod) == "Succeeded").await;
    assert_eq!(main_status(&good, "main")["state"]["terminated"]["reason"], "Completed");
    let never = site.until("never", "failed", |pod| phase(pod) == "Failed").await;
    let ended = &main_status(&never, "main")["state"]["terminated"];
    assert_eq!((&ended["exitCode"], &ended["reason"]), (&json!(3), &json!("Error")));
    let retry = site.until("retry", "restarted", |pod| main_status(pod, "main")["restartCount"] == 1).await;
    assert_eq!(phase(&retry), "Running");
    assert_eq!(site.containers("good").await.len() + site.containers("never").await.len(), 2, "neither runs again");
    for name in ["good", "retry", "never"] {
        site.cloud.delete(name, 2).await;
    }
    for name in ["good", "retry", "never"] {
        site.until_gone(name).await;
    }
}

#[tokio::test]
#[ignore = "slow: a container has to run for eleven minutes"]
async fn t34_after_a_long_run_the_back_off_starts_over() {
    let site = Site::start().await;
    // Fails twice, runs for eleven minutes, fails for ever.
    let text = "n=$(cat /d/n 2>/dev/null || echo 0); echo $((n+1)) > /d/n; [ $n -eq 2 ] && sleep 660; exit 1";
    let pod = pod_with("long", |pod| {
        pod["spec"]["containers"] = json!([script("main", text)]);
        pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "d", "mountPath": "/d"}]);
        pod["spec"]["volumes"] = json!([{"name": "d", "emptyDir": {}}]);
    });
    site.cloud.create(pod).await;
    let gaps = gaps(&made(&site, "long", 5, Duration::from_secs(900)).await);
    assert!(gaps[1] >= 10.0 && gaps[2] >= 660.0 && gaps[2] < 680.0, "{gaps:?}");
    assert!((10.0..30.0).contains(&gaps[3]), "the first step again: {gaps:?}");
    site.cloud.delete("long", 2).await;
    site.until_gone("long").await;
}

#[tokio::test]
async fn t35_a_changed_image_replaces_only_that_container() {
    let site = Site::start().await;
    tag(&site, "docker.io/library/busybox:2");
    let mut pod = with_main("web", "Never", &until_term(0));
    pod["spec"]["containers"].as_array_mut().unwrap().push(script("beside", &until_term(0)));
    site.run(pod).await;
    let before = site.container_id("web", "beside").await;
    let annotations = site.container("web", "main").await.annotations;
    site.cloud.change("web", |pod| pod["spec"]["containers"][0]["image"] = json!("docker.io/library/busybox:2")).await;
    let pod = site
        .until("web", "replaced", |pod| {
            let main = main_status(pod, "main");
            main["restartCount"] == 1 && main["ready"] == true
        })
        .await;
    let hash = "io.kubernetes.container.hash";
    assert_ne!(site.container("web", "main").await.annotations[hash], annotations[hash]);
    assert!(has_event(&site, "web", "Killing", "Container main definition changed, will be restarted"));
    assert_eq!(main_status(&pod, "beside")["restartCount"], 0);
    assert_eq!(site.container_id("web", "beside").await, before);
    site.cloud.delete("web", 2).await;
    site.until_gone("web").await;
}

#[tokio::test]
async fn t36_a_container_removed_behind_the_agent_comes_back() {
    let site = Site::start().await;
    site.run(with_main("web", "Always", &until_term(0))).await;
    let container_id = site.container_id("web", "main").await;
    // What `crictl rm -f` does.
    let mut client = site.containerd.client().await.unwrap();
    client.stop_container(cri::StopContainerRequest { container_id: container_id.clone(), timeout: 0 }).await.unwrap();
    // The agent may have taken the dead one away already.
    let _ = client.remove_container(cri::RemoveContainerRequest { container_id }).await;
    let pod = site
        .until("web", "back", |pod| {
            let main = main_status(pod, "main");
            main["restartCount"].as_i64() >= Some(1) && main["ready"] == true
        })
        .await;
    let count = main_status(&pod, "main")["restartCount"].as_u64().unwrap();
    assert!(site.log_dir("web").join(format!("main/{count}.log")).is_file());
    site.cloud.delete("web", 2).await;
    site.until_gone("web").await;
}
