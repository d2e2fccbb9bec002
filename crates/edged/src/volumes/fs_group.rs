//! Ownership of volumes by a pod's `fsGroup`.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown};
use std::path::Path;

use k8s_openapi::api::core::v1::{Pod, PodSecurityContext};

fn context(pod: &Pod) -> Option<&PodSecurityContext> {
    pod.spec.as_ref()?.security_context.as_ref()
}

/// The group that the pod's volumes shall belong to.
pub(super) fn wanted(pod: &Pod) -> Option<u32> {
    context(pod)?.fs_group.and_then(|group| u32::try_from(group).ok())
}

/// Whether a volume whose root fits already is left as it is.
pub(super) fn on_root_mismatch(pod: &Pod) -> bool {
    context(pod).and_then(|context| context.fs_group_change_policy.as_deref()) == Some("OnRootMismatch")
}

/// Gives a directory tree to a group: files readable and writable, directories also enterable and handing the group on.
/// Children come before their parents, so that an interrupted change is noticed at the root.
pub(super) fn apply(path: &Path, group: u32, only_on_mismatch: bool) -> io::Result<()> {
    let root = fs::symlink_metadata(path)?;
    if only_on_mismatch && root.gid() == group && root.mode() & 0o2770 == 0o2770 {
        return Ok(());
    }
    apply_to(path, group)
}

fn apply_to(path: &Path, group: u32) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    if metadata.is_symlink() {
        return lchown(path, None, Some(group));
    }
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            apply_to(&entry?.path(), group)?;
        }
        return own_dir(path, group);
    }
    chown(path, None, Some(group))?;
    fs::set_permissions(path, fs::Permissions::from_mode(metadata.mode() & 0o7777 | 0o660))
}

/// Gives one directory to a group.
pub(super) fn own_dir(path: &Path, group: u32) -> io::Result<()> {
    let mode = fs::metadata(path)?.mode() & 0o7777;
    chown(path, None, Some(group))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode | 0o2770))
}
