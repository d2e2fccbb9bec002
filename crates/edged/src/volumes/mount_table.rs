//! What is mounted where.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::{UnmountFlags, unmount};

/// Mount points at or below a path, the deepest and latest first.
pub(super) fn below(path: &Path) -> io::Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let mut points: Vec<PathBuf> =
        table.lines().filter_map(mount_point).filter(|point| point.starts_with(path)).collect();
    points.reverse();
    Ok(points)
}

/// Unmounts everything at or below a path. What is still in use goes when its last user goes.
pub(super) fn unmount_below(path: &Path) -> io::Result<()> {
    for point in below(path)? {
        unmount(&point, UnmountFlags::DETACH).map_err(|error| {
            io::Error::new(io::Error::from(error).kind(), format!("unmounting {}", point.display()))
        })?;
    }
    match below(path)?.first() {
        Some(left) => Err(io::Error::other(format!("{} is still mounted", left.display()))),
        None => Ok(()),
    }
}

/// The fifth field, in which space, tab, newline and backslash are written in octal.
fn mount_point(line: &str) -> Option<PathBuf> {
    let field = line.split(' ').nth(4)?;
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
    Some(PathBuf::from(<std::ffi::OsString as std::os::unix::ffi::OsStringExt>::from_vec(out)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes() {
        let line = r"36 35 98:0 / /mnt/a\040b rw - ext4 /dev/root rw";
        assert_eq!(mount_point(line), Some(PathBuf::from("/mnt/a b")));
    }
}
