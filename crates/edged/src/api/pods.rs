//! `/pods` and `/runningpods/`.

use http::{Response, StatusCode};
use link::http_server::Body;
use podlife::observed::{ObservedPod, RuntimeState};
use serde_json::{Value, json};

use super::answer;
use crate::access::Access;

/// The configured pods, each with its newest status.
pub async fn configured(access: &Access) -> Response<Body> {
    // One pod at a time: a full node's list is long.
    let mut list = br#"{"kind":"PodList","apiVersion":"v1","metadata":{},"items":["#.to_vec();
    for (index, record) in access.pods().await.into_iter().enumerate() {
        if index > 0 {
            list.push(b',');
        }
        let mut pod = (*record.pod).clone();
        pod.status = Some(*record.status);
        if let Err(error) = serde_json::to_writer(&mut list, &pod) {
            return answer::text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string());
        }
    }
    list.extend_from_slice(b"]}");
    answer::json_bytes(list)
}

/// What runs, as the runtime has it.
pub async fn running(access: &Access) -> Response<Body> {
    match access.runtime.list_pods().await {
        Ok(pods) => {
            let items: Vec<Value> = pods.iter().filter_map(running_pod).collect();
            answer::json(&json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
        }
        Err(error) => answer::text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

fn running_pod(pod: &ObservedPod) -> Option<Value> {
    let running = pod.containers.iter().filter(|container| container.state == RuntimeState::Running);
    let containers: Vec<Value> = running
        .map(|container| json!({"name": container.name, "image": container.image_ref, "resources": {}}))
        .collect();
    let identity = &pod.identity;
    (!containers.is_empty()).then(|| {
        json!({
            "metadata": {"name": identity.name, "namespace": identity.namespace, "uid": identity.uid},
            "spec": {"containers": containers},
            "status": {},
        })
    })
}
