//! The cgroup of a pod: its place in the tree of the kubelet, made before the sandbox and removed after it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;
use podlife::qos::qos_class;

use crate::container::resources::{Amounts, pod_amounts, quota, shares};

/// Where cgroups are mounted.
const ROOT: &str = "/sys/fs/cgroup";
/// Controllers (v1) whose values are set here; the runtime makes its own folders in all others.
const V1_CONTROLLERS: [&str; 2] = ["cpu", "memory"];
/// Classes of pods that have a folder of their own.
const CLASSES: [&str; 2] = ["burstable", "besteffort"];

/// Who makes cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupDriver {
    /// The runtime itself.
    Cgroupfs,
    /// systemd, as slices.
    Systemd,
}

impl CgroupDriver {
    /// As written in the configuration.
    pub fn parse(text: &str) -> Self {
        if text == "systemd" { CgroupDriver::Systemd } else { CgroupDriver::Cgroupfs }
    }

    /// The parent of a pod's containers, in the words of this driver.
    pub fn pod_cgroup(self, uid: &str, class: &str) -> String {
        let class = class.to_lowercase();
        let class = CLASSES.contains(&class.as_str()).then_some(class);
        match (self, class) {
            (CgroupDriver::Cgroupfs, Some(class)) => format!("/kubepods/{class}/pod{uid}"),
            (CgroupDriver::Cgroupfs, None) => format!("/kubepods/pod{uid}"),
            (CgroupDriver::Systemd, Some(class)) => {
                format!("/kubepods.slice/kubepods-{class}.slice/kubepods-{class}-pod{}.slice", uid.replace('-', "_"))
            }
            (CgroupDriver::Systemd, None) => format!("/kubepods.slice/kubepods-pod{}.slice", uid.replace('-', "_")),
        }
    }
}

/// Whether only cgroup v2 is in use.
pub fn is_unified() -> bool {
    Path::new(ROOT).join("cgroup.controllers").is_file()
}

/// Makes a pod's cgroup with the limits of the whole pod (driver cgroupfs; systemd's slices are made by the runtime). What
/// the machine does not allow is left out: the containers' own limits hold all the same.
pub fn create(driver: CgroupDriver, pod: &Pod, uid: &str) {
    if driver == CgroupDriver::Systemd {
        return;
    }
    let path = driver.pod_cgroup(uid, qos_class(pod));
    let made = if is_unified() { create_unified(&path, pod_amounts(pod)) } else { create_v1(&path, pod_amounts(pod)) };
    if let Err(error) = made {
        tracing::debug!(path, %error, "pod cgroup without limits");
    }
}

fn create_v1(path: &str, amounts: Amounts) -> io::Result<()> {
    for controller in V1_CONTROLLERS {
        let mount = Path::new(ROOT).join(controller);
        if !mount.is_dir() {
            continue;
        }
        let dir = mount.join(path.trim_start_matches('/'));
        fs::create_dir_all(&dir)?;
        if controller == "cpu" {
            fs::write(dir.join("cpu.shares"), shares(amounts.cpu_request).to_string())?;
            if amounts.cpu_limit > 0 {
                fs::write(dir.join("cpu.cfs_quota_us"), quota(amounts.cpu_limit).to_string())?;
            }
        } else if amounts.memory_limit > 0 {
            fs::write(dir.join("memory.limit_in_bytes"), amounts.memory_limit.to_string())?;
        }
    }
    Ok(())
}

fn create_unified(path: &str, amounts: Amounts) -> io::Result<()> {
    let mut dir = PathBuf::from(ROOT);
    for part in path.split('/').filter(|part| !part.is_empty()) {
        // Each level must hand the controllers on before the next one can use them.
        fs::write(dir.join("cgroup.subtree_control"), "+cpu +memory +pids")?;
        dir.push(part);
        fs::create_dir_all(&dir)?;
    }
    let weight = 1 + (shares(amounts.cpu_request) - 2) * 9999 / 262_142;
    fs::write(dir.join("cpu.weight"), weight.to_string())?;
    if amounts.cpu_limit > 0 {
        fs::write(dir.join("cpu.max"), format!("{} 100000", quota(amounts.cpu_limit)))?;
    }
    if amounts.memory_limit > 0 {
        fs::write(dir.join("memory.max"), amounts.memory_limit.to_string())?;
    }
    Ok(())
}

/// Removes what is left of a pod's cgroup, whichever class it was in, in all hierarchies. The folders of the classes stay:
/// another pod may be about to use them.
pub fn remove(uid: &str) {
    let mut roots = vec![PathBuf::from(ROOT)];
    if !is_unified() {
        roots.extend(fs::read_dir(ROOT).into_iter().flatten().flatten().map(|entry| entry.path()));
    }
    for root in roots {
        for driver in [CgroupDriver::Cgroupfs, CgroupDriver::Systemd] {
            for class in ["Burstable", "BestEffort", "Guaranteed"] {
                let path = driver.pod_cgroup(uid, class);
                drop(fs::remove_dir(root.join(path.trim_start_matches('/'))));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let cgroupfs = CgroupDriver::Cgroupfs;
        assert_eq!(cgroupfs.pod_cgroup("a-b", "Burstable"), "/kubepods/burstable/poda-b");
        assert_eq!(cgroupfs.pod_cgroup("a-b", "Guaranteed"), "/kubepods/poda-b");
        assert_eq!(
            CgroupDriver::Systemd.pod_cgroup("a-b", "BestEffort"),
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-poda_b.slice"
        );
    }
}
