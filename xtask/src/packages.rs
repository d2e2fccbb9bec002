//! The Debian packages that real containers need, and their installation.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::terminal::complain;
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
    Package { name: "dbus", present: || has_program("dbus-daemon") },
    Package { name: "busybox-static", present: || is_static_busybox(Path::new("/bin/busybox")) },
    Package { name: "iptables", present: || has_program("iptables") },
    Package { name: "iproute2", present: || has_program("ip") },
];

/// What the tests need besides: clients that users have.
const FOR_TESTS: &[Package] = &[
    Package { name: "kubernetes-client", present: || has_program("kubectl") },
    Package { name: "mosquitto-clients", present: || has_program("mosquitto_pub") },
];

/// What the bench compares with.
const FOR_BENCH: &[Package] = &[Package { name: "mosquitto", present: || has_program("mosquitto") }];

/// Installs what containers need and is missing, after saying so. Without root, or when the installation fails, the error
/// names the exact command to run.
pub fn ensure() -> Result<()> {
    install(NEEDED.iter().collect())
}

/// The same for the tests, which also drive the API with kubectl and the MQTT broker with mosquitto's clients.
pub fn ensure_for_tests() -> Result<()> {
    install(NEEDED.iter().chain(FOR_TESTS).collect())
}

/// The same for the bench, which holds the MQTT broker beside mosquitto.
pub fn ensure_for_bench() -> Result<()> {
    install(NEEDED.iter().chain(FOR_BENCH).collect())
}

/// Puts the kubectl of Debian 12 (1.20) into a folder, so that the tests can try it beside a newer one. Without a network
/// there is none, and the tests go on with the one that is installed.
pub fn fetch_old_kubectl(folder: &Path) -> Result<()> {
    if folder.join("usr/bin/kubectl").is_file() || !has_program("apt-get") || !has_program("dpkg-deb") {
        return Ok(());
    }
    std::fs::create_dir_all(folder)?;
    let fetched = run(Command::new("apt-get").args(["update", "-qq"]))
        .and_then(|()| run(Command::new("apt-get").args(["download", "-qq", "kubernetes-client"]).current_dir(folder)));
    if let Err(error) = fetched {
        eprintln!("Debian's kubectl cannot be fetched ({error:#}); the tests use the installed one alone");
        return Ok(());
    }
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            run(Command::new("dpkg-deb").arg("--extract").arg(&path).arg(folder))?;
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

fn install(needed: Vec<&Package>) -> Result<()> {
    let missing: Vec<&str> = needed.iter().filter(|p| !(p.present)()).map(|p| p.name).collect();
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
    complain(format_args!("installing from Debian: {}", missing.join(" ")));
    let installed = run(Command::new("apt-get").args(["update", "-qq"])).and_then(|()| {
        run(Command::new("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "-y", "-qq", "--no-install-recommends"])
            .args(&missing))
    });
    if let Err(error) = installed {
        bail!("{error:#}; is the network there? When it is: {by_hand}");
    }
    let still: Vec<&str> = needed.iter().filter(|p| !(p.present)()).map(|p| p.name).collect();
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
