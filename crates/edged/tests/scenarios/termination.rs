//! The end of pods.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::told::{last_told, of, phase, script, second, until_term};
use crate::{Site, pod_with};

const DEAF: &str = "trap 'echo TERM' TERM; echo up; while :; do sleep 0.1; done";

#[tokio::test]
async fn t29_sidecars_stop_after_the_main_container_in_reverse() {
    let site = Site::start().await;
    let trio = pod_with("trio", |pod| {
        pod["spec"]["terminationGracePeriodSeconds"] = json!(30);
        let sidecar = |name: &str| {
            let mut made = script(name, &until_term(2));
            made["restartPolicy"] = json!("Always");
            made
        };
        pod["spec"]["initContainers"] = json!([sidecar("s1"), sidecar("s2")]);
        pod["spec"]["containers"] = json!([script("main", &until_term(2))]);
    });
    site.run(trio).await;
    let began = Instant::now();
    site.cloud.delete("trio", 30).await;
    site.until_gone("trio").await;
    assert!(began.elapsed() < Duration::from_secs(25), "{:?}", began.elapsed());
    let main = last_told(&site, "trio", "containerStatuses");
    let sidecars = last_told(&site, "trio", "initContainerStatuses");
    let end = |statuses: &Value, name: &str| {
        let terminated = &of(statuses, name)["state"]["terminated"];
        assert_eq!(terminated["exitCode"], 0, "{name}: {statuses}");
        second(&terminated["finishedAt"])
    };
    let (main, s2, s1) = (end(&main, "main"), end(&sidecars, "s2"), end(&sidecars, "s1"));
    // Each takes two seconds from its signal on; the times are whole seconds.
    assert!(s2 > main && s1 > s2, "main {main}, s2 {s2}, s1 {s1}");
}

#[tokio::test]
async fn t46_a_deaf_container_is_killed_and_the_handshake_keeps_its_order() {
    let site = Site::start().await;
    let deaf = pod_with("deaf", |pod| pod["spec"]["containers"][0]["command"][2] = json!(DEAF));
    site.run(deaf).await;
    let began = Instant::now();
    site.cloud.delete("deaf", 7).await;
    site.until("deaf", "failed", |pod| pod.is_null() || phase(pod) == "Failed").await;
    let took = began.elapsed().as_secs_f64();
    assert!((7.0..11.0).contains(&took), "{took}");
    site.until_gone("deaf").await;
    let log = site.cloud.log();
    let failed = log.iter().position(|(operation, resource, content)| {
        operation == "patch"
            && resource == "default/podpatch/deaf"
            && content.as_str().is_some_and(|text| text.contains("\"phase\":\"Failed\""))
    });
    let deletes: Vec<_> = log.iter().enumerate().filter(|(_, (operation, _, _))| operation == "delete").collect();
    let [(at, (_, resource, content))] = deletes[..] else { panic!("one delete: {deletes:?}") };
    assert!(failed.unwrap() < at);
    assert_eq!(resource, "default/pod/deaf");
    assert_eq!(*content, json!({"gracePeriodSeconds": 0, "preconditions": {"uid": "uid-deaf"}}));
}

#[tokio::test]
async fn t47_a_main_container_that_ends_well_succeeds() {
    let site = Site::start().await;
    site.run(pod_with("well", |pod| pod["spec"]["containers"][0]["command"][2] = json!(until_term(0)))).await;
    site.cloud.delete("well", 20).await;
    site.until_gone("well").await;
    assert_eq!(last_told(&site, "well", "phase"), "Succeeded");
    let statuses = last_told(&site, "well", "containerStatuses");
    assert_eq!(statuses[0]["state"]["terminated"]["reason"], "Completed");
}

#[tokio::test]
async fn t48_a_shorter_grace_brings_the_kill_forward() {
    let site = Site::start().await;
    let deaf = pod_with("deaf", |pod| {
        pod["spec"]["terminationGracePeriodSeconds"] = json!(60);
        pod["spec"]["containers"][0]["command"][2] = json!(DEAF);
        // Begun once, and not begun again for the shorter grace.
        pod["spec"]["containers"][0]["lifecycle"] =
            json!({"preStop": {"exec": {"command": ["sh", "-c", "echo hook >/proc/1/fd/1; sleep 2"]}}});
    });
    site.run(deaf).await;
    let began = Instant::now();
    site.cloud.delete("deaf", 60).await;
    site.eventually("hook", async || site.log("deaf", "main", 0).contains("hook")).await;
    site.cloud.delete("deaf", 5).await;
    site.eventually("signal", async || site.log("deaf", "main", 0).contains("TERM")).await;
    assert_eq!(site.log("deaf", "main", 0).matches("hook").count(), 1);
    site.until_gone("deaf").await;
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

#[tokio::test]
async fn t49_a_pod_that_vanishes_gets_its_grace_and_no_patch() {
    let site = Site::start().await;
    let deaf = pod_with("deaf", |pod| {
        pod["spec"]["terminationGracePeriodSeconds"] = json!(5);
        pod["spec"]["containers"][0]["command"][2] = json!(DEAF);
    });
    site.run(deaf).await;
    let began = Instant::now();
    site.cloud.force_delete("deaf").await;
    site.eventually("signal", async || site.log("deaf", "main", 0).contains("TERM")).await;
    site.until_gone("deaf").await;
    assert!(began.elapsed() >= Duration::from_secs(5), "the spec's grace: {:?}", began.elapsed());
    site.eventually("no directory left", async || !site.pod_dir("uid-deaf").exists()).await;
    let told = site.cloud.patches("deaf").len();
    assert!(site.cloud.log().iter().all(|(operation, _, _)| operation != "delete"));
    // A loop of patches would show itself within one retry interval of the reporter.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(site.cloud.patches("deaf").len(), told);
}

#[tokio::test]
async fn t50_a_namesake_is_handled_on_its_own() {
    let site = Site::start().await;
    let first = pod_with("twin", |pod| {
        pod["spec"]["terminationGracePeriodSeconds"] = json!(6);
        pod["spec"]["containers"][0]["command"][2] = json!(DEAF);
    });
    site.run(first).await;
    site.cloud.delete("twin", 6).await;
    site.eventually("signal", async || site.log("twin", "main", 0).contains("TERM")).await;
    // The API forgets the first one by force, and the same name comes again.
    site.cloud.force_delete("twin").await;
    let second = pod_with("twin", |pod| pod["metadata"]["uid"] = json!("uid-second"));
    site.run(second).await;
    let uids: Vec<String> =
        site.sandboxes("twin").await.iter().map(|s| s.labels["io.kubernetes.pod.uid"].clone()).collect();
    assert!(uids.contains(&"uid-twin".to_owned()), "the first one is still being stopped: {uids:?}");
    let marks = site.cloud.patches("twin").len();
    site.eventually("only the second is left", async || site.sandboxes("twin").await.len() == 1).await;
    let late = site.cloud.patches("twin").split_off(marks);
    assert!(late.iter().all(|patch| patch["metadata"]["uid"] != "uid-second"), "{late:#?}");
    let twin = site.cloud.pod("twin").unwrap();
    assert_eq!((phase(&twin), &twin["status"]["containerStatuses"][0]["restartCount"]), ("Running", &json!(0)));
    assert!(twin["metadata"].get("deletionTimestamp").is_none());
    site.cloud.delete("twin", 2).await;
    site.until_gone("twin").await;
}

#[tokio::test]
async fn t52_a_stuck_pod_ends_in_seconds() {
    let site = Site::start().await;
    let mount = pod_with("mount", |pod| {
        pod["spec"]["volumes"] = json!([{"name": "c", "configMap": {"name": "none"}}]);
        pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "c", "mountPath": "/c"}]);
    });
    let pull = pod_with("pull", |pod| pod["spec"]["containers"][0]["image"] = json!("127.0.0.1:1/no/such:1"));
    site.cloud.create(mount).await;
    site.cloud.create(pull).await;
    site.eventually("told", async || site.cloud.events("mount").iter().any(|reason| reason == "FailedMount")).await;
    site.until("pull", "told", |pod| {
        let reason = &pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"];
        reason == "ErrImagePull" || reason == "ImagePullBackOff"
    })
    .await;
    let began = Instant::now();
    site.cloud.delete("mount", 30).await;
    site.cloud.delete("pull", 30).await;
    for name in ["mount", "pull"] {
        site.until_gone(name).await;
        assert_eq!(last_told(&site, name, "phase"), "Failed");
    }
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert!(!site.pod_dir("uid-mount").exists() && !site.pod_dir("uid-pull").exists());
}
