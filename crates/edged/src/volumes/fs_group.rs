//! Ownership of volumes by a pod's `fsGroup`: everything in a volume belongs to the group, which may write it (or only read it, in
//! a read-only volume), and so will what is made in it.
//!
//! Other pods may be at work in the volume meanwhile: every step goes through an open handle, and links are never followed.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;
use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, chmod, chownat, fstat, open, openat2};

const FILE: u32 = 0o660;
const READ_ONLY: u32 = 0o440;
/// On top of the mask of files: to enter, and to hand the group on.
const DIRECTORY: u32 = 0o2110;

/// The group that the pod's volumes shall belong to.
pub(super) fn wanted(pod: &Pod) -> Option<u32> {
    let context = pod.spec.as_ref()?.security_context.as_ref()?;
    context.fs_group.and_then(|group| u32::try_from(group).ok())
}

/// `fsGroupChangePolicy: OnRootMismatch`: a volume whose root fits is taken to fit as a whole.
pub(super) fn only_on_mismatch(pod: &Pod) -> bool {
    let context = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    context.and_then(|context| context.fs_group_change_policy.as_deref()) == Some("OnRootMismatch")
}

/// Whether the root of a volume belongs to the group as [`apply`] would leave it.
pub(super) fn fits(volume: &Path, group: u32, read_only: bool) -> io::Result<bool> {
    let stat = fstat(open(volume, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)?;
    let mask = mask(true, read_only);
    Ok(stat.st_gid == group && stat.st_mode & mask == mask)
}

/// Gives a volume to a group, what is in a directory before the directory itself.
pub(super) fn apply(volume: &Path, group: u32, read_only: bool) -> io::Result<()> {
    let root = open(volume, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut directories = vec![(PathBuf::from("."), false)];
    while let Some((path, listed)) = directories.pop() {
        if listed {
            own(&root, &path, group, read_only)?;
            continue;
        }
        let dir = below(&root, &path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        directories.push((path.clone(), true));
        for entry in Dir::read_from(dir)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            let child = path.join(OsStr::from_bytes(name));
            match entry.file_type() {
                FileType::Directory => directories.push((child, false)),
                _ => own(&root, &child, group, read_only)?,
            }
        }
    }
    Ok(())
}

fn below(root: &OwnedFd, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    Ok(openat2(root, path, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), resolve)?)
}

fn mask(directory: bool, read_only: bool) -> u32 {
    let mask = if read_only { READ_ONLY } else { FILE };
    if directory { mask | DIRECTORY } else { mask }
}

fn own(root: &OwnedFd, path: &Path, group: u32, read_only: bool) -> io::Result<()> {
    let file = match openat2(
        root,
        path,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH,
    ) {
        // Somebody else was faster.
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        other => other?,
    };
    let stat = fstat(&file)?;
    let changes_group = stat.st_gid != group;
    if changes_group {
        chownat(&file, "", None, Some(Gid::from_raw(group)), AtFlags::EMPTY_PATH)?;
    }
    let kind = FileType::from_raw_mode(stat.st_mode);
    if kind == FileType::Symlink {
        return Ok(());
    }
    let before = stat.st_mode & 0o7777;
    let mode = before | mask(kind == FileType::Directory, read_only);
    // Changing the owner may have cleared bits of the mode.
    if mode != before || changes_group {
        chmod(format!("/proc/self/fd/{}", file.as_raw_fd()), Mode::from_raw_mode(mode))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn modes_and_groups_below_a_volume() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volume");
        let outside = dir.path().join("outside");
        fs::create_dir_all(volume.join("sub")).unwrap();
        for (path, mode) in [(volume.join("sub/file"), 0o600), (volume.join("run"), 0o4711), (outside.clone(), 0o600)] {
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        symlink(&outside, volume.join("link")).unwrap();
        fs::set_permissions(volume.join("sub"), fs::Permissions::from_mode(0o700)).unwrap();
        if apply(&volume, 4321, false).is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied) {
            eprintln!("not root: no group can be given");
            return;
        }
        assert_eq!(mode(&volume.join("sub")), 0o2770);
        assert_eq!(mode(&volume.join("sub/file")), 0o660);
        assert_eq!(mode(&volume.join("run")), 0o4771);
        assert_eq!(mode(&outside), 0o600, "links lead nowhere");
        for path in ["", "sub", "sub/file", "link"] {
            assert_eq!(fs::symlink_metadata(volume.join(path)).unwrap().gid(), 4321, "{path}");
        }
        assert!(fits(&volume, 4321, false).unwrap() && !fits(&volume, 1, false).unwrap());
        fs::set_permissions(volume.join("sub/file"), fs::Permissions::from_mode(0o400)).unwrap();
        apply(&volume, 4321, true).unwrap();
        assert_eq!(mode(&volume.join("sub/file")), 0o440);
    }
}
