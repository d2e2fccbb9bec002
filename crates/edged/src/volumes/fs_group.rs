//! Ownership of volumes by a pod's `fsGroup`: files are given to it as they are written, directories as they are made.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use k8s_openapi::api::core::v1::Pod;

/// The group that the pod's volumes shall belong to.
pub(super) fn wanted(pod: &Pod) -> Option<u32> {
    let context = pod.spec.as_ref()?.security_context.as_ref()?;
    context.fs_group.and_then(|group| u32::try_from(group).ok())
}

/// Gives a directory to a group: it may write there, and what it makes there is its own.
pub(super) fn own_dir(path: &Path, group: u32) -> io::Result<()> {
    let mode = fs::metadata(path)?.mode() & 0o7777;
    chown(path, None, Some(group))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode | 0o2770))
}
