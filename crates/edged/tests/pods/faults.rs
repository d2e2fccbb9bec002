//! A runtime that hangs, fails or talks nonsense, a disk that is full, clocks that disagree: what it touches is told, and the
//! other pods go on.

use std::time::Duration;

use rustix::mount::{MountFlags, mount, mount_remount};
use serde_json::json;
use testkit::fake_cri::State;

use crate::{Node, pod, pod_with};

const DAY: i64 = 86_400;

#[tokio::test]
async fn a_call_that_hangs_ends_and_other_pods_go_on() {
    let mut node = Node::new().await;
    node.start_with(|settings| settings.runtime_request_timeout = Duration::from_secs(1));
    node.cri.hang_next("CreateContainer");
    node.cloud.create(pod("hangs")).await;
    node.cri.wait_until(crate::PATIENCE, |cri| cri.count("CreateContainer") == 1).await.unwrap();
    node.cloud.create(pod("other")).await;
    node.until("the other runs", || node.ready("other")).await;
    let told = json!({"reason": "CreateContainerError", "message": "CreateContainer did not answer within 1s"});
    node.until("told", || node.waited("hangs").contains(&told)).await;
    node.until("it is tried again", || node.ready("hangs")).await;
    assert_eq!(node.cri.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn lists_that_hang_are_survived() {
    let mut node = Node::new().await;
    node.start_with(|settings| settings.runtime_request_timeout = Duration::from_secs(1));
    node.cloud.create(pod("web")).await;
    node.until("ready", || node.ready("web")).await;
    node.cri.hang("ListContainers");
    node.cloud.create(pod("second")).await;
    node.cri.wait_until(crate::PATIENCE, |cri| cri.count("ListContainers") > 8).await.unwrap();
    node.cri.release("ListContainers");
    node.until("second", || node.ready("second")).await;
    assert_eq!((node.runs("web"), node.runs("second")), (1, 1));
    assert_eq!(node.cri.stopped_pods(), Vec::<String>::new());
}

#[tokio::test]
async fn every_call_may_fail_once() {
    let node = Node::started().await;
    for call in
        ["RunPodSandbox", "PodSandboxStatus", "CreateContainer", "StartContainer", "ListContainers", "ContainerStatus"]
    {
        node.cri.fail_next(call, "the disk is on fire");
    }
    node.cloud.create(pod("web")).await;
    // One of them in each attempt.
    node.until_within(Duration::from_secs(90), "ready", || node.ready("web")).await;
    for call in ["StopContainer", "StopPodSandbox", "RemoveContainer", "RemovePodSandbox", "ListPodSandbox"] {
        node.cri.fail_next(call, "the disk is on fire");
    }
    node.cloud.delete("web", 1).await;
    node.until_within(Duration::from_secs(90), "deleted", || node.cloud.pod("web").is_none()).await;
    node.until("nothing left", || node.cri.sandboxes().is_empty() && node.cri.containers().is_empty()).await;
    assert_eq!(node.cri.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn lists_that_are_empty_for_a_moment_make_no_duplicates() {
    let node = Node::started().await;
    node.cloud.create(pod("web")).await;
    node.until("ready", || node.ready("web")).await;
    node.cri.empty_lists(10);
    node.cloud.change("web", |pod| pod["metadata"]["labels"] = json!({"look": "again"})).await;
    node.cri.wait_until(crate::PATIENCE, |cri| cri.lists_left() == 0).await.unwrap();
    node.until("as before", || node.ready("web") && node.runs("web") == 1 && node.cri.sandboxes().len() == 1).await;
    assert_eq!(node.cri.violations(), Vec::<String>::new());
    assert_eq!(node.status("web")["containerStatuses"][0]["restartCount"], 0);
}

#[tokio::test]
async fn unknown_ids_in_lists_are_passed_over() {
    let node = Node::started().await;
    node.cri.list_ghosts(true);
    node.cloud.create(pod("web")).await;
    node.until("ready", || node.ready("web")).await;
    node.cloud.delete("web", 1).await;
    node.until("deleted", || node.cloud.pod("web").is_none()).await;
}

/// The runtime's times are a day off from the agent's clock, which is what a clock that was set looks like.
async fn clocks_disagree(offset: i64) {
    let node = Node::started().await;
    node.cloud.create(pod("before")).await;
    node.until("ready", || node.ready("before")).await;
    node.cri.shift_times(offset);
    node.cloud.create(pod_with("deadline", |pod| pod["spec"]["activeDeadlineSeconds"] = json!(3600))).await;
    node.cri.set_exec_result("main", 1, "no");
    let probe =
        json!({"exec": {"command": ["x"]}, "initialDelaySeconds": 60, "periodSeconds": 1, "failureThreshold": 1});
    node.cloud.create(pod_with("patient", |pod| pod["spec"]["containers"][0]["livenessProbe"] = probe)).await;
    node.until("ready", || node.ready("deadline") && node.ready("patient")).await;
    // The first restart comes at once, the second after ten seconds: neither a day later nor in a tight loop.
    node.cri.exit_named("before", "main", 3).unwrap();
    node.until("restarted", || {
        node.runs("before") == 1 && node.status("before")["containerStatuses"][0]["restartCount"] == 1
    })
    .await;
    node.cri.exit_named("before", "main", 3).unwrap();
    node.until("backs off", || node.waiting_reason("before") == "CrashLoopBackOff").await;
    node.until("restarted again", || node.runs("before") == 1).await;
    let newest = node.cri.containers().into_iter().filter(|c| c.runs("before", "main")).count();
    assert_eq!(newest, 1);
    assert_eq!(node.cri.violations(), Vec::<String>::new());
    let status = node.status("patient");
    assert_eq!(status["containerStatuses"][0]["restartCount"], 0, "the initial delay has not passed");
    assert_eq!(node.phase("deadline"), "Running");
    node.cloud.delete("before", 1).await;
    node.until("deleted", || node.cloud.pod("before").is_none()).await;
}

#[tokio::test]
async fn a_clock_set_back_by_a_day() {
    // What the runtime made before now seems to be of tomorrow, what it makes then of today.
    clocks_disagree(-DAY).await;
}

#[tokio::test]
async fn a_clock_set_forward_by_a_day() {
    clocks_disagree(DAY).await;
}

#[tokio::test]
async fn a_node_without_network_runs_again_what_it_has() {
    let node = Node::started().await;
    node.cri.add_to_registry("busybox:1");
    node.cloud.create(pod_with("web", |pod| pod["spec"]["containers"][0]["imagePullPolicy"] = json!("Always"))).await;
    node.until("ready", || node.ready("web")).await;
    let cut_off = "failed to resolve reference: dial tcp 192.0.2.1:443: connect: network is unreachable";
    node.cri.fail_next("PullImage", cut_off);
    node.cri.exit_named("web", "main", 1).unwrap();
    node.until("runs again", || {
        node.runs("web") == 1 && node.status("web")["containerStatuses"][0]["restartCount"] == 1
    })
    .await;
    let told = node.cloud.event_objects("web").iter().any(|event| event["message"].to_string().contains(cut_off));
    assert!(told, "the failed pull is told");

    // A pod that is new here waits for the registry, as its policy says.
    node.cri.fail_next("PullImage", cut_off);
    node.cloud.create(pod_with("new", |pod| pod["spec"]["containers"][0]["imagePullPolicy"] = json!("Always"))).await;
    node.until("waits", || node.waited("new").iter().any(|waiting| waiting["reason"] == "ErrImagePull")).await;
}

#[tokio::test]
async fn a_full_log_directory_is_told_and_cured() {
    let mut node = Node::new().await;
    let logs = node.path("logs");
    std::fs::create_dir_all(&logs).unwrap();
    // One more inode than the root: the first pod's directory fits, nothing below it.
    mount("tmpfs", &logs, "tmpfs", MountFlags::empty(), c"size=64k,nr_inodes=2").unwrap();
    node.start();
    node.cloud.create(pod("web")).await;
    let full = |node: &Node| {
        node.cloud.event_objects("web").iter().any(|e| e["message"].to_string().contains("No space left"))
    };
    node.until("told", || full(&node)).await;
    assert!(!node.ready("web"));
    mount_remount(&logs, MountFlags::empty(), c"size=1m,nr_inodes=100").unwrap();
    node.until("cured", || node.ready("web")).await;
    node.cloud.delete("web", 1).await;
    node.until("deleted", || node.cloud.pod("web").is_none()).await;
    assert!(node.cri.containers().iter().all(|c| c.state != State::Running));
}

#[tokio::test]
async fn a_name_that_no_directory_can_have_is_told() {
    let node = Node::started().await;
    node.cloud.create(pod_with("odd", |pod| pod["spec"]["containers"][0]["name"] = json!("a/b"))).await;
    node.until("told", || node.cloud.events("odd").contains(&"InvalidPod".to_owned())).await;
    assert_eq!(node.cri.sandboxes().len(), 0);
}
