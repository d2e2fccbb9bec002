//! Files that hold secrets: readable by their owner only, replaced as a whole or not at all.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Reading failed.
    #[error("{} cannot be read", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// Writing failed; the old content, if any, is still there.
    #[error("{} cannot be written", .0.display())]
    Write(PathBuf, #[source] io::Error),
    /// The file is longer than it may be.
    #[error("{path} has more than {limit} bytes", path = .0.display(), limit = .1)]
    TooLong(PathBuf, u64),
}

/// Writes a file with mode 0600, durable before it takes the old one's place. Missing folders are made with mode 0700.
///
/// # Errors
/// Any step fails; the old file is untouched then.
pub fn write_private(path: &Path, content: &[u8]) -> Result<(), FileError> {
    let fail = |error| FileError::Write(path.to_path_buf(), error);
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(fail)?;
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(format!(".{}.new", std::process::id()));
    let fresh = PathBuf::from(fresh);
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)?;
        File::open(dir)?.sync_all()
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&fresh);
    }
    written.map_err(fail)
}

/// Reads a file of at most `limit` bytes.
///
/// # Errors
/// The file is missing, unreadable or longer.
pub fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, FileError> {
    let fail = |error| FileError::Read(path.to_path_buf(), error);
    let file = File::open(path).map_err(fail)?;
    let mut content = Vec::new();
    file.take(limit + 1).read_to_end(&mut content).map_err(fail)?;
    if content.len() as u64 > limit {
        return Err(FileError::TooLong(path.to_path_buf(), limit));
    }
    Ok(content)
}

/// DER as PEM.
pub fn to_pem(label: &str, der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = more;
    }
    pem.push_str(&format!("-----END {label}-----\n"));
    pem
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_private_file_is_its_owners_alone_and_replaced_whole() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("certs/server.key");
        write_private(&path, b"one").expect("written");
        write_private(&path, b"two").expect("replaced");
        assert_eq!(read_bounded(&path, 3).expect("read"), b"two");
        assert!(matches!(read_bounded(&path, 2), Err(FileError::TooLong(..))));
        let mode = std::fs::metadata(&path).expect("metadata").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(path.parent().expect("dir")).expect("dir").count(), 1, "nothing is left over");
    }
}
