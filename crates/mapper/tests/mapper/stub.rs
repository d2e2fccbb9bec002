//! A stand-in for edgecore: `DeviceManagerService` on a socket, with everything that it was told.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use dmi::v1beta1 as proto;
use dmi::v1beta1::device_manager_service_server::{DeviceManagerService, DeviceManagerServiceServer};
use futures_util::stream;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

type Judge = Box<dyn Fn(&proto::ReportDeviceStatusRequest) -> Option<Status> + Send>;

/// What edgecore knows and heard.
#[derive(Default)]
pub struct Known {
    pub models: Vec<proto::DeviceModel>,
    pub devices: Vec<proto::Device>,
    pub registrations: Vec<proto::MapperRegisterRequest>,
    pub reports: Vec<proto::ReportDeviceStatusRequest>,
    pub states: Vec<(String, String)>,
    /// Refuses reports.
    pub judge: Option<Judge>,
    /// Fails for every state.
    pub no_states: bool,
}

impl Known {
    /// The latest report of a property.
    pub fn twin(&self, device: &str, property: &str) -> Option<&proto::Twin> {
        let of_device = self.reports.iter().rev().filter(|report| report.device_name == device);
        let twins = of_device.filter_map(|report| report.reported_device.as_ref()).flat_map(|status| &status.twins);
        { twins }.find(|twin| twin.property_name == property)
    }

    /// What the latest report says that it is.
    pub fn reported(&self, device: &str, property: &str) -> Option<&str> {
        self.twin(device, property)?.reported.as_ref().map(|reported| reported.value.as_str())
    }
}

pub struct Stub {
    known: Arc<Mutex<Known>>,
    socket: PathBuf,
    running: Option<(CancellationToken, JoinSet<()>)>,
}

#[derive(Clone)]
struct Service(Arc<Mutex<Known>>);

impl Stub {
    /// Not started.
    pub fn new(folder: &Path) -> Self {
        Self { known: Arc::default(), socket: folder.join("dmi.sock"), running: None }
    }

    pub fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap()
    }

    pub fn start(&mut self) {
        let listener = dmi::socket::listen(&self.socket).unwrap();
        let connections = stream::unfold(listener, |listener| async {
            Some((listener.accept().await.map(|(connection, _)| connection), listener))
        });
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        let server = Server::builder().add_service(DeviceManagerServiceServer::new(Service(self.known.clone())));
        let server = server.serve_with_incoming_shutdown(connections, stop.clone().cancelled_owned());
        tasks.spawn(async { server.await.unwrap() });
        self.running = Some((stop, tasks));
    }

    /// Its socket goes with it.
    pub async fn stop(&mut self) {
        let (stop, mut tasks) = self.running.take().unwrap();
        std::fs::remove_file(&self.socket).unwrap();
        stop.cancel();
        while tasks.join_next().await.is_some() {}
    }
}

#[tonic::async_trait]
impl DeviceManagerService for Service {
    async fn mapper_register(
        &self,
        request: Request<proto::MapperRegisterRequest>,
    ) -> Result<Response<proto::MapperRegisterResponse>, Status> {
        let mut known = self.0.lock().unwrap();
        known.registrations.push(request.into_inner());
        Ok(Response::new(proto::MapperRegisterResponse {
            model_list: known.models.clone(),
            device_list: known.devices.clone(),
        }))
    }

    async fn report_device_status(
        &self,
        request: Request<proto::ReportDeviceStatusRequest>,
    ) -> Result<Response<proto::ReportDeviceStatusResponse>, Status> {
        let request = request.into_inner();
        let mut known = self.0.lock().unwrap();
        if let Some(refused) = known.judge.as_ref().and_then(|judge| judge(&request)) {
            return Err(refused);
        }
        known.reports.push(request);
        Ok(Response::new(proto::ReportDeviceStatusResponse {}))
    }

    async fn report_device_states(
        &self,
        request: Request<proto::ReportDeviceStatesRequest>,
    ) -> Result<Response<proto::ReportDeviceStatesResponse>, Status> {
        let request = request.into_inner();
        let mut known = self.0.lock().unwrap();
        if known.no_states {
            return Err(Status::internal("no states today"));
        }
        known.states.push((request.device_name, request.state));
        Ok(Response::new(proto::ReportDeviceStatesResponse {}))
    }
}
