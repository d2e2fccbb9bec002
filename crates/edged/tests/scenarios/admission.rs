//! What the node does not take, and what it makes room for.

use serde_json::{Value, json};

use crate::site::is_ready;
use crate::told::{condition, has_event, phase};
use crate::{Site, pod, pod_with};

fn requesting(name: &str, cpu: &str) -> Value {
    pod_with(name, |pod| pod["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": cpu}}))
}

/// Waits for the refusal of a pod, and sees that nothing was made for it.
async fn until_refused(site: &Site, name: &str, reason: &str, message: &str) {
    let pod = site.until(name, "refused", |pod| phase(pod) == "Failed").await;
    let status = &pod["status"];
    assert_eq!(
        (&status["reason"], &status["message"]),
        (&json!(reason), &json!(format!("Pod was rejected: {message}")))
    );
    assert!(status["startTime"].is_string() && status.get("containerStatuses").is_none(), "{status}");
    site.eventually("event", async || has_event(site, name, reason, message)).await;
    assert!(site.sandboxes(name).await.is_empty());
}

#[tokio::test]
async fn t71_a_pod_that_does_not_fit_is_refused_until_there_is_room() {
    let site = Site::start().await;
    let cpus = std::thread::available_parallelism().unwrap().get() as i64 * 1000;
    site.cloud.create(requesting("huge", "500")).await;
    let text = |requested: i64, used: i64| {
        format!("Node didn't have enough resource: cpu, requested: {requested}, used: {used}, capacity: {cpus}")
    };
    until_refused(&site, "huge", "OutOfcpu", &text(500_000, 0)).await;
    let most = cpus - 100;
    site.run(requesting("first", &format!("{most}m"))).await;
    site.cloud.create(requesting("second", &format!("{most}m"))).await;
    until_refused(&site, "second", "OutOfcpu", &text(most, most)).await;
    site.cloud.create(pod_with("elsewhere", |pod| pod["spec"]["nodeSelector"] = json!({"zone": "moon"}))).await;
    let text = "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector";
    until_refused(&site, "elsewhere", "NodeAffinity", text).await;
    // The labels that count are those of the node's object, which has changed meanwhile.
    site.cloud.create_other("null/node/n1", json!({"metadata": {"name": "n1", "labels": {"zone": "mars"}}})).await;
    site.run(pod_with("here", |pod| pod["spec"]["nodeSelector"] = json!({"zone": "mars"}))).await;
    site.cloud.delete("first", 2).await;
    site.until_gone("first").await;
    site.run(requesting("third", &format!("{most}m"))).await;
    for name in ["huge", "second", "elsewhere", "here", "third"] {
        site.cloud.delete(name, 2).await;
        site.until_gone(name).await;
    }
}

#[tokio::test]
async fn t71_pods_are_admitted_again_in_the_order_of_their_creation() {
    let mut site = Site::start().await;
    let made = |name: &str, at: &str| {
        pod_with(name, |pod| pod["metadata"]["creationTimestamp"] = json!(format!("2026-11-2{at}T00:00:00Z")))
    };
    site.run(made("young", "5")).await;
    site.run(made("a-old", "1")).await;
    site.run(made("z-older", "0")).await;
    site.kill_edged().await;
    // The node has shrunk: the pods that were made first keep their places, and what runs on is not touched.
    let kept = site.container_id("z-older", "main").await;
    site.settings.max_pods = 2;
    site.start_edged();
    let young = site.until("young", "refused", |pod| phase(pod) == "Failed").await;
    assert_eq!(young["status"]["reason"], "OutOfpods");
    assert_eq!(
        young["status"]["message"],
        "Pod was rejected: Node didn't have enough resource: pods, requested: 1, used: 2, capacity: 2"
    );
    assert!(is_ready(&site.cloud.pod("a-old").unwrap()) && is_ready(&site.cloud.pod("z-older").unwrap()));
    assert_eq!(site.container_id("z-older", "main").await, kept);
    for name in ["young", "a-old", "z-older"] {
        site.cloud.delete(name, 2).await;
        site.until_gone(name).await;
    }
}

#[tokio::test]
async fn t72_a_critical_static_pod_takes_the_place_of_another() {
    let site = Site::start_with(|settings| settings.max_pods = 1).await;
    site.run(pod("low")).await;
    site.cloud.create(pod("late")).await;
    site.until("late", "refused", |pod| pod["status"]["reason"] == "OutOfpods").await;
    let critical = pod_with("vip", |pod| {
        pod["metadata"]["annotations"] = json!({"kubernetes.io/config.source": "file"});
        pod["spec"]["priority"] = json!(2_000_001_000);
    });
    site.cloud.create(critical).await;
    let low = site.until("low", "preempted", |pod| phase(pod) == "Failed").await;
    assert_eq!(low["status"]["reason"], "Preempting");
    assert_eq!(low["status"]["message"], "Preempted in order to admit critical pod");
    let target = condition(&low, "DisruptionTarget");
    assert_eq!((&target["status"], &target["reason"]), (&json!("True"), &json!("TerminationByKubelet")));
    assert!(has_event(&site, "low", "Preempting", "Preempted in order to admit critical pod"));
    site.eventually("the critical pod runs", async || site.containers("vip").await.len() == 1).await;
    site.cloud.force_delete("vip").await;
    for name in ["low", "late"] {
        site.cloud.delete(name, 2).await;
        site.until_gone(name).await;
    }
    site.eventually("nothing left", async || site.sandboxes("vip").await.is_empty()).await;
}

#[tokio::test]
async fn a14_static_pods_of_one_name_start_one_after_the_other() {
    let site = Site::start().await;
    let from_file = |uid: &str| {
        pod_with("twin", |pod| {
            pod["metadata"]["uid"] = json!(uid);
            pod["metadata"]["annotations"] = json!({"kubernetes.io/config.source": "file"});
            pod["spec"]["terminationGracePeriodSeconds"] = json!(4);
            pod["spec"]["containers"][0]["command"][2] = json!("trap 'echo TERM' TERM; while :; do sleep 0.1; done");
        })
    };
    site.cloud.create(from_file("uid-twin")).await;
    site.eventually("the first runs", async || site.containers("twin").await.len() == 1).await;
    site.cloud.force_delete("twin").await;
    site.eventually("signal", async || site.log("twin", "main", 0).contains("TERM")).await;
    site.cloud.create(from_file("uid-second")).await;
    site.eventually("the second runs alone", async || {
        let sandboxes = site.sandboxes("twin").await;
        let uids: Vec<&str> = sandboxes.iter().map(|s| s.labels["io.kubernetes.pod.uid"].as_str()).collect();
        assert!(uids.len() < 2, "both at once: {uids:?}");
        uids == ["uid-second"] && site.containers("twin").await.len() == 1
    })
    .await;
    site.cloud.force_delete("twin").await;
    site.eventually("nothing left", async || site.sandboxes("twin").await.is_empty()).await;
}
