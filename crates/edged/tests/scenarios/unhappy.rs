//! The pods of a recording of failures (from KubeEdge v1.23.1: missing images, objects and commands, probes that fail, pods
//! that do not fit), each with the state that a kubelet gives it; and what cures it. A pod whose Secret is missing waits.

use serde_json::{Value, json};

use crate::site::is_ready;
use crate::told::{init_status, main_status, phase, script, waiting};
use crate::{Site, pod_with};

/// A pod of the recording: its container sleeps unless it is changed.
fn recorded(name: &str, change: impl FnOnce(&mut Value)) -> Value {
    pod_with(name, |pod| {
        pod["spec"]["terminationGracePeriodSeconds"] = json!(1);
        change(&mut pod["spec"]);
    })
}

async fn delete(site: &Site, names: &[&str]) {
    for name in names {
        site.cloud.delete(name, 1).await;
    }
    for name in names {
        site.until_gone(name).await;
    }
}

#[tokio::test]
async fn unhappy_what_is_missing_is_waited_for() {
    let site = Site::start().await;
    let never = recorded("bad-never", |spec| {
        spec["containers"][0]["image"] = json!("docker.io/library/nothere:1");
        spec["containers"][0]["imagePullPolicy"] = json!("Never");
    });
    let config = recorded("bad-config", |spec| {
        let reference = json!({"configMapKeyRef": {"name": "missing-cm", "key": "a"}});
        spec["containers"][0]["env"] = json!([{"name": "A", "valueFrom": reference}]);
    });
    let secret = recorded("bad-secret", |spec| {
        spec["volumes"] = json!([{"name": "s", "secret": {"secretName": "missing-secret"}}]);
        spec["containers"][0]["volumeMounts"] = json!([{"name": "s", "mountPath": "/s"}]);
    });
    for pod in [never, config, secret] {
        site.cloud.create(pod).await;
    }
    let never = site.until("bad-never", "told", |pod| waiting(main_status(pod, "main")) == "ErrImageNeverPull").await;
    let text = "Container image \"docker.io/library/nothere:1\" is not present with pull policy of Never";
    assert_eq!(main_status(&never, "main")["state"]["waiting"]["message"], text);
    let config =
        site.until("bad-config", "told", |pod| waiting(main_status(pod, "main")) == "CreateContainerConfigError").await;
    let message = &main_status(&config, "main")["state"]["waiting"]["message"];
    assert!(message.as_str().unwrap().contains("missing-cm"), "{message}");
    let mount = |site: &Site| site.cloud.events("bad-secret").iter().filter(|reason| *reason == "FailedMount").count();
    site.eventually("tried twice", async || mount(&site) >= 2).await;
    let secret = site.cloud.pod("bad-secret").unwrap();
    assert_eq!((phase(&secret), waiting(main_status(&secret, "main"))), ("Pending", "ContainerCreating"));
    assert!(site.containers("bad-secret").await.is_empty(), "it does not run without its Secret");
    let meta = |name: &str| json!({"name": name, "namespace": "default"});
    let object = json!({"metadata": meta("missing-cm"), "data": {"a": "1"}});
    site.cloud.create_other("default/configmap/missing-cm", object).await;
    let object = json!({"metadata": meta("missing-secret"), "data": {"k": "dg=="}});
    site.cloud.create_other("default/secret/missing-secret", object).await;
    site.until("bad-config", "ready", is_ready).await;
    site.until("bad-secret", "ready", is_ready).await;
    assert_eq!(site.sh("bad-secret", "main", "cat /s/k").await.1, "v");
    delete(&site, &["bad-never", "bad-config", "bad-secret"]).await;
}

#[tokio::test]
async fn unhappy_what_fails_is_shown_and_tried_again() {
    let site = Site::start().await;
    let crash = recorded("bad-crash", |spec| {
        spec["containers"] = json!([script("main", "echo dying >&2; exit 3")]);
        spec["containers"][0]["terminationMessagePolicy"] = json!("FallbackToLogsOnError");
    });
    let command = recorded("bad-command", |spec| spec["containers"][0]["command"] = json!(["/no/such/program"]));
    let probe = json!({"exec": {"command": ["false"]}, "periodSeconds": 1, "failureThreshold": 2});
    let ready = recorded("bad-ready", |spec| spec["containers"][0]["readinessProbe"] = probe.clone());
    let live = recorded("bad-live", |spec| spec["containers"][0]["livenessProbe"] = probe.clone());
    let init = recorded("bad-init", |spec| {
        spec["restartPolicy"] = json!("Never");
        spec["initContainers"] = json!([script("init", "exit 1")]);
    });
    let job = recorded("bad-job", |spec| {
        spec["restartPolicy"] = json!("Never");
        spec["containers"] = json!([script("main", "exit 4")]);
    });
    for pod in [crash, command, ready, live, init, job] {
        site.cloud.create(pod).await;
    }
    let crash = site.until("bad-crash", "twice", |pod| main_status(pod, "main")["restartCount"] == 1).await;
    assert_eq!(main_status(&crash, "main")["lastState"]["terminated"]["message"], "dying\n");
    let command = site
        .until("bad-command", "told", |pod| {
            ["RunContainerError", "CrashLoopBackOff"].contains(&waiting(main_status(pod, "main")))
        })
        .await;
    let last = &main_status(&command, "main")["lastState"]["terminated"];
    assert_eq!((&last["exitCode"], &last["reason"]), (&json!(128), &json!("StartError")));
    let live = site.until("bad-live", "restarted", |pod| main_status(pod, "main")["restartCount"] == 1).await;
    assert_eq!(main_status(&live, "main")["lastState"]["terminated"]["reason"], "Completed");
    let init = site.until("bad-init", "failed", |pod| phase(pod) == "Failed").await;
    assert_eq!(init_status(&init, "init")["state"]["terminated"]["exitCode"], 1);
    let job = site.until("bad-job", "failed", |pod| phase(pod) == "Failed").await;
    assert_eq!(main_status(&job, "main")["state"]["terminated"]["exitCode"], 4);
    let ready = site.until("bad-ready", "runs", |pod| phase(pod) == "Running").await;
    assert!(!is_ready(&ready) && main_status(&ready, "main")["restartCount"] == 0);
    delete(&site, &["bad-crash", "bad-command", "bad-ready", "bad-live", "bad-init", "bad-job"]).await;
}
