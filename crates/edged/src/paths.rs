//! Where the files of a pod are: the layout of the kubelet, which other tools on a node rely on.

use std::path::{Path, PathBuf};

use podlife::observed::PodIdentity;

use crate::settings::Settings;

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

    /// The link to a container's log in `/var/log/containers`; its name has at most 255 bytes.
    pub fn container_link(&self, pod: &PodIdentity, container: &str, id: &str) -> PathBuf {
        const MAX_NAME: usize = 255 - ".log".len();
        let mut name = format!("{}_{}_{container}-{id}", pod.name, pod.namespace);
        // Names of pods, namespaces and containers, and ids, are ASCII.
        name.truncate(name.floor_char_boundary(MAX_NAME));
        self.container_links.join(name + ".log")
    }

    /// Directory of the links.
    pub fn container_links(&self) -> &Path {
        &self.container_links
    }
}
