//! What the kernel counts for a group of processes: files of cgroup v1 and v2.

use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::summary::{CpuStats, MemoryStats, SwapStats, Time};

/// Where cgroups are mounted, and in which version.
#[derive(Clone, Debug)]
pub struct Cgroups {
    root: PathBuf,
    unified: bool,
}

/// A reading; what could not be read is absent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GroupUsage {
    /// Processor time, without rate.
    pub cpu: Option<CpuStats>,
    /// Memory.
    pub memory: Option<MemoryStats>,
    /// Swap.
    pub swap: Option<SwapStats>,
    /// Tasks, threads included.
    pub tasks: Option<u64>,
}

impl Cgroups {
    /// The hierarchy below this folder, usually `/sys/fs/cgroup`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        let root = root.into();
        Self { unified: root.join("cgroup.controllers").is_file(), root }
    }

    /// Reads a group by its path from the root (`/kubepods/burstable/pod…`, `/` for the node).
    pub fn read(&self, group: &str, now: Timestamp) -> GroupUsage {
        GroupUsage {
            cpu: self.cpu(group).map(|nanoseconds| CpuStats {
                time: Some(Time(now)),
                usage_core_nano_seconds: Some(nanoseconds),
                ..Default::default()
            }),
            memory: self.memory(group, now),
            swap: self.swap(group, now),
            tasks: number(&self.file("pids", group, "pids.current")),
        }
    }

    /// Whether there is such a group.
    pub fn exists(&self, group: &str) -> bool {
        self.file("memory", group, "").is_dir()
    }

    /// Memory of a group.
    pub fn memory(&self, group: &str, now: Timestamp) -> Option<MemoryStats> {
        let stat = fs::read_to_string(self.file("memory", group, "memory.stat")).ok()?;
        let stat = |v1: &str, v2: &str| word(&stat, if self.unified { v2 } else { v1 });
        let (usage, limit) = if self.unified {
            (self.unified_usage(group)?, number(&self.file("", group, "memory.max")))
        } else {
            let usage = number(&self.file("memory", group, "memory.usage_in_bytes"))?;
            (usage, number(&self.file("memory", group, "memory.limit_in_bytes")))
        };
        let working_set = usage.saturating_sub(stat("total_inactive_file", "inactive_file").unwrap_or_default());
        // Without a limit v1 shows the largest number of pages.
        let limit = limit.filter(|limit| *limit < 1 << 62);
        Some(MemoryStats {
            time: Some(Time(now)),
            available_bytes: limit.map(|limit| limit.saturating_sub(working_set)),
            usage_bytes: Some(usage),
            working_set_bytes: Some(working_set),
            rss_bytes: stat("total_rss", "anon"),
            page_faults: stat("total_pgfault", "pgfault"),
            major_page_faults: stat("total_pgmajfault", "pgmajfault"),
        })
    }

    /// The root group of v2 has no counter of its own: there it is what is not free.
    fn unified_usage(&self, group: &str) -> Option<u64> {
        number(&self.file("", group, "memory.current")).or_else(|| {
            let is_root = group.trim_matches('/').is_empty();
            is_root.then(|| meminfo("MemTotal")?.checked_sub(meminfo("MemFree")?)).flatten()
        })
    }

    fn cpu(&self, group: &str) -> Option<u64> {
        if self.unified {
            let stat = fs::read_to_string(self.file("", group, "cpu.stat")).ok()?;
            word(&stat, "usage_usec")?.checked_mul(1000)
        } else {
            number(&self.file("cpuacct", group, "cpuacct.usage"))
        }
    }

    fn swap(&self, group: &str, now: Timestamp) -> Option<SwapStats> {
        let used = if self.unified {
            number(&self.file("", group, "memory.swap.current"))?
        } else {
            word(&fs::read_to_string(self.file("memory", group, "memory.stat")).ok()?, "total_swap")?
        };
        Some(SwapStats { time: Some(Time(now)), swap_usage_bytes: Some(used), ..Default::default() })
    }

    fn file(&self, controller: &str, group: &str, name: &str) -> PathBuf {
        let root = if self.unified { self.root.clone() } else { self.root.join(controller) };
        root.join(group.trim_start_matches('/')).join(name)
    }
}

/// A file that holds one number.
pub fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The number behind a word, one pair a line.
fn word(text: &str, wanted: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(wanted)?.strip_prefix(' ')?.trim().parse().ok())
}

/// A line of `/proc/meminfo` in bytes.
pub fn meminfo(wanted: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(wanted)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, files: &[(&str, &str)]) {
        for (path, text) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    #[test]
    fn version_1() {
        let directory = tempfile::tempdir().unwrap();
        write(
            directory.path(),
            &[
                ("memory/kubepods/poda/memory.usage_in_bytes", "1000\n"),
                ("memory/kubepods/poda/memory.limit_in_bytes", "2000\n"),
                (
                    "memory/kubepods/poda/memory.stat",
                    "inactive_file 9\ntotal_rss 500\ntotal_swap 7\ntotal_pgfault 3\ntotal_inactive_file 100\n",
                ),
                ("cpuacct/kubepods/poda/cpuacct.usage", "123456\n"),
                ("pids/kubepods/poda/pids.current", "4\n"),
            ],
        );
        let groups = Cgroups::new(directory.path());
        let usage = groups.read("/kubepods/poda", Timestamp::UNIX_EPOCH);
        let memory = usage.memory.unwrap();
        assert_eq!((memory.usage_bytes, memory.working_set_bytes), (Some(1000), Some(900)));
        assert_eq!((memory.available_bytes, memory.rss_bytes, memory.page_faults), (Some(1100), Some(500), Some(3)));
        assert_eq!(memory.major_page_faults, None);
        assert_eq!(usage.cpu.unwrap().usage_core_nano_seconds, Some(123_456));
        assert_eq!((usage.swap.unwrap().swap_usage_bytes, usage.tasks), (Some(7), Some(4)));
        assert!(groups.exists("/kubepods/poda") && !groups.exists("/kubepods/podb"));
        assert_eq!(groups.read("/kubepods/podb", Timestamp::UNIX_EPOCH), GroupUsage::default());
    }

    #[test]
    fn version_2() {
        let directory = tempfile::tempdir().unwrap();
        write(
            directory.path(),
            &[
                ("cgroup.controllers", "cpu memory pids\n"),
                ("memory.stat", "anon 5\ninactive_file 1\n"),
                ("kubepods/poda/memory.current", "50\n"),
                ("kubepods/poda/memory.max", "max\n"),
                ("kubepods/poda/memory.stat", "anon 500\ninactive_file 100\npgmajfault 2\n"),
                ("kubepods/poda/cpu.stat", "usage_usec 12\nuser_usec 1\n"),
            ],
        );
        let groups = Cgroups::new(directory.path());
        let usage = groups.read("/kubepods/poda", Timestamp::UNIX_EPOCH);
        let memory = usage.memory.unwrap();
        // The two files are not read at the same moment.
        assert_eq!((memory.working_set_bytes, memory.available_bytes), (Some(0), None));
        assert_eq!((memory.rss_bytes, memory.major_page_faults), (Some(500), Some(2)));
        assert_eq!(usage.cpu.unwrap().usage_core_nano_seconds, Some(12_000));
        assert_eq!((usage.swap, usage.tasks), (None, None));
        assert!(groups.memory("/", Timestamp::UNIX_EPOCH).unwrap().usage_bytes.unwrap() > 1 << 20);
    }
}
