//! Images: policies, back-off, credentials, order of pulls. The registry runs in the test's process and notes what it is asked.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use testkit::registry::{Registry, Scheme};

use crate::{Site, pod_with, site::is_ready};

fn with_image(name: &str, image: &str, policy: &str) -> Value {
    pod_with(name, |pod| {
        pod["spec"]["containers"][0]["image"] = json!(image);
        pod["spec"]["containers"][0]["imagePullPolicy"] = json!(policy);
    })
}

fn waiting(pod: &Value) -> (&str, &str) {
    let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
    (waiting["reason"].as_str().unwrap_or_default(), waiting["message"].as_str().unwrap_or_default())
}

fn waits_for(reason: &str) -> impl Fn(&Value) -> bool {
    move |pod| waiting(pod).0 == reason
}

/// Texts of the events of a pod with this reason.
fn texts(site: &Site, pod: &str, reason: &str) -> Vec<String> {
    let events = site.cloud.event_objects(pod).into_iter().filter(|event| event["reason"] == reason);
    events.map(|event| event["message"].as_str().unwrap_or_default().to_owned()).collect()
}

#[tokio::test]
async fn t21_pull_policies() {
    let registry = Registry::start().await.unwrap();
    let image = registry.push("team/app", "1").unwrap();
    let site = Site::start().await;
    let first = site.run(with_image("absent", &image, "IfNotPresent")).await;
    let pulls = registry.asked().len();
    assert!(pulls > 0, "it was not there");
    let id = first["status"]["containerStatuses"][0]["imageID"].as_str().unwrap().to_owned();
    assert!(id.contains("sha256:"), "{id}");
    let pulled = texts(&site, "absent", "Pulled").remove(0);
    let (before, after) = pulled.split_once(" in ").unwrap();
    assert_eq!(before, format!("Successfully pulled image {image:?}"));
    assert!(after.contains(" including waiting). Image size: ") && after.ends_with(" bytes."), "{pulled}");

    let second = site.run(with_image("present", &image, "IfNotPresent")).await;
    assert_eq!(registry.asked().len(), pulls, "no pull");
    assert_eq!(second["status"]["containerStatuses"][0]["imageID"], id);
    assert_eq!(texts(&site, "present", "Pulled"), [format!("Container image {image:?} already present on machine")]);

    site.run(with_image("always", &image, "Always")).await;
    let pulls_at_start = registry.asked().len();
    assert!(pulls_at_start > pulls, "pulled at its start");
    site.sh("always", "main", "kill -TERM 1").await;
    site.until("always", "restarted", |pod| pod["status"]["containerStatuses"][0]["restartCount"] == 1).await;
    assert!(registry.asked().len() > pulls_at_start, "and at its restart");

    let missing = format!("{}/team/other:1", registry.host());
    let pulls = registry.asked().len();
    site.cloud.create(with_image("never", &missing, "Never")).await;
    let never = site.until("never", "refused", waits_for("ErrImageNeverPull")).await;
    let text = format!("Container image {missing:?} is not present with pull policy of Never");
    assert_eq!(waiting(&never).1, text);
    assert_eq!(texts(&site, "never", "ErrImageNeverPull"), [text]);
    assert_eq!(registry.asked().len(), pulls);
}

#[tokio::test]
async fn t22_an_unreachable_registry_backs_off_per_pod() {
    let site = Site::start().await;
    // Nobody listens at port 1.
    let image = "127.0.0.1:1/team/app:1";
    site.cloud.create(with_image("one", image, "IfNotPresent")).await;
    let failed = site.until("one", "failed", waits_for("ErrImagePull")).await;
    let cause = waiting(&failed).1.to_owned();
    assert!(cause.starts_with("failed to pull and unpack image"), "the code Unknown is left out: {cause}");
    assert!(cause.contains("connection refused"), "{cause}");
    let waits = site.until("one", "waits", waits_for("ImagePullBackOff")).await;
    assert_eq!(waiting(&waits).1, format!("Back-off pulling image {image:?}: ErrImagePull: {cause}"));
    assert_eq!(texts(&site, "one", "BackOff"), [format!("Back-off pulling image {image:?}")]);
    assert_eq!(waits["status"]["phase"], "Pending");

    site.cloud.create(with_image("two", image, "IfNotPresent")).await;
    site.until("two", "tried at once", waits_for("ErrImagePull")).await;
    site.cloud.delete("one", 1).await;
    site.cloud.delete("two", 1).await;
    site.until_gone("one").await;
    site.until_gone("two").await;
}

#[tokio::test]
#[ignore = "slow: waits for the third step of the back-off"]
async fn t22_pulls_are_ten_twenty_and_forty_seconds_apart() {
    let registry = Registry::start().await.unwrap();
    let site = Site::start().await;
    site.cloud.create(with_image("one", &format!("{}/team/none:1", registry.host()), "IfNotPresent")).await;
    let limit = Duration::from_secs(150);
    let pulls = || {
        // A pull asks more than once within an instant.
        let mut times: Vec<_> = registry.asked().iter().map(|asked| asked.at).collect();
        times.dedup_by(|later, earlier| later.duration_since(*earlier) < Duration::from_secs(3));
        times
    };
    site.until_within(limit, "one", "four pulls", |_| pulls().len() >= 4).await;
    let times = pulls();
    for (gap, least) in times.windows(2).map(|pair| pair[1] - pair[0]).zip([10, 20, 40]) {
        let least = Duration::from_secs(least);
        assert!(gap >= least && gap < least + Duration::from_secs(20), "{gap:?} after {least:?}");
    }
}

fn docker_config(entries: &[(String, &str, &str)]) -> String {
    let auths: serde_json::Map<String, Value> = entries
        .iter()
        .map(|(registry, user, password)| {
            (registry.clone(), json!({"auth": STANDARD.encode(format!("{user}:{password}"))}))
        })
        .collect();
    json!({"auths": auths}).to_string()
}

#[tokio::test]
async fn t23_credentials_are_tried_one_after_the_other() {
    let registry = Registry::start().await.unwrap();
    let image = registry.push("team/app", "1").unwrap();
    registry.require("team/app", Scheme::Token, "good", "secret");
    let site = Site::start().await;
    let config =
        docker_config(&[(format!("{}/team", registry.host()), "wrong", "guess"), (registry.host(), "good", "secret")]);
    let secret = json!({
        "metadata": {"namespace": "default", "name": "login"}, "type": "kubernetes.io/dockerconfigjson",
        "data": {".dockerconfigjson": STANDARD.encode(config)},
    });
    site.cloud.create_other("default/secret/login", secret).await;
    let mut pod = with_image("private", &image, "IfNotPresent");
    pod["spec"]["imagePullSecrets"] = json!([{"name": "gone"}, {"name": "login"}]);
    site.run(pod).await;
    let users: Vec<_> = registry.asked().into_iter().filter_map(|asked| Some((asked.user?, asked.status))).collect();
    let first_good = users.iter().position(|user| *user == ("good".to_owned(), 200)).expect("the second was tried");
    assert!(users[..first_good].contains(&("wrong".to_owned(), 401)), "the more specific one first: {users:?}");
    assert_eq!(
        texts(&site, "private", "FailedToRetrieveImagePullSecret"),
        ["Unable to retrieve some image pull secrets (gone); attempting to pull the image may not succeed."]
    );

    // The node's own login, for a pod without any.
    let image = registry.push("node/app", "1").unwrap();
    registry.require("node/app", Scheme::Basic, "node", "pass");
    std::fs::create_dir_all(&site.settings.root_dir).unwrap();
    let config = docker_config(&[(registry.host(), "node", "pass")]);
    std::fs::write(site.settings.root_dir.join("config.json"), config).unwrap();
    site.run(with_image("plain", &image, "IfNotPresent")).await;
}

#[tokio::test]
async fn t24_pulls_are_serial() {
    let registry = Registry::start().await.unwrap();
    registry.slow_layers(Duration::from_millis(1500));
    let site = Site::start().await;
    let names = ["a", "b", "c"];
    for name in names {
        let image = registry.push(&format!("slow/{name}"), "1").unwrap();
        site.cloud.create(with_image(name, &image, "IfNotPresent")).await;
    }
    for name in names {
        site.until(name, "ready", is_ready).await;
    }
    assert_eq!(registry.most_at_once(), 1);
}

#[tokio::test]
async fn a_broken_image_stops_only_its_own_pod() {
    let registry = Registry::start().await.unwrap();
    let broken = registry.push("team/broken", "1").unwrap();
    registry.break_layers("team/broken");
    let good = registry.push("team/good", "1").unwrap();
    let site = Site::start().await;
    site.cloud.create(with_image("broken", &broken, "IfNotPresent")).await;
    site.run(with_image("good", &good, "IfNotPresent")).await;
    let failed = site.until("broken", "told", waits_for("ErrImagePull")).await;
    assert!(waiting(&failed).1.contains("digest"), "{}", waiting(&failed).1);
    site.cloud.delete("broken", 1).await;
    site.until_gone("broken").await;
}
