//! Where the files of a pod are: the layout of the kubelet, which other tools on a node rely on.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;
use podlife::{observed::PodIdentity, spec};

use crate::settings::Settings;

/// Longest name of a file on Linux.
const MAX_NAME: usize = 255;

/// A name that would lead out of its directory. The API server lets none through, but not everything comes from there.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} {name:?} cannot be the name of a directory")]
pub struct BadName {
    what: &'static str,
    name: String,
}

/// Checks the parts of a pod's identity, of which names of directories are made.
///
/// # Errors
/// The part that is no plain name.
pub fn check_identity(identity: &PodIdentity) -> Result<(), BadName> {
    check_uid(&identity.uid)?;
    check("the pod's name", &identity.name)?;
    check("the pod's namespace", &identity.namespace)
}

/// Checks a UID, of which the name of the pod's directory is made.
///
/// # Errors
/// It is no plain name.
pub fn check_uid(uid: &str) -> Result<(), BadName> {
    check("the pod's UID", uid)
}

/// Checks the names within a pod of which directories are named.
///
/// # Errors
/// The container or volume whose name is no plain one.
pub fn check_pod(pod: &Pod) -> Result<(), BadName> {
    for container in spec::containers(pod).iter().chain(spec::init_containers(pod)) {
        check("container", &container.name)?;
    }
    let volumes = pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default();
    volumes.iter().try_for_each(|volume| check("volume", &volume.name))
}

fn check(what: &'static str, name: &str) -> Result<(), BadName> {
    let plain = !matches!(name, "" | "." | "..") && name.len() <= MAX_NAME && !name.contains(['/', '\0']);
    if plain { Ok(()) } else { Err(BadName { what, name: name.to_owned() }) }
}

/// Directories of all pods.
#[derive(Clone, Debug)]
pub struct Paths {
    root: PathBuf,
    logs: PathBuf,
    /// Links that log collectors follow.
    container_links: PathBuf,
}

impl Paths {
    /// As configured. Links of containers live beside the pods' logs (`/var/log/containers`).
    pub fn new(settings: &Settings) -> Self {
        let container_links = settings.pod_logs_dir.parent().unwrap_or(Path::new("/")).join("containers");
        Self { root: settings.root_dir.clone(), logs: settings.pod_logs_dir.clone(), container_links }
    }

    /// All pod directories.
    pub fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }

    /// `pods/⟨uid⟩`.
    pub fn pod(&self, uid: &str) -> PathBuf {
        self.pods().join(uid)
    }

    /// A volume; plugin as `kubernetes.io~empty-dir`.
    pub fn volume(&self, uid: &str, plugin: &str, volume: &str) -> PathBuf {
        self.pod(uid).join("volumes").join(plugin).join(volume)
    }

    /// Tells that a volume was made completely.
    pub fn ready_marker(&self, uid: &str, plugin: &str, volume: &str) -> PathBuf {
        self.pod(uid).join("plugins").join(plugin).join(volume).join("ready")
    }

    /// All volumes of a pod.
    pub fn volumes(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("volumes")
    }

    /// Bind targets of sub-paths.
    pub fn subpaths(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("volume-subpaths")
    }

    /// The hosts file.
    pub fn hosts_file(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("etc-hosts")
    }

    /// Termination message files of a container.
    pub fn container(&self, uid: &str, container: &str) -> PathBuf {
        self.pod(uid).join("containers").join(container)
    }

    /// Log directory of a pod.
    pub fn pod_logs(&self, pod: &PodIdentity) -> PathBuf {
        self.logs.join(format!("{}_{}_{}", pod.namespace, pod.name, pod.uid))
    }

    /// Log directories of a pod of which only the UID may be known.
    pub fn pod_logs_of(&self, uid: &str) -> Vec<PathBuf> {
        let suffix = format!("_{uid}");
        let entries = std::fs::read_dir(&self.logs).into_iter().flatten().flatten();
        let of_pod = entries.filter(|entry| entry.file_name().to_string_lossy().ends_with(&suffix));
        of_pod.map(|entry| entry.path()).collect()
    }

    /// UIDs of pods that have a log directory.
    pub fn logged_pods(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.logs).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        // Neither a namespace nor a pod's name holds an underscore.
        let uid = |name: String| match name.split('_').collect::<Vec<_>>()[..] {
            [_, _, uid] if !uid.is_empty() => Some(uid.to_owned()),
            _ => None,
        };
        names.filter_map(uid).collect()
    }

    /// The link to a container's log in `/var/log/containers`; its name has at most 255 bytes.
    pub fn container_link(&self, pod: &PodIdentity, container: &str, id: &str) -> PathBuf {
        let mut name = format!("{}_{}_{container}-{id}", pod.name, pod.namespace);
        // Names of pods, namespaces and containers, and ids, are ASCII.
        name.truncate(name.floor_char_boundary(MAX_NAME - ".log".len()));
        self.container_links.join(name + ".log")
    }

    /// Directory of the links.
    pub fn container_links(&self) -> &Path {
        &self.container_links
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_stay_in_their_directories() {
        let identity = |uid: &str| PodIdentity { namespace: "a".into(), name: "b".into(), uid: uid.into() };
        assert!(check_identity(&identity("5a6f-1")).is_ok());
        for uid in ["", ".", "..", "../../etc", "a/b", "a\0"] {
            assert!(check_identity(&identity(uid)).is_err(), "{uid:?}");
        }
        let pod = |volume: &str| -> Pod {
            serde_json::from_value(json!({"spec": {"containers": [{"name": "c"}], "volumes": [{"name": volume}]}}))
                .unwrap()
        };
        assert!(check_pod(&pod("data")).is_ok());
        assert!(check_pod(&pod("../data")).is_err());
    }
}
