//! Rotation of container logs: a file that has grown too large is renamed, older ones are compressed, the oldest removed.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use jiff::Timestamp;

/// A log that has grown too large.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LargeLog {
    /// The file that the runtime writes to.
    pub path: PathBuf,
    /// UID of the pod.
    pub uid: String,
    /// Container.
    pub container: String,
    /// Restart count of the instance that writes it.
    pub restart_count: String,
}

/// Logs of at least so many bytes. Names of directories tell whose they are.
pub fn large_logs(pod_logs: &Path, max_size: u64) -> Vec<LargeLog> {
    let mut found = Vec::new();
    for (pod, pod_path) in entries(pod_logs) {
        let Some((_, uid)) = pod.rsplit_once('_') else { continue };
        for (container, path) in entries(&pod_path) {
            for (file, path) in entries(&path) {
                let count = file.strip_suffix(".log").filter(|count| count.bytes().all(|b| b.is_ascii_digit()));
                let is_large = || fs::metadata(&path).is_ok_and(|metadata| metadata.len() >= max_size);
                if let Some(count) = count.filter(|_| is_large()) {
                    let (uid, container, restart_count) = (uid.to_owned(), container.clone(), count.to_owned());
                    found.push(LargeLog { path, uid, container, restart_count });
                }
            }
        }
    }
    found
}

/// Makes room for one more rotated file and renames the log. Returns its new name, for [`undo`].
pub fn rotate(log: &Path, max_files: usize, now: Timestamp) -> io::Result<PathBuf> {
    let mut rotated = Vec::new();
    for path in rotated_files(log)? {
        if path.extension().is_some_and(|extension| extension == "tmp") {
            // A compression that was cut short; its source is still there.
            fs::remove_file(path)?;
        } else if path.extension().is_some_and(|extension| extension == "gz") {
            rotated.push(path);
        } else {
            rotated.push(compress(&path)?);
        }
    }
    // The log itself and the one that it becomes count too.
    let keep = max_files.saturating_sub(2);
    for old in &rotated[..rotated.len().saturating_sub(keep)] {
        fs::remove_file(old)?;
    }
    let target = with_suffix(log, &now.strftime("%Y%m%d-%H%M%S").to_string());
    fs::rename(log, &target)?;
    Ok(target)
}

/// Takes a rotation back, for when the runtime did not open a new file.
pub fn undo(log: &Path, rotated: &Path) -> io::Result<()> {
    fs::rename(rotated, log)
}

/// The oldest first: names sort by time.
fn rotated_files(log: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(dir), Some(name)) = (log.parent(), log.file_name().and_then(|name| name.to_str())) else {
        return Ok(Vec::new());
    };
    let prefix = format!("{name}.");
    let mut found: Vec<PathBuf> =
        entries(dir).into_iter().filter(|(name, _)| name.starts_with(&prefix)).map(|(_, path)| path).collect();
    found.sort();
    Ok(found)
}

fn compress(path: &Path) -> io::Result<PathBuf> {
    let (target, unfinished) = (with_suffix(path, "gz"), with_suffix(path, "tmp"));
    let mut encoder = GzEncoder::new(File::create(&unfinished)?, Compression::default());
    io::copy(&mut File::open(path)?, &mut encoder)?;
    encoder.finish()?.sync_all()?;
    fs::rename(&unfinished, &target)?;
    fs::remove_file(path)?;
    Ok(target)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    PathBuf::from(name)
}

fn entries(path: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_so_many_files_and_compresses_all_but_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let container = dir.path().join("default_web_u-1/c");
        fs::create_dir_all(&container).unwrap();
        let log = container.join("0.log");
        for second in 0..6 {
            fs::write(&log, "x".repeat(100)).unwrap();
            let large = large_logs(dir.path(), 100);
            assert_eq!(large.len(), 1);
            assert_eq!((&*large[0].uid, &*large[0].container, &*large[0].restart_count), ("u-1", "c", "0"));
            let now = Timestamp::from_second(1_795_402_342 + second).unwrap();
            rotate(&log, 4, now).unwrap();
        }
        fs::write(container.join("0.log.20261123-000000.tmp"), "cut short").unwrap();
        fs::write(&log, "new").unwrap();
        assert!(large_logs(dir.path(), 100).is_empty());
        let mut names: Vec<String> = entries(&container).into_iter().map(|(name, _)| name).collect();
        names.retain(|name| !name.ends_with("tmp"));
        names.sort();
        let expected = ["0.log", "0.log.20261123-025225.gz", "0.log.20261123-025226.gz", "0.log.20261123-025227"];
        assert_eq!(names, expected);
        let rotated = rotate(&log, 4, Timestamp::from_second(1_795_402_400).unwrap()).unwrap();
        undo(&log, &rotated).unwrap();
        assert_eq!(fs::read_to_string(&log).unwrap(), "new");
        assert!(entries(&container).iter().all(|(name, _)| !name.ends_with("tmp")));
    }
}
