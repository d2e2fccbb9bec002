//! Settings of the kernel that a node should have, and the agent's own rank when memory runs out.

use std::fs;
use std::path::Path;

/// Files below `/proc` and what they should hold (Kubernetes): memory may be promised beyond what there is, a process that
/// takes too much is ended instead of the machine, a machine that fails comes back by itself, many keys can be kept.
const WANTED: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// The kernel has other settings, and they may not be changed (`protectKernelDefaults`).
#[derive(Debug, thiserror::Error)]
#[error(
    "protectKernelDefaults is set and the kernel has other settings ({0}): set them with sysctl, or protectKernelDefaults to false"
)]
pub struct Protected(String);

/// Sets what differs below `proc`; with `protect` it only compares. What cannot be set is told in one warning; a setting that
/// this kernel does not have is left out.
///
/// # Errors
/// With `protect`: something differs.
pub fn apply(proc: &Path, protect: bool) -> Result<(), Protected> {
    let mut differ = Vec::new();
    let mut refused = Vec::new();
    for (name, wanted) in WANTED {
        let file = proc.join("sys").join(name);
        let Ok(current) = fs::read_to_string(&file) else { continue };
        let current = current.trim();
        if current == wanted {
            continue;
        }
        let key = name.replace('/', ".");
        if protect {
            differ.push(format!("{key} is {current}, wanted {wanted}"));
            continue;
        }
        match fs::write(&file, wanted) {
            Ok(()) => tracing::info!(key, from = current, to = wanted, "kernel setting changed"),
            Err(error) => refused.push(format!("{key}={wanted} (is {current}: {error})")),
        }
    }
    if !refused.is_empty() {
        let settings = refused.join(", ");
        tracing::warn!(
            settings,
            "the kernel's settings may not be changed by this process; the node works, but set them with sysctl"
        );
    }
    if differ.is_empty() { Ok(()) } else { Err(Protected(differ.join("; "))) }
}

/// Makes this process one of the last that the kernel ends when memory runs out (`oomScoreAdj`); without the right to, it stays
/// as it is.
pub fn set_oom_score(proc: &Path, score: i64) {
    let file = proc.join("self/oom_score_adj");
    if fs::read_to_string(&file).is_ok_and(|current| current.trim() == score.to_string()) {
        return;
    }
    if let Err(error) = fs::write(&file, score.to_string()) {
        tracing::info!(score, %error, "oomScoreAdj of this process is not changed: that needs CAP_SYS_RESOURCE");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_or_compared_and_what_the_kernel_lacks_left_out() {
        let proc = tempfile::tempdir().unwrap();
        let file = |name: &str| proc.path().join("sys").join(name);
        for (name, value) in [("vm/overcommit_memory", "0\n"), ("vm/panic_on_oom", "0\n"), ("kernel/panic", "0\n")] {
            fs::create_dir_all(file(name).parent().unwrap()).unwrap();
            fs::write(file(name), value).unwrap();
        }
        let error = apply(proc.path(), true).unwrap_err().to_string();
        assert!(error.contains("vm.overcommit_memory is 0, wanted 1; kernel.panic is 0, wanted 10"), "{error}");
        assert_eq!(fs::read_to_string(file("kernel/panic")).unwrap(), "0\n", "only compared");
        apply(proc.path(), false).unwrap();
        assert_eq!(fs::read_to_string(file("kernel/panic")).unwrap(), "10");
        assert_eq!(fs::read_to_string(file("vm/panic_on_oom")).unwrap(), "0\n", "right as it was");
        assert!(!file("kernel/keys").exists());
        apply(proc.path(), true).unwrap();
    }
}
