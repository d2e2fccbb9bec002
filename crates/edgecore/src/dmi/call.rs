//! Calls to a mapper.

use std::time::Duration;

use dmi::v1beta1 as proto;
use dmi::v1beta1::device_mapper_service_client::DeviceMapperServiceClient;
use tonic::Status;
use tonic::transport::Channel;

use super::registration::Known;
use super::wanted::digest;

/// How long a mapper may take for a call (KubeEdge v1.23).
pub(super) const CALL_LIMIT: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 10 });

pub(super) type Client = DeviceMapperServiceClient<Channel>;

/// One call to a mapper.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Call {
    Create(String, proto::DeviceModel),
    UpdateModel(String, proto::DeviceModel),
    Register(String, Box<proto::Device>),
    Update(String, Box<proto::Device>),
    Remove(String),
    RemoveModel(String),
}

/// What came of a call.
pub(super) enum Outcome {
    Taken,
    /// The mapper says no.
    Refused(Status),
    /// It did not answer in time: it may be busy with this one alone, and have done it or not.
    Late,
    /// It is not there.
    Gone(Status),
}

impl Call {
    /// The name of the method.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Create(..) => "CreateDeviceModel",
            Self::UpdateModel(..) => "UpdateDeviceModel",
            Self::Register(..) => "RegisterDevice",
            Self::Update(..) => "UpdateDevice",
            Self::Remove(_) => "RemoveDevice",
            Self::RemoveModel(_) => "RemoveDeviceModel",
        }
    }

    /// What the mapper knows once it has taken it.
    pub(super) fn digest(&self) -> Option<Known> {
        Some(Known::Digest(match self {
            Self::Create(_, model) | Self::UpdateModel(_, model) => digest(model),
            Self::Register(_, device) | Self::Update(_, device) => digest(device.as_ref()),
            Self::Remove(_) | Self::RemoveModel(_) => return None,
        }))
    }

    /// What it is about.
    pub(super) fn object(&self) -> &str {
        match self {
            Self::Create(name, _) | Self::UpdateModel(name, _) | Self::RemoveModel(name) => name,
            Self::Register(name, _) | Self::Update(name, _) | Self::Remove(name) => name,
        }
    }
}

/// Makes a call.
pub(super) async fn make(mut client: Client, call: Call) -> Outcome {
    let split =
        |name: &str| name.split_once('/').map(|(space, name)| (space.to_owned(), name.to_owned())).unwrap_or_default();
    let calling = async {
        match call {
            Call::Create(_, model) => {
                client.create_device_model(proto::CreateDeviceModelRequest { model: Some(model) }).await.map(drop)
            }
            Call::UpdateModel(_, model) => {
                client.update_device_model(proto::UpdateDeviceModelRequest { model: Some(model) }).await.map(drop)
            }
            Call::Register(_, device) => {
                client.register_device(proto::RegisterDeviceRequest { device: Some(*device) }).await.map(drop)
            }
            Call::Update(_, device) => {
                client.update_device(proto::UpdateDeviceRequest { device: Some(*device) }).await.map(drop)
            }
            Call::Remove(name) => {
                let (device_namespace, device_name) = split(&name);
                client.remove_device(proto::RemoveDeviceRequest { device_name, device_namespace }).await.map(drop)
            }
            Call::RemoveModel(name) => {
                let (model_namespace, model_name) = split(&name);
                client
                    .remove_device_model(proto::RemoveDeviceModelRequest { model_name, model_namespace })
                    .await
                    .map(drop)
            }
        }
    };
    match tokio::time::timeout(CALL_LIMIT, calling).await {
        Ok(Ok(())) => Outcome::Taken,
        // What the mapper says itself has no source.
        Ok(Err(status)) if std::error::Error::source(&status).is_none() => Outcome::Refused(status),
        Ok(Err(status)) => Outcome::Gone(status),
        Err(_) => Outcome::Late,
    }
}
