//! Which plugins there are, which devices they have, and which container has which of them.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::Supply;
use super::plugin::Client;
use super::proto;

/// Devices of one resource at most; what a plugin lists beyond them is left out.
pub(super) const MAX_DEVICES: usize = 10_000;
/// Resources at most.
pub(super) const MAX_RESOURCES: usize = 128;

#[derive(Default)]
pub(super) struct State {
    resources: BTreeMap<String, Resource>,
    /// Pod, container, resource.
    given: BTreeMap<String, BTreeMap<String, BTreeMap<String, Grant>>>,
}

/// A resource of a plugin that is or was here.
#[derive(Default)]
struct Resource {
    healthy: BTreeSet<String>,
    unhealthy: BTreeSet<String>,
    /// Which registration counts; a late word of an earlier one does not.
    registration: u64,
    plugin: Option<Client>,
}

/// Devices of one resource that a container has, and what its plugin says about their use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Grant {
    /// The devices' ids.
    pub devices: Vec<String>,
    /// Environment variables.
    pub envs: BTreeMap<String, String>,
    /// Mounts: path in the container, path on the host, read-only.
    pub mounts: Vec<(String, String, bool)>,
    /// Device nodes: path in the container, path on the host, permissions (`rwm`).
    pub nodes: Vec<(String, String, String)>,
    /// Annotations of the container.
    pub annotations: BTreeMap<String, String>,
    /// Names of CDI devices.
    pub cdi: Vec<String>,
}

/// The checkpoint's content.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Document {
    /// Resources that had a plugin.
    resources: BTreeSet<String>,
    /// Pod UID, container, resource.
    pods: BTreeMap<String, BTreeMap<String, BTreeMap<String, Grant>>>,
}

impl Grant {
    pub(super) fn new(devices: Vec<String>, answer: proto::ContainerAllocateResponse) -> Self {
        let proto::ContainerAllocateResponse { envs, mounts, devices: nodes, annotations, cdi_devices } = answer;
        Self {
            devices,
            envs,
            mounts: mounts.into_iter().map(|m| (m.container_path, m.host_path, m.read_only)).collect(),
            nodes: nodes.into_iter().map(|d| (d.container_path, d.host_path, d.permissions)).collect(),
            annotations,
            cdi: cdi_devices.into_iter().map(|device| device.name).collect(),
        }
    }
}

impl State {
    pub(super) fn of(document: Document) -> Self {
        let resources = document.resources.into_iter().map(|name| (name, Resource::default())).collect();
        Self { resources, given: document.pods }
    }

    pub(super) fn document(&self) -> Document {
        Document { resources: self.resources.keys().cloned().collect(), pods: self.given.clone() }
    }

    /// A plugin registers, in place of the one before; the number of its registration. `None` when there are too many resources.
    pub(super) fn register(&mut self, name: &str, plugin: Client) -> Option<u64> {
        if self.resources.len() >= MAX_RESOURCES && !self.resources.contains_key(name) {
            return None;
        }
        let resource = self.resources.entry(name.to_owned()).or_default();
        resource.registration += 1;
        resource.plugin = Some(plugin);
        Some(resource.registration)
    }

    /// A plugin tells its devices; false when another one has registered since.
    pub(super) fn list(&mut self, name: &str, registration: u64, devices: Vec<proto::Device>) -> bool {
        let Some(resource) = self.current(name, registration) else { return false };
        let (mut healthy, mut unhealthy) = (BTreeSet::new(), BTreeSet::new());
        for device in devices.into_iter().take(MAX_DEVICES) {
            let set = if device.health == "Healthy" { &mut healthy } else { &mut unhealthy };
            set.insert(device.id);
        }
        // What is listed twice is not trusted.
        healthy.retain(|id| !unhealthy.contains(id));
        (resource.healthy, resource.unhealthy) = (healthy, unhealthy);
        true
    }

    /// A plugin is gone: none of its devices is taken for healthy. False when another one has registered since.
    pub(super) fn lost(&mut self, name: &str, registration: u64) -> bool {
        let Some(resource) = self.current(name, registration) else { return false };
        let healthy = std::mem::take(&mut resource.healthy);
        resource.unhealthy.extend(healthy);
        resource.plugin = None;
        true
    }

    /// A plugin has been gone for long: the node has no such devices. False when one has registered since.
    pub(super) fn forget(&mut self, name: &str, registration: u64) -> bool {
        let Some(resource) = self.current(name, registration) else { return false };
        if resource.plugin.is_some() {
            return false;
        }
        resource.unhealthy.clear();
        true
    }

    fn current(&mut self, name: &str, registration: u64) -> Option<&mut Resource> {
        self.resources.get_mut(name).filter(|resource| resource.registration == registration)
    }

    pub(super) fn supply(&self) -> BTreeMap<String, Supply> {
        let of = |resource: &Resource| Supply {
            capacity: resource.healthy.len() + resource.unhealthy.len(),
            allocatable: resource.healthy.len(),
        };
        self.resources.iter().map(|(name, resource)| (name.clone(), of(resource))).collect()
    }

    /// Whether a plugin is or was here for this resource; others are counted by the cluster alone.
    pub(super) fn knows(&self, resource: &str) -> bool {
        self.resources.contains_key(resource)
    }

    pub(super) fn healthy(&self, resource: &str) -> BTreeSet<String> {
        self.resources.get(resource).map(|resource| resource.healthy.clone()).unwrap_or_default()
    }

    pub(super) fn plugin(&self, resource: &str) -> Option<Client> {
        self.resources.get(resource)?.plugin.clone()
    }

    /// Devices that any container has.
    pub(super) fn in_use(&self, resource: &str) -> BTreeSet<String> {
        let containers = self.given.values().flat_map(BTreeMap::values);
        containers.filter_map(|grants| grants.get(resource)).flat_map(|grant| grant.devices.iter().cloned()).collect()
    }

    pub(super) fn grant(&self, uid: &str, container: &str, resource: &str) -> Option<&Grant> {
        self.given.get(uid)?.get(container)?.get(resource)
    }

    pub(super) fn give(&mut self, uid: &str, container: &str, resource: &str, grant: Grant) {
        let of_pod = self.given.entry(uid.to_owned()).or_default();
        of_pod.entry(container.to_owned()).or_default().insert(resource.to_owned(), grant);
    }

    pub(super) fn granted(&self, uid: &str, container: &str) -> Vec<Grant> {
        let grants = self.given.get(uid).and_then(|containers| containers.get(container));
        grants.into_iter().flat_map(BTreeMap::values).cloned().collect()
    }

    /// Devices by resource that a container has.
    pub(super) fn devices(&self, uid: &str, container: &str) -> BTreeMap<String, Vec<String>> {
        let grants = self.given.get(uid).and_then(|containers| containers.get(container));
        grants.into_iter().flatten().map(|(name, grant)| (name.clone(), grant.devices.clone())).collect()
    }

    pub(super) fn release(&mut self, uid: &str) -> bool {
        self.given.remove(uid).is_some()
    }

    pub(super) fn pods(&self) -> Vec<String> {
        self.given.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices(list: &[(&str, &str)]) -> Vec<proto::Device> {
        list.iter().map(|(id, health)| proto::Device { id: (*id).to_owned(), health: (*health).to_owned() }).collect()
    }

    #[test]
    fn a_plugin_comes_goes_and_is_forgotten() {
        let mut state = State::default();
        let first = state.register("e.com/d", Client::unreachable()).expect("room");
        assert!(state.list(
            "e.com/d",
            first,
            devices(&[("a", "Healthy"), ("b", "Unhealthy"), ("c", "?"), ("c", "Healthy")])
        ));
        let supply = |state: &State| state.supply()["e.com/d"];
        assert_eq!(supply(&state), Supply { capacity: 3, allocatable: 1 });
        let second = state.register("e.com/d", Client::unreachable()).expect("room");
        assert!(!state.lost("e.com/d", first), "a late word");
        assert!(state.lost("e.com/d", second));
        assert_eq!(supply(&state), Supply { capacity: 3, allocatable: 0 });
        assert!(state.forget("e.com/d", second));
        assert_eq!(supply(&state), Supply { capacity: 0, allocatable: 0 });
    }

    #[test]
    fn memory_is_bounded() {
        let mut state = State::default();
        let first = state.register("e.com/0", Client::unreachable()).expect("room");
        let many =
            (0..2 * MAX_DEVICES).map(|n| proto::Device { id: n.to_string(), health: "Healthy".into() }).collect();
        state.list("e.com/0", first, many);
        assert_eq!(state.supply()["e.com/0"].capacity, MAX_DEVICES);
        let registered =
            (1..2 * MAX_RESOURCES).filter_map(|n| state.register(&format!("e.com/{n}"), Client::unreachable()));
        assert_eq!(registered.count(), MAX_RESOURCES - 1);
    }

    #[test]
    fn who_has_what_survives_a_restart() {
        let mut state = State::default();
        state.register("e.com/d", Client::unreachable()).expect("room");
        let grant =
            Grant { devices: vec!["a".into()], envs: [("A".to_owned(), "1".to_owned())].into(), ..Grant::default() };
        state.give("u", "c", "e.com/d", grant.clone());
        let text = serde_json::to_string(&state.document()).expect("json");
        let mut state = State::of(serde_json::from_str(&text).expect("json"));
        assert!(state.knows("e.com/d") && state.supply()["e.com/d"].capacity == 0);
        assert_eq!((state.granted("u", "c"), state.in_use("e.com/d").len()), (vec![grant], 1));
        assert!(state.release("u") && !state.release("u") && state.in_use("e.com/d").is_empty());
    }
}
