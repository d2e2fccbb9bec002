//! Usage of the node itself, from files of the kernel: cheap enough to be read every few seconds.

use std::fs;
use std::path::Path;

use jiff::{SignedDuration, Timestamp};

use super::cgroup::{Cgroups, meminfo, number};
use super::files;
use super::summary::{
    ContainerStats, ContainerUsage, InterfaceStats, NetworkStats, NodeUsage, RlimitStats, SwapStats, Time,
};

/// Everything but the rate of the processors and the runtime's file systems.
pub fn usage(cgroups: &Cgroups, root_dir: &Path, now: Timestamp) -> NodeUsage {
    let group = cgroups.read("/", now);
    let memory = group.memory.map(|mut memory| {
        let capacity = meminfo("MemTotal");
        memory.available_bytes = capacity.zip(memory.working_set_bytes).map(|(all, used)| all.saturating_sub(used));
        memory
    });
    NodeUsage {
        start_time: boot_time(),
        cpu: group.cpu,
        memory,
        network: network(Path::new("/proc/net"), now),
        fs: files::file_system(root_dir, now),
        runtime: None,
        rlimit: processes(now),
        swap: swap(now),
    }
}

/// The agent's own group, and that of all pods together.
pub fn system_containers(cgroups: &Cgroups, pods: &str, now: Timestamp) -> Vec<ContainerStats> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        (controllers.is_empty() || controllers.split(',').any(|name| name == "memory")).then_some(path)
    });
    let started = boot_time();
    let groups =
        [("kubelet", own.filter(|path| *path != "/")), ("pods", Some(pods).filter(|group| cgroups.exists(group)))];
    let known = groups.into_iter().filter_map(|(name, group)| Some((name, cgroups.read(group?, now))));
    known
        .map(|(name, usage)| ContainerStats {
            name: name.to_owned(),
            usage: ContainerUsage {
                start_time: started,
                cpu: usage.cpu,
                memory: usage.memory,
                swap: usage.swap,
                ..Default::default()
            },
            ..Default::default()
        })
        .collect()
}

fn boot_time() -> Option<Time> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let seconds = stat.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())?;
    Timestamp::from_second(seconds).ok().map(Time)
}

/// Tasks of the node and how many there may be.
pub fn processes(now: Timestamp) -> Option<RlimitStats> {
    let limits = ["/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max"].map(Path::new);
    let max_pid = limits.into_iter().filter_map(number).min()?;
    // "0.10 0.20 0.30 running/all last-pid"
    let load = fs::read_to_string("/proc/loadavg").ok()?;
    let running = load.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()?;
    Some(RlimitStats { time: Some(Time(now)), max_pid: i64::try_from(max_pid).ok(), running: Some(running) })
}

fn swap(now: Timestamp) -> Option<SwapStats> {
    let (total, free) = (meminfo("SwapTotal")?, meminfo("SwapFree")?);
    Some(SwapStats {
        time: Some(Time(now)),
        swap_available_bytes: Some(free),
        swap_usage_bytes: Some(total.saturating_sub(free)),
    })
}

/// Interfaces other than loopback; the default one is that of the default route.
pub fn network(folder: &Path, now: Timestamp) -> Option<NetworkStats> {
    let counters = fs::read_to_string(folder.join("dev")).ok()?;
    let interfaces: Vec<InterfaceStats> = counters.lines().filter_map(interface).collect();
    let routes = fs::read_to_string(folder.join("route")).unwrap_or_default();
    let default = routes.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let name = words.next()?;
        (words.next()? == "00000000").then_some(name)
    });
    let default = interfaces.iter().find(|interface| interface.name.as_deref() == default);
    Some(NetworkStats {
        time: Some(Time(now)),
        default: default.or(interfaces.first()).cloned(),
        interfaces: Some(interfaces),
    })
}

/// `eth0: bytes packets errs drop fifo frame compressed multicast bytes packets errs …`
fn interface(line: &str) -> Option<InterfaceStats> {
    let (name, counters) = line.split_once(':')?;
    let counters: Vec<u64> = counters.split_whitespace().map_while(|word| word.parse().ok()).collect();
    let name = name.trim();
    (name != "lo" && counters.len() > 10).then(|| InterfaceStats {
        name: Some(name.to_owned()),
        rx_bytes: Some(counters[0]),
        rx_errors: Some(counters[2]),
        tx_bytes: Some(counters[8]),
        tx_errors: Some(counters[10]),
    })
}

/// The time that many nanoseconds after 1970, as CRI counts.
pub fn time(nanoseconds: i64) -> Option<Time> {
    (nanoseconds > 0)
        .then(|| Timestamp::UNIX_EPOCH.checked_add(SignedDuration::from_nanos(nanoseconds)).ok().map(Time))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_node() {
        let now = Timestamp::now();
        let usage = usage(&Cgroups::new("/sys/fs/cgroup"), Path::new("/"), now);
        let memory = usage.memory.unwrap();
        assert!(memory.available_bytes > Some(1 << 20) && memory.working_set_bytes > Some(1 << 20));
        assert!(usage.cpu.unwrap().usage_core_nano_seconds > Some(0));
        let processes = usage.rlimit.unwrap();
        assert!(processes.running > Some(1) && processes.max_pid > processes.running);
        assert!(usage.start_time.unwrap().0 < now);
    }

    #[test]
    fn interfaces() {
        let directory = tempfile::tempdir().unwrap();
        let dev = "Inter-|   Receive\n face |bytes\n    lo: 1 0 0 0 0 0 0 0 1 0 0 0 0 0 0 0\n  br0: 9 0 0 0 0 0 0 0 8 0 0 0 0 0 0 0\n  eth0: 10 2 3 0 0 0 0 0 20 5 6 0 0 0 0 0\n";
        fs::write(directory.path().join("dev"), dev).unwrap();
        let route = "Iface\tDestination\tGateway\nbr0\t000200C0\t0\neth0\t00000000\t010200C0\n";
        fs::write(directory.path().join("route"), route).unwrap();
        let network = network(directory.path(), Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(network.interfaces.unwrap().len(), 2);
        let default = network.default.unwrap();
        assert_eq!(default.name.as_deref(), Some("eth0"));
        assert_eq!(
            (default.rx_bytes, default.rx_errors, default.tx_bytes, default.tx_errors),
            (Some(10), Some(3), Some(20), Some(6))
        );
    }
}
