//! What a pod becomes in the runtime.

use testkit::cri::PodSandboxState;

use crate::{Site, pod};

#[tokio::test]
async fn t01_a_pod_is_one_sandbox_with_labels_and_logs() {
    let site = Site::start().await;
    site.run(pod("one")).await;
    let sandboxes = site.sandboxes("one").await;
    assert_eq!(sandboxes.len(), 1);
    assert_eq!(sandboxes[0].state, i32::from(PodSandboxState::SandboxReady));
    assert_eq!(sandboxes[0].metadata.as_ref().unwrap().attempt, 0);
    assert_eq!(sandboxes[0].labels["app"], "one");
    assert_eq!(sandboxes[0].labels["io.kubernetes.pod.uid"], "uid-one");
    let main = site.container("one", "main").await;
    let mut labels: Vec<_> = main.labels.keys().map(String::as_str).collect();
    labels.sort_unstable();
    let four = ["container.name", "pod.name", "pod.namespace", "pod.uid"].map(|name| format!("io.kubernetes.{name}"));
    assert_eq!(labels, four);
    assert!(site.log_dir("one").join("main/0.log").is_file());
    site.cloud.delete("one", 2).await;
    site.until_gone("one").await;
}
