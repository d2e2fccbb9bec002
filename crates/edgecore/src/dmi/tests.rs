//! DMI between mappers that the tests play and a DeviceTwin.

use std::collections::BTreeSet;
use std::time::Duration;

use dmi::v1beta1 as proto;
use dmi::v1beta1::device_manager_service_client::DeviceManagerServiceClient;
use serde_json::{Value, json};
use tonic::transport::Channel;
use tonic::{Code, Status};
use wire::{kind, operation};

mod events;
mod mapper;
mod registering;
mod reports;
mod telling;
mod trouble;

use super::*;
use crate::device_world::{World, soon};
use mapper::Mapper;

impl World {
    /// MetaManager has stored an object.
    async fn put(&self, kind: &'static str, object: &Value) {
        self.store(operation::UPDATE, kind, object).await;
    }

    /// MetaManager has removed an object.
    async fn delete(&self, kind: &'static str, name: &str) {
        self.store(operation::DELETE, kind, &json!({"metadata": {"name": name}})).await;
    }

    async fn client(&self) -> DeviceManagerServiceClient<Channel> {
        let socket = self.dir().join("dmi.sock");
        let listening = async {
            while !socket.exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        soon("the socket", listening).await;
        DeviceManagerServiceClient::new(dmi::socket::channel(socket.to_str().expect("path")).expect("a channel"))
    }

    async fn register(&self, mapper: &Mapper, protocol: &str) -> proto::MapperRegisterResponse {
        let info = mapper.info(protocol);
        let request = proto::MapperRegisterRequest { with_data: true, mapper: Some(info) };
        self.client().await.mapper_register(request).await.expect("registered").into_inner()
    }

    async fn tells(&self, device: &str, property: &str, value: &str) -> Result<(), Status> {
        self.tells_with(device, property, "", value).await
    }

    async fn tells_with(&self, device: &str, property: &str, observed: &str, value: &str) -> Result<(), Status> {
        let said = |value: &str| Some(proto::TwinProperty { value: value.to_owned(), ..Default::default() });
        let twin =
            proto::Twin { property_name: property.to_owned(), observed_desired: said(observed), reported: said(value) };
        let reported_device = Some(proto::DeviceStatus { twins: vec![twin], ..Default::default() });
        let (device_name, device_namespace) = (device.to_owned(), "default".to_owned());
        let request = proto::ReportDeviceStatusRequest { device_name, reported_device, device_namespace };
        self.client().await.report_device_status(request).await.map(drop)
    }

    /// The stored value of a property.
    fn stored(&self, device: &str, property: &str) -> Option<String> {
        self.stored_side(device, property, "actual")
    }

    fn stored_side(&self, device: &str, property: &str, side: &str) -> Option<String> {
        let sql = "SELECT value FROM property WHERE device = ?1 AND name = ?2";
        let row =
            |c: &store::rusqlite::Connection| c.query_row(sql, [device, property], |row| row.get::<_, Vec<u8>>(0));
        let row: Value = serde_json::from_slice(&self.database().read(row).ok()?).ok()?;
        row[side]["value"].as_str().map(str::to_owned)
    }
}

fn model(name: &str, unit: &str) -> Value {
    let properties = json!([{"name": "t", "type": "INT", "accessMode": "ReadWrite", "unit": unit}]);
    json!({"metadata": {"name": name, "namespace": "default"}, "spec": {"properties": properties}})
}

fn device(name: &str, protocol: &str, t: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid of {name}")},
        "spec": {
            "deviceModelRef": {"name": "m"},
            "protocol": {"protocolName": protocol},
            "properties": [{"name": "t", "desired": {"value": t}}],
        },
    })
}
