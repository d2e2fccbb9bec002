//! How much the node, its pods and its volumes use.
//!
//! Nothing is sampled by itself: who wants to know asks [`Stats`], the one owner, and those who ask at the same moment get
//! the same sample. Eviction asks for the node alone ([`Stats::node`]), which costs a few file reads; the node's HTTP API asks for a
//! [`Summary`]. Read `summary` for what there is, `pods` for where it comes from.

pub mod cgroup;
pub mod disk;
pub mod files;
pub mod node;
mod pods;
mod rates;
pub mod summary;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::Mutex;

use crate::cri::{CriError, proto};
use crate::labels;
use crate::runtime::{Runtime, RuntimeError};
use crate::settings::Settings;
use cgroup::Cgroups;
use disk::PodDisk;
use pods::{Observed, Sources};
use rates::Rates;
use summary::{FsStats, NodeStats, NodeUsage, RuntimeStats, Summary};

/// Where cgroups are mounted.
const CGROUPS: &str = "/sys/fs/cgroup";
/// A summary of this age is given to the next one who asks, too.
const FRESH: Duration = Duration::from_secs(1);
/// Logs and volumes are looked through again after this time (`volumeStatsAggPeriod`).
const DISK_PERIOD: Duration = Duration::from_secs(60);

/// How much is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Processors, memory and swap: what autoscaling and `kubectl top` need.
    CpuAndMemory,
    /// File systems, volumes, network and processes too.
    Everything,
}

/// Knows what is used. Cheap to clone.
#[derive(Clone)]
pub struct Stats {
    shared: Arc<Shared>,
}

struct Shared {
    settings: Arc<Settings>,
    runtime: Arc<Runtime>,
    cgroups: Cgroups,
    samples: Mutex<Samples>,
    /// Logs and volumes by UID of the pod.
    disks: Mutex<HashMap<String, (Instant, PodDisk)>>,
    image_fs: Mutex<Option<ImageFs>>,
}

#[derive(Default)]
struct Samples {
    rates: Rates,
    latest: Option<(Instant, Detail, Arc<Summary>)>,
}

/// Where the runtime keeps images and writable layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageFs {
    /// Folder of images.
    pub images: PathBuf,
    /// Folder of writable layers; the same where they are not kept apart.
    pub containers: PathBuf,
}

impl Stats {
    /// Stats of this node.
    pub fn new(settings: Arc<Settings>, runtime: Arc<Runtime>) -> Self {
        let shared = Shared {
            settings,
            runtime,
            cgroups: Cgroups::new(CGROUPS),
            samples: Mutex::default(),
            disks: Mutex::default(),
            image_fs: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The node's own usage, with file systems and without the rate of its processors. Asks the runtime at most once.
    pub async fn node(&self) -> NodeUsage {
        let now = Timestamp::now();
        let mut usage = node::usage(&self.shared.cgroups, &self.shared.settings.root_dir, now);
        if let Ok(Some(folders)) = self.image_fs().await {
            let of = |folder: &PathBuf| files::file_system(folder, now);
            usage.runtime = Some(RuntimeStats { image_fs: of(&folders.images), container_fs: of(&folders.containers) });
        }
        usage
    }

    /// Memory of all pods together; absent where they have no cgroup of their own.
    pub fn all_pods_memory(&self) -> Option<summary::MemoryStats> {
        let group = self.shared.runtime.cgroup_of_all_pods();
        self.shared.cgroups.memory(&group, Timestamp::now())
    }

    /// Where images are; asked of the runtime until it has answered once. `None` when it does not tell.
    ///
    /// # Errors
    /// The runtime did not answer.
    pub async fn image_fs(&self) -> Result<Option<ImageFs>, RuntimeError> {
        let mut known = self.shared.image_fs.lock().await;
        if known.is_none() {
            *known = folders(&self.shared.runtime.cri().image_fs_info().await?);
        }
        Ok(known.clone())
    }

    /// Usage of the node and of every pod with running containers.
    ///
    /// # Errors
    /// The runtime did not answer.
    pub async fn summary(&self, detail: Detail) -> Result<Arc<Summary>, RuntimeError> {
        let mut samples = self.shared.samples.lock().await;
        if let Some((at, of, summary)) = &samples.latest
            && at.elapsed() < FRESH
            && (*of == detail || *of == Detail::Everything)
        {
            return Ok(Arc::clone(summary));
        }
        let mut summary = self.sample(detail).await?;
        samples.rates.fill(&mut summary);
        let summary = Arc::new(summary);
        samples.latest = Some((Instant::now(), detail, Arc::clone(&summary)));
        Ok(summary)
    }

    /// Logs and volumes of one pod, looked through now.
    pub async fn pod_disk(&self, uid: &str) -> PodDisk {
        let (paths, uid) = (self.shared.runtime.paths().clone(), uid.to_owned());
        let measured = tokio::task::spawn_blocking(move || disk::measure(&paths, &uid, Timestamp::now()));
        measured.await.unwrap_or_default()
    }

    /// Bytes of the writable layers of a pod's running containers by their name.
    ///
    /// # Errors
    /// The runtime did not answer.
    pub async fn writable_layers(&self, uid: &str) -> Result<BTreeMap<String, u64>, RuntimeError> {
        let selector = BTreeMap::from([(labels::POD_UID.to_owned(), uid.to_owned())]);
        let stats = self.shared.runtime.cri().container_stats(selector).await?;
        let layer = |stats: proto::ContainerStats| {
            let name = stats.attributes?.labels.remove(labels::CONTAINER_NAME)?;
            Some((name, stats.writable_layer?.used_bytes?.value))
        };
        Ok(stats.into_iter().filter_map(layer).collect())
    }

    async fn sample(&self, detail: Detail) -> Result<Summary, RuntimeError> {
        let everything = detail == Detail::Everything;
        let observed = self.observe(everything).await?;
        let disks = if everything { Some(self.disks(&pods::running(&observed)).await) } else { None };
        let runtime = if everything { self.runtime_fs().await? } else { RuntimeStats::default() };
        let now = Timestamp::now();
        let mut usage = node::usage(&self.shared.cgroups, &self.shared.settings.root_dir, now);
        let tree = self.shared.runtime.cgroups().await;
        let sources = Sources {
            cgroups: &self.shared.cgroups,
            tree: &tree,
            disks: disks.as_ref(),
            container_fs: runtime.container_fs.as_ref(),
            node_fs: usage.fs.as_ref().filter(|_| everything),
            now,
        };
        let pods = pods::pods(&observed, &sources);
        if everything {
            usage.runtime = Some(runtime);
        } else {
            (usage.fs, usage.network, usage.rlimit) = (None, None, None);
        }
        let node_name = self.shared.settings.node_name.clone();
        let system_containers = node::system_containers(&self.shared.cgroups, &tree.all_pods(), now);
        Ok(Summary { node: NodeStats { node_name, system_containers, usage }, pods })
    }

    async fn observe(&self, everything: bool) -> Result<Observed, CriError> {
        let cri = self.shared.runtime.cri();
        let sandbox_stats = async { if everything { cri.sandbox_stats().await } else { Ok(Vec::new()) } };
        let (sandboxes, containers, container_stats, sandbox_stats) = tokio::try_join!(
            cri.list_sandboxes(BTreeMap::new()),
            cri.list_containers(BTreeMap::new()),
            cri.container_stats(BTreeMap::new()),
            sandbox_stats,
        )?;
        Ok(Observed { sandboxes, containers, container_stats, sandbox_stats })
    }

    /// Logs and volumes of these pods, not older than [`DISK_PERIOD`]; those of others are forgotten.
    async fn disks(&self, uids: &[String]) -> HashMap<String, PodDisk> {
        let mut known = self.shared.disks.lock().await;
        known.retain(|uid, (at, _)| at.elapsed() < DISK_PERIOD && uids.contains(uid));
        for uid in uids {
            if !known.contains_key(uid) {
                let disk = self.pod_disk(uid).await;
                known.insert(uid.clone(), (Instant::now(), disk));
            }
        }
        known.iter().map(|(uid, (_, disk))| (uid.clone(), disk.clone())).collect()
    }

    /// File systems of the runtime, with what the runtime says that it takes of them.
    async fn runtime_fs(&self) -> Result<RuntimeStats, CriError> {
        let info = self.shared.runtime.cri().image_fs_info().await?;
        let now = Timestamp::now();
        let of = |usage: &proto::FilesystemUsage| {
            let mut stats = files::file_system(usage.fs_id.as_ref()?.mountpoint.as_ref(), now)?;
            stats.used_bytes = usage.used_bytes.map(|bytes| bytes.value);
            stats.inodes_used = usage.inodes_used.map(|inodes| inodes.value);
            Some(stats)
        };
        let image_fs: Option<FsStats> = info.image_filesystems.first().and_then(of);
        let container_fs = info.container_filesystems.first().and_then(of).or_else(|| image_fs.clone());
        Ok(RuntimeStats { image_fs, container_fs })
    }
}

fn folders(info: &proto::ImageFsInfoResponse) -> Option<ImageFs> {
    let folder = |list: &[proto::FilesystemUsage]| {
        let mountpoint = &list.first()?.fs_id.as_ref()?.mountpoint;
        (!mountpoint.is_empty()).then(|| PathBuf::from(mountpoint))
    };
    let images = folder(&info.image_filesystems)?;
    Some(ImageFs { containers: folder(&info.container_filesystems).unwrap_or_else(|| images.clone()), images })
}
