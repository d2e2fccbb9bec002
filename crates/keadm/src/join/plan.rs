//! What the flags of `join` mean, found out before anything is asked or changed.

use api::edgecore::{Config, host_name, is_node_name};
use serde_json::{Value, json};

use super::JoinError;
use super::fields;
use crate::cloud::{self, HubAddress};
use crate::layout::Layout;
use crate::{cli, version};

/// The port of the tunnel for logs and exec, as in upstream.
const TUNNEL_PORT: u16 = 10004;
/// The port of the QUIC channel, as in upstream.
const QUIC_PORT: u16 = 10001;
const HEADER: &str = "# Written by `keadm join`. Edit it and restart edgecore; edgecore itself never changes it.\n";

/// A join, ready to be checked and done.
#[derive(Debug)]
pub(super) struct Plan {
    pub layout: Layout,
    pub hub: HubAddress,
    pub certport: u16,
    pub node: String,
    pub token: String,
    pub runtime_endpoint: String,
    /// As asked for; the runtime's otherwise.
    pub cgroup_driver: Option<String>,
    pub force: bool,
    /// Whether a service is wanted.
    pub starts: bool,
    pub config: Config,
}

impl Plan {
    /// Reads the flags.
    pub fn new(args: &cli::Join) -> Result<Self, JoinError> {
        let flag = |text: String| JoinError::Flag(text);
        let hub = HubAddress::parse(&args.cloudcore_ipport).ok_or_else(|| {
            flag(format!(
                "--cloudcore-ipport={}: must be host:port, for example 192.168.1.2:10000",
                args.cloudcore_ipport
            ))
        })?;
        if args.hub_protocol != "websocket" {
            return Err(flag(format!("--hub-protocol={}: only websocket is supported", args.hub_protocol)));
        }
        if args.certport == 0 {
            return Err(flag(
                "--certport=0: must be the port of cloudcore's certificate endpoint, usually 10002".into(),
            ));
        }
        if let Some(driver) =
            args.cgroupdriver.as_ref().filter(|driver| !["cgroupfs", "systemd"].contains(&driver.as_str()))
        {
            return Err(flag(format!("--cgroupdriver={driver}: must be cgroupfs or systemd")));
        }
        let node = args.edgenode_name.clone().unwrap_or_else(host_name);
        if !is_node_name(&node) {
            return Err(flag(format!(
                "{node:?} is no valid node name: use lower-case letters, digits, '-' and '.' (--edgenode-name)"
            )));
        }
        let token = args.token.trim().to_owned();
        cloud::check_token(&token)?;
        let layout = Layout::new(args.config_dir.as_deref(), args.root_dir.as_deref())
            .map_err(|error| JoinError::Folder(args.config_dir.clone().unwrap_or_default(), error))?;
        let endpoint = match args.remote_runtime_endpoint.as_str() {
            path if path.starts_with('/') => format!("unix://{path}"),
            url => url.to_owned(),
        };
        let mut document = Config::default_document().value;
        layout.relocate(&mut document);
        let text = |text: String| json!(text);
        let values = [
            ("/edgecoreVersion", json!(version::GIT_VERSION)),
            ("/modules/edged/hostnameOverride", json!(node)),
            // Users look at events; upstream leaves them on the node.
            ("/modules/edged/reportEvent", json!(true)),
            ("/modules/edged/nodeLabels", labels(&args.labels)?),
            ("/modules/edged/tailoredKubeletConfig/containerRuntimeEndpoint", json!(endpoint)),
            ("/modules/edged/tailoredKubeletConfig/imageServiceEndpoint", json!(endpoint)),
            (
                "/modules/edged/tailoredKubeletConfig/cgroupDriver",
                json!(args.cgroupdriver.as_deref().unwrap_or("cgroupfs")),
            ),
            ("/modules/edgeHub/websocket/server", text(hub.with_port(hub.port))),
            ("/modules/edgeHub/quic/server", text(hub.with_port(QUIC_PORT))),
            ("/modules/edgeHub/httpServer", text(format!("https://{}", hub.with_port(args.certport)))),
            ("/modules/edgeStream/server", text(hub.with_port(TUNNEL_PORT))),
        ];
        for (path, value) in values {
            put(&mut document, path, value);
        }
        for field in args.set.iter().flat_map(|text| fields::split(text)) {
            fields::set(&mut document, field).map_err(|error| flag(format!("--set {error}")))?;
        }
        let config = Config::parse(&api::document::to_yaml(&document), &layout.config())
            .map_err(|error| flag(format!("the flags make no valid edgecore.yaml: {error}")))?;
        if let Some(warning) = config.document.warnings.first() {
            return Err(flag(format!("--set {warning}")));
        }
        Ok(Self {
            runtime_endpoint: config.document.text("modules.edged.tailoredKubeletConfig.containerRuntimeEndpoint"),
            // A field may have named the node after all.
            node: config.node_name(),
            starts: !args.no_start && !layout.is_private(),
            layout,
            hub,
            certport: args.certport,
            token,
            cgroup_driver: args.cgroupdriver.clone(),
            force: args.force,
            config,
        })
    }

    /// Takes the runtime's own driver.
    pub fn set_cgroup_driver(&mut self, driver: &str) {
        put(&mut self.config.document.value, "/modules/edged/tailoredKubeletConfig/cgroupDriver", json!(driver));
    }

    /// The file's content.
    pub fn yaml(&self) -> String {
        format!("{HEADER}{}", self.config.document.to_yaml())
    }
}

fn put(document: &mut Value, path: &str, value: Value) {
    if let Some(slot) = document.pointer_mut(path) {
        *slot = value;
    }
}

/// `key=value` pairs by Kubernetes' rules for labels.
fn labels(pairs: &[String]) -> Result<Value, JoinError> {
    let mut labels = serde_json::Map::new();
    for pair in pairs.iter().filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, "\0"));
        let (prefix, name) = key.rsplit_once('/').unwrap_or(("x", key));
        if !is_node_name(prefix) || name.is_empty() || !is_label_text(name) || !is_label_text(value) {
            return Err(JoinError::Flag(format!(
                "--labels: {pair:?} is no label; write key=value, each of at most 63 letters, digits, '-', '_' and '.'"
            )));
        }
        labels.insert(key.to_owned(), json!(value));
    }
    Ok(Value::Object(labels))
}

fn is_label_text(text: &str) -> bool {
    let edge = |b: Option<u8>| b.is_none_or(|b| b.is_ascii_alphanumeric());
    text.len() <= 63
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && edge(text.bytes().next())
        && edge(text.bytes().last())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn plan(flags: &str) -> Result<Plan, JoinError> {
        let token = link::token::mint(b"ca", b"key", 1 << 40);
        let line =
            format!("keadm join --cloudcore-ipport=10.1.2.3:10000 --edgenode-name=edge-1 --token={token} {flags}");
        let cli = cli::Cli::try_parse_from(line.split_whitespace()).expect("command line");
        let cli::Command::Join(args) = cli.command else { panic!("join") };
        Plan::new(&args)
    }

    #[test]
    fn flags_become_fields() {
        let flags = "--labels=site=berlin,example.com/rack=a_7 -s 30002 --remote-runtime-endpoint=/run/c.sock \
                     --set modules.edgeHub.heartbeat=7,modules.edged.tailoredKubeletConfig.clusterDNS={10.0.0.1,10.0.0.2}";
        let plan = plan(flags).expect("plan");
        let hub = plan.config.edge_hub();
        assert_eq!(
            (hub.servers[0].as_str(), hub.http_servers[0].as_str()),
            ("10.1.2.3:10000", "https://10.1.2.3:30002")
        );
        assert_eq!(hub.heartbeat.as_secs(), 7);
        assert_eq!(hub.token, "", "the token is in the bootstrap file only");
        assert_eq!(plan.config.node_labels()["example.com/rack"], "a_7");
        assert_eq!(plan.config.document.texts("modules.edged.tailoredKubeletConfig.clusterDNS").len(), 2);
        assert_eq!(plan.runtime_endpoint, "unix:///run/c.sock");
        let again = Config::parse(&plan.yaml(), &plan.layout.config()).expect("the file that is written");
        assert_eq!(again.document.value, plan.config.document.value);
        assert!(again.document.warnings.is_empty());
    }

    #[test]
    fn wrong_flags_are_named() {
        for (flags, told) in [
            ("--hub-protocol=quic", "only websocket"),
            ("--cgroupdriver=none", "cgroupfs or systemd"),
            ("--labels=a", "is no label"),
            ("--labels=-a=b", "is no label"),
            ("--labels=a=b/c", "is no label"),
            ("--set modules.edgeHub.hartbeat=7", "did you mean heartbeat"),
            ("--set modules.edgeHub.heartbeat=fast", "heartbeat"),
            ("--set modules.edged.hostnameOverride=A_B", "no valid node name"),
            ("--certport=0", "10002"),
        ] {
            match plan(flags) {
                Err(JoinError::Flag(text)) => assert!(text.contains(told), "{flags}: {text}"),
                other => panic!("{flags}: {other:?}"),
            }
        }
        let cli = cli::Cli::try_parse_from(["keadm", "join", "--cloudcore-ipport=h:1"]).expect("command line");
        let cli::Command::Join(args) = cli.command else { panic!("join") };
        assert!(matches!(Plan::new(&args), Err(JoinError::Cloud(cloud::CloudError::NoToken))));
    }
}
