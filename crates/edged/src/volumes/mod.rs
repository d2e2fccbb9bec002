//! Volumes that need nothing but the node and the store: emptyDir, hostPath, configMap, secret, projected, downwardAPI.
//!
//! [`Volumes::set_up`] is repeated at every sync of a pod, so that changed ConfigMaps and Secrets reach mounted volumes;
//! [`tear_down`] undoes everything. Read `payload` for what is in a volume, `atomic` for how it gets there.

mod atomic;
mod fs_group;
mod host_path;
mod mount_table;
mod payload;
pub mod subpath;
mod token;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, EmptyDirVolumeSource, Pod, Volume};
use podlife::spec;
use rustix::mount::{MountFlags, mount};

use crate::container::fields::FieldSource;
use crate::meta::{MetaClient, MetaError};
use crate::paths::Paths;
use crate::quantity;
use payload::Payload;

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
}

/// Why a volume is not there.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// A ConfigMap, Secret or key that does not exist (yet).
    #[error("{0}")]
    Missing(String),
    /// The kind of volume is not known here.
    #[error(
        "{kind} volumes are not supported on this edge node; use emptyDir, hostPath, configMap, secret, projected or downwardAPI"
    )]
    Unsupported {
        /// Name of the source field.
        kind: &'static str,
    },
    /// The host path is not of the type that the pod asks for.
    #[error("hostPath type check failed: {0}")]
    HostPath(String),
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
}

/// Sets up and removes the volumes of pods.
pub struct Volumes {
    meta: MetaClient,
    paths: Paths,
}

impl Volumes {
    /// Volumes below these paths.
    pub fn new(meta: MetaClient, paths: Paths) -> Self {
        Self { meta, paths }
    }

    /// Sets up, or brings up to date, every volume that a container of the pod mounts. All are tried, also after a failure.
    ///
    /// # Errors
    /// The text of the event `FailedMount`: which volumes are not there, and why.
    pub async fn set_up(&self, fields: &FieldSource<'_>) -> Result<(), String> {
        let mut failed = Vec::new();
        for volume in referenced(fields.pod) {
            if let Err(error) = self.set_up_volume(volume, fields).await {
                failed.push(format!("MountVolume.SetUp failed for volume {:?} : {error}", volume.name));
            }
        }
        if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) }
    }

    async fn set_up_volume(&self, volume: &Volume, fields: &FieldSource<'_>) -> Result<(), VolumeError> {
        let pod = fields.pod;
        let path = self.location(pod, volume).ok_or(VolumeError::Unsupported { kind: kind(volume) })?.path;
        let fs_group = fs_group::wanted(pod);
        if let Some(source) = &volume.host_path {
            return host_path::check(&source.path, source.type_.as_deref().unwrap_or_default());
        }
        if let Some(source) = &volume.empty_dir {
            return empty_dir(&path, source, pod, fs_group);
        }
        let payload = Payload::read(&self.meta, volume, fields, &path).await?;
        if volume.config_map.is_none() {
            mount_tmpfs(&path, SECRET_TMPFS)?;
        }
        fs::create_dir_all(&path).map_err(VolumeError::file(&path))?;
        atomic::write(&path, &payload.files, fs_group).map_err(VolumeError::file(&path))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).map_err(VolumeError::file(&path))?;
        if let Some(group) = fs_group {
            fs_group::own_dir(&path, group).map_err(VolumeError::file(&path))?;
        }
        Ok(())
    }

    /// Where the volumes of a pod are; only those that [`Volumes::set_up`] knows.
    pub fn locations(&self, pod: &Pod) -> MountedVolumes {
        let all = pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
        all.iter().filter_map(|volume| Some((volume.name.clone(), self.location(pod, volume)?))).collect()
    }

    fn location(&self, pod: &Pod, volume: &Volume) -> Option<MountedVolume> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let (plugin, read_only) = match kind(volume) {
            "emptyDir" => ("kubernetes.io~empty-dir", false),
            "configMap" => ("kubernetes.io~configmap", true),
            "secret" => ("kubernetes.io~secret", true),
            "projected" => ("kubernetes.io~projected", true),
            "downwardAPI" => ("kubernetes.io~downward-api", true),
            "hostPath" => {
                let path = PathBuf::from(&volume.host_path.as_ref()?.path);
                return Some(MountedVolume { path, read_only: false });
            }
            _ => return None,
        };
        Some(MountedVolume { path: self.paths.volume(uid, plugin, &volume.name), read_only })
    }
}

/// Unmounts everything below a pod's directory, then removes the directory. Never deletes across a mount.
///
/// # Errors
/// Something is still mounted, or cannot be removed.
pub fn tear_down(pod_dir: &Path) -> io::Result<()> {
    mount_table::unmount_below(pod_dir)?;
    match fs::remove_dir_all(pod_dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
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

/// Made once: what containers then do with its modes and owners is theirs.
fn empty_dir(path: &Path, source: &EmptyDirVolumeSource, pod: &Pod, fs_group: Option<u32>) -> Result<(), VolumeError> {
    let is_new = !path.exists();
    match source.medium.as_deref().unwrap_or_default() {
        "" => fs::create_dir_all(path).map_err(VolumeError::file(path))?,
        "Memory" => {
            let size = memory_size(source, pod).map(|size| format!("size={size},")).unwrap_or_default();
            mount_tmpfs(path, &format!("{size}mode=0777"))?;
        }
        _ => return Err(VolumeError::Unsupported { kind: "emptyDir (on huge pages)" }),
    }
    if is_new {
        // Set explicitly: the process' umask has taken bits away.
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).map_err(VolumeError::file(path))?;
        if let Some(group) = fs_group {
            fs_group::own_dir(path, group).map_err(VolumeError::file(path))?;
        }
    }
    Ok(())
}

/// The smaller of the limit of the volume and that of the pod's memory.
fn memory_size(source: &EmptyDirVolumeSource, pod: &Pod) -> Option<i64> {
    let own = source.size_limit.as_ref().and_then(quantity::value).filter(|size| *size > 0);
    let limit = crate::container::resources::pod_amounts(pod).memory_limit;
    own.into_iter().chain((limit > 0).then_some(limit)).min()
}

/// Mounts a tmpfs at a path unless something is mounted there already.
fn mount_tmpfs(path: &Path, options: &str) -> Result<(), VolumeError> {
    fs::create_dir_all(path).map_err(VolumeError::file(path))?;
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev());
    let parent = path.parent().unwrap_or(path);
    if device(path).map_err(VolumeError::file(path))? != device(parent).map_err(VolumeError::file(path))? {
        return Ok(());
    }
    let options = std::ffi::CString::new(options).map_err(|_| VolumeError::Invalid("mount options".into()))?;
    mount("tmpfs", path, "tmpfs", MountFlags::NODEV | MountFlags::NOSUID, Some(options.as_c_str()))
        .map_err(|error| VolumeError::file(path)(error.into()))
}
