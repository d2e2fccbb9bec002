//! What eviction looks at, and what it can free without a pod having to go.

use podlife::eviction::{Observation, Observations, Reclaims, Shortage, Signal};

use super::{CLEAN_UP_WAIT, Evictor};
use crate::stats::files;
use crate::stats::summary::{FsStats, MemoryStats};

impl Evictor {
    /// One look at everything.
    pub(super) async fn observe(&self) -> Observations {
        let node = self.tools.stats.node().await;
        let mut seen = Observations::new();
        let mut add = |signal, observation: Option<Observation>| {
            if let Some(observation) = observation {
                seen.insert(signal, observation);
            }
        };
        add(Signal::MemoryAvailable, node.memory.as_ref().and_then(memory));
        let pods = self.tools.stats.all_pods_memory();
        add(Signal::AllocatableMemoryAvailable, pods.as_ref().and_then(memory));
        let runtime = node.runtime.unwrap_or_default();
        for (fs, available, inodes) in [
            (&node.fs, Signal::NodeFsAvailable, Signal::NodeFsInodesFree),
            (&runtime.image_fs, Signal::ImageFsAvailable, Signal::ImageFsInodesFree),
            (&runtime.container_fs, Signal::ContainerFsAvailable, Signal::ContainerFsInodesFree),
        ] {
            let Some(fs) = fs else { continue };
            add(available, pair(fs.available_bytes, fs.capacity_bytes));
            add(inodes, inode_pair(fs));
        }
        add(
            Signal::PidAvailable,
            node.rlimit.and_then(|limit| {
                let (max, running) = (u64::try_from(limit.max_pid?).ok()?, u64::try_from(limit.running?).ok()?);
                Some(Observation { available: max.saturating_sub(running), capacity: max })
            }),
        );
        seen
    }

    /// Whether images and writable layers are on a file system of their own.
    pub(super) async fn has_image_fs(&self) -> bool {
        let folders = self.tools.stats.image_fs().await.ok().flatten();
        folders.is_some_and(|folders| !files::same_file_system(&folders.images, &self.tools.settings.root_dir))
    }

    /// Frees what no pod misses: dead containers, and images that nobody uses. True when that was enough.
    pub(super) async fn reclaim(&self, shortage: &Shortage) -> bool {
        let reclaims = podlife::eviction::reclaims(shortage.signal, self.has_image_fs().await);
        if reclaims == Reclaims::default() {
            return false;
        }
        if reclaims.containers {
            self.tools.desk.make_room(CLEAN_UP_WAIT).await;
        }
        // Images last: those of the containers that went are free by now.
        if reclaims.images {
            match self.tools.images.remove_unused().await {
                Ok(freed) => tracing::info!(freed_bytes = freed, "removed images that nobody uses"),
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "images could not be removed");
                }
            }
        }
        let observations = self.observe().await;
        self.watch.is_resolved(shortage.signal, &observations)
    }
}

fn memory(memory: &MemoryStats) -> Option<Observation> {
    let available = memory.available_bytes?;
    Some(Observation { available, capacity: available.saturating_add(memory.working_set_bytes?) })
}

fn pair(available: Option<u64>, capacity: Option<u64>) -> Option<Observation> {
    Some(Observation { available: available?, capacity: capacity? })
}

fn inode_pair(fs: &FsStats) -> Option<Observation> {
    pair(fs.inodes_free, fs.inodes)
}
