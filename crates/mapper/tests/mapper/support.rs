//! Mappers, devices and models of tests.

use std::path::{Path, PathBuf};
use std::time::Duration;

use api::mapper::Config;
use dmi::v1beta1 as proto;
use dmi::v1beta1::device_mapper_service_client::DeviceMapperServiceClient;
use mapper::{Driver, RunError};
use serde_json::Value as Json;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

/// A condition that does not come true until then never will.
const DEADLINE: Duration = Duration::from_secs(30);
/// Of all properties, unless a test says otherwise.
pub const CYCLE: i64 = 20;

pub async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < end, "not within {} s: {what}", DEADLINE.as_secs());
        sleep(Duration::from_millis(5)).await;
    }
}

/// A mapper that runs.
pub struct Running {
    stop: CancellationToken,
    tasks: JoinSet<Result<(), RunError>>,
    socket: PathBuf,
}

impl Running {
    /// Of protocol `stub`.
    pub fn start(folder: &Path, driver: impl Driver) -> Self {
        let folder = folder.display();
        let text = format!(
            "grpc_server: {{socket_path: {folder}/stub.sock}}\n\
             common: {{name: stub-mapper, protocol: stub, edgecore_sock: {folder}/dmi.sock}}\n"
        );
        let config = Config::parse(&text, Path::new("test")).unwrap();
        let (stop, mut tasks, socket) = (CancellationToken::new(), JoinSet::new(), config.socket.clone());
        tasks.spawn(mapper::run(config, driver, stop.clone()));
        Self { stop, tasks, socket }
    }

    pub async fn stop(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap().unwrap();
        }
    }

    /// As edgecore calls it.
    pub async fn client(&self) -> DeviceMapperServiceClient<Channel> {
        until("the mapper listens", || self.socket.exists()).await;
        DeviceMapperServiceClient::new(dmi::socket::channel(self.socket.to_str().unwrap()).unwrap())
    }
}

/// Properties by name, type, access mode, minimum and maximum.
pub fn model(properties: &[(&str, &str, &str, &str, &str)]) -> proto::DeviceModel {
    let properties = properties.iter().map(|(name, kind, access, minimum, maximum)| proto::ModelProperty {
        name: (*name).to_owned(),
        r#type: (*kind).to_owned(),
        access_mode: (*access).to_owned(),
        minimum: (*minimum).to_owned(),
        maximum: (*maximum).to_owned(),
        ..proto::ModelProperty::default()
    });
    let spec = proto::DeviceModelSpec { properties: properties.collect(), commands: Vec::new() };
    proto::DeviceModel { name: "machine".to_owned(), namespace: "default".to_owned(), spec: Some(spec) }
}

/// A device of [`model`] with these properties.
pub fn device(name: &str, properties: Vec<proto::DeviceProperty>) -> proto::Device {
    proto::Device {
        name: name.to_owned(),
        namespace: "default".to_owned(),
        spec: Some(proto::DeviceSpec {
            device_model_reference: "machine".to_owned(),
            properties,
            ..proto::DeviceSpec::default()
        }),
        status: None,
    }
}

/// A property that is told to the cloud; `desired` may be empty.
pub fn property(name: &str, desired: &str) -> proto::DeviceProperty {
    proto::DeviceProperty {
        name: name.to_owned(),
        desired: Some(proto::TwinProperty { value: desired.to_owned(), metadata: Default::default() }),
        collect_cycle: CYCLE,
        report_cycle: CYCLE,
        report_to_cloud: true,
        ..proto::DeviceProperty::default()
    }
}

pub fn configuration(value: &Json) -> Option<proto::CustomizedValue> {
    Some(dmi::value::customized(value.as_object().unwrap()).unwrap())
}

/// What is wished of a property from now on.
pub fn wish(device: &mut proto::Device, property: &str, value: &str) -> proto::UpdateDeviceRequest {
    let properties = &mut device.spec.as_mut().unwrap().properties;
    let property = properties.iter_mut().find(|other| other.name == property).unwrap();
    property.desired.as_mut().unwrap().value = value.to_owned();
    proto::UpdateDeviceRequest { device: Some(device.clone()) }
}
