//! Running edgecore processes, found in `/proc` by the configuration that they were started with.

use std::path::{Path, PathBuf};
use std::time::Duration;

use api::edgecore::DEFAULT_PATH;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

/// How long edgecore may take to end: it commits what it holds first.
const GRACE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);

/// A process does not end.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// Not ours to signal.
    #[error("process {0} (edgecore) cannot be signalled: be root")]
    Signal(i32, #[source] std::io::Error),
    /// It ignores the signal.
    #[error("process {0} (edgecore) has not ended {limit} s after it was told to: end it by hand, then try again", limit = GRACE.as_secs())]
    Stays(i32),
}

/// Process ids of every edgecore with this configuration file.
pub fn edgecores(config: &Path) -> Vec<i32> {
    let wanted = real(config);
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words: Vec<String> =
                words.split(|b| *b == 0).map(|w| String::from_utf8_lossy(w).into_owned()).collect();
            let cwd = std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
            config_of(&words).is_some_and(|path| real(&cwd.join(path)) == wanted)
        })
        .collect()
}

/// Process ids of every program of this name.
pub fn named(name: &str) -> Vec<i32> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name))
        .collect()
}

/// Tells these processes to end and waits until they have.
///
/// # Errors
/// One of them may not be signalled, or does not end.
pub async fn stop(pids: &[i32]) -> Result<(), ProcessError> {
    for &number in pids {
        let Some(pid) = Pid::from_raw(number) else { continue };
        match kill_process(pid, Signal::TERM) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(ProcessError::Signal(number, error.into())),
        }
        let deadline = tokio::time::Instant::now() + GRACE;
        while test_kill_process(pid).is_ok() && !is_zombie(number) {
            if tokio::time::Instant::now() > deadline {
                return Err(ProcessError::Stays(number));
            }
            tokio::time::sleep(POLL).await;
        }
    }
    Ok(())
}

/// The configuration file that an edgecore's command line names; `None` for other programs.
fn config_of(words: &[String]) -> Option<PathBuf> {
    let (program, rest) = words.split_first()?;
    if Path::new(program).file_name()? != "edgecore" {
        return None;
    }
    let mut rest = rest.iter();
    while let Some(word) = rest.next() {
        let word = word.trim_start_matches('-');
        if word == "config" {
            return rest.next().map(PathBuf::from);
        }
        if let Some(path) = word.strip_prefix("config=") {
            return Some(path.into());
        }
    }
    Some(DEFAULT_PATH.into())
}

/// Ended already, but its parent has not noticed.
fn is_zombie(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
}

fn real(path: &Path) -> PathBuf {
    std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edgecore_is_known_by_its_configuration() {
        let of = |line: &str| config_of(&line.split(' ').map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(of("/usr/local/bin/edgecore"), Some(DEFAULT_PATH.into()));
        assert_eq!(of("edgecore --config /a/b.yaml --v=2"), Some("/a/b.yaml".into()));
        assert_eq!(of("edgecore --v=2 --config=/a/b.yaml"), Some("/a/b.yaml".into()));
        assert_eq!(of("vim edgecore"), None);
        assert_eq!(of(""), None);
    }

    #[tokio::test]
    async fn a_process_is_found_and_stopped() {
        let dir = tempfile::tempdir().expect("dir");
        let (program, config) = (dir.path().join("edgecore"), dir.path().join("edgecore.yaml"));
        std::fs::copy("/bin/sleep", &program).expect("a program");
        std::fs::write(&config, "").expect("configuration");
        let mut child = std::process::Command::new(&program).arg("60").spawn().expect("started");
        assert!(edgecores(&config).is_empty(), "it has another configuration");
        assert!(named("edgecore").contains(&i32::try_from(child.id()).expect("pid")));
        stop(&[i32::try_from(child.id()).expect("pid")]).await.expect("stopped");
        assert!(!child.wait().expect("ended").success());
    }
}
