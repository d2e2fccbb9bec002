//! Edged is killed at 200 random calls to the runtime, before they take effect, after it, or while the runtime carries them
//! out by itself later, under churn of ten pods: nothing is left over, nothing runs twice, nothing is stopped without need.
//!
//! The seed is printed; `CRASH_SEED` repeats a run.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use testkit::fake_cri::{CrashPoint, FakeContainer, State};

use crate::{Node, pod_with};

const PODS: usize = 10;
/// Kills of one test; four of them run side by side.
const KILLS: usize = 50;
/// Kills between two looks at the whole.
const SETTLE: usize = 10;

/// What the test did to the pods.
#[derive(Default)]
struct Churn {
    created: usize,
    /// Pods that were to end.
    ended: BTreeSet<String>,
    /// Processes that were ended from outside, by pod UID.
    exits: BTreeMap<String, usize>,
}

/// Ten pods, each of another kind.
fn nth_pod(index: usize, uid: &str) -> Value {
    pod_with(&format!("p{index}"), |pod| {
        pod["metadata"]["uid"] = json!(uid);
        let spec = &mut pod["spec"];
        let extra = json!([{"name": "first", "image": "busybox:1"}]);
        match index {
            1 => spec["initContainers"] = extra,
            2 => {
                spec["initContainers"] = json!([{"name": "side", "image": "busybox:1", "restartPolicy": "Always"}]);
            }
            3 => spec["containers"].as_array_mut().unwrap().push(json!({"name": "other", "image": "busybox:1"})),
            4 => {
                spec["volumes"] = json!([{"name": "page", "configMap": {"name": "page"}}]);
                spec["containers"][0]["volumeMounts"] = json!([{"name": "page", "mountPath": "/page"}]);
            }
            5 => {
                spec["volumes"] = json!([{"name": "memory", "emptyDir": {"medium": "Memory"}}]);
                spec["containers"][0]["volumeMounts"] = json!([{"name": "memory", "mountPath": "/m", "subPath": "a"}]);
            }
            6 => spec["restartPolicy"] = json!("Never"),
            7 => spec["hostNetwork"] = json!(true),
            8 => {
                spec["containers"][0]["readinessProbe"] =
                    json!({"exec": {"command": ["true"]}, "periodSeconds": 1, "failureThreshold": 1});
            }
            _ => {}
        }
    })
}

fn uid_of(pod: &Value) -> String {
    pod["metadata"]["uid"].as_str().unwrap().to_owned()
}

fn main_restarts(status: &Value) -> Value {
    let statuses = status["containerStatuses"].as_array().cloned().unwrap_or_default();
    statuses.iter().find(|status| status["name"] == "main").map(|main| main["restartCount"].clone()).unwrap_or_default()
}

/// Ends the main process of this very pod; one of the same name may be ending still.
fn end_main(node: &Node, uid: &str) -> bool {
    let is_main = |c: &FakeContainer| c.state == State::Running && c.name() == "main" && c.uid() == Some(uid);
    let found = node.cri.containers().into_iter().find(is_main);
    found.is_some_and(|main| {
        node.cri.exit_container(&main.id, 3);
        true
    })
}

fn is_wanted(pod: &Value) -> bool {
    pod["metadata"]["deletionTimestamp"].is_null()
}

impl Churn {
    async fn act(&mut self, node: &Node, random: &mut StdRng) {
        let index = random.random_range(0..PODS);
        let name = format!("p{index}");
        match node.cloud.pod(&name) {
            None => {
                self.created += 1;
                node.cloud.create(nth_pod(index, &format!("u{}-{index}", self.created))).await;
            }
            Some(pod) if !is_wanted(&pod) => {}
            Some(pod) => match random.random_range(0..6) {
                0 => {
                    self.ended.insert(uid_of(&pod));
                    node.cloud.delete(&name, 1).await;
                }
                1 => {
                    self.ended.insert(uid_of(&pod));
                    node.cloud.force_delete(&name).await;
                }
                // The second restart would wait for its back-off.
                2 if index != 6 && !self.exits.contains_key(&uid_of(&pod)) && end_main(node, &uid_of(&pod)) => {
                    self.exits.insert(uid_of(&pod), 1);
                }
                _ => {}
            },
        }
    }

    /// Everything that is wanted runs once, everything else is gone.
    async fn settle(&self, node: &Node, what: &str) {
        node.until(what, || {
            let (sandboxes, containers) = (node.cri.sandboxes(), node.cri.containers());
            (0..PODS).all(|index| {
                let name = format!("p{index}");
                let own = sandboxes.iter().filter(|s| s.config.metadata.as_ref().unwrap().name == name);
                match node.cloud.pod(&name) {
                    Some(pod) if is_wanted(&pod) => {
                        let ready: Vec<_> = own.filter(|s| s.ready).collect();
                        let expected = pod["spec"]["containers"].as_array().unwrap().len() + usize::from(index == 2);
                        node.ready(&name) && ready.len() == 1 && node.runs(&name) == expected
                    }
                    _ => own.count() == 0 && containers.iter().all(|c| c.pod != name),
                }
            })
        })
        .await;
        assert_eq!(node.cri.violations(), Vec::<String>::new(), "{what}");
        let needless: Vec<_> = node.cri.stopped_pods().into_iter().filter(|uid| !self.ended.contains(uid)).collect();
        assert_eq!(needless, Vec::<String>::new(), "stopped without need: {what}");
        for index in 0..PODS {
            let name = format!("p{index}");
            let Some(pod) = node.cloud.pod(&name).filter(is_wanted) else { continue };
            // What has been restarted is told a little later.
            let exits = json!(self.exits.get(&uid_of(&pod)).copied().unwrap_or_default());
            node.until(&format!("{name} was restarted {exits} times: {what}"), || {
                main_restarts(&node.status(&name)) == exits
            })
            .await;
        }
    }
}

async fn crash(salt: u64) {
    let given = std::env::var("CRASH_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = given.unwrap_or_else(|| rand::rng().random::<u64>().wrapping_add(salt));
    eprintln!("CRASH_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut node = Node::new().await;
    node.cri.exit_on_start("first", 0);
    let page = json!({"metadata": {"name": "page", "namespace": "default"}, "data": {"a": "1"}});
    node.cloud.create_other("default/configmap/page", page).await;
    let mut churn = Churn::default();
    for kill in 0..KILLS {
        let point = *[CrashPoint::Before, CrashPoint::After, CrashPoint::Late].choose(&mut random).unwrap();
        for _ in 0..random.random_range(0..3) {
            churn.act(&node, &mut random).await;
        }
        node.cri.trap(random.random_range(1..60), point);
        node.start();
        for _ in 0..random.random_range(1..4) {
            churn.act(&node, &mut random).await;
        }
        // Where fewer calls come, the moment is random all the same.
        let limit = Duration::from_millis(random.random_range(20..400));
        let _ = node.cri.wait_until(limit, |cri| cri.sprung()).await;
        node.kill().await;
        node.cri.disarm();
        if kill % SETTLE == SETTLE - 1 {
            node.start();
            churn.settle(&node, &format!("CRASH_SEED={seed}, after kill {kill}")).await;
            node.kill().await;
        }
    }
    node.start();
    for index in 0..PODS {
        let name = format!("p{index}");
        if let Some(pod) = node.cloud.pod(&name).filter(is_wanted) {
            churn.ended.insert(uid_of(&pod));
            node.cloud.delete(&name, 1).await;
        }
    }
    churn.settle(&node, &format!("CRASH_SEED={seed}, at the end")).await;
    let empty = |name: &str| std::fs::read_dir(node.path(name)).map_or(true, |mut entries| entries.next().is_none());
    node.until("no directories are left", || empty("kubelet/pods") && empty("logs")).await;
    assert!(node.cri.containers().iter().all(|c| c.state != State::Running));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    // The root itself is a mount, shared with containers that ask for it.
    assert!(!mounts.contains(node.path("kubelet/").to_str().unwrap()), "mounts are left");
}

#[tokio::test]
async fn fifty_crashes() {
    crash(1).await;
}

#[tokio::test]
async fn fifty_more_crashes() {
    crash(2).await;
}

#[tokio::test]
async fn another_fifty_crashes() {
    crash(3).await;
}

#[tokio::test]
async fn the_last_fifty_crashes() {
    crash(4).await;
}
