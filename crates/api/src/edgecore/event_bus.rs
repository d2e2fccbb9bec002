//! `modules.eventBus` of `edgecore.yaml`.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::Config;
use crate::document::Document;

/// What EventBus is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventBus {
    /// The broker inside edgecore; `None` when there is none.
    pub internal: Option<InternalBroker>,
    /// The broker beside edgecore; `None` when none is used.
    pub external: Option<ExternalBroker>,
    /// With which quality of service edgecore's own messages go, 0 to 2 (inside edgecore).
    pub qos: u8,
    /// Whether the broker inside edgecore keeps the last of them on each topic.
    pub retain: bool,
    /// Messages that wait for one client of the broker inside edgecore.
    pub queue: usize,
}

/// The broker inside edgecore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InternalBroker {
    /// Where it listens.
    pub address: SocketAddr,
    /// How it speaks TLS; its certificate and key are given then. `None` is plain TCP.
    pub tls: Option<TlsFiles>,
    /// Who may connect, and what he may do. Without it clients of TLS need a certificate of the CA, and others need nothing.
    pub users_file: Option<PathBuf>,
}

/// A broker beside edgecore.
#[derive(Clone, PartialEq, Eq)]
pub struct ExternalBroker {
    /// Its host.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// TLS, of which the CA is given; `None` is plain TCP.
    pub tls: Option<TlsFiles>,
    /// Our name there; empty for one that is made up.
    pub client_id: String,
    /// Empty for none.
    pub username: String,
    /// The password of that user.
    pub password: String,
}

/// `eventBusTLS`: files in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Who must have issued the other side's certificate.
    pub ca: Option<PathBuf>,
    /// Our certificate and its key.
    pub own: Option<(PathBuf, PathBuf)>,
}

/// Never shows the password.
impl std::fmt::Debug for ExternalBroker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { host, port, tls, client_id, username, password: _ } = self;
        write!(f, "ExternalBroker({host}:{port}, client id {client_id:?}, user {username:?}, {tls:?})")
    }
}

const CA: &str = "modules.eventBus.eventBusTLS.tlsMqttCAFile";
const CERTIFICATE: &str = "modules.eventBus.eventBusTLS.tlsMqttCertFile";
const KEY: &str = "modules.eventBus.eventBusTLS.tlsMqttPrivateKeyFile";
const ENABLE_TLS: &str = "modules.eventBus.eventBusTLS.enable";
const USERS: &str = "modules.eventBus.mqttUsersFile";

impl Config {
    /// `modules.eventBus`; `None` when it is switched off.
    pub fn event_bus(&self) -> Option<EventBus> {
        let at = |key: &str| format!("modules.eventBus.{key}");
        let text = |key: &str| self.document.text(&at(key));
        if !self.document.flag(&at("enable")) {
            return None;
        }
        let mode = self.document.number(&at("mqttMode"));
        let file = |path: &str| Some(self.document.text(path)).filter(|file| !file.is_empty()).map(PathBuf::from);
        let tls = |scheme: Scheme| {
            (scheme == Scheme::Tls).then(|| TlsFiles { ca: file(CA), own: file(CERTIFICATE).zip(file(KEY)) })
        };
        let internal = || {
            let (scheme, address) = internal(&text("mqttServerInternal"))?;
            Some(InternalBroker { address, tls: tls(scheme), users_file: file(USERS) })
        };
        let external = || {
            let (scheme, host, port) = external(&text("mqttServerExternal"))?;
            let (username, password) = (text("mqttUsername"), text("mqttPassword"));
            Some(ExternalBroker {
                host,
                port,
                tls: tls(scheme),
                client_id: text("mqttSubClientID"),
                username,
                password,
            })
        };
        Some(EventBus {
            internal: if mode < 2 { internal() } else { None },
            external: if mode > 0 { external() } else { None },
            qos: u8::try_from(self.document.number(&at("mqttQOS"))).unwrap_or_default(),
            retain: self.document.flag(&at("mqttRetain")),
            queue: usize::try_from(self.document.number(&at("mqttSessionQueueSize"))).unwrap_or(1),
        })
    }

    /// Where mappers register: `dmi.sock` in the folder `modules.deviceTwin.dmiSockPath`; `None` when DeviceTwin is switched off.
    pub fn dmi_socket(&self) -> Option<PathBuf> {
        let folder = PathBuf::from(self.document.text("modules.deviceTwin.dmiSockPath"));
        self.document.flag("modules.deviceTwin.enable").then(|| folder.join("dmi.sock"))
    }
}

/// Remembers every mistake.
pub(super) fn validate(document: &mut Document) {
    let at = |key: &str| format!("modules.eventBus.{key}");
    if !document.flag(&at("enable")) {
        return;
    }
    let mode = document.number(&at("mqttMode"));
    if !(0..=2).contains(&mode) {
        return document.mistake(&at("mqttMode"), "must be 0 (internal), 1 (both) or 2 (external)");
    }
    if !(0..=2).contains(&document.number(&at("mqttQOS"))) {
        document.mistake(&at("mqttQOS"), "must be 0, 1 or 2");
    }
    if !(1..=100_000).contains(&document.number(&at("mqttSessionQueueSize"))) {
        document.mistake(&at("mqttSessionQueueSize"), "must be 1 to 100000 messages");
    }
    let (own, other) = (document.text(&at("mqttServerInternal")), document.text(&at("mqttServerExternal")));
    let inside = if mode < 2 { internal(&own) } else { None };
    let beside = if mode > 0 { external(&other) } else { None };
    if mode < 2 && inside.is_none() {
        let why = format!(
            "{own:?} is no address of this machine: write tcp://IP:PORT, for example tcp://127.0.0.1:1883, or ssl://IP:PORT for TLS"
        );
        document.mistake(&at("mqttServerInternal"), &why);
    }
    if mode > 0 && beside.is_none() {
        let why = format!(
            "{other:?} is no address of a broker: write tcp://HOST:PORT, for example tcp://127.0.0.1:1883, or ssl://HOST:PORT for TLS"
        );
        document.mistake(&at("mqttServerExternal"), &why);
    }
    if mode == 1 && own == other {
        let why = "is the address of the broker inside edgecore, too: give mqttServerInternal another port, for example tcp://127.0.0.1:1884";
        document.mistake(&at("mqttServerExternal"), why);
    }
    let inside_tls = inside.is_some_and(|(scheme, _)| scheme == Scheme::Tls);
    let beside_tls = beside.as_ref().is_some_and(|(scheme, ..)| *scheme == Scheme::Tls);
    users(document, inside);
    tls(document, inside_tls, beside_tls);
    if let Some((Scheme::Plain, host, _)) = beside
        && !document.text(&at("mqttPassword")).is_empty()
        && !is_this_machine(&host)
    {
        let why = format!("modules.eventBus.mqttPassword goes to {host} in clear: use ssl:// in mqttServerExternal");
        document.warnings.push(why);
    }
}

fn users(document: &mut Document, inside: Option<(Scheme, SocketAddr)>) {
    let file = document.text(USERS);
    match inside {
        None if !file.is_empty() => {
            document.mistake(USERS, "is for the broker inside edgecore, of which there is none with mqttMode: 2; the one beside edgecore has users of its own");
        }
        Some(_) if !file.is_empty() && !file.starts_with('/') => {
            document.mistake(USERS, &format!("{file:?} is no absolute path"));
        }
        // Whoever reaches it could speak for every device.
        Some((Scheme::Plain, address)) if file.is_empty() && !address.ip().to_canonical().is_loopback() => {
            let why = format!(
                "{address} is open to everybody on the network: name users in mqttUsersFile, or demand certificates (ssl:// and eventBusTLS), or stay on tcp://127.0.0.1:1883"
            );
            document.mistake("modules.eventBus.mqttServerInternal", &why);
        }
        _ => {}
    }
}

fn tls(document: &mut Document, inside: bool, beside: bool) {
    match (document.flag(ENABLE_TLS), inside || beside) {
        (false, true) => {
            return document.mistake(ENABLE_TLS, "must be true for an address with ssl://, and the files named");
        }
        (true, false) => {
            return document.mistake(ENABLE_TLS, "nothing is encrypted with tcp://: write ssl:// in mqttServerExternal or mqttServerInternal, or set this to false");
        }
        (false, false) => return,
        (true, true) => {}
    }
    let [ca, certificate, key] = [CA, CERTIFICATE, KEY].map(|path| document.text(path));
    for (path, file) in [(CA, &ca), (CERTIFICATE, &certificate), (KEY, &key)] {
        if !file.is_empty() && !file.starts_with('/') {
            document.mistake(path, &format!("{file:?} is no absolute path"));
        }
    }
    if ca.is_empty() && beside {
        document.mistake(CA, "is needed to know the broker by: name the CA that issued its certificate, or /etc/ssl/certs/ca-certificates.crt for public ones");
    } else if ca.is_empty() && inside && document.text(USERS).is_empty() {
        document.mistake(
            CA,
            "is needed to know clients by: name the CA of their certificates here, or users in mqttUsersFile",
        );
    }
    if certificate.is_empty() != key.is_empty() {
        document.mistake(KEY, "certificate and key go together: name both or none");
    } else if certificate.is_empty() && inside {
        document.mistake(CERTIFICATE, "the broker inside edgecore needs a certificate and its key for ssl://");
    }
}

/// Whether TLS is spoken at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    Plain,
    Tls,
}

/// The schemes that upstream's MQTT library has for TCP.
fn scheme(url: &str) -> Option<(Scheme, &str)> {
    let (scheme, rest) = url.split_once("://")?;
    match scheme {
        "tcp" | "mqtt" => Some((Scheme::Plain, rest)),
        "ssl" | "tls" | "mqtts" => Some((Scheme::Tls, rest)),
        _ => None,
    }
}

fn internal(url: &str) -> Option<(Scheme, SocketAddr)> {
    let (scheme, rest) = scheme(url)?;
    let address = rest.strip_prefix("localhost").map_or_else(|| rest.to_owned(), |port| format!("127.0.0.1{port}"));
    Some((scheme, address.parse().ok()?))
}

fn external(url: &str) -> Option<(Scheme, String, u16)> {
    let (scheme, rest) = scheme(url)?;
    let (host, port) = rest.trim_end_matches('/').rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    (!host.is_empty()).then_some((scheme, host.to_owned(), port.parse().ok()?))
}

fn is_this_machine(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config(text: &str) -> Result<Config, String> {
        let text = format!("modules: {{edged: {{hostnameOverride: edge}}, eventBus: {{{text}}}}}");
        Config::parse(&text, Path::new("edgecore.yaml")).map_err(|error| error.to_string())
    }

    #[test]
    fn without_a_word_the_broker_is_inside() {
        let bus = config("").expect("valid").event_bus().expect("on");
        let inside = bus.internal.expect("on");
        assert_eq!((inside.address, inside.tls, inside.users_file), (([127, 0, 0, 1], 1883).into(), None, None));
        assert_eq!(bus.external, None);
        assert_eq!(config("enable: false").expect("valid").event_bus(), None);
    }

    #[test]
    fn upstreams_modes() {
        let both = "mqttMode: 1, mqttServerInternal: tcp://localhost:1884, mqttServerExternal: 'tcp://broker:1883', mqttUsername: u";
        let bus = config(both).expect("valid").event_bus().expect("on");
        assert_eq!(bus.internal.map(|inside| inside.address), Some(([127, 0, 0, 1], 1884).into()));
        let external = bus.external.expect("named");
        assert_eq!((external.host.as_str(), external.port, external.username.as_str()), ("broker", 1883, "u"));
        let bus = config("mqttMode: 2").expect("valid").event_bus().expect("on");
        assert!(bus.internal.is_none() && bus.external.is_some_and(|broker| broker.host == "127.0.0.1"));
    }

    #[test]
    fn mistakes_name_the_cure() {
        for (text, why) in [
            ("mqttMode: 3", "must be 0 (internal), 1 (both) or 2 (external)"),
            ("mqttMode: 0, mqttServerInternal: 'tcp://broker:1883'", "tcp://IP:PORT"),
            ("mqttMode: 2, mqttServerExternal: broker", "tcp://HOST:PORT"),
            ("mqttMode: 1", "give mqttServerInternal another port"),
            ("mqttMode: 2, mqttServerExternal: 'wss://broker:8883'", "ssl://HOST:PORT for TLS"),
            ("mqttQOS: 5", "must be 0, 1 or 2"),
            ("mqttMode: 2, mqttServerExternal: 'ssl://broker:8883'", "eventBusTLS.enable: must be true"),
            ("eventBusTLS: {enable: true}", "nothing is encrypted with tcp://"),
            ("mqttMode: 2, eventBusTLS: {enable: true}", "nothing is encrypted with tcp://"),
            (
                "mqttMode: 2, mqttServerExternal: 'tls://b:8883', eventBusTLS: {enable: true, tlsMqttCAFile: ''}",
                "tlsMqttCAFile: is needed to know the broker",
            ),
            (
                "mqttMode: 2, mqttServerExternal: 'mqtts://b:8883', eventBusTLS: {enable: true, tlsMqttCAFile: ca.crt}",
                "no absolute path",
            ),
            (
                "mqttMode: 2, mqttServerExternal: 'ssl://b:8883', eventBusTLS: {enable: true, tlsMqttCertFile: ''}",
                "name both or none",
            ),
            (
                "mqttServerInternal: 'ssl://0.0.0.0:8883', eventBusTLS: {enable: true, tlsMqttCAFile: ''}",
                "to know clients by",
            ),
            (
                "mqttServerInternal: 'ssl://0.0.0.0:8883', eventBusTLS: {enable: true, tlsMqttCertFile: '', tlsMqttPrivateKeyFile: ''}",
                "tlsMqttCertFile: the broker inside",
            ),
            ("mqttServerInternal: 'tcp://0.0.0.0:1883'", "open to everybody"),
            ("mqttServerInternal: 'tcp://[::]:1883'", "open to everybody"),
            ("mqttServerInternal: 'tcp://192.168.1.2:1883'", "mqttUsersFile"),
            ("mqttUsersFile: users.yaml", "mqttUsersFile: \"users.yaml\" is no absolute path"),
            ("mqttMode: 2, mqttUsersFile: /etc/users.yaml", "users of its own"),
        ] {
            let told = config(text).expect_err(text);
            assert!(told.contains(why), "{text}: {told}");
            assert_eq!(told.lines().count(), 2, "one mistake, one line: {told}");
        }
    }

    #[test]
    fn the_scheme_says_where_tls_is_spoken() {
        let both = "mqttMode: 1, mqttServerExternal: 'ssl://broker:8883', mqttUsername: u, mqttPassword: geheim, eventBusTLS: {enable: true}";
        let bus = config(both).expect("valid").event_bus().expect("on");
        assert!(bus.internal.as_ref().is_some_and(|inside| inside.tls.is_none()));
        let beside = bus.external.clone().expect("named");
        assert_eq!(beside.tls.expect("TLS").ca, Some("/etc/kubeedge/ca/rootCA.crt".into()), "KubeEdge's default");
        assert!(!format!("{bus:?}").contains("geheim"));
        // Who knows users does not ask for certificates.
        let inside = "mqttServerInternal: 'ssl://0.0.0.0:8883', mqttUsersFile: /etc/u, eventBusTLS: {enable: true, tlsMqttCAFile: '', tlsMqttCertFile: /c, tlsMqttPrivateKeyFile: /k}";
        let inside = config(inside).expect("valid").event_bus().expect("on").internal.expect("on");
        assert_eq!(inside.users_file, Some("/etc/u".into()));
        assert_eq!(inside.tls, Some(TlsFiles { ca: None, own: Some(("/c".into(), "/k".into())) }));
        assert!(config("mqttServerInternal: 'tcp://0.0.0.0:1883', mqttUsersFile: /etc/u").is_ok());
        let clear = "mqttMode: 2, mqttServerExternal: 'tcp://broker:1883', mqttUsername: u, mqttPassword: geheim";
        let warnings = config(clear).expect("valid").document.warnings;
        assert!(warnings.len() == 1 && warnings[0].contains("in clear") && !warnings[0].contains("geheim"));
    }
}
