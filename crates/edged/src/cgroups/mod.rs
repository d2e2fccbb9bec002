//! The cgroups of pods: a tree by quality of service, below it one folder a pod, made before its sandbox and removed after it.
//!
//! `kubepods` holds what the node gives to pods; `burstable` and `besteffort` are in it, and Guaranteed pods. `names` has the paths of both
//! drivers, `values` the files, `systemd` the calls, `detect` tells what of the machine does not fit.

pub mod detect;
mod names;
mod systemd;
mod values;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use podlife::qos::qos_class;

use crate::container::resources::{NodeResources, pod_limits, shares};
use names::{CLASSES, PODS, pod_parts};

pub use names::CgroupDriver;
pub use values::Limits;

/// Where cgroups are mounted.
const ROOT: &str = "/sys/fs/cgroup";
/// Controllers that pods need; on version 2 each level must hand them on.
const CONTROLLERS: [&str; 5] = ["cpu", "cpuset", "memory", "pids", "hugetlb"];
/// Attempts to end the last processes of a pod, and the pause between them.
const KILLS: usize = 5;
const KILL_PAUSE: Duration = Duration::from_millis(100);

/// Whether only cgroup v2 is in use.
pub fn is_unified() -> bool {
    detect::is_unified(Path::new(ROOT))
}

/// Whether the kernel can limit swap per cgroup.
pub fn limits_swap() -> bool {
    let root = Path::new(ROOT);
    if !is_unified() {
        return root.join("memory/memory.memsw.limit_in_bytes").exists();
    }
    // The root itself has no limits; the cgroup of this process shows what its neighbours have.
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    root.join(own).join("memory.swap.max").exists()
}

/// The tree of one node agent. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Cgroups {
    /// Who makes cgroups.
    pub driver: CgroupDriver,
    /// Only version 2 is in use.
    pub unified: bool,
    root: PathBuf,
    /// Parts of `cgroupRoot`.
    above: Vec<String>,
}

impl Cgroups {
    /// The tree below `cgroupRoot` (`/` when empty).
    pub fn new(driver: CgroupDriver, cgroup_root: &str) -> Self {
        Self::at(Path::new(ROOT), driver, is_unified(), cgroup_root)
    }

    fn at(root: &Path, driver: CgroupDriver, unified: bool, cgroup_root: &str) -> Self {
        let above = cgroup_root.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect();
        Self { driver, unified, root: root.to_owned(), above }
    }

    fn path(&self, parts: &[impl AsRef<str>]) -> String {
        let all: Vec<&str> = self.above.iter().map(String::as_str).chain(parts.iter().map(AsRef::as_ref)).collect();
        self.driver.path(&all)
    }

    /// What holds all pods.
    pub fn all_pods(&self) -> String {
        self.path(&[PODS])
    }

    /// The parent of a pod's containers, in the words of the driver.
    pub fn pod(&self, uid: &str, class: &str) -> String {
        self.path(&pod_parts(uid, class))
    }

    /// Makes the tree with the limits of the node.
    ///
    /// # Errors
    /// The first that the machine does not allow; the others are set all the same.
    pub fn prepare(&self, node: &NodeResources) -> io::Result<()> {
        let pods = Limits {
            cpu_shares: shares(node.allocatable_cpu),
            memory: (node.memory > 0).then_some(node.memory),
            ..Limits::default()
        };
        let least = Limits { cpu_shares: shares(0), ..Limits::default() };
        let mut result = self.set(&self.path(&[PODS]), &pods);
        for class in CLASSES {
            let made = self.set(&self.path(&[PODS, class]), &least);
            result = result.and(made);
        }
        result
    }

    /// Gives the class of Burstable pods its share: what they request together.
    ///
    /// # Errors
    /// It cannot be set.
    pub fn set_burstable(&self, milli_cpu: i64) -> io::Result<()> {
        let limits = Limits { cpu_shares: shares(milli_cpu), ..Limits::default() };
        self.set(&self.path(&[PODS, "burstable"]), &limits)
    }

    /// Makes a pod's cgroup, or brings it up to date: its limits are those of the whole pod. What the machine does not allow is
    /// left out: the containers' own limits hold all the same.
    ///
    /// # Errors
    /// The first that the machine does not allow.
    pub fn set_pod(&self, pod: &Pod, uid: &str, node: &NodeResources) -> io::Result<()> {
        self.set(&self.pod(uid, qos_class(pod)), &pod_limits(pod, node))
    }

    /// Gives a pod that is being resized room for what its containers had and for what they get.
    ///
    /// # Errors
    /// The first that the machine does not allow.
    pub fn widen_pod(&self, before: &Pod, pod: &Pod, uid: &str, node: &NodeResources) -> io::Result<()> {
        let limits = pod_limits(before, node).widest(&pod_limits(pod, node));
        self.set(&self.pod(uid, qos_class(pod)), &limits)
    }

    fn set(&self, path: &str, limits: &Limits) -> io::Result<()> {
        if self.driver == CgroupDriver::Systemd {
            return systemd::set(path.rsplit('/').next().unwrap_or_default(), limits, self.unified);
        }
        let mut result = if self.unified { self.hand_on(path) } else { Ok(()) };
        for (controller, file, text) in values::files(limits, self.unified) {
            let dir = if self.unified { self.root.clone() } else { self.root.join(controller) };
            if !dir.is_dir() {
                continue;
            }
            let dir = dir.join(path.trim_start_matches('/'));
            let written = fs::create_dir_all(&dir).and_then(|()| write(&dir.join(&file), &text));
            // A controller that the kernel lacks has no file.
            let absent = written.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
            result = result.and(if absent { Ok(()) } else { written });
        }
        result
    }

    /// Version 2: each level must hand its controllers on before the next one can use them.
    fn hand_on(&self, path: &str) -> io::Result<()> {
        let mut dir = self.root.clone();
        for part in path.split('/').filter(|part| !part.is_empty()) {
            let available = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
            let wanted = available.split_whitespace().filter(|name| CONTROLLERS.contains(name));
            let text = wanted.map(|name| format!("+{name}")).collect::<Vec<_>>().join(" ");
            if !text.is_empty() {
                write(&dir.join("cgroup.subtree_control"), &text)?;
            }
            dir.push(part);
            fs::create_dir_all(&dir)?;
        }
        Ok(())
    }

    /// All hierarchies.
    fn hierarchies(&self) -> Vec<PathBuf> {
        let mut roots = vec![self.root.clone()];
        if !self.unified {
            roots.extend(fs::read_dir(&self.root).into_iter().flatten().flatten().map(|entry| entry.path()));
        }
        roots
    }

    /// Directories of a pod's cgroup, whichever class it was in, whichever driver made it.
    fn pod_dirs(&self, uid: &str) -> Vec<PathBuf> {
        let mut dirs = Vec::new();
        for driver in [CgroupDriver::Cgroupfs, CgroupDriver::Systemd] {
            for class in ["Burstable", "BestEffort", "Guaranteed"] {
                let path = Self { driver, ..self.clone() }.pod(uid, class);
                dirs.extend(self.hierarchies().into_iter().map(|root| root.join(path.trim_start_matches('/'))));
            }
        }
        dirs.retain(|dir| dir.is_dir());
        dirs
    }

    /// Removes a pod's cgroup; processes that are left in it are killed.
    pub async fn remove_pod(&self, uid: &str) {
        for attempt in 0..KILLS {
            let dirs = self.pod_dirs(uid);
            if dirs.is_empty() {
                return;
            }
            if attempt > 0 {
                dirs.iter().for_each(|dir| kill_all(dir));
                tokio::time::sleep(KILL_PAUSE).await;
            }
            let (tree, uid) = (self.clone(), uid.to_owned());
            // systemd may take its time.
            drop(tokio::task::spawn_blocking(move || tree.remove_empty(&uid, &dirs)).await);
        }
        if !self.pod_dirs(uid).is_empty() {
            tracing::warn!(uid, "a process of a pod that has ended cannot be killed; its cgroup stays");
        }
    }

    /// Removes a pod's cgroup if no process is in it; false when it stays, since it is in use.
    pub fn remove_pod_if_empty(&self, uid: &str) -> bool {
        let dirs = self.pod_dirs(uid);
        if dirs.is_empty() || dirs.iter().any(|dir| !processes(dir).is_empty()) {
            return false;
        }
        self.remove_empty(uid, &dirs);
        true
    }

    fn remove_empty(&self, uid: &str, dirs: &[PathBuf]) {
        if self.driver == CgroupDriver::Systemd {
            for class in ["Burstable", "BestEffort", "Guaranteed"] {
                let path = self.pod(uid, class);
                drop(systemd::stop(path.rsplit('/').next().unwrap_or_default()));
            }
        }
        dirs.iter().for_each(|dir| remove_tree(dir));
    }

    /// UIDs of pods that have a cgroup.
    pub fn pods(&self) -> Vec<String> {
        let mut found = Vec::new();
        for root in self.hierarchies() {
            for class in [None, Some(CLASSES[0]), Some(CLASSES[1])] {
                let parts: Vec<&str> = std::iter::once(PODS).chain(class).collect();
                let dir = root.join(self.path(&parts).trim_start_matches('/'));
                let names = fs::read_dir(dir).into_iter().flatten().flatten();
                found.extend(names.filter_map(|entry| self.driver.uid(entry.file_name().to_str()?)));
            }
        }
        found.sort_unstable();
        found.dedup();
        found
    }
}

/// Writes a file that the kernel has made; one that it has not is not made here.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).open(path)?;
    io::Write::write_all(&mut file, text.as_bytes())
        .map_err(|error| io::Error::new(error.kind(), format!("{text:?} to {}: {error}", path.display())))
}

/// Processes in a cgroup and below it.
fn processes(dir: &Path) -> Vec<i32> {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    let mut found: Vec<i32> = text.lines().filter_map(|line| line.parse().ok()).collect();
    found.extend(children(dir).iter().flat_map(|child| processes(child)));
    found
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

fn kill_all(dir: &Path) {
    for pid in processes(dir) {
        if let Some(pid) = rustix::process::Pid::from_raw(pid) {
            // It may have ended by itself meanwhile.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

/// Removes a cgroup and those below it; one that is in use stays.
fn remove_tree(dir: &Path) {
    for child in children(dir) {
        remove_tree(&child);
    }
    drop(fs::remove_dir(dir));
}

#[cfg(test)]
mod tests;
