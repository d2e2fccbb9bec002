//! A network namespace for edgecore, and the kernel's own loss of packets on the way to it and back.
#![allow(clippy::panic, reason = "a test's fixture fails by panicking")]

use std::cell::Cell;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::process::Command;
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::deployment::Layout;

/// The interface in the namespace.
const INSIDE: &str = "cloud";

/// What names of namespaces begin with; the process that made it follows.
const PREFIX: &str = "ferroedge-link-";

/// How much is lost: 0 is nothing, 1 is everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Loss {
    /// On the way to the cloud.
    pub up: f64,
    /// On the way to the edge.
    pub down: f64,
}

/// The namespace and the pair of interfaces that leads there; dropping it deletes both.
pub struct LossyLink {
    namespace: String,
    cloud: Ipv4Addr,
    /// Packets that were lost under earlier rules.
    lost: Cell<u64>,
}

impl LossyLink {
    /// A link without loss, for the site with this number.
    ///
    /// # Errors
    /// It needs root.
    pub fn create(number: u8) -> Result<Self> {
        sweep()?;
        let id = std::process::id();
        // Beyond what the pods of that site use.
        let [cloud, edge] = [1, 2].map(|host| Ipv4Addr::new(10, 100 + number, 255, host));
        // An interface's name has at most 15 characters.
        let outside = format!("fel{id}n{number}");
        let link = Self { namespace: format!("{PREFIX}{id}-{number}"), cloud, lost: Cell::new(0) };
        let namespace = link.namespace.as_str();
        ip(&["netns", "add", namespace])?;
        ip(&["link", "add", &outside, "type", "veth", "peer", "name", INSIDE, "netns", namespace])?;
        ip(&["addr", "add", &format!("{cloud}/30"), "dev", &outside])?;
        ip(&["link", "set", &outside, "up"])?;
        ip(&["-n", namespace, "addr", "add", &format!("{edge}/30"), "dev", INSIDE])?;
        ip(&["-n", namespace, "link", "set", INSIDE, "up"])?;
        ip(&["-n", namespace, "link", "set", "lo", "up"])?;
        Ok(link)
    }

    /// From now on cloudcore listens at the near end, and edgecore runs behind the far end.
    pub fn lies_between(&self, layout: &mut Layout) {
        layout.set_apart(self.cloud.into(), &self.namespace);
    }

    /// From now on cloudcore listens at the near end; edgecore stays on this side, and what goes by a [`Detour`] comes over the link.
    pub fn lies_aside(&self, layout: &mut Layout) {
        layout.meet_at(self.cloud.into());
    }

    /// A port on this side that leads into the namespace, and from there over the link to this port of the cloud.
    ///
    /// # Errors
    /// It needs root.
    pub fn detour(&self, port: u16) -> Result<Detour> {
        let listener = std::net::TcpListener::bind((self.cloud, 0))?;
        listener.set_nonblocking(true)?;
        let (address, target) = (listener.local_addr()?, SocketAddr::from((self.cloud, port)));
        let namespace = File::open(format!("/run/netns/{}", self.namespace))?;
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        // A socket belongs to the namespace of the thread that makes it.
        let thread = std::thread::spawn(move || -> Result<()> {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(stopped.run_until_cancelled(lead(listener, target))).unwrap_or(Ok(()))
        });
        Ok(Detour { address, stop, thread: Some(thread) })
    }

    /// Loses so much from now on.
    pub fn set(&self, loss: Loss) {
        let rules = [("OUTPUT", "-o", loss.up), ("INPUT", "-i", loss.down)].map(|(chain, interface, loss)| {
            let rule =
                format!("-A {chain} {interface} {INSIDE} -m statistic --mode random --probability {loss} -j DROP");
            if loss > 0.0 { rule } else { String::new() }
        });
        self.lost.set(self.lost());
        self.restore(&format!("*filter\n{}\nCOMMIT\n", rules.join("\n"))).expect("iptables");
    }

    /// Packets that were lost so far.
    pub fn lost(&self) -> u64 {
        let arguments = ["netns", "exec", &self.namespace, "iptables", "-nvxL"];
        let output = Command::new("ip").args(arguments).output().expect("ip (iproute2)");
        let text = String::from_utf8_lossy(&output.stdout);
        let rules = text.lines().filter(|line| line.contains("DROP"));
        let now: u64 = rules.filter_map(|rule| rule.split_whitespace().next()?.parse::<u64>().ok()).sum();
        self.lost.get() + now
    }

    /// Puts these rules in the place of all others of the namespace, in one step.
    fn restore(&self, rules: &str) -> Result<()> {
        use std::io::Write;
        let mut child = Command::new("ip")
            .args(["netns", "exec", &self.namespace, "iptables-restore"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .context("ip (iproute2)")?;
        child.stdin.take().context("no standard input")?.write_all(rules.as_bytes())?;
        match child.wait()? {
            status if status.success() => Ok(()),
            status => bail!("iptables-restore: {status}"),
        }
    }
}

/// A way over the link for who is not in its namespace; dropping it ends it.
pub struct Detour {
    address: SocketAddr,
    stop: CancellationToken,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Detour {
    /// Where it begins.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Detour {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(Ok(Err(error))) = self.thread.take().map(JoinHandle::join) {
            eprintln!("a detour: {error:#}");
        }
    }
}

async fn lead(listener: std::net::TcpListener, target: SocketAddr) -> Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let mut connections = JoinSet::new();
    loop {
        let (mut near, _) = listener.accept().await?;
        while connections.try_join_next().is_some() {}
        connections.spawn(async move {
            if let Ok(mut far) = TcpStream::connect(target).await {
                let _ = (near.set_nodelay(true), far.set_nodelay(true));
                // How it ends both sides see.
                let _ = copy_bidirectional(&mut near, &mut far).await;
            }
        });
    }
}

impl Drop for LossyLink {
    fn drop(&mut self) {
        // The pair of interfaces goes with the namespace.
        if let Err(error) = ip(&["netns", "del", &self.namespace]) {
            eprintln!("{error:#}");
        }
    }
}

/// Deletes what processes left behind that were killed.
fn sweep() -> Result<()> {
    let output = Command::new("ip").args(["netns", "list"]).output().context("ip (iproute2)")?;
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let namespace = line.split_whitespace().next().unwrap_or_default();
        let owner = namespace.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !std::path::Path::new("/proc").join(pid).exists()) {
            ip(&["netns", "del", namespace])?;
        }
    }
    Ok(())
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(arguments).output().context("ip (iproute2)")?;
    if !output.status.success() {
        bail!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
