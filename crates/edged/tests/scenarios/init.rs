//! Init containers and sidecars.

use serde_json::{Value, json};

use crate::site::has;
use crate::told::{init_status, main_status, phase, script, second, until_term, waiting};
use crate::{Site, pod_with};

fn with_init(name: &str, policy: &str, init: Vec<Value>, main: &str) -> Value {
    pod_with(name, |pod| {
        pod["spec"]["restartPolicy"] = json!(policy);
        pod["spec"]["initContainers"] = json!(init);
        pod["spec"]["containers"] = json!([script("main", main)]);
    })
}

fn sidecar(name: &str, text: &str) -> Value {
    let mut made = script(name, text);
    made["restartPolicy"] = json!("Always");
    made
}

#[tokio::test]
async fn t25_init_containers_run_one_by_one_before_main() {
    let site = Site::start().await;
    let init = vec![script("a", "sleep 1"), script("b", "sleep 1")];
    let pod = site.run(with_init("web", "Always", init, &until_term(0))).await;
    let ended = |name| {
        let state = &init_status(&pod, name)["state"]["terminated"];
        assert_eq!(state["reason"], "Completed");
        (second(&state["startedAt"]), second(&state["finishedAt"]))
    };
    let (a, b) = (ended("a"), ended("b"));
    let main = second(&main_status(&pod, "main")["state"]["running"]["startedAt"]);
    assert!(a.1 > a.0 && b.0 >= a.1 && b.1 > b.0 && main >= b.1, "a {a:?}, b {b:?}, main {main}");
    let patches = site.cloud.patches("web");
    let first = |kind: &str| {
        let is_true = |patch: &Value| {
            let conditions = patch["status"]["conditions"].as_array().cloned().unwrap_or_default();
            conditions.iter().any(|c| c["type"] == kind && c["status"] == "True")
        };
        patches.iter().position(is_true).unwrap()
    };
    assert!(first("PodReadyToStartContainers") < first("Initialized"));
    site.cloud.delete("web", 2).await;
    site.until_gone("web").await;
}

#[tokio::test]
async fn t26_a_failing_init_container_ends_a_never_pod_and_backs_off_otherwise() {
    let site = Site::start().await;
    let bad = || vec![script("bad", "exit 1")];
    site.cloud.create(with_init("never", "Never", bad(), &until_term(0))).await;
    site.cloud.create(with_init("again", "OnFailure", bad(), &until_term(0))).await;
    let never = site.until("never", "failed", |pod| phase(pod) == "Failed").await;
    assert_eq!(init_status(&never, "bad")["state"]["terminated"]["exitCode"], 1);
    let again = site.until("again", "back-off", |pod| waiting(init_status(pod, "bad")) == "CrashLoopBackOff").await;
    assert_eq!(phase(&again), "Pending");
    assert_eq!(init_status(&again, "bad")["restartCount"], 1);
    assert_eq!(init_status(&again, "bad")["lastState"]["terminated"]["exitCode"], 1);
    assert_eq!(waiting(main_status(&again, "main")), "PodInitializing");
    for name in ["never", "again"] {
        let containers = site.containers(name).await;
        assert!(containers.iter().all(|c| c.labels["io.kubernetes.container.name"] == "bad"), "{name}");
        site.cloud.delete(name, 2).await;
    }
    for name in ["never", "again"] {
        site.until_gone(name).await;
    }
}

#[tokio::test]
async fn t27_main_waits_until_the_sidecar_has_started() {
    let site = Site::start().await;
    let mut side = sidecar("side", &until_term(0));
    side["startupProbe"] =
        json!({"exec": {"command": ["test", "-f", "/tmp/up"]}, "periodSeconds": 1, "failureThreshold": 60});
    site.cloud.create(with_init("web", "Always", vec![side], &until_term(0))).await;
    site.until("web", "the sidecar runs", |pod| init_status(pod, "side")["state"]["running"].is_object()).await;
    site.eventually("two probes have failed", async || {
        site.cloud.events("web").iter().filter(|reason| *reason == "Unhealthy").count() >= 2
    })
    .await;
    let waits = site.cloud.pod("web").unwrap();
    assert_eq!(init_status(&waits, "side")["started"], false);
    assert!(!has(&waits, "Initialized") && phase(&waits) == "Pending");
    assert_eq!(site.containers("web").await.len(), 1);
    assert_eq!(site.sh("web", "side", "touch /tmp/up").await.0, 0);
    let pod = site.until("web", "ready", |pod| has(pod, "Ready")).await;
    assert!(has(&pod, "Initialized"));
    assert_eq!(init_status(&pod, "side")["started"], true);
    assert_eq!(main_status(&pod, "main")["ready"], true);
    site.cloud.delete("web", 2).await;
    site.until_gone("web").await;
}

#[tokio::test]
async fn t28_a_sidecar_does_not_keep_a_job_alive() {
    let site = Site::start().await;
    site.cloud.create(with_init("job", "Never", vec![sidecar("side", &until_term(0))], "sleep 2")).await;
    let pod = site.until("job", "succeeded", |pod| phase(pod) == "Succeeded").await;
    assert_eq!(main_status(&pod, "main")["state"]["terminated"]["exitCode"], 0);
    assert!(init_status(&pod, "side")["state"]["terminated"].is_object());
    site.cloud.delete("job", 2).await;
    site.until_gone("job").await;
}

#[tokio::test]
async fn t30_a_sidecar_that_ends_is_restarted_even_in_a_never_pod() {
    let site = Site::start().await;
    site.cloud.create(with_init("web", "Never", vec![sidecar("side", "sleep 2")], &until_term(0))).await;
    let pod = site
        .until("web", "restarted", |pod| {
            let side = init_status(pod, "side");
            side["restartCount"].as_i64() >= Some(1) && main_status(pod, "main")["ready"] == true
        })
        .await;
    assert_eq!(phase(&pod), "Running");
    assert_eq!(main_status(&pod, "main")["restartCount"], 0);
    site.cloud.delete("web", 2).await;
    site.until_gone("web").await;
}
