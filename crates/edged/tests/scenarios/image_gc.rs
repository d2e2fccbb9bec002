//! Garbage collection of images.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use testkit::cri;

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
