//! What mappers call: DeviceManagerService.

use std::collections::BTreeMap;
use std::time::Duration;

use beehive::compose;
use dmi::v1beta1 as proto;
use dmi::v1beta1::device_manager_service_server::{DeviceManagerService, DeviceManagerServiceServer};
use futures_util::stream;
use serde_json::{Map, Value, json};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use tracing::warn;
use twin::topic::DeviceId;

use super::registration::{Registration, Told};
use super::{NotRegistered, Registering};
use crate::eventbus::{Arrived, Refused};

/// Calls of one mapper at the same time; more wait.
const MAX_CALLS: usize = 64;
/// How long a call may take: reports wait for the disk.
const CALL_LIMIT: Duration = Duration::from_secs(30);
/// Refused properties that an answer names.
const MAX_NAMED: usize = 5;
/// The longest path of a unix socket (Linux).
const MAX_PATH: usize = 107;

pub(super) struct Service {
    pub(super) to_twin: mpsc::Sender<Arrived>,
    pub(super) registering: mpsc::Sender<Registering>,
}

/// Serves until `stopping`.
pub(super) async fn serve(
    listener: UnixListener,
    service: Service,
    stopping: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    // The descriptor was made by the build.
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(dmi::DESCRIPTOR)
        .build_v1()
        .ok();
    Server::builder()
        .timeout(CALL_LIMIT)
        .concurrency_limit_per_connection(MAX_CALLS)
        .add_service(DeviceManagerServiceServer::new(service))
        .add_optional_service(reflection)
        .serve_with_incoming_shutdown(connections(listener), stopping)
        .await
}

/// Whoever connects.
pub(super) fn connections(listener: UnixListener) -> impl stream::Stream<Item = std::io::Result<UnixStream>> {
    stream::try_unfold(listener, |listener| async {
        let (connection, _) = listener.accept().await?;
        Ok(Some((connection, listener)))
    })
}

#[tonic::async_trait]
impl DeviceManagerService for Service {
    async fn mapper_register(
        &self,
        request: Request<proto::MapperRegisterRequest>,
    ) -> Result<Response<proto::MapperRegisterResponse>, Status> {
        let proto::MapperRegisterRequest { with_data, mapper } = request.into_inner();
        let mapper = registration(mapper.unwrap_or_default(), with_data)
            .inspect_err(|refused| warn!(reason = refused.message(), "a mapper was not registered"))?;
        let (answer, answered) = oneshot::channel();
        let stops = |_| Status::unavailable("edgecore stops, try again");
        self.registering.send(Registering { mapper, answer }).await.map_err(|_| stops(()))?;
        match answered.await.map_err(|_| stops(()))? {
            Ok(wanted) => Ok(Response::new(wanted.message())),
            Err(error @ NotRegistered::TooMany) => Err(Status::resource_exhausted(error.to_string())),
            Err(error) => Err(Status::unavailable(error.to_string())),
        }
    }

    async fn report_device_status(
        &self,
        request: Request<proto::ReportDeviceStatusRequest>,
    ) -> Result<Response<proto::ReportDeviceStatusResponse>, Status> {
        let request = request.into_inner();
        let device = device(&request.device_namespace, &request.device_name)?;
        let twins = request.reported_device.map(|reported| reported.twins).unwrap_or_default();
        if twins.is_empty() {
            return Err(Status::invalid_argument("reportedDevice has no twins: nothing is reported"));
        }
        // One after the other, as one program would say them over MQTT: a refused one does not hold up the rest.
        let mut refusals = Vec::new();
        let mut waiting = Vec::new();
        for twin in twins {
            let payload = json!({"event_id": "", "timestamp": compose::now(), "twin": entry(twin)});
            waiting.push(self.say(device.topic("twin/update"), &payload).await?);
        }
        for answer in waiting {
            refusals.extend(answered(answer).await?);
        }
        done(refusals, proto::ReportDeviceStatusResponse {})
    }

    async fn report_device_states(
        &self,
        request: Request<proto::ReportDeviceStatesRequest>,
    ) -> Result<Response<proto::ReportDeviceStatesResponse>, Status> {
        let request = request.into_inner();
        let device = device(&request.device_namespace, &request.device_name)?;
        let payload = json!({"event_id": "", "timestamp": compose::now(), "state": request.state});
        let answer = self.say(device.topic("state/update"), &payload).await?;
        done(answered(answer).await?.into_iter().collect(), proto::ReportDeviceStatesResponse {})
    }
}

type Answer = oneshot::Receiver<Option<Refused>>;

impl Service {
    async fn say(&self, topic: String, payload: &Value) -> Result<Answer, Status> {
        let (arrived, answer) = Arrived::with_answer(topic, payload.to_string().into());
        self.to_twin.send(arrived).await.map_err(|_| Status::unavailable("edgecore stops, try again"))?;
        Ok(answer)
    }
}

/// It has been written down, or refused.
async fn answered(answer: Answer) -> Result<Option<Refused>, Status> {
    answer.await.map_err(|_| Status::unavailable("the report could not be stored, try again"))
}

fn done<T>(refusals: Vec<Refused>, answer: T) -> Result<Response<T>, Status> {
    let Some(first) = refusals.first() else { return Ok(Response::new(answer)) };
    // It travels in a header.
    let named = refusals.iter().take(MAX_NAMED).map(|refused| refused.reason.as_str());
    let mut reasons = named.collect::<Vec<_>>().join("; ");
    if refusals.len() > MAX_NAMED {
        reasons += &format!("; and {} more", refusals.len() - MAX_NAMED);
    }
    Err(match first.code {
        404 => Status::not_found(reasons),
        _ => Status::invalid_argument(reasons),
    })
}

/// A value and the desired one that the mapper has seen, as a device says them. What is not there is not said.
fn entry(twin: proto::Twin) -> Value {
    let value = |property: Option<proto::TwinProperty>| property.map(|p| p.value).filter(|value| !value.is_empty());
    let mut entry = Map::new();
    if let Some(expected) = value(twin.observed_desired) {
        entry.insert("expected".to_owned(), json!({"value": expected}));
    }
    if let Some(actual) = value(twin.reported) {
        entry.insert("actual".to_owned(), json!({"value": actual}));
    }
    json!(BTreeMap::from([(twin.property_name, entry)]))
}

fn device(namespace: &str, name: &str) -> Result<DeviceId, Status> {
    let namespace = if namespace.is_empty() { "default" } else { namespace };
    DeviceId::parse(&format!("{namespace}/{name}")).filter(|_| !name.is_empty()).ok_or_else(|| {
        Status::invalid_argument(format!("{namespace:?} and {name:?} are not namespace and name of a device"))
    })
}

fn registration(mapper: proto::MapperInfo, with_data: bool) -> Result<Registration, Status> {
    let refuse = |why: String| Err(Status::invalid_argument(format!("mapper {:?}: {why}", mapper.name)));
    if mapper.protocol.is_empty() {
        return refuse("protocol is empty: it says whose devices the mapper drives".to_owned());
    }
    if [&mapper.name, &mapper.version, &mapper.protocol].iter().any(|text| text.len() > 256) {
        return refuse("name, version and protocol have 256 bytes at most".to_owned());
    }
    let address = String::from_utf8_lossy(&mapper.address).into_owned();
    let is_path = address.starts_with('/') && address.len() <= MAX_PATH && dmi::socket::channel(&address).is_ok();
    if with_data && !is_path {
        return refuse(format!(
            "address {address:?} is not the absolute path of a unix socket ({MAX_PATH} bytes at most)"
        ));
    }
    Ok(Registration {
        protocol: mapper.protocol,
        name: mapper.name,
        version: mapper.version,
        address,
        with_data,
        told: Told::default(),
    })
}
