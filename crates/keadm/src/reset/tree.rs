//! Removing a folder that may have mounts in it, without ever removing what is mounted there.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::mount::{UnmountFlags, unmount};

/// Something stays.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// The mounts are not known.
    #[error("the list of mounts cannot be read: nothing is removed")]
    Mounts(#[source] std::io::Error),
    /// A mount stays.
    #[error("{} cannot be unmounted, so the folder around it is kept: be root, or unmount it by hand and try again", .0.display())]
    Unmount(PathBuf, #[source] std::io::Error),
    /// A file stays.
    #[error("{} cannot be removed", .0.display())]
    Remove(PathBuf, #[source] std::io::Error),
}

/// Removes a file or a folder with everything in it; links are not followed. What is mounted below is unmounted first.
///
/// # Errors
/// A mount or a file stays. It is no error when nothing is there.
pub(crate) fn remove(path: &Path) -> Result<(), TreeError> {
    let Ok(kind) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !kind.is_dir() {
        return std::fs::remove_file(path).map_err(|error| TreeError::Remove(path.to_path_buf(), error));
    }
    let real = std::fs::canonicalize(path).map_err(|error| TreeError::Remove(path.to_path_buf(), error))?;
    let table = std::fs::read("/proc/self/mountinfo").map_err(TreeError::Mounts)?;
    // The latest mount lies on top.
    for point in mount_points(&table).into_iter().rev().filter(|point| point.starts_with(&real)) {
        unmount(&point, UnmountFlags::DETACH).map_err(|error| TreeError::Unmount(point.clone(), error.into()))?;
    }
    std::fs::remove_dir_all(path).map_err(|error| TreeError::Remove(path.to_path_buf(), error))
}

/// The fifth field of every line; blanks in it are written as octal numbers.
fn mount_points(table: &[u8]) -> Vec<PathBuf> {
    let lines = table.split(|b| *b == b'\n');
    lines
        .filter_map(|line| line.split(|b| *b == b' ').nth(4))
        .map(|field| OsString::from_vec(unescape(field)).into())
        .collect()
}

fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, more)) = rest.split_first() {
        let octal = more.get(..3).filter(|digits| first == b'\\' && digits.iter().all(|d| (b'0'..=b'7').contains(d)));
        let number = octal.map(|digits| digits.iter().fold(0_u32, |sum, digit| sum * 8 + u32::from(digit - b'0')));
        match number.and_then(|number| u8::try_from(number).ok()) {
            Some(byte) => {
                plain.push(byte);
                rest = &more[3..];
            }
            None => {
                plain.push(first);
                rest = more;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_with_their_blanks() {
        let table = b"36 35 98:0 /mnt1 /mnt\\0402/a rw - ext3 /dev/root rw\n1 0 0:1 / / rw - tmpfs x rw\nshort\n";
        assert_eq!(mount_points(table), [PathBuf::from("/mnt 2/a"), PathBuf::from("/")]);
        assert_eq!(unescape(b"a\\9\\777\\"), b"a\\9\\777\\");
    }

    #[test]
    fn what_is_mounted_inside_is_unmounted_and_not_emptied() {
        use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().expect("dir");
        let (kept, gone) = (dir.path().join("kept"), dir.path().join("gone"));
        let point = gone.join("pods/a volume");
        std::fs::create_dir_all(&point).expect("dir");
        std::fs::create_dir(&kept).expect("dir");
        std::fs::write(kept.join("file"), "x").expect("file");
        if mount_bind(&kept, &point).is_err() {
            // Root in a container that may not mount.
            return;
        }
        let _ = mount_change(&point, MountPropagationFlags::PRIVATE);
        remove(&gone).expect("removed");
        assert!(!gone.exists() && kept.join("file").exists());
    }

    #[test]
    fn links_are_removed_and_not_followed() {
        let dir = tempfile::tempdir().expect("dir");
        let (kept, gone) = (dir.path().join("kept"), dir.path().join("gone"));
        std::fs::create_dir_all(gone.join("inner")).expect("dir");
        std::fs::create_dir(&kept).expect("dir");
        std::fs::write(kept.join("file"), "x").expect("file");
        std::os::unix::fs::symlink(&kept, gone.join("link")).expect("link");
        remove(&gone).expect("removed");
        remove(&gone).expect("a second time is no error");
        assert!(!gone.exists() && kept.join("file").exists());
    }
}
