//! Limits as the files and properties that set them.

/// Microseconds of a scheduling period.
const PERIOD: i64 = 100_000;
/// What systemd takes for no limit.
const INFINITY: u64 = u64::MAX;

/// What the processes of a cgroup get together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Share of the processor against its neighbours, `cpu.shares`.
    pub cpu_shares: i64,
    /// Microseconds of processor in a period of 100 ms.
    pub cpu_quota: Option<i64>,
    /// Bytes.
    pub memory: Option<i64>,
    /// Processes.
    pub pids: Option<i64>,
    /// Bytes of huge pages by the size's name (`2MB`).
    pub hugepages: Vec<(String, u64)>,
}

impl Limits {
    /// What allows all that either allows.
    pub fn widest(&self, other: &Self) -> Self {
        let most = |a: Option<i64>, b: Option<i64>| a.zip(b).map(|(a, b)| a.max(b));
        Self {
            cpu_shares: self.cpu_shares.max(other.cpu_shares),
            cpu_quota: most(self.cpu_quota, other.cpu_quota),
            memory: most(self.memory, other.memory),
            pids: most(self.pids, other.pids),
            hugepages: other.hugepages.clone(),
        }
    }
}

/// One file of a cgroup: controller, name, text.
pub(super) type File = (&'static str, String, String);

/// `cpu.weight` of version 2 for shares of version 1.
pub fn weight(shares: i64) -> i64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

/// The files that set these limits; a limit that is not there is lifted.
pub(super) fn files(limits: &Limits, unified: bool) -> Vec<File> {
    let number = |value: Option<i64>, none: &str| value.map_or_else(|| none.to_owned(), |value| value.to_string());
    let mut files: Vec<File> = if unified {
        vec![
            ("cpu", "cpu.weight".into(), weight(limits.cpu_shares).to_string()),
            ("cpu", "cpu.max".into(), format!("{} {PERIOD}", number(limits.cpu_quota, "max"))),
            ("memory", "memory.max".into(), number(limits.memory, "max")),
        ]
    } else {
        vec![
            ("cpu", "cpu.shares".into(), limits.cpu_shares.to_string()),
            ("cpu", "cpu.cfs_period_us".into(), PERIOD.to_string()),
            ("cpu", "cpu.cfs_quota_us".into(), number(limits.cpu_quota, "-1")),
            ("memory", "memory.limit_in_bytes".into(), number(limits.memory, "-1")),
        ]
    };
    files.push(("pids", "pids.max".into(), number(limits.pids, "max")));
    for (size, bytes) in &limits.hugepages {
        let name = if unified { format!("hugetlb.{size}.max") } else { format!("hugetlb.{size}.limit_in_bytes") };
        files.push(("hugetlb", name, bytes.to_string()));
    }
    files
}

/// The same as properties of a systemd unit, in the notation of `busctl`: name, type, value.
pub(super) fn properties(limits: &Limits, unified: bool) -> Vec<[String; 3]> {
    let unsigned = |value: Option<i64>| value.and_then(|value| u64::try_from(value).ok()).unwrap_or(INFINITY);
    let (cpu, memory) = if unified { ("CPUWeight", "MemoryMax") } else { ("CPUShares", "MemoryLimit") };
    let share = if unified { weight(limits.cpu_shares) } else { limits.cpu_shares };
    // systemd counts per second, in steps of 10 ms.
    let quota = limits.cpu_quota.map(|quota| (quota.saturating_mul(1_000_000) / PERIOD + 9_999) / 10_000 * 10_000);
    [
        (cpu, unsigned(Some(share))),
        ("CPUQuotaPerSecUSec", unsigned(quota)),
        (memory, unsigned(limits.memory)),
        ("TasksMax", unsigned(limits.pids)),
    ]
    .map(|(name, value)| [name.to_owned(), "t".to_owned(), value.to_string()])
    .to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(limits: &Limits, unified: bool) -> Vec<String> {
        files(limits, unified).into_iter().map(|(dir, name, text)| format!("{dir}/{name}={text}")).collect()
    }

    #[test]
    fn both_versions() {
        let limits = Limits {
            cpu_shares: 256,
            cpu_quota: Some(50_000),
            memory: Some(1 << 20),
            pids: Some(100),
            hugepages: vec![("2MB".into(), 4 << 20)],
        };
        assert_eq!(
            lines(&limits, false),
            [
                "cpu/cpu.shares=256",
                "cpu/cpu.cfs_period_us=100000",
                "cpu/cpu.cfs_quota_us=50000",
                "memory/memory.limit_in_bytes=1048576",
                "pids/pids.max=100",
                "hugetlb/hugetlb.2MB.limit_in_bytes=4194304"
            ]
        );
        assert_eq!(
            lines(&limits, true),
            [
                "cpu/cpu.weight=10",
                "cpu/cpu.max=50000 100000",
                "memory/memory.max=1048576",
                "pids/pids.max=100",
                "hugetlb/hugetlb.2MB.max=4194304"
            ]
        );
        let open = Limits { cpu_shares: 2, ..Default::default() };
        assert!(lines(&open, false).contains(&"cpu/cpu.cfs_quota_us=-1".to_owned()));
        assert_eq!(lines(&open, true)[..3], ["cpu/cpu.weight=1", "cpu/cpu.max=max 100000", "memory/memory.max=max"]);
    }

    #[test]
    fn systemd() {
        let limits = Limits { cpu_shares: 1024, cpu_quota: Some(12_345), ..Default::default() };
        let text = |unified| properties(&limits, unified).iter().map(|p| p.join(" ")).collect::<Vec<_>>();
        assert_eq!(
            text(true),
            [
                "CPUWeight t 39",
                "CPUQuotaPerSecUSec t 130000",
                "MemoryMax t 18446744073709551615",
                "TasksMax t 18446744073709551615"
            ]
        );
        assert_eq!(text(false)[0], "CPUShares t 1024");
        assert_eq!(text(false)[2], "MemoryLimit t 18446744073709551615");
    }
}
