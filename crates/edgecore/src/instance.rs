//! One edgecore per database and per folder of pods: two would answer for the same node and fight over its containers.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// The claim on a path, held as long as this lives; the system gives it up with the process.
pub struct Instance {
    _file: File,
}

/// The claim was not granted.
#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    /// Another process has it.
    #[error("edgecore runs already on {} (process {pid}): stop it first, or give this one a node name, database, rootDirectory and container runtime of its own", path.display())]
    Taken {
        /// The database or the folder.
        path: PathBuf,
        /// Who has it.
        pid: String,
    },
    /// The lock file cannot be used.
    #[error("{} cannot be locked: does its folder exist, with the right owner?", .0.display())]
    Lock(PathBuf, #[source] std::io::Error),
}

impl Instance {
    /// Claims a path by a lock file beside it.
    ///
    /// # Errors
    /// Another process has it, or its folder cannot be written.
    pub fn claim(claimed: &Path) -> Result<Self, InstanceError> {
        let mut path = claimed.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        let fail = |error| InstanceError::Lock(path.clone(), error);
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(fail)?;
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(fail)?;
        if let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
            if error != rustix::io::Errno::WOULDBLOCK {
                return Err(fail(error.into()));
            }
            let mut pid = String::new();
            let _ = (&mut file).take(20).read_to_string(&mut pid);
            return Err(InstanceError::Taken { path: claimed.to_path_buf(), pid: pid.trim().to_owned() });
        }
        // Only for the message above; a full disk is no reason not to run.
        let _ = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| writeln!(file, "{}", std::process::id()));
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_has_one_edgecore() {
        let dir = tempfile::tempdir().expect("dir");
        let database = dir.path().join("sub/edgecore.db");
        let first = Instance::claim(&database).expect("free");
        let error = Instance::claim(&database).map(|_| ()).expect_err("taken");
        assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
        drop(first);
        Instance::claim(&database).expect("free again");
    }
}
