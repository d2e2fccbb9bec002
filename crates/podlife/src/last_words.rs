//! The termination messages of a pod's containers have a limited room together in its status.

use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod};

use crate::spec;

/// Bytes for all containers of a pod (kubelet).
const ROOM: usize = 12 << 10;

/// Cuts each message to its share.
pub fn cut<'a>(pod: &Pod, statuses: impl Iterator<Item = &'a mut ContainerStatus>) {
    let ephemeral = pod.spec.as_ref().and_then(|s| s.ephemeral_containers.as_ref()).map_or(0, Vec::len);
    let count = spec::containers(pod).len() + spec::init_containers(pod).len() + ephemeral;
    let share = ROOM / count.max(1);
    for status in statuses {
        for state in [&mut status.state, &mut status.last_state] {
            if let Some(message) = message(state.as_mut()) {
                message.truncate(message.floor_char_boundary(share));
            }
        }
    }
}

fn message(state: Option<&mut ContainerState>) -> Option<&mut String> {
    state?.terminated.as_mut()?.message.as_mut()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_has_its_share() {
        let pod = |count: usize| -> Pod {
            let containers: Vec<_> = (0..count).map(|number| json!({"name": format!("c{number}")})).collect();
            serde_json::from_value(json!({"spec": {"containers": containers}})).unwrap()
        };
        let ended = json!({"terminated": {"exitCode": 0, "message": "ä".repeat(2048)}});
        for (count, left) in [(1, 4096), (3, 4096), (4, 3072), (5, 2456)] {
            let mut status: ContainerStatus =
                serde_json::from_value(json!({"name": "c0", "state": ended, "lastState": ended, "ready": false,
                    "restartCount": 0, "image": "", "imageID": ""}))
                .unwrap();
            cut(&pod(count), std::iter::once(&mut status));
            for state in [&mut status.state, &mut status.last_state] {
                assert_eq!(message(state.as_mut()).unwrap().len(), left, "{count}");
            }
        }
    }
}
