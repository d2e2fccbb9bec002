//! How much room there is on a file system, and how much of it a folder takes.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::summary::{FsStats, Time};

/// Folders that wait to be looked into, and files with several names that are remembered: a hostile tree must not fill the
/// agent's memory. Beyond it folders are left out and files may count twice.
const MAX_REMEMBERED: usize = 50_000;

/// Size of files and folders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Bytes of disk.
    pub bytes: u64,
    /// Files and folders.
    pub inodes: u64,
}

impl std::ops::AddAssign for Taken {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.inodes += other.inodes;
    }
}

/// What a file or a folder with all below it takes, as `du` counts: by blocks, each inode once, on one file system.
pub fn taken(path: &Path) -> Taken {
    let mut total = Taken::default();
    let Ok(start) = fs::symlink_metadata(path) else { return total };
    let mut seen = HashSet::new();
    let mut waiting: Vec<PathBuf> = Vec::new();
    let mut count = |metadata: &fs::Metadata| {
        let many = metadata.nlink() > 1 && !metadata.is_dir();
        if !many || seen.len() >= MAX_REMEMBERED || seen.insert(metadata.ino()) {
            total += Taken { bytes: metadata.blocks() * 512, inodes: 1 };
        }
    };
    count(&start);
    if start.is_dir() {
        waiting.push(path.to_owned());
    }
    while let Some(folder) = waiting.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            // Does not follow links.
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.dev() != start.dev() {
                continue;
            }
            count(&metadata);
            if metadata.is_dir() && waiting.len() < MAX_REMEMBERED {
                waiting.push(entry.path());
            }
        }
    }
    total
}

/// The file system of a path, or of its nearest ancestor that exists; everything in use counts as used.
pub fn file_system(path: &Path, now: Timestamp) -> Option<FsStats> {
    let stat = path.ancestors().find_map(|path| rustix::fs::statvfs(path).ok())?;
    let bytes = |blocks: u64| Some(blocks * stat.f_frsize);
    // Some file systems have no fixed number of inodes and say 0.
    let inodes = |count: u64| (stat.f_files > 0).then_some(count);
    Some(FsStats {
        time: Some(Time(now)),
        available_bytes: bytes(stat.f_bavail),
        capacity_bytes: bytes(stat.f_blocks),
        used_bytes: bytes(stat.f_blocks.saturating_sub(stat.f_bfree)),
        inodes_free: inodes(stat.f_ffree),
        inodes: inodes(stat.f_files),
        inodes_used: inodes(stat.f_files.saturating_sub(stat.f_ffree)),
    })
}

/// The same file system with what one user of it takes.
pub fn part_of(file_system: &FsStats, taken: Taken) -> FsStats {
    FsStats { used_bytes: Some(taken.bytes), inodes_used: Some(taken.inodes), ..file_system.clone() }
}

/// Whether two paths are on one file system.
pub fn same_file_system(a: &Path, b: &Path) -> bool {
    let device = |path: &Path| path.ancestors().find_map(|path| fs::metadata(path).ok()).map(|metadata| metadata.dev());
    device(a) == device(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_inode_counts_once() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/b/file"), vec![1; 1 << 20]).unwrap();
        fs::hard_link(root.join("a/b/file"), root.join("a/again")).unwrap();
        std::os::unix::fs::symlink("/proc", root.join("link")).unwrap();
        let all = taken(root);
        assert_eq!(all.inodes, 5);
        assert!(all.bytes >= 1 << 20 && all.bytes < (1 << 20) + (64 << 10), "{}", all.bytes);
        assert_eq!(taken(&root.join("a/b/file")).inodes, 1);
        assert_eq!(taken(&root.join("none")), Taken::default());
        let fs = file_system(&root.join("not/made/yet"), Timestamp::UNIX_EPOCH).unwrap();
        assert!(fs.capacity_bytes > fs.available_bytes && fs.available_bytes > Some(0));
        assert_eq!(part_of(&fs, all).inodes_used, Some(5));
        assert!(same_file_system(root, &root.join("none")) && !same_file_system(root, Path::new("/proc")));
    }
}
