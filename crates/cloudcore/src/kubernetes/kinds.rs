//! The kinds of objects that nodes have: what the API and what an edge calls them.

use wire::{EdgeResource, kind, source};

/// A kind.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// As the API writes it, for example `Pod`.
    pub name: &'static str,
    /// For example `v1`.
    pub api_version: &'static str,
    /// In paths of the API, for example `pods`.
    pub plural: &'static str,
    /// In paths at the edge, for example `pod`.
    pub segment: &'static str,
    /// From which controller it comes, as the edge sees it.
    pub source: &'static str,
}

/// Where devices are.
pub const DEVICES: &str = "devices.kubeedge.io/v1beta1";

/// All of them.
pub const ALL: [Kind; 6] = [
    core("Node", "nodes", kind::NODE),
    core("Pod", "pods", kind::POD),
    core("ConfigMap", "configmaps", kind::CONFIG_MAP),
    core("Secret", "secrets", kind::SECRET),
    device("Device", "devices", kind::DEVICE),
    device("DeviceModel", "devicemodels", kind::DEVICE_MODEL),
];

const fn core(name: &'static str, plural: &'static str, segment: &'static str) -> Kind {
    Kind { name, api_version: "v1", plural, segment, source: source::EDGE_CONTROLLER }
}

const fn device(name: &'static str, plural: &'static str, segment: &'static str) -> Kind {
    Kind { name, api_version: DEVICES, plural, segment, source: source::DEVICE_CONTROLLER }
}

impl Kind {
    /// By its name in the API.
    pub fn named(name: &str) -> Option<&'static Self> {
        ALL.iter().find(|kind| kind.name == name)
    }

    /// By its name at the edge.
    pub fn of_segment(segment: &str) -> Option<&'static Self> {
        ALL.iter().find(|kind| kind.segment == segment)
    }

    /// Of an object with this path at the edge.
    pub fn of_path(path: &str) -> Option<&'static Self> {
        EdgeResource::parse(path).ok().and_then(|resource| Self::of_segment(&resource.kind))
    }

    /// Where the API has all objects of the kind.
    pub fn list(&self) -> String {
        format!("{}/{}", group(self.api_version), self.plural)
    }

    /// Where the API has an object of the kind, which is in a namespace.
    pub fn object(&self, namespace: &str, name: &str) -> String {
        format!("{}/namespaces/{namespace}/{}/{name}", group(self.api_version), self.plural)
    }
}

/// Where the API has what belongs to this group and version.
pub fn group(api_version: &str) -> String {
    let root = if api_version.contains('/') { "apis" } else { "api" };
    format!("/{root}/{api_version}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_both_sides() {
        let model = Kind::of_path("default/devicemodel/m").expect("known");
        assert_eq!(model.list(), "/apis/devices.kubeedge.io/v1beta1/devicemodels");
        assert_eq!(Kind::named("Pod").map(|pod| pod.object("a", "b")).as_deref(), Some("/api/v1/namespaces/a/pods/b"));
        assert_eq!((Kind::of_path("membership"), Kind::of_segment("lease")), (None, None));
        let listed: Vec<&str> = ALL.iter().skip(1).map(|kind| kind.segment).collect();
        assert_eq!(listed, wire::inventory::KINDS, "what nodes list is what is noted of them");
    }
}
