//! Garbage collection of images.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use podlife::eviction::{Amount, Signal, Threshold};
use serde_json::json;
use testkit::cri;

use crate::site::is_ready;
use crate::{Site, pod, pod_with};

const MI: usize = 1 << 20;

/// A file system of its own for containerd, in memory.
fn small_disk(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=100m", "tmpfs"]).arg(folder).status().unwrap();
    assert!(mounted.success());
}

/// Names of the images that containerd has.
async fn images(site: &Site) -> Vec<String> {
    let request = cri::ListImagesRequest::default();
    let images = site.containerd.images().await.unwrap().list_images(request).await.unwrap().into_inner().images;
    images.into_iter().flat_map(|image| image.repo_tags).collect()
}

/// Part of a file system in use, in percent.
fn used(folder: &Path) -> u64 {
    let stat = rustix::fs::statvfs(folder).unwrap();
    100 - stat.f_bavail * 100 / stat.f_blocks
}

#[tokio::test]
async fn t74_a_full_disk_loses_the_images_that_were_unused_for_longest() {
    let mut disk = None;
    let mut site = Site::prepare_on(
        |folder| {
            small_disk(folder);
            disk = Some(folder.to_owned());
        },
        |settings| {
            settings.image_gc.high_percent = 85;
            settings.image_gc.min_age = Duration::from_secs(1);
        },
    )
    .await;
    let disk = disk.unwrap();
    let name = |which: &str| format!("docker.io/library/{which}:1");
    for which in ["late", "early", "never"] {
        site.containerd.import_filler(&name(which), 3 * MI).await.unwrap();
    }
    site.start_edged();
    site.run(pod("busy")).await;
    for which in ["early", "late"] {
        let ran = pod_with(which, |pod| pod["spec"]["containers"][0]["image"] = json!(name(which)));
        site.run(ran).await;
        site.cloud.delete(which, 0).await;
        site.until_gone(which).await;
    }
    assert!(used(&disk) < 80, "{}", used(&disk));
    assert_eq!(images(&site).await.len(), 5);
    site.containerd.import_filler(&name("young"), MI / 4).await.unwrap();
    let stat = rustix::fs::statvfs(&disk).unwrap();
    let room = (stat.f_bavail * stat.f_frsize) - stat.f_blocks * stat.f_frsize * 13 / 100;
    std::fs::write(disk.join("ballast"), vec![0; usize::try_from(room).unwrap()]).unwrap();
    assert!(used(&disk) >= 86, "{}", used(&disk));
    site.eventually("room is made", async || used(&disk) <= 80).await;
    // The pods must find room to end.
    std::fs::remove_file(disk.join("ballast")).unwrap();
    let mut left = images(&site).await;
    left.sort_unstable();
    let expected = ["busybox", "late", "young"].map(name);
    assert_eq!(left, [&["docker.io/kubeedge/pause:3.6".to_owned()], expected.as_slice()].concat());
}

#[tokio::test]
async fn ev5_containers_that_have_ended_go_before_a_pod_is_evicted() {
    let mut disk = None;
    let mut site = Site::prepare_on(
        |folder| {
            small_disk(folder);
            disk = Some(folder.to_owned());
        },
        |settings| {
            settings.image_gc.high_percent = 100;
            settings.eviction.thresholds = vec![Threshold {
                signal: Signal::ImageFsAvailable,
                value: Amount::Absolute((15 * MI) as u64),
                grace: Duration::ZERO,
                min_reclaim: None,
            }];
        },
    )
    .await;
    let disk = disk.unwrap();
    site.start_edged();
    site.run(pod("busy")).await;
    let writer = pod_with("done", |pod| {
        pod["spec"]["restartPolicy"] = json!("Never");
        pod["spec"]["containers"][0]["command"] = json!(["sh", "-c", "dd if=/dev/zero of=/file bs=1M count=30"]);
    });
    site.cloud.create(writer).await;
    site.until("done", "succeeded", |pod| pod["status"]["phase"] == "Succeeded").await;
    let stat = rustix::fs::statvfs(&disk).unwrap();
    let room = stat.f_bavail * stat.f_frsize - 10 * MI as u64;
    std::fs::write(disk.join("ballast"), vec![0; usize::try_from(room).unwrap()]).unwrap();
    site.eventually("what has ended is gone", async || site.containers("done").await.is_empty()).await;
    let told = async || site.cloud.events("n1").contains(&"EvictionThresholdMet".to_owned());
    site.eventually("the shortage is told", told).await;
    // containerd frees the layer after the container has left its list.
    let free = || rustix::fs::statvfs(&disk).map(|stat| stat.f_bavail * stat.f_frsize).unwrap();
    site.eventually("its disk is free", async || free() > 30 * MI as u64).await;
    assert_eq!(site.cloud.pod("done").unwrap()["status"]["phase"], "Succeeded", "its status stays");
    assert!(is_ready(&site.cloud.pod("busy").unwrap()), "nobody is evicted");
    std::fs::remove_file(disk.join("ballast")).unwrap();
}
