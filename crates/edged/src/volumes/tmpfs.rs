//! File systems in memory: for Secrets, and for emptyDir volumes that ask for it.

use std::ffi::CString;
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use super::{VolumeError, mount_table};

/// Mounts one at a directory unless something is mounted there already. Kept out of swap where the kernel can do that.
pub(super) fn mount_at(path: &Path, kind: &str, options: &str) -> Result<(), VolumeError> {
    if mount_table::is_mount_point(path).map_err(VolumeError::file(path))? {
        return Ok(());
    }
    let try_with = |options: &str| {
        let options =
            CString::new(options).map_err(|_| VolumeError::Invalid("mount options hold a zero byte".into()))?;
        Ok::<_, VolumeError>(mount(kind, path, kind, MountFlags::NODEV | MountFlags::NOSUID, Some(options.as_c_str())))
    };
    let mut result = Err(Errno::INVAL);
    if kind == "tmpfs" {
        let separator = if options.is_empty() { "" } else { "," };
        result = try_with(&format!("{options}{separator}noswap"))?;
    }
    if result == Err(Errno::INVAL) {
        result = try_with(options)?;
    }
    result.map_err(|error| VolumeError::file(path)(error.into()))
}
