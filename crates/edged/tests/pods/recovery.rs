//! Outages: the cloud away, edged killed, the machine rebooted.

use std::time::Duration;

use serde_json::json;
use testkit::fake_cri::State;

use crate::{Node, pod, pod_with};

/// Calls that change something in the runtime.
const MUTATING: [&str; 7] = [
    "RunPodSandbox",
    "CreateContainer",
    "StartContainer",
    "StopContainer",
    "StopPodSandbox",
    "RemoveContainer",
    "RemovePodSandbox",
];

impl Node {
    fn mutations(&self) -> Vec<String> {
        self.cri.calls().into_iter().filter(|call| MUTATING.contains(&call.as_str())).collect()
    }
}

#[tokio::test]
async fn a_killed_edged_adopts_what_runs() {
    let mut node = Node::started().await;
    node.cloud.create(pod("web")).await;
    node.until("ready", || node.ready("web")).await;
    let before = node.cri.containers()[0].id.clone();
    node.kill().await;
    node.cloud.set_offline(true);
    node.cri.clear_calls();
    node.start();
    node.cri.wait_until(crate::PATIENCE, |cri| cri.count("ListContainers") > 2).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(node.mutations(), Vec::<String>::new(), "0 restarts");
    assert_eq!(node.cri.containers()[0].id, before);
    node.cloud.set_offline(false);
    node.cloud.push_again("web").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(node.mutations(), Vec::<String>::new(), "the pod's newer version changes nothing either");
    assert!(node.ready("web"));
}

#[tokio::test]
async fn a_reboot_without_network_brings_the_pods_back() {
    let mut node = Node::started().await;
    node.cloud.create(pod("web")).await;
    node.until("ready", || node.ready("web")).await;
    node.cloud.set_offline(true);
    node.kill().await;
    node.cri.reboot();
    node.start();
    node.until_runs("web", 1).await;
    let newest = node.cri.sandboxes().pop().unwrap();
    assert_eq!(newest.config.metadata.unwrap().attempt, 1);
    node.cloud.set_offline(false);
    let restarts = |node: &Node| node.status("web")["containerStatuses"][0]["restartCount"].clone();
    node.until("told", || restarts(&node) == 1 && node.ready("web")).await;
}

#[tokio::test]
async fn a_crash_while_offline_is_cured_locally_and_told_later() {
    let node = Node::started().await;
    node.cloud.create(pod("web")).await;
    node.until("ready", || node.ready("web")).await;
    let told = node.cloud.patches("web").len();
    node.cloud.set_offline(true);
    node.cri.exit_named("web", "main", 7).unwrap();
    node.until("restarted", || node.cri.containers().len() == 2 && node.runs("web") == 1).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(node.cloud.patches("web").len(), told);
    node.cloud.set_offline(false);
    node.until("told", || node.status("web")["containerStatuses"][0]["restartCount"] == 1).await;
    let status = node.status("web");
    assert_eq!(status["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 7);
    assert!(node.ready("web"));
    assert_eq!(node.cloud.patches("web").len(), told + 1, "the newest status only");
}

#[tokio::test]
async fn a_deletion_while_offline_is_completed_after_reconnection() {
    let mut node = Node::started().await;
    node.cloud.create(pod("web")).await;
    node.until("ready", || node.ready("web")).await;
    node.cloud.delete("web", 1).await;
    node.cloud.set_offline(true);
    node.until_runs("web", 0).await;
    node.kill().await;
    node.start();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(node.runs("web"), 0);
    node.cloud.set_offline(false);
    node.until("deleted", || node.cloud.pod("web").is_none()).await;
    node.until("nothing left", || node.cri.sandboxes().is_empty() && node.cri.containers().is_empty()).await;
}

#[tokio::test]
async fn unwanted_pods_end_only_after_the_store_was_read() {
    let mut node = Node::started().await;
    node.cloud.create(pod("keep")).await;
    node.cloud.create(pod("gone")).await;
    node.until("ready", || node.ready("keep") && node.ready("gone")).await;
    node.kill().await;
    node.cloud.forget("gone");
    node.cloud.fail_lists(true);
    node.start();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!((node.runs("gone"), node.runs("keep")), (1, 1), "nothing is ended before the list is known");
    node.cloud.fail_lists(false);
    node.until("the orphan ends", || node.cri.sandboxes().len() == 1).await;
    assert_eq!((node.runs("gone"), node.runs("keep")), (0, 1));
}

#[tokio::test]
async fn a_restarted_runtime_restarts_nothing() {
    let mut node = Node::started().await;
    node.cloud.create(pod("web")).await;
    node.until("ready", || node.ready("web")).await;
    node.cri.clear_calls();
    node.cri.stop_serving().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    node.cri.serve().await.unwrap();
    node.cloud.create(pod("second")).await;
    node.until("second", || node.ready("second")).await;
    assert_eq!(node.cri.containers().len(), 2);
    assert!(node.cri.containers().iter().all(|c| c.state == State::Running));
}

#[tokio::test]
async fn a_killed_sandbox_is_replaced() {
    let node = Node::started().await;
    node.cloud.create(pod("web")).await;
    node.until("ready", || node.ready("web")).await;
    node.cri.kill_sandbox(&node.cri.sandboxes()[0].id);
    node.cloud.change("web", |pod| pod["metadata"]["labels"] = json!({"look": "again"})).await;
    node.until("replaced", || node.ready("web") && node.status("web")["containerStatuses"][0]["restartCount"] == 1)
        .await;
    assert_eq!(node.cri.sandboxes().iter().filter(|s| s.ready).count(), 1);
}

/// Edged is killed at the moment of each changing call, before and after it took effect, on the way up and on the way down.
#[tokio::test]
async fn no_crash_leaves_an_orphan_or_a_duplicate() {
    for call in MUTATING {
        for effect in [false, true] {
            let mut node = Node::started().await;
            let up = MUTATING[..3].contains(&call);
            if !up {
                node.cloud.create(pod("web")).await;
                node.until("ready", || node.ready("web")).await;
            }
            node.cri.clear_calls();
            if !effect {
                node.cri.hang(call);
            }
            if up {
                node.cloud.create(pod("web")).await;
            } else {
                node.cloud.delete("web", 1).await;
            }
            node.cri.wait_until(crate::PATIENCE, |cri| cri.count(call) > 0).await.unwrap();
            node.kill().await;
            node.cri.release(call);
            node.start();
            if up {
                node.until("ready", || node.ready("web")).await;
                let live: Vec<_> = node.cri.containers().into_iter().filter(|c| c.state == State::Running).collect();
                assert_eq!(live.len(), 1, "{call} {effect}");
                let restarts = node.status("web")["containerStatuses"][0]["restartCount"].clone();
                assert_eq!(restarts, 0, "{call} {effect}: it never ended");
                assert_eq!(node.cri.sandboxes().iter().filter(|s| s.ready).count(), 1, "{call} {effect}");
                node.cloud.delete("web", 1).await;
            }
            node.until(&format!("deleted after {call} {effect}"), || node.cloud.pod("web").is_none()).await;
            node.until(&format!("nothing left after {call} {effect}"), || {
                node.cri.sandboxes().is_empty() && node.cri.containers().is_empty()
            })
            .await;
        }
    }
}

#[tokio::test]
async fn churn_with_random_kills_ends_clean() {
    let mut node = Node::started().await;
    for round in 0..12_u64 {
        for index in 0..4 {
            let name = format!("p{index}");
            match node.cloud.pod(&name) {
                None => {
                    node.cloud
                        .create(pod_with(&name, |pod| pod["metadata"]["uid"] = json!(format!("u-{round}-{index}"))))
                        .await;
                }
                Some(_) if (round + index) % 3 == 0 => node.cloud.force_delete(&name).await,
                Some(_) if (round + index) % 3 == 1 => node.cloud.delete(&name, 1).await,
                Some(_) => {}
            }
        }
        // Moments spread over the whole of a start or stop.
        tokio::time::sleep(Duration::from_millis(round * 7 % 40)).await;
        node.kill().await;
        node.start();
    }
    node.until("every pod runs once or is gone", || {
        (0..4).all(|index| {
            let name = format!("p{index}");
            let wanted = node.cloud.pod(&name).is_some_and(|pod| pod["metadata"]["deletionTimestamp"].is_null());
            let sandboxes = node.cri.sandboxes();
            let own = sandboxes.iter().filter(|s| s.config.metadata.as_ref().unwrap().name == name).count();
            if wanted { node.runs(&name) == 1 && own == 1 && node.ready(&name) } else { own == 0 }
        })
    })
    .await;
}
