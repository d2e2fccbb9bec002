//! The administrator's own programs before and after a command. They are run as they are, without a shell.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A program of the administrator did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// It cannot be started.
    #[error("{} cannot be run: it must be an executable file (a script needs a first line like #!/bin/sh)", .0.display())]
    Start(PathBuf, #[source] std::io::Error),
    /// It failed.
    #[error("{program} ended with {status}", program = .0.display(), status = .1)]
    Failed(PathBuf, std::process::ExitStatus),
}

/// Runs it and waits for its end; its output goes to the terminal.
///
/// # Errors
/// It cannot be started, or fails.
pub fn run(program: &Path) -> Result<(), ScriptError> {
    // A bare name means a file of this folder, not one of $PATH.
    let path = std::path::absolute(program).unwrap_or_else(|_| program.to_path_buf());
    let status = Command::new(&path).status().map_err(|error| ScriptError::Start(program.to_path_buf(), error))?;
    if status.success() { Ok(()) } else { Err(ScriptError::Failed(program.to_path_buf(), status)) }
}
