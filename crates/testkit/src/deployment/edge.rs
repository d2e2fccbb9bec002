//! One edge node: its private containerd, `keadm join` and edgecore.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::children::Children;
use super::cloud::{self, Binaries};
use super::layout::{Layout, Ports};
use crate::containerd::{Containerd, ContainerdOptions};

/// The name of the node with this number, counted from 1.
pub fn node_name(index: u8) -> String {
    format!("edge-{index}")
}

/// The name of this node's edgecore among the running programs.
pub fn edgecore_name(index: u8) -> String {
    format!("{}-edgecore", node_name(index))
}

/// Starts containerd, joins on the first time, and starts edgecore.
pub async fn start(layout: &Layout, binaries: &Binaries, children: &mut Children, index: u8) -> Result<()> {
    let node = node_name(index);
    let dir = layout.edge(&node);
    std::fs::create_dir_all(&dir)?;
    layout.claim_network()?;
    let options = containerd_options(layout, index);
    let containerd = Containerd::start(options.clone()).await?;
    containerd.import_busybox().await?;
    let socket = containerd.endpoint();
    let pid = containerd.keep_running();
    children.adopt(&format!("{node}-containerd"), pid, &options.log())?;

    if !config_file(layout, index).is_file() {
        join(layout, binaries, layout.ports()?, index, &socket)?;
    }
    start_edgecore(layout, binaries, children, index)
}

/// Starts edgecore of a node that has joined.
pub fn start_edgecore(layout: &Layout, binaries: &Binaries, children: &mut Children, index: u8) -> Result<()> {
    let name = edgecore_name(index);
    let mut command = match layout.edge_namespace() {
        None => binaries.command("edgecore"),
        Some(namespace) => {
            let mut enter = Command::new("nsenter");
            enter.arg(format!("--net=/run/netns/{namespace}")).arg(binaries.path("edgecore"));
            enter
        }
    };
    command.arg("--config").arg(config_file(layout, index));
    children.start(&name, &mut command, &layout.log(&name))
}

fn config_file(layout: &Layout, index: u8) -> PathBuf {
    layout.edge(&node_name(index)).join("config/edgecore.yaml")
}

fn join(layout: &Layout, binaries: &Binaries, ports: Ports, index: u8, socket: &str) -> Result<()> {
    let node = node_name(index);
    let token = cloud::token(layout, binaries)?;
    let mut command: Command = binaries.command("keadm");
    command
        .arg("join")
        .arg(format!("--cloudcore-ipport={}:{}", layout.hub(), ports.websocket))
        .arg(format!("--certport={}", ports.https))
        .arg(format!("--edgenode-name={node}"))
        .arg(format!("--token={token}"))
        .arg(format!("--remote-runtime-endpoint={socket}"))
        .arg("--config-dir")
        .arg(layout.edge(&node))
        .arg("--no-start");
    let output = command.output().with_context(|| format!("joining {node}"))?;
    if !output.status.success() {
        bail!("joining {node}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    share_machine(
        &config_file(layout, index),
        &containerd_options(layout, index),
        [layout.node_port(index)?, layout.broker_port(index)?],
        SocketAddr::new(layout.hub(), ports.tunnel),
    )
}

/// The MQTT broker inside edgecore of a node that has joined.
///
/// # Errors
/// Its configuration cannot be read.
pub fn broker(layout: &Layout, index: u8) -> Result<SocketAddr> {
    let document = read(&config_file(layout, index))?;
    let url = document["modules"]["eventBus"]["mqttServerInternal"].as_str().unwrap_or_default();
    url.trim_start_matches("tcp://").parse().with_context(|| format!("mqttServerInternal {url:?}"))
}

/// Leads edgecore to another address of the cloud.
pub fn lead(layout: &Layout, index: u8, websocket: SocketAddr) -> Result<()> {
    change(&config_file(layout, index), |document| {
        document["modules"]["edgeHub"]["websocket"]["server"] = websocket.to_string().into();
    })
}

/// Leads its stream tunnel to another address of the cloud.
pub fn lead_streams(layout: &Layout, index: u8, tunnel: SocketAddr) -> Result<()> {
    change(&config_file(layout, index), |document| {
        document["modules"]["edgeStream"]["server"] = tunnel.to_string().into();
    })
}

/// A node on a developer's machine neither evicts pods nor removes images because the disk of that machine is nearly full, and
/// leaves room for others beside it: each has cgroups, ports and sockets of its own.
fn share_machine(config: &Path, own: &ContainerdOptions, [api, broker]: [u16; 2], tunnel: SocketAddr) -> Result<()> {
    change(config, |document| {
        let kubelet = &mut document["modules"]["edged"]["tailoredKubeletConfig"];
        for signal in ["nodefs.available", "nodefs.inodesFree", "imagefs.available", "imagefs.inodesFree"] {
            kubelet["evictionHard"][signal] = "0%".into();
        }
        kubelet["imageGCHighThresholdPercent"] = 100.into();
        kubelet["cgroupRoot"] = own.cgroup_root().into();
        kubelet["readOnlyPort"] = api.into();
        document["modules"]["eventBus"]["mqttServerInternal"] = format!("tcp://127.0.0.1:{broker}").into();
        document["modules"]["edgeStream"]["server"] = tunnel.to_string().into();
        document["modules"]["deviceTwin"]["dmiSockPath"] = own.sockets.display().to_string().into();
    })
}

/// Where mappers of a node register.
pub fn dmi_socket(layout: &Layout, index: u8) -> PathBuf {
    containerd_options(layout, index).sockets.join("dmi.sock")
}

fn change(config: &Path, how: impl FnOnce(&mut serde_json::Value)) -> Result<()> {
    let mut document = read(config)?;
    how(&mut document);
    std::fs::write(config, serde_saphyr::to_string(&document)?)?;
    Ok(())
}

fn read(config: &Path) -> Result<serde_json::Value> {
    let text = std::fs::read_to_string(config).with_context(|| config.display().to_string())?;
    serde_saphyr::from_str(&text).context("reading edgecore.yaml")
}

/// Stops every edge node of this deployment: edgecore first, then all its containers, then containerd.
pub async fn stop_all(layout: &Layout, children: &mut Children) -> Result<()> {
    for index in 1..=u8::MAX {
        let node = node_name(index);
        if !layout.edge(&node).is_dir() {
            break;
        }
        children.stop(&edgecore_name(index))?;
        Containerd::clean_up(&containerd_options(layout, index)).await?;
        // Secrets are kept in memory below the node's folder.
        Containerd::unmount_below(&layout.edge(&node))?;
        children.stop(&format!("{node}-containerd"))?;
    }
    Ok(())
}

/// Where this node's containerd lives.
pub fn containerd_options(layout: &Layout, index: u8) -> ContainerdOptions {
    ContainerdOptions {
        dir: layout.edge(&node_name(index)).join("containerd"),
        sockets: layout.sockets().join(node_name(index)),
        // At most 15 characters: an interface's name.
        bridge: format!("fe{}n{index}", layout.short_id()),
        subnet: layout.subnet(index),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_of_one_machine_share_neither_cgroups_nor_ports() {
        let dir = tempfile::tempdir().expect("folder");
        let layout = Layout::new(&dir.path().join("own")).expect("made");
        let mut used = Vec::new();
        for index in [1, 2] {
            let config = dir.path().join(format!("{index}.yaml"));
            std::fs::write(&config, "modules: {edged: {tailoredKubeletConfig: {cgroupDriver: cgroupfs}}}")
                .expect("written");
            let port = layout.node_port(index).expect("a free port");
            // Its agent listens there.
            let listener = std::net::TcpListener::bind(("127.0.0.1", port)).expect("free");
            let broker = layout.broker_port(index).expect("a free port");
            let tunnel = SocketAddr::from(([127, 0, 0, 1], 10004));
            share_machine(&config, &containerd_options(&layout, index), [port, broker], tunnel).expect("changed");
            let text = std::fs::read_to_string(&config).expect("there");
            let document: serde_json::Value = serde_saphyr::from_str(&text).expect("YAML");
            let kubelet = &document["modules"]["edged"]["tailoredKubeletConfig"];
            assert_eq!((&kubelet["cgroupDriver"], &kubelet["readOnlyPort"]), (&"cgroupfs".into(), &port.into()));
            used.push((kubelet["cgroupRoot"].clone(), port, listener));
        }
        assert_ne!(used[0].0, used[1].0);
        assert_ne!(used[0].1, used[1].1);
    }
}
