//! NFS volumes, mounted by the node's own `mount` and its helper `mount.nfs`, as the kubelet does.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::Duration;

use tokio::process::Command;

use super::{VolumeError, mount_table};

/// A server that does not answer must not hold the pod for ever.
const LIMIT: Duration = Duration::from_secs(120);

/// Mounts an export once.
pub(super) async fn mount(
    server: &str,
    export: &str,
    target: &Path,
    read_only: bool,
    options: &[String],
) -> Result<(), VolumeError> {
    if mount_table::is_mount_point(target).map_err(VolumeError::file(target))? {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(0o750).create(target).map_err(VolumeError::file(target))?;
    let mut command = Command::new("mount");
    command.args(["-t", "nfs"]);
    let options = options.iter().map(String::as_str).chain(read_only.then_some("ro")).collect::<Vec<_>>().join(",");
    if !options.is_empty() {
        command.args(["-o", &options]);
    }
    command.arg("--").arg(source(server, export)).arg(target).kill_on_drop(true);
    let failed = |text: String| VolumeError::Invalid(format!("mount failed: {text}"));
    let output = match tokio::time::timeout(LIMIT, command.output()).await {
        Ok(output) => output.map_err(|error| failed(format!("the program mount cannot be run: {error}")))?,
        Err(_) => return Err(failed(format!("{} did not answer within {LIMIT:?}", source(server, export)))),
    };
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(failed(text.trim().chars().take(1024).collect()))
}

fn source(server: &str, export: &str) -> String {
    if server.contains(':') && !server.starts_with('[') {
        format!("[{server}]:{export}")
    } else {
        format!("{server}:{export}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources() {
        assert_eq!(source("nas.lan", "/data"), "nas.lan:/data");
        assert_eq!(source("fd00::1", "/data"), "[fd00::1]:/data");
    }
}
