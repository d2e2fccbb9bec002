//! Removing a directory tree that a pod has filled: never across a mount, with as many open files for a deep tree as for a flat one.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, Mode, OFlags, RenameFlags, ResolveFlags, open, openat2, renameat_with, unlinkat};
use rustix::io::Errno;

/// Names that are looked at together; a directory may hold a great many.
const BATCH: usize = 512;
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Removes a directory and everything in it; one that is not there is fine.
///
/// # Errors
/// Something is mounted in it (`EBUSY` or `EXDEV`), or cannot be removed.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    let root = match open(path, DIRECTORY, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    let mut moved = 0_u64;
    loop {
        let names = names(&root)?;
        if names.is_empty() {
            break;
        }
        for name in names {
            remove_entry(&root, &name, &mut moved)?;
        }
    }
    std::fs::remove_dir(path)
}

fn remove_entry(root: &OwnedFd, name: &CString, moved: &mut u64) -> io::Result<()> {
    if remove_one(root, name)? {
        return Ok(());
    }
    let beneath = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::BENEATH;
    let dir = openat2(root, name.as_c_str(), DIRECTORY, Mode::empty(), beneath)?;
    loop {
        let children = names(&dir)?;
        if children.is_empty() {
            break;
        }
        for child in children {
            // What is deeper comes up to the root and is emptied there in its turn.
            if !remove_one(&dir, &child)? {
                lift(&dir, &child, root, moved)?;
            }
        }
    }
    drop(dir);
    Ok(unlinkat(root, name.as_c_str(), AtFlags::REMOVEDIR)?)
}

/// Removes a file or an empty directory; false for a directory that holds something.
fn remove_one(parent: &OwnedFd, name: &CString) -> io::Result<bool> {
    match unlinkat(parent, name.as_c_str(), AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(true),
        Err(Errno::ISDIR) => {}
        Err(error) => return Err(error.into()),
    }
    match unlinkat(parent, name.as_c_str(), AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn lift(parent: &OwnedFd, name: &CString, root: &OwnedFd, moved: &mut u64) -> io::Result<()> {
    loop {
        let to = format!(".removed-{moved}");
        *moved += 1;
        match renameat_with(parent, name.as_c_str(), root, to.as_str(), RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => {}
            other => return Ok(other?),
        }
    }
}

fn names(dir: &impl AsFd) -> io::Result<Vec<CString>> {
    let mut found = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            found.push(entry.file_name().to_owned());
        }
        if found.len() == BATCH {
            break;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::mount::{UnmountFlags, mount_bind, unmount};

    use super::*;

    #[test]
    fn deep_wide_and_linked_trees_go() {
        let dir = tempfile::tempdir().unwrap();
        let kept = dir.path().join("kept");
        fs::write(&kept, "x").unwrap();
        let tree = dir.path().join("tree");
        let mut deep = tree.clone();
        for _ in 0..600 {
            deep.push("d");
        }
        fs::create_dir_all(&deep).unwrap();
        for number in 0..1200 {
            fs::write(tree.join(number.to_string()), "").unwrap();
        }
        fs::write(tree.join(".removed-0"), "").unwrap();
        std::os::unix::fs::symlink(&kept, tree.join("link")).unwrap();
        std::os::unix::fs::symlink(dir.path(), tree.join("d/link")).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists() && kept.exists());
        remove_tree(&tree).unwrap();
    }

    #[test]
    fn a_mount_and_what_is_in_it_stay() {
        let dir = tempfile::tempdir().unwrap();
        let (data, tree) = (dir.path().join("data"), dir.path().join("tree"));
        fs::create_dir_all(data.join("full")).unwrap();
        fs::write(data.join("full/file"), "precious").unwrap();
        fs::create_dir_all(tree.join("a/b")).unwrap();
        // The same file system, so that only the mount itself tells the two apart.
        if mount_bind(&data, tree.join("a/b")).is_err() {
            eprintln!("not root: nothing can be mounted");
            return;
        }
        let result = remove_tree(&tree);
        unmount(tree.join("a/b"), UnmountFlags::DETACH).unwrap();
        assert!(result.is_err());
        assert_eq!(fs::read_to_string(data.join("full/file")).unwrap(), "precious");
        remove_tree(&tree).unwrap();
    }
}
