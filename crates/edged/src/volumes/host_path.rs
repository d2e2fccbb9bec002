//! Type checks of hostPath volumes.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use super::VolumeError;

/// Checks that a path is what the pod asks for; the two `…OrCreate` types make it.
pub(super) fn check(path: &str, kind: &str) -> Result<(), VolumeError> {
    let path = Path::new(path);
    if path.components().any(|part| part == std::path::Component::ParentDir) {
        return Err(VolumeError::HostPath(format!("{} must not contain '..'", path.display())));
    }
    match kind {
        "DirectoryOrCreate" if !path.exists() => {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(VolumeError::file(path))?;
        }
        "FileOrCreate" if !path.exists() => {
            let mut options = fs::OpenOptions::new();
            options.write(true).create(true).truncate(false).mode(0o644);
            options.open(path).map(drop).map_err(VolumeError::file(path))?;
        }
        _ => {}
    }
    let found = fs::metadata(path).map(|metadata| metadata.file_type());
    let is = |right: fn(&fs::FileType) -> bool| found.as_ref().is_ok_and(right);
    let (right, what) = match kind {
        // Without a type nothing is checked; the runtime makes a missing directory.
        "" => (true, ""),
        "Directory" | "DirectoryOrCreate" => (is(fs::FileType::is_dir), "a directory"),
        "File" | "FileOrCreate" => (is(fs::FileType::is_file), "a file"),
        "Socket" => (is(FileTypeExt::is_socket), "a socket file"),
        "CharDevice" => (is(FileTypeExt::is_char_device), "a character device"),
        "BlockDevice" => (is(FileTypeExt::is_block_device), "a block device"),
        other => return Err(VolumeError::HostPath(format!("{other:?} is not a valid volume type"))),
    };
    if right { Ok(()) } else { Err(VolumeError::HostPath(format!("{} is not {what}", path.display()))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        check(&path("d/e"), "DirectoryOrCreate").unwrap();
        check(&path("d/e/f"), "FileOrCreate").unwrap();
        check(&path("d/e"), "Directory").unwrap();
        check(&path("nothing"), "").unwrap();
        check("/dev/null", "CharDevice").unwrap();
        for (name, kind) in
            [("d/e", "File"), ("d/e/f", "Directory"), ("nothing", "Directory"), ("d", "Socket"), ("d", "X")]
        {
            assert!(check(&path(name), kind).is_err(), "{name} {kind}");
        }
        assert!(check(&path("no/parent"), "FileOrCreate").is_err());
    }
}
