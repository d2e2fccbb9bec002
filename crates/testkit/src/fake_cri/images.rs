//! The gRPC half of the fake runtime: images.

use tonic::{Request, Response, Status, async_trait};

use super::service::Service;
use crate::cri::{self as proto, image_service_server::ImageService};

fn image(name: &str) -> proto::Image {
    proto::Image {
        id: format!("sha256:{name}"),
        repo_tags: vec![name.to_owned()],
        repo_digests: Vec::new(),
        size: 1_000_000,
        uid: Some(proto::Int64Value { value: 0 }),
        username: String::new(),
        spec: None,
        pinned: false,
    }
}

fn name_of(spec: Option<proto::ImageSpec>) -> String {
    spec.unwrap_or_default().image
}

#[async_trait]
impl ImageService for Service {
    async fn list_images(
        &self,
        _: Request<proto::ListImagesRequest>,
    ) -> Result<Response<proto::ListImagesResponse>, Status> {
        self.enter("ListImages").await?;
        let images = self.shared.world().images.iter().map(|name| image(name)).collect();
        Ok(Response::new(proto::ListImagesResponse { images }))
    }

    async fn image_status(
        &self,
        request: Request<proto::ImageStatusRequest>,
    ) -> Result<Response<proto::ImageStatusResponse>, Status> {
        self.enter("ImageStatus").await?;
        let asked = name_of(request.into_inner().image);
        let asked = asked.strip_prefix("sha256:").unwrap_or(&asked);
        let world = self.shared.world();
        // A short name finds the full one, as in containerd.
        let full = format!("docker.io/library/{asked}");
        let found = [asked, &full].into_iter().find(|name| world.images.contains(*name));
        Ok(Response::new(proto::ImageStatusResponse { image: found.map(image) }))
    }

    async fn pull_image(
        &self,
        request: Request<proto::PullImageRequest>,
    ) -> Result<Response<proto::PullImageResponse>, Status> {
        self.enter("PullImage").await?;
        let name = name_of(request.into_inner().image);
        let mut world = self.shared.world();
        if !world.registry.contains(&name) {
            return Err(Status::not_found(format!(
                "failed to pull and unpack image {name:?}: failed to resolve reference {name:?}: {name}: not found"
            )));
        }
        world.images.insert(name.clone());
        Ok(Response::new(proto::PullImageResponse { image_ref: image(&name).id }))
    }

    async fn remove_image(
        &self,
        request: Request<proto::RemoveImageRequest>,
    ) -> Result<Response<proto::RemoveImageResponse>, Status> {
        self.enter("RemoveImage").await?;
        let name = name_of(request.into_inner().image);
        self.shared.world().images.remove(&name);
        Ok(Response::new(proto::RemoveImageResponse {}))
    }

    async fn image_fs_info(
        &self,
        _: Request<proto::ImageFsInfoRequest>,
    ) -> Result<Response<proto::ImageFsInfoResponse>, Status> {
        self.enter("ImageFsInfo").await?;
        Ok(Response::new(proto::ImageFsInfoResponse::default()))
    }
}
