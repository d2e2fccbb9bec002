//! One `up` at a time works in a folder: it holds a lock there, under its process id.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::terminal::step;

/// How long a process may take between locking and writing down its id.
const SIGNED: Duration = Duration::from_secs(1);

/// The lock; it ends with the process at the latest.
pub struct Lock {
    _file: File,
}

/// Whom a lock belongs to.
struct Holder {
    file: File,
    pid: Option<Pid>,
}

impl Lock {
    /// Takes the lock.
    ///
    /// # Errors
    /// Another `up` has it.
    pub fn take(path: &Path) -> Result<Self> {
        match Self::attempt(path)? {
            Ok(lock) => Ok(lock),
            Err(Holder { pid, .. }) => {
                let process = pid.map(|pid| format!(" (process {})", pid.as_raw_nonzero())).unwrap_or_default();
                bail!(
                    "another `cargo xtask up`{process} works in this folder: end it with Ctrl-C in its terminal or with `cargo xtask down`, or choose another folder with --dir"
                )
            }
        }
    }

    /// Takes the lock; an `up` that has it is asked to stop what it started, and waited for. Whether one had it.
    ///
    /// # Errors
    /// It may not be asked by this user.
    pub fn take_over(path: &Path) -> Result<(Self, bool)> {
        let began = Instant::now();
        let (file, pid) = loop {
            match Self::attempt(path)? {
                Ok(lock) => return Ok((lock, false)),
                Err(Holder { file, pid: Some(pid) }) => break (file, pid),
                // Who has just locked it has not written it down yet.
                Err(_) if began.elapsed() < SIGNED => {
                    #[allow(clippy::disallowed_methods, reason = "polls a lock of another process, with a deadline")]
                    std::thread::sleep(SIGNED / 20);
                }
                Err(_) => bail!("{} is locked, and does not say by which process", path.display()),
            }
        };
        step(format_args!("asking `up` (process {}) to stop what it started", pid.as_raw_nonzero()));
        match kill_process(pid, Signal::TERM) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => {
                return Err(error).with_context(|| format!("asking process {} to stop", pid.as_raw_nonzero()));
            }
        }
        file.lock().with_context(|| path.display().to_string())?;
        Ok((Self::sign(file)?, true))
    }

    fn attempt(path: &Path) -> Result<Result<Self, Holder>> {
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = open.with_context(|| path.display().to_string())?;
        match file.try_lock() {
            Ok(()) => Self::sign(file).map(Ok),
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                file.read_to_string(&mut text).with_context(|| path.display().to_string())?;
                let pid = text.trim().parse().ok().filter(|pid| is_xtask(*pid)).and_then(Pid::from_raw);
                Ok(Err(Holder { file, pid }))
            }
            Err(TryLockError::Error(error)) => Err(error).with_context(|| path.display().to_string()),
        }
    }

    fn sign(mut file: File) -> Result<Self> {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())?;
        Ok(Self { _file: file })
    }
}

/// A file that was just locked may still name the process that had it before; by now that may be any other.
fn is_xtask(pid: i32) -> bool {
    let own = std::fs::read_to_string("/proc/self/comm").unwrap_or_default();
    std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_up_hears_who_was_first() {
        let dir = tempfile::tempdir().expect("folder");
        let path = dir.path().join("up.lock");
        let first = Lock::take(&path).expect("free");
        let refusal = Lock::take(&path).err().expect("taken").to_string();
        assert!(refusal.contains(&format!("(process {})", std::process::id())), "{refusal}");
        drop(first);
        let (_second, was_taken) = Lock::take_over(&path).expect("free again");
        assert!(!was_taken);
    }
}
