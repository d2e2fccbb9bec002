//! `keadm reset edge`: stops edgecore and its pods, then removes what `join` made. It can be repeated; the cluster is not touched.

pub(crate) mod tree;

use std::path::{Path, PathBuf};

use api::edgecore::Config;

use crate::cli;
use crate::layout::Layout;
use crate::process::{self, ProcessError};
use crate::receipt::{Receipt, ReceiptError};
use crate::runtime::{self, RuntimeError};
use crate::script::{self, ScriptError};
use crate::service::{self, ServiceError};
use crate::terminal::{complain, confirm, say};
use tree::TreeError;

/// What upstream's join makes; a node that joined with it has no receipt.
const UPSTREAM: [&str; 4] = ["/etc/kubeedge", "/var/lib/kubeedge", "/var/log/kubeedge", service::UNIT_FILE];

/// The node was not reset, or not wholly: it can be tried again.
#[derive(Debug, thiserror::Error)]
pub enum ResetError {
    /// The administrator said no.
    #[error("nothing was changed")]
    Declined,
    /// The folder cannot be used.
    #[error("{} cannot be used", .0.display())]
    Folder(PathBuf, #[source] std::io::Error),
    /// The folder is none of ours.
    #[error("{} was not made by `keadm join --config-dir`: it holds no joined.json", .0.display())]
    NotOurs(PathBuf),
    /// A kubelet runs.
    #[error("a kubelet runs on this machine (process {0}) and may use the same folders: stop it first")]
    Kubelet(i32),
    /// The record of the join is damaged.
    #[error(transparent)]
    Receipt(#[from] ReceiptError),
    /// The administrator's program failed.
    #[error("nothing was changed")]
    Script(#[source] ScriptError),
    /// The service cannot be stopped.
    #[error("edgecore cannot be stopped")]
    Service(#[source] ServiceError),
    /// A process cannot be stopped.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Pods cannot be stopped.
    #[error("the node's pods cannot be removed; start the runtime and try again, or leave them with --force")]
    Pods(#[source] RuntimeError),
    /// Files stay.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

impl ResetError {
    /// What the process ends with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Declined | Self::NotOurs(_) | Self::Kubelet(_) | Self::Script(_) => 3,
            _ => 1,
        }
    }
}

/// What there is to remove.
struct Found {
    node: String,
    paths: Vec<PathBuf>,
    unit: bool,
    endpoint: String,
    pods: Option<PathBuf>,
}

/// Resets.
///
/// # Errors
/// See [`ResetError`].
pub async fn run(args: &cli::ResetEdge) -> Result<(), ResetError> {
    let layout = Layout::new(args.config_dir.as_deref(), args.root_dir.as_deref())
        .map_err(|error| ResetError::Folder(args.config_dir.clone().unwrap_or_default(), error))?;
    let Some(found) = look(&layout, args)? else {
        say("there is nothing to reset: this machine has not joined");
        return Ok(());
    };
    if let Some(&pid) = process::named("kubelet").first().filter(|_| !layout.is_private() && layout.is_this_machine()) {
        return Err(ResetError::Kubelet(pid));
    }
    say(&format!("edgecore of node {} and its pods are stopped, and these are removed:", found.node));
    for path in &found.paths {
        say(&format!("  {}", path.display()));
    }
    if !args.force && !confirm("Reset this edge node?") {
        return Err(ResetError::Declined);
    }
    if let Some(program) = &args.pre_run {
        script::run(program).map_err(ResetError::Script)?;
    }
    stop(&layout, &found, args.force).await?;
    for path in &found.paths {
        tree::remove(&layout.on_disk(path))?;
    }
    if found.unit && service::has_systemd(&layout) {
        service::reload().map_err(ResetError::Service)?;
    }
    say(&format!("done; its Node is still in the cluster: `kubectl delete node {}` removes it", found.node));
    if let Some(program) = &args.post_run
        && let Err(error) = script::run(program)
    {
        complain(&format!("warning: the node is reset, but {error}"));
    }
    Ok(())
}

fn look(layout: &Layout, args: &cli::ResetEdge) -> Result<Option<Found>, ResetError> {
    let disk = |path: &Path| layout.on_disk(path);
    let receipt = Receipt::load(&disk(&layout.receipt()))?;
    let config_file = disk(&layout.config());
    // A configuration that cannot be read is no reason to keep the node.
    let config = Config::load(&config_file).ok();
    let (paths, unit) = match &receipt {
        Some(receipt) => (receipt.made.clone(), receipt.unit.is_some()),
        None if layout.is_private() && layout.base().exists() => {
            return Err(ResetError::NotOurs(layout.base().to_path_buf()));
        }
        None if config_file.exists() => (UPSTREAM.map(PathBuf::from).to_vec(), service::is_installed(layout)),
        None => return Ok(None),
    };
    let text = |path: &str| config.as_ref().map(|config| config.document.text(path)).filter(|text| !text.is_empty());
    let endpoint = args.remote_runtime_endpoint.clone();
    Ok(Some(Found {
        node: receipt
            .map(|receipt| receipt.node)
            .or_else(|| config.as_ref().map(Config::node_name))
            .unwrap_or_else(|| "of this machine".to_owned()),
        paths: paths.into_iter().filter(|path| std::fs::symlink_metadata(disk(path)).is_ok()).collect(),
        unit,
        endpoint: endpoint
            .or_else(|| text("modules.edged.tailoredKubeletConfig.containerRuntimeEndpoint"))
            .unwrap_or_else(|| runtime::DEFAULT_ENDPOINT.to_owned()),
        pods: text("modules.edged.rootDirectory").map(|root| disk(&Path::new(&root).join("pods"))),
    }))
}

async fn stop(layout: &Layout, found: &Found, force: bool) -> Result<(), ResetError> {
    if found.unit && service::has_systemd(layout) && service::is_installed(layout) {
        service::disable().map_err(ResetError::Service)?;
    }
    process::stop(&process::edgecores(&layout.on_disk(&layout.config()))).await?;
    let Some(pods) = &found.pods else { return Ok(()) };
    match runtime::remove_pods(&found.endpoint, pods).await {
        Ok(0) => Ok(()),
        Ok(count) => {
            say(&format!("{count} pods are removed from the runtime"));
            Ok(())
        }
        Err(error) if force => {
            complain(&format!("warning: the node's pods are left in the runtime: {error}"));
            Ok(())
        }
        Err(error) => Err(ResetError::Pods(error)),
    }
}
