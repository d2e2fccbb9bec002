//! Commands of life cycle hooks.

use std::time::Duration;

use super::{Runtime, RuntimeError};

/// Most of what a hook's command wrote that is kept.
const MAX_OUTPUT: usize = 10 << 10;

/// A hook's command that failed, in the words of the kubelet.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// It was carried out.
    #[error("command '{command}' exited with {code}: {stderr}")]
    Exit {
        /// The command, words joined.
        command: String,
        /// Its exit code.
        code: i32,
        /// The start of what it wrote to its error stream.
        stderr: String,
        /// The start of both streams.
        output: String,
    },
    /// It could not be carried out, or not in time.
    #[error("{0}")]
    Runtime(RuntimeError),
}

impl HookError {
    /// The start of what the command wrote.
    pub fn output(&self) -> &str {
        match self {
            HookError::Exit { output, .. } => output,
            HookError::Runtime(_) => "",
        }
    }
}

impl Runtime {
    /// Runs the command of a hook in a container.
    ///
    /// # Errors
    /// It failed, or took longer than the limit.
    pub async fn run_hook(&self, id: &str, command: Vec<String>, limit: Duration) -> Result<(), HookError> {
        let words = command.join(" ");
        // The runtime counts whole seconds, and 0 is no limit: who asked ends it in time.
        let answer = self.cri.exec(id, command, Duration::from_secs(limit.as_secs().saturating_add(1))).await;
        let answer = answer.map_err(|error| HookError::Runtime(error.into()))?;
        if answer.exit_code == 0 {
            return Ok(());
        }
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes.get(..MAX_OUTPUT).unwrap_or(bytes)).into_owned();
        let stderr = text(&answer.stderr);
        let output = text(&[answer.stdout, answer.stderr].concat());
        Err(HookError::Exit { command: words, code: answer.exit_code, stderr, output })
    }
}
