//! The processes that `up` started: written down, so that any later command can stop exactly them.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::processes;

/// How long a program may take to stop before it is killed.
const GRACE: Duration = Duration::from_secs(20);
/// How often a stopping process is looked at.
const POLL: Duration = Duration::from_millis(50);
/// How often running programs are looked at.
const WATCH: Duration = Duration::from_millis(250);
/// The programs that a deployment runs, also when a user starts them.
const PROGRAMS: [&str; 3] = ["cloudcore", "edgecore", "containerd"];
/// How much of a log's end is looked at for its last line, and how much of that is shown.
const TAIL: u64 = 4096;
const MAX_WORDS: usize = 500;

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

    /// Finds programs of this deployment that a user started by hand, after one was killed for example.
    pub fn adopt_strays(&mut self, dir: &Path) -> Result<()> {
        for pid in processes::all() {
            let Some(program) = processes::program(pid).filter(|program| PROGRAMS.contains(&program.as_str())) else {
                continue;
            };
            if self.list.iter().any(|child| child.pid == pid) {
                continue;
            }
            let part_of = |path: PathBuf| Some(path.strip_prefix(dir).ok()?.iter().next()?.to_str()?.to_owned());
            let paths = processes::arguments(pid).into_iter().chain(processes::open_files(pid));
            let mut parts = paths.filter_map(part_of).filter(|part| part == "cloud" || part.starts_with("edge-"));
            let Some(part) = parts.next() else { continue };
            let Some(started) = start_time(pid) else { continue };
            let name = if part == "cloud" { program } else { format!("{part}-{program}") };
            self.list.push(Child { log: dir.join("logs").join(format!("{name}.log")), name, pid, started });
        }
        self.save()
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
        // One that has ended already is told by `until_ended`.
        let (_, started) = state(pid).with_context(|| format!("{name} cannot be found in /proc"))?;
        self.list.push(Child { name: name.to_owned(), pid, started, log: log.to_path_buf() });
        self.save()
    }

    /// Writes down a process that somebody else started.
    pub fn adopt(&mut self, name: &str, pid: i32, log: &Path) -> Result<()> {
        let started = start_time(pid).with_context(|| format!("{name} ended at once; see {}", log.display()))?;
        self.list.push(Child { name: name.to_owned(), pid, started, log: log.to_path_buf() });
        self.save()
    }

    /// The first program that has ended.
    pub fn ended(&self) -> Option<&Child> {
        self.list.iter().find(|child| !child.is_running())
    }

    /// Waits until a program ends; the error says which, and which signal killed it or what its last words were.
    pub async fn until_ended(&self) -> anyhow::Error {
        loop {
            for Child { name, log, pid, started } in &self.list {
                let mut signal = killed_by(*pid);
                if start_time(*pid) == Some(*started) {
                    continue;
                }
                // It may have ended between the two looks.
                signal = signal.or_else(|| killed_by(*pid));
                let file = log.display();
                return match signal {
                    Some(signal) => anyhow::anyhow!("{name} was killed by signal {signal} (its log is {file})"),
                    None => anyhow::anyhow!("{name} ended by itself: {} (its log is {file})", last_line(log)),
                };
            }
            tokio::time::sleep(WATCH).await;
        }
    }

    /// Stops the programs whose name begins so, the last started first: asks, waits, kills.
    ///
    /// # Errors
    /// One may not be stopped by this user, or does not end.
    pub fn stop(&mut self, prefix: &str) -> Result<()> {
        for child in self.list.iter().rev().filter(|child| child.name.starts_with(prefix)) {
            child.stop()?;
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
        child.signal(Signal::KILL)?;
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
        let file = File::create(&fresh).with_context(|| fresh.display().to_string())?;
        serde_json::to_writer(file, &self.list)?;
        std::fs::rename(&fresh, &self.file).with_context(|| self.file.display().to_string())
    }
}

impl Child {
    fn is_running(&self) -> bool {
        reap(self.pid);
        start_time(self.pid) == Some(self.started)
    }

    fn stop(&self) -> Result<()> {
        self.signal(Signal::TERM)?;
        if !self.gone_within(GRACE) {
            let text = format!("{} did not stop within {} s and is killed", self.name, GRACE.as_secs());
            // Nothing to tell it to is no reason to stop here.
            drop(writeln!(std::io::stderr(), "{text}"));
            self.signal(Signal::KILL)?;
            if !self.gone_within(GRACE) {
                bail!("{} (process {}) does not end", self.name, self.pid);
            }
        }
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let Some(pid) = Pid::from_raw(self.pid).filter(|_| self.is_running()) else { return Ok(()) };
        match kill_process(pid, signal) {
            // It may end between the look and the signal; then there is nothing to stop.
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("stopping {} (process {})", self.name, self.pid)),
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
    killed_by(pid);
}

/// The same; the signal that has killed it, if one has.
fn killed_by(pid: i32) -> Option<i32> {
    let (_, status) =
        rustix::process::waitpid(Some(Pid::from_raw(pid)?), rustix::process::WaitOptions::NOHANG).ok()??;
    status.terminating_signal()
}

/// The last line of a log, cut to a length that fits a message.
fn last_line(log: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let from = file.metadata()?.len().saturating_sub(TAIL);
        file.seek(SeekFrom::Start(from))?;
        let mut tail = Vec::new();
        file.take(TAIL).read_to_end(&mut tail)?;
        Ok(tail)
    };
    let tail = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&tail);
    let line = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
    line.trim().chars().take(MAX_WORDS).collect()
}

/// The start time of a process in clock ticks since boot, `None` when it is gone or a zombie.
fn start_time(pid: i32) -> Option<u64> {
    state(pid).filter(|(zombie, _)| !zombie).map(|(_, started)| started)
}

/// Whether a process is a zombie, and its start time.
fn state(pid: i32) -> Option<(bool, u64)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The program's name stands in parentheses and may hold anything; fields are counted after it.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let zombie = fields.next()? == "Z";
    Some((zombie, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_ends_is_told_with_its_last_words() {
        let dir = tempfile::tempdir().expect("folder");
        let mut children = Children::load(dir.path().join("run.json")).expect("none yet");
        let mut command = Command::new("sh");
        command.args(["-c", "echo starting; echo 'cannot listen on 127.0.0.1:6443' >&2; echo; exit 1"]);
        let log = dir.path().join("cloudcore.log");
        children.start("cloudcore", &mut command, &log).expect("started");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let told = runtime.block_on(children.until_ended()).to_string();
        assert!(told.starts_with("cloudcore ended by itself: cannot listen on 127.0.0.1:6443 (its log is /"), "{told}");
    }

    #[test]
    fn a_program_that_was_killed_is_not_said_to_end_by_itself() {
        let dir = tempfile::tempdir().expect("folder");
        let mut children = Children::load(dir.path().join("run.json")).expect("none yet");
        let mut command = Command::new("sh");
        command.args(["-c", "echo all is well; kill -9 $$"]);
        children.start("cloudcore", &mut command, &dir.path().join("cloudcore.log")).expect("started");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let told = runtime.block_on(children.until_ended()).to_string();
        assert!(told.starts_with("cloudcore was killed by signal 9 (its log is /"), "{told}");
    }

    #[test]
    fn programs_that_a_user_started_are_found_and_stopped() {
        let dir = tempfile::tempdir().expect("folder");
        let config = dir.path().join("edge-1/config");
        std::fs::create_dir_all(&config).expect("made");
        std::fs::write(config.join("edgecore.yaml"), "").expect("written");
        let mut children = Children::load(dir.path().join("run.json")).expect("none yet");
        // A shell under the program's name, with a path seen from where it was started; and one that only looks.
        let by_hand = |name: &str| {
            let mut command = Command::new("sh");
            let child = command.arg0(name).args(["-c", "read line", "--config=config/edgecore.yaml"]);
            child.current_dir(dir.path().join("edge-1")).stdin(Stdio::piped()).spawn().expect("sh")
        };
        let (mut edgecore, mut editor) = (by_hand("/opt/edgecore"), by_hand("vim"));
        children.adopt_strays(dir.path()).expect("looked");
        children.adopt_strays(dir.path()).expect("looked again");
        let names: Vec<&str> = children.list().iter().map(|child| child.name.as_str()).collect();
        assert_eq!(names, ["edge-1-edgecore"]);
        assert_eq!(children.pid("edge-1-edgecore"), i32::try_from(edgecore.id()).ok());
        let stopped = children.stop("");
        let untouched = editor.try_wait().expect("ours").is_none();
        if stopped.is_err() {
            edgecore.kill().and_then(|()| edgecore.wait()).expect("ended");
        }
        editor.kill().and_then(|()| editor.wait()).expect("ended");
        stopped.expect("stopped");
        assert!(untouched && children.list().is_empty());
    }
}
