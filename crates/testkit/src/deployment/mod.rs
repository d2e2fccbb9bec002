//! One deployment on this machine, of real programs: what `cargo xtask up` starts for a user, and what the bench and the
//! end-to-end tests start for themselves.
//!
//! `layout` says where its files lie, `children` what runs, `cloud` and `edge` start the two sides, `cluster` is a small
//! client of its Kubernetes API.

mod children;
mod cloud;
mod cluster;
mod edge;
mod layout;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

pub use self::children::{Child, Children};
pub use self::cloud::Binaries;
pub use self::cluster::{Cluster, condition};
pub use self::edge::{edgecore_name, node_name};
pub use self::layout::{Layout, Ports};

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
    pub fn open(dir: PathBuf, binaries: Binaries) -> Result<Self> {
        let layout = Layout::new(dir)?;
        let children = Children::load(layout.run_file())?;
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

    /// Stops edgecore alone.
    pub fn stop_edgecore(&mut self, index: u8) -> Result<()> {
        self.children.stop(&edge::edgecore_name(index))
    }

    /// Waits until the node's Ready condition is True; how long that took.
    pub async fn wait_ready(&self, cluster: &Cluster, index: u8) -> Result<Duration> {
        let node = edge::node_name(index);
        let began = Instant::now();
        cluster
            .wait(&format!("node {node} to be Ready"), READY, || cluster.node_is_ready(&node))
            .await
            .with_context(|| format!("see {}", self.layout.log(&edge::edgecore_name(index)).display()))?;
        Ok(began.elapsed())
    }

    /// Stops edgecore before its containers, and the cloud last, so that no side sees the other vanish.
    pub async fn stop(&mut self) -> Result<()> {
        edge::stop_all(&self.layout, &mut self.children).await?;
        self.children.stop("")?;
        let _ = std::fs::remove_dir_all(self.layout.sockets());
        // Fails, as it should, while another deployment has its sockets there.
        let _ = std::fs::remove_dir("/run/ferroedge");
        Ok(())
    }

    /// Ends every container of a node and its containerd by force, as a loss of power does.
    ///
    /// # Errors
    /// Something does not end.
    pub async fn power_cut(&mut self, index: u8) -> Result<()> {
        let mut containerd =
            crate::containerd::Containerd::start(edge::containerd_options(&self.layout, index)).await?;
        let cut = containerd.power_off().await;
        containerd.keep_running();
        self.children.stop(&format!("{}-containerd", edge::node_name(index)))?;
        cut
    }

    /// The socket of a node's containerd.
    pub fn containerd_socket(&self, index: u8) -> String {
        edge::containerd_options(&self.layout, index).socket().display().to_string()
    }
}
