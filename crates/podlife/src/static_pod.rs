//! Static pods: pods from files of the node, and their mirrors in the API.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Pod, PodStatus, Probe, Toleration, Volume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::Value;

use crate::spec;

/// Where a pod came from.
pub const SOURCE: &str = "kubernetes.io/config.source";
/// When it was first seen.
pub const SEEN: &str = "kubernetes.io/config.seen";
/// Hash of its content.
pub const HASH: &str = "kubernetes.io/config.hash";
/// On a mirror: the hash of the pod that it shows.
pub const MIRROR: &str = "kubernetes.io/config.mirror";

/// A manifest that makes no pod.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// It is something else.
    #[error("kind {kind:?} of {version:?} is not a Pod of v1")]
    Kind {
        /// `kind`.
        kind: String,
        /// `apiVersion`.
        version: String,
    },
    /// A field has another shape than a Pod's.
    #[error("it is no Pod: {0}")]
    Shape(String),
    /// A field is missing or makes no sense.
    #[error("{field}: {problem}")]
    Field {
        /// Its path.
        field: String,
        /// What is wrong, and what to write.
        problem: &'static str,
    },
}

/// Where a manifest was found.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// This node.
    pub node: &'a str,
    /// The file.
    pub path: &'a str,
}

/// Makes a pod of a manifest, with the defaults that the API would fill in.
///
/// # Errors
/// Why it is none.
pub fn read(document: Value, origin: Origin<'_>, now: Timestamp) -> Result<Pod, ManifestError> {
    let text = |field: &str| document[field].as_str().unwrap_or_default().to_owned();
    if text("kind") != "Pod" || text("apiVersion") != "v1" {
        return Err(ManifestError::Kind { kind: text("kind"), version: text("apiVersion") });
    }
    let mut pod: Pod = serde_json::from_value(document).map_err(|error| ManifestError::Shape(error.to_string()))?;
    pod.status = None;
    check(&pod)?;
    let uid = pod.metadata.uid.clone().filter(|uid| !uid.is_empty()).unwrap_or_else(|| {
        let content = serde_json::to_string(&pod).unwrap_or_default();
        digest(&[&content, &format!("host:{}", origin.node), &format!("file:{}", origin.path)])
    });
    let metadata = &mut pod.metadata;
    metadata.name = metadata.name.take().map(|name| format!("{name}-{}", origin.node.to_lowercase()));
    metadata.namespace.get_or_insert_with(|| "default".into());
    let annotations = metadata.annotations.get_or_insert_default();
    annotations.insert(HASH.into(), uid.clone());
    annotations.insert(SEEN.into(), now.to_string());
    annotations.insert(SOURCE.into(), "file".into());
    metadata.uid = Some(uid);
    fill_in(&mut pod, origin.node);
    Ok(pod)
}

fn check(pod: &Pod) -> Result<(), ManifestError> {
    let wrong = |field: String, problem| Err(ManifestError::Field { field, problem });
    let is_name = |name: &str| {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
        !name.is_empty() && name.len() <= 253 && name.chars().all(plain) && !name.starts_with(['-', '.'])
    };
    if !pod.metadata.name.as_deref().is_some_and(is_name) {
        return wrong("metadata.name".into(), "must be lower-case letters, digits, '-' and '.'");
    }
    if pod.metadata.namespace.as_deref().is_some_and(|namespace| !is_name(namespace)) {
        return wrong("metadata.namespace".into(), "must be lower-case letters, digits and '-'");
    }
    if spec::containers(pod).is_empty() {
        return wrong("spec.containers".into(), "a pod needs a container");
    }
    let init = spec::init_containers(pod).iter().map(|container| ("initContainers", container));
    for (list, container) in spec::containers(pod).iter().map(|container| ("containers", container)).chain(init) {
        if !is_name(&container.name) {
            return wrong(format!("spec.{list}.name"), "must be lower-case letters, digits and '-'");
        }
        if container.image.as_deref().unwrap_or_default().is_empty() {
            return wrong(format!("spec.{list}[{}].image", container.name), "an image is needed");
        }
    }
    Ok(())
}

/// The defaults of the API server.
fn fill_in(pod: &mut Pod, node: &str) {
    let Some(spec) = pod.spec.as_mut() else { return };
    spec.node_name = Some(node.to_owned());
    spec.restart_policy.get_or_insert_with(|| "Always".into());
    spec.termination_grace_period_seconds.get_or_insert(30);
    spec.dns_policy.get_or_insert_with(|| "ClusterFirst".into());
    spec.scheduler_name.get_or_insert_with(|| "default-scheduler".into());
    spec.security_context.get_or_insert_default();
    spec.enable_service_links.get_or_insert(true);
    let all = Toleration { operator: Some("Exists".into()), effect: Some("NoExecute".into()), ..Default::default() };
    let tolerations = spec.tolerations.get_or_insert_default();
    if !tolerations.contains(&all) {
        tolerations.push(all);
    }
    let host_network = spec.host_network.unwrap_or(false);
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        fill_in_container(container, host_network);
    }
    spec.volumes.iter_mut().flatten().for_each(fill_in_volume);
}

fn fill_in_container(container: &mut Container, host_network: bool) {
    container.termination_message_path.get_or_insert_with(|| "/dev/termination-log".into());
    container.termination_message_policy.get_or_insert_with(|| "File".into());
    let image = container.image.as_deref().unwrap_or_default();
    let last = image.rsplit('/').next().unwrap_or_default();
    let latest = !image.contains('@') && (!last.contains(':') || last.ends_with(":latest"));
    let policy = if latest { "Always" } else { "IfNotPresent" };
    container.image_pull_policy.get_or_insert_with(|| policy.into());
    let resources = container.resources.get_or_insert_default();
    // A limit without a request is the request too.
    for (name, limit) in resources.limits.iter().flatten() {
        resources.requests.get_or_insert_default().entry(name.clone()).or_insert_with(|| limit.clone());
    }
    for port in container.ports.iter_mut().flatten() {
        port.protocol.get_or_insert_with(|| "TCP".into());
        if host_network {
            port.host_port.get_or_insert(port.container_port);
        }
    }
    for variable in container.env.iter_mut().flatten() {
        if let Some(field) = variable.value_from.as_mut().and_then(|from| from.field_ref.as_mut()) {
            field.api_version.get_or_insert_with(|| "v1".into());
        }
    }
    let probes = [&mut container.liveness_probe, &mut container.readiness_probe, &mut container.startup_probe];
    probes.into_iter().flatten().for_each(fill_in_probe);
    let hooks = container.lifecycle.as_mut().map(|hooks| [&mut hooks.post_start, &mut hooks.pre_stop]);
    for hook in hooks.into_iter().flatten().flatten() {
        hook.http_get.as_mut().into_iter().for_each(fill_in_http);
    }
}

fn fill_in_probe(probe: &mut Probe) {
    probe.timeout_seconds.get_or_insert(1);
    probe.period_seconds.get_or_insert(10);
    probe.success_threshold.get_or_insert(1);
    probe.failure_threshold.get_or_insert(3);
    probe.http_get.as_mut().into_iter().for_each(fill_in_http);
}

fn fill_in_http(action: &mut HTTPGetAction) {
    action.path.get_or_insert_with(|| "/".into());
    action.scheme.get_or_insert_with(|| "HTTP".into());
}

fn fill_in_volume(volume: &mut Volume) {
    const MODE: i32 = 0o644;
    let modes = [
        volume.config_map.as_mut().map(|source| &mut source.default_mode),
        volume.secret.as_mut().map(|source| &mut source.default_mode),
        volume.downward_api.as_mut().map(|source| &mut source.default_mode),
        volume.projected.as_mut().map(|source| &mut source.default_mode),
    ];
    for mode in modes.into_iter().flatten() {
        mode.get_or_insert(MODE);
    }
    if let Some(source) = volume.host_path.as_mut() {
        source.type_.get_or_insert_with(String::new);
    }
}

/// FNV-1a of 128 bits, in hex: an edit of the file must give another UID, and nobody but root can write there.
fn digest(parts: &[&str]) -> String {
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    let hash = bytes.fold(BASIS, |hash, byte| (hash ^ u128::from(byte)).wrapping_mul(PRIME));
    format!("{hash:032x}")
}

/// What the pod shows of another one; `None` for a pod that is no mirror.
pub fn mirrored_hash(pod: &Pod) -> Option<&str> {
    pod.metadata.annotations.as_ref()?.get(MIRROR).map(String::as_str)
}

/// The hash that the mirror of a static pod carries.
pub fn hash(pod: &Pod) -> &str {
    pod.metadata.annotations.as_ref().and_then(|all| all.get(HASH)).map_or("", String::as_str)
}

/// The mirror of a static pod, owned by this node.
pub fn mirror(pod: &Pod, node: &str, node_uid: &str) -> Pod {
    let mut mirror = pod.clone();
    let hash = hash(pod).to_owned();
    mirror.metadata.annotations.get_or_insert_default().insert(MIRROR.into(), hash);
    mirror.metadata.owner_references = Some(vec![OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: node.to_owned(),
        uid: node_uid.to_owned(),
        controller: Some(true),
        ..Default::default()
    }]);
    mirror.status = Some(PodStatus { phase: Some("Pending".into()), ..Default::default() });
    mirror
}

/// A mirror as far as decisions need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorFacts {
    /// Its UID, which the API gave.
    pub uid: String,
    /// The hash that it shows.
    pub hash: String,
    /// It is being deleted.
    pub deleted: bool,
}

/// What is to be done about a mirror.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MirrorStep {
    /// It is as it should be.
    None,
    /// Make it.
    Create,
    /// Delete this one, and no other.
    Delete {
        /// Its UID.
        uid: String,
    },
    /// The pod has gone: delete whatever shows it.
    DeleteAny,
}

/// Compares a static pod, which may be gone, with its mirror.
pub fn mirror_step(pod: Option<&Pod>, mirror: Option<&MirrorFacts>) -> MirrorStep {
    match (pod, mirror) {
        (None, None) => MirrorStep::None,
        (None, Some(_)) => MirrorStep::DeleteAny,
        (Some(_), None) => MirrorStep::Create,
        (Some(pod), Some(mirror)) if mirror.deleted || mirror.hash != hash(pod) => {
            MirrorStep::Delete { uid: mirror.uid.clone() }
        }
        (Some(_), Some(_)) => MirrorStep::None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn made(document: Value) -> Result<Pod, ManifestError> {
        let origin = Origin { node: "Edge-1", path: "/etc/kubeedge/manifests/web.yaml" };
        read(document, origin, "2026-11-23T03:13:22.257191855Z".parse().unwrap())
    }

    fn manifest() -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"},
            "spec": {
                "containers": [{
                    "name": "main", "image": "busybox:1", "ports": [{"containerPort": 80}],
                    "resources": {"limits": {"cpu": "1"}},
                    "livenessProbe": {"httpGet": {"port": 80}},
                }],
                "volumes": [{"name": "v", "configMap": {"name": "c"}}],
            },
        })
    }

    #[test]
    fn defaults_are_those_of_the_api() {
        let pod = json!(made(manifest()).unwrap());
        let uid = pod["metadata"]["uid"].as_str().unwrap();
        assert_eq!(uid.len(), 32);
        assert_eq!(
            pod["metadata"],
            json!({
                "name": "web-edge-1", "namespace": "default", "uid": uid,
                "annotations": {HASH: uid, SEEN: "2026-11-23T03:13:22.257191855Z", SOURCE: "file"},
            })
        );
        assert_eq!(
            pod["spec"],
            json!({
                "containers": [{
                    "name": "main", "image": "busybox:1", "imagePullPolicy": "IfNotPresent",
                    "ports": [{"containerPort": 80, "protocol": "TCP"}],
                    "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1"}},
                    "livenessProbe": {
                        "httpGet": {"port": 80, "path": "/", "scheme": "HTTP"},
                        "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3,
                    },
                    "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                }],
                "volumes": [{"name": "v", "configMap": {"name": "c", "defaultMode": 420}}],
                "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst",
                "nodeName": "Edge-1", "securityContext": {}, "schedulerName": "default-scheduler",
                "tolerations": [{"operator": "Exists", "effect": "NoExecute"}], "enableServiceLinks": true,
            })
        );
        assert!(spec::is_static(&made(manifest()).unwrap()));
    }

    #[test]
    fn any_change_gives_another_uid_unless_one_is_written() {
        let mut edited = manifest();
        edited["spec"]["containers"][0]["image"] = json!("busybox:2");
        let uid = |document: &Value| made(document.clone()).unwrap().metadata.uid.unwrap();
        assert_eq!(uid(&manifest()), uid(&manifest()));
        assert_ne!(uid(&manifest()), uid(&edited));
        edited["metadata"]["uid"] = json!("own");
        assert_eq!(uid(&edited), "own");
    }

    #[test]
    fn what_is_no_pod_is_refused_with_the_reason() {
        let change = |pointer: &str, value: Value| {
            let mut document = manifest();
            *document.pointer_mut(pointer).unwrap() = value;
            made(document).unwrap_err().to_string()
        };
        for (pointer, value, reason) in [
            ("/kind", json!("List"), r#"kind "List" of "v1" is not a Pod of v1"#),
            ("/metadata/name", json!("My_Pod"), "metadata.name: must be lower-case letters, digits, '-' and '.'"),
            ("/spec/containers", json!([]), "spec.containers: a pod needs a container"),
            ("/spec/containers/0/image", json!(""), "spec.containers[main].image: an image is needed"),
            (
                "/spec/containers/0/name",
                json!("../a"),
                "spec.containers.name: must be lower-case letters, digits and '-'",
            ),
        ] {
            assert_eq!(change(pointer, value), reason);
        }
        assert!(change("/spec/containers/0/ports", json!("80")).starts_with("it is no Pod: "));
        assert!(matches!(made(json!("text")), Err(ManifestError::Kind { .. })));
    }

    #[test]
    fn a_mirror_shows_its_pod() {
        let pod = made(manifest()).unwrap();
        let mirror = mirror(&pod, "edge-1", "node-uid");
        assert_eq!(mirrored_hash(&mirror), Some(hash(&pod)));
        assert_eq!(mirrored_hash(&pod), None);
        let owner =
            json!({"apiVersion": "v1", "kind": "Node", "name": "edge-1", "uid": "node-uid", "controller": true});
        assert_eq!(json!(mirror)["metadata"]["ownerReferences"], json!([owner]));
        assert_eq!(json!(mirror)["status"], json!({"phase": "Pending"}));
        let facts = |hash: &str, deleted| MirrorFacts { uid: "m".into(), hash: hash.into(), deleted };
        let delete = MirrorStep::Delete { uid: "m".into() };
        for (has_pod, mirror, step) in [
            (false, None, MirrorStep::None),
            (false, Some(facts("x", false)), MirrorStep::DeleteAny),
            (true, None, MirrorStep::Create),
            (true, Some(facts(hash(&pod), false)), MirrorStep::None),
            (true, Some(facts(hash(&pod), true)), delete.clone()),
            (true, Some(facts("x", false)), delete),
        ] {
            assert_eq!(mirror_step(has_pod.then_some(&pod), mirror.as_ref()), step);
        }
    }
}
