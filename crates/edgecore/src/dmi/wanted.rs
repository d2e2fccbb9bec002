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
    /// Those of this protocol.
    ///
    /// A model goes to the mapper of its devices' protocol, whatever its own `protocol` says (KubeEdge v1.23 needs both to be equal).
    pub(super) fn read(database: &Database, protocol: &str) -> Result<Self, StoreError> {
        let mut wanted = Self::default();
        let mut models: BTreeMap<String, Option<DeviceModel>> = BTreeMap::new();
        for device in devices(database)? {
            if device.protocol() != protocol {
                continue;
            }
            let name = format!("{}/{}", device.metadata.namespace, device.metadata.name);
            wanted.uids.insert(name.clone(), device.metadata.uid.clone());
            let model_name = format!("{}/{}", device.metadata.namespace, device.model());
            let path = format!("{}/{}/{}", device.metadata.namespace, kind::DEVICE_MODEL, device.model());
            if !models.contains_key(&model_name) {
                models.insert(model_name.clone(), read_model(database, &path)?);
            }
            let Some(model) = models.get(&model_name).and_then(Option::as_ref) else {
                wanted.left_out.push((name, format!("its DeviceModel {model_name} is not on this node")));
                continue;
            };
            match device.message(model) {
                Ok(device) => {
                    wanted.models.entry(model_name).or_insert_with(|| model.clone().message());
                    wanted.devices.insert(name, device);
                }
                Err(error) => wanted.left_out.push((name, format!("{error}: {}", error.why))),
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

/// All Devices of the node.
pub(super) fn devices(database: &Database) -> Result<Vec<Device>, StoreError> {
    let texts = database.read(|c| {
        let mut statement = c.prepare_cached("SELECT value FROM meta WHERE kind = ?1 ORDER BY key")?;
        let rows = statement.query_map([kind::DEVICE], |row| row.get(0))?;
        rows.collect::<store::rusqlite::Result<Vec<Vec<u8>>>>()
    })?;
    // DeviceTwin has told of one that cannot be read.
    Ok(texts.iter().filter_map(|text| serde_json::from_slice(text).ok()).collect())
}

/// Tells whether two messages say the same.
pub(super) fn digest(message: &impl Message) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(&message.encode_to_vec());
    hasher.finish()
}

fn read_model(database: &Database, path: &str) -> Result<Option<DeviceModel>, StoreError> {
    let texts = database.read(|c| {
        let mut statement = c.prepare_cached("SELECT value FROM meta WHERE key = ?1")?;
        let rows = statement.query_map([path], |row| row.get(0))?;
        rows.collect::<store::rusqlite::Result<Vec<Vec<u8>>>>()
    })?;
    Ok(texts.first().and_then(|text| serde_json::from_slice(text).ok()))
}
