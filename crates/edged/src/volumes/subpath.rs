//! Sub-paths of volumes: resolved without leaving the volume, then bound to a place of their own, so that a container that
//! swaps a link meanwhile gains nothing.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, fchmod, fstat, mkdirat, open, openat2};
use rustix::mount::{UnmountFlags, mount_bind, unmount};

const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_MAGICLINKS);
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Binds `sub` of a volume to `target` and returns `target`. A missing directory is made with the mode of the volume's root.
pub fn bind(volume: &Path, sub: &Path, target: &Path) -> io::Result<PathBuf> {
    let root = open(volume, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let source = match resolve(&root, sub) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make_dirs(&root, sub)?;
            resolve(&root, sub)?
        }
        other => other?,
    };
    let stat = fstat(&source)?;
    if let Ok(bound) = fs::metadata(target) {
        if (bound.dev(), bound.ino()) == (stat.st_dev, stat.st_ino) {
            return Ok(target.to_owned());
        }
        // Another file has taken the place of the one that was bound.
        let _ = unmount(target, UnmountFlags::DETACH);
    }
    if let Some(parent) = target.parent() {
        fs::create_dir_all(parent)?;
    }
    if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() {
        fs::create_dir_all(target)?;
    } else if !target.exists() {
        fs::write(target, b"")?;
    }
    let through = format!("/proc/self/fd/{}", source.as_raw_fd());
    mount_bind(through.as_str(), target)?;
    Ok(target.to_owned())
}

/// Opens a path below a folder; links are followed only as long as they stay below it.
fn resolve(root: &impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    Ok(openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), BENEATH)?)
}

fn make_dirs(root: &OwnedFd, path: &Path) -> io::Result<()> {
    let mode = Mode::from_raw_mode(fstat(root)?.st_mode & 0o7777);
    let mut made = PathBuf::new();
    for part in path.components() {
        let parent = if made.as_os_str().is_empty() { None } else { Some(resolve(root, &made)?) };
        let result = match &parent {
            Some(parent) => mkdirat(parent, part.as_os_str(), mode),
            None => mkdirat(root, part.as_os_str(), mode),
        };
        made.push(part);
        match result {
            Ok(()) => {
                // The process' umask has taken bits away.
                let dir = openat2(root, &made, DIRECTORY, Mode::empty(), BENEATH)?;
                fchmod(&dir, mode)?;
            }
            Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_out_of_the_volume_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volume");
        fs::create_dir_all(volume.join("in")).unwrap();
        fs::write(dir.path().join("secret"), "x").unwrap();
        std::os::unix::fs::symlink("../secret", volume.join("out")).unwrap();
        std::os::unix::fs::symlink("in", volume.join("link")).unwrap();
        let root = open(&volume, OFlags::PATH, Mode::empty()).unwrap();
        assert!(resolve(&root, Path::new("out")).is_err());
        assert!(resolve(&root, Path::new("../secret")).is_err());
        assert!(resolve(&root, Path::new("link")).is_ok());
        make_dirs(&root, Path::new("in/a/b")).unwrap();
        assert!(volume.join("in/a/b").is_dir());
        assert!(make_dirs(&root, Path::new("out/a")).is_err());
    }
}
