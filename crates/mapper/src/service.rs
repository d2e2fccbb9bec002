//! What edgecore calls.

use std::sync::Arc;

use dmi::v1beta1 as proto;
use dmi::v1beta1::device_mapper_service_server::DeviceMapperService;
use tonic::{Request, Response, Status};

use crate::device::Id;
use crate::driver::Driver;
use crate::registry::{Registry, RegistryError};

/// Every call may come again: the same twice is the same once, what is unknown is removed.
pub(crate) struct Service<D: Driver>(pub Arc<Registry<D>>);

type Answer<T> = Result<Response<T>, Status>;

impl From<RegistryError> for Status {
    fn from(error: RegistryError) -> Self {
        let message = error.to_string();
        match error {
            RegistryError::UnknownModel { .. } => Self::failed_precondition(message),
            RegistryError::UnknownDevice(_) => Self::not_found(message),
            RegistryError::Full(..) => Self::resource_exhausted(message),
            RegistryError::Missing(_) | RegistryError::Device(_) => Self::invalid_argument(message),
        }
    }
}

#[tonic::async_trait]
impl<D: Driver> DeviceMapperService for Service<D> {
    async fn register_device(
        &self,
        request: Request<proto::RegisterDeviceRequest>,
    ) -> Answer<proto::RegisterDeviceResponse> {
        let id = self.0.put_device(request.into_inner().device)?;
        Ok(Response::new(proto::RegisterDeviceResponse { device_name: id.name, device_namespace: id.namespace }))
    }

    async fn update_device(&self, request: Request<proto::UpdateDeviceRequest>) -> Answer<proto::UpdateDeviceResponse> {
        self.0.put_device(request.into_inner().device)?;
        Ok(Response::new(proto::UpdateDeviceResponse {}))
    }

    async fn remove_device(&self, request: Request<proto::RemoveDeviceRequest>) -> Answer<proto::RemoveDeviceResponse> {
        let request = request.into_inner();
        self.0.remove_device(&Id::new(&request.device_namespace, &request.device_name));
        Ok(Response::new(proto::RemoveDeviceResponse {}))
    }

    async fn create_device_model(
        &self,
        request: Request<proto::CreateDeviceModelRequest>,
    ) -> Answer<proto::CreateDeviceModelResponse> {
        let id = self.0.put_model(request.into_inner().model)?;
        Ok(Response::new(proto::CreateDeviceModelResponse {
            device_model_name: id.name,
            device_model_namespace: id.namespace,
        }))
    }

    async fn update_device_model(
        &self,
        request: Request<proto::UpdateDeviceModelRequest>,
    ) -> Answer<proto::UpdateDeviceModelResponse> {
        self.0.put_model(request.into_inner().model)?;
        Ok(Response::new(proto::UpdateDeviceModelResponse {}))
    }

    async fn remove_device_model(
        &self,
        request: Request<proto::RemoveDeviceModelRequest>,
    ) -> Answer<proto::RemoveDeviceModelResponse> {
        let request = request.into_inner();
        self.0.remove_model(&Id::new(&request.model_namespace, &request.model_name));
        Ok(Response::new(proto::RemoveDeviceModelResponse {}))
    }

    async fn get_device(&self, request: Request<proto::GetDeviceRequest>) -> Answer<proto::GetDeviceResponse> {
        let request = request.into_inner();
        let device = self.0.device(&Id::new(&request.device_namespace, &request.device_name))?;
        Ok(Response::new(proto::GetDeviceResponse { device: Some(device) }))
    }
}
