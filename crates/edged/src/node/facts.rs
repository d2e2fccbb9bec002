//! What this machine is and has, read from the kernel.

use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;

use podlife::eviction::{Signal, Threshold};

use crate::container::resources::NodeResources;
use crate::settings::{EvictionSettings, Reserved, Settings};

/// A machine's identity and capacity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Processors.
    pub cpus: u64,
    /// Bytes of memory.
    pub memory: u64,
    /// Bytes of the file system of the root directory.
    pub storage: u64,
    /// Sizes of huge pages and how many there are.
    pub hugepages: Vec<(u64, u64)>,
    /// `/etc/machine-id`.
    pub machine_id: String,
    /// Given by the firmware; the machine id where there is none.
    pub system_uuid: String,
    /// New at each boot.
    pub boot_id: String,
    /// `uname -r`.
    pub kernel: String,
    /// `PRETTY_NAME` of the distribution.
    pub os_image: String,
    /// What pods do not get: what is reserved, and what must stay free.
    pub kept: Reserved,
}

impl Machine {
    /// Reads everything; what cannot be read is empty or 0. The storage is that of `root_dir` or its nearest ancestor. Kept from
    /// pods is what upstream keeps by default.
    pub fn read(root_dir: &Path) -> Self {
        let machine_id = [text("/etc/machine-id"), text("/var/lib/dbus/machine-id")];
        let machine_id = machine_id.into_iter().find(|id| !id.is_empty()).unwrap_or_default();
        let uuid = text("/sys/class/dmi/id/product_uuid");
        let machine = Self {
            cpus: std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64),
            memory: meminfo("MemTotal"),
            storage: disk_size(root_dir).unwrap_or_default(),
            hugepages: hugepages(),
            system_uuid: if uuid.is_empty() { machine_id.clone() } else { uuid },
            machine_id,
            boot_id: text("/proc/sys/kernel/random/boot_id"),
            kernel: text("/proc/sys/kernel/osrelease"),
            os_image: os_image(),
            kept: Reserved::default(),
        };
        machine.keeping(Reserved::default(), &EvictionSettings::default().thresholds)
    }

    /// The same machine, with what these settings keep from pods.
    pub fn reserving(self, settings: &Settings) -> Self {
        self.keeping(settings.reserved, &settings.eviction.thresholds)
    }

    fn keeping(mut self, reserved: Reserved, thresholds: &[Threshold]) -> Self {
        let hard = |signal, capacity| {
            let found = thresholds.iter().find(|threshold| threshold.signal == signal && threshold.is_hard());
            found.map_or(0, |threshold| threshold.value.of(capacity))
        };
        self.kept = Reserved {
            memory: reserved.memory.saturating_add(hard(Signal::MemoryAvailable, self.memory)),
            ephemeral_storage: reserved.ephemeral_storage.saturating_add(hard(Signal::NodeFsAvailable, self.storage)),
            ..reserved
        };
        self
    }

    /// Thousandths of processors that pods may use.
    pub fn allocatable_cpu(&self) -> u64 {
        self.cpus.saturating_mul(1000).saturating_sub(self.kept.cpu)
    }

    /// Bytes of memory that pods may use.
    pub fn allocatable_memory(&self) -> u64 {
        let huge: u64 = self.hugepages.iter().map(|(size, count)| size * count).sum();
        self.memory.saturating_sub(self.kept.memory).saturating_sub(huge)
    }

    /// Bytes of disk that pods may use.
    pub fn allocatable_storage(&self) -> u64 {
        self.storage.saturating_sub(self.kept.ephemeral_storage)
    }

    /// What container configurations depend on.
    pub fn resources(&self) -> NodeResources {
        let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        NodeResources {
            memory: signed(self.memory),
            allocatable_cpu: signed(self.allocatable_cpu()),
            allocatable_memory: signed(self.allocatable_memory()),
            allocatable_storage: signed(self.allocatable_storage()),
            hugepage_sizes: self.hugepages.iter().map(|(size, _)| *size).collect(),
            unified_cgroups: crate::cgroups::is_unified(),
            swap_controller: crate::cgroups::limits_swap(),
            ..NodeResources::default()
        }
    }
}

/// Size of the file system of a directory, which may not have been made yet.
fn disk_size(path: &Path) -> Option<u64> {
    let stat = path.ancestors().find_map(|path| rustix::fs::statvfs(path).ok())?;
    Some(stat.f_blocks * stat.f_frsize)
}

fn text(path: &str) -> String {
    fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// A line of `/proc/meminfo` in bytes.
fn meminfo(name: &str) -> u64 {
    let text = text("/proc/meminfo");
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or_default() * 1024
}

fn hugepages() -> Vec<(u64, u64)> {
    let entries = fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
    let mut found: Vec<(u64, u64)> = entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let kibibytes: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
            let count = fs::read_to_string(entry.path().join("nr_hugepages")).ok()?.trim().parse().ok()?;
            Some((kibibytes * 1024, count))
        })
        .collect();
    found.sort_unstable();
    found
}

fn os_image() -> String {
    let release = text("/etc/os-release");
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map(|name| name.trim_matches('"').to_owned()).unwrap_or_else(|| "Linux".into())
}

/// The architecture in Go's words, as images and labels have it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "riscv64gc" => "riscv64",
        other => other,
    }
}

/// Addresses of the node: the configured one, else the node name if it is one, else that of the default route, else any
/// that is not loopback. Asked anew each time, since addresses change under a running agent.
pub fn addresses(settings: &Settings) -> Vec<IpAddr> {
    if let Some(ip) = settings.node_ip.or_else(|| settings.node_name.parse().ok()) {
        return vec![ip];
    }
    // Connecting a datagram socket sends nothing; it only asks the kernel for the route.
    let routed = |from: &str, to: &str| {
        let socket = UdpSocket::bind(from).ok()?;
        socket.connect(to.parse::<SocketAddr>().ok()?).ok()?;
        Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
    };
    let found = routed("0.0.0.0:0", "192.0.2.1:9").or_else(|| routed("[::]:0", "[2001:db8::1]:9"));
    found.or_else(local_address).into_iter().collect()
}

/// The first address of an interface other than loopback, from the kernel's table of local routes.
fn local_address() -> Option<IpAddr> {
    let table = fs::read_to_string("/proc/net/fib_trie").ok()?;
    let mut candidate = None;
    for line in table.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["|--", address] => candidate = address.parse::<IpAddr>().ok(),
            ["/32", "host", "LOCAL"] => {
                if let Some(address) = candidate.filter(|address| !address.is_loopback()) {
                    return Some(address);
                }
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine() {
        let machine = Machine::read(Path::new("/no/such/directory"));
        assert!(machine.cpus > 0 && machine.memory > 64 << 20 && machine.storage > 0);
        assert!(!machine.boot_id.is_empty() && !machine.kernel.is_empty());
    }

    #[test]
    fn storage_as_the_kubelet_reserves_it() {
        let machine = Machine { cpus: 2, storage: 264_212_084 * 1024, memory: 24_684_096 * 1024, ..Default::default() };
        let mut settings = Settings::new("n1");
        let default = machine.clone().reserving(&settings);
        assert_eq!(default.allocatable_storage(), 243_497_856_212);
        assert_eq!((default.allocatable_memory(), default.allocatable_cpu()), (24_581_696 * 1024, 2000));
        settings.reserved = Reserved { cpu: 250, memory: 1 << 30, ephemeral_storage: u64::MAX, pid: 0 };
        let reserved = machine.reserving(&settings);
        assert_eq!(reserved.allocatable_memory(), 24_581_696 * 1024 - (1 << 30));
        assert_eq!((reserved.allocatable_cpu(), reserved.allocatable_storage()), (1750, 0));
    }

    #[test]
    fn a_configured_address_wins() {
        let mut settings = Settings::new("n1");
        settings.node_ip = "192.0.2.7".parse().ok();
        assert_eq!(addresses(&settings), ["192.0.2.7".parse::<IpAddr>().unwrap()]);
    }
}
