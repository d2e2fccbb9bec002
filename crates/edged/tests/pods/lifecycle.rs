//! One pod from creation to deletion.

use serde_json::json;
use testkit::fake_cri::State;

use crate::{Node, pod, pod_with};

#[tokio::test]
async fn a_pod_starts_and_is_reported_ready() {
    let node = Node::started().await;
    node.cloud.create(pod("web")).await;
    node.until("ready", || node.ready("web")).await;
    let status = node.status("web");
    assert_eq!(status["phase"], "Running");
    assert_eq!(status["hostIP"], "192.0.2.2");
    assert!(status["podIP"].as_str().is_some_and(|ip| !ip.is_empty()));
    assert_eq!(status["containerStatuses"][0]["restartCount"], 0);
    assert!(status["containerStatuses"][0]["containerID"].as_str().unwrap().contains("://"));
    let kinds: Vec<_> = status["conditions"].as_array().unwrap().iter().map(|c| c["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"]);
    assert!(node.cloud.patches("web").iter().all(|patch| patch["metadata"]["uid"] == "uid-web"));
    node.until("events", || node.cloud.events("web").iter().any(|reason| reason == "Started")).await;
    assert!(node.cloud.events("web").iter().any(|reason| reason == "Created"));
    let sandboxes = node.cri.sandboxes();
    assert_eq!((sandboxes.len(), sandboxes[0].config.metadata.as_ref().unwrap().attempt), (1, 0));
}

#[tokio::test]
async fn a_pod_of_another_node_is_left_alone() {
    let node = Node::started().await;
    node.cloud.create(pod_with("far", |pod| pod["spec"]["nodeName"] = json!("n2"))).await;
    node.cloud.create(pod("near")).await;
    node.until_runs("near", 1).await;
    assert!(node.cri.sandboxes().iter().all(|s| s.config.metadata.as_ref().unwrap().name == "near"));
}

#[tokio::test]
async fn init_containers_run_first_and_in_order() {
    let node = Node::started().await;
    node.cri.exit_on_start("one", 0);
    node.cri.exit_on_start("two", 0);
    let containers = json!([{"name": "one", "image": "busybox:1"}, {"name": "two", "image": "busybox:1"}]);
    node.cloud.create(pod_with("web", |pod| pod["spec"]["initContainers"] = containers)).await;
    node.until("ready", || node.ready("web")).await;
    let started: Vec<String> = node.cri.containers().iter().map(|c| c.name().to_owned()).collect();
    assert_eq!(started, ["one", "two", "main"]);
}

#[tokio::test]
async fn a_crashing_container_backs_off_and_keeps_its_last_state() {
    let node = Node::started().await;
    node.cri.exit_on_start("main", 3);
    node.cloud.create(pod("crash")).await;
    node.until("back-off", || node.waiting_reason("crash") == "CrashLoopBackOff").await;
    let status = node.status("crash");
    let container = &status["containerStatuses"][0];
    assert_eq!(status["phase"], "Running");
    assert_eq!(container["lastState"]["terminated"]["exitCode"], 3);
    assert_eq!(container["restartCount"], 1, "the first restart comes at once");
    let message = container["state"]["waiting"]["message"].as_str().unwrap();
    assert_eq!(message, "back-off 10s restarting failed container=main pod=crash_default(uid-crash)");
    node.until("event", || node.cloud.events("crash").iter().any(|reason| reason == "BackOff")).await;
    // The cause is cured: the next attempt comes after the delay and not before.
    let before = std::time::Instant::now();
    node.cri.keep_running("main");
    node.until("ready again", || node.ready("crash")).await;
    assert!(before.elapsed() > std::time::Duration::from_secs(7), "{:?}", before.elapsed());
    assert_eq!(node.status("crash")["containerStatuses"][0]["restartCount"], 2);
    let dead = node.cri.containers().iter().filter(|c| c.state == State::Exited).count();
    assert_eq!(dead, 1, "only the newest dead instance is kept");
}

#[tokio::test]
async fn a_job_like_pod_succeeds_and_is_not_run_again() {
    let mut node = Node::started().await;
    node.cri.exit_on_start("main", 0);
    node.cloud.create(pod_with("job", |pod| pod["spec"]["restartPolicy"] = json!("Never"))).await;
    node.until("succeeded", || node.phase("job") == "Succeeded").await;
    assert!(!node.ready("job"));
    node.kill().await;
    node.start();
    node.cloud.create(pod_with("other", |pod| pod["spec"]["containers"][0]["name"] = json!("stays"))).await;
    node.until_runs("other", 1).await;
    assert_eq!(node.cri.containers().iter().filter(|c| c.pod == "job").count(), 1);
    node.cloud.delete("job", 30).await;
    node.until("deleted", || node.cloud.pod("job").is_none()).await;
    node.until("released", || node.cri.containers().iter().all(|c| c.pod != "job")).await;
}

#[tokio::test]
async fn deletion_goes_by_the_handshake() {
    let node = Node::started().await;
    node.cloud.create(pod("web")).await;
    node.until("ready", || node.ready("web")).await;
    node.cri.hang("RemovePodSandbox");
    node.cloud.delete("web", 5).await;
    node.until("failed", || node.phase("web") == "Failed").await;
    node.cri.wait_until(crate::PATIENCE, |cri| cri.count("RemovePodSandbox") > 0).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert!(node.cloud.pod("web").is_some(), "not before everything of it is released");
    node.cri.release("RemovePodSandbox");
    node.until("deleted", || node.cloud.pod("web").is_none()).await;
    assert!(node.cri.sandboxes().is_empty() && node.cri.containers().is_empty());
    let log = node.cloud.log();
    let deletes: Vec<_> = log.iter().filter(|(operation, _, _)| operation == "delete").collect();
    assert_eq!(deletes.len(), 1);
    assert_eq!(deletes[0].1, "default/pod/web");
    assert_eq!(deletes[0].2, json!({"gracePeriodSeconds": 0, "preconditions": {"uid": "uid-web"}}));
    let last = node.cloud.patches("web").pop().unwrap();
    let delete_at = log.iter().position(|(operation, _, _)| operation == "delete").unwrap();
    let patch_at = log.iter().rposition(|(operation, _, _)| operation == "patch").unwrap();
    assert!(patch_at < delete_at, "the final status comes before the delete call");
    assert_eq!(last["status"]["phase"].as_str().unwrap_or("Failed"), "Failed");
    node.until("event", || node.cloud.events("web").iter().any(|reason| reason == "Killing")).await;
}

#[tokio::test]
async fn a_shorter_grace_brings_the_kill_forward() {
    let node = Node::started().await;
    node.cri.ignore_term("main");
    node.cloud.create(pod_with("slow", |pod| pod["spec"]["terminationGracePeriodSeconds"] = json!(600))).await;
    node.until_runs("slow", 1).await;
    node.cloud.delete("slow", 600).await;
    node.until("asked to stop", || node.cri.count("StopContainer") > 0).await;
    node.cloud.delete("slow", 1).await;
    node.until("deleted", || node.cloud.pod("slow").is_none()).await;
}

#[tokio::test]
async fn a_forced_deletion_stops_and_removes() {
    let node = Node::started().await;
    node.cloud.create(pod("web")).await;
    node.until("ready", || node.ready("web")).await;
    node.cloud.force_delete("web").await;
    node.until("nothing left", || node.cri.sandboxes().is_empty() && node.cri.containers().is_empty()).await;
}

#[tokio::test]
async fn a_pod_deleted_before_it_could_start_fails_and_goes() {
    let node = Node::started().await;
    node.cri.set_readiness(None, Some("cni plugin not initialized"));
    node.cloud.create(pod("stuck")).await;
    node.until("event", || node.cloud.events("stuck").iter().any(|reason| reason == "NetworkNotReady")).await;
    node.cloud.delete("stuck", 30).await;
    node.until("deleted", || node.cloud.pod("stuck").is_none()).await;
    assert!(node.cri.sandboxes().is_empty());
}

#[tokio::test]
async fn the_same_name_with_another_uid_is_another_pod() {
    let node = Node::started().await;
    node.cri.ignore_term("main");
    node.cloud.create(pod("web")).await;
    node.until("ready", || node.ready("web")).await;
    node.cloud.force_delete("web").await;
    node.cloud.create(pod_with("web", |pod| pod["metadata"]["uid"] = json!("uid-second"))).await;
    node.until("the second is ready", || node.ready("web")).await;
    node.until("only the second is left", || {
        let uids: Vec<_> = node.cri.sandboxes().iter().map(|s| s.config.metadata.clone().unwrap().uid).collect();
        uids == ["uid-second"]
    })
    .await;
    assert_eq!(node.runs("web"), 1);
}

#[tokio::test]
async fn a_missing_image_is_told_and_cured() {
    let node = Node::started().await;
    node.cloud
        .create(pod_with("img", |pod| pod["spec"]["containers"][0]["image"] = json!("registry.local/no/such:1")))
        .await;
    node.until("pull failed", || ["ErrImagePull", "ImagePullBackOff"].contains(&node.waiting_reason("img").as_str()))
        .await;
    assert_eq!(node.phase("img"), "Pending");
    node.until("event", || node.cloud.events("img").iter().any(|reason| reason == "Failed")).await;
    node.until("back-off", || node.waiting_reason("img") == "ImagePullBackOff").await;
    node.cloud.delete("img", 30).await;
    node.until("deleted", || node.cloud.pod("img").is_none()).await;
}

#[tokio::test]
async fn a_hanging_pull_does_not_hold_up_the_deletion() {
    let node = Node::started().await;
    node.cri.add_to_registry("slow.local/image:1");
    node.cri.hang("PullImage");
    node.cloud
        .create(pod_with("slow", |pod| pod["spec"]["containers"][0]["image"] = json!("slow.local/image:1")))
        .await;
    node.cri.wait_until(crate::PATIENCE, |cri| cri.count("PullImage") > 0).await.unwrap();
    node.cloud.delete("slow", 30).await;
    node.until("deleted", || node.cloud.pod("slow").is_none()).await;
}

#[tokio::test]
async fn a_sandbox_that_cannot_be_made_is_told_and_repeated() {
    let node = Node::started().await;
    node.cri.fail_next("RunPodSandbox", "no more addresses");
    node.cloud.create(pod("web")).await;
    node.until("event", || node.cloud.events("web").iter().any(|reason| reason == "FailedCreatePodSandBox")).await;
    node.until("ready", || node.ready("web")).await;
}

#[tokio::test]
async fn a_changed_image_restarts_only_that_container() {
    let node = Node::started().await;
    node.cri.add_image("busybox:2");
    let second = json!({"name": "side", "image": "busybox:1"});
    node.cloud.create(pod_with("web", |pod| pod["spec"]["containers"].as_array_mut().unwrap().push(second))).await;
    node.until("ready", || node.ready("web")).await;
    node.cloud.change("web", |pod| pod["spec"]["containers"][0]["image"] = json!("busybox:2")).await;
    node.until("restarted", || node.status("web")["containerStatuses"][0]["restartCount"] == 1 && node.ready("web"))
        .await;
    assert_eq!(node.status("web")["containerStatuses"][1]["restartCount"], 0);
}

#[tokio::test]
async fn an_unsupported_field_is_told_and_the_pod_runs() {
    let node = Node::started().await;
    let resources = json!({"limits": {"cpu": "1"}});
    node.cloud.create(pod_with("web", |pod| pod["spec"]["resources"] = resources)).await;
    node.until("ready", || node.ready("web")).await;
    node.until("event", || node.cloud.events("web").iter().any(|reason| reason == "UnsupportedField")).await;
    node.cloud.create(pod_with("userns", |pod| pod["spec"]["hostUsers"] = json!(false))).await;
    node.until("refused", || node.waiting_reason("userns") == "CreateContainerConfigError").await;
    assert_eq!(node.runs("userns"), 0);
}

#[tokio::test]
async fn an_active_deadline_ends_the_pod() {
    let node = Node::started().await;
    node.cloud.create(pod_with("short", |pod| pod["spec"]["activeDeadlineSeconds"] = json!(1))).await;
    node.until("failed", || node.phase("short") == "Failed").await;
    assert_eq!(node.status("short")["reason"], "DeadlineExceeded");
    assert_eq!(node.runs("short"), 0);
}

#[tokio::test]
async fn a_pod_waits_for_its_config_map_and_starts_when_it_comes() {
    let node = Node::started().await;
    let volumes = json!([{"name": "c", "configMap": {"name": "late"}}]);
    let volume_pod = pod_with("volume", |pod| {
        pod["spec"]["volumes"] = volumes;
        pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "c", "mountPath": "/c"}]);
    });
    node.cloud.create(volume_pod).await;
    let env = json!([{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "late", "key": "a"}}}]);
    node.cloud.create(pod_with("env", |pod| pod["spec"]["containers"][0]["env"] = env)).await;
    node.until("told", || node.cloud.events("volume").iter().any(|reason| reason == "FailedMount")).await;
    node.until("told", || node.waiting_reason("env") == "CreateContainerConfigError").await;
    assert_eq!(node.runs("volume") + node.runs("env"), 0);
    let late = json!({"metadata": {"name": "late", "namespace": "default"}, "data": {"a": "1"}});
    let before = std::time::Instant::now();
    node.cloud.create_other("default/configmap/late", late).await;
    node.until("ready", || node.ready("volume") && node.ready("env")).await;
    assert!(
        before.elapsed() < std::time::Duration::from_secs(5),
        "the ConfigMap itself is the signal, not the next retry"
    );
}

#[tokio::test]
async fn a_message_that_cannot_be_read_stops_nothing() {
    let node = Node::started().await;
    node.cloud.create(pod_with("bad", |pod| pod["spec"]["containers"] = json!("none"))).await;
    node.cloud.create(pod("good")).await;
    node.until("ready", || node.ready("good")).await;
    node.cloud.push_raw("delete", "default/pod/good", json!({"metadata": {"name": "good"}})).await;
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    assert_eq!(node.runs("good"), 1, "a deletion without uid ends nothing that the store still has");
}

#[tokio::test]
async fn a_pod_at_rest_costs_nothing() {
    let node = Node::started().await;
    node.cloud.create(pod("web")).await;
    node.until("ready", || node.ready("web")).await;
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    node.cri.clear_calls();
    let told = node.cloud.patches("web").len();
    tokio::time::sleep(std::time::Duration::from_secs(4)).await;
    let calls: Vec<(&str, usize)> = ["ListContainers", "ListPodSandbox", "ContainerStatus", "PodSandboxStatus"]
        .map(|call| (call, node.cri.count(call)))
        .into();
    assert!(calls.iter().all(|(_, count)| *count == 0), "{calls:?}");
    assert_eq!(node.cloud.patches("web").len(), told, "nothing changed, nothing is told");
}
