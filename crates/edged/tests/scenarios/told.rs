//! What a site's cloud was told, and the parts of which pods are made here.

use std::process::Command;

use serde_json::{Value, json};
use testkit::containerd::BUSYBOX_IMAGE;

use crate::Site;

/// Reasons and messages of the events about a pod.
pub fn events(site: &Site, pod: &str) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut found = Vec::new();
    for (_, resource, content) in site.cloud.log() {
        let event = content.get("event").unwrap_or(&content);
        if resource.contains("/event/") && event["involvedObject"]["name"] == pod {
            found.push((text(&event["reason"]), text(&event["message"])));
        }
    }
    found
}

/// Whether an event with this reason and text was told.
pub fn has_event(site: &Site, pod: &str, reason: &str, message: &str) -> bool {
    events(site, pod).iter().any(|(r, m)| r == reason && m == message)
}

/// The last value that was told of a field of a pod's status.
pub fn last_told(site: &Site, pod: &str, field: &str) -> Value {
    let patches = site.cloud.patches(pod);
    patches.iter().rev().find_map(|patch| patch["status"].get(field).cloned()).unwrap_or_default()
}

/// A container's status in a list, by name.
pub fn of<'a>(statuses: &'a Value, name: &str) -> &'a Value {
    statuses.as_array().and_then(|list| list.iter().find(|s| s["name"] == name)).unwrap_or(&Value::Null)
}

/// The status of a main container of a pod.
pub fn main_status<'a>(pod: &'a Value, name: &str) -> &'a Value {
    of(&pod["status"]["containerStatuses"], name)
}

/// The status of an init container of a pod.
pub fn init_status<'a>(pod: &'a Value, name: &str) -> &'a Value {
    of(&pod["status"]["initContainerStatuses"], name)
}

/// The reason for which a container waits.
pub fn waiting(status: &Value) -> &str {
    status["state"]["waiting"]["reason"].as_str().unwrap_or_default()
}

/// A time of a status in seconds.
pub fn second(time: &Value) -> i64 {
    time.as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok()).map_or(0, jiff::Timestamp::as_second)
}

/// A condition of an object, `Value::Null` when it has none of this type.
pub fn condition<'a>(object: &'a Value, kind: &str) -> &'a Value {
    let list = object["status"]["conditions"].as_array();
    list.and_then(|list| list.iter().find(|c| c["type"] == kind)).unwrap_or(&Value::Null)
}

pub fn phase(pod: &Value) -> &str {
    pod["status"]["phase"].as_str().unwrap_or_default()
}

/// A busybox container that runs a script.
pub fn script(name: &str, text: &str) -> Value {
    json!({"name": name, "image": BUSYBOX_IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", text]})
}

/// A script that runs until SIGTERM, says so, and ends well after so many seconds.
pub fn until_term(seconds: u32) -> String {
    format!("trap 'echo TERM; sleep {seconds}; exit 0' TERM; echo up; while :; do sleep 0.1; done")
}

/// Gives busybox another name as well.
pub fn tag(site: &Site, name: &str) {
    let tagged = Command::new("ctr")
        .arg("--address")
        .arg(site.containerd.socket())
        .args(["--namespace", "k8s.io", "images", "tag", BUSYBOX_IMAGE, name])
        .output()
        .unwrap();
    assert!(tagged.status.success(), "{}", String::from_utf8_lossy(&tagged.stderr));
}
