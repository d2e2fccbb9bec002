//! What of the machine or of the runtime's configuration keeps pods from starting, named with its cure.

use std::fs;
use std::path::Path;

use super::names::CgroupDriver;

/// Controllers without which no pod can be limited.
const NEEDED: [&str; 3] = ["cpu", "memory", "pids"];

/// Whether only cgroup v2 is mounted here.
pub fn is_unified(root: &Path) -> bool {
    root.join("cgroup.controllers").is_file()
}

/// Why pods will not start, if that can be seen now.
pub fn problem(driver: CgroupDriver) -> Option<String> {
    look(driver, Path::new(super::ROOT), Path::new("/run/systemd/system").is_dir())
}

fn look(driver: CgroupDriver, root: &Path, systemd_runs: bool) -> Option<String> {
    if driver == CgroupDriver::Systemd && !systemd_runs {
        return Some(
            "cgroup driver mismatch: the container runtime uses systemd, which does not run on this node; set SystemdCgroup = false in \
             the runc options of /etc/containerd/config.toml and restart containerd"
                .to_owned(),
        );
    }
    let unified = is_unified(root);
    let listed = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    let has = |name: &str| {
        if unified { listed.split_whitespace().any(|found| found == name) } else { root.join(name).is_dir() }
    };
    let missing: Vec<&str> = NEEDED.into_iter().filter(|name| !has(name)).collect();
    if missing.is_empty() {
        return None;
    }
    let (version, names) = (if unified { 2 } else { 1 }, missing.join(", "));
    let cure = if missing.contains(&"memory") {
        "add cgroup_enable=memory to the kernel command line (on a Raspberry Pi: /boot/cmdline.txt) and restart the node"
    } else {
        "mount or enable them and restart edgecore"
    };
    Some(format!("missing cgroups: {names} (cgroup v{version}); {cure}"))
}

/// A hint for a runtime endpoint that does not serve CRI.
pub fn endpoint_hint(endpoint: &str, answer: &str) -> Option<String> {
    const KNOWN: [&str; 4] = [
        "/run/containerd/containerd.sock",
        "/run/crio/crio.sock",
        "/run/cri-dockerd.sock",
        "/run/k3s/containerd/containerd.sock",
    ];
    if answer.contains("unknown service runtime.v1") {
        return Some(
            "the runtime serves no CRI v1; remove \"cri\" from disabled_plugins in /etc/containerd/config.toml (containerd 1.6 or later) \
             and restart containerd"
                .to_owned(),
        );
    }
    let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
    if Path::new(path).exists() {
        return None;
    }
    let other = KNOWN.into_iter().find(|known| *known != path && Path::new(known).exists());
    Some(match other {
        Some(other) => format!(
            "{path} does not exist, but {other} does: set modules.edged.tailoredKubeletConfig.containerRuntimeEndpoint to unix://{other}"
        ),
        None => format!("{path} does not exist: is the container runtime installed and started?"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_are_named_with_their_cure() {
        let root = tempfile::tempdir().unwrap();
        let text = look(CgroupDriver::Systemd, root.path(), false).unwrap();
        assert!(text.contains("SystemdCgroup = false"), "{text}");
        let text = look(CgroupDriver::Cgroupfs, root.path(), false).unwrap();
        assert!(text.starts_with("missing cgroups: cpu, memory, pids (cgroup v1)"), "{text}");
        for name in ["cpu", "memory", "pids"] {
            fs::create_dir(root.path().join(name)).unwrap();
        }
        assert_eq!(look(CgroupDriver::Cgroupfs, root.path(), false), None);
        fs::write(root.path().join("cgroup.controllers"), "cpuset cpu io pids\n").unwrap();
        let text = look(CgroupDriver::Systemd, root.path(), true).unwrap();
        assert!(text.starts_with("missing cgroups: memory (cgroup v2); add cgroup_enable=memory"), "{text}");
        fs::write(root.path().join("cgroup.controllers"), "cpuset cpu io memory pids\n").unwrap();
        assert_eq!(look(CgroupDriver::Systemd, root.path(), true), None);
    }

    #[test]
    fn endpoints() {
        let dir = tempfile::tempdir().unwrap();
        let here = dir.path().display().to_string();
        assert_eq!(endpoint_hint(&format!("unix://{here}"), "connection refused"), None);
        assert!(
            endpoint_hint(&here, "unknown service runtime.v1.RuntimeService").unwrap().contains("disabled_plugins")
        );
        assert!(endpoint_hint("unix:///none/x.sock", "").unwrap().starts_with("/none/x.sock does not exist"));
    }
}
