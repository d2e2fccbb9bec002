//! What is mounted into a container: its volumes, the hosts file, the termination message.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, VolumeMount};
use rand::RngExt as _;

use super::expand::expand;
use crate::cri::proto::{self, MountPropagation};
use crate::volumes::{MountedVolumes, subpath};

/// Where a container writes its last words unless it says otherwise.
pub const DEFAULT_TERMINATION_PATH: &str = "/dev/termination-log";

/// Inputs besides the container.
pub struct MountInput<'a> {
    /// Volumes of the pod, set up.
    pub volumes: &'a MountedVolumes,
    /// Final environment, for `subPathExpr`.
    pub env: &'a [(String, String)],
    /// The pod's hosts file; absent when the pod has no address.
    pub hosts_file: Option<PathBuf>,
    /// Directory of the container's termination messages.
    pub container_dir: PathBuf,
    /// Bind targets for sub-paths.
    pub subpaths: PathBuf,
    /// The runtime can make mounts read-only with all below them.
    pub recursive_read_only: bool,
}

/// Mounts in the order of the kubelet: volumes, hosts file, termination message.
///
/// # Errors
/// The text for `CreateContainerConfigError`.
pub fn mounts(container: &Container, input: &MountInput<'_>) -> Result<Vec<proto::Mount>, String> {
    let mut mounts = Vec::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        mounts.push(volume_mount(container, mount, index, input)?);
    }
    let own_hosts_file = mounts.iter().any(|mount| mount.container_path == "/etc/hosts");
    if let Some(file) = input.hosts_file.as_ref().filter(|_| !own_hosts_file) {
        mounts.push(plain("/etc/hosts", file));
    }
    let path = container.termination_message_path.as_deref().unwrap_or(DEFAULT_TERMINATION_PATH);
    if !path.is_empty() {
        let file = termination_file(&input.container_dir)
            .map_err(|error| format!("creating the termination message file: {error}"))?;
        mounts.push(plain(path, &file));
    }
    Ok(mounts)
}

fn plain(container_path: &str, host_path: &Path) -> proto::Mount {
    proto::Mount {
        container_path: container_path.to_owned(),
        host_path: host_path.display().to_string(),
        ..Default::default()
    }
}

fn volume_mount(
    container: &Container,
    mount: &VolumeMount,
    index: usize,
    input: &MountInput<'_>,
) -> Result<proto::Mount, String> {
    let volume = input
        .volumes
        .get(&mount.name)
        .ok_or_else(|| format!("cannot find volume {:?} to mount into container {:?}", mount.name, container.name))?;
    let mut source = volume.path.clone();
    if let Some(sub) = sub_path(mount, input.env)? {
        let target = input.subpaths.join(&mount.name).join(&container.name).join(index.to_string());
        source = subpath::bind(&source, &sub, &target).map_err(|error| {
            format!(
                "failed to prepare subPath for volumeMount {:?} of container {:?}: {error}",
                mount.name, container.name
            )
        })?;
    }
    // A path without a leading slash is meant from the root, as in older runtimes.
    let container_path =
        if mount.mount_path.starts_with('/') { mount.mount_path.clone() } else { format!("/{}", mount.mount_path) };
    let propagation = match mount.mount_propagation.as_deref() {
        Some("HostToContainer") => MountPropagation::PropagationHostToContainer,
        Some("Bidirectional") => MountPropagation::PropagationBidirectional,
        _ => MountPropagation::PropagationPrivate,
    };
    let recursive_read_only = recursive_read_only(mount, input.recursive_read_only)
        .map_err(|text| format!("failed to resolve recursive read-only mode: {text}"))?;
    Ok(proto::Mount {
        container_path,
        host_path: source.display().to_string(),
        readonly: mount.read_only.unwrap_or(false) || volume.read_only,
        selinux_relabel: false,
        propagation: propagation as i32,
        recursive_read_only,
    })
}

fn recursive_read_only(mount: &VolumeMount, supported: bool) -> Result<bool, String> {
    let name = &mount.name;
    let mode = mount.recursive_read_only.as_deref().unwrap_or("Disabled");
    if mode == "Disabled" {
        return Ok(false);
    }
    let asked = format!("volume {name:?} requested recursive read-only mode");
    if mount.read_only != Some(true) {
        return Err(format!("{asked}, but it is not read-only"));
    }
    if let Some(propagation) = mount.mount_propagation.as_deref().filter(|propagation| *propagation != "None") {
        return Err(format!("{asked}, but it is not compatible with propagation {propagation:?}"));
    }
    match mode {
        "IfPossible" => Ok(supported),
        "Enabled" if supported => Ok(true),
        "Enabled" => Err(format!("{asked}, but it is not supported by the runtime")),
        other => Err(format!("unknown recursive read-only mode {other:?}")),
    }
}

/// The sub-path with its variables replaced.
fn sub_path(mount: &VolumeMount, env: &[(String, String)]) -> Result<Option<PathBuf>, String> {
    let text = match (&mount.sub_path_expr, &mount.sub_path) {
        (Some(template), _) if !template.is_empty() => {
            let unknown = std::cell::RefCell::new(None);
            let text = expand(template, |name| {
                let found = env.iter().find(|(other, _)| other == name).map(|(_, value)| value.clone());
                if found.is_none() {
                    *unknown.borrow_mut() = Some(name.to_owned());
                }
                found
            });
            if let Some(name) = unknown.into_inner() {
                return Err(format!("failed to expand subPathExpr {template:?}: missing value for {name:?}"));
            }
            text
        }
        (_, Some(path)) if !path.is_empty() => path.clone(),
        _ => return Ok(None),
    };
    let path = PathBuf::from(&text);
    if path.is_absolute() {
        return Err(format!("error SubPath `{text}` must not be an absolute path"));
    }
    if path.components().any(|part| part == std::path::Component::ParentDir) {
        return Err(format!("unable to provision SubPath `{text}`: must not contain '..'"));
    }
    Ok(Some(path))
}

/// An empty file that any user in the container may write.
fn termination_file(dir: &Path) -> io::Result<PathBuf> {
    fs::create_dir_all(dir)?;
    let file = dir.join(format!("{:08x}", rand::rng().random::<u32>()));
    fs::write(&file, b"")?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn recursive_read_only_modes() {
        for (mode, read_only, propagation, supported, result) in [
            (None, false, None, false, Ok(false)),
            (Some("Disabled"), true, None, true, Ok(false)),
            (Some("IfPossible"), true, None, false, Ok(false)),
            (Some("IfPossible"), true, Some("None"), true, Ok(true)),
            (Some("Enabled"), true, None, true, Ok(true)),
            (Some("Enabled"), true, None, false, Err("but it is not supported by the runtime")),
            (Some("Enabled"), false, None, true, Err("but it is not read-only")),
            (Some("Enabled"), true, Some("Bidirectional"), true, Err("not compatible with propagation")),
            (Some("Odd"), true, None, true, Err("unknown recursive read-only mode")),
        ] {
            let mount = serde_json::from_value(json!({"name": "v", "mountPath": "/v", "readOnly": read_only,
                "recursiveReadOnly": mode, "mountPropagation": propagation}))
            .unwrap();
            match (recursive_read_only(&mount, supported), result) {
                (Ok(found), Ok(wanted)) => assert_eq!(found, wanted),
                (Err(text), Err(part)) => assert!(text.contains(part), "{text}"),
                other => panic!("{mode:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn sub_paths() {
        let env = [("A".to_owned(), "x".to_owned())];
        let path = |mount: serde_json::Value| sub_path(&serde_json::from_value(mount).unwrap(), &env);
        let of = |field: &str, text: &str| path(json!({"name": "v", "mountPath": "/v", field: text}));
        assert_eq!(of("subPath", ""), Ok(None));
        assert_eq!(of("subPath", "a/$(A)"), Ok(Some("a/$(A)".into())));
        assert_eq!(of("subPathExpr", "a/$(A)"), Ok(Some("a/x".into())));
        for (field, text) in [("subPath", "/a"), ("subPath", "a/../b"), ("subPathExpr", "$(B)")] {
            assert!(of(field, text).is_err(), "{text}");
        }
    }
}
