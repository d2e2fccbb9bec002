//! What a mapper has to know, by the objects that MetaManager keeps.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher};

use dmi::convert::{Device, DeviceModel};
use dmi::v1beta1 as proto;
use prost::Message;
use store::{Database, StoreError};
use wire::kind;

use super::registration::{Known, Told};

/// Devices of one protocol and their models, by namespace and name.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    pub(super) models: BTreeMap<String, proto::DeviceModel>,
    pub(super) devices: BTreeMap<String, proto::Device>,
    /// Devices of this protocol that no mapper can be told of, and why.
    pub(super) left_out: Vec<(String, String)>,
    /// The uids of all of these.
    pub(super) uids: BTreeMap<String, String>,
}

impl Wanted {
    /// The same as [`Wanted::read`], away from where others wait.
    pub(super) async fn read_aside(database: &Database, protocol: &str) -> Result<Self, StoreError> {
        let (database, protocol) = (database.clone(), protocol.to_owned());
        let reading = tokio::task::spawn_blocking(move || Self::read(&database, &protocol));
        match reading.await.map_err(tokio::task::JoinError::try_into_panic) {
            Ok(read) => read,
            Err(Ok(panic)) => std::panic::resume_unwind(panic),
            // The runtime ends.
            Err(Err(_)) => std::future::pending().await,
        }
    }

    /// Those of this protocol.
    ///
    /// A model goes to the mapper of its devices' protocol, whatever its own `protocol` says (KubeEdge v1.23 needs both to be equal).
    pub(super) fn read(database: &Database, protocol: &str) -> Result<Self, StoreError> {
        let mut wanted = Self::default();
        let mut models: BTreeMap<String, Result<DeviceModel, String>> = BTreeMap::new();
        for (name, device) in devices(database)? {
            let device = match device {
                Ok(device) if device.protocol() == protocol => device,
                Ok(_) => continue,
                // It may be one of this protocol: then it is not gone.
                Err(error) => {
                    wanted.left_out.push((name, format!("it cannot be read: {error}")));
                    continue;
                }
            };
            wanted.uids.insert(name.clone(), device.metadata.uid.clone());
            let model_name = format!("{}/{}", device.metadata.namespace, device.model());
            if !models.contains_key(&model_name) {
                let path = format!("{}/{}/{}", device.metadata.namespace, kind::DEVICE_MODEL, device.model());
                models.insert(model_name.clone(), read_model(database, &path)?);
            }
            match models.get(&model_name) {
                Some(Ok(model)) => match device.message(model) {
                    Ok(device) => {
                        wanted.models.entry(model_name).or_insert_with(|| model.clone().message());
                        wanted.devices.insert(name, device);
                    }
                    Err(error) => wanted.left_out.push((name, format!("{error}: {}", error.why))),
                },
                Some(Err(reason)) => wanted.left_out.push((name, format!("its DeviceModel {model_name} {reason}"))),
                None => {}
            }
        }
        Ok(wanted)
    }

    /// What a mapper knows that has been told all of it.
    pub(super) fn digests(&self) -> Told {
        Told {
            models: self.models.iter().map(|(name, model)| (name.clone(), Known::Digest(digest(model)))).collect(),
            devices: self.devices.iter().map(|(name, device)| (name.clone(), Known::Digest(digest(device)))).collect(),
        }
    }

    /// As the answer to a registration: each device, and its model at the same place.
    pub(super) fn message(self) -> proto::MapperRegisterResponse {
        let model = |device: &proto::Device| {
            let name = device.spec.as_ref().map(|spec| spec.device_model_reference.as_str()).unwrap_or_default();
            self.models.get(&format!("{}/{name}", device.namespace)).cloned().unwrap_or_default()
        };
        let model_list = self.devices.values().map(model).collect();
        proto::MapperRegisterResponse { model_list, device_list: self.devices.into_values().collect() }
    }
}

/// All Devices of the node, by namespace and name.
pub(super) fn devices(database: &Database) -> Result<Vec<(String, serde_json::Result<Device>)>, StoreError> {
    let rows = database.read(|c| {
        let mut statement = c.prepare_cached("SELECT key, value FROM meta WHERE kind = ?1 ORDER BY key")?;
        let rows = statement.query_map([kind::DEVICE], |row| Ok((row.get(0)?, row.get(1)?)))?;
        rows.collect::<store::rusqlite::Result<Vec<(String, Vec<u8>)>>>()
    })?;
    let read = |(key, text): (String, Vec<u8>)| {
        let (namespace, name) = (key.split('/').next(), key.rsplit('/').next());
        (format!("{}/{}", namespace.unwrap_or_default(), name.unwrap_or_default()), serde_json::from_slice(&text))
    };
    Ok(rows.into_iter().map(read).collect())
}

/// Tells whether two messages say the same. It may be another one in another release: then everything is told once more.
pub(super) fn digest(message: &impl Message) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(&message.encode_to_vec());
    hasher.finish()
}

/// A DeviceModel, or why there is none.
fn read_model(database: &Database, path: &str) -> Result<Result<DeviceModel, String>, StoreError> {
    let texts = database.read(|c| {
        let mut statement = c.prepare_cached("SELECT value FROM meta WHERE key = ?1")?;
        let rows = statement.query_map([path], |row| row.get(0))?;
        rows.collect::<store::rusqlite::Result<Vec<Vec<u8>>>>()
    })?;
    let Some(text) = texts.first() else { return Ok(Err("is not on this node".to_owned())) };
    Ok(serde_json::from_slice(text).map_err(|error| format!("cannot be read: {error}")))
}
