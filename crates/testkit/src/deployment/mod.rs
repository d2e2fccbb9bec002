//! One deployment on this machine, of real programs: what `cargo xtask up` starts for a user, and what the bench and the
//! end-to-end tests start for themselves.
//!
//! `layout` says where its files lie, `children` what runs, `cloud` and `edge` start the two sides, `cluster` is a small
//! client of its Kubernetes API, `network` chooses the pods' addresses, `example` is what a user sees first, `device` what of devices.

mod children;
mod cloud;
mod cluster;
pub mod device;
mod edge;
pub mod example;
mod layout;
mod network;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

pub use self::children::{Child, Children};
pub use self::cloud::Binaries;
pub use self::cluster::{Cluster, Watch, condition};
pub use self::edge::{edgecore_name, node_name};
pub use self::layout::{Layout, Ports};
use crate::containerd::{Containerd, runtime_client};
use crate::cri;

/// How long a started edge node may take until it is Ready.
const READY: Duration = Duration::from_secs(60);

/// State, processes and programs of one deployment.
pub struct Deployment {
    /// Where its files lie.
    pub layout: Layout,
    /// What runs.
    pub children: Children,
    /// The programs that it runs.
    pub binaries: Binaries,
}

impl Deployment {
    /// Finds the state in this folder, or begins anew.
    ///
    /// # Errors
    /// The folder holds something else.
    pub fn open(dir: &Path, binaries: Binaries) -> Result<Self> {
        let layout = Layout::new(dir)?;
        let mut children = Children::load(layout.run_file())?;
        children.adopt_strays(layout.dir())?;
        Ok(Self { layout, children, binaries })
    }

    /// Starts cloudcore with the embedded Kubernetes.
    pub async fn start_cloud(&mut self) -> Result<Cluster> {
        cloud::start(&self.layout, &self.binaries, &mut self.children).await
    }

    /// Starts containerd, joins if that has not happened yet, and starts edgecore.
    pub async fn start_edge(&mut self, index: u8) -> Result<()> {
        edge::start(&self.layout, &self.binaries, &mut self.children, index).await
    }

    /// Starts edgecore alone; its containerd runs.
    pub fn start_edgecore(&mut self, index: u8) -> Result<()> {
        edge::start_edgecore(&self.layout, &self.binaries, &mut self.children, index)
    }

    /// From its next start on, edgecore connects there.
    ///
    /// # Errors
    /// Its configuration cannot be changed.
    pub fn lead_edgecore(&self, index: u8, websocket: SocketAddr) -> Result<()> {
        edge::lead(&self.layout, index, websocket)
    }

    /// From its next start on, edgecore opens its stream tunnel there.
    ///
    /// # Errors
    /// Its configuration cannot be changed.
    pub fn lead_streams(&self, index: u8, tunnel: SocketAddr) -> Result<()> {
        edge::lead_streams(&self.layout, index, tunnel)
    }

    /// Stops edgecore alone.
    pub fn stop_edgecore(&mut self, index: u8) -> Result<()> {
        self.children.stop(&edge::edgecore_name(index))
    }

    /// Waits until the node's Ready condition is True; how long that took.
    ///
    /// # Errors
    /// It is not in time, or a program ended by itself.
    pub async fn wait_ready(&self, cluster: &Cluster, index: u8) -> Result<Duration> {
        let node = edge::node_name(index);
        let began = Instant::now();
        let what = format!("node {node} to be Ready");
        tokio::select! {
            ended = self.children.until_ended() => return Err(ended),
            ready = cluster.wait(&what, READY, || cluster.node_is_ready(&node)) => ready
                .with_context(|| format!("see {}", self.layout.log(&edge::edgecore_name(index)).display()))?,
        }
        Ok(began.elapsed())
    }

    /// Ids of the containers that run on a node, as its containerd says.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn running_containers(&self, index: u8) -> Result<BTreeSet<String>> {
        let mut client = runtime_client(Path::new(&self.containerd_socket(index))).await?;
        let list = client.list_containers(cri::ListContainersRequest::default()).await?.into_inner().containers;
        let running = i32::from(cri::ContainerState::ContainerRunning);
        Ok(list.into_iter().filter(|container| container.state == running).map(|container| container.id).collect())
    }

    /// Stops edgecore before its containers, and the cloud last, so that no side sees the other vanish. What a user started
    /// by hand in this folder is stopped as well.
    ///
    /// # Errors
    /// Something is left; the text names it.
    pub async fn stop(&mut self) -> Result<()> {
        self.children.adopt_strays(self.layout.dir())?;
        edge::stop_all(&self.layout, &mut self.children).await?;
        self.children.stop("")?;
        let sockets = self.layout.sockets();
        if let Some(point) = Containerd::mounts_below(&sockets)?.first() {
            bail!("{} is still mounted", point.display());
        }
        match std::fs::remove_dir_all(&sockets) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| sockets.display().to_string());
            }
            _ => {}
        }
        // Fails, as it should, while another deployment has its sockets there.
        let _ = std::fs::remove_dir(layout::sockets_of_all());
        Ok(())
    }

    /// Ends every container of a node and its containerd by force, as a loss of power does.
    ///
    /// # Errors
    /// Something does not end.
    pub async fn power_cut(&mut self, index: u8) -> Result<()> {
        let mut containerd = Containerd::start(edge::containerd_options(&self.layout, index)).await?;
        let cut = containerd.power_off().await;
        containerd.keep_running();
        self.children.stop(&format!("{}-containerd", edge::node_name(index)))?;
        cut
    }

    /// Where mappers of a node register.
    pub fn dmi_socket(&self, index: u8) -> PathBuf {
        edge::dmi_socket(&self.layout, index)
    }

    /// Where the MQTT broker of a node listens.
    ///
    /// # Errors
    /// The node has not joined.
    pub fn broker(&self, index: u8) -> Result<SocketAddr> {
        edge::broker(&self.layout, index)
    }

    /// The socket of a node's containerd.
    pub fn containerd_socket(&self, index: u8) -> String {
        edge::containerd_options(&self.layout, index).socket().display().to_string()
    }
}
