//! `keadm join`: checks first, then files, then the service. A failed check changes nothing; a failed write is undone.
//!
//! The token goes into the bootstrap file; edgecore gets its certificate with it and removes it. With `--config-dir` everything
//! of the node is below one folder, so that several nodes fit on one machine. Read [`plan`] for what the flags mean.

mod fields;
mod plan;

use std::path::{Path, PathBuf};
use std::time::Duration;

use api::edgecore::Config;
use link::files::{FileError, write_private};

use crate::cloud::{self, CloudError};
use crate::process;
use crate::receipt::{Receipt, ReceiptError};
use crate::runtime::{self, RuntimeError};
use crate::script::{self, ScriptError};
use crate::service::{self, ServiceError};
use crate::terminal::{complain, say};
use crate::{cli, refused};
use plan::Plan;

/// How long edgecore may take to get its certificate, as in upstream.
const JOIN_DEADLINE: Duration = Duration::from_secs(300);
const POLL: Duration = Duration::from_millis(200);

/// The node did not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// A flag is wrong.
    #[error("{0}")]
    Flag(String),
    /// The machine is a node already.
    #[error("this machine has joined already ({} exists): use `keadm reset edge` first, or --force to join again and keep its data", .0.display())]
    Joined(PathBuf),
    /// edgecore runs.
    #[error("edgecore runs already with {} (process {pid}): stop it first", config.display())]
    Running {
        /// Its configuration.
        config: PathBuf,
        /// Its process.
        pid: i32,
    },
    /// A kubelet runs.
    #[error("a kubelet runs on this machine (process {0}): a machine is a node of one kind only; stop it first")]
    Kubelet(i32),
    /// The runtime is not ready.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The cloud is not fit.
    #[error(transparent)]
    Cloud(#[from] CloudError),
    /// The administrator's program failed.
    #[error("the node has not joined")]
    Script(#[source] ScriptError),
    /// The record of an earlier join is damaged.
    #[error(transparent)]
    Receipt(#[from] ReceiptError),
    /// A file cannot be written.
    #[error("the node's files cannot be written; what was written is removed again")]
    File(#[source] FileError),
    /// A folder cannot be used.
    #[error("{} cannot be used", .0.display())]
    Folder(PathBuf, #[source] std::io::Error),
    /// The service does not start.
    #[error("the node is set up, but its service does not start")]
    Service(#[source] ServiceError),
    /// edgecore has no certificate.
    #[error("edgecore runs, but got no certificate within {} s: see `journalctl -u edgecore`; it goes on trying", JOIN_DEADLINE.as_secs())]
    NoCertificate,
}

impl JoinError {
    /// What the process ends with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Flag(_) => 2,
            Self::File(_) | Self::Service(_) | Self::NoCertificate => 1,
            _ => 3,
        }
    }
}

/// Joins.
///
/// # Errors
/// See [`JoinError`]; nothing has changed unless it says so.
pub async fn run(args: &cli::Join) -> Result<(), JoinError> {
    for warning in refused::join_flags(&args.old).map_err(JoinError::Flag)? {
        complain(&format!("warning: {warning}"));
    }
    let mut plan = Plan::new(args)?;
    if let Some(program) = &args.pre_run {
        script::run(program).map_err(JoinError::Script)?;
    }
    check(&mut plan).await?;
    write(&plan)?;
    start(&plan).await?;
    if let Some(program) = &args.post_run
        && let Err(error) = script::run(program)
    {
        complain(&format!("warning: the node has joined, but {error}"));
    }
    Ok(())
}

async fn check(plan: &mut Plan) -> Result<(), JoinError> {
    say(&format!("node {} joins {}", plan.node, plan.hub.with_port(plan.hub.port)));
    let config = plan.layout.on_disk(&plan.layout.config());
    if config.exists() && !plan.force {
        return Err(JoinError::Joined(config));
    }
    // The service is restarted; a process that somebody else started is theirs to stop.
    if let Some(&pid) = process::edgecores(&config).first().filter(|_| !service::is_installed(&plan.layout)) {
        return Err(JoinError::Running { config, pid });
    }
    if let Some(&pid) =
        process::named("kubelet").first().filter(|_| !plan.layout.is_private() && plan.layout.is_this_machine())
    {
        return Err(JoinError::Kubelet(pid));
    }
    let facts = runtime::check(&plan.runtime_endpoint).await?;
    say(&format!("1. runtime: {} answers at {}", facts.name, plan.runtime_endpoint));
    for problem in &facts.not_ready {
        complain(&format!("warning: the runtime is not ready yet, pods will wait for it: {problem}"));
    }
    match (&plan.cgroup_driver, facts.cgroup_driver) {
        (None, Some(driver)) => plan.set_cgroup_driver(driver),
        (Some(wanted), Some(driver)) if wanted != driver => {
            complain(&format!("warning: --cgroupdriver={wanted}, but the runtime uses {driver}; the runtime's is used"))
        }
        _ => {}
    }
    cloud::check(&plan.hub, plan.certport, &plan.token, &plan.node, plan.force).await?;
    say("2. cloud: its CA is the one of the token, and the node's name can be used");
    Ok(())
}

/// The receipt comes first: whatever happens, `reset` knows what to remove.
fn write(plan: &Plan) -> Result<(), JoinError> {
    let layout = &plan.layout;
    let disk = |path: &Path| layout.on_disk(path);
    let receipt_file = disk(&layout.receipt());
    let earlier = Receipt::load(&receipt_file)?;
    let first = earlier.is_none();
    let mut receipt = Receipt::of(&plan.node, &managed(plan), disk);
    if plan.starts && service::has_systemd(layout) {
        receipt.unit = Some(service::UNIT.to_owned());
    }
    let receipt = receipt.with(earlier);
    let files = || {
        receipt.save(&receipt_file)?;
        write_private(&disk(&layout.config()), plan.yaml().as_bytes())?;
        write_private(&disk(&layout.bootstrap()), format!("{}\n", plan.token).as_bytes())
    };
    if let Err(error) = files() {
        if first {
            for path in &receipt.made {
                let _ = crate::reset::tree::remove(&disk(path));
            }
        }
        return Err(JoinError::File(error));
    }
    say(&format!("3. written: {}", layout.config().display()));
    Ok(())
}

/// Everything that this node will have on this machine.
fn managed(plan: &Plan) -> Vec<PathBuf> {
    let (layout, config) = (&plan.layout, &plan.config);
    let hub = config.edge_hub();
    let mut paths =
        vec![layout.receipt(), layout.config(), layout.bootstrap(), hub.ca_file, hub.cert_file, hub.key_file];
    let database = config.database().display().to_string();
    paths.extend(["", "-wal", "-shm", ".lock"].map(|end| PathBuf::from(format!("{database}{end}"))));
    for key in ["rootDirectory", "tailoredKubeletConfig.podLogsDir", "tailoredKubeletConfig.staticPodPath"] {
        paths.push(config.document.text(&format!("modules.edged.{key}")).into());
    }
    if plan.starts && service::has_systemd(layout) {
        paths.extend([service::UNIT_FILE.into(), service::PROGRAM.into()]);
    }
    paths.retain(|path| path.is_absolute());
    paths
}

async fn start(plan: &Plan) -> Result<(), JoinError> {
    let layout = &plan.layout;
    if !plan.starts || !service::has_systemd(layout) {
        let why = if plan.starts { "this machine has no systemd" } else { "nothing is started" };
        say(&format!("4. {why}; start the node with: edgecore --config {}", layout.config().display()));
        return Ok(());
    }
    let program = service::place_program(layout).map_err(JoinError::Service)?;
    service::install(layout, &program).map_err(JoinError::Service)?;
    say(&format!("4. service {} is started, now and at every boot", service::UNIT));
    wait_for_certificate(layout.on_disk(&layout.bootstrap()), &plan.config, |path| layout.on_disk(path)).await?;
    say(&format!("5. the node has its certificate; `kubectl get node {}` shows it", plan.node));
    Ok(())
}

/// edgecore removes the token once it has used it.
async fn wait_for_certificate(
    bootstrap: PathBuf,
    config: &Config,
    disk: impl Fn(&Path) -> PathBuf,
) -> Result<(), JoinError> {
    let hub = config.edge_hub();
    let files = [hub.ca_file, hub.cert_file, hub.key_file].map(|path| disk(&path));
    let deadline = tokio::time::Instant::now() + JOIN_DEADLINE;
    while bootstrap.exists() || files.iter().any(|file| !file.exists()) {
        if tokio::time::Instant::now() > deadline {
            return Err(JoinError::NoCertificate);
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}
