//! Builders shared by the table tests.
#![allow(dead_code, clippy::unwrap_used, reason = "each test file uses some of the helpers; tests may panic")]

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use podlife::{
    observed::{ObservedContainer, ObservedPod, ObservedSandbox, PodIdentity, RuntimeState},
    spec,
};
use serde_json::{Value, json};

pub fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

/// A pod with this restart policy, plain init containers, sidecars and main containers.
pub fn pod(policy: &str, init: &[&str], sidecars: &[&str], main: &[&str]) -> Pod {
    let container = |name: &&str| json!({"name": name, "image": "busybox:1"});
    let mut all_init: Vec<Value> = init.iter().map(container).collect();
    all_init.extend(sidecars.iter().map(|name| json!({"name": name, "image": "busybox:1", "restartPolicy": "Always"})));
    let main: Vec<Value> = main.iter().map(container).collect();
    serde_json::from_value(json!({
        "metadata": {"namespace": "default", "name": "web", "uid": "u1"},
        "spec": {"restartPolicy": policy, "initContainers": all_init, "containers": main, "nodeName": "n1"},
    }))
    .unwrap()
}

pub fn status(name: &str, state: Value) -> ContainerStatus {
    let mut value =
        json!({"name": name, "image": "busybox:1", "imageID": "", "ready": false, "restartCount": 0, "lastState": {}});
    for (key, field) in state.as_object().unwrap() {
        value[key] = field.clone();
    }
    serde_json::from_value(value).unwrap()
}

pub fn running() -> Value {
    json!({"state": {"running": {}}, "started": true, "ready": true})
}

pub fn terminated(code: i32) -> Value {
    json!({"state": {"terminated": {"exitCode": code}}, "ready": code == 0})
}

pub fn waiting() -> Value {
    json!({"state": {"waiting": {}}})
}

/// Waiting for a restart after an exit with this code.
pub fn restarting(code: i32) -> Value {
    json!({"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": {"exitCode": code}}})
}

pub fn observed() -> ObservedPod {
    ObservedPod::absent(PodIdentity { namespace: "default".into(), name: "web".into(), uid: "u1".into() })
}

pub fn sandbox(id: &str, attempt: u32, ready: bool) -> ObservedSandbox {
    ObservedSandbox {
        id: id.into(),
        attempt,
        ready,
        created_at: at(i64::from(attempt)),
        host_network: false,
        ips: Some(if ready { vec!["10.0.0.7".into()] } else { vec![] }),
    }
}

pub fn container(pod: &Pod, name: &str, count: u32, state: RuntimeState, code: i32) -> ObservedContainer {
    ObservedContainer {
        id: format!("{name}-{count}"),
        name: name.into(),
        sandbox_id: "s0".into(),
        state,
        created_at: at(10 + i64::from(count)),
        started_at: Some(at(10 + i64::from(count))),
        finished_at: (state == RuntimeState::Exited).then(|| at(11 + i64::from(count))),
        exit_code: code,
        reason: match (state, code) {
            (RuntimeState::Exited, 0) => "Completed".into(),
            (RuntimeState::Exited, _) => "Error".into(),
            _ => String::new(),
        },
        message: String::new(),
        image: "docker.io/library/busybox:1".into(),
        image_ref: "sha256:1".into(),
        hash: spec::container(pod, name).map(spec::container_hash),
        restart_count: count,
        termination_grace: None,
        pre_stop: None,
        ports: None,
        resources: None,
    }
}
