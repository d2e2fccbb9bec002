//! The cloud side: binaries, cloudcore with its embedded Kubernetes, and the join token.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::children::Children;
use super::cluster::Cluster;
use super::layout::{Layout, Ports};
use super::network;

/// How long cloudcore may take until its API answers.
const START: Duration = Duration::from_secs(60);
/// How often its API is asked.
const POLL: Duration = Duration::from_millis(50);

/// The folder that holds the three programs.
#[derive(Clone)]
pub struct Binaries {
    dir: PathBuf,
}

impl Binaries {
    /// The programs in this folder.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// The path of one program.
    pub fn path(&self, program: &str) -> PathBuf {
        self.dir.join(program)
    }

    /// A command that runs one program.
    pub fn command(&self, program: &str) -> Command {
        Command::new(self.path(program))
    }
}

/// Starts cloudcore with the embedded Kubernetes and waits until its API answers.
pub async fn start(layout: &Layout, binaries: &Binaries, children: &mut Children) -> Result<Cluster> {
    let choosing = layout.chooses_usual_ports().then(network::lock).transpose()?;
    let ports = layout.ports()?;
    let dir = layout.cloud();
    std::fs::create_dir_all(&dir)?;
    let sockets = layout.sockets();
    std::fs::create_dir_all(&sockets).with_context(|| sockets.display().to_string())?;
    let config = dir.join("cloudcore.yaml");
    std::fs::write(&config, config_text(&sockets.join("cloudcore.sock"), layout.hub(), ports))?;

    let log = layout.log("cloudcore");
    let mut command = binaries.command("cloudcore");
    command.arg("--standalone").arg(&dir).arg("--config").arg(&config);
    command.arg("--kubernetes-listen").arg(format!("127.0.0.1:{}", ports.kubernetes));
    children.start("cloudcore", &mut command, &log)?;

    let kubeconfig = dir.join("admin.kubeconfig");
    // Something else may listen there and never answer: what cloudcore says comes first.
    let cluster = tokio::select! {
        ended = children.until_ended() => return Err(ended),
        answered = tokio::time::timeout(START, answers(&kubeconfig)) => answered
            .with_context(|| format!("cloudcore's API does not answer after {} s; see {}", START.as_secs(), log.display()))?,
    };
    cluster.wait("cloudcore to publish a join token", START, || cluster.has_token()).await?;
    drop(choosing);
    Ok(cluster)
}

async fn answers(kubeconfig: &std::path::Path) -> Cluster {
    loop {
        if let Ok(cluster) = Cluster::open(kubeconfig)
            && cluster.is_ready().await
        {
            return cluster;
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The token for `keadm join`, as an administrator gets it.
pub fn token(layout: &Layout, binaries: &Binaries) -> Result<String> {
    let kubeconfig = layout.cloud().join("admin.kubeconfig");
    let output = binaries.command("keadm").arg("gettoken").arg("--kube-config").arg(kubeconfig).output()?;
    if !output.status.success() {
        bail!("keadm gettoken: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

fn config_text(socket: &std::path::Path, hub: IpAddr, ports: Ports) -> String {
    format!(
        "apiVersion: cloudcore.config.kubeedge.io/v1alpha2
kind: CloudCore
commonConfig:
  monitorServer:
    bindAddress: 127.0.0.1:{}
modules:
  cloudHub:
    advertiseAddress: [{hub}]
    dnsNames: [localhost]
    websocket: {{enable: true, address: {hub}, port: {}}}
    https: {{enable: true, address: {hub}, port: {}}}
    unixsocket: {{enable: true, address: \"unix://{}\"}}
  cloudStream: {{enable: true, streamPort: {}, tunnelPort: {}}}
",
        ports.monitor,
        ports.websocket,
        ports.https,
        socket.display(),
        ports.stream,
        ports.tunnel,
    )
}
