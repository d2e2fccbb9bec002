//! The command line: names, flags and defaults of KubeEdge v1.23's keadm. Flags that are ours alone say so in their help.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::version;

/// Joins edge nodes to the cloud and resets them.
#[derive(Debug, Parser)]
#[command(name = "keadm", version = version::GIT_VERSION, disable_version_flag = true, args_override_self = true)]
pub struct Cli {
    /// More in the log: 1 steps, 2 everything.
    #[arg(long, short, global = true, default_value_t = 0)]
    pub v: u8,
    #[command(subcommand)]
    #[allow(missing_docs)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print the token with which edge nodes join.
    Gettoken(GetToken),
    /// Make this machine an edge node: write its configuration and start edgecore.
    Join(Box<Join>),
    /// Undo a join.
    Reset(Reset),
    /// Find out why something does not work.
    Debug(Debug),
    /// Print the version.
    Version(Version),
    /// Upstream's commands that are not here.
    #[command(external_subcommand)]
    Other(Vec<OsString>),
}

/// Flags of `gettoken`.
#[derive(Debug, Args)]
pub struct GetToken {
    /// How to reach the Kubernetes API [default: $KUBECONFIG, else /root/.kube/config].
    #[arg(long, value_name = "FILE")]
    pub kube_config: Option<PathBuf>,
}

/// What of `debug`.
#[derive(Debug, Args)]
pub struct Debug {
    #[command(subcommand)]
    #[allow(missing_docs)]
    pub command: DebugWhat,
}

/// What to look at.
#[derive(Debug, Subcommand)]
pub enum DebugWhat {
    /// Walk the way of `kubectl logs` to a node, and say which hop fails (not in upstream).
    Tunnel(DebugTunnel),
    /// Upstream's commands that are not here.
    #[command(external_subcommand)]
    Other(Vec<OsString>),
}

/// Flags of `debug tunnel`.
#[derive(Debug, Args)]
pub struct DebugTunnel {
    /// The node.
    pub node: String,
    /// How to reach the Kubernetes API [default: $KUBECONFIG, else /root/.kube/config].
    #[arg(long, value_name = "FILE")]
    pub kube_config: Option<PathBuf>,
}

/// Flags of `join`.
#[derive(Debug, Args)]
pub struct Join {
    /// Address of cloudcore's message channel, host:port (usually port 10000).
    #[arg(short = 'e', long, value_name = "HOST:PORT")]
    pub cloudcore_ipport: String,
    /// The output of `keadm gettoken`.
    #[arg(short, long, default_value = "", hide_default_value = true)]
    pub token: String,
    /// Name of the node [default: this machine's host name].
    #[arg(short = 'i', long, value_name = "NAME")]
    pub edgenode_name: Option<String>,
    /// CRI socket of the container runtime.
    #[arg(short = 'p', long, value_name = "URL", default_value = crate::runtime::DEFAULT_ENDPOINT)]
    pub remote_runtime_endpoint: String,
    /// cgroupfs or systemd [default: what the runtime uses].
    #[arg(long, value_name = "DRIVER")]
    pub cgroupdriver: Option<String>,
    /// Port of cloudcore's certificate endpoint.
    #[arg(short = 's', long, value_name = "PORT", default_value_t = 10002)]
    pub certport: u16,
    /// Only websocket is supported.
    #[arg(long, value_name = "PROTOCOL", default_value = "websocket")]
    pub hub_protocol: String,
    /// Labels of the Node, key=value, separated by commas.
    #[arg(short, long, value_name = "LABELS", value_delimiter = ',')]
    pub labels: Vec<String>,
    /// Fields of edgecore.yaml, path=value, separated by commas; lists as {a,b}, maps as {k:v}.
    #[arg(long, value_name = "FIELDS")]
    pub set: Vec<String>,
    /// A program to run before anything is done; when it fails, the node does not join.
    #[arg(long, value_name = "FILE")]
    pub pre_run: Option<PathBuf>,
    /// A program to run afterwards.
    #[arg(long, value_name = "FILE")]
    pub post_run: Option<PathBuf>,
    /// Join although this machine or a Node of this name has joined before: a new certificate is asked for, data is kept (not in upstream).
    #[arg(long)]
    pub force: bool,
    /// Keep everything of this node below this folder, for several nodes on one machine; nothing is started (not in upstream).
    #[arg(long, value_name = "DIR")]
    pub config_dir: Option<PathBuf>,
    /// Only write the files (not in upstream).
    #[arg(long)]
    pub no_start: bool,
    /// Stands before every absolute path: to try the whole without touching the system.
    #[arg(long, value_name = "DIR", hide = true)]
    pub root_dir: Option<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub old: OldJoin,
}

/// Flags of upstream's `join` that mean nothing here: warned about or refused, see [`crate::refused`].
#[derive(Debug, Default, Args)]
pub struct OldJoin {
    /// Version to install; only this program's own minor version is accepted.
    #[arg(long, value_name = "VERSION", hide = true)]
    pub kubeedge_version: Option<String>,
    /// Refused: no image is pulled.
    #[arg(long, value_name = "REGISTRY", hide = true)]
    pub image_repository: Option<String>,
    /// Has no effect, as in upstream.
    #[arg(long = "certPath", value_name = "DIR", hide = true)]
    pub cert_path: Option<PathBuf>,
    /// Has no effect, as in upstream.
    #[arg(long, value_name = "DIR", hide = true)]
    pub tarballpath: Option<PathBuf>,
    /// Gone since v1.13; tutorials still write it.
    #[arg(long, value_name = "TYPE", hide = true)]
    pub runtimetype: Option<String>,
    /// Gone since v1.16; tutorials still write it.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide = true)]
    pub with_mqtt: Option<bool>,
}

/// `reset` itself.
#[derive(Debug, Args)]
pub struct Reset {
    #[command(subcommand)]
    #[allow(missing_docs)]
    pub command: Option<ResetWhat>,
}

/// What to reset.
#[derive(Debug, Subcommand)]
pub enum ResetWhat {
    /// Stop edgecore and its pods, and remove what `keadm join` made.
    Edge(ResetEdge),
    /// Upstream's others.
    #[command(external_subcommand)]
    Other(Vec<OsString>),
}

/// Flags of `reset edge`.
#[derive(Debug, Args)]
pub struct ResetEdge {
    /// Do not ask.
    #[arg(long)]
    pub force: bool,
    /// CRI socket of the container runtime [default: that of edgecore.yaml].
    #[arg(long, value_name = "URL")]
    pub remote_runtime_endpoint: Option<String>,
    /// A program to run before anything is done; when it fails, nothing is reset.
    #[arg(long, value_name = "FILE")]
    pub pre_run: Option<PathBuf>,
    /// A program to run afterwards.
    #[arg(long, value_name = "FILE")]
    pub post_run: Option<PathBuf>,
    /// The folder that was given to `join` (not in upstream).
    #[arg(long, value_name = "DIR")]
    pub config_dir: Option<PathBuf>,
    /// Stands before every absolute path, as in `join`.
    #[arg(long, value_name = "DIR", hide = true)]
    pub root_dir: Option<PathBuf>,
}

/// Flags of `version`.
#[derive(Debug, Args)]
pub struct Version {
    /// Form of the answer.
    #[arg(short, long, value_enum)]
    pub output: Option<VersionOutput>,
}

/// Forms of `version`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum VersionOutput {
    /// A YAML document.
    Yaml,
    /// A JSON document.
    Json,
    /// The version alone.
    Short,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn tutorials_of_upstream_parse() {
        for line in [
            "keadm join --cloudcore-ipport=192.168.1.2:10000 --token=a.b.c.d --kubeedge-version=v1.23.1",
            "keadm join -e 1.2.3.4:10000 -t x -i edge-1 -p unix:///run/containerd/containerd.sock -s 30002 -l a=b,c=d",
            "keadm join --cloudcore-ipport=h:1 --certPath=/x --runtimetype=remote --with-mqtt=false --cgroupdriver=systemd",
            "keadm join --cloudcore-ipport=h:1 --with-mqtt --set modules.edgeStream.enable=true --hub-protocol=websocket",
            "keadm gettoken --kube-config=/root/.kube/config",
            "keadm reset edge --force --v=4",
            "keadm version -o short",
            "keadm version -o json",
        ] {
            Cli::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
        assert!(Cli::try_parse_from(["keadm", "join"]).is_err(), "the address is required");
        assert!(Cli::try_parse_from(["keadm", "version", "-o", "xml"]).is_err());
    }
}
