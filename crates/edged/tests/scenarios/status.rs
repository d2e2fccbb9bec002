//! What is told to the API, when, and how often.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    Site, pod, pod_with,
    site::{has, is_ready},
};

fn condition<'a>(pod: &'a Value, kind: &str) -> &'a Value {
    let conditions = pod["status"]["conditions"].as_array().unwrap();
    conditions.iter().find(|c| c["type"] == kind).unwrap()
}

fn restarts(pod: &Value) -> i64 {
    pod["status"]["containerStatuses"][0]["restartCount"].as_i64().unwrap_or_default()
}

#[tokio::test]
async fn t55_transition_times_change_on_flips_only() {
    let mut site = Site::start().await;
    let with_probe = pod_with("web", |pod| {
        pod["spec"]["containers"][0]["readinessProbe"] =
            json!({"exec": {"command": ["test", "-f", "/tmp/ok"]}, "periodSeconds": 1, "failureThreshold": 1});
    });
    site.cloud.create(with_probe).await;
    let before = site.until("web", "running", |pod| pod["status"]["phase"] == "Running").await;
    let (start, since) =
        (before["status"]["startTime"].clone(), condition(&before, "Ready")["lastTransitionTime"].clone());
    assert_eq!(condition(&before, "Ready")["status"], "False");
    // Times are in whole seconds: the next flip must show.
    sleep(Duration::from_secs(2)).await;
    site.sh("web", "main", "touch /tmp/ok").await;
    let ready = site.until("web", "ready", is_ready).await;
    let flipped = condition(&ready, "Ready")["lastTransitionTime"].clone();
    assert_ne!(flipped, since);
    assert_eq!(
        condition(&ready, "Initialized")["lastTransitionTime"],
        condition(&before, "Initialized")["lastTransitionTime"]
    );

    site.kill_edged().await;
    sleep(Duration::from_secs(2)).await;
    site.start_edged();
    // A restart of the container is told by the new edged, and is no flip of PodScheduled or Initialized.
    site.sh("web", "main", "kill -TERM 1").await;
    let again = site.until("web", "restarted", |pod| restarts(pod) == 1).await;
    assert_eq!(again["status"]["startTime"], start);
    for kind in ["Initialized", "PodScheduled", "PodReadyToStartContainers"] {
        assert_eq!(
            condition(&again, kind)["lastTransitionTime"],
            condition(&before, kind)["lastTransitionTime"],
            "{kind}"
        );
    }
}

/// Nothing is told about a pod that does not change, and what is told names only what changed.
async fn quiet_for(period: Duration) {
    let site = Site::start().await;
    site.run(pod("web")).await;
    for patch in site.cloud.patches("web") {
        assert_eq!(patch["metadata"], json!({"uid": "uid-web"}), "the UID alone, as precondition");
        let fields: Vec<_> = patch.as_object().unwrap().keys().cloned().collect();
        assert_eq!(fields, ["metadata", "status"]);
    }
    let told = site.cloud.patches("web").len();
    // The same status in a new version of the object asks for nothing either.
    site.cloud.push_again("web").await;
    sleep(period).await;
    assert_eq!(site.cloud.patches("web").len(), told);

    site.cloud.change("web", |pod| pod["metadata"]["labels"]["x"] = json!("1")).await;
    site.sh("web", "main", "kill -TERM 1").await;
    site.until("web", "restarted", |pod| restarts(pod) == 1 && is_ready(pod)).await;
    let patches = site.cloud.patches("web");
    let changed: Vec<_> = patches.last().unwrap()["status"].as_object().unwrap().keys().cloned().collect();
    assert!(changed.contains(&"containerStatuses".to_owned()), "{changed:?}");
    for same in ["phase", "startTime", "hostIP", "podIP", "qosClass"] {
        assert!(!changed.contains(&same.to_owned()), "{changed:?}");
    }
}

#[tokio::test]
async fn t56_an_unchanged_status_is_not_told() {
    quiet_for(Duration::from_secs(12)).await;
}

#[tokio::test]
#[ignore = "slow: looks for ten minutes"]
async fn t56_an_unchanged_status_is_not_told_for_ten_minutes() {
    quiet_for(Duration::from_secs(600)).await;
}

/// The container crashes while the cloud is away; afterwards its status is told once.
async fn offline_for(period: Duration) {
    let site = Site::start().await;
    site.run(pod("web")).await;
    let told = site.cloud.patches("web").len();
    site.cloud.set_offline(true);
    let begin = Instant::now();
    site.sh("web", "main", "kill -TERM 1").await;
    site.eventually("restarted locally", async || {
        let containers = site.containers("web").await;
        containers.first().is_some_and(|c| c.metadata.as_ref().unwrap().attempt == 1 && c.state == 1)
    })
    .await;
    sleep(period.saturating_sub(begin.elapsed())).await;
    assert_eq!(site.cloud.patches("web").len(), told, "nobody hears it");
    site.cloud.set_offline(false);
    let pod = site.until("web", "told", |pod| restarts(pod) == 1).await;
    assert!(has(&pod, "Ready"));
    assert_eq!(pod["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 0);
    sleep(Duration::from_secs(3)).await;
    assert_eq!(site.cloud.patches("web").len(), told + 1, "once");
    assert_eq!(restarts(&site.cloud.pod("web").unwrap()), 1);
}

#[tokio::test]
async fn t57_the_newest_status_is_told_once_after_an_outage() {
    offline_for(Duration::from_secs(8)).await;
}

#[tokio::test]
#[ignore = "slow: the link is down for five minutes"]
async fn t57_the_newest_status_is_told_once_after_five_minutes() {
    offline_for(Duration::from_secs(300)).await;
}
