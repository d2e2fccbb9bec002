//! Where `up` keeps its state, and the ports that it chose.

use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::network;
use crate::containerd::Containerd;

/// The file that tells a deployment's folder from any other.
const MARK: &str = "ferroedge-deployment";

/// The folder of one local deployment; everything that `up` writes is below it, but for sockets.
#[derive(Clone)]
pub struct Layout {
    dir: PathBuf,
    /// Fixed, where several deployments must stand side by side; else claimed by the first edge node.
    network: Option<u8>,
    usual_ports: bool,
    apart: Option<Apart>,
}

/// The two sides meet at an address that is not loopback.
#[derive(Clone)]
struct Apart {
    /// Where CloudHub listens.
    cloud: IpAddr,
    /// The network namespace in which edgecore runs, if not in that of the machine.
    namespace: Option<String>,
}

/// The loopback ports of the cloud side, chosen at the first `up` and kept.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub struct Ports {
    /// The embedded Kubernetes API.
    pub kubernetes: u16,
    /// CloudHub's message channel (WebSocket).
    pub websocket: u16,
    /// CloudHub's certificate endpoint (HTTPS).
    pub https: u16,
    /// cloudcore's metrics and health.
    pub monitor: u16,
    /// CloudStream's server for the Kubernetes API.
    #[serde(default)]
    pub stream: u16,
    /// CloudStream's server for the nodes' tunnels.
    #[serde(default)]
    pub tunnel: u16,
}

/// The API of a node (`readOnlyPort`).
const USUAL_NODE_API: u16 = 10350;
/// The MQTT broker of a node (`mqttServerInternal`).
const USUAL_BROKER: u16 = 1883;
const USUAL: Ports =
    Ports { kubernetes: 6443, websocket: 10000, https: 10002, monitor: 9091, stream: 10003, tunnel: 10004 };

impl Layout {
    /// The deployment in this folder, which is made if it is missing or empty.
    ///
    /// # Errors
    /// The folder cannot be made, or holds something else.
    pub fn new(dir: &Path) -> Result<Self> {
        if !dir.join(MARK).is_file() {
            if std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) {
                bail!(
                    "{} holds other files and no deployment of Ferroedge: choose a new or an empty folder",
                    dir.display()
                );
            }
            let made = std::fs::create_dir_all(dir).and_then(|()| {
                std::fs::write(
                    dir.join(MARK),
                    "A deployment made by `cargo xtask up`; `cargo xtask down --purge` deletes it.\n",
                )
            });
            made.with_context(|| format!("creating {}", dir.display()))?;
        }
        std::fs::create_dir_all(dir.join("logs")).with_context(|| format!("creating {}", dir.display()))?;
        Self::at(dir)
    }

    /// The deployment in this folder; `None` when there is no folder.
    ///
    /// # Errors
    /// The folder holds something else.
    pub fn find(dir: &Path) -> Result<Option<Self>> {
        if !dir.exists() {
            return Ok(None);
        }
        if !dir.join(MARK).is_file() {
            bail!("{} is no deployment of Ferroedge ({MARK} is missing in it): nothing was touched", dir.display());
        }
        Self::at(dir).map(Some)
    }

    fn at(dir: &Path) -> Result<Self> {
        let dir = dir.canonicalize().with_context(|| dir.display().to_string())?;
        Ok(Self { dir, network: None, usual_ports: true, apart: None })
    }

    /// Makes room for several deployments side by side: pods get other addresses, servers any free ports.
    pub fn stand_aside(&mut self, network: u8) {
        self.network = Some(network);
        self.usual_ports = false;
    }

    /// Has edgecore run in a network namespace, from where it reaches the cloud at this address.
    pub fn set_apart(&mut self, cloud: IpAddr, namespace: &str) {
        self.apart = Some(Apart { cloud, namespace: Some(namespace.to_owned()) });
    }

    /// Has cloudcore listen at this address.
    pub fn meet_at(&mut self, cloud: IpAddr) {
        self.apart = Some(Apart { cloud, namespace: None });
    }

    /// The address at which CloudHub listens.
    pub(super) fn hub(&self) -> IpAddr {
        self.apart.as_ref().map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |apart| apart.cloud)
    }

    /// The network namespace in which edgecore runs, if not in that of the machine.
    pub(super) fn edge_namespace(&self) -> Option<&str> {
        self.apart.as_ref().and_then(|apart| apart.namespace.as_deref())
    }

    /// Chooses the pods' addresses for this run.
    pub fn claim_network(&self) -> Result<()> {
        if self.network.is_none() {
            network::claim(&self.sockets())?;
        }
        Ok(())
    }

    /// The pods' addresses on one node.
    pub fn subnet(&self, index: u8) -> String {
        let network = self.network.or_else(|| network::claimed(&self.sockets())).unwrap_or_else(network::usual);
        format!("10.{network}.{index}.0/24")
    }

    /// Deletes the state of a stopped deployment and its folder; false when the folder stays for other files in it.
    ///
    /// # Errors
    /// Something is still mounted there, or cannot be deleted.
    pub fn purge(&self) -> Result<bool> {
        let mut mounts = Containerd::mounts_below(&self.dir)?;
        mounts.retain(|point| *point != self.dir);
        if let Some(point) = mounts.first() {
            bail!("{} is still mounted: unmount it first; nothing was deleted", point.display());
        }
        let delete = |path: PathBuf| {
            let result = if path.is_dir() && !path.is_symlink() {
                std::fs::remove_dir_all(&path)
            } else {
                std::fs::remove_file(&path)
            };
            result.with_context(|| format!("deleting {}", path.display()))
        };
        for entry in std::fs::read_dir(&self.dir)? {
            let entry = entry?;
            if entry.file_name().to_str().is_some_and(is_own) {
                delete(entry.path())?;
            }
        }
        // Last: what is left of an interrupted purge is still known as ours.
        delete(self.dir.join(MARK))?;
        Ok(std::fs::remove_dir(&self.dir).is_ok())
    }

    /// The whole deployment's folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The embedded Kubernetes and cloudcore.
    pub fn cloud(&self) -> PathBuf {
        self.dir.join("cloud")
    }

    /// Everything of one edge node.
    pub fn edge(&self, node: &str) -> PathBuf {
        self.dir.join(node)
    }

    /// The log file of one program.
    pub fn log(&self, program: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{program}.log"))
    }

    /// The list of what runs.
    pub fn run_file(&self) -> PathBuf {
        self.dir.join("run.json")
    }

    /// Locked by the `up` that works here.
    pub fn lock_file(&self) -> PathBuf {
        self.dir.join("up.lock")
    }

    /// A short folder for sockets, whose paths may have 107 bytes at most.
    pub fn sockets(&self) -> PathBuf {
        sockets_of_all().join(self.short_id())
    }

    /// Eight hexadecimal digits that tell this deployment from others on the machine.
    pub fn short_id(&self) -> String {
        hex::encode(&Sha256::digest(self.dir.as_os_str().as_encoded_bytes())[..4])
    }

    /// Whether the usual ports may be chosen now: then nobody else may do so until servers listen there.
    pub(super) fn chooses_usual_ports(&self) -> bool {
        self.usual_ports && !self.dir.join("ports.json").exists()
    }

    /// The ports of the last `up`, or the usual ones where they are free, or others.
    pub fn ports(&self) -> Result<Ports> {
        let file = self.dir.join("ports.json");
        if let Ok(text) = std::fs::read_to_string(&file) {
            let kept: Ports =
                serde_json::from_str(&text).with_context(|| format!("{}: delete it to choose anew", file.display()))?;
            // A deployment of an older version has none for streams.
            let is_old = kept.stream == 0 || kept.tunnel == 0;
            return Ok(if is_old { Ports { stream: USUAL.stream, tunnel: USUAL.tunnel, ..kept } } else { kept });
        }
        // All are held until each is chosen, so that no two are the same.
        let usual = [USUAL.kubernetes, USUAL.websocket, USUAL.https, USUAL.monitor, USUAL.stream, USUAL.tunnel];
        let held = usual.map(|usual| self.free_port(usual));
        let mut numbers = Vec::new();
        for listener in &held {
            numbers.push(
                listener.as_ref().map_err(|e| anyhow::anyhow!("no free port on loopback: {e}"))?.local_addr()?.port(),
            );
        }
        let [kubernetes, websocket, https, monitor, stream, tunnel] = numbers[..] else { bail!("no free ports") };
        let ports = Ports { kubernetes, websocket, https, monitor, stream, tunnel };
        std::fs::write(&file, serde_json::to_vec(&ports)?).with_context(|| file.display().to_string())?;
        Ok(ports)
    }

    /// A port for the API of the node with this number, counted from 1: 10350, 10351, … where they are free, or any other.
    ///
    /// # Errors
    /// Loopback has no free port.
    pub fn node_port(&self, index: u8) -> Result<u16> {
        self.port_of_node(USUAL_NODE_API, index)
    }

    /// A port for the MQTT broker of the node with this number: 1883, 1884, … where they are free, or any other.
    ///
    /// # Errors
    /// Loopback has no free port.
    pub fn broker_port(&self, index: u8) -> Result<u16> {
        self.port_of_node(USUAL_BROKER, index)
    }

    fn port_of_node(&self, first: u16, index: u8) -> Result<u16> {
        let usual = first + u16::from(index.saturating_sub(1));
        let listener = self.free_port(usual).context("no free port on loopback")?;
        Ok(listener.local_addr()?.port())
    }

    fn free_port(&self, usual: u16) -> std::io::Result<TcpListener> {
        if self.usual_ports
            && let Ok(listener) = TcpListener::bind(("127.0.0.1", usual))
        {
            return Ok(listener);
        }
        TcpListener::bind(("127.0.0.1", 0))
    }
}

/// Whether an entry of a deployment's folder was made by it.
fn is_own(name: &str) -> bool {
    let node = name.strip_prefix("edge-").is_some_and(|number| number.parse::<u8>().is_ok());
    node || ["logs", "cloud", "ports.json", "run.json", "run.new", "up.lock"].contains(&name)
}

/// The folder that holds the sockets of all deployments of this user.
pub(super) fn sockets_of_all() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/run/ferroedge");
    }
    std::env::var_os("XDG_RUNTIME_DIR").map_or_else(std::env::temp_dir, PathBuf::from).join("ferroedge")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_folder_is_neither_used_nor_purged() {
        let dir = tempfile::tempdir().expect("folder");
        let thesis = dir.path().join("thesis.txt");
        std::fs::write(&thesis, "x").expect("written");
        for refusal in [Layout::new(dir.path()).err(), Layout::find(dir.path()).err()] {
            assert!(refusal.expect("refused").to_string().contains("no deployment of Ferroedge"));
        }
        assert_eq!(std::fs::read_dir(dir.path()).expect("there").count(), 1, "nothing was added");
        assert!(Layout::find(&dir.path().join("missing")).expect("no error").is_none());
        assert!(!dir.path().join("missing").exists(), "looking makes no folder");
    }

    #[test]
    fn purge_deletes_only_what_up_made() {
        let dir = tempfile::tempdir().expect("folder");
        let own = dir.path().join("own");
        let layout = Layout::new(&own).expect("made");
        std::fs::create_dir_all(layout.edge("edge-2").join("config")).expect("made");
        std::fs::create_dir_all(layout.cloud()).expect("made");
        layout.ports().expect("chosen");
        for foreign in ["thesis.txt", "edge-cases.md", "edge-x"] {
            std::fs::write(own.join(foreign), "x").expect("written");
        }
        let layout = Layout::find(&own).expect("ours").expect("there");
        assert!(!layout.purge().expect("purged"));
        let mut left: Vec<_> = std::fs::read_dir(&own).expect("kept").map(|e| e.expect("entry").file_name()).collect();
        left.sort();
        assert_eq!(left, ["edge-cases.md", "edge-x", "thesis.txt"]);

        let layout = Layout::new(&dir.path().join("alone")).expect("made");
        assert!(layout.purge().expect("purged"));
        assert!(!layout.dir().exists());
    }
}
