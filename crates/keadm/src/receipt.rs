//! What `join` made on this machine, kept for `reset`, which removes that and nothing else.

use std::path::{Path, PathBuf};

use link::files::{FileError, read_bounded, write_private};
use serde::{Deserialize, Serialize};

/// No receipt is longer.
const MAX_BYTES: u64 = 64 << 10;

/// The record of a join.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Receipt {
    /// The node's name.
    pub node: String,
    /// Files and folders that were not there before, as the node sees them. Everything in such a folder is the node's.
    pub made: Vec<PathBuf>,
    /// The systemd unit, if one was installed.
    #[serde(default)]
    pub unit: Option<String>,
}

/// The receipt cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReceiptError {
    /// The file cannot be read.
    #[error("what `keadm join` made here is not known")]
    File(#[source] FileError),
    /// It holds something else.
    #[error("{} is damaged: what `keadm join` made here is not known; remove the node's files by hand", .0.display())]
    Content(PathBuf, #[source] serde_json::Error),
}

impl Receipt {
    /// A receipt for these paths: of each the topmost part that does not exist yet.
    pub fn of(node: &str, managed: &[PathBuf], on_disk: impl Fn(&Path) -> PathBuf) -> Self {
        let mut made: Vec<PathBuf> = Vec::new();
        for path in managed {
            let missing = path.ancestors().take_while(|part| std::fs::symlink_metadata(on_disk(part)).is_err()).last();
            made.extend(missing.map(Path::to_path_buf));
        }
        made.sort();
        // Sorted, a folder stands before what is in it.
        made.dedup_by(|inner, outer| inner.starts_with(outer));
        Self { node: node.to_owned(), made, unit: None }
    }

    /// Reads a receipt; `None` when there is none.
    ///
    /// # Errors
    /// It cannot be read or understood.
    pub fn load(path: &Path) -> Result<Option<Self>, ReceiptError> {
        if !path.exists() {
            return Ok(None);
        }
        let text = read_bounded(path, MAX_BYTES).map_err(ReceiptError::File)?;
        serde_json::from_slice(&text).map(Some).map_err(|error| ReceiptError::Content(path.to_path_buf(), error))
    }

    /// Adds what an earlier join made.
    pub fn with(mut self, earlier: Option<Self>) -> Self {
        let Some(earlier) = earlier else { return self };
        self.made.extend(earlier.made);
        self.made.sort();
        self.made.dedup_by(|inner, outer| inner.starts_with(outer));
        self.unit = self.unit.or(earlier.unit);
        self
    }

    /// Writes the receipt.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), FileError> {
        let text = serde_json::to_vec_pretty(self).expect("texts only: cannot fail");
        write_private(path, &text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_not_there_is_recorded() {
        let dir = tempfile::tempdir().expect("dir");
        let at = |path: &str| dir.path().join(path);
        std::fs::create_dir_all(at("lib/there")).expect("dir");
        let managed = [at("etc/kubeedge/config/x.yaml"), at("etc/kubeedge/ca"), at("lib/there/a.db"), at("lib/there")];
        let receipt = Receipt::of("edge-1", &managed, Path::to_path_buf);
        assert_eq!(receipt.made, [at("etc"), at("lib/there/a.db")]);

        let file = at("joined.json");
        assert_eq!(Receipt::load(&file).expect("none"), None);
        receipt.save(&file).expect("saved");
        assert_eq!(Receipt::load(&file).expect("read"), Some(receipt.clone()));
        std::fs::create_dir_all(at("etc/kubeedge")).expect("dir");
        let again = Receipt::of("edge-1", &managed, Path::to_path_buf);
        assert_eq!(again.with(Some(receipt.clone())).made, receipt.made);
        std::fs::write(&file, "{").expect("written");
        assert!(matches!(Receipt::load(&file), Err(ReceiptError::Content(..))));
    }
}
