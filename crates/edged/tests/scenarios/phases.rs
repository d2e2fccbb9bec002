//! Phases, readiness gates, deadlines, ephemeral containers, and upgrades that are held.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::site::{has, is_ready};
use crate::told::{condition, main_status, of, phase, script, until_term, waiting};
use crate::{Site, pod, pod_with};

#[tokio::test]
async fn t31_an_ephemeral_container_runs_once_beside_its_target() {
    let site = Site::start().await;
    site.run(pod("web")).await;
    let mut debugger = script("debug", "ps; exit 3");
    debugger["targetContainerName"] = json!("main");
    site.cloud.change("web", |pod| pod["spec"]["ephemeralContainers"] = json!([debugger])).await;
    let ended = |pod: &Value| of(&pod["status"]["ephemeralContainerStatuses"], "debug")["state"]["terminated"].clone();
    let pod = site.until("web", "the debugger has ended", |pod| ended(pod).is_object()).await;
    assert_eq!(ended(&pod)["exitCode"], 3);
    let seen = site.log("web", "debug", 0);
    assert!(seen.contains("trap 'exit 0' TERM"), "main's process is not seen: {seen}");
    assert!(is_ready(&pod) && phase(&pod) == "Running");
    // Restarts of others are no reason to start it again.
    site.sh("web", "main", "kill -TERM 1").await;
    site.until("web", "main is back", |pod| main_status(pod, "main")["restartCount"] == 1 && is_ready(pod)).await;
    let containers = site.containers("web").await;
    let debuggers = containers.iter().filter(|c| c.labels["io.kubernetes.container.name"] == "debug").count();
    assert_eq!(debuggers, 1);
    let mut lost = script("lost", "true");
    lost["targetContainerName"] = json!("nobody");
    site.cloud.change("web", |pod| pod["spec"]["ephemeralContainers"].as_array_mut().unwrap().push(lost)).await;
    let pod = site
        .until("web", "refused", |pod| {
            waiting(of(&pod["status"]["ephemeralContainerStatuses"], "lost")) == "CreateContainerConfigError"
        })
        .await;
    assert!(is_ready(&pod));
    site.cloud.delete("web", 2).await;
    site.until_gone("web").await;
}

#[tokio::test]
async fn t53_phases_row_by_row() {
    let site = Site::start().await;
    let made = |name: &str, policy: &str, init: Vec<Value>, main: Vec<Value>| {
        pod_with(name, |pod| {
            pod["spec"]["restartPolicy"] = json!(policy);
            pod["spec"]["initContainers"] = json!(init);
            pod["spec"]["containers"] = json!(main);
        })
    };
    let runs = || script("runs", &until_term(0));
    let ends = |name: &str, code: u8| script(name, &format!("exit {code}"));
    let mut missing = ends("missing", 0);
    missing["image"] = json!("127.0.0.1:1/no/such:1");
    for pod in [
        made("row1", "Never", vec![ends("i", 1)], vec![runs()]),
        made("row2", "Always", vec![script("i", &until_term(0))], vec![runs()]),
        made("row3", "Always", vec![], vec![runs(), missing]),
        made("row4", "Never", vec![], vec![runs(), ends("b", 1)]),
        made("row6", "Always", vec![], vec![ends("a", 0), ends("b", 1)]),
        made("row7", "OnFailure", vec![], vec![ends("a", 0), ends("b", 0)]),
        made("row8", "Never", vec![], vec![ends("a", 0), ends("b", 3)]),
        made("row9", "OnFailure", vec![], vec![ends("a", 0), ends("b", 3)]),
    ] {
        site.cloud.create(pod).await;
    }
    // Each waits for the states that make its row, then looks at the phase.
    let state = |status: &Value, kind: &str| status["state"][kind].is_object();
    let last = |status: &Value| status["lastState"]["terminated"].is_object();
    site.until("row1", "Failed", |pod| phase(pod) == "Failed").await;
    let row2 =
        site.until("row2", "init runs", |pod| state(&pod["status"]["initContainerStatuses"][0], "running")).await;
    assert_eq!(phase(&row2), "Pending");
    let row3 = site
        .until("row3", "one runs, one waits", |pod| {
            state(main_status(pod, "runs"), "running") && waiting(main_status(pod, "missing")) == "ImagePullBackOff"
        })
        .await;
    assert_eq!(phase(&row3), "Pending");
    let row4 = site
        .until("row4", "one runs, one failed", |pod| {
            state(main_status(pod, "runs"), "running") && state(main_status(pod, "b"), "terminated")
        })
        .await;
    assert_eq!(phase(&row4), "Running");
    let row6 = site
        .until("row6", "both wait for their restart", |pod| ["a", "b"].iter().all(|name| last(main_status(pod, name))))
        .await;
    assert_eq!(phase(&row6), "Running");
    site.until("row7", "Succeeded", |pod| phase(pod) == "Succeeded").await;
    site.until("row8", "Failed", |pod| phase(pod) == "Failed").await;
    let row9 = site.until("row9", "one is restarted", |pod| last(main_status(pod, "b"))).await;
    assert_eq!(phase(&row9), "Running");
    for row in [1, 2, 3, 4, 6, 7, 8, 9] {
        site.cloud.delete(&format!("row{row}"), 1).await;
    }
    for row in [1, 2, 3, 4, 6, 7, 8, 9] {
        site.until_gone(&format!("row{row}")).await;
    }
}

#[tokio::test]
async fn t54_a_readiness_gate_holds_ready_back() {
    let site = Site::start().await;
    let gated = pod_with("web", |pod| pod["spec"]["readinessGates"] = json!([{"conditionType": "x/y"}]));
    site.cloud.create(gated).await;
    let waits = site.until("web", "containers are ready", |pod| has(pod, "ContainersReady")).await;
    let ready = condition(&waits, "Ready");
    assert_eq!((&ready["status"], &ready["reason"]), (&json!("False"), &json!("ReadinessGatesNotReady")));
    assert_eq!(ready["message"], "corresponding condition of pod readiness gate \"x/y\" does not exist.");
    let set = |status: &'static str| {
        move |pod: &mut Value| {
            let conditions = pod["status"]["conditions"].as_array_mut().unwrap();
            conditions.retain(|c| c["type"] != "x/y");
            conditions.push(json!({"type": "x/y", "status": status, "reason": "Theirs"}));
        }
    };
    site.cloud.change("web", set("False")).await;
    let text = "the status of pod readiness gate \"x/y\" is not \"True\", but False";
    site.until("web", "the other text", |pod| condition(pod, "Ready")["message"] == text).await;
    site.cloud.change("web", set("True")).await;
    let pod = site.until("web", "ready", is_ready).await;
    assert_eq!(condition(&pod, "x/y")["reason"], "Theirs");
    site.sh("web", "main", "kill -TERM 1").await;
    let pod =
        site.until("web", "restarted", |pod| main_status(pod, "main")["restartCount"] == 1 && is_ready(pod)).await;
    assert_eq!(condition(&pod, "x/y")["reason"], "Theirs", "it survives all patches of the agent");
    site.cloud.delete("web", 2).await;
    site.until_gone("web").await;
}

#[tokio::test]
async fn t84_an_active_deadline_ends_the_pod() {
    let site = Site::start().await;
    site.cloud.create(pod_with("web", |pod| pod["spec"]["activeDeadlineSeconds"] = json!(20))).await;
    let began = Instant::now();
    site.until("web", "runs", |pod| phase(pod) == "Running").await;
    let pod = site.until("web", "failed", |pod| phase(pod) == "Failed").await;
    let took = began.elapsed();
    assert!((Duration::from_secs(19)..Duration::from_secs(26)).contains(&took), "{took:?}");
    assert_eq!(pod["status"]["reason"], "DeadlineExceeded");
    assert_eq!(pod["status"]["message"], "Pod was active on the node longer than the specified deadline");
    assert!(main_status(&pod, "main")["state"]["terminated"].is_object());
    site.cloud.delete("web", 2).await;
    site.until_gone("web").await;
}

#[tokio::test]
async fn t86_what_is_of_kubeedge() {
    let site = Site::start_with(|s| s.kubernetes_service = Some(("169.254.30.10".into(), 10550))).await;
    let mine = pod_with("mine", |pod| {
        pod["spec"]["containers"][0]["env"] = json!([{"name": "KUBERNETES_SERVICE_HOST", "value": "10.0.0.1"}]);
    });
    tokio::join!(site.run(pod("plain")), site.run(mine));
    let (_, plain) = site.sh("plain", "main", "env | grep KUBERNETES | sort").await;
    assert_eq!(plain, "KUBERNETES_SERVICE_HOST=169.254.30.10\nKUBERNETES_SERVICE_PORT=10550\n");
    let (_, mine) = site.sh("mine", "main", "env | grep KUBERNETES_SERVICE_HOST").await;
    assert_eq!(mine, "KUBERNETES_SERVICE_HOST=10.0.0.1\n", "one entry, the user's");
    let node = |log: Vec<(String, String, Value)>| {
        log.into_iter().find(|(operation, resource, _)| operation == "insert" && resource.ends_with("/node/n1"))
    };
    site.eventually("registered", async || node(site.cloud.log()).is_some()).await;
    let (_, _, node) = node(site.cloud.log()).unwrap();
    for role in ["edge", "agent"] {
        assert_eq!(node["metadata"]["labels"][format!("node-role.kubernetes.io/{role}")], "");
    }
    let ready = condition(&node, "Ready");
    assert_eq!((&ready["reason"], &ready["message"]), (&json!("EdgeReady"), &json!("edge is posting ready status")));
    for name in ["plain", "mine"] {
        site.cloud.delete(name, 2).await;
        site.until_gone(name).await;
    }
}

#[tokio::test]
async fn t86_an_upgrade_is_held_until_it_is_released() {
    let mut site = Site::start().await;
    // Insertions pass; what is Pending in the list that is read at the start is held like an update.
    site.run(pod("beside")).await;
    let held = pod_with("web", |pod| {
        pod["metadata"]["annotations"] = json!({"edge.kubeedge.io/hold-upgrade": "true"});
        pod["spec"]["containers"][0]["image"] = json!("127.0.0.1:1/no/such:1");
    });
    site.cloud.create(held).await;
    site.until("web", "waits", |pod| waiting(main_status(pod, "main")) == "ImagePullBackOff").await;
    let good = pod("other")["spec"]["containers"][0]["image"].clone();
    site.cloud.change("web", |pod| pod["spec"]["containers"][0]["image"] = good).await;
    let waiting_pod = site.until("web", "held", |pod| has(pod, "HeldUpgrade")).await;
    let condition = condition(&waiting_pod, "HeldUpgrade");
    assert_eq!(condition["reason"], "HoldUpgradeEnabled");
    assert_eq!(condition["message"], "Upgrade is currently held due to edge-hold-upgrade annotation");
    // The next attempt still pulls the old image: it comes after the back-off.
    let pulls = || site.cloud.events("web").iter().filter(|reason| *reason == "Pulling").count();
    let before = pulls();
    site.eventually("another attempt", async || pulls() > before).await;
    assert!(site.containers("web").await.is_empty());
    // A restart of the agent does not release it.
    site.kill_edged().await;
    site.start_edged();
    site.run(pod("later")).await;
    assert!(site.containers("web").await.is_empty());
    site.cloud.push_raw("unhold-upgrade", "default/pod/web", json!({})).await;
    site.until("web", "ready", is_ready).await;
    for name in ["web", "beside", "later"] {
        site.cloud.delete(name, 2).await;
        site.until_gone(name).await;
    }
}
