//! Container logs on disk: where they are, the links that collectors follow, what a container said last.
//!
//! The runtime writes the files; edged makes the directories, links and removals (layout and format of Kubernetes).

pub mod read;
pub mod rotate;
mod tail;
pub mod watch;

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use podlife::observed::PodIdentity;

use crate::cri::proto;
use crate::labels;
use crate::paths::Paths;

/// Most of a termination message that is read.
const MAX_MESSAGE: u64 = 4096;
const NON_BLOCKING: i32 = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();

/// Makes a log directory that everybody may read.
pub fn make_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(path)
}

/// Path of a container's log below its pod's log directory.
pub fn container_log(container: &str, restart_count: u32) -> String {
    format!("{container}/{restart_count}.log")
}

/// Links a container's log for collectors. A failure only costs the link.
pub fn link(paths: &Paths, pod: &PodIdentity, container: &str, restart_count: u32, id: &str) {
    let target = paths.pod_logs(pod).join(container_log(container, restart_count));
    let link = paths.container_link(pod, container, id);
    let made = fs::create_dir_all(paths.container_links()).and_then(|()| std::os::unix::fs::symlink(&target, &link));
    if let Err(error) = made
        && error.kind() != io::ErrorKind::AlreadyExists
    {
        tracing::warn!(link = %link.display(), %error, "log not linked");
    }
}

/// The highest restart count of the logs in a container's directory, rotated ones included (`3.log.20240501-100000.gz`).
pub fn last_restart(dir: &Path) -> Option<u32> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter_map(|name| name.split_once(".log")?.0.parse().ok()).max()
}

/// Removes the log of a container, its rotated parts and its link.
pub fn remove_container_log(paths: &Paths, status: &proto::ContainerStatus, pod: &PodIdentity, container: &str) {
    let log = Path::new(&status.log_path);
    if let (Some(dir), Some(name)) = (log.parent(), log.file_name().and_then(|name| name.to_str())) {
        let rotated = format!("{name}.");
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let is_part = entry.file_name().to_str().is_some_and(|other| other == name || other.starts_with(&rotated));
            if is_part {
                drop(fs::remove_file(entry.path()));
            }
        }
    }
    drop(fs::remove_file(paths.container_link(pod, container, &status.id)));
}

/// Removes everything that a pod has logged, and the links that lead nowhere then.
pub fn remove_pod_logs(paths: &Paths, uid: &str) -> io::Result<()> {
    for dir in paths.pod_logs_of(uid) {
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        for entry in fs::read_dir(paths.container_links()).into_iter().flatten().flatten() {
            if fs::read_link(entry.path()).is_ok_and(|target| target.starts_with(&dir)) {
                drop(fs::remove_file(entry.path()));
            }
        }
    }
    Ok(())
}

/// Removes links of containers whose logs are gone.
pub fn remove_dangling_links(paths: &Paths) {
    for entry in fs::read_dir(paths.container_links()).into_iter().flatten().flatten() {
        let link = entry.path();
        if link.is_symlink() && !link.exists() {
            drop(fs::remove_file(link));
        }
    }
}

/// What an exited container left as its last words: its termination message file, or the end of its log where the pod asks
/// for that and the container failed.
pub fn termination_message(status: &proto::ContainerStatus) -> String {
    let Some(path) = status.annotations.get(labels::TERMINATION_MESSAGE_PATH) else { return String::new() };
    let mount = status.mounts.iter().find(|mount| &mount.container_path == path);
    let written = mount.and_then(|mount| read_start(Path::new(&mount.host_path)).ok()).unwrap_or_default();
    let policy = status.annotations.get(labels::TERMINATION_MESSAGE_POLICY).map(String::as_str);
    if written.is_empty() && policy == Some("FallbackToLogsOnError") && status.exit_code != 0 {
        return tail::last_words(Path::new(&status.log_path)).unwrap_or_default();
    }
    written
}

fn read_start(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    // A pod may have mounted anything there; a pipe, for example, would never end.
    let file = fs::OpenOptions::new().read(true).custom_flags(NON_BLOCKING).open(path)?;
    if file.metadata()?.is_file() {
        file.take(MAX_MESSAGE).read_to_end(&mut bytes)?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
