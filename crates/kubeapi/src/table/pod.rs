//! The row of a pod: how its state is summed up in a word.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::age;

pub(super) fn cell(column: &str, pod: &Value, now: Timestamp) -> Value {
    let or_none = |value: &Value| json!(value.as_str().filter(|text| !text.is_empty()).unwrap_or("<none>"));
    match column {
        "Ready" => {
            let ready = containers(pod)
                .filter(|status| status["ready"] == true && status["state"]["running"].is_object())
                .count();
            let sidecars = sidecars(pod).filter(|status| status["ready"] == true).count();
            let total = pod["spec"]["containers"].as_array().map_or(0, Vec::len) + sidecar_names(pod).count();
            json!(format!("{}/{total}", ready + sidecars))
        }
        "Status" => json!(status(pod)),
        "Restarts" => json!(restarts(pod, now)),
        "IP" => or_none(&pod["status"]["podIP"]),
        "Node" => or_none(&pod["spec"]["nodeName"]),
        "Nominated Node" => or_none(&pod["status"]["nominatedNodeName"]),
        "Readiness Gates" => {
            let gates = pod["spec"]["readinessGates"].as_array().map_or(&[][..], Vec::as_slice);
            if gates.is_empty() {
                return json!("<none>");
            }
            let met = gates
                .iter()
                .filter(|gate| condition(pod, gate["conditionType"].as_str().unwrap_or_default()) == Some("True"));
            json!(format!("{}/{}", met.count(), gates.len()))
        }
        _ => Value::Null,
    }
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    pod["status"]["containerStatuses"].as_array().into_iter().flatten()
}

fn sidecar_names(pod: &Value) -> impl Iterator<Item = &str> {
    let containers = pod["spec"]["initContainers"].as_array().into_iter().flatten();
    containers.filter(|c| c["restartPolicy"] == "Always").filter_map(|c| c["name"].as_str())
}

fn sidecars(pod: &Value) -> impl Iterator<Item = &Value> {
    let statuses = pod["status"]["initContainerStatuses"].as_array().into_iter().flatten();
    statuses.filter(|status| sidecar_names(pod).any(|name| status["name"] == name))
}

fn condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a str> {
    pod["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == kind)?["status"].as_str()
}

/// The word in the column STATUS.
fn status(pod: &Value) -> String {
    let own = pod["status"]["reason"].as_str().filter(|reason| !reason.is_empty());
    let mut word = own.or(pod["status"]["phase"].as_str()).unwrap_or("Unknown").to_owned();
    let gated = pod["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|c| c["type"] == "PodScheduled" && c["reason"] == "SchedulingGated");
    if gated {
        word = "SchedulingGated".to_owned();
    }
    match initializing(pod) {
        Some(init) => word = init,
        None => {
            let mut running = false;
            let statuses: Vec<&Value> = containers(pod).collect();
            for status in statuses.iter().rev() {
                if let Some(reason) = waiting(status) {
                    word = reason.to_owned();
                } else if status["state"]["terminated"].is_object() {
                    word = terminated(&status["state"]["terminated"]);
                } else if status["ready"] == true && status["state"]["running"].is_object() {
                    running = true;
                }
            }
            // One container has completed, another runs on.
            if word == "Completed" && running {
                word = if condition(pod, "Ready") == Some("True") { "Running" } else { "NotReady" }.to_owned();
            }
        }
    }
    if pod["metadata"]["deletionTimestamp"].is_string() {
        let lost = pod["status"]["reason"] == "NodeLost";
        let ended = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        if lost {
            return "Unknown".to_owned();
        }
        if !ended {
            return "Terminating".to_owned();
        }
    }
    word
}

/// `Init:…` while init containers have not all completed.
fn initializing(pod: &Value) -> Option<String> {
    let statuses = pod["status"]["initContainerStatuses"].as_array()?;
    let total = pod["spec"]["initContainers"].as_array().map_or(0, Vec::len);
    for (at, status) in statuses.iter().enumerate() {
        let state = &status["state"];
        let is_sidecar = sidecar_names(pod).any(|name| status["name"] == name);
        if state["terminated"].is_object() && state["terminated"]["exitCode"] == 0 {
            continue;
        }
        if is_sidecar && status["started"] == true {
            continue;
        }
        if state["terminated"].is_object() {
            return Some(format!("Init:{}", terminated(&state["terminated"])));
        }
        if let Some(reason) = waiting(status).filter(|reason| *reason != "PodInitializing") {
            return Some(format!("Init:{reason}"));
        }
        return Some(format!("Init:{at}/{total}"));
    }
    None
}

fn waiting(status: &Value) -> Option<&str> {
    status["state"]["waiting"]["reason"].as_str().filter(|reason| !reason.is_empty())
}

fn terminated(state: &Value) -> String {
    match (state["reason"].as_str().unwrap_or_default(), state["signal"].as_i64().unwrap_or_default()) {
        ("", 0) => format!("ExitCode:{}", state["exitCode"].as_i64().unwrap_or_default()),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn restarts(pod: &Value, now: Timestamp) -> String {
    let initializing = initializing(pod).is_some();
    let init: Vec<&Value> = pod["status"]["initContainerStatuses"].as_array().into_iter().flatten().collect();
    let counted: Vec<&Value> = if initializing { init } else { containers(pod).chain(sidecars(pod)).collect() };
    let count: i64 = counted.iter().map(|status| status["restartCount"].as_i64().unwrap_or_default()).sum();
    let last = counted.iter().filter_map(|status| status["lastState"]["terminated"]["finishedAt"].as_str()).max();
    match last {
        Some(last) if count > 0 => format!("{count} ({} ago)", age(Some(last), now)),
        _ => count.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_of_a_pod_in_a_word() {
        let word =
            |status: Value| status_of(json!({"spec": {"containers": [{}], "initContainers": [{}]}, "status": status}));
        assert_eq!(word(json!({"phase": "Pending"})), "Pending");
        assert_eq!(
            word(
                json!({"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff"}}}]})
            ),
            "ImagePullBackOff"
        );
        assert_eq!(
            word(json!({"phase": "Running", "containerStatuses": [{"ready": true, "state": {"running": {}}}]})),
            "Running"
        );
        assert_eq!(
            word(
                json!({"phase": "Succeeded", "containerStatuses": [{"state": {"terminated": {"reason": "Completed", "exitCode": 0}}}]})
            ),
            "Completed"
        );
        assert_eq!(
            word(json!({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"exitCode": 3}}}]})),
            "ExitCode:3"
        );
        assert_eq!(
            word(json!({"phase": "Pending", "initContainerStatuses": [{"state": {"running": {}}}]})),
            "Init:0/1"
        );
        assert_eq!(word(json!({"phase": "Failed", "reason": "Evicted"})), "Evicted");
        let terminating =
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": {"phase": "Running"}});
        assert_eq!(status_of(terminating), "Terminating");
    }

    fn status_of(pod: Value) -> String {
        status(&pod)
    }
}
