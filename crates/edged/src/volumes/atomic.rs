//! Files that change all at once: readers see either the old set or the new one (the atomic writer of Kubernetes).
//!
//! The files are in `..⟨time⟩.⟨random⟩`; `..data` links to that folder, and each visible name links to `..data/⟨name⟩`.
//! An update renames a new link over `..data`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Component, Path, PathBuf};

use rand::RngExt as _;

use super::fs_group;

const DATA: &str = "..data";
const FRESH: &str = "..data_tmp";
/// Longest path in a volume.
const MAX_PATH: usize = 4096;

/// One file of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct VolumeFile {
    pub bytes: Vec<u8>,
    pub mode: u32,
    /// Owner, if not root.
    pub owner: Option<u32>,
}

pub(super) type Files = BTreeMap<String, VolumeFile>;

/// Makes `dir` show exactly these files. Nothing is touched if it does already.
pub(super) fn write(dir: &Path, files: &Files, group: Option<u32>) -> io::Result<()> {
    for path in files.keys() {
        check(path)?;
    }
    let old = fs::read_link(dir.join(DATA)).ok();
    if old.is_none() || !is_current(&dir.join(DATA), files)? {
        let fresh = new_folder(dir)?;
        for (path, file) in files {
            write_file(&dir.join(&fresh), path, file)?;
        }
        if let Some(group) = group {
            fs_group::apply(&dir.join(&fresh), group, true)?;
        }
        drop(fs::remove_file(dir.join(FRESH)));
        symlink(&fresh, dir.join(FRESH))?;
        fs::rename(dir.join(FRESH), dir.join(DATA))?;
        link_names(dir, files)?;
        if let Some(old) = old.filter(|old| *old != fresh) {
            fs::remove_dir_all(dir.join(old))?;
        }
        return Ok(());
    }
    link_names(dir, files)
}

fn check(path: &str) -> io::Result<()> {
    let parts = Path::new(path);
    let plain = parts.components().all(|part| matches!(part, Component::Normal(_)));
    let hidden = path.starts_with("..");
    if path.is_empty() || path.len() > MAX_PATH || !plain || hidden {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{path:?} is not allowed as a path in a volume"),
        ));
    }
    Ok(())
}

/// A folder of a name that sorts by time, as Kubernetes gives it.
fn new_folder(dir: &Path) -> io::Result<PathBuf> {
    let now = jiff::Timestamp::now().strftime("%Y_%m_%d_%H_%M_%S").to_string();
    let name = PathBuf::from(format!("..{now}.{}", rand::rng().random::<u32>()));
    fs::create_dir(dir.join(&name))?;
    fs::set_permissions(dir.join(&name), fs::Permissions::from_mode(0o755))?;
    Ok(name)
}

fn write_file(dir: &Path, path: &str, file: &VolumeFile) -> io::Result<()> {
    let mut parent = dir.to_owned();
    for part in Path::new(path).parent().into_iter().flat_map(Path::components) {
        parent.push(part);
        if !parent.is_dir() {
            fs::create_dir(&parent)?;
            fs::set_permissions(&parent, fs::Permissions::from_mode(0o755))?;
        }
    }
    let path = dir.join(path);
    fs::write(&path, &file.bytes)?;
    if file.owner.is_some() {
        chown(&path, file.owner, None)?;
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(file.mode))
}

/// Whether a folder holds exactly these files, with these bytes and modes.
fn is_current(data: &Path, files: &Files) -> io::Result<bool> {
    let mut found = Vec::new();
    if data.is_dir() {
        list(data, &mut PathBuf::new(), &mut found)?;
    }
    found.sort();
    if !found.iter().map(String::as_str).eq(files.keys().map(String::as_str)) {
        return Ok(false);
    }
    for (path, file) in files {
        let path = data.join(path);
        let metadata = fs::metadata(&path)?;
        // Bits for a group may have been added when it was written.
        if metadata.mode() & !0o440 & 0o7777 != file.mode & !0o440 & 0o7777 || fs::read(&path)? != file.bytes {
            return Ok(false);
        }
    }
    Ok(true)
}

fn list(root: &Path, below: &mut PathBuf, found: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(&*below))? {
        let entry = entry?;
        below.push(entry.file_name());
        if entry.file_type()?.is_dir() {
            list(root, below, found)?;
        } else {
            found.push(below.display().to_string());
        }
        below.pop();
    }
    Ok(())
}

/// Makes the visible names and removes those that lead nowhere any more.
fn link_names(dir: &Path, files: &Files) -> io::Result<()> {
    let first = |path: &str| path.split('/').next().unwrap_or_default().to_owned();
    let names: std::collections::BTreeSet<String> = files.keys().map(|path| first(path)).collect();
    for name in &names {
        match symlink(Path::new(DATA).join(name), dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("..") && !names.contains(&name) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(entries: &[(&str, &str, u32)]) -> Files {
        let file = |bytes: &str, mode| VolumeFile { bytes: bytes.into(), mode, owner: None };
        entries.iter().map(|(path, bytes, mode)| ((*path).to_owned(), file(bytes, *mode))).collect()
    }

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    #[test]
    fn replaces_everything_at_once_and_keeps_what_is_equal() {
        let dir = folder();
        write(dir.path(), &files(&[("a", "1", 0o644), ("d/b", "2", 0o400)]), None).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("a")).unwrap(), "1");
        assert_eq!(fs::read_to_string(dir.path().join("d/b")).unwrap(), "2");
        assert_eq!(fs::metadata(dir.path().join("d/b")).unwrap().mode() & 0o777, 0o400);
        let before = fs::read_link(dir.path().join(DATA)).unwrap();
        write(dir.path(), &files(&[("a", "1", 0o644), ("d/b", "2", 0o400)]), None).unwrap();
        assert_eq!(fs::read_link(dir.path().join(DATA)).unwrap(), before);
        write(dir.path(), &files(&[("a", "3", 0o644)]), None).unwrap();
        assert_ne!(fs::read_link(dir.path().join(DATA)).unwrap(), before);
        assert_eq!(fs::read_to_string(dir.path().join("a")).unwrap(), "3");
        assert!(!dir.path().join("d").exists() && !dir.path().join(before).exists());
        fs::remove_file(dir.path().join("a")).unwrap();
        write(dir.path(), &files(&[("a", "3", 0o644)]), None).unwrap();
        assert!(dir.path().join("a").exists(), "a missing link is repaired");
    }

    #[test]
    fn an_empty_volume_is_fine() {
        let dir = folder();
        write(dir.path(), &Files::new(), None).unwrap();
        assert!(dir.path().join(DATA).is_dir());
    }

    #[test]
    fn bad_paths_are_refused() {
        for path in ["", "../x", "/x", "a/../b", "..x"] {
            assert!(write(folder().path(), &files(&[(path, "", 0o644)]), None).is_err(), "{path}");
        }
    }
}
