//! Which device is bound to which node and what model it has. Written by the controller's one task, read when a node connects and when it
//! reports.

use std::collections::{BTreeSet, HashMap};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use serde::Deserialize;

use crate::edgecontroller::object;
use crate::edgecontroller::view::NamespacedName;
use crate::kubernetes::kinds::Kind;

/// A device of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Its uid.
    pub uid: String,
    /// Its version.
    pub version: u64,
    /// The node that it is bound to; may be empty.
    pub node: String,
    /// Its model, of the same namespace; may be empty.
    pub model: String,
    /// Its label `description`.
    pub description: String,
    /// Names of its properties.
    pub properties: BTreeSet<String>,
    /// The whole object, if it is bound to a node: nodes that come back together are served without a question for each device.
    pub text: Bytes,
}

/// A model of the cluster.
#[derive(Clone, Debug)]
pub struct Model {
    /// Its uid.
    pub uid: String,
    /// Its version.
    pub version: u64,
    /// The whole object.
    pub text: Bytes,
}

/// What a node has to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// `Device` or `DeviceModel`.
    pub kind: &'static Kind,
    /// Which one.
    pub name: NamespacedName,
    /// Its uid.
    pub uid: String,
    /// Its version.
    pub version: u64,
    /// The whole object.
    pub text: Bytes,
}

/// Devices by name and by node, models by name.
#[derive(Default)]
pub struct Devices {
    devices: HashMap<NamespacedName, Device>,
    nodes: HashMap<String, BTreeSet<NamespacedName>>,
    models: HashMap<NamespacedName, Model>,
    /// Whether devices, and models, were listed.
    listed: [bool; 2],
    /// A node was compared without its devices, for they were not listed.
    was_skipped: bool,
}

/// The same for several tasks.
#[derive(Default)]
pub struct KnownDevices {
    inner: RwLock<Devices>,
}

impl KnownDevices {
    /// For reading.
    pub fn read(&self) -> RwLockReadGuard<'_, Devices> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, Devices> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether both devices and models were read once.
    pub fn are_listed(&self) -> bool {
        self.read().are_listed()
    }

    /// Devices, or models, were read; whether now both are and a node was compared without them before.
    pub(super) fn set_listed(&self, is_models: bool) -> bool {
        let mut devices = self.write();
        devices.listed[usize::from(is_models)] = true;
        devices.are_listed() && std::mem::take(&mut devices.was_skipped)
    }

    /// A node was not told of a device, for they are being listed.
    pub fn note_skipped(&self) {
        self.write().was_skipped = true;
    }

    /// Devices, or models, are not known any more until they are listed again.
    pub(super) fn forget(&self, is_models: bool) {
        let mut devices = self.write();
        devices.listed[usize::from(is_models)] = false;
        if is_models {
            devices.models.clear();
        } else {
            devices.devices.clear();
            devices.nodes.clear();
        }
    }

    /// What a node has to have, models before devices; `None` when that is not known yet, which is remembered.
    pub fn wanted(&self, node: &str) -> Option<Vec<Wanted>> {
        let mut devices = self.write();
        if !devices.are_listed() {
            devices.was_skipped = true;
            return None;
        }
        Some(devices.wanted(node))
    }
}

impl Devices {
    /// Whether both devices and models were read once.
    pub fn are_listed(&self) -> bool {
        self.listed == [true, true]
    }

    /// A device by name.
    pub fn get(&self, namespace: &str, name: &str) -> Option<&Device> {
        self.devices.get(&(namespace.to_owned(), name.to_owned()))
    }

    /// A model by name.
    pub fn model(&self, name: &NamespacedName) -> Option<&Model> {
        self.models.get(name)
    }

    /// The devices of a node.
    pub fn of_node(&self, node: &str) -> impl Iterator<Item = (&NamespacedName, &Device)> {
        let names = self.nodes.get(node).into_iter().flatten();
        names.filter_map(|name| Some((name, self.devices.get(name)?)))
    }

    /// Whether a device of the node has this model.
    pub fn refers(&self, node: &str, model: &NamespacedName) -> bool {
        self.of_node(node).any(|((namespace, _), device)| *namespace == model.0 && device.model == model.1)
    }

    /// The nodes whose devices have this model.
    pub fn nodes_of(&self, model: &NamespacedName) -> BTreeSet<String> {
        self.nodes.keys().filter(|node| self.refers(node, model)).cloned().collect()
    }

    /// Whether the node has to have what is wanted, still.
    pub fn wants(&self, node: &str, wanted: &Wanted) -> bool {
        match wanted.kind.name {
            "Device" => self.devices.get(&wanted.name).is_some_and(|d| d.uid == wanted.uid && d.node == node),
            _ => self.models.get(&wanted.name).is_some_and(|m| m.uid == wanted.uid) && self.refers(node, &wanted.name),
        }
    }

    /// The version of what exists, wherever it is bound.
    pub fn version(&self, kind: &str, name: &NamespacedName, uid: &str) -> Option<u64> {
        let (found, version) = match kind {
            "Device" => self.devices.get(name).map(|device| (&device.uid, device.version)),
            _ => self.models.get(name).map(|model| (&model.uid, model.version)),
        }?;
        (found == uid).then_some(version)
    }

    fn wanted(&self, node: &str) -> Vec<Wanted> {
        let (Some(device_kind), Some(model_kind)) = (Kind::named("Device"), Kind::named("DeviceModel")) else {
            return Vec::new();
        };
        let names: BTreeSet<NamespacedName> =
            self.of_node(node).map(|((namespace, _), device)| (namespace.clone(), device.model.clone())).collect();
        let models = names.into_iter().filter_map(|name| {
            let Model { uid, version, text } = self.models.get(&name)?;
            Some(Wanted { kind: model_kind, name, uid: uid.clone(), version: *version, text: text.clone() })
        });
        let devices = self.of_node(node).map(|(name, device)| Wanted {
            kind: device_kind,
            name: name.clone(),
            uid: device.uid.clone(),
            version: device.version,
            text: device.text.clone(),
        });
        models.chain(devices).collect()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &NamespacedName> {
        self.devices.keys()
    }

    pub(super) fn put(&mut self, name: NamespacedName, device: Device) -> Option<Device> {
        let old = self.remove(&name);
        if !device.node.is_empty() {
            self.nodes.entry(device.node.clone()).or_default().insert(name.clone());
        }
        self.devices.insert(name, device);
        old
    }

    pub(super) fn remove(&mut self, name: &NamespacedName) -> Option<Device> {
        let old = self.devices.remove(name)?;
        if let Some(names) = self.nodes.get_mut(&old.node) {
            names.remove(name);
            if names.is_empty() {
                self.nodes.remove(&old.node);
            }
        }
        Some(old)
    }

    pub(super) fn model_names(&self) -> impl Iterator<Item = &NamespacedName> {
        self.models.keys()
    }

    pub(super) fn put_model(&mut self, name: NamespacedName, model: Model) -> Option<Model> {
        self.models.insert(name, model)
    }

    pub(super) fn remove_model(&mut self, name: &NamespacedName) -> Option<Model> {
        self.models.remove(name)
    }
}

/// Name and entry of a Device as the API has it.
pub(super) fn read(text: &Bytes) -> Option<(NamespacedName, Device)> {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Spec {
        node_name: Option<String>,
        device_model_ref: Option<Named>,
        properties: Option<Vec<Named>>,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Named {
        name: Option<String>,
    }
    let object = object::read(text)?;
    let spec: Spec = object.spec.and_then(|spec| serde_json::from_str(spec.get()).ok()).unwrap_or_default();
    let label = |name: &str| object.metadata.get("labels")?.get(name)?.as_str().map(str::to_owned);
    let node = spec.node_name.unwrap_or_default();
    let device = Device {
        text: if node.is_empty() { Bytes::new() } else { text.clone() },
        uid: object.uid().to_owned(),
        version: object.version(),
        node,
        model: spec.device_model_ref.and_then(|model| model.name).unwrap_or_default(),
        description: label("description").unwrap_or_default(),
        properties: spec.properties.into_iter().flatten().filter_map(|property| property.name).collect(),
    };
    Some(((object.namespace().to_owned(), object.name().to_owned()), device))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> NamespacedName {
        ("default".to_owned(), text.to_owned())
    }

    fn device(node: &str, model: &str) -> Device {
        Device { uid: "d".to_owned(), version: 2, node: node.to_owned(), model: model.to_owned(), ..Device::default() }
    }

    #[test]
    fn a_device_is_read_whatever_is_missing() {
        let text = br#"{"metadata":{"name":"a","namespace":"x","uid":"u","resourceVersion":"7","labels":{"description":"d"}},
            "spec":{"nodeName":"n","deviceModelRef":{"name":"m"},"properties":[{"name":"t","desired":{"value":"1"}},{"name":"h"}]}}"#;
        let (name, read_device) = read(&Bytes::from_static(text)).expect("read");
        assert_eq!(name, ("x".to_owned(), "a".to_owned()));
        let properties = ["h", "t"].map(str::to_owned).into();
        let [uid, node, model, description] = ["u", "n", "m", "d"].map(str::to_owned);
        assert_eq!(
            read_device,
            Device { uid, version: 7, node, model, description, properties, text: Bytes::from_static(text) }
        );
        let bare = br#"{"metadata":{"name":"a","namespace":"x"},"spec":{"deviceModelRef":null,"properties":null}}"#;
        assert_eq!(read(&Bytes::from_static(bare)).expect("read").1, Device::default());
    }

    #[test]
    fn models_come_before_devices_and_only_to_nodes_that_need_them() {
        let known = KnownDevices::default();
        assert_eq!(known.wanted("n1"), None);
        let model = |uid: &str| Model { uid: uid.to_owned(), version: 1, text: Bytes::new() };
        known.write().put_model(name("m"), model("m"));
        known.write().put_model(name("other"), model("o"));
        known.write().put(name("a"), device("n1", "m"));
        known.write().put(name("b"), device("n1", "m"));
        known.write().put(name("free"), device("", "other"));
        assert!(!known.set_listed(false) && known.set_listed(true), "n1 was compared without them");
        assert!(!known.set_listed(false));
        let wanted = |node: &str| known.wanted(node).expect("listed").into_iter().map(|w| w.name.1).collect::<Vec<_>>();
        assert_eq!((wanted("n1"), wanted("n2")), (vec!["m".into(), "a".into(), "b".into()], Vec::<String>::new()));
        assert_eq!(known.read().nodes_of(&name("m")), BTreeSet::from(["n1".to_owned()]));
        known.write().put(name("a"), device("n2", "m"));
        known.write().remove(&name("b"));
        assert_eq!(known.read().nodes_of(&name("m")), BTreeSet::from(["n2".to_owned()]));
        assert!(known.read().nodes_of(&name("other")).is_empty());
    }
}
