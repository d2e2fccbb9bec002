//! From a PersistentVolumeClaim to the volume that is bound to it, with everything that the kubelet checks before it mounts.

use std::collections::BTreeMap;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use podlife::{node_selector, spec};
use serde::de::DeserializeOwned;
use wire::kind;

use super::VolumeError;
use crate::meta::MetaClient;
use crate::settings::Settings;

/// Extra group that the users of a volume are given.
const GID_ANNOTATION: &str = "pv.beta.kubernetes.io/gid";
/// Namespace segment of resources that have none.
const NO_NAMESPACE: &str = "null";

/// A volume that is bound to a claim.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Claimed {
    /// Name of the PersistentVolume.
    pub name: String,
    pub source: Source,
    pub read_only: bool,
    pub group: Option<i64>,
    pub options: Vec<String>,
}

/// Where its data is.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Source {
    /// A directory of this node, bound to the pod's place for it.
    Local(PathBuf),
    /// A path of this node, used as it is.
    HostPath { path: PathBuf, kind: String },
    /// An export of an NFS server.
    Nfs { server: String, path: String },
}

/// Reads claim and volume, and checks them.
pub(super) async fn resolve(
    meta: &MetaClient,
    settings: &Settings,
    pod: &Pod,
    volume: &str,
    claim: &str,
    read_only: bool,
) -> Result<Claimed, VolumeError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let failed = |text: String| VolumeError::Claim(format!("error processing PVC {namespace}/{claim}: {text}"));
    let found = read(meta, namespace, kind::PERSISTENT_VOLUME_CLAIM, claim).await;
    let found: PersistentVolumeClaim =
        found.map_err(|text| failed(format!("failed to fetch PVC from API server: {text}")))?;
    let name = volume_of(&found).map_err(|text| failed(text.into()))?;
    let bound = read(meta, NO_NAMESPACE, kind::PERSISTENT_VOLUME, name).await;
    let bound: PersistentVolume =
        bound.map_err(|text| failed(format!("failed to fetch PV {name} from API server: {text}")))?;
    check_bound(name, &bound, found.metadata.uid.as_deref()).map_err(failed)?;
    check_mode(pod, volume, &bound).map_err(VolumeError::Claim)?;
    let labels = node_labels(meta, settings).await;
    check_affinity(name, &bound, settings, &labels)?;
    claimed(name, &bound, read_only)
}

async fn read<T: DeserializeOwned>(meta: &MetaClient, namespace: &str, what: &str, name: &str) -> Result<T, String> {
    match meta.get(namespace, what, name).await {
        Ok(Some(object)) => Ok(object),
        Ok(None) => Err(format!("{what}s {name:?} not found")),
        Err(error) => Err(error.to_string()),
    }
}

/// The labels of the node as the API has them; before it has registered, those that it will register with.
async fn node_labels(meta: &MetaClient, settings: &Settings) -> BTreeMap<String, String> {
    let stored = meta.get::<Node>(NO_NAMESPACE, kind::NODE, &settings.node_name).await;
    let stored = stored.ok().flatten().and_then(|node| node.metadata.labels);
    stored.unwrap_or_else(|| crate::node::status::labels(settings))
}

fn volume_of(claim: &PersistentVolumeClaim) -> Result<&str, &'static str> {
    if claim.metadata.deletion_timestamp.is_some() {
        return Err("PVC is being deleted");
    }
    if claim.status.as_ref().and_then(|status| status.phase.as_deref()) != Some("Bound") {
        return Err("PVC is not bound");
    }
    let name = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref());
    name.filter(|name| !name.is_empty()).ok_or("PVC has empty pvc.Spec.VolumeName")
}

fn check_bound(name: &str, volume: &PersistentVolume, claim_uid: Option<&str>) -> Result<(), String> {
    let Some(reference) = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()) else {
        return Err(format!(
            "found PV object {name} but it has a nil pv.Spec.ClaimRef indicating it is not yet bound to the claim"
        ));
    };
    if reference.uid.as_deref() == claim_uid {
        return Ok(());
    }
    let (theirs, ours) = (reference.uid.as_deref().unwrap_or_default(), claim_uid.unwrap_or_default());
    Err(format!("found PV object {name} but its pv.Spec.ClaimRef.UID {theirs} does not point to claim.UID {ours}"))
}

fn check_mode(pod: &Pod, volume: &str, bound: &PersistentVolume) -> Result<(), String> {
    let mode = bound.spec.as_ref().and_then(|s| s.volume_mode.as_deref()).unwrap_or("Filesystem");
    let containers = || spec::containers(pod).iter().chain(spec::init_containers(pod));
    let mounted = containers().any(|c| c.volume_mounts.iter().flatten().any(|mount| mount.name == volume));
    let mapped = containers().any(|c| c.volume_devices.iter().flatten().any(|device| device.name == volume));
    let wrong = |field: &str| Err(format!("volume {volume} has volumeMode {mode}, but is specified in {field}"));
    match (mounted, mapped) {
        (true, _) if mode != "Filesystem" => wrong("volumeMounts"),
        (_, true) if mode != "Block" => wrong("volumeDevices"),
        _ => Ok(()),
    }
}

fn check_affinity(
    name: &str,
    volume: &PersistentVolume,
    settings: &Settings,
    labels: &BTreeMap<String, String>,
) -> Result<(), VolumeError> {
    let affinity = volume.spec.as_ref().and_then(|s| s.node_affinity.as_ref());
    let required = affinity.and_then(|affinity| affinity.required.as_ref());
    match required {
        Some(required) if !node_selector::matches(required, &settings.node_name, labels) => {
            Err(VolumeError::NodeAffinity { volume: name.to_owned() })
        }
        _ => Ok(()),
    }
}

fn claimed(name: &str, volume: &PersistentVolume, read_only: bool) -> Result<Claimed, VolumeError> {
    let pv = volume.spec.clone().unwrap_or_default();
    let mut read_only = read_only;
    let source = if let Some(local) = pv.local {
        Source::Local(local.path.into())
    } else if let Some(host) = pv.host_path {
        Source::HostPath { path: host.path.into(), kind: host.type_.unwrap_or_default() }
    } else if let Some(nfs) = pv.nfs {
        read_only |= nfs.read_only.unwrap_or(false);
        Source::Nfs { server: nfs.server, path: nfs.path }
    } else {
        let kind = if pv.csi.is_some() { "CSI PersistentVolume" } else { "PersistentVolume of this" };
        return Err(VolumeError::Unsupported { kind });
    };
    let annotation = volume.metadata.annotations.as_ref().and_then(|annotations| annotations.get(GID_ANNOTATION));
    Ok(Claimed {
        name: name.to_owned(),
        source,
        read_only,
        group: annotation.and_then(|gid| gid.parse().ok()).filter(|gid| *gid > 0),
        options: pv.mount_options.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn volume(spec: Value) -> PersistentVolume {
        serde_json::from_value(json!({"metadata": {"annotations": {GID_ANNOTATION: "77"}}, "spec": spec})).unwrap()
    }

    #[test]
    fn a_claim_must_be_bound() {
        let bound = json!({"phase": "Bound"});
        for (claim, result) in [
            (json!({"spec": {"volumeName": "pv"}, "status": bound}), Ok("pv")),
            (json!({"spec": {}, "status": {"phase": "Pending"}}), Err("PVC is not bound")),
            (json!({"spec": {"volumeName": "pv"}}), Err("PVC is not bound")),
            (json!({"spec": {}, "status": bound}), Err("PVC has empty pvc.Spec.VolumeName")),
            (
                json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"volumeName": "pv"}, "status": bound}),
                Err("PVC is being deleted"),
            ),
        ] {
            assert_eq!(volume_of(&serde_json::from_value(claim.clone()).unwrap()), result, "{claim}");
        }
    }

    #[test]
    fn both_ends_must_mean_each_other() {
        let of = |uid: &str| volume(json!({"claimRef": {"uid": uid}}));
        assert!(check_bound("pv", &of("a"), Some("a")).is_ok());
        assert_eq!(
            check_bound("pv", &of("a"), Some("b")).unwrap_err(),
            "found PV object pv but its pv.Spec.ClaimRef.UID a does not point to claim.UID b"
        );
        assert!(check_bound("pv", &volume(json!({})), Some("b")).unwrap_err().contains("nil pv.Spec.ClaimRef"));
    }

    #[test]
    fn modes_and_affinity() {
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [{"name": "c",
            "volumeMounts": [{"name": "fs", "mountPath": "/a"}], "volumeDevices": [{"name": "raw", "devicePath": "/d"}]}]}}))
        .unwrap();
        let block = volume(json!({"volumeMode": "Block"}));
        assert_eq!(
            check_mode(&pod, "fs", &block).unwrap_err(),
            "volume fs has volumeMode Block, but is specified in volumeMounts"
        );
        assert_eq!(
            check_mode(&pod, "raw", &volume(json!({}))).unwrap_err(),
            "volume raw has volumeMode Filesystem, but is specified in volumeDevices"
        );
        assert!(check_mode(&pod, "raw", &block).is_ok() && check_mode(&pod, "fs", &volume(json!({}))).is_ok());
        let on = |node: &str| {
            volume(json!({"nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}}}))
        };
        let settings = Settings::new("n1");
        let labels = crate::node::status::labels(&settings);
        assert!(check_affinity("pv", &on("n1"), &settings, &labels).is_ok());
        assert!(check_affinity("pv", &on("n2"), &settings, &labels).is_err());
    }

    #[test]
    fn sources() {
        let local = claimed("pv", &volume(json!({"local": {"path": "/d"}, "mountOptions": ["ro"]})), false).unwrap();
        assert_eq!((local.source, local.group), (Source::Local("/d".into()), Some(77)));
        assert_eq!(local.options, ["ro"]);
        let nfs = volume(json!({"nfs": {"server": "s", "path": "/e", "readOnly": true}}));
        assert!(claimed("pv", &nfs, false).unwrap().read_only);
        assert!(claimed("pv", &volume(json!({"fc": {}})), false).is_err());
    }
}
