//! Ends everything of one instance, found from its folders alone.
//!
//! The orderly way is CRI: it runs the CNI plugins and unmounts. What a killed containerd or a lost shim leaves is then
//! swept: processes in the instance's containers, shims that name its socket, mounts below its folders (the network namespaces
//! of its sandboxes are among them), its bridge.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

use super::{Containerd, ContainerdOptions, POLL, STOP_LIMIT, config, runtime_client};
use crate::cri;
use crate::processes::{self, command_line};

pub(super) async fn clean_up(options: &ContainerdOptions) -> Result<()> {
    if !options.dir.is_dir() {
        return Ok(());
    }
    if let Err(error) = stop_pods(options).await {
        // Nothing to tell it to is no reason to stop here.
        drop(writeln!(std::io::stderr(), "pods of {} are ended by force: {error:#}", options.dir.display()));
    }
    kill_containerd(options)?;
    kill_processes(options)?;
    remove_cgroups(&options.cgroup_root());
    unmount_below(&[&options.dir, &options.sockets])?;
    remove_network(options)?;
    remove_dir(&options.sockets)
}

/// Stops and removes all sandboxes through CRI; containerd is started for it if need be.
async fn stop_pods(options: &ContainerdOptions) -> Result<()> {
    let left = fs::read_dir(tasks(options)).is_ok_and(|mut entries| entries.next().is_some());
    let started = if containerd_pid(options).is_some() {
        None
    } else if left {
        Some(Box::pin(Containerd::start(options.clone())).await?)
    } else {
        return Ok(());
    };
    let mut client = runtime_client(&options.socket()).await?;
    let sandboxes = client.list_pod_sandbox(cri::ListPodSandboxRequest::default()).await?.into_inner().items;
    for sandbox in sandboxes {
        let id = sandbox.id;
        client.stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id: id.clone() }).await?;
        client.remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id: id }).await?;
    }
    if let Some(containerd) = started {
        containerd.keep_running();
    }
    Ok(())
}

/// Removes the empty cgroups that an agent made below its `cgroupRoot`, in all hierarchies.
pub(super) fn remove_cgroups(root: &str) {
    let top = PathBuf::from("/sys/fs/cgroup");
    for hierarchy in entries(&top).into_iter().chain([top]) {
        remove_tree(&hierarchy.join(root.trim_start_matches('/')));
    }
}

fn remove_tree(dir: &Path) {
    for child in entries(dir).into_iter().filter(|child| child.is_dir()) {
        remove_tree(&child);
    }
    // One that is in use stays.
    drop(fs::remove_dir(dir));
}

/// Bundles of running tasks: one folder per container, made and removed by containerd.
fn tasks(options: &ContainerdOptions) -> PathBuf {
    config::state(options).join("io.containerd.runtime.v2.task/k8s.io")
}

/// The process id of the containerd that reads this instance's configuration: started here, or by hand after a failure.
pub(super) fn containerd_pid(options: &ContainerdOptions) -> Option<i32> {
    let config = config::file(options);
    let config = config.canonicalize().unwrap_or(config);
    let reads_it = |pid: &i32| {
        processes::program(*pid).is_some_and(|program| program == "containerd")
            && processes::arguments(*pid).contains(&config)
    };
    let noted = fs::read_to_string(options.pid_file()).ok().and_then(|text| text.trim().parse().ok());
    noted.filter(reads_it).or_else(|| processes::all().into_iter().find(reads_it))
}

/// Ends containerd alone and waits until it is gone.
pub(super) fn kill_containerd(options: &ContainerdOptions) -> Result<()> {
    if let Some(pid) = containerd_pid(options) {
        end(pid, &|| containerd_pid(options).is_none())?;
    }
    drop(fs::remove_file(options.pid_file()));
    Ok(())
}

/// Asks, waits, kills, waits.
fn end(pid: i32, gone: &dyn Fn() -> bool) -> Result<()> {
    signal(pid, Signal::TERM);
    if !wait_for(gone) {
        signal(pid, Signal::KILL);
        if !wait_for(gone) {
            bail!("process {pid} does not end");
        }
    }
    Ok(())
}

fn signal(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        // It may have ended by itself meanwhile.
        let _ = kill_process(pid, signal);
    }
}

#[allow(clippy::disallowed_methods, reason = "polls processes that are no children of this one, with a deadline")]
fn wait_for(holds: &dyn Fn() -> bool) -> bool {
    let deadline = Instant::now() + STOP_LIMIT;
    while !holds() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(POLL);
    }
    true
}

/// Kills shims first, so that they report nothing, then what runs in containers.
pub(super) fn kill_processes(options: &ContainerdOptions) -> Result<()> {
    let sockets = shim_sockets(options);
    let ids: BTreeSet<String> = entries(&tasks(options)).into_iter().filter_map(name_of).collect();
    let find = || {
        let mut found = shims(options);
        found.extend(processes::all().into_iter().filter(|pid| in_container(*pid, &ids)));
        found
    };
    for pid in find() {
        signal(pid, Signal::KILL);
    }
    if !wait_for(&|| find().is_empty()) {
        bail!("processes {:?} do not end", find());
    }
    for socket in sockets {
        drop(fs::remove_file(socket));
    }
    Ok(())
}

fn shims(options: &ContainerdOptions) -> Vec<i32> {
    let socket = options.socket();
    let socket = socket.as_os_str().as_encoded_bytes();
    let is_shim = |pid: &i32| {
        let words = command_line(*pid);
        words.first().is_some_and(|program| program.windows(15).any(|part| part == b"containerd-shim"))
            && words.iter().any(|word| word == socket)
    };
    processes::all().into_iter().filter(is_shim).collect()
}

fn in_container(pid: i32, ids: &BTreeSet<String>) -> bool {
    if command_line(pid).is_empty() {
        return false;
    }
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    cgroups.lines().any(|line| line.rsplit('/').next().is_some_and(|last| ids.contains(last)))
}

/// Sockets of shims, which lie in a folder that all containerds share.
fn shim_sockets(options: &ContainerdOptions) -> Vec<PathBuf> {
    let address = |bundle: PathBuf| fs::read_to_string(bundle.join("address")).ok();
    let addresses = entries(&tasks(options)).into_iter().filter_map(address);
    addresses.filter_map(|address| Some(PathBuf::from(address.trim().strip_prefix("unix://")?))).collect()
}

/// Unmounts everything at or below these folders.
pub(super) fn unmount_below(folders: &[&Path]) -> Result<()> {
    // Later mounts lie on top of earlier ones.
    for point in mounts_below(folders)?.iter().rev() {
        unmount(point, UnmountFlags::DETACH).with_context(|| format!("unmounting {}", point.display()))?;
    }
    Ok(())
}

/// What is mounted at or below these folders, in the order of mounting.
pub(super) fn mounts_below(folders: &[&Path]) -> Result<Vec<PathBuf>> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    let points = text.lines().filter_map(|line| line.split(' ').nth(4)).map(|path| path.replace("\\040", " "));
    Ok(points.map(PathBuf::from).filter(|point| folders.iter().any(|folder| point.starts_with(folder))).collect())
}

/// Removes the bridge, the addresses in use and CNI's notes about this network.
fn remove_network(options: &ContainerdOptions) -> Result<()> {
    if Path::new("/sys/class/net").join(&options.bridge).exists() {
        let status = Command::new("ip").args(["link", "delete", &options.bridge]).status();
        let status = status.context("ip could not be run: install the package iproute2")?;
        if !status.success() {
            bail!("the bridge {} could not be deleted", options.bridge);
        }
    }
    let prefix = format!("{}-", options.bridge);
    for note in entries(Path::new("/var/lib/cni/results")) {
        if name_of(note.clone()).is_some_and(|name| name.starts_with(&prefix)) {
            fs::remove_file(note)?;
        }
    }
    remove_dir(&options.dir.join("cni/addresses"))
}

fn remove_dir(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| path.display().to_string())
        }
        _ => Ok(()),
    }
}

fn entries(path: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(path) else { return Vec::new() };
    entries.filter_map(Result::ok).map(|entry| entry.path()).collect()
}

#[expect(clippy::needless_pass_by_value, reason = "used as a map over owned paths")]
fn name_of(path: PathBuf) -> Option<String> {
    Some(path.file_name()?.to_str()?.to_owned())
}
