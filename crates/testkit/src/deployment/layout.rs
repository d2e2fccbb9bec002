//! Where `up` keeps its state, and the ports that it chose.

use std::net::TcpListener;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The folder of one local deployment; everything that `up` writes is below it, but for sockets.
#[derive(Clone)]
pub struct Layout {
    dir: PathBuf,
    /// The second number of the pods' addresses: 10.NETWORK.NODE.0/24.
    network: u8,
    usual_ports: bool,
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
}

const USUAL: Ports = Ports { kubernetes: 6443, websocket: 10000, https: 10002, monitor: 9091 };

impl Layout {
    /// The deployment in this folder, which is made if it is missing.
    pub fn new(dir: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(dir.join("logs")).with_context(|| format!("creating {}", dir.display()))?;
        Ok(Self { dir: dir.canonicalize().with_context(|| dir.display().to_string())?, network: 86, usual_ports: true })
    }

    /// Makes room for several deployments side by side: pods get other addresses, servers any free ports.
    pub fn stand_aside(&mut self, network: u8) {
        self.network = network;
        self.usual_ports = false;
    }

    /// The pods' addresses on one node.
    pub fn subnet(&self, index: u8) -> String {
        format!("10.{}.{index}.0/24", self.network)
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

    /// A short folder for sockets, whose paths may have 107 bytes at most.
    pub fn sockets(&self) -> PathBuf {
        PathBuf::from("/run/ferroedge").join(self.short_id())
    }

    /// Eight hexadecimal digits that tell this deployment from others on the machine.
    pub fn short_id(&self) -> String {
        hex::encode(&Sha256::digest(self.dir.as_os_str().as_encoded_bytes())[..4])
    }

    /// The ports of the last `up`, or the usual ones where they are free, or others.
    pub fn ports(&self) -> Result<Ports> {
        let file = self.dir.join("ports.json");
        if let Ok(text) = std::fs::read_to_string(&file) {
            return serde_json::from_str(&text)
                .with_context(|| format!("{}: delete it to choose anew", file.display()));
        }
        // All are held until each is chosen, so that no two are the same.
        let held = [USUAL.kubernetes, USUAL.websocket, USUAL.https, USUAL.monitor].map(|usual| self.free_port(usual));
        let mut numbers = Vec::new();
        for listener in &held {
            numbers.push(
                listener.as_ref().map_err(|e| anyhow::anyhow!("no free port on loopback: {e}"))?.local_addr()?.port(),
            );
        }
        let ports = Ports { kubernetes: numbers[0], websocket: numbers[1], https: numbers[2], monitor: numbers[3] };
        std::fs::write(&file, serde_json::to_vec(&ports)?).with_context(|| file.display().to_string())?;
        Ok(ports)
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
