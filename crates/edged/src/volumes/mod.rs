//! Volumes: emptyDir, hostPath, configMap, secret, projected, downwardAPI, nfs, and claims on local, hostPath and nfs volumes.
//!
//! [`Volumes::set_up`] is repeated at every sync of a pod, so that changed ConfigMaps and Secrets reach mounted volumes;
//! [`tear_down`] undoes everything. Read `payload` for what is in a volume, `atomic` for how it gets there, `claim` for what is
//! behind a PersistentVolumeClaim, `state` for what is remembered of a pod.

mod atomic;
mod claim;
mod empty_dir;
mod fs_group;
mod host_path;
mod local;
mod mount_table;
mod nfs;
mod payload;
mod remove;
mod state;
pub mod subpath;
mod tmpfs;
mod token;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod, Volume};
use podlife::spec;

use crate::container::fields::FieldSource;
use crate::meta::{MetaClient, MetaError};
use crate::paths::Paths;
use crate::settings::Settings;
use claim::{Claimed, Source};
use payload::Payload;
use state::State;

pub use mount_table::share;

/// Room for the files of one Secret-like volume; memory is used only as they need it.
const SECRET_TMPFS: &str = "size=67108864,mode=0755";

/// Volumes of one pod by name, as containers can mount them.
pub type MountedVolumes = BTreeMap<String, MountedVolume>;

/// Where a volume is on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountedVolume {
    /// Source of mounts.
    pub path: PathBuf,
    /// It must not be written by containers.
    pub read_only: bool,
    /// Extra group of the processes that use it.
    pub group: Option<i64>,
}

/// Why a volume is not there.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// A ConfigMap, Secret or key that does not exist (yet).
    #[error("{0}")]
    Missing(String),
    /// The kind of volume is not known here.
    #[error(
        "{kind} volumes are not supported on this edge node; use emptyDir, hostPath, configMap, secret, projected, downwardAPI, nfs, or a claim on a local, hostPath or nfs PersistentVolume"
    )]
    Unsupported {
        /// Name of the source field.
        kind: &'static str,
    },
    /// The host path is not of the type that the pod asks for.
    #[error("hostPath type check failed: {0}")]
    HostPath(String),
    /// A claim that does not lead to a volume (yet).
    #[error("{0}")]
    Claim(String),
    /// The volume is on other nodes.
    #[error("no matching NodeSelectorTerms")]
    NodeAffinity {
        /// Name of the PersistentVolume.
        volume: String,
    },
    /// What a PersistentVolume means is not there on the node.
    #[error("{text}")]
    NewMounter {
        /// Name of the PersistentVolume.
        volume: String,
        /// What is wrong.
        text: String,
    },
    /// A path or field in the volume's definition makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// An object could not be read.
    #[error("reading {what}: {source}")]
    Meta {
        /// The object.
        what: String,
        /// Cause.
        source: MetaError,
    },
    /// A file operation.
    #[error("{}: {source}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
}

impl VolumeError {
    fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| VolumeError::File { path, source }
    }

    /// The text of the event `FailedMount`; `None` for what is told of all volumes of the pod together.
    fn event(&self, volume: &str) -> Option<String> {
        Some(match self {
            VolumeError::Claim(_) => return None,
            VolumeError::NodeAffinity { volume } => {
                format!("MountVolume.NodeAffinity check failed for volume {volume:?} : {self}")
            }
            VolumeError::NewMounter { volume, text } => {
                format!("MountVolume.NewMounter initialization failed for volume {volume:?} : {text}")
            }
            other => format!("MountVolume.SetUp failed for volume {volume:?} : {other}"),
        })
    }
}

/// Volumes of a pod that are not there.
#[derive(Debug)]
pub struct NotMounted {
    /// Texts of the events `FailedMount` that are due.
    pub events: Vec<String>,
    /// All of it in one line.
    pub message: String,
}

/// Sets up and removes the volumes of pods.
pub struct Volumes {
    meta: MetaClient,
    paths: Paths,
    settings: Arc<Settings>,
    state: State,
}

impl Volumes {
    /// Volumes below these paths.
    pub fn new(meta: MetaClient, paths: Paths, settings: Arc<Settings>) -> Self {
        Self { meta, paths, settings, state: State::default() }
    }

    /// Sets up, or brings up to date, every volume that a container of the pod mounts. All are tried, also after a failure.
    ///
    /// # Errors
    /// Which volumes are not there, and why.
    pub async fn set_up(&self, fields: &FieldSource<'_>) -> Result<(), NotMounted> {
        let uid = fields.pod.metadata.uid.as_deref().unwrap_or_default();
        let mut failed = BTreeMap::new();
        for volume in referenced(fields.pod) {
            match self.set_up_volume(volume, fields).await {
                Ok(mounted) => self.state.mounted(uid, &volume.name, mounted),
                Err(error) => {
                    failed.insert(volume.name.as_str(), error);
                }
            }
        }
        if failed.is_empty() { Ok(()) } else { Err(self.state.failed(uid, &failed)) }
    }

    /// How long to wait before a pod's volumes are tried again: each failure in a row of a volume doubles its pause.
    pub fn retry_after(&self, uid: &str) -> Duration {
        self.state.retry_after(uid)
    }

    async fn set_up_volume(&self, volume: &Volume, fields: &FieldSource<'_>) -> Result<MountedVolume, VolumeError> {
        let pod = fields.pod;
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        if let Some(done) = self.state.lasting(uid, &volume.name) {
            return Ok(done);
        }
        if let Some(source) = &volume.persistent_volume_claim {
            let read_only = source.read_only.unwrap_or(false);
            let name = source.claim_name.as_str();
            let claimed = claim::resolve(&self.meta, &self.settings, pod, &volume.name, name, read_only).await?;
            let mounted = self.set_up_claimed(claimed, pod, uid).await?;
            self.state.lasts(uid, &volume.name, &mounted);
            return Ok(mounted);
        }
        let mounted = self.location(pod, volume).ok_or(VolumeError::Unsupported { kind: kind(volume) })?;
        if let Some(source) = volume.host_path.clone() {
            blocking(move || host_path::check(&source.path, source.type_.as_deref().unwrap_or_default())).await?;
        } else if let Some(source) = &volume.empty_dir {
            let marker = self.paths.ready_marker(uid, "kubernetes.io~empty-dir", &volume.name);
            empty_dir::set_up(&mounted.path, &marker, source, pod, fields.node.allocatable_memory)?;
        } else if let Some(source) = &volume.nfs {
            let read_only = source.read_only.unwrap_or(false);
            nfs::mount(&source.server, &source.path, &mounted.path, read_only, &[]).await?;
        } else {
            let payload = Payload::read(&self.meta, volume, fields, &mounted.path).await?;
            self.write_payload(volume, &mounted.path, &payload, pod)?;
            if !payload.immutable {
                return Ok(mounted);
            }
        }
        self.state.lasts(uid, &volume.name, &mounted);
        Ok(mounted)
    }

    fn write_payload(&self, volume: &Volume, path: &Path, payload: &Payload, pod: &Pod) -> Result<(), VolumeError> {
        fs::create_dir_all(path).map_err(VolumeError::file(path))?;
        if volume.config_map.is_none() {
            tmpfs::mount_at(path, "tmpfs", SECRET_TMPFS)?;
        }
        let group = fs_group::wanted(pod);
        atomic::write(path, &payload.files, group).map_err(VolumeError::file(path))?;
        let mode = if group.is_some() { 0o2777 } else { 0o777 };
        std::os::unix::fs::chown(path, None, group)
            .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
            .map_err(VolumeError::file(path))
    }

    async fn set_up_claimed(&self, claimed: Claimed, pod: &Pod, uid: &str) -> Result<MountedVolume, VolumeError> {
        let Claimed { name, source, read_only, group, options } = claimed;
        if crate::paths::check_uid(&name).is_err() {
            return Err(VolumeError::Invalid(format!("{name:?} cannot be the name of a PersistentVolume")));
        }
        let path = match source {
            Source::HostPath { path, kind } => {
                let checked = path.clone();
                blocking(move || host_path::check(&checked.display().to_string(), &kind)).await?;
                path
            }
            Source::Nfs { server, path } => {
                let target = self.paths.volume(uid, "kubernetes.io~nfs", &name);
                nfs::mount(&server, &path, &target, read_only, &options).await?;
                target
            }
            Source::Local(directory) => {
                let target = self.paths.volume(uid, "kubernetes.io~local-volume", &name);
                let (fs_group, on_mismatch) = (fs_group::wanted(pod), fs_group::only_on_mismatch(pod));
                let (at, pods) = (target.clone(), self.paths.pods());
                let bound = blocking(move || {
                    let is_new = local::bind(&name, &directory, &at, read_only, &options)?;
                    let Some(group) = fs_group.filter(|_| is_new && !read_only) else { return Ok(None) };
                    local::give_to_group(&name, &at, &pods, group, on_mismatch)
                });
                // Another pod uses the volume with another group; it keeps it.
                if let Some(warning) = bound.await? {
                    tracing::warn!(pod = pod.metadata.name, warning, "fsGroup is not applied");
                }
                target
            }
        };
        Ok(MountedVolume { path, read_only, group })
    }

    /// Where the volumes of a pod are; only those that [`Volumes::set_up`] knows.
    pub fn locations(&self, pod: &Pod) -> MountedVolumes {
        let all = pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
        let mut found: MountedVolumes =
            all.iter().filter_map(|volume| Some((volume.name.clone(), self.location(pod, volume)?))).collect();
        found.extend(self.state.all_mounted(pod.metadata.uid.as_deref().unwrap_or_default()));
        found
    }

    fn location(&self, pod: &Pod, volume: &Volume) -> Option<MountedVolume> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let (plugin, read_only) = match kind(volume) {
            "emptyDir" => ("kubernetes.io~empty-dir", false),
            "configMap" => ("kubernetes.io~configmap", true),
            "secret" => ("kubernetes.io~secret", true),
            "projected" => ("kubernetes.io~projected", true),
            "downwardAPI" => ("kubernetes.io~downward-api", true),
            "nfs" => ("kubernetes.io~nfs", volume.nfs.as_ref()?.read_only.unwrap_or(false)),
            "hostPath" => {
                let path = PathBuf::from(&volume.host_path.as_ref()?.path);
                return Some(MountedVolume { path, read_only: false, group: None });
            }
            _ => return None,
        };
        Some(MountedVolume { path: self.paths.volume(uid, plugin, &volume.name), read_only, group: None })
    }

    /// Forgets a pod whose volumes are gone.
    pub fn forget(&self, uid: &str) {
        self.state.forget(uid);
    }
}

/// Work on files that may take long, or for ever: a hung file system must not hold up other pods.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, VolumeError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(VolumeError::Invalid(format!("setting up the volume: {error}"))))
}

/// Unmounts everything below a directory of a pod, then removes the directory. Never deletes across a mount.
///
/// # Errors
/// Something is still mounted, or cannot be removed.
pub fn tear_down(dir: &Path) -> io::Result<()> {
    mount_table::unmount_below(dir)?;
    remove::remove_tree(dir)
}

/// Volumes that a container mounts; the others of the pod are not touched.
fn referenced(pod: &Pod) -> impl Iterator<Item = &Volume> {
    let containers = spec::containers(pod).iter().chain(spec::init_containers(pod));
    let names: BTreeSet<&str> = containers.flat_map(mounted_names).collect();
    let all = pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
    all.iter().filter(move |volume| names.contains(volume.name.as_str()))
}

fn mounted_names(container: &Container) -> impl Iterator<Item = &str> {
    container.volume_mounts.iter().flatten().map(|mount| mount.name.as_str())
}

/// The source field that is set.
fn kind(volume: &Volume) -> &'static str {
    macro_rules! first_set {
        ($($field:ident => $name:literal),* $(,)?) => { $(if volume.$field.is_some() { return $name; })* };
    }
    first_set! {
        empty_dir => "emptyDir", host_path => "hostPath", config_map => "configMap", secret => "secret",
        projected => "projected", downward_api => "downwardAPI", persistent_volume_claim => "persistentVolumeClaim",
        csi => "csi", nfs => "nfs", ephemeral => "ephemeral", image => "image", iscsi => "iscsi", fc => "fc",
        cephfs => "cephfs", rbd => "rbd", glusterfs => "glusterfs", flex_volume => "flexVolume", git_repo => "gitRepo",
    }
    "these"
}
