//! Local PersistentVolumes: a directory of the node, bound to the pod's place for the volume.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

use rustix::mount::{MountFlags, mount_bind, mount_remount};

use super::{VolumeError, fs_group, mount_table};

/// Binds the volume once; true when it was not bound yet. The place is below the pod's directory and goes with it, the data does
/// not.
pub(super) fn bind(
    name: &str,
    source: &Path,
    target: &Path,
    read_only: bool,
    options: &[String],
) -> Result<bool, VolumeError> {
    let not_usable = |text: String| VolumeError::NewMounter { volume: name.to_owned(), text };
    let found = fs::metadata(source).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => not_usable(format!("path {source:?} does not exist")),
        _ => not_usable(format!("path {source:?}: {error}")),
    })?;
    if !found.is_dir() {
        return Err(not_usable(format!(
            "path {source:?} is no directory; make a file system on the device, mount it on the node, and name the directory"
        )));
    }
    let flags = flags(options).map_err(not_usable)?;
    if mount_table::is_mount_point(target).map_err(VolumeError::file(target))? {
        return Ok(false);
    }
    fs::DirBuilder::new().recursive(true).mode(0o750).create(target).map_err(VolumeError::file(target))?;
    mount_bind(source, target).map_err(|error| VolumeError::file(target)(error.into()))?;
    let flags = if read_only { flags | MountFlags::RDONLY } else { flags };
    if !flags.is_empty() {
        mount_remount(target, flags | MountFlags::BIND, c"")
            .map_err(|error| VolumeError::file(target)(error.into()))?;
    }
    Ok(true)
}

/// Gives a volume to the group of the pod, unless another pod uses it with another one: that is the warning.
pub(super) fn give_to_group(
    name: &str,
    target: &Path,
    pods: &Path,
    group: u32,
    only_on_mismatch: bool,
) -> Result<Option<String>, VolumeError> {
    let fail = |error| VolumeError::file(target)(error);
    let current = fs::metadata(target).map_err(fail)?.gid();
    let pods = fs::canonicalize(pods).map_err(fail)?;
    let own = fs::canonicalize(target).map_err(fail)?;
    let mounts = mount_table::below(&pods).map_err(fail)?;
    let place = Path::new("volumes/kubernetes.io~local-volume").join(name);
    let used = mounts.iter().any(|point| *point != own && point.ends_with(&place));
    if used && current != group {
        return Ok(Some(format!(
            "The requested fsGroup is {group}, but the volume {name} has GID {current}. The volume may not be shareable."
        )));
    }
    if !(only_on_mismatch && fs_group::fits(target, group, false).map_err(fail)?) {
        fs_group::apply(target, group, false).map_err(fail)?;
    }
    Ok(None)
}

/// `mountOptions` that a bind mount can have.
fn flags(options: &[String]) -> Result<MountFlags, String> {
    let mut flags = MountFlags::empty();
    for option in options {
        flags |= match option.as_str() {
            "ro" => MountFlags::RDONLY,
            "noexec" => MountFlags::NOEXEC,
            "nosuid" => MountFlags::NOSUID,
            "nodev" => MountFlags::NODEV,
            "noatime" => MountFlags::NOATIME,
            "nodiratime" => MountFlags::NODIRATIME,
            "relatime" => MountFlags::RELATIME,
            "bind" | "rw" | "defaults" => MountFlags::empty(),
            other => {
                return Err(format!(
                    "mountOptions has {other:?}; a local volume takes ro, rw, noexec, nosuid, nodev, noatime, nodiratime, relatime"
                ));
            }
        };
    }
    Ok(flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_bound_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        let error = bind("pv", &dir.path().join("none"), &target, false, &[]).unwrap_err().to_string();
        assert!(error.ends_with("none\" does not exist"), "{error}");
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(bind("pv", &dir.path().join("file"), &target, false, &[]).is_err());
        assert!(bind("pv", dir.path(), &target, false, &["uid=7".into()]).unwrap_err().to_string().contains("uid=7"));
        assert!(!target.exists());
    }
}
