//! The processes that `up` started: written down, so that any later command can stop exactly them.

use std::fs::{File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

/// How long a program may take to stop before it is killed.
const GRACE: Duration = Duration::from_secs(20);
/// How often a stopping process is looked at.
const POLL: Duration = Duration::from_millis(50);

/// One running program. The start time tells it from a later process that got the same id.
#[derive(Clone, Serialize, Deserialize)]
pub struct Child {
    /// What it is called in logs and messages.
    pub name: String,
    pid: i32,
    started: u64,
    /// Its log file.
    pub log: PathBuf,
}

/// What runs, in the order of starting; mirrored in a file.
pub struct Children {
    file: PathBuf,
    list: Vec<Child>,
}

impl Children {
    /// Reads the file of an earlier `up`; processes that are gone are forgotten.
    pub fn load(file: PathBuf) -> Result<Self> {
        let list: Vec<Child> = match std::fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .with_context(|| format!("{}: delete it, after stopping what it names", file.display()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error).with_context(|| file.display().to_string()),
        };
        Ok(Self { file, list: list.into_iter().filter(Child::is_running).collect() })
    }

    /// What runs.
    pub fn list(&self) -> &[Child] {
        &self.list
    }

    /// The process id of the program with this name.
    pub fn pid(&self, name: &str) -> Option<i32> {
        self.list.iter().find(|child| child.name == name).map(|child| child.pid)
    }

    /// Starts a program in a process group of its own, so that the terminal's Ctrl-C reaches only `up`.
    pub fn start(&mut self, name: &str, command: &mut Command, log: &Path) -> Result<()> {
        let out = OpenOptions::new().create(true).append(true).open(log).with_context(|| log.display().to_string())?;
        let err = out.try_clone()?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .process_group(0)
            .spawn()
            .with_context(|| format!("{name} could not be started"))?;
        let pid = i32::try_from(child.id()).context("process id")?;
        let started = start_time(pid).with_context(|| format!("{name} ended at once; see {}", log.display()))?;
        self.list.push(Child { name: name.to_owned(), pid, started, log: log.to_path_buf() });
        self.save()
    }

    /// Writes down a process that somebody else started.
    pub fn adopt(&mut self, name: &str, pid: i32, log: &Path) -> Result<()> {
        let started = start_time(pid).with_context(|| format!("{name} ended at once; see {}", log.display()))?;
        self.list.push(Child { name: name.to_owned(), pid, started, log: log.to_path_buf() });
        self.save()
    }

    /// The first program that ended by itself.
    pub fn ended(&self) -> Option<&Child> {
        self.list.iter().find(|child| !child.is_running())
    }

    /// Stops the programs whose name begins so, the last started first: asks, waits, kills.
    pub fn stop(&mut self, prefix: &str) -> Result<()> {
        for child in self.list.iter().rev().filter(|child| child.name.starts_with(prefix)) {
            child.stop();
        }
        self.list.retain(|child| !child.name.starts_with(prefix));
        self.save()
    }

    /// Kills one program as a crash or a power cut does.
    ///
    /// # Errors
    /// No such program runs, or it does not end.
    pub fn kill(&mut self, name: &str) -> Result<()> {
        let child =
            self.list.iter().find(|child| child.name == name).with_context(|| format!("{name} does not run"))?;
        child.signal(Signal::KILL);
        if !child.gone_within(GRACE) {
            bail!("{name} does not end");
        }
        self.list.retain(|child| child.name != name);
        self.save()
    }

    fn save(&self) -> Result<()> {
        if self.list.is_empty() {
            return match std::fs::remove_file(&self.file) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
                _ => Ok(()),
            };
        }
        let fresh = self.file.with_extension("new");
        serde_json::to_writer(File::create(&fresh)?, &self.list)?;
        std::fs::rename(&fresh, &self.file).with_context(|| self.file.display().to_string())
    }
}

impl Child {
    fn is_running(&self) -> bool {
        reap(self.pid);
        start_time(self.pid) == Some(self.started)
    }

    fn stop(&self) {
        self.signal(Signal::TERM);
        if !self.gone_within(GRACE) {
            eprintln!("{} did not stop within {} s and is killed", self.name, GRACE.as_secs());
            self.signal(Signal::KILL);
            self.gone_within(GRACE);
        }
    }

    fn signal(&self, signal: Signal) {
        if self.is_running()
            && let Some(pid) = Pid::from_raw(self.pid)
        {
            // It may end between the look and the signal; then there is nothing to stop.
            let _ = kill_process(pid, signal);
        }
    }

    #[allow(clippy::disallowed_methods, reason = "a command-line tool that polls a process with a deadline")]
    fn gone_within(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if !self.is_running() {
                return true;
            }
            std::thread::sleep(POLL);
        }
        !self.is_running()
    }
}

/// Collects the exit status of a child of ours; for others' children it does nothing.
fn reap(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::NOHANG);
    }
}

/// The start time of a process in clock ticks since boot, `None` when it is gone or a zombie.
fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name stands in parentheses and may hold anything; fields are counted after it.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}
