//! Memory and CPU of one process, read from `/proc`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::Pid;

/// Resident and proportional memory in KiB.
pub struct Memory {
    /// VmRSS: every page that is mapped in.
    pub rss_kib: u64,
    /// Pss: shared pages counted by share.
    pub pss_kib: u64,
}

/// The memory of a process now.
pub fn memory(pid: i32) -> Result<Memory> {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).context("the process is gone")?;
    let field = |name: &str| -> Result<u64> {
        let line = rollup.lines().find(|line| line.starts_with(name)).with_context(|| format!("no {name}"))?;
        Ok(line.split_whitespace().nth(1).context("no number")?.parse()?)
    };
    Ok(Memory { rss_kib: field("Rss:")?, pss_kib: field("Pss:")? })
}

/// The share of one core, in percent, that a process used over this span.
pub async fn cpu_percent(pid: i32, span: Duration) -> Result<f64> {
    let usage = Usage::begin(pid)?;
    tokio::time::sleep(span).await;
    usage.percent()
}

/// What a process has of the processor from a moment on.
pub struct Usage {
    pid: i32,
    ticks: u64,
    began: Instant,
}

impl Usage {
    /// From now on.
    pub fn begin(pid: i32) -> Result<Self> {
        Ok(Self { pid, ticks: cpu_ticks(pid)?, began: Instant::now() })
    }

    /// The share of one core until now, in percent.
    pub fn percent(&self) -> Result<f64> {
        Ok(self.seconds()? / self.began.elapsed().as_secs_f64() * 100.0)
    }

    /// The time on processors until now, in seconds.
    pub fn seconds(&self) -> Result<f64> {
        let ticks = cpu_ticks(self.pid)? - self.ticks;
        Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
    }
}

/// The threads of a process.
pub fn threads(pid: i32) -> Result<Vec<Pid>> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/task")).context("the process is gone")?;
    let id = |entry: std::io::Result<std::fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse().ok();
    Ok(entries.filter_map(id).filter_map(Pid::from_raw).collect())
}

fn cpu_ticks(pid: i32) -> Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("the process is gone")?;
    let fields: Vec<&str> = stat.rsplit_once(')').context("stat")?.1.split_whitespace().collect();
    let tick = |at: usize| -> Result<u64> { Ok(fields.get(at).context("stat")?.parse()?) };
    Ok(tick(11)? + tick(12)?)
}
