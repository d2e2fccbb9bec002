//! The Debian packages that real containers need, and their installation.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::workspace::{has_program, run};

/// A Debian package and how to see that it is there.
struct Package {
    name: &'static str,
    present: fn() -> bool,
}

const NEEDED: &[Package] = &[
    Package { name: "containerd", present: || has_program("containerd") && has_program("ctr") },
    Package { name: "runc", present: || has_program("runc") },
    Package { name: "containernetworking-plugins", present: || Path::new("/usr/lib/cni/bridge").is_file() },
    Package { name: "busybox-static", present: || is_static_busybox(Path::new("/bin/busybox")) },
    Package { name: "iptables", present: || has_program("iptables") },
    Package { name: "iproute2", present: || has_program("ip") },
];

/// Installs what is missing, after saying so. Without root, or when the installation fails, the error
/// names the exact command to run.
pub fn ensure() -> Result<()> {
    let missing: Vec<&str> = NEEDED.iter().filter(|p| !(p.present)()).map(|p| p.name).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let by_hand = format!("apt-get install --no-install-recommends {}", missing.join(" "));
    if !rustix::process::geteuid().is_root() {
        bail!("these Debian packages are missing, and only root can install them: run `sudo {by_hand}` first");
    }
    if !has_program("apt-get") {
        bail!("this machine has no apt-get: install the equivalents of these Debian packages: {}", missing.join(" "));
    }
    eprintln!("installing from Debian: {}", missing.join(" "));
    let installed = run(Command::new("apt-get").args(["update", "-qq"])).and_then(|()| {
        run(Command::new("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "-y", "-qq", "--no-install-recommends"])
            .args(&missing))
    });
    if let Err(error) = installed {
        bail!("{error:#}; is the network there? When it is: {by_hand}");
    }
    let still: Vec<&str> = NEEDED.iter().filter(|p| !(p.present)()).map(|p| p.name).collect();
    if !still.is_empty() {
        bail!("installed, but still not usable: {}", still.join(" "));
    }
    Ok(())
}

/// A dynamically linked busybox cannot run inside an image that holds nothing else.
fn is_static_busybox(path: &Path) -> bool {
    let Ok(bytes) = std::fs::read(path) else { return false };
    // The name of the dynamic loader stands in the ELF header's interpreter segment.
    let head = &bytes[..bytes.len().min(4096)];
    !head.windows(7).any(|window| window == b"ld-linu")
}
