//! What the kernel's log says when the machine itself has run out of memory.

/// A process that the kernel ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Victim {
    /// Its name, at most 15 bytes.
    pub process: String,
    /// Its id in the node's own namespace.
    pub pid: u32,
}

impl Victim {
    /// Message of the event `SystemOOM` (Kubernetes).
    pub fn message(&self) -> String {
        format!("System OOM encountered, victim process: {}, pid: {}", self.process, self.pid)
    }
}

/// The victim of which a record of `/dev/kmsg` tells (`priority,sequence,microseconds,flags;text`). `None` for all other records,
/// for those of limits of single cgroups, which are the containers' own trouble, and for what programs wrote there themselves.
pub fn victim(record: &str) -> Option<Victim> {
    let (head, text) = record.lines().next()?.split_once(';')?;
    let priority: u32 = head.split(',').next()?.parse().ok()?;
    // Above the three bits of the level stands who speaks; only the kernel is 0.
    if priority >> 3 != 0 {
        return None;
    }
    let rest = text.strip_prefix("Out of memory: ")?;
    // "Kill" before Linux 5.0.
    let rest = rest.strip_prefix("Killed process ").or_else(|| rest.strip_prefix("Kill process "))?;
    let (pid, rest) = rest.split_once(" (")?;
    // A name may hold brackets itself: what follows it is known.
    let ends = [") total-vm:", ") score ", "), UID "].into_iter().filter_map(|end| rest.find(end));
    let end = ends.min().or_else(|| rest.find(')'))?;
    Some(Victim { process: rest[..end].to_owned(), pid: pid.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_kernel_and_only_the_whole_machine() {
        let found = |process: &str, pid| Some(Victim { process: process.into(), pid });
        for (record, expected) in [
            (
                "3,1201,5140900,-;Out of memory: Killed process 4242 (stress) total-vm:1kB, anon-rss:1kB, UID:0\n SUBSYSTEM=x\n",
                found("stress", 4242),
            ),
            ("3,1,2,-;Out of memory: Kill process 7 (old one) score 901 or sacrifice child", found("old one", 7)),
            ("3,1,2,-;Out of memory: Killed process 9 (a) b) total-vm:1kB", found("a) b", 9)),
            ("3,1,2,-;Out of memory: Killed process 9 (a)", found("a", 9)),
            ("3,1,2,-;Memory cgroup out of memory: Killed process 9 (a) total-vm:1kB", None),
            ("12,1,2,-;Out of memory: Killed process 9 (a) total-vm:1kB", None),
            ("3,1,2,-;Out of memory: Killed process x (a) total-vm:1kB", None),
            ("3,1,2,-;Out of memory: Killed process 9 (a", None),
            ("6,1,2,-;eth0: link up", None),
            ("Out of memory: Killed process 9 (a)", None),
            ("", None),
        ] {
            assert_eq!(victim(record), expected, "{record}");
        }
        let message = Victim { process: "stress".into(), pid: 4242 }.message();
        assert_eq!(message, "System OOM encountered, victim process: stress, pid: 4242");
    }
}
