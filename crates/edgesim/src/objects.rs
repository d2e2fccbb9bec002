//! What a node says of itself, as small as an edge may.

use jiff::Timestamp;
use serde_json::{Value, json};

/// Its Node.
pub(crate) fn node(name: &str) -> Value {
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "node-role.kubernetes.io/edge": ""}},
        "spec": {},
        "status": {
            "capacity": {"cpu": "2", "memory": "2Gi", "pods": "110"},
            "allocatable": {"cpu": "2", "memory": "2Gi", "pods": "110"},
            "conditions": [{
                "type": "Ready", "status": "True", "reason": "EdgeReady", "message": "edge is posting ready status",
                "lastHeartbeatTime": now, "lastTransitionTime": now,
            }],
        },
    })
}

/// Its lease, renewed now.
pub(crate) fn lease(name: &str) -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": name, "namespace": "kube-node-lease"},
        "spec": {
            "holderIdentity": name,
            "leaseDurationSeconds": 40,
            "renewTime": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string(),
        },
    })
}
