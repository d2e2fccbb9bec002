//! How far an output has come: a file that is replaced as a whole.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use link::files::{FileError, read_bounded, write_private};
use tracing::warn;

use super::Position;

/// Positions of a hundred thousand containers are a tenth of it.
const MAX_FILE: u64 = 128 << 20;

/// Positions by container.
#[derive(Debug)]
pub(super) struct Positions {
    file: PathBuf,
    pub(super) known: HashMap<String, Position>,
    pub(super) changed: bool,
}

impl Positions {
    /// Reads them. One that cannot be read is put aside: logs are collected from their beginning then.
    pub(super) fn open(directory: &Path, name: &str) -> Self {
        let file = directory.join(format!("{name}.json"));
        let mut known = HashMap::new();
        if file.exists() {
            let read = read_bounded(&file, MAX_FILE).map_err(|error| error.to_string());
            match read.and_then(|text| serde_json::from_slice(&text).map_err(|error| error.to_string())) {
                Ok(found) => known = found,
                Err(error) => {
                    warn!(file = %file.display(), error, "the positions of collected logs cannot be read: logs are collected anew, lines may come twice");
                    // Where this fails, writing fails too and says so.
                    let _ = std::fs::rename(&file, file.with_extension("json.unreadable"));
                }
            }
        }
        Self { file, known, changed: false }
    }

    /// What is to be written, and to where.
    pub(super) fn snapshot(&self) -> (PathBuf, Vec<u8>) {
        (self.file.clone(), serde_json::to_vec(&self.known).unwrap_or_default())
    }
}

/// Writes a snapshot, durably.
pub(super) fn write((file, text): (PathBuf, Vec<u8>)) -> Result<(), FileError> {
    write_private(&file, &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_come_back_and_nonsense_is_put_aside() {
        let dir = tempfile::tempdir().expect("folder");
        let mut positions = Positions::open(dir.path(), "files");
        let position = Position { time: "2026-01-02T03:04:05.000000006Z".parse().expect("a time"), count: 2 };
        positions.known.insert("u/c".into(), position);
        write(positions.snapshot()).expect("written");
        assert_eq!(Positions::open(dir.path(), "files").known["u/c"], position);
        std::fs::write(dir.path().join("files.json"), "{").expect("written");
        assert!(Positions::open(dir.path(), "files").known.is_empty());
        assert!(dir.path().join("files.json.unreadable").exists());
    }
}
