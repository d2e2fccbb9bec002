//! The machine's processes, as `/proc` shows them.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Ids of all processes.
pub fn all() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The words of a process' command line; none for a zombie.
pub fn command_line(pid: i32) -> Vec<Vec<u8>> {
    let text = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    text.split(|byte| *byte == 0).filter(|word| !word.is_empty()).map(<[u8]>::to_vec).collect()
}

/// The name of the program that a process runs, without its folder.
pub fn program(pid: i32) -> Option<String> {
    let word = command_line(pid).into_iter().next()?;
    Some(Path::new(OsStr::from_bytes(&word)).file_name()?.to_str()?.to_owned())
}

/// The paths in a process' arguments, seen from its own folder.
pub fn arguments(pid: i32) -> Vec<PathBuf> {
    let here = fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
    let path = |word: &Vec<u8>| {
        let value = match word.iter().position(|byte| *byte == b'=') {
            Some(at) if word.starts_with(b"-") => &word[at + 1..],
            _ => word,
        };
        let path = here.join(OsStr::from_bytes(value));
        path.canonicalize().unwrap_or(path)
    };
    command_line(pid).iter().skip(1).map(path).collect()
}

/// The files that a process has open.
pub fn open_files(pid: i32) -> Vec<PathBuf> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries.filter_map(|entry| fs::read_link(entry.path()).ok()).collect()
}
