//! The private containerd leaves nothing behind, however it ends.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;

use testkit::containerd::{BUSYBOX_IMAGE, Containerd, ContainerdOptions};
use testkit::cri::{self, image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient};
use tonic::transport::{Channel, Endpoint};

async fn channel(containerd: &Containerd) -> Channel {
    Endpoint::from_shared(containerd.endpoint()).unwrap().connect().await.unwrap()
}

/// A sandbox with its own network, which starts a shim, a process, mounts, a namespace and the bridge.
async fn run_sandbox(containerd: &Containerd, name: &str) {
    let metadata =
        cri::PodSandboxMetadata { name: name.into(), uid: name.into(), namespace: "default".into(), attempt: 0 };
    let config = cri::PodSandboxConfig {
        metadata: Some(metadata),
        linux: Some(cri::LinuxPodSandboxConfig::default()),
        ..Default::default()
    };
    let request = cri::RunPodSandboxRequest { config: Some(config), runtime_handler: String::new() };
    RuntimeServiceClient::new(channel(containerd).await).run_pod_sandbox(request).await.unwrap();
}

fn assert_nothing_left(options: &ContainerdOptions) {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    for folder in [&options.dir, &options.sockets] {
        assert!(!mounts.contains(folder.to_str().unwrap()), "a mount below {} is left", folder.display());
    }
    assert!(!options.sockets.exists(), "{} is left", options.sockets.display());
    assert!(!Path::new("/sys/class/net").join(&options.bridge).exists(), "the bridge is left");
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let words = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words);
        assert!(!words.contains(options.sockets.to_str().unwrap()), "{words} is left");
    }
}

#[tokio::test]
async fn stops_pods_and_itself() {
    let dir = tempfile::tempdir().unwrap();
    let options = ContainerdOptions::for_test(dir.path(), 1);
    let containerd = Containerd::start(options.clone()).await.unwrap();
    containerd.import_busybox().await.unwrap();
    let mut images = ImageServiceClient::new(channel(&containerd).await);
    let image = cri::ImageSpec { image: BUSYBOX_IMAGE.into(), ..Default::default() };
    let status = images.image_status(cri::ImageStatusRequest { image: Some(image), verbose: false }).await.unwrap();
    assert!(status.into_inner().image.is_some(), "the image was not imported");
    run_sandbox(&containerd, "one").await;
    assert!(Path::new("/sys/class/net").join(&options.bridge).exists());
    // In /run/netns, which all share, an `ip netns add` of anybody would make the pod's one undeletable.
    let mounts = Containerd::mounts_below(&options.sockets).unwrap();
    assert!(mounts.iter().any(|mount| mount.components().any(|part| part.as_os_str() == "netns")), "{mounts:?}");
    containerd.stop().await.unwrap();
    assert_nothing_left(&options);
}

#[tokio::test]
async fn cleans_up_on_drop_after_everything_was_killed() {
    let dir = tempfile::tempdir().unwrap();
    let options = ContainerdOptions::for_test(dir.path(), 2);
    let mut containerd = Containerd::start(options.clone()).await.unwrap();
    containerd.import_busybox().await.unwrap();
    run_sandbox(&containerd, "two").await;
    containerd.power_off().await.unwrap();
    drop(containerd);
    assert_nothing_left(&options);
}

#[tokio::test]
async fn a_later_process_takes_over_and_cleans_up() {
    let dir = tempfile::tempdir().unwrap();
    let options = ContainerdOptions::for_test(dir.path(), 3);
    let containerd = Containerd::start(options.clone()).await.unwrap();
    containerd.import_busybox().await.unwrap();
    run_sandbox(&containerd, "three").await;
    let pid = containerd.keep_running();
    let again = Containerd::start(options.clone()).await.unwrap();
    assert_eq!(again.pid(), pid);
    again.keep_running();
    Containerd::clean_up(&options).await.unwrap();
    assert_nothing_left(&options);
}
