//! Calls about what is used: by containers and sandboxes, and by images, which can also be removed.

use std::collections::BTreeMap;

use super::error::ignore_missing;
use super::proto;
use super::{CALL_LIMIT, CriClient, CriError, STATUS_LIMIT};

impl CriClient {
    /// Usage of running containers that carry all these labels.
    pub async fn container_stats(
        &self,
        labels: BTreeMap<String, String>,
    ) -> Result<Vec<proto::ContainerStats>, CriError> {
        let mut client = self.runtime.clone();
        let filter = proto::ContainerStatsFilter { label_selector: labels, ..Default::default() };
        let request = proto::ListContainerStatsRequest { filter: Some(filter) };
        Ok(self.call("ListContainerStats", STATUS_LIMIT, client.list_container_stats(request)).await?.stats)
    }

    /// Usage of sandboxes; nothing from runtimes that do not know the call (containerd before 1.6).
    pub async fn sandbox_stats(&self) -> Result<Vec<proto::PodSandboxStats>, CriError> {
        let mut client = self.runtime.clone();
        let request = proto::ListPodSandboxStatsRequest::default();
        match self.call("ListPodSandboxStats", STATUS_LIMIT, client.list_pod_sandbox_stats(request)).await {
            Ok(answer) => Ok(answer.stats),
            Err(error) if error.is_unimplemented() => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Where images and writable layers are, and what they take.
    pub async fn image_fs_info(&self) -> Result<proto::ImageFsInfoResponse, CriError> {
        let mut client = self.images.clone();
        self.call("ImageFsInfo", STATUS_LIMIT, client.image_fs_info(proto::ImageFsInfoRequest {})).await
    }

    /// All images of this node.
    pub async fn list_images(&self) -> Result<Vec<proto::Image>, CriError> {
        let mut client = self.images.clone();
        Ok(self.call("ListImages", CALL_LIMIT, client.list_images(proto::ListImagesRequest::default())).await?.images)
    }

    /// Removes an image with all its names. One that is gone is fine.
    pub async fn remove_image(&self, image: &str) -> Result<(), CriError> {
        let mut client = self.images.clone();
        let spec = proto::ImageSpec { image: image.to_owned(), ..Default::default() };
        let request = proto::RemoveImageRequest { image: Some(spec) };
        ignore_missing(self.call("RemoveImage", CALL_LIMIT, client.remove_image(request)).await)
    }

    /// The image that the runtime makes sandboxes of, where it tells (containerd).
    pub async fn sandbox_image(&self) -> Result<Option<String>, CriError> {
        let mut client = self.runtime.clone();
        let answer = self.call("Status", STATUS_LIMIT, client.status(proto::StatusRequest { verbose: true })).await?;
        let config = answer.info.get("config").and_then(|text| serde_json::from_str::<serde_json::Value>(text).ok());
        Ok(config.and_then(|config| config["sandboxImage"].as_str().map(str::to_owned)))
    }
}
