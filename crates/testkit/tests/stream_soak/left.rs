//! What the programs have of streams at a moment: gauges, tasks, open files, memory, processes in containers.

use std::fmt;
use std::time::Duration;

use http_body_util::BodyExt;
use testkit::deployment::edgecore_name;
use testkit::door::Door;
use testkit::processes;
use testkit::site::Site;

/// Tasks and files that come and go by themselves: connections of kubelet and API that are kept for the next request.
const SLACK: u64 = 6;
/// KiB that a program may have grown by: what its allocator keeps.
const GROWTH: u64 = 24 << 10;

/// Of one program.
#[derive(Clone, Copy, Debug, Default)]
struct Program {
    streams: u64,
    tasks: u64,
    files: u64,
    /// KiB.
    memory: u64,
}

/// Of both, and the processes that execs have begun.
#[derive(Clone, Copy, Debug, Default)]
pub struct Left {
    cloudcore: Program,
    edgecore: Program,
    /// Nodes that have one.
    pub tunnels: u64,
    processes: u64,
}

impl Program {
    fn now(site: &Site, name: &str, door: Door, streams: &str) -> (Self, String) {
        let pid = site.deployment.as_ref().and_then(|running| running.children.pid(name)).expect("it runs");
        let page = site.runtime.block_on(async {
            let mut connection = door.open().await?;
            let body = connection.get("/metrics").await?.collect().await?.to_bytes();
            anyhow::Ok(String::from_utf8_lossy(&body).into_owned())
        });
        let page = page.expect("metrics");
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let memory =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok());
        let files = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs").count() as u64;
        let (streams, tasks) = (value(&page, streams), value(&page, "ferroedge_tasks"));
        (Self { streams, tasks, files, memory: memory.expect("its memory") }, page)
    }

    fn max(self, other: Self) -> Self {
        Self {
            streams: self.streams.max(other.streams),
            tasks: self.tasks.max(other.tasks),
            files: self.files.max(other.files),
            memory: self.memory.max(other.memory),
        }
    }

    fn is_back(self, before: Self) -> bool {
        self.streams == 0
            && self.tasks <= before.tasks + SLACK
            && self.files <= before.files + SLACK
            && self.memory <= before.memory + GROWTH
    }
}

impl Left {
    /// At this moment.
    pub fn now(site: &Site, marker: &str) -> Self {
        let deployment = site.deployment.as_ref().expect("running");
        let cloud = Door::of_monitor(deployment).expect("its address");
        let node = Door::of_node(deployment).expect("its address");
        let (cloudcore, page) = Program::now(site, "cloudcore", cloud, "ferroedge_cloudstream_open_streams");
        let (edgecore, _) = Program::now(site, &edgecore_name(1), node, "edged_open_streams");
        let marked = |pid: &i32| {
            let is_shell = processes::program(*pid).is_some_and(|program| program == "sh");
            is_shell && processes::command_line(*pid).iter().any(|word| word == marker.as_bytes())
        };
        let processes = processes::all().iter().filter(|pid| marked(pid)).count() as u64;
        Self { cloudcore, edgecore, tunnels: value(&page, "ferroedge_cloudstream_tunnels"), processes }
    }

    /// When no stream is open.
    pub fn settled(site: &Site, marker: &str) -> Self {
        let mut now = Self::now(site, marker);
        site.until("streams to end", || {
            now = Self::now(site, marker);
            now.cloudcore.streams + now.edgecore.streams + now.processes == 0
        });
        // What ends just after them.
        site.pass(Duration::from_secs(1));
        Self::now(site, marker)
    }

    /// The higher of both everywhere.
    pub fn max(self, other: Self) -> Self {
        Self {
            cloudcore: self.cloudcore.max(other.cloudcore),
            edgecore: self.edgecore.max(other.edgecore),
            tunnels: self.tunnels.max(other.tunnels),
            processes: self.processes.max(other.processes),
        }
    }

    /// There is no more than before.
    pub fn is_gone(&self, before: &Self) -> bool {
        self.cloudcore.is_back(before.cloudcore)
            && self.edgecore.is_back(before.edgecore)
            && self.tunnels <= 1
            && self.processes == 0
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { streams, tasks, files, memory } = self;
        write!(f, "{streams} streams, {tasks} tasks, {files} files, {:.1} MB", *memory as f64 / 1024.0)
    }
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cloudcore, edgecore, tunnels, processes } = self;
        write!(f, "cloudcore {cloudcore}; edgecore {edgecore}; {tunnels} nodes with a tunnel; {processes} processes")
    }
}

fn value(page: &str, name: &str) -> u64 {
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse::<f64>().ok());
    line.unwrap_or_else(|| panic!("no {name} in {page}")) as u64
}
