//! Which addresses the pods of a deployment get: 10.NETWORK.NODE.0/24, NETWORK being one that nothing else here uses.
//!
//! A claim is a file among the deployment's sockets. It lasts as long as the bridges of the nodes may: until `down` or a reboot.

use std::collections::BTreeSet;
use std::fs::File;
use std::ops::RangeInclusive;
use std::path::Path;

use anyhow::{Context, Result};

/// What is tried, in this order.
const CANDIDATES: RangeInclusive<u8> = 86..=99;
/// Wider routes, such as a VPN's 10.0.0.0/8, give way to a bridge's.
const WIDEST: u32 = 0xffff_0000;

/// The network of this run: the one claimed before, or a free one.
pub(super) fn claim(sockets: &Path) -> Result<u8> {
    let choosing = lock()?;
    if let Some(network) = claimed(sockets) {
        return Ok(network);
    }
    let mut taken = routed(&std::fs::read_to_string("/proc/net/route").unwrap_or_default());
    let others = sockets.parent().and_then(|all| std::fs::read_dir(all).ok()).into_iter().flatten().flatten();
    taken.extend(others.filter_map(|other| claimed(&other.path())));
    let network = free(&taken).with_context(|| {
        let (first, last) = (CANDIDATES.start(), CANDIDATES.end());
        format!("no network from 10.{first}.0.0/16 to 10.{last}.0.0/16 is free for pods: stop another deployment first")
    })?;
    let file = sockets.join("network");
    std::fs::create_dir_all(sockets).with_context(|| sockets.display().to_string())?;
    std::fs::write(&file, network.to_string()).with_context(|| file.display().to_string())?;
    drop(choosing);
    Ok(network)
}

/// Deployments that start at once choose one after the other, while they hold this.
pub(super) fn lock() -> Result<File> {
    File::open("/run").and_then(|run| run.lock().map(|()| run)).context("locking /run")
}

/// What the deployment with these sockets has claimed.
pub(super) fn claimed(sockets: &Path) -> Option<u8> {
    std::fs::read_to_string(sockets.join("network")).ok()?.trim().parse().ok()
}

/// The one that is used when nothing is claimed.
pub(super) fn usual() -> u8 {
    *CANDIDATES.start()
}

fn free(taken: &BTreeSet<u8>) -> Option<u8> {
    CANDIDATES.into_iter().find(|network| !taken.contains(network))
}

/// The candidates that this machine has a route into; `table` is `/proc/net/route`.
fn routed(table: &str) -> BTreeSet<u8> {
    let mut found = BTreeSet::new();
    for line in table.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // Addresses in network byte order, printed as numbers of this machine.
        let address = |at: usize| -> Option<u32> {
            let number = u32::from_str_radix(fields.get(at)?, 16).ok()?;
            Some(u32::from_be_bytes(number.to_ne_bytes()))
        };
        let (Some(destination), Some(mask)) = (address(1), address(7)) else { continue };
        let [first, second, ..] = destination.to_be_bytes();
        if mask >= WIDEST && first == 10 && CANDIDATES.contains(&second) {
            found.insert(second);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTES: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0
tun0\t0000000A\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0
cni0\t0001560A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
eth1\t0000580A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
eth2\t0001A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
";

    #[test]
    fn networks_that_the_machine_routes_are_taken() {
        // 10.86.1.0/24 and 10.88.0.0/16; neither the default route nor 10.0.0.0/8 takes them all.
        assert_eq!(routed(ROUTES), BTreeSet::from([86, 88]));
        assert_eq!(free(&routed(ROUTES)), Some(87));
        assert_eq!(free(&CANDIDATES.collect()), None);
    }

    #[test]
    fn deployments_side_by_side_get_different_networks_and_keep_them() {
        let run = tempfile::tempdir().expect("folder");
        let (one, two) = (run.path().join("one"), run.path().join("two"));
        let first = claim(&one).expect("a network");
        let second = claim(&two).expect("a network");
        assert_ne!(first, second);
        assert_eq!((claim(&one).expect("kept"), claim(&two).expect("kept")), (first, second));
        std::fs::remove_dir_all(&one).expect("stopped");
        assert_eq!(claim(&run.path().join("three")).expect("a network"), first);
    }
}
