//! What the container runtime's process may do on this machine, seen from its socket.

use std::os::unix::net::UnixStream;

/// Bit of CAP_SYS_RESOURCE, which is needed to protect a process from the out-of-memory killer.
const CAP_SYS_RESOURCE: u32 = 24;

/// The lowest `oom_score_adj` that the runtime can give to containers; `None` when it may give any, or cannot be asked.
pub(super) fn least_oom_score(endpoint: &str) -> Option<i64> {
    let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
    let stream = UnixStream::connect(path).ok()?;
    let pid = rustix::net::sockopt::socket_peercred(&stream).ok()?.pid.as_raw_nonzero();
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
    if may_protect(&read("status")?)? {
        return None;
    }
    read("oom_score_adj")?.trim().parse().ok()
}

fn may_protect(status: &str) -> Option<bool> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let capabilities = u64::from_str_radix(line.trim(), 16).ok()?;
    Some(capabilities & (1 << CAP_SYS_RESOURCE) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities() {
        assert_eq!(may_protect("Name:\tx\nCapEff:\t000001fffeffffff\n"), Some(false));
        assert_eq!(may_protect("CapEff:\t000001ffffffffff\n"), Some(true));
        assert_eq!(may_protect("Name:\tx\n"), None);
    }
}
