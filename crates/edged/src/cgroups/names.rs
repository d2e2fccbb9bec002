//! Where the cgroups of pods are, in the words of both drivers.

/// Who makes cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupDriver {
    /// The runtime itself.
    Cgroupfs,
    /// systemd, as slices.
    Systemd,
}

/// The root of all pods.
pub(super) const PODS: &str = "kubepods";
/// Classes of pods that have a folder of their own.
pub(super) const CLASSES: [&str; 2] = ["burstable", "besteffort"];

impl CgroupDriver {
    /// As written in the configuration.
    pub fn parse(text: &str) -> Self {
        if text == "systemd" { CgroupDriver::Systemd } else { CgroupDriver::Cgroupfs }
    }

    /// As the configuration writes it.
    pub fn name(self) -> &'static str {
        match self {
            CgroupDriver::Cgroupfs => "cgroupfs",
            CgroupDriver::Systemd => "systemd",
        }
    }

    /// The path of a cgroup, given by its parts from the top.
    pub(super) fn path(self, parts: &[&str]) -> String {
        match self {
            CgroupDriver::Cgroupfs => parts.iter().map(|part| format!("/{part}")).collect(),
            // A slice bears the names of those above it; a dash parts them.
            CgroupDriver::Systemd => {
                let parts: Vec<String> = parts.iter().map(|part| part.replace('-', "_")).collect();
                (1..=parts.len()).map(|length| format!("/{}.slice", parts[..length].join("-"))).collect()
            }
        }
    }

    /// The UID of the pod whose cgroup has this name in the folder of its class.
    pub(super) fn uid(self, name: &str) -> Option<String> {
        let uid = match self {
            CgroupDriver::Cgroupfs => name.strip_prefix("pod")?.to_owned(),
            CgroupDriver::Systemd => name.strip_suffix(".slice")?.rsplit_once("-pod")?.1.replace('_', "-"),
        };
        (!uid.is_empty() && uid != "s").then_some(uid)
    }
}

/// The parts of a pod's cgroup below `cgroupRoot`.
pub(super) fn pod_parts(uid: &str, class: &str) -> Vec<String> {
    let class = class.to_lowercase();
    let mut parts = vec![PODS.to_owned()];
    parts.extend(CLASSES.contains(&class.as_str()).then_some(class));
    parts.push(format!("pod{uid}"));
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_of_each_class() {
        for (driver, class, path) in [
            (CgroupDriver::Cgroupfs, "Guaranteed", "/kubepods/poda-b"),
            (CgroupDriver::Cgroupfs, "Burstable", "/kubepods/burstable/poda-b"),
            (CgroupDriver::Cgroupfs, "BestEffort", "/kubepods/besteffort/poda-b"),
            (CgroupDriver::Systemd, "Guaranteed", "/kubepods.slice/kubepods-poda_b.slice"),
            (
                CgroupDriver::Systemd,
                "Burstable",
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-poda_b.slice",
            ),
            (
                CgroupDriver::Systemd,
                "BestEffort",
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-poda_b.slice",
            ),
        ] {
            let parts = pod_parts("a-b", class);
            let made = driver.path(&parts.iter().map(String::as_str).collect::<Vec<_>>());
            assert_eq!(made, path);
            assert_eq!(driver.uid(path.rsplit('/').next().unwrap()).as_deref(), Some("a-b"), "{path}");
        }
        assert_eq!(CgroupDriver::Systemd.path(&["my-root", "kubepods"]), "/my_root.slice/my_root-kubepods.slice");
        for (driver, name) in [
            (CgroupDriver::Cgroupfs, "burstable"),
            (CgroupDriver::Cgroupfs, "cgroup.procs"),
            (CgroupDriver::Systemd, "kubepods-burstable.slice"),
            (CgroupDriver::Systemd, "memory.max"),
        ] {
            assert_eq!(driver.uid(name), None, "{name}");
        }
    }
}
