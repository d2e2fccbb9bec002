//! What a change of a device or a model means, and for which node. Nothing is sent here: that is for EdgeController's task, to which the
//! steps go.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use tracing::debug;
use wire::{Content, operation};

use super::devices::{self, Device, Model};
use super::membership::Member;
use crate::edgecontroller::object::{self, tombstone, with_kind};
use crate::edgecontroller::view::{NamespacedName, View};
use crate::kubernetes::Change;
use crate::kubernetes::kinds::Kind;

/// The kind of devices.
pub const DEVICE: &str = "Device";
/// The kind of their models.
pub const MODEL: &str = "DeviceModel";

/// An object in one version.
#[derive(Clone, Debug)]
pub struct Object {
    /// [`DEVICE`] or [`MODEL`].
    pub kind: &'static str,
    /// Namespace and name.
    pub name: NamespacedName,
    /// Its uid.
    pub uid: String,
    /// Its version.
    pub version: u64,
}

impl Object {
    /// Its path at the edge.
    pub fn path(&self) -> String {
        let segment = Kind::named(self.kind).map_or("", |kind| kind.segment);
        format!("{}/{segment}/{}", self.name.0, self.name.1)
    }

    /// What a node sees of it when it loses it.
    pub fn rest(&self) -> Content {
        tombstone(&self.name, &self.uid)
    }
}

/// What is to be done.
#[derive(Debug)]
pub enum Step {
    /// The node has to have the object; the verb, and the object's text.
    Gets(String, Object, &'static str, Content),
    /// The object is not the node's any more, but exists.
    Loses(String, Object),
    /// The object is gone: the node has to be rid of it, or all nodes that have it.
    Gone(Option<String>, Object),
    /// A device comes to the node (`true`), or leaves it.
    Member(String, Member, bool),
    /// Devices were listed, and nodes had been compared before without them.
    CompareAll,
}

/// Follows devices and models.
pub struct Follower {
    view: Arc<View>,
    seen: Option<HashSet<NamespacedName>>,
    seen_models: Option<HashSet<NamespacedName>>,
}

impl Follower {
    /// Writes what it learns into this view.
    pub fn new(view: Arc<View>) -> Self {
        Self { view, seen: None, seen_models: None }
    }

    /// A Device changed.
    pub fn device(&mut self, change: Change) -> Vec<Step> {
        let mut steps = Vec::new();
        match change {
            Change::Restored => self.view.devices.forget(false),
            Change::Begin => {
                self.view.versions.begin(DEVICE);
                self.seen = Some(HashSet::new());
            }
            Change::Put(text) => self.put(text, &mut steps),
            Change::Gone(text) => {
                if let Some((name, device)) = devices::read(&text) {
                    self.view.versions.remove(DEVICE, &device.uid);
                    self.gone(&name, &mut steps);
                }
            }
            Change::Listed => {
                let seen = self.seen.take().unwrap_or_default();
                let lost: Vec<_> =
                    self.view.devices.read().names().filter(|name| !seen.contains(*name)).cloned().collect();
                lost.iter().for_each(|name| self.gone(name, &mut steps));
                if self.view.devices.set_listed(false) {
                    steps.push(Step::CompareAll);
                }
                self.view.versions.listed(DEVICE);
            }
        }
        steps
    }

    fn put(&mut self, text: Bytes, steps: &mut Vec<Step>) {
        let Some((name, device)) = devices::read(&text) else { return debug!("a device cannot be read") };
        if let Some(seen) = &mut self.seen {
            seen.insert(name.clone());
        }
        self.view.versions.put(DEVICE, &device.uid, device.version);
        let old = self.view.devices.read().get(&name.0, &name.1).cloned();
        if old.as_ref().is_some_and(|old| old.uid == device.uid && old.version >= device.version) {
            return;
        }
        self.view.devices.write().put(name.clone(), device.clone());
        let stays = |old: &Device| old.uid == device.uid && old.node == device.node;
        let was_there = old.as_ref().is_some_and(|old| !old.node.is_empty() && stays(old));
        if let Some(old) = old.filter(|old| !old.node.is_empty()) {
            if !stays(&old) {
                self.leaves(&name, &old, (old.uid == device.uid).then_some(device.version), steps);
            } else if old.model != device.model {
                self.release_model(&name, &old, steps);
            }
        }
        if device.node.is_empty() {
            return;
        }
        if !was_there {
            steps.push(Step::Member(device.node.clone(), Member::of(&name, &device), true));
        }
        self.gets_model(&device.node, &(name.0.clone(), device.model), operation::INSERT, steps);
        let verb = if was_there { operation::UPDATE } else { operation::INSERT };
        let object = Object { kind: DEVICE, name, uid: device.uid, version: device.version };
        steps.push(Step::Gets(device.node, object, verb, with_kind(text, DEVICE)));
    }

    /// The device is gone.
    fn gone(&self, name: &NamespacedName, steps: &mut Vec<Step>) {
        let old = self.view.devices.write().remove(name);
        if let Some(old) = old.filter(|old| !old.node.is_empty()) {
            self.leaves(name, &old, None, steps);
        }
    }

    /// The device is not the old node's any more: in this version it is bound elsewhere, or it is gone.
    fn leaves(&self, name: &NamespacedName, old: &Device, version: Option<u64>, steps: &mut Vec<Step>) {
        steps.push(Step::Member(old.node.clone(), Member::of(name, old), false));
        let (kind, uid) = (DEVICE, old.uid.clone());
        let object = Object { kind, name: name.clone(), uid, version: version.unwrap_or(u64::MAX) };
        steps.push(match version {
            Some(_) => Step::Loses(old.node.clone(), object),
            None => Step::Gone(Some(old.node.clone()), object),
        });
        self.release_model(name, old, steps);
    }

    /// The model goes with the last device that has it.
    fn release_model(&self, name: &NamespacedName, old: &Device, steps: &mut Vec<Step>) {
        let devices = self.view.devices.read();
        let name = (name.0.clone(), old.model.clone());
        if devices.refers(&old.node, &name) {
            return;
        }
        if let Some(Model { uid, version, .. }) = devices.model(&name) {
            let object = Object { kind: MODEL, uid: uid.clone(), version: *version, name };
            steps.push(Step::Loses(old.node.clone(), object));
        }
    }

    /// A DeviceModel changed.
    pub fn model(&mut self, change: Change) -> Vec<Step> {
        let mut steps = Vec::new();
        match change {
            Change::Restored => self.view.devices.forget(true),
            Change::Begin => {
                self.view.versions.begin(MODEL);
                self.seen_models = Some(HashSet::new());
            }
            Change::Put(text) => self.put_model(text, &mut steps),
            Change::Gone(text) => {
                if let Some(object) = object::read(&text) {
                    self.view.versions.remove(MODEL, object.uid());
                    self.model_is_gone((object.namespace().to_owned(), object.name().to_owned()), &mut steps);
                }
            }
            Change::Listed => {
                let seen = self.seen_models.take().unwrap_or_default();
                let lost: Vec<_> =
                    self.view.devices.read().model_names().filter(|name| !seen.contains(*name)).cloned().collect();
                lost.into_iter().for_each(|name| self.model_is_gone(name, &mut steps));
                if self.view.devices.set_listed(true) {
                    steps.push(Step::CompareAll);
                }
                self.view.versions.listed(MODEL);
            }
        }
        steps
    }

    fn put_model(&mut self, text: Bytes, steps: &mut Vec<Step>) {
        let Some(object) = object::read(&text) else { return };
        let name = (object.namespace().to_owned(), object.name().to_owned());
        let (uid, version) = (object.uid().to_owned(), object.version());
        if let Some(seen) = &mut self.seen_models {
            seen.insert(name.clone());
        }
        self.view.versions.put(MODEL, &uid, version);
        let is_known = |old: &Model| old.uid == uid && old.version >= version;
        if self.view.devices.read().model(&name).is_some_and(is_known) {
            return;
        }
        let model = Model { uid: uid.clone(), version, text: text.clone() };
        let old = self.view.devices.write().put_model(name.clone(), model);
        let verb = if old.is_some() { operation::UPDATE } else { operation::INSERT };
        if let Some(old) = old.filter(|old| old.uid != uid) {
            let object = Object { kind: MODEL, name: name.clone(), uid: old.uid, version: u64::MAX };
            steps.push(Step::Gone(None, object));
        }
        let nodes = self.view.devices.read().nodes_of(&name);
        nodes.iter().for_each(|node| self.gets_model(node, &name, verb, steps));
    }

    fn model_is_gone(&self, name: NamespacedName, steps: &mut Vec<Step>) {
        if let Some(Model { uid, .. }) = self.view.devices.write().remove_model(&name) {
            steps.push(Step::Gone(None, Object { kind: MODEL, name, uid, version: u64::MAX }));
        }
    }

    fn gets_model(&self, node: &str, name: &NamespacedName, verb: &'static str, steps: &mut Vec<Step>) {
        // One that is still to come goes when it comes.
        let Some(model) = self.view.devices.read().model(name).cloned() else { return };
        let object = Object { kind: MODEL, name: name.clone(), uid: model.uid, version: model.version };
        steps.push(Step::Gets(node.to_owned(), object, verb, with_kind(model.text, MODEL)));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn device(version: u64, node: &str, model: &str) -> Change {
        let spec = json!({"nodeName": node, "deviceModelRef": {"name": model}});
        let metadata =
            json!({"name": "d", "namespace": "default", "uid": "ud", "resourceVersion": version.to_string()});
        Change::Put(Bytes::from(json!({"metadata": metadata, "spec": spec}).to_string()))
    }

    fn model(name: &str, version: u64) -> Change {
        let metadata = json!({"name": name, "namespace": "default", "uid": format!("u{name}"), "resourceVersion": version.to_string()});
        Change::Put(Bytes::from(json!({"metadata": metadata}).to_string()))
    }

    fn brief(steps: Vec<Step>) -> Vec<String> {
        let brief = |step| match step {
            Step::Gets(node, object, verb, _) => format!("{node} {verb} {} {}", object.name.1, object.version),
            Step::Loses(node, object) => format!("{node} loses {} {}", object.name.1, object.version),
            Step::Gone(node, object) => format!("{} gone {}", node.unwrap_or_default(), object.name.1),
            Step::Member(node, _, is_added) => format!("{node} {}", if is_added { "+" } else { "-" }),
            Step::CompareAll => "compare".to_owned(),
        };
        steps.into_iter().map(brief).collect()
    }

    #[test]
    fn a_device_and_its_model_come_move_change_and_go() {
        let mut follower = Follower::new(Arc::default());
        assert_eq!(brief(follower.device(device(1, "n1", "m"))), ["n1 +", "n1 insert d 1"]);
        // The model comes late.
        assert_eq!(brief(follower.model(model("m", 2))), ["n1 insert m 2"]);
        assert_eq!(brief(follower.device(device(3, "n1", "m"))), ["n1 insert m 2", "n1 update d 3"]);
        assert!(brief(follower.device(device(3, "n1", "m"))).is_empty(), "it is known");
        assert_eq!(brief(follower.model(model("m", 4))), ["n1 update m 4"]);
        assert_eq!(
            brief(follower.device(device(5, "n2", "m"))),
            ["n1 -", "n1 loses d 5", "n1 loses m 4", "n2 +", "n2 insert m 4", "n2 insert d 5"]
        );
        assert!(brief(follower.model(model("other", 6))).is_empty());
        assert_eq!(
            brief(follower.device(device(7, "n2", "other"))),
            ["n2 loses m 4", "n2 insert other 6", "n2 update d 7"]
        );
        assert_eq!(brief(follower.device(device(8, "", "other"))), ["n2 -", "n2 loses d 8", "n2 loses other 6"]);
        assert_eq!(brief(follower.device(device(9, "n1", "m"))), ["n1 +", "n1 insert m 4", "n1 insert d 9"]);
        let Change::Put(text) = device(10, "n1", "m") else { unreachable!() };
        assert_eq!(brief(follower.device(Change::Gone(text))), ["n1 -", "n1 gone d", "n1 loses m 4"]);
    }

    #[test]
    fn what_a_later_list_is_without_is_gone() {
        let mut follower = Follower::new(Arc::default());
        follower.device(Change::Begin);
        follower.device(device(1, "n1", "m"));
        assert!(brief(follower.device(Change::Listed)).is_empty());
        follower.model(Change::Begin);
        follower.model(model("m", 2));
        follower.model(Change::Listed);
        follower.model(Change::Begin);
        assert_eq!(brief(follower.model(Change::Listed)), [" gone m"]);
        follower.device(Change::Begin);
        assert_eq!(brief(follower.device(Change::Listed)), ["n1 -", "n1 gone d"]);
    }
}
