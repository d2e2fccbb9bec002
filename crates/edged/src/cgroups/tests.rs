//! The tree on a fake root: plain files stand for those of the kernel.

use serde_json::json;

use super::*;

/// A root where each folder that is asked for has the files of a cgroup.
fn root(unified: bool, dirs: &[&str]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let files: &[&str] = if unified {
        &["cgroup.controllers", "cgroup.subtree_control", "cpu.weight", "cpu.max", "memory.max", "pids.max"]
    } else {
        &["cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us", "memory.limit_in_bytes", "pids.max"]
    };
    let hierarchies: &[&str] = if unified { &[""] } else { &["cpu", "memory", "pids"] };
    for dir in hierarchies.iter().flat_map(|hierarchy| dirs.iter().map(move |dir| Path::new(hierarchy).join(dir))) {
        let dir = root.path().join(dir);
        fs::create_dir_all(&dir).unwrap();
        for file in files {
            fs::write(dir.join(file), if *file == "cgroup.controllers" { "cpu io memory pids" } else { "" }).unwrap();
        }
    }
    root
}

fn pod() -> Pod {
    serde_json::from_value(json!({"metadata": {"uid": "u-1"}, "spec": {"containers": [{"name": "c", "resources": {
        "requests": {"cpu": "250m", "memory": "64Mi"}, "limits": {"cpu": "500m", "memory": "128Mi"}}}]}}))
    .unwrap()
}

fn text(root: &tempfile::TempDir, path: &str) -> String {
    fs::read_to_string(root.path().join(path)).unwrap()
}

const DIRS: [&str; 5] =
    ["", "top/kubepods", "top/kubepods/burstable", "top/kubepods/besteffort", "top/kubepods/burstable/podu-1"];

#[test]
fn version_1() {
    let root = root(false, &DIRS);
    let cgroups = Cgroups::at(root.path(), CgroupDriver::Cgroupfs, false, "/top");
    let node = NodeResources { memory: 1 << 30, allocatable_cpu: 2000, ..Default::default() };
    cgroups.prepare(&node).unwrap();
    cgroups.set_burstable(250).unwrap();
    cgroups.set_pod(&pod(), "u-1", &node).unwrap();
    assert_eq!(cgroups.pod("u-1", "Burstable"), "/top/kubepods/burstable/podu-1");
    for (path, value) in [
        ("cpu/top/kubepods/cpu.shares", "2048"),
        ("memory/top/kubepods/memory.limit_in_bytes", "1073741824"),
        ("cpu/top/kubepods/burstable/cpu.shares", "256"),
        ("cpu/top/kubepods/besteffort/cpu.shares", "2"),
        ("cpu/top/kubepods/burstable/podu-1/cpu.shares", "256"),
        ("cpu/top/kubepods/burstable/podu-1/cpu.cfs_quota_us", "50000"),
        ("memory/top/kubepods/burstable/podu-1/memory.limit_in_bytes", "134217728"),
        ("pids/top/kubepods/burstable/podu-1/pids.max", "max"),
    ] {
        assert_eq!(text(&root, path), value, "{path}");
    }
    assert_eq!(cgroups.pods(), ["u-1"]);
}

#[test]
fn version_2_hands_controllers_on() {
    let root = root(true, &[&DIRS[..], &["top"]].concat());
    let cgroups = Cgroups::at(root.path(), CgroupDriver::Cgroupfs, true, "top");
    cgroups.set_pod(&pod(), "u-1", &NodeResources::default()).unwrap();
    for level in ["", "top", "top/kubepods", "top/kubepods/burstable"] {
        assert_eq!(
            text(&root, format!("{level}/cgroup.subtree_control").trim_start_matches('/')),
            "+cpu +memory +pids"
        );
    }
    let pod = "top/kubepods/burstable/podu-1";
    assert_eq!(text(&root, &format!("{pod}/cgroup.subtree_control")), "");
    assert_eq!(text(&root, &format!("{pod}/cpu.max")), "50000 100000");
    assert_eq!(text(&root, &format!("{pod}/memory.max")), "134217728");
    assert_eq!(text(&root, &format!("{pod}/cpu.weight")), "10");
}

#[test]
fn systemd_names_of_both_versions() {
    for unified in [false, true] {
        let hierarchy = if unified { "" } else { "cpu" };
        let root = tempfile::tempdir().unwrap();
        let slice = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podu_1.slice";
        fs::create_dir_all(root.path().join(hierarchy).join(slice)).unwrap();
        let cgroups = Cgroups::at(root.path(), CgroupDriver::Systemd, unified, "");
        assert_eq!(cgroups.pod("u-1", "Burstable"), format!("/{slice}"));
        assert_eq!(cgroups.pods(), ["u-1"]);
        assert_eq!(cgroups.pod_dirs("u-1"), [root.path().join(hierarchy).join(slice)]);
    }
}

#[tokio::test]
async fn a_pods_cgroup_goes_with_all_below_it() {
    let root = tempfile::tempdir().unwrap();
    let cgroups = Cgroups::at(root.path(), CgroupDriver::Cgroupfs, false, "");
    for path in ["cpu/kubepods/burstable/podu-1/c1", "memory/kubepods/podu-1", "cpu/kubepods/burstable/podu-2"] {
        fs::create_dir_all(root.path().join(path)).unwrap();
    }
    assert_eq!(cgroups.pods(), ["u-1", "u-2"]);
    cgroups.remove_pod("u-1").await;
    assert_eq!(cgroups.pods(), ["u-2"]);
    cgroups.remove_pod_if_empty("u-2");
    assert!(cgroups.pods().is_empty());
}
