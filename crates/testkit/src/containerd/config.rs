//! Configuration of a private containerd and of its pod network.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::{ContainerdOptions, PAUSE_IMAGE};

/// Debian's folder of CNI plugins.
const CNI_PLUGINS: &str = "/usr/lib/cni";
/// Longest path of a unix socket.
const MAX_SOCKET_PATH: usize = 107;

pub(super) fn file(options: &ContainerdOptions) -> PathBuf {
    options.dir.join("config.toml")
}

/// Run state: on the same file system as the sockets, which is emptied at a reboot.
pub(super) fn state(options: &ContainerdOptions) -> PathBuf {
    options.sockets.join("state")
}

/// `overlayfs`, or `native` where the folder itself lies on an overlay, which cannot carry another one.
pub(super) fn snapshotter(options: &ContainerdOptions) -> &'static str {
    const OVERLAYFS_MAGIC: u64 = 0x794c_7630;
    match rustix::fs::statfs(&options.dir) {
        Ok(stat) if u64::try_from(stat.f_type) == Ok(OVERLAYFS_MAGIC) => "native",
        _ => "overlayfs",
    }
}

/// Writes everything that containerd reads at its start, and makes the folders.
pub(super) fn write(options: &ContainerdOptions) -> Result<()> {
    let socket = options.socket();
    if socket.as_os_str().len() > MAX_SOCKET_PATH - ".ttrpc".len() {
        bail!("{} is too long for a socket; choose a shorter folder", socket.display());
    }
    if options.bridge.len() > 15 {
        bail!("{} is too long for the name of a bridge (15 characters)", options.bridge);
    }
    for plugin in ["bridge", "host-local", "loopback", "portmap"] {
        if !std::path::Path::new(CNI_PLUGINS).join(plugin).is_file() {
            bail!("{CNI_PLUGINS}/{plugin} is missing; install the package containernetworking-plugins");
        }
    }
    let networks = options.dir.join("cni/net.d");
    std::fs::create_dir_all(&networks).with_context(|| networks.display().to_string())?;
    std::fs::create_dir_all(&options.sockets).with_context(|| options.sockets.display().to_string())?;
    std::fs::write(networks.join("10-bridge.conflist"), serde_json::to_vec_pretty(&network(options))?)?;
    std::fs::write(file(options), containerd(options))?;
    Ok(())
}

fn network(options: &ContainerdOptions) -> serde_json::Value {
    json!({
        "cniVersion": "0.4.0",
        // The network's name is also that of files below /var/lib/cni: as unique as the bridge.
        "name": options.bridge,
        "plugins": [
            {
                "type": "bridge",
                "bridge": options.bridge,
                "isGateway": true,
                "ipMasq": false,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": options.subnet}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                    "dataDir": options.dir.join("cni/addresses"),
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
}

/// `restrict_oom_score_adj`: a machine without CAP_SYS_RESOURCE cannot set negative scores, and runc fails then.
/// `netns_mounts_under_state_dir`: the first `ip netns add` on a machine mounts /run/netns over itself; the namespaces of pods
/// that are there already cannot be deleted after that, and no pod is removed in order.
fn containerd(options: &ContainerdOptions) -> String {
    let quoted = |path: PathBuf| serde_json::Value::from(path.display().to_string()).to_string();
    format!(
        r#"version = 2
root = {root}
state = {state}

[grpc]
  address = {socket}

[plugins."io.containerd.internal.v1.opt"]
  path = {opt}

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  disable_tcp_service = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"

  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{snapshotter}"
    default_runtime_name = "runc"

    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"

      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI_PLUGINS}"
    conf_dir = {networks}
    max_conf_num = 1
"#,
        root = quoted(options.dir.join("root")),
        state = quoted(state(options)),
        socket = quoted(options.socket()),
        opt = quoted(options.dir.join("opt")),
        networks = quoted(options.dir.join("cni/net.d")),
        snapshotter = snapshotter(options),
    )
}
