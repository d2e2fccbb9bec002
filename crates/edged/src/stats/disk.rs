//! What a pod takes of the node's disk: its logs and its volumes. The writable layers are known to the runtime.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use jiff::Timestamp;

use super::files::{self, Taken};
use super::summary::{FsStats, VolumeStats};
use crate::paths::Paths;

/// Plugins whose content counts for a pod's ephemeral storage unless it is in memory.
const EPHEMERAL: [&str; 3] = ["kubernetes.io~empty-dir", "kubernetes.io~configmap", "kubernetes.io~git-repo"];

/// Logs and volumes of one pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodDisk {
    /// Logs by container.
    pub logs: BTreeMap<String, Taken>,
    /// Volumes that hold something on this node.
    pub volumes: Vec<VolumeStats>,
    /// Logs and volumes on the file system of the pods.
    pub ephemeral: Taken,
}

/// Looks at all files of a pod: slow where there are many.
pub fn measure(paths: &Paths, uid: &str, now: Timestamp) -> PodDisk {
    let mut disk = PodDisk::default();
    for folder in paths.pod_logs_of(uid) {
        for (container, path) in children(&folder) {
            let taken = files::taken(&path);
            *disk.logs.entry(container).or_default() += taken;
            disk.ephemeral += taken;
        }
    }
    let pod = paths.pod(uid);
    for (plugin, folder) in children(&pod.join("volumes")) {
        for (name, path) in children(&folder) {
            let taken = files::taken(&path);
            if EPHEMERAL.contains(&plugin.as_str()) && files::same_file_system(&pod, &path) {
                disk.ephemeral += taken;
            }
            disk.volumes.push(volume(name, plugin.clone(), &path, taken, now));
        }
    }
    disk
}

fn volume(name: String, plugin: String, path: &Path, taken: Taken, now: Timestamp) -> VolumeStats {
    let file_system = files::file_system(path, now).unwrap_or_default();
    let fs = FsStats { used_bytes: Some(taken.bytes), inodes_used: Some(taken.inodes), ..file_system };
    VolumeStats { name, plugin, fs, pvc_ref: None }
}

fn children(folder: &Path) -> impl Iterator<Item = (String, std::path::PathBuf)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;

    #[test]
    fn logs_and_volumes() {
        let directory = tempfile::tempdir().unwrap();
        let mut settings = Settings::new("n1");
        settings.root_dir = directory.path().join("kubelet");
        settings.pod_logs_dir = directory.path().join("logs/pods");
        let logs = settings.pod_logs_dir.join("default_web_u1/main");
        let volumes = settings.root_dir.join("pods/u1/volumes");
        let cache = volumes.join("kubernetes.io~empty-dir/cache");
        let host = volumes.join("kubernetes.io~local-volume/data");
        for (folder, bytes) in [(&logs, 4096), (&cache, 8192), (&host, 8192)] {
            fs::create_dir_all(folder).unwrap();
            fs::write(folder.join("file"), vec![1; bytes]).unwrap();
        }
        let disk = measure(&Paths::new(&settings), "u1", Timestamp::UNIX_EPOCH);
        assert_eq!(disk.logs["main"].inodes, 2);
        let mut names: Vec<_> =
            disk.volumes.iter().map(|volume| (volume.name.as_str(), volume.fs.inodes_used)).collect();
        names.sort_unstable();
        assert_eq!(names, [("cache", Some(2)), ("data", Some(2))]);
        assert_eq!(disk.ephemeral.inodes, 4);
        assert!(disk.ephemeral.bytes >= 12288);
        assert!(disk.volumes[0].fs.capacity_bytes > disk.volumes[0].fs.used_bytes);
        assert_eq!(measure(&Paths::new(&settings), "u2", Timestamp::UNIX_EPOCH), PodDisk::default());
    }
}
