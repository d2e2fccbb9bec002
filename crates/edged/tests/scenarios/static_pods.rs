//! Pods from files of the node.

use serde_json::{Value, json};
use testkit::cri::{ContainerState, PodSandboxState};

use crate::Site;
use crate::site::is_ready;

/// The name that the manifest `web` gets on the node `n1`.
const NAME: &str = "web-n1";

fn manifest(version: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: web, labels: {{app: web}}}}
spec:
  terminationGracePeriodSeconds: 5
  containers:
  - name: main
    image: docker.io/library/busybox:1
    env: [{{name: VERSION, value: {version:?}}}]
    command: [sh, -c, \"trap 'sleep 1; exit 0' TERM; while :; do sleep 0.1; done\"]
"
    )
}

async fn is_running(site: &Site) -> bool {
    site.containers(NAME).await.iter().any(|c| c.state == i32::from(ContainerState::ContainerRunning))
}

/// UIDs of the sandboxes that are ready.
async fn ready_uids(site: &Site) -> Vec<String> {
    let sandboxes = site.sandboxes(NAME).await;
    let ready = sandboxes.into_iter().filter(|s| s.state == i32::from(PodSandboxState::SandboxReady));
    ready.map(|s| s.labels["io.kubernetes.pod.uid"].clone()).collect()
}

#[tokio::test]
async fn t76_a_manifest_is_a_pod_with_a_mirror() {
    let mut site = Site::prepare(|_| {}).await;
    let folder = site.directory().join("manifests");
    std::fs::create_dir(&folder).unwrap();
    site.settings.static_pod_path.clone_from(&folder);
    let write = |version: &str| std::fs::write(folder.join("web.yaml"), manifest(version)).unwrap();
    std::fs::write(folder.join("broken.yaml"), "kind: [").unwrap();
    write("1");
    // Without a cloud.
    site.cloud.set_offline(true);
    site.start_edged();
    site.eventually("it runs", async || is_running(&site).await).await;
    let first = site.container_id(NAME, "main").await;
    let uid = ready_uids(&site).await.remove(0);
    assert!(site.cloud.pod(NAME).is_none());
    // With a cloud.
    site.cloud.create_other("null/node/n1", json!({"metadata": {"name": "n1", "uid": "node-uid"}})).await;
    site.cloud.set_offline(false);
    let mirror = site.until(NAME, "mirrored", is_ready).await;
    assert_eq!(mirror["metadata"]["annotations"]["kubernetes.io/config.mirror"], uid);
    assert_eq!(mirror["metadata"]["annotations"]["kubernetes.io/config.hash"], uid);
    let owner = json!({"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "node-uid", "controller": true});
    assert_eq!(mirror["metadata"]["ownerReferences"], json!([owner]));
    assert_eq!(mirror["spec"]["tolerations"], json!([{"operator": "Exists", "effect": "NoExecute"}]));
    let mirror_uid = mirror["metadata"]["uid"].clone();
    assert!(site.cloud.patches(NAME).iter().all(|patch| patch["metadata"]["uid"] == mirror_uid));
    // The mirror is deleted: only it is made again.
    site.cloud.delete(NAME, 1).await;
    let again =
        site.until(NAME, "mirrored again", |pod: &Value| is_ready(pod) && pod["metadata"]["uid"] != mirror_uid).await;
    assert_eq!(again["metadata"]["annotations"]["kubernetes.io/config.mirror"], uid);
    assert!(again["metadata"]["deletionTimestamp"].is_null());
    assert_eq!(site.container_id(NAME, "main").await, first);
    // An edit: the old one stops before the new one starts.
    write("2");
    site.eventually("the new one runs", async || {
        let ready = ready_uids(&site).await;
        assert!(ready.len() < 2, "both at once: {ready:?}");
        ready.len() == 1 && ready[0] != uid && is_running(&site).await
    })
    .await;
    let (_, version) = site.sh(NAME, "main", "echo $VERSION").await;
    assert_eq!(version.trim(), "2");
    let new_uid = ready_uids(&site).await.remove(0);
    site.until(NAME, "mirror of the new one", |pod: &Value| {
        is_ready(pod) && pod["metadata"]["annotations"]["kubernetes.io/config.mirror"] == new_uid
    })
    .await;
    // A restart of the agent takes it over.
    let second = site.container_id(NAME, "main").await;
    site.kill_edged().await;
    site.start_edged();
    site.until(NAME, "ready still", is_ready).await;
    assert_eq!(site.container_id(NAME, "main").await, second);
    // No file, no pod.
    std::fs::remove_file(folder.join("web.yaml")).unwrap();
    site.until_gone(NAME).await;
    assert!(!site.pod_dir(&new_uid).exists());
}
