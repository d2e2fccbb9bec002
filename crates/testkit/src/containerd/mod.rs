//! A private containerd for tests and for `cargo xtask up`: its own folders, socket, bridge and subnet, images made from the
//! machine's busybox, and an end that leaves nothing behind.
//!
//! `config` writes what containerd reads, `images` builds the archive that it imports, `cleanup` finds what is left of an
//! instance from its folders alone, so that also a later process can clear up after one that was killed.

mod cleanup;
mod config;
mod fillers;
pub(crate) mod images;

use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tonic::transport::{Channel, Endpoint};

use crate::cri;
use cri::image_service_client::ImageServiceClient;
use cri::runtime_service_client::RuntimeServiceClient;

/// The image that all containers of tests are made of: busybox with its links, `sh` by default.
pub const BUSYBOX_IMAGE: &str = "docker.io/library/busybox:1";
/// The image of sandboxes: the same files, sleeping.
pub const PAUSE_IMAGE: &str = "docker.io/kubeedge/pause:3.6";

/// How long containerd may take until it answers.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How long it may take to end after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// Pause between two looks at something that cannot be waited for.
const POLL: Duration = Duration::from_millis(20);

/// Where an instance lives and which network it gives to pods. It is identified by these on every later call.
#[derive(Clone, Debug)]
pub struct ContainerdOptions {
    /// Images, metadata, configuration and log; kept by [`Containerd::clean_up`].
    pub dir: PathBuf,
    /// Socket and run state; short, since a socket's path has at most 107 bytes. Removed by [`Containerd::clean_up`].
    pub sockets: PathBuf,
    /// Name of the bridge, unique on the machine, at most 15 characters.
    pub bridge: String,
    /// IPv4 subnet of the pods, unique on the machine, as `10.86.1.0/24`.
    pub subnet: String,
}

impl ContainerdOptions {
    /// An instance for one test below this folder, with a bridge and subnet derived from the process and `number`, which
    /// tells instances within a process apart.
    pub fn for_test(dir: &Path, number: u8) -> Self {
        let process = std::process::id();
        // Tests of one machine run side by side: neighbouring processes must not share a subnet.
        let block = process.wrapping_mul(64).wrapping_add(u32::from(number));
        Self {
            dir: dir.join("containerd"),
            sockets: PathBuf::from(format!("/tmp/fe-{process}-{number}")),
            bridge: format!("fet{process}n{number}"),
            subnet: format!("10.{}.{}.0/24", 100 + block / 250 % 100, block % 250),
        }
    }

    /// The CRI and containerd socket.
    pub fn socket(&self) -> PathBuf {
        self.sockets.join("containerd.sock")
    }

    /// `cgroupRoot` of the one agent that uses this instance: agents that share one would take each other's pods for
    /// left-overs. [`Containerd::clean_up`] removes it.
    pub fn cgroup_root(&self) -> String {
        format!("/{}", self.bridge)
    }

    /// Where containerd logs.
    pub fn log(&self) -> PathBuf {
        self.dir.join("containerd.log")
    }

    fn pid_file(&self) -> PathBuf {
        self.dir.join("containerd.pid")
    }
}

/// A running instance. It is stopped, with everything in it, when dropped.
pub struct Containerd {
    options: ContainerdOptions,
    socket: PathBuf,
    pid: i32,
    /// Absent when another process started it.
    child: Option<Child>,
    kept: bool,
}

impl Containerd {
    /// Starts containerd, or takes over the one that already serves this folder, and waits until it answers.
    ///
    /// # Errors
    /// Something that it needs is not installed, or it did not come up; the text names the log.
    pub async fn start(options: ContainerdOptions) -> Result<Self> {
        let socket = options.socket();
        if let Some(pid) = cleanup::containerd_pid(&options)
            && answers(&socket).await
        {
            return Ok(Self { options, socket, pid, child: None, kept: false });
        }
        config::write(&options)?;
        let log = OpenOptions::new().create(true).append(true).open(options.log())?;
        let child = Command::new("containerd")
            .arg("--config")
            .arg(config::file(&options))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .context("containerd could not be started: is the package containerd installed?")?;
        let pid = i32::try_from(child.id())?;
        std::fs::write(options.pid_file(), pid.to_string())?;
        let mut started = Self { options, socket, pid, child: Some(child), kept: false };
        started.wait_until_ready().await?;
        Ok(started)
    }

    async fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        while !answers(&self.socket).await {
            let ended = self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(Some(_))));
            if ended || Instant::now() > deadline {
                bail!(
                    "containerd does not serve CRI at {}; see {}",
                    self.socket.display(),
                    self.options.log().display()
                );
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Makes [`BUSYBOX_IMAGE`] and [`PAUSE_IMAGE`] present, once.
    ///
    /// # Errors
    /// There is no static busybox on this machine, or the import failed.
    pub async fn import_busybox(&self) -> Result<()> {
        let imported = self.options.dir.join("images-imported");
        if imported.is_file() {
            return Ok(());
        }
        let archive = self.options.dir.join("images.tar");
        let file = archive.clone();
        tokio::task::spawn_blocking(move || images::write_archive(&file)).await??;
        self.import(&archive).await?;
        std::fs::write(imported, b"")?;
        Ok(())
    }

    /// Makes an image of this name present that takes so many bytes more than busybox.
    ///
    /// # Errors
    /// There is no static busybox on this machine, or the import failed.
    pub async fn import_filler(&self, name: &str, bytes: usize) -> Result<()> {
        let archive = tempfile::NamedTempFile::new()?.into_temp_path();
        let (file, name) = (archive.to_path_buf(), name.to_owned());
        tokio::task::spawn_blocking(move || fillers::write_archive(&file, &name, bytes)).await??;
        self.import(&archive).await
    }

    async fn import(&self, archive: &Path) -> Result<()> {
        let output = tokio::process::Command::new("ctr")
            .arg("--address")
            .arg(&self.socket)
            .args(["--namespace", "k8s.io", "images", "import", "--snapshotter", config::snapshotter(&self.options)])
            .arg(archive)
            .output()
            .await
            .context("ctr could not be run: is the package containerd installed?")?;
        if !output.status.success() {
            bail!("importing images: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        std::fs::remove_file(archive)?;
        Ok(())
    }

    /// The socket, for CRI and `ctr`.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// `unix:///…/containerd.sock`.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// A CRI client of its own.
    ///
    /// # Errors
    /// containerd does not answer.
    pub async fn client(&self) -> Result<RuntimeServiceClient<Channel>> {
        runtime_client(&self.socket).await
    }

    /// A CRI client for images.
    ///
    /// # Errors
    /// containerd does not answer.
    pub async fn images(&self) -> Result<ImageServiceClient<Channel>> {
        Ok(ImageServiceClient::new(channel(&self.socket).await?))
    }

    /// The OCI configuration that a running container was started with.
    ///
    /// # Errors
    /// There is no such container at work.
    pub fn oci_config(&self, container_id: &str) -> Result<serde_json::Value> {
        let bundle = self.options.sockets.join("state/io.containerd.runtime.v2.task/k8s.io").join(container_id);
        Ok(serde_json::from_slice(&std::fs::read(bundle.join("config.json"))?)?)
    }

    /// The node's own address in the network of the pods.
    pub fn gateway(&self) -> String {
        let network = self.options.subnet.split('/').next().unwrap_or_default();
        format!("{}1", network.trim_end_matches('0'))
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Lets it run on when this handle goes. Returns its process id.
    pub fn keep_running(mut self) -> i32 {
        self.kept = true;
        self.pid
    }

    /// Ends containerd alone, as a crash or `systemctl stop` does: containers live on.
    ///
    /// # Errors
    /// It does not end.
    pub async fn kill(&mut self) -> Result<()> {
        cleanup::kill_containerd(&self.options)?;
        self.reap();
        Ok(())
    }

    /// Starts it again after [`Containerd::kill`] or [`Containerd::power_off`].
    ///
    /// # Errors
    /// It does not come up.
    pub async fn start_again(&mut self) -> Result<()> {
        self.reap();
        let started = Self::start(self.options.clone()).await?;
        std::mem::replace(self, started).keep_running();
        Ok(())
    }

    /// Ends every container and shim by force, as a loss of power does; containerd as well.
    ///
    /// # Errors
    /// Something does not end.
    pub async fn power_off(&mut self) -> Result<()> {
        cleanup::kill_containerd(&self.options)?;
        self.reap();
        cleanup::kill_processes(&self.options)
    }

    /// Stops all pods, their shims and containerd, and removes mounts, network namespaces and the bridge.
    ///
    /// # Errors
    /// Something could not be removed; the text names it.
    pub async fn stop(mut self) -> Result<()> {
        self.kept = true;
        let result = Self::clean_up(&self.options).await;
        self.reap();
        result
    }

    /// As [`Containerd::stop`] for an instance of which only the folders are left, containerd running or not. Images and
    /// logs in `dir` stay.
    ///
    /// # Errors
    /// Something could not be removed; the text names it.
    pub async fn clean_up(options: &ContainerdOptions) -> Result<()> {
        cleanup::clean_up(options).await
    }

    /// Removes the empty cgroups at and below a `cgroupRoot`.
    pub fn remove_cgroups(root: &str) {
        cleanup::remove_cgroups(root);
    }

    /// Unmounts everything at or below a folder: the memory-backed volumes that a killed edgecore leaves, for example.
    ///
    /// # Errors
    /// Something could not be unmounted.
    pub fn unmount_below(folder: &Path) -> Result<()> {
        cleanup::unmount_below(&[folder])
    }

    /// What is mounted at or below a folder.
    ///
    /// # Errors
    /// The kernel's list cannot be read.
    pub fn mounts_below(folder: &Path) -> Result<Vec<PathBuf>> {
        cleanup::mounts_below(&[folder])
    }

    /// Collects the exit status of a containerd that was started here.
    fn reap(&mut self) {
        if let Some(mut child) = self.child.take() {
            drop(child.wait());
        }
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        let options = self.options.clone();
        // A runtime of its own: the one of the test may be single-threaded, and is blocked here.
        let cleaner = std::thread::spawn(move || -> Result<()> {
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(Self::clean_up(&options))
        });
        if let Ok(Err(error)) = cleaner.join() {
            eprintln!("cleaning up {}: {error:#}", self.options.dir.display());
        }
        self.reap();
    }
}

/// A client of a runtime.
pub type RuntimeClient = RuntimeServiceClient<Channel>;

/// A CRI client of the runtime at this socket.
///
/// # Errors
/// It does not answer.
pub async fn runtime_client(socket: &Path) -> Result<RuntimeClient> {
    Ok(RuntimeServiceClient::new(channel(socket).await?))
}

async fn channel(socket: &Path) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))?;
    Ok(endpoint.connect_timeout(Duration::from_secs(2)).timeout(Duration::from_secs(60)).connect().await?)
}

/// Whether CRI answers and the runtime calls itself ready.
async fn answers(socket: &Path) -> bool {
    let Ok(mut client) = runtime_client(socket).await else { return false };
    let Ok(answer) = client.status(cri::StatusRequest::default()).await else { return false };
    let conditions = answer.into_inner().status.unwrap_or_default().conditions;
    !conditions.is_empty() && conditions.iter().all(|condition| condition.status)
}
