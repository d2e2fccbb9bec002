//! What this machine is and has, read from the kernel.

use std::fs;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;

use crate::container::resources::NodeResources;
use crate::settings::Settings;

/// Memory that must stay free: below it the node is under pressure (kubelet's default of `evictionHard`).
const MEMORY_RESERVE: u64 = 100 << 20;
/// Part of the disk that must stay free.
const DISK_RESERVE: f32 = 0.1;
/// Part of the inodes that must stay free.
const INODE_RESERVE: f64 = 0.05;

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
}

impl Machine {
    /// Reads everything; what cannot be read is empty or 0. The storage is that of `root_dir` or its nearest ancestor.
    pub fn read(root_dir: &Path) -> Self {
        let machine_id = [text("/etc/machine-id"), text("/var/lib/dbus/machine-id")];
        let machine_id = machine_id.into_iter().find(|id| !id.is_empty()).unwrap_or_default();
        let uuid = text("/sys/class/dmi/id/product_uuid");
        Self {
            cpus: std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64),
            memory: meminfo("MemTotal"),
            storage: disk(root_dir).map(|disk| disk.size).unwrap_or_default(),
            hugepages: hugepages(),
            system_uuid: if uuid.is_empty() { machine_id.clone() } else { uuid },
            machine_id,
            boot_id: text("/proc/sys/kernel/random/boot_id"),
            kernel: text("/proc/sys/kernel/osrelease"),
            os_image: os_image(),
        }
    }

    /// Bytes of memory that pods may use.
    pub fn allocatable_memory(&self) -> u64 {
        let huge: u64 = self.hugepages.iter().map(|(size, count)| size * count).sum();
        self.memory.saturating_sub(MEMORY_RESERVE).saturating_sub(huge)
    }

    /// Bytes of disk that pods may use.
    pub fn allocatable_storage(&self) -> u64 {
        self.storage - part(self.storage, f64::from(DISK_RESERVE))
    }

    /// What container configurations depend on.
    pub fn resources(&self) -> NodeResources {
        let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        NodeResources {
            memory: signed(self.memory),
            allocatable_cpu: signed(self.cpus.saturating_mul(1000)),
            allocatable_memory: signed(self.allocatable_memory()),
            allocatable_storage: signed(self.allocatable_storage()),
            hugepage_sizes: self.hugepages.iter().map(|(size, _)| *size).collect(),
            unified_cgroups: crate::cgroups::is_unified(),
            swap_controller: crate::cgroups::limits_swap(),
            ..NodeResources::default()
        }
    }
}

/// Part of a size, rounded down.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "as the kubelet computes it"
)]
fn part(size: u64, fraction: f64) -> u64 {
    (size as f64 * fraction) as u64
}

/// Which resources of the machine run short.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Less memory is available than must stay free.
    pub memory: bool,
    /// Less disk or fewer inodes.
    pub disk: bool,
}

/// Compares what is free with what must stay free.
pub fn pressure(root_dir: &Path) -> Pressure {
    let available = meminfo("MemAvailable");
    let disk = disk(root_dir).is_some_and(|disk| {
        disk.free < part(disk.size, f64::from(DISK_RESERVE)) || disk.free_inodes < part(disk.inodes, INODE_RESERVE)
    });
    Pressure { memory: available > 0 && available < MEMORY_RESERVE, disk }
}

struct Disk {
    size: u64,
    free: u64,
    inodes: u64,
    free_inodes: u64,
}

fn disk(path: &Path) -> Option<Disk> {
    // The directory may not have been made yet.
    let stat = path.ancestors().find_map(|path| rustix::fs::statvfs(path).ok())?;
    Some(Disk {
        size: stat.f_blocks * stat.f_frsize,
        free: stat.f_bavail * stat.f_frsize,
        inodes: stat.f_files,
        free_inodes: stat.f_ffree,
    })
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
        let machine = Machine { storage: 264_212_084 * 1024, memory: 24_684_096 * 1024, ..Default::default() };
        assert_eq!(machine.allocatable_storage(), 243_497_856_212);
        assert_eq!(machine.allocatable_memory(), 24_581_696 * 1024);
    }

    #[test]
    fn a_configured_address_wins() {
        let mut settings = Settings::new("n1");
        settings.node_ip = "192.0.2.7".parse().ok();
        assert_eq!(addresses(&settings), ["192.0.2.7".parse::<IpAddr>().unwrap()]);
    }
}
