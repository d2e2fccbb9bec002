//! edgecore as a systemd service.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::layout::Layout;

/// The service's name.
pub const UNIT: &str = "edgecore.service";
/// Where its description is.
pub const UNIT_FILE: &str = "/etc/systemd/system/edgecore.service";
/// Where the program belongs, as upstream has it.
pub const PROGRAM: &str = "/usr/local/bin/edgecore";

/// The service could not be installed or controlled.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// There is no edgecore to run.
    #[error(
        "the program edgecore is neither in /usr/local/bin nor beside keadm nor in /usr/bin: put it there (nothing is downloaded), or join with --no-start"
    )]
    NoProgram,
    /// The program cannot be copied.
    #[error("{} cannot be copied to {PROGRAM}: be root", .0.display())]
    Copy(PathBuf, #[source] std::io::Error),
    /// The unit cannot be written.
    #[error("the service cannot be installed: be root, or join with --no-start")]
    Unit(#[source] std::io::Error),
    /// systemctl cannot be run.
    #[error("systemctl cannot be run")]
    Systemctl(#[source] std::io::Error),
    /// systemctl failed.
    #[error("`systemctl {0}` failed: {1}")]
    Failed(String, String),
}

/// Whether this machine is run by systemd.
pub fn has_systemd(layout: &Layout) -> bool {
    layout.on_disk(Path::new("/run/systemd/system")).is_dir()
}

/// Whether the service is installed.
pub fn is_installed(layout: &Layout) -> bool {
    layout.on_disk(Path::new(UNIT_FILE)).exists()
}

/// The program that the service runs; copied into its place when it lies beside keadm.
///
/// # Errors
/// There is none, or it cannot be copied.
pub fn place_program(layout: &Layout) -> Result<PathBuf, ServiceError> {
    let target = layout.on_disk(Path::new(PROGRAM));
    if target.is_file() {
        return Ok(PROGRAM.into());
    }
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join("edgecore")));
    if let Some(beside) = beside.filter(|path| path.is_file()) {
        let copy = || {
            std::fs::create_dir_all(target.parent().unwrap_or(Path::new("/")))?;
            std::fs::copy(&beside, &target)
        };
        copy().map_err(|error| ServiceError::Copy(beside.clone(), error))?;
        return Ok(PROGRAM.into());
    }
    let packaged = Path::new("/usr/bin/edgecore");
    if layout.on_disk(packaged).is_file() { Ok(packaged.into()) } else { Err(ServiceError::NoProgram) }
}

/// Writes the unit and starts the service, now and at every boot.
///
/// # Errors
/// The unit cannot be written, or systemctl fails.
pub fn install(layout: &Layout, program: &Path) -> Result<(), ServiceError> {
    let text = unit(program, &layout.config());
    let file = layout.on_disk(Path::new(UNIT_FILE));
    let write = || {
        std::fs::create_dir_all(file.parent().unwrap_or(Path::new("/")))?;
        std::fs::write(&file, text)
    };
    write().map_err(ServiceError::Unit)?;
    systemctl(&["daemon-reload"])?;
    systemctl(&["enable", UNIT])?;
    systemctl(&["restart", UNIT])
}

/// Stops the service and forgets it; the unit file stays for the caller to remove.
///
/// # Errors
/// systemctl fails.
pub fn disable() -> Result<(), ServiceError> {
    systemctl(&["disable", "--now", UNIT])
}

/// Tells systemd that a unit file is gone.
///
/// # Errors
/// systemctl fails.
pub fn reload() -> Result<(), ServiceError> {
    systemctl(&["daemon-reload"])
}

/// Only edgecore itself is killed: its pods' processes outlive it.
fn unit(program: &Path, config: &Path) -> String {
    format!(
        "[Unit]
Description=Edge node agent
Wants=network-online.target
After=network-online.target containerd.service

[Service]
ExecStart={} --config={}
Restart=always
RestartSec=10
KillMode=process
TimeoutStopSec=30

[Install]
WantedBy=multi-user.target
",
        program.display(),
        config.display()
    )
}

fn systemctl(words: &[&str]) -> Result<(), ServiceError> {
    let output = Command::new("systemctl").args(words).output().map_err(ServiceError::Systemctl)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().chars().take(1000).collect();
    Err(ServiceError::Failed(words.join(" "), said))
}
