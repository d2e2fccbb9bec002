//! Removes images that nobody uses when they fill the disk, or when they have become too old.
//!
//! How full the disk is costs one system call, so it is looked at often; the runtime is asked only when something is to be
//! done, and every few minutes for which images are in use.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use podlife::image_gc::{Image, Records};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::cri::{CriError, proto};
use crate::events::{EventType, Recorder};
use crate::runtime::Runtime;
use crate::settings::Settings;
use crate::stats::{Stats, files};

/// Between looks at the disk.
const LOOK: Duration = Duration::from_secs(10);
/// Between looks at the images, and after an attempt that freed too little (Kubernetes).
const PERIOD: Duration = Duration::from_secs(300);

/// Why too little was freed.
#[derive(Debug, thiserror::Error)]
pub enum ImageGcError {
    /// The runtime did not answer.
    #[error("the runtime's images cannot be listed")]
    List(#[source] CriError),
    /// Too few images may go.
    #[error(
        "Failed to garbage collect required amount of images. Attempted to free {wanted} bytes, but only found {freed} bytes eligible to free."
    )]
    TooLittle {
        /// Bytes that should have been freed.
        wanted: u64,
        /// Bytes that were.
        freed: u64,
    },
}

/// Knows which images are in use, and removes others.
pub struct ImageCollector {
    settings: Arc<Settings>,
    runtime: Arc<Runtime>,
    stats: Stats,
    recorder: Recorder,
    began: Instant,
    records: Mutex<Records>,
}

impl ImageCollector {
    /// A collector for the images of this runtime.
    pub fn new(settings: Arc<Settings>, runtime: Arc<Runtime>, stats: Stats, recorder: Recorder) -> Self {
        Self { settings, runtime, stats, recorder, began: Instant::now(), records: Mutex::default() }
    }

    /// Works until cancelled.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let work = async {
            let mut looked: Option<Instant> = None;
            let mut failed: Option<Instant> = None;
            loop {
                if looked.is_none_or(|at| at.elapsed() >= PERIOD) {
                    looked = self.look().await.then(Instant::now);
                }
                if failed.is_none_or(|at| at.elapsed() >= PERIOD) {
                    failed = if self.make_room(failed.is_some()).await { None } else { Some(Instant::now()) };
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::select! {
            () = work => {}
            () = stop.cancelled() => {}
        }
    }

    /// Removes every image that may go. Returns how many bytes that were.
    ///
    /// # Errors
    /// The runtime did not answer.
    pub async fn remove_unused(&self) -> Result<u64, ImageGcError> {
        let mut records = self.records.lock().await;
        self.detect(&mut records).await?;
        let unused = records.unused(self.settings.image_gc.min_age, Instant::now());
        Ok(self.remove(unused, u64::MAX).await)
    }

    /// Notes what is in use, and removes what nobody has used for too long. False when the runtime did not answer.
    async fn look(&self) -> bool {
        let mut records = self.records.lock().await;
        if let Err(error) = self.detect(&mut records).await {
            tracing::debug!(error = &error as &dyn std::error::Error, "images not looked at");
            return false;
        }
        let outdated = records.outdated(self.settings.image_gc.max_age, self.began, Instant::now());
        self.remove(outdated, u64::MAX).await;
        true
    }

    /// Frees as much as the settings want; false when that did not succeed.
    async fn make_room(&self, failed_before: bool) -> bool {
        let Ok(Some(folders)) = self.stats.image_fs().await else { return true };
        let Some(fs) = files::file_system(&folders.images, Timestamp::now()) else { return true };
        let (capacity, available) = (fs.capacity_bytes.unwrap_or_default(), fs.available_bytes.unwrap_or_default());
        if capacity == 0 {
            self.recorder.node(EventType::Warning, "InvalidDiskCapacity", "invalid capacity 0 on image filesystem");
            return false;
        }
        let Some(wanted) = self.settings.image_gc.bytes_to_free(capacity, available) else { return true };
        tracing::info!(wanted_bytes = wanted, "the disk of images is too full; removing those that nobody uses");
        let Err(error) = self.free(wanted).await else { return true };
        tracing::warn!(error = &error as &dyn std::error::Error, "not enough room was made for images");
        if matches!(error, ImageGcError::TooLittle { .. }) {
            self.recorder.node(EventType::Warning, "FreeDiskSpaceFailed", error.to_string());
        }
        if failed_before {
            self.recorder.node(EventType::Warning, "ImageGCFailed", error.to_string());
        }
        false
    }

    async fn free(&self, wanted: u64) -> Result<(), ImageGcError> {
        let mut records = self.records.lock().await;
        self.detect(&mut records).await?;
        let unused = records.unused(self.settings.image_gc.min_age, Instant::now());
        let freed = self.remove(unused, wanted).await;
        if freed < wanted { Err(ImageGcError::TooLittle { wanted, freed }) } else { Ok(()) }
    }

    /// Removes images from the front until so much is freed; one that cannot be removed is left out.
    async fn remove(&self, images: Vec<(String, u64)>, wanted: u64) -> u64 {
        let mut freed = 0_u64;
        for (id, size) in images {
            if freed >= wanted {
                break;
            }
            match self.runtime.cri().remove_image(&id).await {
                Ok(()) => {
                    tracing::info!(image = id, size, "removed an image that nobody uses");
                    freed = freed.saturating_add(size);
                }
                Err(error) => {
                    tracing::warn!(image = id, error = &error as &dyn std::error::Error, "image not removed");
                }
            }
        }
        freed
    }

    async fn detect(&self, records: &mut Records) -> Result<(), ImageGcError> {
        let cri = self.runtime.cri();
        let asked = tokio::try_join!(cri.list_images(), cri.list_containers(Default::default()));
        let (images, containers) = asked.map_err(ImageGcError::List)?;
        let mut used: BTreeSet<String> = containers
            .into_iter()
            .flat_map(|c| [c.image_ref, c.image.map(|spec| spec.image).unwrap_or_default()])
            .collect();
        used.insert(self.settings.pause_image.clone());
        // What the runtime makes sandboxes of counts even if it is another one; runtimes before CRI's `pinned` do not say so.
        used.extend(cri.sandbox_image().await.ok().flatten());
        let images: Vec<Image> = images.iter().map(|image| facts(image, &used)).collect();
        records.detect(&images, Instant::now());
        for (id, at) in self.runtime.image_uses() {
            records.used(&id, at);
        }
        Ok(())
    }
}

fn facts(image: &proto::Image, used: &BTreeSet<String>) -> Image {
    let mut names = image.repo_tags.iter().chain(&image.repo_digests).chain([&image.id]);
    let short = |name: &str| {
        let name = name.strip_prefix("docker.io/").unwrap_or(name);
        used.contains(name) || name.strip_prefix("library/").is_some_and(|name| used.contains(name))
    };
    Image {
        id: image.id.clone(),
        size: image.size,
        pinned: image.pinned,
        in_use: names.any(|name| used.contains(name) || short(name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_use_by_any_name() {
        let image = proto::Image {
            id: "sha256:1".into(),
            repo_tags: vec!["docker.io/kubeedge/pause:3.6".into(), "docker.io/library/nginx:1".into()],
            repo_digests: vec!["example.com/a@sha256:2".into()],
            size: 5,
            ..Default::default()
        };
        for (used, in_use) in [
            ("sha256:1", true),
            ("kubeedge/pause:3.6", true),
            ("docker.io/kubeedge/pause:3.6", true),
            ("nginx:1", true),
            ("example.com/a@sha256:2", true),
            ("pause:3.6", false),
            ("", false),
        ] {
            assert_eq!(facts(&image, &BTreeSet::from([used.to_owned()])).in_use, in_use, "{used}");
        }
    }
}
