//! What is mounted where.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind_recursive, mount_change, unmount};

/// One line of the table.
struct Mount {
    point: PathBuf,
    shared: bool,
}

fn table() -> io::Result<Vec<Mount>> {
    Ok(fs::read_to_string("/proc/self/mountinfo")?.lines().filter_map(parse).collect())
}

/// Mount point and optional fields; in a path space, tab, newline and backslash are written in octal.
fn parse(line: &str) -> Option<Mount> {
    let mut fields = line.split(' ');
    let field = fields.nth(4)?;
    let shared = fields.skip(1).take_while(|field| *field != "-").any(|field| field.starts_with("shared:"));
    let mut out = Vec::with_capacity(field.len());
    let mut bytes = field.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'\\' {
            let digits = [bytes.next()?, bytes.next()?, bytes.next()?];
            out.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 8).ok()?);
        } else {
            out.push(byte);
        }
    }
    let point = PathBuf::from(<std::ffi::OsString as std::os::unix::ffi::OsStringExt>::from_vec(out));
    Some(Mount { point, shared })
}

/// Mount points at or below a path, the deepest and latest first.
pub(super) fn below(path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut points: Vec<PathBuf> =
        table()?.into_iter().map(|mount| mount.point).filter(|point| point.starts_with(path)).collect();
    points.reverse();
    Ok(points)
}

/// Whether something is mounted at exactly this path.
pub(super) fn is_mount_point(path: &Path) -> io::Result<bool> {
    let mount_of = |dir: BorrowedFd<'_>, path: &Path| {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        match statx(dir, path, flags, StatxFlags::MNT_ID) {
            Ok(stat) if stat.stx_mask & StatxFlags::MNT_ID.bits() != 0 => Ok(Some(stat.stx_mnt_id)),
            Ok(_) | Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(error) => Err(io::Error::from(error)),
        }
    };
    let parent = path.parent().unwrap_or(path);
    match (mount_of(CWD.as_fd(), path)?, mount_of(CWD.as_fd(), parent)?) {
        (Some(own), Some(parents)) => Ok(own != parents),
        // A kernel before 5.8.
        _ if path.exists() => Ok(below(&fs::canonicalize(path)?)?.iter().any(|point| point == path)),
        _ => Ok(false),
    }
}

/// Unmounts everything at or below a path. What is still in use goes when its last user goes.
pub(super) fn unmount_below(path: &Path) -> io::Result<()> {
    // The table has real paths.
    let path = match fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for point in below(&path)? {
        match unmount(&point, UnmountFlags::DETACH) {
            // With shared propagation another unmounting has taken it along.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => {
                let kind = io::Error::from(error).kind();
                return Err(io::Error::new(kind, format!("unmounting {}: {error}", point.display())));
            }
        }
    }
    match below(&path)?.first() {
        Some(left) => Err(io::Error::other(format!("{} is still mounted", left.display()))),
        None => Ok(()),
    }
}

/// Makes mounts below a directory visible in containers that ask for it, and theirs on the node: the directory becomes a shared
/// mount unless it is on one already (as on every machine that systemd has started).
///
/// # Errors
/// It cannot be mounted; for want of rights, for example.
pub fn share(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let dir = fs::canonicalize(dir)?;
    let mounts = table()?;
    let holds = mounts.iter().filter(|mount| dir.starts_with(&mount.point));
    // The last of the longest ones is on top.
    let on = holds.max_by_key(|mount| mount.point.as_os_str().len());
    if on.is_some_and(|mount| mount.shared) {
        return Ok(());
    }
    if on.is_none_or(|mount| mount.point != dir) {
        mount_bind_recursive(&dir, &dir)?;
    }
    Ok(mount_change(&dir, MountPropagationFlags::SHARED | MountPropagationFlags::REC)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let mount = parse(r"36 35 98:0 / /mnt/a\040b rw shared:7 master:1 - ext4 /dev/root rw").unwrap();
        assert_eq!((mount.point, mount.shared), (PathBuf::from("/mnt/a b"), true));
        assert!(!parse("22 27 0:21 / /proc rw,relatime - proc shared:1 rw").unwrap().shared);
    }

    #[test]
    fn a_shared_directory_is_shared_once() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("kubelet");
        if share(&root).is_err() {
            eprintln!("not root: nothing can be mounted");
            return;
        }
        let count = || below(&fs::canonicalize(dir.path()).unwrap()).unwrap().len();
        let first = count();
        share(&root).unwrap();
        assert_eq!(count(), first);
        assert!(first == 0 || is_mount_point(&root).unwrap());
        assert!(!is_mount_point(&root.join("none")).unwrap() && !is_mount_point(dir.path()).unwrap());
        unmount_below(dir.path()).unwrap();
        assert_eq!(count(), 0);
    }
}
