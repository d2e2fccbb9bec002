//! A mapper that notes what it is told.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use dmi::v1beta1 as proto;
use dmi::v1beta1::device_mapper_service_server::{DeviceMapperService, DeviceMapperServiceServer};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use super::super::service;
use crate::device_world::soon;

/// A mapper that notes what it is told.
pub(super) struct Mapper {
    pub(super) socket: PathBuf,
    state: Arc<State>,
    pub(super) calls: mpsc::Receiver<String>,
    /// It ends with it.
    serving: JoinSet<()>,
}

struct State {
    calls: mpsc::Sender<String>,
    /// Objects that it refuses.
    refuses: Mutex<BTreeSet<String>>,
    /// Objects about which it does not answer.
    hangs: Mutex<BTreeSet<String>>,
}

struct Service(Arc<State>);

impl Mapper {
    pub(super) fn at(dir: &Path, name: &str) -> Self {
        let (calls, heard) = mpsc::channel(4096);
        let state = Arc::new(State { calls, refuses: Mutex::default(), hangs: Mutex::default() });
        Self { socket: dir.join(name), state, calls: heard, serving: JoinSet::new() }
    }

    pub(super) fn serving(dir: &Path, name: &str) -> Self {
        let mut mapper = Self::at(dir, name);
        mapper.serve();
        mapper
    }

    pub(super) fn serve(&mut self) {
        let listener = dmi::socket::listen(&self.socket).expect("listens");
        let service = DeviceMapperServiceServer::new(Service(self.state.clone()));
        let serving = Server::builder().add_service(service).serve_with_incoming(service::connections(listener));
        self.serving.spawn(async move { serving.await.expect("served") });
    }

    /// It ends, and its socket with it.
    pub(super) async fn end(&mut self) {
        self.serving.shutdown().await;
        std::fs::remove_file(&self.socket).expect("gone");
    }

    pub(super) fn info(&self, protocol: &str) -> proto::MapperInfo {
        proto::MapperInfo {
            name: "stub".to_owned(),
            protocol: protocol.to_owned(),
            address: self.socket.to_str().expect("path").as_bytes().to_vec(),
            ..Default::default()
        }
    }

    pub(super) fn hang(&self, object: &str, hangs: bool) {
        let mut all = self.state.hangs.lock().expect("lock");
        if hangs {
            all.insert(object.to_owned())
        } else {
            all.remove(object)
        };
    }

    pub(super) fn refuse(&self, object: &str, refuses: bool) {
        let mut all = self.state.refuses.lock().expect("lock");
        if refuses {
            all.insert(object.to_owned())
        } else {
            all.remove(object)
        };
    }

    /// The next call: its name and what it is about.
    pub(super) async fn next(&mut self) -> String {
        soon("a call", self.calls.recv()).await.expect("told")
    }

    /// The next call is this one.
    pub(super) async fn hears(&mut self, call: &str) {
        let heard = soon(call, self.calls.recv()).await;
        assert_eq!(heard.as_deref(), Some(call));
    }

    /// Calls until this one.
    pub(super) async fn calls_until(&mut self, last: &str) {
        let until = async { while self.calls.recv().await.expect("told") != last {} };
        soon(last, until).await;
    }
}

impl Service {
    async fn note(&self, call: &str, object: &str, more: &str) -> Result<(), Status> {
        self.0.calls.send(format!("{call} {object}{more}")).await.expect("heard");
        let hangs = self.0.hangs.lock().expect("lock").contains(object);
        if hangs {
            std::future::pending::<()>().await;
        }
        match self.0.refuses.lock().expect("lock").contains(object) {
            true => Err(Status::internal("stub refuses")),
            false => Ok(()),
        }
    }
}

/// A device's desired values.
fn desired(device: &proto::Device) -> String {
    let properties = device.spec.iter().flat_map(|spec| &spec.properties);
    properties.filter_map(|property| Some(format!(" {}={}", property.name, property.desired.as_ref()?.value))).collect()
}

#[tonic::async_trait]
impl DeviceMapperService for Service {
    async fn register_device(
        &self,
        request: Request<proto::RegisterDeviceRequest>,
    ) -> Result<Response<proto::RegisterDeviceResponse>, Status> {
        let device = request.into_inner().device.expect("a device");
        self.note("RegisterDevice", &device.name, &desired(&device)).await?;
        Ok(Response::new(proto::RegisterDeviceResponse {
            device_name: device.name,
            device_namespace: device.namespace,
        }))
    }

    async fn remove_device(
        &self,
        request: Request<proto::RemoveDeviceRequest>,
    ) -> Result<Response<proto::RemoveDeviceResponse>, Status> {
        self.note("RemoveDevice", &request.into_inner().device_name, "").await?;
        Ok(Response::new(proto::RemoveDeviceResponse {}))
    }

    async fn update_device(
        &self,
        request: Request<proto::UpdateDeviceRequest>,
    ) -> Result<Response<proto::UpdateDeviceResponse>, Status> {
        let device = request.into_inner().device.expect("a device");
        self.note("UpdateDevice", &device.name, &desired(&device)).await?;
        Ok(Response::new(proto::UpdateDeviceResponse {}))
    }

    async fn create_device_model(
        &self,
        request: Request<proto::CreateDeviceModelRequest>,
    ) -> Result<Response<proto::CreateDeviceModelResponse>, Status> {
        let model = request.into_inner().model.expect("a model");
        self.note("CreateDeviceModel", &model.name, "").await?;
        Ok(Response::new(proto::CreateDeviceModelResponse {
            device_model_name: model.name,
            device_model_namespace: model.namespace,
        }))
    }

    async fn remove_device_model(
        &self,
        request: Request<proto::RemoveDeviceModelRequest>,
    ) -> Result<Response<proto::RemoveDeviceModelResponse>, Status> {
        self.note("RemoveDeviceModel", &request.into_inner().model_name, "").await?;
        Ok(Response::new(proto::RemoveDeviceModelResponse {}))
    }

    async fn update_device_model(
        &self,
        request: Request<proto::UpdateDeviceModelRequest>,
    ) -> Result<Response<proto::UpdateDeviceModelResponse>, Status> {
        self.note("UpdateDeviceModel", &request.into_inner().model.expect("a model").name, "").await?;
        Ok(Response::new(proto::UpdateDeviceModelResponse {}))
    }

    async fn get_device(
        &self,
        _: Request<proto::GetDeviceRequest>,
    ) -> Result<Response<proto::GetDeviceResponse>, Status> {
        Err(Status::unimplemented("never called"))
    }
}
